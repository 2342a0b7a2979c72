//! The name of this cluster in its own API (KEP-2149): other programs ask there which cluster they are in.

use eastway_model::ClusterName;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::names;
use crate::lease::REQUEST;
use crate::types::about::{CLUSTER_ID, ClusterProperty};

/// Writes it, unless the API server has no such objects, or somebody else gave the cluster another name.
///
/// # Errors
/// It has to be tried again; says why.
pub async fn write(client: &Client, cluster: &ClusterName) -> Result<(), String> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::erase::<ClusterProperty>(&()));
    let body = json!({
        "apiVersion": "about.k8s.io/v1",
        "kind": "ClusterProperty",
        "metadata": { "name": CLUSTER_ID },
        "spec": { "value": cluster.as_str() },
    });
    // Not forced: a value of somebody else's is theirs.
    let params = PatchParams::apply(names::MANAGER);
    match timeout(REQUEST, api.patch(CLUSTER_ID, &params, &Patch::Apply(&body))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
            debug!("the API server knows no ClusterProperty: its name is not written there");
            Ok(())
        }
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
            warn!(%cluster, "the ClusterProperty {CLUSTER_ID} has another name and another owner, and is left alone: {}", status.message);
            Ok(())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Reply, client};

    #[tokio::test]
    async fn a_name_of_somebody_else_is_left_alone() {
        for (code, again) in [(200, false), (404, false), (409, false), (403, true), (503, true)] {
            let (client, requests) = client(move |_| match code {
                200 => Reply::Whole(200, json!({ "apiVersion": "about.k8s.io/v1", "kind": "ClusterProperty" })),
                code => Reply::status(code, "Reason", "told so"),
            });
            let result = write(&client, &ClusterName::parse("eks").unwrap()).await;
            assert_eq!(result.is_err(), again, "{code}");
            let requests = requests.lock().unwrap();
            assert_eq!(requests.len(), 1);
            assert!(!requests[0].contains("force"), "{}", requests[0]);
        }
    }
}
