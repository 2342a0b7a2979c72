//! An installation as an administrator's computer sees it: what another cluster has to know about it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use kube::{Api, Client};

use crate::client::{self, Access, ClientError};

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
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = api.get_opt(name).await.map_err(|error| failed(&object, error))?;
        let text = found.and_then(|map| map.data).and_then(|mut data| data.remove(key));
        text.ok_or(InstallError::Missing { object: format!("{object} with {key}") })
    }

    /// The public files of its CA. The Secret holds the key too, which is dropped here.
    ///
    /// # Errors
    /// [`InstallError`]
    pub async fn ca(&self, secret: &str) -> Result<BTreeMap<String, Vec<u8>>, InstallError> {
        let object = format!("Secret {}/{secret}", self.namespace);
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = api.get_opt(secret).await.map_err(|error| failed(&object, error))?;
        let data = found.ok_or(InstallError::Missing { object })?.data.unwrap_or_default();
        let public = data.into_iter().filter(|(key, _)| PUBLIC.contains(&key.as_str()));
        Ok(public.map(|(key, value)| (key, value.0)).collect())
    }

    /// Where its gateways can be reached from outside, by the Service `name`.
    ///
    /// # Errors
    /// [`InstallError`]
    pub async fn reachable(&self, name: &str) -> Result<Reachable, InstallError> {
        let object = format!("Service {}/{name}", self.namespace);
        let api: Api<Service> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = api.get_opt(name).await.map_err(|error| failed(&object, error))?;
        Ok(reachable(&found.ok_or(InstallError::Missing { object })?))
    }
}

fn failed(object: &str, error: kube::Error) -> InstallError {
    InstallError::Api { object: object.to_owned(), source: Box::new(error) }
}

fn reachable(service: &Service) -> Reachable {
    let spec = service.spec.clone().unwrap_or_default();
    let udp = spec.ports.iter().flatten().find(|port| port.protocol.as_deref() == Some("UDP"));
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    // A name outlives the addresses behind it.
    let given = ingress.filter_map(|ingress| ingress.hostname.clone().or_else(|| ingress.ip.clone()));
    Reachable {
        kind: spec.type_.unwrap_or_else(|| "ClusterIP".to_owned()),
        hosts: given.chain(spec.external_ips.unwrap_or_default()).collect(),
        port: udp.and_then(|port| u16::try_from(port.port).ok()),
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
