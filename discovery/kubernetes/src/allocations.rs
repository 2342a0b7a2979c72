//! What gateways read back of what the controller wrote: the addresses of imports, and the ports of the gateways that
//! stand for them. The API is the record (design §9); nothing is written here.
//!
//! A derived Service carries the address, its EndpointSlices the ports. Whoever may write Services in a namespace can
//! write objects that look like the controller's: such an object can only speak for imports of its own namespace, within
//! the gateways' range of ports, and never for a port that an older slice has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use eastway_model::{Allocation, Allocations, EndpointId, Label, PortNumber, Protocol, ServiceAllocation, ServiceKey};
use k8s_openapi::api::{core, discovery};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::client::{self, Access, ClientError};
use crate::source::objects::{EndpointSlice, Meta, ServicePort, SlicePort};
use crate::types::mcs;
use crate::watch::{Difference, ObjectName, Selection, Watch};

/// Ports of the gateways that stand for imports.
pub const PORTS: std::ops::RangeInclusive<u16> = 20_000..=31_999;

/// Least time between two tellings: each is about all imports, and a new peer can bring thousands of them, one by one.
const PAUSE: Duration = Duration::from_millis(250);

/// Selects what the controller writes.
const OURS: &str = "app.kubernetes.io/managed-by=eastway";
/// Label of a slice: whose endpoints it holds.
const SLICE_SERVICE: &str = "kubernetes.io/service-name";
/// Annotation of the derived Service of one endpoint: the id of that endpoint.
const ENDPOINT: &str = "eastway.dev/endpoint";
/// Annotation of the derived Service of a name of one's own: that name.
const NAME: &str = "eastway.dev/name";

/// Follows the API server behind `access` until `cancel`. `latest` is `None` until both kinds have been listed once;
/// what was told stays while the server is away (invariant I4).
///
/// # Errors
/// There is no client.
pub async fn run(
    access: &Access,
    latest: watch::Sender<Option<Arc<Allocations>>>,
    cancel: CancellationToken,
) -> Result<(), ClientError> {
    let client = client::connect(access).await?;
    let services = Selection::all::<core::v1::Service>().labelled(OURS);
    let slices = Selection::all::<discovery::v1::EndpointSlice>().labelled(OURS);
    let mut services = Watch::<Service>::new(client.clone(), services).eager();
    let mut slices = Watch::<EndpointSlice>::new(client, slices).eager();
    let mut table = Table::default();
    let (mut told, mut due) = (None::<Instant>, None::<Instant>);
    loop {
        let telling = async {
            match due {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            differences = services.next() => differences.into_iter().for_each(|one| table.service(one)),
            differences = slices.next() => differences.into_iter().for_each(|one| table.slice(one)),
            () = telling => {
                (told, due) = (Some(Instant::now()), None);
                tell(&latest, table.allocations());
                continue;
            }
        }
        if services.status().listed && slices.status().listed {
            due.get_or_insert_with(|| told.map_or_else(Instant::now, |told| told + PAUSE));
        }
    }
}

fn tell(latest: &watch::Sender<Option<Arc<Allocations>>>, all: Allocations) {
    latest.send_if_modified(|before| {
        let changed = before.as_deref() != Some(&all);
        if changed {
            *before = Some(Arc::new(all));
        }
        changed
    });
}

/// The objects, as far as they are understood.
#[derive(Debug, Default)]
struct Table {
    services: BTreeMap<ObjectName, Derived>,
    slices: BTreeMap<ObjectName, Slice>,
}

/// A derived Service.
#[derive(Debug)]
struct Derived {
    import: ServiceKey,
    stands_for: StandsFor,
    allocation: Allocation,
    /// Its ports by name and transport.
    ports: BTreeMap<(String, Protocol), PortNumber>,
}

/// What of an import a derived Service stands for.
#[derive(Debug)]
enum StandsFor {
    /// All of it.
    Service,
    /// One endpoint of a cluster.
    Endpoint(Label, EndpointId),
    /// A name of one's own that leads to one cluster.
    Name(Arc<str>),
}

/// A slice of one.
#[derive(Debug)]
struct Slice {
    service: ObjectName,
    /// When the API server made it: nobody can say that of an object of theirs.
    age: Option<String>,
    ports: Vec<(String, Protocol, u16)>,
}

impl Table {
    fn service(&mut self, difference: Difference<Service>) {
        match difference {
            Difference::Set(name, object) => match derived(&name, &object) {
                Some(derived) => drop(self.services.insert(name, derived)),
                None => drop(self.services.remove(&name)),
            },
            Difference::Gone(name) => drop(self.services.remove(&name)),
        }
    }

    fn slice(&mut self, difference: Difference<EndpointSlice>) {
        match difference {
            Difference::Set(name, object) => match slice(&name, &object) {
                Some(slice) => drop(self.slices.insert(name, slice)),
                None => drop(self.slices.remove(&name)),
            },
            Difference::Gone(name) => drop(self.slices.remove(&name)),
        }
    }

    fn allocations(&self) -> Allocations {
        let mut oldest: Vec<(&ObjectName, &Slice)> = self.slices.iter().collect();
        oldest.sort_by(|a, b| (&a.1.age, a.0).cmp(&(&b.1.age, b.0)));
        // Whose each port is: several slices of one Service name the same.
        let mut taken: BTreeMap<u16, (&ObjectName, &str, Protocol)> = BTreeMap::new();
        let mut ports: BTreeMap<&ObjectName, BTreeMap<(Protocol, PortNumber), u16>> = BTreeMap::new();
        let mut refused = BTreeSet::new();
        for (name, slice) in oldest {
            let Some(service) = self.services.get(&slice.service) else { continue };
            for (port_name, protocol, port) in &slice.ports {
                let owner = (&slice.service, port_name.as_str(), *protocol);
                if *taken.entry(*port).or_insert(owner) != owner {
                    refused.insert((name, *port));
                    continue;
                }
                if let Some(number) = service.ports.get(&(port_name.clone(), *protocol)) {
                    ports.entry(&slice.service).or_default().insert((*protocol, *number), *port);
                }
            }
        }
        if !refused.is_empty() {
            let slices: Vec<_> = refused.iter().take(5).map(|(name, port)| format!("{name} ({port})")).collect();
            tracing::warn!(count = refused.len(), "slices name ports that older ones have: {}", slices.join(", "));
        }
        let mut all = Allocations::new();
        for (name, service) in &self.services {
            let ports = ports.remove(name).unwrap_or_default();
            let allocation = Allocation { ports, ..service.allocation.clone() };
            let entry: &mut ServiceAllocation = all.entry(service.import.clone()).or_default();
            match &service.stands_for {
                StandsFor::Service => entry.service = Some(allocation),
                StandsFor::Endpoint(cluster, id) => {
                    entry.endpoints.insert((cluster.clone(), id.clone()), allocation);
                }
                StandsFor::Name(name) => drop(entry.names.insert(name.clone(), allocation)),
            }
        }
        all
    }
}

/// What is read of a derived Service.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Service {
    metadata: Meta,
    spec: Option<ServiceSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ServiceSpec {
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    ports: Option<Vec<ServicePort>>,
}

fn derived(name: &ObjectName, service: &Service) -> Option<Derived> {
    let metadata = &service.metadata;
    let import = ServiceKey::parse(&name.namespace, metadata.label(mcs::SERVICE_NAME)?).ok()?;
    let stands_for = match (metadata.annotation(ENDPOINT), metadata.annotation(NAME)) {
        (Some(id), _) => {
            let cluster = metadata.label(mcs::SOURCE_CLUSTER)?;
            StandsFor::Endpoint(Label::parse(cluster).ok()?, EndpointId::parse(id)?)
        }
        (None, Some(name)) => StandsFor::Name(name.into()),
        (None, None) => StandsFor::Service,
    };
    let spec = service.spec.as_ref()?;
    let addresses = spec.cluster_ips.iter().flatten().filter_map(|address| address.parse().ok()).collect();
    let port = |port: &ServicePort| {
        let protocol = protocol(port.protocol.as_deref())?;
        let number = u16::try_from(port.port).ok().and_then(PortNumber::new)?;
        Some(((port.name.clone().unwrap_or_default(), protocol), number))
    };
    let ports = spec.ports.iter().flatten().filter_map(port).collect();
    Some(Derived { import, stands_for, allocation: Allocation { addresses, ports: BTreeMap::new() }, ports })
}

fn slice(name: &ObjectName, slice: &EndpointSlice) -> Option<Slice> {
    let service = ObjectName::new(&name.namespace, slice.metadata.label(SLICE_SERVICE)?);
    let port = |port: &SlicePort| {
        let number = u16::try_from(port.port?).ok().filter(|number| PORTS.contains(number))?;
        Some((port.name.clone().unwrap_or_default(), protocol(port.protocol.as_deref())?, number))
    };
    let age = slice.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string());
    Some(Slice { service, age, ports: slice.ports.iter().flatten().filter_map(port).collect() })
}

fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(table: &mut Table, namespace: &str, name: &str, object: Value) {
        table.service(Difference::Set(
            ObjectName::new(namespace, name),
            Arc::new(serde_json::from_value(object).unwrap()),
        ));
    }

    fn slice_of(table: &mut Table, namespace: &str, service: &str, made: &str, port: u16) {
        let object = json!({
            "metadata": {
                "labels": { "kubernetes.io/service-name": service },
                "creationTimestamp": made,
            },
            "addressType": "IPv4", "endpoints": [],
            "ports": [{ "name": "http", "port": port, "protocol": "TCP" }],
        });
        let name = ObjectName::new(namespace, &format!("{service}.gke"));
        table.slice(Difference::Set(name, Arc::new(serde_json::from_value(object).unwrap())));
    }

    fn web(import: &str) -> Value {
        json!({
            "metadata": { "labels": { "multicluster.kubernetes.io/service-name": import } },
            "spec": { "clusterIPs": ["10.96.0.7", "None"], "ports": [{ "name": "http", "port": 80 }] },
        })
    }

    fn port_of(all: &Allocations, key: &str) -> Option<u16> {
        all.get(&key.parse().unwrap())?.service.as_ref()?.ports.values().next().copied()
    }

    #[test]
    fn an_import_has_the_address_of_its_service_and_the_port_of_its_slices() {
        let mut table = Table::default();
        service(&mut table, "shop", "derived-a", web("web"));
        assert_eq!(port_of(&table.allocations(), "shop/web"), None, "no slice yet");
        slice_of(&mut table, "shop", "derived-a", "2026-11-28T10:00:00Z", 20_000);
        let all = table.allocations();
        assert_eq!(port_of(&all, "shop/web"), Some(20_000));
        let given = all.values().next().unwrap().service.as_ref().unwrap();
        assert_eq!(given.addresses, ["10.96.0.7".parse::<std::net::IpAddr>().unwrap()]);

        let mut endpoint = web("db");
        endpoint["metadata"]["labels"]["multicluster.kubernetes.io/source-cluster"] = json!("gke");
        endpoint["metadata"]["annotations"] = json!({ "eastway.dev/endpoint": "db-0-x" });
        service(&mut table, "shop", "derived-b", endpoint);
        let all = table.allocations();
        let db = all.get(&"shop/db".parse().unwrap()).unwrap();
        assert!(db.service.is_none() && db.endpoints.len() == 1);
        let mut name = web("db");
        name["metadata"]["annotations"] = json!({ "eastway.dev/name": "db.shop.example" });
        service(&mut table, "shop", "derived-c", name);
        slice_of(&mut table, "shop", "derived-c", "2026-11-28T10:00:00Z", 20_002);
        let all = table.allocations();
        let db = all.get(&"shop/db".parse().unwrap()).unwrap();
        assert!(db.service.is_none() && db.endpoints.len() == 1);
        assert_eq!(db.names["db.shop.example"].ports.values().collect::<Vec<_>>(), [&20_002]);
        table.service(Difference::Gone(ObjectName::new("shop", "derived-a")));
        assert_eq!(table.allocations().len(), 1);
    }

    #[test]
    fn i6_an_object_that_only_looks_like_ours_takes_no_port_of_another() {
        let mut table = Table::default();
        service(&mut table, "shop", "derived-a", web("web"));
        slice_of(&mut table, "shop", "derived-a", "2026-11-28T10:00:00Z", 20_000);
        // By name it would come first; it was made later.
        service(&mut table, "attic", "derived-a", web("trap"));
        slice_of(&mut table, "attic", "derived-a", "2026-11-28T11:00:00Z", 20_000);
        let all = table.allocations();
        assert_eq!((port_of(&all, "shop/web"), port_of(&all, "attic/trap")), (Some(20_000), None));
        for port in [15_443, 53, 32_000] {
            slice_of(&mut table, "attic", "derived-a", "2026-11-28T11:00:00Z", port);
            assert_eq!(port_of(&table.allocations(), "attic/trap"), None, "{port}");
        }
    }
}
