//! An installation as an administrator's computer sees it: what another cluster has to know about it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use kube::Client;
use kube::api::DynamicObject;
use serde_json::Value;

use crate::client::{self, Access, ClientError};
use crate::secrets::contents;

/// The ConfigMap with the configuration, and its key.
const CONFIG: (&str, &str) = ("eastway-config", "gateway.yaml");
/// What is public in the Secret of the CA; its key is not kept.
const PUBLIC: [&str; 4] = ["ca-cert.pem", "cert-chain.pem", "root-cert.pem", "tls.crt"];

/// Why an installation cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is no client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The API server refused, or does not answer.
    #[error("{object}: {source}")]
    Api {
        /// Kind, namespace and name.
        object: String,
        /// What the server says.
        #[source]
        source: Box<kube::Error>,
    },
    /// Something is not there.
    #[error("there is no {object}: is Eastway installed in that namespace? name another with --namespace")]
    Missing {
        /// Kind, namespace and name.
        object: String,
    },
}

/// The gateways' Service, as far as peers are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reachable {
    /// `LoadBalancer`, `NodePort` or `ClusterIP`.
    pub kind: String,
    /// Host names and addresses at which the cloud leads to it; empty: none, or not yet.
    pub hosts: Vec<String>,
    /// Its port for links (UDP).
    pub port: Option<u16>,
}

/// An installation.
#[derive(Clone)]
pub struct Installation {
    client: Client,
    namespace: String,
}

impl Installation {
    /// In `namespace`, behind `access`. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn at(access: &Access, namespace: &str) -> Result<Self, ClientError> {
        Ok(Self { client: client::connect(access).await?, namespace: namespace.to_owned() })
    }

    /// Its GatewayConfig file.
    ///
    /// # Errors
    /// [`InstallError`]
    pub async fn config(&self) -> Result<String, InstallError> {
        let (name, key) = CONFIG;
        let object = format!("ConfigMap {}/{name}", self.namespace);
        let api = client::objects::<ConfigMap>(&self.client, &self.namespace);
        let found = api.get_opt(name).await.map_err(|error| failed(&object, error))?;
        let text = found.as_ref().and_then(|map| map.data.get("data")?.get(key)?.as_str());
        text.map(ToOwned::to_owned).ok_or(InstallError::Missing { object: format!("{object} with {key}") })
    }

    /// The public files of its CA. The Secret holds the key too, which is dropped here.
    ///
    /// # Errors
    /// [`InstallError`]
    pub async fn ca(&self, secret: &str) -> Result<BTreeMap<String, Vec<u8>>, InstallError> {
        let object = format!("Secret {}/{secret}", self.namespace);
        let api = client::objects::<Secret>(&self.client, &self.namespace);
        let found = api.get_opt(secret).await.map_err(|error| failed(&object, error))?;
        let mut data = contents(&found.ok_or(InstallError::Missing { object })?);
        // Those of the other CA, too, while the key is changed.
        let of_other =
            |key: &str| ["next-", "previous-"].iter().find_map(|part| key.strip_prefix(part).map(str::to_owned));
        data.retain(|key, _| PUBLIC.contains(&of_other(key).as_deref().unwrap_or(key)));
        Ok(data)
    }

    /// Where its gateways can be reached from outside, by the Service `name`.
    ///
    /// # Errors
    /// [`InstallError`]
    pub async fn reachable(&self, name: &str) -> Result<Reachable, InstallError> {
        let object = format!("Service {}/{name}", self.namespace);
        let api = client::objects::<Service>(&self.client, &self.namespace);
        let found = api.get_opt(name).await.map_err(|error| failed(&object, error))?;
        Ok(reachable(&found.ok_or(InstallError::Missing { object })?))
    }
}

fn failed(object: &str, error: kube::Error) -> InstallError {
    InstallError::Api { object: object.to_owned(), source: Box::new(error) }
}

fn reachable(service: &DynamicObject) -> Reachable {
    let list = |at: &str| service.data.pointer(at).and_then(Value::as_array).into_iter().flatten();
    let udp = list("/spec/ports").find(|port| port.get("protocol").and_then(Value::as_str) == Some("UDP"));
    // A name outlives the addresses behind it.
    let given =
        list("/status/loadBalancer/ingress").filter_map(|ingress| ingress.get("hostname").or(ingress.get("ip")));
    let hosts = given.chain(list("/spec/externalIPs")).filter_map(Value::as_str);
    Reachable {
        kind: service.data.pointer("/spec/type").and_then(Value::as_str).unwrap_or("ClusterIP").to_owned(),
        hosts: hosts.map(ToOwned::to_owned).collect(),
        port: udp.and_then(|port| u16::try_from(port.get("port")?.as_u64()?).ok()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_cloud_says_about_the_service() {
        let service = |status| {
            let object = json!({
                "metadata": {},
                "spec": { "type": "LoadBalancer", "ports": [
                    { "port": 15444, "protocol": "TCP" }, { "port": 15443, "protocol": "UDP" },
                ] },
                "status": status,
            });
            reachable(&serde_json::from_value(object).unwrap())
        };
        let ingress = json!([{ "ip": "198.51.100.21" }, { "hostname": "x.elb.example", "ip": "198.51.100.22" }]);
        let ready = service(json!({ "loadBalancer": { "ingress": ingress } }));
        assert_eq!(ready.hosts, ["198.51.100.21", "x.elb.example"]);
        assert_eq!(ready.port, Some(15443));
        assert!(service(json!({ "loadBalancer": {} })).hosts.is_empty());
    }
}
