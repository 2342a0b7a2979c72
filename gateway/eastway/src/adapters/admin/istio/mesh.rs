//! What Istio's mesh configuration has to say so that its sidecars verify those of peers, whose roots and trust domains may be
//! others.

use eastway_identity::{CertificateDer, SpkiPin, certificates_from_pem, certificates_to_pem, names_issuer};
use serde_json::{Value, json};

use crate::admin::check::MeshChange;

/// Variable of sidecars that has them take roots from istiod.
const AGENT: &str = "PROXY_CONFIG_XDS_AGENT";

/// A peer that is a network of Istio's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer<'a> {
    pub(super) name: &'a str,
    pub(super) domain: &'a str,
    /// The last certificate that it shows.
    pub(super) issuer: Option<&'a CertificateDer<'static>>,
    /// What its trust domain is known by, PEM.
    pub(super) anchors: &'a str,
}

/// What `mesh` lacks, where Istio has these trust domain and roots. It has everything that was there already.
pub(super) fn lacks(
    mesh: &Value,
    domain: &str,
    roots: &[CertificateDer<'static>],
    peers: &[Peer<'_>],
) -> Option<MeshChange> {
    let list = |name: &str| mesh.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let (mut aliases, mut certificates) = (list("trustDomainAliases"), list("caCertificates"));
    let pems = certificates.iter().filter_map(|one| certificates_from_pem(one.get("pem")?.as_str()?.as_bytes()).ok());
    let known: Vec<_> = pems.flatten().collect();
    let mut metadata =
        mesh.pointer("/defaultConfig/proxyMetadata").and_then(Value::as_object).cloned().unwrap_or_default();
    let takes_roots = metadata.get(AGENT).is_some_and(|value| value == "true" || value == &json!(true));
    let (mut lacking, mut unknown) = (Vec::new(), String::new());
    for peer in peers {
        let other_domain = peer.domain != domain;
        let other_root = match peer.issuer.filter(|_| !roots.is_empty()) {
            Some(issuer) => !roots.iter().any(|root| names_issuer(issuer, root)),
            None => other_domain,
        };
        let anchors = certificates_from_pem(peer.anchors.as_bytes()).unwrap_or_default();
        let signs = |ca: &CertificateDer<'_>| peer.issuer.is_some_and(|issuer| names_issuer(issuer, ca));
        // By key: a CA makes its anchor anew now and then.
        let named = known.iter().any(|ca| anchors.iter().any(|anchor| is_of_one_key(anchor, ca)) || signs(ca));
        let alias = other_domain && !aliases.contains(&json!(peer.domain));
        if !alias && (!other_root || (named && takes_roots)) {
            continue;
        }
        lacking.push(peer.name.to_owned());
        if alias {
            aliases.push(json!(peer.domain));
        }
        if other_root {
            metadata.insert(AGENT.to_owned(), json!("true"));
        }
        if other_root && !named {
            // istiod reads the first certificate of each entry.
            for anchor in &anchors {
                let entry =
                    json!({"pem": certificates_to_pem(std::slice::from_ref(anchor)), "trustDomains": [peer.domain]});
                if !certificates.contains(&entry) {
                    certificates.push(entry);
                }
            }
            if anchors.is_empty() {
                unknown.push_str(&format!("# the CA of {} is not known yet\n", peer.name));
            }
        }
    }
    if lacking.is_empty() {
        return None;
    }
    let mut change = serde_json::Map::new();
    for (name, all) in [("trustDomainAliases", aliases), ("caCertificates", certificates)] {
        if !all.is_empty() {
            change.insert(name.to_owned(), Value::Array(all));
        }
    }
    if !metadata.is_empty() {
        change.insert("defaultConfig".to_owned(), json!({"proxyMetadata": metadata}));
    }
    let change = Value::Object(change);
    // What comes from serde_json has nothing that YAML cannot say.
    let text = serde_saphyr::to_string(&change).unwrap_or_else(|_| change.to_string());
    Some(MeshChange { peers: lacking, change: unknown + &text })
}

fn is_of_one_key(one: &CertificateDer<'_>, other: &CertificateDer<'_>) -> bool {
    SpkiPin::of_certificate(one).is_ok_and(|pin| SpkiPin::of_certificate(other) == Ok(pin))
}

#[cfg(test)]
mod tests {
    use eastway_identity::Ca;
    use eastway_identity::ca::{InitOptions, Root};

    use super::*;

    struct Cas {
        root: CertificateDer<'static>,
        own: Ca,
        same: Ca,
        other: Ca,
    }

    fn cas() -> Cas {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let root = Ca::init(&at("root"), &InitOptions::new("a.example")).unwrap();
        let shared = || InitOptions { root: Root::Shared(at("root")), ..InitOptions::new("a.example") };
        Cas {
            own: Ca::init(&at("own"), &shared()).unwrap(),
            same: Ca::init(&at("same"), &shared()).unwrap(),
            other: Ca::init(&at("other"), &InitOptions::new("b.example")).unwrap(),
            root: root.roots()[0].clone(),
        }
    }

    #[test]
    fn one_root_and_trust_domain_needs_nothing() {
        let cas = cas();
        for ca in [&cas.own, &cas.same] {
            let peer = Peer { name: "gke", domain: "a.example", issuer: ca.chain().last(), anchors: "" };
            assert_eq!(lacks(&json!({}), "a.example", std::slice::from_ref(&cas.root), &[peer]), None);
        }
    }

    #[test]
    fn other_roots_are_named_with_all_that_was_there_and_nothing_is_asked_twice() {
        let cas = cas();
        let anchor = cas.other.anchors("b.example", std::time::SystemTime::now()).unwrap();
        let pem = certificates_to_pem(&[CertificateDer::from(anchor[0].certificate.clone())]);
        let peer = Peer { name: "gke", domain: "b.example", issuer: cas.other.chain().last(), anchors: &pem };
        let before = json!({
            "trustDomain": "a.example",
            "trustDomainAliases": ["old.example"],
            "defaultConfig": {"proxyMetadata": {"X": "y"}, "concurrency": 2},
        });
        let roots = [cas.root];
        let told = lacks(&before, "a.example", &roots, &[peer]).unwrap();
        assert_eq!(told.peers, ["gke"]);
        let change: Value = serde_saphyr::from_str(&told.change).unwrap();
        let expected = json!({
            "trustDomainAliases": ["old.example", "b.example"],
            "caCertificates": [{"pem": pem, "trustDomains": ["b.example"]}],
            "defaultConfig": {"proxyMetadata": {"X": "y", AGENT: "true"}},
        });
        assert_eq!(change, expected, "{}", told.change);
        assert_eq!(lacks(&change, "a.example", &roots, &[peer]), None, "it was done");
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(86_400);
        let anew = cas.other.anchors("b.example", later).unwrap();
        let anew = certificates_to_pem(&[CertificateDer::from(anew[0].certificate.clone())]);
        let renewed = Peer { anchors: &anew, ..peer };
        assert_eq!(lacks(&change, "a.example", &roots, &[renewed]), None, "it is the same key");
        // Somebody may rather name the root itself.
        let mut by_root = change;
        by_root["caCertificates"] = json!([{"pem": certificates_to_pem(cas.other.roots())}]);
        assert_eq!(lacks(&by_root, "a.example", &roots, &[peer]), None);
        let silent = Peer { issuer: None, anchors: "", ..peer };
        let told = lacks(&json!({}), "a.example", &roots, &[silent]).unwrap();
        assert!(told.change.starts_with("# the CA of gke is not known yet\n"), "{}", told.change);
    }
}
