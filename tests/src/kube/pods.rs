//! Pods that the test itself works in: they have an address, an identity and a network, and do nothing. What a test
//! runs in them goes on while the API server is away, and gives no answer that the test does not see.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Cluster, image};
use crate::lab::place::Place;
use crate::load::ask_once;

/// After an outage of its API server a cluster takes a minute to believe in its node again.
const PATIENCE: Duration = Duration::from_secs(150);
/// Name of the one container.
const SLEEPER: &str = "sleeper";

/// A pod that runs.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its address.
    pub address: IpAddr,
    /// Its network, for clients and servers.
    pub place: Place,
}

impl Pod {
    /// The name of the server that answers a request of this pod; nothing is tried twice.
    ///
    /// # Errors
    /// As for every request of a [`crate::load::Load`].
    pub async fn ask(&self, target: SocketAddr) -> Result<String> {
        self.place.run(ask_once(self.address, target, 100)).await
    }
}

/// The manifest of such a pod, with a label `app`.
#[must_use]
pub fn sleeper(namespace: &str, name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": app}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": SLEEPER, "image": image::BUSYBOX, "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "infinity"],
            }],
        },
    })
}

/// The manifests as one text.
#[must_use]
pub fn list(items: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

impl Cluster {
    /// Waits until a pod of [`sleeper`] is ready.
    ///
    /// # Errors
    /// Not in time.
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        self.wait("condition=Ready", &[&format!("pod/{name}"), "-n", namespace], PATIENCE).await?;
        let pod = self.get(&["pod", name, "-n", namespace]).await?;
        let address = pod["status"]["podIP"].as_str().context("an address")?.parse()?;
        Ok(Pod { address, place: self.container(namespace, name, SLEEPER).await?.place().await? })
    }
}
