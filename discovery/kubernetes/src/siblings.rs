//! Where the other gateways of this cluster are: the addresses of the pods behind the gateways' Service.
//!
//! A pod that is not ready yet or terminates is listed like any other: who lives is found out between the gateways
//! themselves (ADR 9), and one that drains must go on getting its packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::{self, Access, ClientError};
use crate::source::objects::EndpointSlice;
use crate::watch::{Difference, ObjectName, Selection, Watch};

/// Label of a slice: whose endpoints it holds.
const SLICE_SERVICE: &str = "kubernetes.io/service-name";

/// Most gateways of one cluster that are looked for; each is sent something every second.
const MAX: usize = 64;

/// The Service whose pods are the gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateways {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// UDP port where gateways hand packets to each other.
    pub port: u16,
}

/// Follows the addresses of `gateways` until `cancel`, this process's own among them. What was told stays while the API
/// server is away.
///
/// # Errors
/// There is no client.
pub async fn run(
    access: &Access,
    gateways: &Gateways,
    latest: watch::Sender<Arc<[SocketAddr]>>,
    cancel: CancellationToken,
) -> Result<(), ClientError> {
    let client = client::connect(access).await?;
    let selection = Selection::all::<v1::EndpointSlice>()
        .in_namespace(&gateways.namespace)
        .labelled(&format!("{SLICE_SERVICE}={}", gateways.service));
    let mut slices = Watch::<EndpointSlice>::new(client, selection);
    let mut known = BTreeMap::new();
    while let Some(differences) = cancel.run_until_cancelled(slices.next()).await {
        differences.into_iter().for_each(|difference| take(&mut known, difference));
        if !slices.status().listed {
            continue;
        }
        let now = addresses(&known, gateways.port);
        latest.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
    Ok(())
}

fn take(known: &mut BTreeMap<ObjectName, Vec<IpAddr>>, difference: Difference<EndpointSlice>) {
    match difference {
        Difference::Set(name, slice) => {
            let texts = slice.endpoints.iter().flatten().flat_map(|endpoint| endpoint.addresses.iter().flatten());
            known.insert(name, texts.filter_map(|text| text.parse().ok()).collect());
        }
        Difference::Gone(name) => drop(known.remove(&name)),
    }
}

fn addresses(known: &BTreeMap<ObjectName, Vec<IpAddr>>, port: u16) -> Arc<[SocketAddr]> {
    let all: BTreeSet<IpAddr> = known.values().flatten().copied().collect();
    all.into_iter().take(MAX).map(|address| SocketAddr::new(address, port)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(name: &str, addresses: &[&str]) -> Difference<EndpointSlice> {
        let endpoints: Vec<_> = addresses.iter().map(|address| json!({ "addresses": [address] })).collect();
        let object = json!({ "addressType": "IPv4", "metadata": {}, "endpoints": endpoints });
        Difference::Set(ObjectName::new("eastway-system", name), Arc::new(serde_json::from_value(object).unwrap()))
    }

    #[test]
    fn every_pod_is_listed_once_whatever_its_slices() {
        let mut known = BTreeMap::new();
        take(&mut known, slice("one", &["10.0.0.2", "10.0.0.1", "nonsense"]));
        take(&mut known, slice("two", &["10.0.0.2", "fd00::1"]));
        let expected: Vec<SocketAddr> =
            ["10.0.0.1:7", "10.0.0.2:7", "[fd00::1]:7"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(*addresses(&known, 7), *expected);
        take(&mut known, Difference::Gone(ObjectName::new("eastway-system", "one")));
        assert_eq!(addresses(&known, 7).to_vec(), expected[1..].to_vec());
    }
}
