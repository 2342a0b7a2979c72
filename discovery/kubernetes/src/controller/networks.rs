//! The gateways of Istio's other networks: for each peer a Gateway of the class `istio-remote`, which deploys nothing and tells
//! istiod where connections to that network go. That is our Service of this cluster, and never an address of a peer
//! (invariant I1).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use eastway_model::{ClusterName, Label};
use k8s_openapi::api::core::v1::Service;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::names;
use crate::lease::REQUEST;

/// Pause between two looks: at a Service that has no address yet, and at one that was told.
const SOON: Duration = Duration::from_secs(2);
const LATER: Duration = Duration::from_secs(30);
/// Label of a Gateway: the network that it leads to.
const NETWORK: &str = "topology.istio.io/network";
/// Option of a listener: what passes through is chosen by the name in TLS.
const LISTENER: (&str, &str) = ("gateway.istio.io/listener-protocol", "auto-passthrough");

/// A network of Istio's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// What Istio calls it.
    pub name: Label,
    /// The peer that it is.
    pub cluster: ClusterName,
    /// The port of the Service that leads there.
    pub port: u16,
}

/// Where the ports are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Eastway's namespace.
    pub namespace: String,
    /// The Service there.
    pub service: String,
}

/// Keeps the Gateways as they should be while this replica leads, until `stop`.
pub async fn run(
    client: Client,
    place: Place,
    networks: Vec<Network>,
    mut leading: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    let work = async {
        let mut problem = None;
        loop {
            if leading.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            let result = write(&client, &place, &networks).await;
            let pause = if matches!(result, Ok(true)) { LATER } else { SOON };
            let now = match result {
                Ok(true) => None,
                Ok(false) => Some(format!("the Service {} has no address", place.service)),
                Err(error) => Some(error),
            };
            match (&problem, &now) {
                (before, Some(now)) if before.as_ref() != Some(now) => {
                    warn!("Istio is not told where other networks are: {now}");
                }
                (Some(_), None) => info!(networks = networks.len(), "Istio is told where other networks are"),
                _ => {}
            }
            problem = now;
            sleep(pause).await;
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Writes all of them, and removes those of ours that are no networks any more. False: the Service has no address.
///
/// # Errors
/// It has to be tried again; says why.
async fn write(client: &Client, place: &Place, networks: &[Network]) -> Result<bool, String> {
    let services: Api<Service> = Api::namespaced(client.clone(), &place.namespace);
    let Some(service) = within(services.get_opt(&place.service)).await? else { return Ok(false) };
    let uid = service.metadata.uid.unwrap_or_default();
    let addresses = service.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
    let addresses: Vec<IpAddr> = addresses.iter().filter_map(|address| address.parse().ok()).collect();
    if addresses.is_empty() {
        return Ok(false);
    }
    let gateways: Api<DynamicObject> = Api::namespaced_with(client.clone(), &place.namespace, &resource());
    for network in networks {
        let body = gateway(network, place, &uid, &addresses);
        let params = PatchParams::apply(names::MANAGER).force();
        within(gateways.patch(&gateway_name(network), &params, &Patch::Apply(&body))).await?;
    }
    let wanted: BTreeSet<String> = networks.iter().map(gateway_name).collect();
    let ours = ListParams::default().labels(&format!("{}={}", names::MANAGED_BY, names::EASTWAY));
    for there in within(gateways.list(&ours)).await?.items {
        let name = there.metadata.name.unwrap_or_default();
        if !wanted.contains(&name) {
            debug!(name, "a network is none any more");
            within(gateways.delete(&name, &DeleteParams::default())).await?;
        }
    }
    Ok(true)
}

async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match timeout(REQUEST, request).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

pub(crate) fn resource() -> ApiResource {
    ApiResource {
        group: "gateway.networking.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "gateway.networking.k8s.io/v1".to_owned(),
        kind: "Gateway".to_owned(),
        plural: "gateways".to_owned(),
    }
}

fn gateway_name(network: &Network) -> String {
    name_of(network.cluster.as_str())
}

/// The Gateway that leads to a peer.
pub(crate) fn name_of(peer: &str) -> String {
    format!("eastway-{peer}")
}

/// It goes with the Service, whose `uid` this is.
fn gateway(network: &Network, place: &Place, uid: &str, addresses: &[IpAddr]) -> Value {
    let address = |address: &IpAddr| json!({ "type": "IPAddress", "value": address });
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {
            "name": gateway_name(network),
            "namespace": place.namespace,
            "labels": { names::MANAGED_BY: names::EASTWAY, NETWORK: network.name },
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Service", "name": place.service, "uid": uid }],
        },
        "spec": {
            "gatewayClassName": "istio-remote",
            "addresses": addresses.iter().map(address).collect::<Vec<_>>(),
            "listeners": [{
                "name": "cross-network",
                "port": network.port,
                "protocol": "TLS",
                "tls": { "mode": "Passthrough", "options": { LISTENER.0: LISTENER.1 } },
            }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Reply, client};

    fn networks() -> Vec<Network> {
        let label = |text: &str| Label::parse(text).unwrap();
        vec![Network { name: label("net-gke"), cluster: label("gke"), port: 15444 }]
    }

    fn place() -> Place {
        Place { namespace: "eastway-system".to_owned(), service: "eastway-istio".to_owned() }
    }

    #[tokio::test]
    async fn a_network_is_told_by_an_address_of_ours_and_one_that_is_none_any_more_goes() {
        let (client, requests) = client(|request| {
            let path = request.uri().path();
            match (request.method().as_str(), path.rsplit('/').next().unwrap()) {
                ("GET", "eastway-istio") => {
                    Reply::Whole(200, json!({"metadata": {"uid": "u"}, "spec": {"clusterIPs": ["10.96.0.9"]}}))
                }
                ("GET", "gateways") => Reply::Whole(
                    200,
                    json!({"metadata": {}, "items": [
                        {"metadata": {"name": "eastway-gke"}}, {"metadata": {"name": "eastway-aws"}},
                    ]}),
                ),
                ("PATCH", "eastway-gke") => {
                    let body: Value = serde_json::from_slice(request.body()).unwrap();
                    assert_eq!(body["spec"]["addresses"], json!([{"type": "IPAddress", "value": "10.96.0.9"}]));
                    assert_eq!(body["metadata"]["labels"][NETWORK], "net-gke");
                    assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "u");
                    assert_eq!(body["spec"]["listeners"][0]["port"], 15444);
                    Reply::Whole(200, body)
                }
                ("DELETE", "eastway-aws") => Reply::Whole(200, json!({"kind": "Status", "status": "Success"})),
                (method, _) => panic!("{method} {path}"),
            }
        });
        assert_eq!(write(&client, &place(), &networks()).await, Ok(true));
        assert_eq!(requests.lock().unwrap().len(), 4);
    }

    #[tokio::test]
    async fn nothing_is_told_before_there_is_an_address() {
        for reply in [json!({"spec": {}}), json!({"spec": {"clusterIPs": ["None"]}})] {
            let (client, requests) = client(move |_| Reply::Whole(200, reply.clone()));
            assert_eq!(write(&client, &place(), &networks()).await, Ok(false));
            assert_eq!(requests.lock().unwrap().len(), 1);
        }
        let (client, _) = client(|_| Reply::status(404, "NotFound", "no such thing"));
        assert_eq!(write(&client, &place(), &networks()).await, Ok(false));
        let (client, _) = crate::testing::client(|_| Reply::status(503, "Unavailable", "busy"));
        assert!(write(&client, &place(), &networks()).await.is_err());
    }
}
