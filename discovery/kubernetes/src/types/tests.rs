use serde_json::json;

use super::eastway::Peer;
use super::mcs::{ServiceExport, ServiceImport, ServiceImportType, v1alpha1};

#[test]
fn an_export_needs_nothing_but_a_name() {
    let text = r#"{"apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport",
                   "metadata": {"namespace": "shop", "name": "cart"}, "future": {"a": 1}}"#;
    let export: ServiceExport = serde_json::from_str(text).unwrap();
    assert_eq!(export.metadata.name.as_deref(), Some("cart"));
    assert!(export.spec.exported_labels.is_empty() && export.status.conditions.is_empty());
}

#[test]
fn objects_say_what_they_are() {
    let mut import = ServiceImport::default();
    import.metadata.name = Some("cart".to_owned());
    import.spec.ips = vec!["10.96.0.7".to_owned()];
    import.spec.kind = ServiceImportType::ClusterSetIp;
    let new = serde_json::to_value(&import).unwrap();
    let expected = json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport", "metadata": {"name": "cart"},
        "spec": {"ports": [], "ips": ["10.96.0.7"], "type": "ClusterSetIP"},
    });
    assert_eq!(new, expected);
    assert_eq!(serde_json::from_value::<ServiceImport>(new).unwrap(), import);
    let old = serde_json::to_value(v1alpha1::ServiceImport::from(import)).unwrap();
    assert_eq!(old["apiVersion"], "multicluster.x-k8s.io/v1alpha1");
}

#[test]
fn the_spec_of_our_objects_is_kept_as_it_is() {
    let spec = json!({"trustDomain": "gke.example", "adress": ["x"], "pins": [1]});
    let peer: Peer = serde_json::from_value(json!({"metadata": {"name": "gke"}, "spec": spec})).unwrap();
    assert_eq!(peer.spec, spec);
}
