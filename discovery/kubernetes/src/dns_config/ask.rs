//! Whether pods get answers: asked in a pod, because a cluster's resolver is rarely reached from where people sit, and
//! an address like 10.96.0.10 may be another cluster's there.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, DynamicObject, ListParams};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use super::cluster::Client;
use crate::client::objects;

/// Pods that have our program.
const GATEWAYS: &str = "app.kubernetes.io/name=eastway,app.kubernetes.io/component=gateway";
/// Their container.
const CONTAINER: &str = "gateway";
/// Most that is read of what the program prints.
const MAX_OUTPUT: u64 = 64 << 10;

/// Why no pod can be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// None is ready.
    #[error("no gateway in {0} is ready")]
    NoPod(String),
    /// The API server refuses, or the connection broke.
    #[error("the API server does not let us ask in a pod: {0}")]
    Api(#[from] kube::Error),
}

/// A pod that can be asked.
pub struct Asker {
    pods: Api<Pod>,
    pod: String,
}

impl Asker {
    /// A gateway that is ready.
    ///
    /// # Errors
    /// [`AskError`]
    pub async fn find(client: &Client, namespace: &str) -> Result<Self, AskError> {
        let found = objects::<Pod>(client, namespace).list(&ListParams::default().labels(GATEWAYS)).await?;
        let ready = found.items.into_iter().find(is_ready).and_then(|pod| pod.metadata.name);
        let pod = ready.ok_or_else(|| AskError::NoPod(namespace.to_owned()))?;
        Ok(Self { pods: Api::namespaced(client.clone(), namespace), pod })
    }

    /// Whether the resolver at `server` has an answer of this type for `name`.
    ///
    /// # Errors
    /// [`AskError::Api`]
    pub async fn has_answer(&self, server: IpAddr, name: &str, record: &str) -> Result<bool, AskError> {
        let server = std::net::SocketAddr::new(server, 53).to_string();
        let command = ["eastway", "dns", "query", name, record, "--server", &server];
        let params = AttachParams::default().container(CONTAINER).stderr(false);
        let mut process = self.pods.exec(&self.pod, command, &params).await?;
        let status = process.take_status();
        if let Some(output) = process.stdout() {
            // It has to be read for the end to come; what it says is in its exit code.
            let _read = output.take(MAX_OUTPUT).read_to_end(&mut Vec::new()).await;
        }
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        Ok(status.and_then(|status| status.status).is_some_and(|word| word == "Success"))
    }
}

fn is_ready(pod: &DynamicObject) -> bool {
    let conditions = pod.data.pointer("/status/conditions").and_then(Value::as_array);
    let says_so = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    conditions.is_some_and(|conditions| conditions.iter().any(says_so)) && pod.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Reply, client};

    #[tokio::test]
    async fn a_pod_that_is_ready_is_asked() {
        let pod = |name: &str, ready: &str| {
            json!({
                "metadata": { "name": name }, "status": { "conditions": [{ "type": "Ready", "status": ready }] },
            })
        };
        let found = async |pods: Vec<Value>| {
            let list = json!({ "apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": pods });
            let (client, requests) = client(move |_| Reply::Whole(200, list.clone()));
            let asker = Asker::find(&client, "eastway-system").await;
            assert!(requests.lock().unwrap()[0].contains("namespaces/eastway-system/pods"));
            asker.map(|asker| asker.pod).map_err(|error| error.to_string())
        };
        assert_eq!(found(vec![pod("a", "False"), pod("b", "True")]).await.as_deref(), Ok("b"));
        assert_eq!(found(vec![pod("a", "False")]).await.unwrap_err(), "no gateway in eastway-system is ready");
    }
}
