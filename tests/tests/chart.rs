//! The Helm chart as Helm renders it. `EASTWAY_REGENERATE=1` (`make regenerate`) writes the golden files anew; what
//! changes in them is what changes in clusters.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use eastway_tests::chart::{crds, folder, objects, template, values};
use serde_json::Value;

/// Every set of values that is shipped, and one with all that is off by default.
const GOLDEN: [(&str, &[&str]); 7] = [
    ("default", &[]),
    ("ha", &["-f", "values-ha.yaml"]),
    ("eks", &["-f", "values-eks.yaml"]),
    ("gke", &["-f", "values-gke.yaml"]),
    ("aks", &["-f", "values-aks.yaml"]),
    ("onprem", &["-f", "values-onprem.yaml"]),
    ("all", &["-f", "all.yaml"]),
];

fn regenerate() -> bool {
    std::env::var_os("EASTWAY_REGENERATE").is_some()
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/chart")
}

/// Compares with what is committed, or writes it.
fn assert_file(path: &Path, text: &str) {
    if regenerate() {
        std::fs::write(path, text).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    if committed == text {
        return;
    }
    let differs = committed.lines().zip(text.lines()).position(|(old, new)| old != new);
    let line = differs.unwrap_or_else(|| committed.lines().count().min(text.lines().count()));
    panic!(
        "{} is out of date from line {}: {:?} is now {:?}; `make regenerate` writes it",
        path.display(),
        line + 1,
        committed.lines().nth(line),
        text.lines().nth(line)
    );
}

/// Files of values are in the chart, those that only tests want beside the golden files.
fn render(arguments: &[&str]) -> String {
    let found = |file: &&str| {
        let shipped = folder().join(file);
        let path = if shipped.exists() { shipped } else { golden().join(file) };
        path.to_str().unwrap().to_owned()
    };
    let arguments: Vec<String> =
        arguments.iter().map(|word| if word.ends_with(".yaml") { found(word) } else { (*word).to_owned() }).collect();
    template(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).unwrap()
}

#[test]
fn rendered_objects_are_as_committed() {
    for (name, arguments) in GOLDEN {
        let mut arguments = arguments.to_vec();
        // Their files are compared by themselves.
        arguments.extend(["--set", "crds.install=false"]);
        assert_file(&golden().join(format!("{name}.golden")), &render(&arguments));
    }
}

#[test]
fn schema_and_table_of_values_are_those_of_the_structs() {
    let text = serde_json::to_string_pretty(&values::schema()).unwrap() + "\n";
    assert_file(&folder().join("values.schema.json"), &text);
    let defaults = std::fs::read_to_string(folder().join("values.yaml")).unwrap();
    // Unknown and missing keys are errors: the file has every value.
    let typed: Result<values::Values, _> = serde_saphyr::from_str(&defaults);
    typed.unwrap_or_else(|error| panic!("values.yaml: {error}"));
    let defaults: Value = serde_saphyr::from_str(&defaults).unwrap();
    let readme = folder().join("README.md");
    let committed = std::fs::read_to_string(&readme).unwrap();
    let (head, _) = committed.split_once("<!-- generated below this line -->\n").unwrap();
    assert_file(&readme, &format!("{head}<!-- generated below this line -->\n{}", values::table(&defaults)));
}

#[test]
fn definitions_are_those_of_the_structs() {
    for (name, text) in crds::all() {
        assert_file(&folder().join("files/crds").join(name), &text);
    }
}

#[test]
fn misspelt_values_are_refused() {
    for (argument, word) in [
        ("gateway.replcas=3", "replcas"),
        ("clutser=x", "clutser"),
        ("gateway.service.tcp=maybe", "tcp"),
        ("cluster=", "cluster"),
        ("trustDomain=A", "trustDomain"),
        ("link.drain=3s", "drain"),
        ("sidecars.injection.failurePolicy=Maybe", "failurePolicy"),
    ] {
        let Err(error) = template(&["--set", argument]) else { panic!("{argument} is taken") };
        let error = error.to_string();
        assert!(error.contains("values don't meet the specifications"), "{argument}: {error}");
        assert!(error.contains(word), "{argument}: {error}");
    }
    let error = template(&["--namespace", "elsewhere"]).unwrap_err().to_string();
    assert!(error.contains("--namespace eastway-system"), "{error}");
}

/// S1: every right of every role, one a line. A line more here is a right more for whoever breaks in.
#[test]
fn s1_rights_are_these_and_no_others() {
    let mut rights = BTreeSet::new();
    for object in objects(&render(&["-f", "all.yaml"])).unwrap() {
        if !matches!(object["kind"].as_str(), Some("ClusterRole" | "Role")) {
            continue;
        }
        let place = object["metadata"]["namespace"].as_str().unwrap_or("cluster");
        let strings = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().map(|item| item.as_str().unwrap().to_owned()).collect()
        };
        for rule in object["rules"].as_array().unwrap() {
            for (group, resource) in strings(&rule["apiGroups"])
                .iter()
                .flat_map(|g| strings(&rule["resources"]).into_iter().map(move |r| (g.clone(), r)))
            {
                for verb in strings(&rule["verbs"]) {
                    let names = strings(&rule["resourceNames"]).join(",");
                    let name = object["metadata"]["name"].as_str().unwrap();
                    rights.insert(format!("{name} {place} {group}/{resource} {names} {verb}").replace("  ", " "));
                }
            }
        }
    }
    assert!(!rights.iter().any(|right| right.contains('*')), "no wildcard");
    assert!(!rights.iter().any(|right| right.starts_with("eastway-gateway cluster")
        && !right.ends_with(" get")
        && !right.ends_with(" list")
        && !right.ends_with(" watch")));
    let secrets: Vec<_> = rights.iter().filter(|right| right.contains("/secrets")).collect();
    // The CA key is one of the namespace: there they are read by who makes it, and by nobody else.
    let elsewhere = |right: &str| right.starts_with("eastway-clusters eastway-clusters ");
    let allowed = |right: &&&String| right.starts_with("eastway-ca-init eastway-system") || elsewhere(right);
    assert_eq!(secrets.iter().find(|right| !allowed(right)), None);
    let text = rights.into_iter().collect::<Vec<_>>().join("\n") + "\n";
    assert_file(&golden().join("rights"), &text);
}

/// I10: the CA's key is mounted into pods of the ca role alone, and every pod is restricted.
#[test]
fn i10_no_pod_but_the_ca_has_the_key() {
    let mut pods = 0;
    for object in objects(&render(&["-f", "all.yaml"])).unwrap() {
        let (name, pod) = match object["kind"].as_str() {
            Some("Deployment" | "Job") => (&object["metadata"]["name"], &object["spec"]["template"]["spec"]),
            Some("Pod") => (&object["metadata"]["name"], &object["spec"]),
            _ => continue,
        };
        pods += 1;
        for volume in pod["volumes"].as_array().into_iter().flatten() {
            let secret = &volume["secret"];
            if secret["secretName"] != "cacerts" {
                continue;
            }
            let keys: Vec<_> = secret["items"].as_array().into_iter().flatten().map(|item| &item["key"]).collect();
            let is_public = |key: &&Value| {
                key.as_str().is_some_and(|key| key.ends_with("root-cert.pem") || key.ends_with("cert-chain.pem"))
            };
            let public = !keys.is_empty() && keys.iter().all(is_public);
            assert!(public || name == "eastway-ca", "{name} mounts {keys:?}");
        }
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert!(pod["hostNetwork"].is_null() && pod["hostPID"].is_null(), "{name}");
        for container in pod["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]), "{name}");
            for port in container["ports"].as_array().into_iter().flatten() {
                assert!(port["containerPort"].as_u64().unwrap() >= 1024 && port["hostPort"].is_null(), "{name}");
            }
        }
    }
    assert_eq!(pods, 7, "four roles, the hooks and the test");
}

/// The chart's own NetworkPolicies keep nobody from a port that a pod listens on and says so.
#[test]
fn network_policies_know_every_port() {
    let rendered = objects(&render(&["-f", "all.yaml"])).unwrap();
    let of = |kind: &str, name: &str| {
        rendered.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name).cloned().unwrap()
    };
    for role in ["gateway", "controller", "ca", "injector"] {
        let name = format!("eastway-{role}");
        let rules = of("NetworkPolicy", &name)["spec"]["ingress"].clone();
        let lets_in = |port: &Value, protocol: &Value| {
            rules.as_array().unwrap().iter().any(|rule| {
                // Without ports a rule is for all of them.
                rule["ports"].is_null()
                    || rule["ports"].as_array().unwrap().iter().any(|it| {
                        let (from, number) = (it["port"].as_u64().unwrap(), port.as_u64().unwrap());
                        it["protocol"] == *protocol && (from..=it["endPort"].as_u64().unwrap_or(from)).contains(&number)
                    })
            })
        };
        let pod = of("Deployment", &name)["spec"]["template"]["spec"].clone();
        for port in pod["containers"][0]["ports"].as_array().unwrap() {
            assert!(lets_in(&port["containerPort"], &port["protocol"]), "{name}: {port}");
        }
    }
}

/// The webhook is asked about pods of namespaces that want it, and never where a cluster, or this, would stop with it. It has no
/// certificates of its own in the chart: an upgrade would write over them.
#[test]
fn the_webhook_keeps_away_from_what_a_cluster_needs() {
    let webhooks = |arguments: &[&str]| -> Vec<Value> {
        let all = objects(&render(arguments)).unwrap();
        all.into_iter().filter(|object| object["kind"] == "MutatingWebhookConfiguration").collect()
    };
    assert!(webhooks(&[]).is_empty(), "only if it is asked for");
    let object = webhooks(&["--set", "sidecars.injection.enabled=true"]).remove(0);
    let [webhook] = object["webhooks"].as_array().unwrap().as_slice() else { panic!("one webhook") };
    assert_eq!(webhook["failurePolicy"], "Ignore");
    assert_eq!(webhook["sideEffects"], "None");
    assert!(webhook["clientConfig"]["caBundle"].is_null());
    let selector = &webhook["namespaceSelector"];
    assert_eq!(selector["matchLabels"], serde_json::json!({"eastway.dev/injection": "enabled"}));
    let not = &selector["matchExpressions"][0];
    assert_eq!((&not["key"], &not["operator"]), (&"kubernetes.io/metadata.name".into(), &"NotIn".into()));
    for namespace in ["kube-system", "kube-public", "kube-node-lease", "eastway-system"] {
        assert!(not["values"].as_array().unwrap().contains(&namespace.into()), "{namespace}");
    }
    assert_eq!(webhook["rules"][0]["operations"], serde_json::json!(["CREATE"]));
    assert_eq!(webhook["rules"][0]["resources"], serde_json::json!(["pods"]));
    let old = template(&["--set", "sidecars.injection.enabled=true", "--kube-version", "1.28.0"]).unwrap_err();
    assert!(old.to_string().contains("wants Kubernetes 1.29"), "{old}");
}

/// A pod of a role gets what the role's commands take.
#[test]
fn pods_run_commands_that_exist() {
    let mut commands = BTreeMap::new();
    for object in objects(&render(&["-f", "all.yaml"])).unwrap() {
        let spec = if object["kind"] == "Pod" { &object["spec"] } else { &object["spec"]["template"]["spec"] };
        for container in spec["containers"].as_array().into_iter().flatten() {
            let words = container["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned());
            commands.insert(container["name"].as_str().unwrap().to_owned(), words.collect::<Vec<_>>());
        }
    }
    assert_eq!(commands.len(), 8);
    for (name, words) in commands {
        let help =
            std::process::Command::new(eastway_tests::binary()).args(&words[..1]).arg("--help").output().unwrap();
        assert!(help.status.success(), "{name}: {words:?}");
    }
}

/// What is rendered is a configuration: for every set of values the gateway accepts its own, without a warning.
#[test]
fn the_gateway_accepts_what_is_rendered() {
    for (name, arguments) in GOLDEN {
        let folder = tempfile::tempdir().unwrap();
        let objects = objects(&render(arguments)).unwrap();
        for (map, mount) in [("eastway-config", "config"), ("eastway-peers", "peers"), ("eastway-policies", "policies")]
        {
            let below = folder.path().join(mount);
            std::fs::create_dir(&below).unwrap();
            let map = objects.iter().find(|object| object["kind"] == "ConfigMap" && object["metadata"]["name"] == map);
            for (file, text) in map.unwrap()["data"].as_object().into_iter().flatten() {
                let text = text.as_str().unwrap().replace("/etc/eastway", folder.path().to_str().unwrap());
                std::fs::write(below.join(file), text).unwrap();
            }
        }
        // A Secret that is not there is mounted as an empty folder.
        std::fs::create_dir(folder.path().join("clusters")).unwrap();
        let mut check = std::process::Command::new(eastway_tests::binary());
        check.args(["config", "check", "--config"]).arg(folder.path().join("config/gateway.yaml"));
        // Those of the tests: it refuses what it does not know.
        for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EASTWAY_")) {
            check.env_remove(variable);
        }
        let said = check.output().unwrap();
        let text = [said.stdout, said.stderr].concat();
        assert!(said.status.success(), "{name}: {}\n{}", said.status, String::from_utf8_lossy(&text));
    }
}

/// Alerts and panels ask for metrics that are documented, and each alert has its section in the page it leads to.
#[test]
fn alerts_and_panels_ask_for_metrics_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let metrics = std::fs::read_to_string(root.join("docs/operations/metrics.md")).unwrap();
    let known: BTreeSet<_> =
        metrics.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0)).collect();
    let page = std::fs::read_to_string(root.join("docs/operations/alerts.md")).unwrap();
    let alerts: Value =
        serde_saphyr::from_str(&std::fs::read_to_string(folder().join("files/alerts.yaml")).unwrap()).unwrap();
    let mut questions = Vec::new();
    for alert in alerts["alerts"].as_array().unwrap() {
        let name = alert["alert"].as_str().unwrap();
        assert!(page.contains(&format!("\n## {name}\n")), "docs/operations/alerts.md has no section {name}");
        questions.push((name.to_owned(), alert["expr"].as_str().unwrap().to_owned()));
    }
    for heading in page.lines().filter_map(|line| line.strip_prefix("## ")) {
        assert!(questions.iter().any(|(name, _)| name == heading), "there is no alert {heading}");
    }
    let dashboard: Value =
        serde_json::from_str(&std::fs::read_to_string(folder().join("files/dashboard.json")).unwrap()).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            questions.push((panel["title"].to_string(), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    for (what, question) in &questions {
        let words = question.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let asked: Vec<_> = words
            .filter(|word| ["eastway_", "istio_", "process_"].iter().any(|start| word.starts_with(start)))
            .collect();
        assert!(!asked.is_empty(), "{what}: {question}");
        for metric in asked {
            assert!(known.contains(metric), "{what}: there is no metric {metric}");
        }
    }
}
