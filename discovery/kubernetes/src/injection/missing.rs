//! Pods that are to have a sidecar and have none: made before somebody asked for it, or while nobody answered the API server.
//! Read when somebody asks for it, and never followed.

use k8s_openapi::api::core::v1::{Namespace, Pod as ApiPod};
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client, ResourceExt as _};

use super::pod::Pod;
use super::{NAMESPACE_LABEL, left_out};
use crate::client::{self, Access};
use crate::istio::within;

/// Most namespaces that are looked at, and most pods of each.
const MOST: (u32, u32) = (64, 500);

/// Running pods without one that would have got one, `namespace/name`, sorted.
///
/// # Errors
/// Something cannot be read; says what and why.
pub async fn without_sidecar(access: &Access, system_namespace: &str) -> Result<Vec<String>, String> {
    let client = client::connect(access).await.map_err(|error| error.to_string())?;
    read(&client, system_namespace).await
}

async fn read(client: &Client, system_namespace: &str) -> Result<Vec<String>, String> {
    let kind = ApiResource::erase::<Namespace>(&());
    let all = Api::<DynamicObject>::all_with(client.clone(), &kind);
    let labelled = ListParams::default().labels(&format!("{}={}", NAMESPACE_LABEL.0, NAMESPACE_LABEL.1)).limit(MOST.0);
    let namespaces = within("namespaces", all.list_metadata(&labelled)).await?;
    let mut missing = Vec::new();
    for namespace in namespaces.items.iter().map(kube::ResourceExt::name_any) {
        let kind = ApiResource::erase::<ApiPod>(&());
        let pods = Api::<DynamicObject>::namespaced_with(client.clone(), &namespace, &kind);
        let running = ListParams::default().fields("status.phase=Running").limit(MOST.1);
        let pods = within("pods", pods.list(&running)).await?;
        let stay = pods.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let without = stay.filter(|pod| is_missing(pod, &namespace, system_namespace));
        missing.extend(without.map(|pod| format!("{namespace}/{}", pod.name_any())));
    }
    missing.sort();
    Ok(missing)
}

fn is_missing(object: &DynamicObject, namespace: &str, system_namespace: &str) -> bool {
    let pod = serde_json::to_value(object).and_then(serde_json::from_value::<Pod>);
    pod.is_ok_and(|pod| matches!(left_out(&pod, namespace, system_namespace), Ok(None)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{INJECT, STATUS};
    use super::*;

    #[test]
    fn who_wants_none_and_who_has_one_lacks_nothing() {
        let lacks = |namespace: &str, annotations: Value, spec: Value| {
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "annotations": annotations}, "spec": spec,
            });
            is_missing(&serde_json::from_value(pod).unwrap(), namespace, "eastway-system")
        };
        let plain = json!({"containers": [{"name": "web"}]});
        assert!(lacks("shop", json!({}), plain.clone()));
        assert!(!lacks("eastway-system", json!({}), plain.clone()), "it is ours");
        assert!(!lacks("shop", json!({INJECT: "false"}), plain.clone()), "it wants none");
        assert!(!lacks("shop", json!({STATUS: "injected"}), json!({"initContainers": [{"name": "eastway-sidecar"}]})));
        assert!(!lacks("shop", json!({}), json!({"hostNetwork": true})), "it cannot have one");
    }
}
