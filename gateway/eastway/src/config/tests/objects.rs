//! Peers and policies that are objects.

use std::sync::Arc;

use eastway_kubernetes::objects::{Kind, ObjectKey, Objects};

use super::{Folder, MINIMAL};
use crate::config::Loaded;
use crate::config::objects::Overlay;

const PIN: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn key(kind: Kind, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() }
}

fn peer(name: &str, pin: &str) -> (ObjectKey, Arc<str>) {
    let text = serde_json::json!({
        "apiVersion": "eastway.dev/v1alpha1", "kind": "Peer", "metadata": { "name": name },
        "spec": { "trustDomain": format!("{name}.example"), "pins": [pin], "import": [{ "namespace": "shop" }] },
    });
    (key(Kind::Peer, "", name), format!("{text:#}").into())
}

fn traffic(namespace: &str, name: &str, service: &str) -> (ObjectKey, Arc<str>) {
    let text = serde_json::json!({
        "apiVersion": "eastway.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": { "name": name, "namespace": namespace }, "spec": { "service": service },
    });
    (key(Kind::TrafficPolicy, namespace, name), format!("{text:#}").into())
}

fn pin(digit: char) -> String {
    format!("sha256:{}", String::from(digit).repeat(64))
}

fn files() -> (Folder, Loaded) {
    let file = format!(
        "apiVersion: eastway.dev/v1alpha1\nkind: Peer\nmetadata: {{name: gke}}\nspec: {{trustDomain: gke.example, pins: ['{PIN}']}}\n"
    );
    let folder = Folder::new(&[("gateway.yaml", MINIMAL), ("peers/gke.yaml", &file)]);
    let loaded = crate::config::load(&folder.path("gateway.yaml")).unwrap();
    (folder, loaded)
}

fn names(loaded: &Loaded) -> Vec<&str> {
    loaded.peers.keys().map(eastway_model::Label::as_str).collect()
}

#[test]
fn objects_join_what_files_say_and_contradict_none_of_it() {
    let (_folder, files) = files();
    let mut overlay = Overlay::default();
    let objects: Objects = [
        peer("eks", &pin('b')),
        peer("gke", &pin('c')),
        peer("aks", PIN),
        peer("onprem", &pin('d')),
        traffic("shop", "one", "web"),
        traffic("shop", "two", "web"),
    ]
    .into();
    let merged = overlay.merge(&files, &objects, true);
    assert_eq!(names(&merged), ["eks", "gke"]);
    assert!(merged.complete && merged.policies.traffic.len() == 1);
    let reasons: Vec<_> = merged.refused.values().map(String::as_str).collect();
    let words = ["pin is already used by", "is already used by", "this cluster's own name", "already has a policy in"];
    for word in words {
        assert!(reasons.iter().any(|reason| reason.contains(word)), "{word}: {reasons:#?}");
    }
    let aks = &merged.refused[&key(Kind::Peer, "", "aks")];
    assert!(aks.starts_with("Peer/aks:") && aks.contains("spec.pins[0]") && aks.contains("peers/gke.yaml"), "{aks}");
    // The file goes: the object counts.
    let alone = Folder::new(&[("gateway.yaml", MINIMAL)]);
    let alone = crate::config::load(&alone.path("gateway.yaml")).unwrap();
    assert_eq!(names(&overlay.merge(&alone, &objects, true)), ["aks", "eks", "gke"]);
}

/// Who may write objects in one namespace must not open another's services.
#[test]
fn only_objects_of_the_system_namespace_are_about_others() {
    let (_folder, files) = files();
    let everywhere = |namespace: &str| {
        let text = serde_json::json!({
            "apiVersion": "eastway.dev/v1alpha1", "kind": "AccessPolicy",
            "metadata": { "name": "all", "namespace": namespace },
            "spec": { "namespaces": ["*"], "services": ["*"], "allow": [{ "cluster": "gke" }] },
        });
        (key(Kind::AccessPolicy, namespace, "all"), format!("{text:#}").into())
    };
    let objects: Objects = [everywhere("eastway-system"), everywhere("shop")].into();
    let merged = Overlay::default().merge(&files, &objects, true);
    let [policy] = merged.policies.access.as_slice() else { panic!("{:?}", merged.policies.access) };
    assert!(policy.namespace.as_str() == "eastway-system" && policy.selects(&"bookinfo/reviews".parse().unwrap()));
    let reason = &merged.refused[&key(Kind::AccessPolicy, "shop", "all")];
    assert!(reason.contains("spec.namespaces") && reason.contains("its own namespace alone"), "{reason}");
}

#[test]
fn i11_a_mistake_in_an_object_leaves_its_last_good_version_and_all_others() {
    let (_folder, files) = files();
    let mut overlay = Overlay::default();
    let good: Objects = [peer("eks", &pin('b')), peer("aks", &pin('c'))].into();
    assert_eq!(names(&overlay.merge(&files, &good, true)), ["aks", "eks", "gke"]);
    let (eks, text) = peer("eks", "sha256:nothing");
    let bad: Objects = [(eks.clone(), text), peer("new", "nonsense")].into();
    let merged = overlay.merge(&files, &bad, true);
    assert_eq!(names(&merged), ["eks", "gke"], "aks was deleted");
    assert_eq!(merged.peers["eks"].pins.len(), 1);
    assert!(merged.refused[&eks].contains("spec.pins[0]") && merged.refused[&eks].contains("last good version stays"));
    assert!(!merged.refused[&key(Kind::Peer, "", "new")].contains("last good"));
    let none = overlay.merge(&files, &Objects::new(), true);
    assert_eq!((names(&none), none.refused.len()), (vec!["gke"], 0));
}

#[test]
fn f36_a_new_object_does_not_take_the_place_of_one_that_works() {
    let (_folder, files) = files();
    let mut overlay = Overlay::default();
    let first: Objects = [peer("gcp", &pin('b')), traffic("shop", "mine", "web")].into();
    assert!(overlay.merge(&files, &first, true).refused.is_empty());
    // The same key and the same service, under names that come before.
    let both: Objects = first.into_iter().chain([peer("aks", &pin('b')), traffic("shop", "a", "web")]).collect();
    let merged = overlay.merge(&files, &both, true);
    assert_eq!(names(&merged), ["gcp", "gke"]);
    let refused: Vec<_> = merged.refused.keys().map(|key| key.name.as_str()).collect();
    assert_eq!(refused, ["aks", "a"]);
}

/// A route that leads to a part of a service, what workloads see, and Istio's words: as objects as in files.
#[test]
fn routes_are_objects_too() {
    let (_folder, files) = files();
    let object = |kind: Kind, name: &str, spec: serde_json::Value| {
        let group = if kind.is_route() { "gateway.networking.k8s.io/v1" } else { "eastway.dev/v1alpha1" };
        let text = serde_json::json!({
            "apiVersion": group, "kind": kind.as_str(), "metadata": { "name": name, "namespace": "shop" }, "spec": spec,
        });
        (key(kind, "shop", name), Arc::<str>::from(format!("{text:#}")))
    };
    let route = |share: &str| {
        serde_json::json!({
            "parentRefs": [{ "group": "", "kind": "Service", "name": "web" }],
            "rules": [{ "backendRefs": [{ "group": "eastway.dev", "kind": "ServiceShare", "name": share }] }],
        })
    };
    let good = object(Kind::HttpRoute, "web", route("web-v2"));
    let objects: Objects = [
        object(Kind::ServiceShare, "web-v2", serde_json::json!({ "service": "web", "subset": { "version": "v2" } })),
        good.clone(),
        object(Kind::HttpRoute, "wrong", serde_json::json!({ "parentRefs": [], "rules": [{ "nonsense": 1 }] })),
        object(Kind::Visibility, "default", serde_json::json!({ "services": ["payments/api"] })),
    ]
    .into();
    let mut overlay = Overlay::default();
    let merged = overlay.merge(&files, &objects, true);
    assert_eq!(merged.refused.keys().map(ToString::to_string).collect::<Vec<_>>(), ["HTTPRoute/shop/wrong"]);
    let routes = &merged.policies.routes;
    assert_eq!((routes.routes().len(), routes.shares().count()), (1, 1));
    assert_ne!(*merged.policies.visibility, *files.policies.visibility);
    // A mistake later leaves what worked.
    let mut later = objects.clone();
    later.insert(good.0.clone(), Arc::from("{}"));
    let merged = overlay.merge(&files, &later, true);
    assert!(merged.refused[&good.0].contains("last good version stays"), "{}", merged.refused[&good.0]);
    assert_eq!(merged.policies.routes.routes().len(), 1);
}
