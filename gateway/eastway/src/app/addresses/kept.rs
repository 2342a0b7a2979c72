//! The controller's addresses on disk: a gateway that starts while the API server is away serves by them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use eastway_model::{Allocation, Allocations, EndpointId, Label, PortNumber, Protocol, ServiceAllocation, ServiceKey};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::app::disk::write_atomically;

/// File inside the state folder.
const FILE: &str = "allocations.json";
/// Largest file that is read.
const MAX: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    services: Vec<StoredService>,
}

#[derive(Serialize, Deserialize)]
struct StoredService {
    namespace: String,
    name: String,
    /// One of the service itself, or one for each endpoint.
    given: Vec<StoredAllocation>,
    /// Those of names of one's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    names: BTreeMap<String, StoredAllocation>,
}

#[derive(Serialize, Deserialize)]
struct StoredAllocation {
    /// Cluster and id of the endpoint; none: the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    endpoint: Option<(String, String)>,
    addresses: Vec<IpAddr>,
    /// Port of the service to port of the gateways.
    tcp: BTreeMap<u16, u16>,
    udp: BTreeMap<u16, u16>,
}

/// What was given out when the file was written; `None` if there is none that can be used.
pub(super) fn load(state: &Path) -> Option<Allocations> {
    let file = state.join(FILE);
    let read = fs::metadata(&file)
        .and_then(|meta| if meta.len() > MAX { Err(io::Error::other("larger than 64 MiB")) } else { fs::read(&file) });
    let stored = match read {
        Ok(bytes) => serde_json::from_slice::<Stored>(&bytes).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => Err(error),
    };
    match stored {
        Ok(Stored { version: 1, services }) => Some(services.into_iter().filter_map(service).collect()),
        Ok(Stored { version, .. }) => {
            warn!(version, file = %file.display(), "stored addresses are of an unknown version");
            None
        }
        Err(error) => {
            warn!(%error, file = %file.display(), "stored addresses cannot be read: names wait for the API server");
            None
        }
    }
}

fn service(stored: StoredService) -> Option<(ServiceKey, ServiceAllocation)> {
    let key = ServiceKey::parse(&stored.namespace, &stored.name).ok()?;
    let mut service = ServiceAllocation::default();
    for mut stored in stored.given {
        let endpoint = stored.endpoint.take();
        match (endpoint, allocation(stored)) {
            (None, allocation) => service.service = Some(allocation),
            (Some((cluster, id)), allocation) => {
                service.endpoints.insert((Label::parse(&cluster).ok()?, EndpointId::parse(&id)?), allocation);
            }
        }
    }
    service.names = stored.names.into_iter().map(|(name, stored)| (name.into(), allocation(stored))).collect();
    Some((key, service))
}

fn allocation(StoredAllocation { endpoint: _, addresses, tcp, udp }: StoredAllocation) -> Allocation {
    let ports = |protocol, ports: BTreeMap<u16, u16>| {
        let port = move |(number, port)| Some(((protocol, PortNumber::new(number)?), port));
        ports.into_iter().filter_map(port)
    };
    let ports = ports(Protocol::Tcp, tcp).chain(ports(Protocol::Udp, udp)).collect();
    Allocation { addresses, ports }
}

/// Writes what is given out. A disk that does not take it costs the warm start and nothing else (fault F20).
pub(super) fn save(state: &Path, all: &Allocations) {
    let given = |endpoint, allocation: &Allocation| {
        let of = |wanted| {
            let ports = allocation.ports.iter().filter(move |((protocol, _), _)| *protocol == wanted);
            ports.map(|((_, number), port)| (number.get(), *port)).collect()
        };
        let addresses = allocation.addresses.clone();
        StoredAllocation { endpoint, addresses, tcp: of(Protocol::Tcp), udp: of(Protocol::Udp) }
    };
    let services = all.iter().map(|(key, service)| {
        let endpoints = service.endpoints.iter();
        let endpoints = endpoints.map(|((cluster, id), one)| given(Some((cluster.to_string(), id.to_string())), one));
        StoredService {
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            given: service.service.iter().map(|one| given(None, one)).chain(endpoints).collect(),
            names: service.names.iter().map(|(name, one)| (name.to_string(), given(None, one))).collect(),
        }
    });
    let file = state.join(FILE);
    let stored = Stored { version: 1, services: services.collect() };
    let written = serde_json::to_vec(&stored).map_err(io::Error::other);
    if let Err(error) = written.and_then(|text| write_atomically(&file, &text)) {
        warn!(%error, file = %file.display(), "addresses are not kept on disk: a restart waits for the API server");
    }
}
