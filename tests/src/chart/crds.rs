//! Custom resource definitions of `eastway.dev`, made of the structs that files are read into.
//!
//! A definition cannot hold everything a file's schema says: references are written out, `additionalProperties: false`
//! goes (the API server drops unknown fields, and tells `kubectl` about them), and bounds are added that the cost
//! limit of its rules wants. What is beyond a schema is said by rules with messages for people.

use eastway::config::schema;
use serde_json::{Map, Value, json};

/// Most items of any list without a bound of its own: rules over unbounded ones are refused by the API server.
const MAX_ITEMS: u64 = 64;
/// Longest texts by their field, for the same reason; others are names, of at most [`MAX_NAME`] characters.
const MAX_TEXTS: [(&str, u64); 3] = [("bundle", 262_144), ("gateway", 2048), ("addresses", 300)];
const MAX_NAME: u64 = 253;

/// A rule in CEL, and what people are told who break it.
type Rule = (&'static str, &'static str);

/// One kind of object.
struct Kind {
    name: &'static str,
    plural: &'static str,
    short: &'static str,
    namespaced: bool,
    /// What the status has beside the conditions.
    facts: Value,
    columns: Value,
    /// Path from the root, of properties and `items`; rules there.
    rules: Vec<(&'static [&'static str], Vec<Rule>)>,
}

/// File name and text of every definition.
#[must_use]
pub fn all() -> Vec<(String, String)> {
    kinds().into_iter().map(|kind| (format!("eastway.dev_{}.yaml", kind.plural), definition(&kind))).collect()
}

fn kinds() -> [Kind; 5] {
    [peer(), traffic_policy(), access_policy(), visibility(), service_share()]
}

fn condition_column(name: &str, kind: &str) -> Value {
    json!({"name": name, "type": "string", "jsonPath": format!(".status.conditions[?(@.type==\"{kind}\")].status")})
}

fn message_column(kind: &str) -> Value {
    let path = format!(".status.conditions[?(@.type==\"{kind}\")].message");
    json!({"name": "Message", "type": "string", "priority": 1, "jsonPath": path})
}

fn age_column() -> Value {
    json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"})
}

fn peer() -> Kind {
    Kind {
        name: "Peer",
        plural: "peers",
        short: "ewp",
        namespaced: false,
        facts: peer_facts(),
        columns: json!([
            condition_column("Ready", "Ready"),
            {"name": "Imported", "type": "integer", "jsonPath": ".status.importedServices"},
            {"name": "Exported", "type": "integer", "jsonPath": ".status.exportedServices"},
            {"name": "RTT", "type": "string", "jsonPath": ".status.link.roundTrip"},
            {"name": "Since", "type": "date", "jsonPath": ".status.link.since"},
            {"name": "Path", "type": "string", "priority": 1, "jsonPath": ".status.link.path"},
            {"name": "Trust Domain", "type": "string", "jsonPath": ".spec.trustDomain"},
            age_column(),
            message_column("Ready"),
        ]),
        rules: vec![
            (
                &[],
                vec![(
                    "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')",
                    "a Peer is named like its cluster: lower-case letters, digits and dashes, at most 63",
                )],
            ),
            (
                &["spec"],
                vec![
                    (
                        "self.trustDomain == oldSelf.trustDomain",
                        "a peer's trust domain does not change: delete this Peer and create a new one",
                    ),
                    (
                        "!has(self.gateway) || self.gateway.startsWith('spiffe://' + self.trustDomain + '/')",
                        "gateway must be in the trust domain of the peer, e.g. spiffe://TRUSTDOMAIN/ns/eastway-system/sa/eastway-gateway",
                    ),
                ],
            ),
            (
                &["spec", "pins"],
                vec![(
                    "self.all(pin, pin.matches('^sha256:[0-9a-fA-F]{64}$'))",
                    "a pin is sha256: and 64 hexadecimal digits; `eastway peer export` at the peer prints it",
                )],
            ),
            (
                &["spec", "addresses"],
                vec![(
                    "self.all(address, address.matches('^.+:[0-9]{1,5}$'))",
                    "an address is host:port, e.g. gateway.gke.example:15443",
                )],
            ),
            (
                &["spec", "bundle"],
                vec![(
                    "!self.contains('PRIVATE KEY')",
                    "a bundle holds certificates; take the private key out and replace it",
                )],
            ),
            (
                &["spec", "proxy"],
                vec![
                    ("self.url.startsWith('http://')", "a proxy is http://host:port"),
                    ("has(self.username) == has(self.passwordFile)", "username and passwordFile go together"),
                ],
            ),
            (&["spec", "withdrawAfter"], vec![DURATION]),
            (&["spec", "export"], FILTER.to_vec()),
            (&["spec", "import"], FILTER.to_vec()),
        ],
    }
}

fn peer_facts() -> Value {
    let count = |about: &str| json!({"type": "integer", "format": "int64", "minimum": 0, "description": about});
    json!({
        "importedServices": count("Services that it offers to this cluster."),
        "exportedServices": count("Services of this cluster that it may see."),
        "link": {
            "type": "object",
            "description": "Its links, as one gateway of this cluster sees them. A round trip time is written anew once a minute at most.",
            "properties": {
                "since": {"type": "string", "format": "date-time", "description": "Since when it is up, or not."},
                "path": {"type": "string", "enum": ["udp", "tcp", "relay"], "description": "What carries the best link; not set while there is none."},
                "roundTrip": {"type": "string", "maxLength": 32, "description": "Smoothed round trip time of the best link, e.g. `12ms`."},
            },
        },
    })
}

/// Names of clusters and services that never cross.
const FILTER: [Rule; 2] = [
    (
        "self.all(f, !f.namespace.startsWith('kube-') && f.namespace != 'istio-system' && f.namespace != 'eastway-system')",
        "kube-*, istio-system and eastway-system never cross",
    ),
    ("self.all(f, !has(f.services) || size(f.services) > 0)", "services is empty; leave it out for all services"),
];

const DURATION: Rule = ("self.matches('^([0-9]+(ms|s|m|h|d))+$')", "a duration has units, e.g. 30s, 15m or 24h");

fn traffic_policy() -> Kind {
    Kind {
        name: "TrafficPolicy",
        plural: "trafficpolicies",
        short: "ewtp",
        namespaced: true,
        facts: json!({}),
        columns: json!([
            {"name": "Service", "type": "string", "jsonPath": ".spec.service"},
            condition_column("Accepted", "Accepted"),
            condition_column("Resolved", "ResolvedRefs"),
            condition_column("PerRequest", "PerRequest"),
            age_column(),
            message_column("Accepted"),
        ]),
        rules: vec![
            (
                &["spec", "split"],
                vec![(
                    "size(self) == 0 || self.exists(s, s.weight > 0)",
                    "all weights are 0: no connection could be routed",
                )],
            ),
            (
                &["spec", "failover"],
                vec![("self.all(c, self.exists_one(other, other == c))", "a cluster stands twice in failover")],
            ),
        ],
    }
}

fn access_policy() -> Kind {
    Kind {
        name: "AccessPolicy",
        plural: "accesspolicies",
        short: "ewap",
        namespaced: true,
        facts: json!({}),
        columns: json!([
            {"name": "Services", "type": "string", "jsonPath": ".spec.services"},
            condition_column("Accepted", "Accepted"),
            condition_column("Resolved", "ResolvedRefs"),
            condition_column("Enforced", "Enforced"),
            age_column(),
            message_column("Accepted"),
        ]),
        rules: vec![
            (&["spec", "namespaces", "items"], vec![WHOLE]),
            (&["spec", "services", "items"], vec![WHOLE]),
            (&["spec", "allow", "items", "cluster"], vec![WHOLE]),
            (&["spec", "allow", "items", "namespace"], vec![WHOLE]),
            (&["spec", "allow", "items", "serviceAccounts", "items"], vec![WHOLE]),
            (
                &["spec", "allow", "items", "serviceAccounts"],
                vec![("size(self) > 0", "serviceAccounts is empty; leave it out for all")],
            ),
        ],
    }
}

fn visibility() -> Kind {
    Kind {
        name: "Visibility",
        plural: "visibilities",
        short: "ewv",
        namespaced: true,
        facts: json!({}),
        columns: json!([{"name": "Services", "type": "string", "jsonPath": ".spec.services"}, age_column()]),
        rules: Vec::new(),
    }
}

fn service_share() -> Kind {
    Kind {
        name: "ServiceShare",
        plural: "serviceshares",
        short: "ewss",
        namespaced: true,
        facts: json!({}),
        columns: json!([
            {"name": "Service", "type": "string", "jsonPath": ".spec.service"},
            {"name": "Cluster", "type": "string", "jsonPath": ".spec.cluster"},
            {"name": "Subset", "type": "string", "jsonPath": ".spec.subset"},
            age_column(),
        ]),
        rules: Vec::new(),
    }
}

/// Access is decided by exact comparison alone.
const WHOLE: Rule =
    ("self == '*' || !self.contains('*')", "must be a whole name or * alone; access rules know no patterns");

fn definition(kind: &Kind) -> String {
    let file: Value =
        serde_json::from_str(&schema(kind.name).expect("the kind has a schema")).expect("a schema is JSON");
    let mut spec = structural(&file, "spec", &file["$defs"][format!("{}Spec", kind.name)]);
    let (api_version, name) = (json!({"type": "string"}), json!({"type": "string"}));
    let mut root = json!({
        "type": "object",
        "description": one_line(&file["description"]),
        "required": ["spec"],
        "properties": {
            "apiVersion": api_version,
            "kind": name,
            "metadata": {"type": "object"},
            "spec": spec.take(),
            "status": status(&kind.facts),
        },
    });
    for (path, rules) in &kind.rules {
        let mut at = &mut root;
        for step in *path {
            at = if *step == "items" { &mut at["items"] } else { &mut at["properties"][*step] };
        }
        assert!(at["type"].is_string(), "{}: there is no {path:?}", kind.name);
        let rules: Vec<Value> = rules.iter().map(|(rule, message)| json!({"rule": rule, "message": message})).collect();
        at["x-kubernetes-validations"] = rules.into();
    }
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.eastway.dev", kind.plural)},
        "spec": {
            "group": "eastway.dev",
            "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
            "names": {
                "kind": kind.name,
                "listKind": format!("{}List", kind.name),
                "plural": kind.plural,
                "singular": kind.name.to_lowercase(),
                "shortNames": [kind.short],
                "categories": ["multicluster"],
            },
            "versions": [{
                "name": "v1alpha1",
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": kind.columns,
                "schema": {"openAPIV3Schema": root},
            }],
        },
    });
    let text = serde_saphyr::to_string(&definition).expect("a definition is YAML");
    format!("# Made of the structs that files are read into: `make regenerate` writes it.\n{text}")
}

fn status(facts: &Value) -> Value {
    let condition = json!({
        "type": "object",
        "required": ["type", "status", "lastTransitionTime", "reason", "message"],
        "properties": {
            "type": {"type": "string", "maxLength": 316},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "reason": {"type": "string", "minLength": 1, "maxLength": 1024},
            "message": {"type": "string", "maxLength": 32768},
        },
    });
    let mut status = json!({
        "type": "object",
        "description": "What became of it. The controller alone writes it.",
        "properties": {
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
            "conditions": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": condition,
            },
        },
    });
    for (name, schema) in facts.as_object().into_iter().flatten() {
        status["properties"][name] = schema.clone();
    }
    status
}

/// The schema as definitions take it.
fn structural(root: &Value, field: &str, schema: &Value) -> Value {
    let mut object = Map::new();
    let target = match schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#')) {
        Some(pointer) => root.pointer(pointer).expect("a schema refers to its own parts"),
        None => schema,
    };
    let about = if schema["description"].is_string() { schema } else { target };
    if about["description"].is_string() {
        object.insert("description".to_owned(), one_line(&about["description"]).into());
    }
    for (key, value) in target.as_object().into_iter().flatten() {
        let kept = match key.as_str() {
            "properties" => {
                let all = value.as_object().into_iter().flatten();
                all.map(|(name, inner)| (name.clone(), structural(root, name, inner))).collect::<Map<_, _>>().into()
            }
            "items" => structural(root, field, value),
            "additionalProperties" if value.is_object() => structural(root, field, value),
            // A list of words, each with a description.
            "oneOf" => {
                let words: Vec<&Value> = value.as_array().into_iter().flatten().map(|word| &word["const"]).collect();
                object.insert("enum".to_owned(), json!(words));
                object.insert("type".to_owned(), "string".into());
                continue;
            }
            "description" | "additionalProperties" | "title" | "$ref" => continue,
            _ => value.clone(),
        };
        object.insert(key.clone(), kept);
    }
    match target["type"].as_str() {
        Some("array") => {
            object.entry("maxItems").or_insert(MAX_ITEMS.into());
        }
        Some("string") if target["enum"].is_null() => {
            let bound = MAX_TEXTS.iter().find(|(of, _)| *of == field).map_or(MAX_NAME, |(_, bound)| *bound);
            object.entry("maxLength").or_insert(bound.into());
        }
        Some("object") if target["additionalProperties"].is_object() => {
            object.entry("maxProperties").or_insert(MAX_ITEMS.into());
        }
        Some("integer") => {
            // `uint64` is no format of the API.
            object.insert("format".to_owned(), "int64".into());
        }
        _ => {}
    }
    Value::Object(object)
}

fn one_line(text: &Value) -> String {
    text.as_str().unwrap_or_default().replace('\n', " ")
}
