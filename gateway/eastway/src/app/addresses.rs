//! Where virtual addresses of imports come from, and where connections to them arrive.
//!
//! Outside Kubernetes this gateway gives them out and listens on them. In Kubernetes the controller gives them out, as
//! cluster IPs that lead to a port of the gateways, and the gateways only read.

mod kept;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use eastway_kubernetes::allocations;
use eastway_kubernetes::client::Access;
use eastway_model::{Allocation, Allocations, ClusterName, EndpointId, PortNumber, Protocol, ServiceKey, Subset};
use eastway_xds::resources::share_name;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::app::vips::VipBook;
use crate::proxy::outbound::Target;

/// Pause before a client that could not be made is tried again.
pub(super) const CLIENT_PAUSE: Duration = Duration::from_secs(5);

/// The controller's allocations; `None` until they have been read once.
pub type AllocationSource = watch::Receiver<Option<Arc<Allocations>>>;

/// What an address is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The whole service.
    Service,
    /// One endpoint of a headless service.
    Endpoint(ClusterName, EndpointId),
    /// A name of one's own that leads to one cluster.
    Name(Arc<str>, ClusterName),
    /// A peer's endpoints with these labels, for clients that choose between such shares themselves.
    Share(ClusterName, Arc<Subset>),
}

impl Purpose {
    /// What connections to a port of `service` go to.
    #[must_use]
    pub fn target(&self, service: ServiceKey, port: PortNumber) -> Target {
        let all = Target { service, port, cluster: None, subset: None, endpoint: None };
        match self {
            Self::Service => all,
            Self::Endpoint(cluster, id) => Target { cluster: Some(cluster.clone()), endpoint: Some(id.clone()), ..all },
            Self::Name(_, cluster) => Target { cluster: Some(cluster.clone()), ..all },
            Self::Share(cluster, subset) => {
                Target { cluster: Some(cluster.clone()), subset: Some(Arc::clone(subset)), ..all }
            }
        }
    }

    /// The key in the book of the service `key`.
    fn book_key(&self, key: &ServiceKey) -> String {
        match self {
            Self::Service => format!("{key}/service"),
            Self::Endpoint(cluster, id) => format!("{key}/endpoint/{cluster}/{id}"),
            Self::Name(name, _) => format!("{key}/name/{name}"),
            Self::Share(cluster, subset) => format!("{key}/share/{}", share_name(Some(cluster), subset)),
        }
    }
}

/// What was found for a purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Addresses.
    Given(Given),
    /// The controller has not given any yet.
    Waiting,
    /// There is none left.
    Full,
}

/// Addresses, and where their connections arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// What names are answered with.
    pub addresses: Vec<IpAddr>,
    arrive: Arrive,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Arrive {
    /// At the addresses themselves.
    There,
    /// At ports of this gateway.
    Here(IpAddr, Allocation),
}

impl Given {
    /// The sockets at which what is for a port of the service arrives.
    #[must_use]
    pub fn sockets(&self, protocol: Protocol, number: PortNumber) -> Vec<SocketAddr> {
        match &self.arrive {
            Arrive::There => self.addresses.iter().map(|address| SocketAddr::new(*address, number.get())).collect(),
            Arrive::Here(any, allocation) => {
                let port = allocation.ports.get(&(protocol, number));
                port.map(|port| SocketAddr::new(*any, *port)).into_iter().collect()
            }
        }
    }
}

/// Where addresses come from.
#[derive(Debug)]
pub enum Addresses {
    /// This gateway.
    Book(VipBook),
    /// The controller.
    Controller(Controller),
}

impl Addresses {
    /// Those that the controller gives out. Until it is heard, those in the folder `state` of the last run count.
    #[must_use]
    pub fn of_controller(latest: AllocationSource, state: PathBuf) -> Self {
        let current = kept::load(&state).map(Arc::new);
        Self::Controller(Controller { latest, current, is_heard: false, any: any_address(), state })
    }

    /// The address for `purpose`, given out now if need be and if it is ours to give.
    pub fn grant(&mut self, key: &ServiceKey, purpose: &Purpose) -> Grant {
        match self {
            Self::Book(book) => match book.allocate(&purpose.book_key(key)) {
                Some(addresses) => Grant::Given(Given { addresses: addresses.to_vec(), arrive: Arrive::There }),
                None => Grant::Full,
            },
            Self::Controller(controller) => controller.grant(key, purpose),
        }
    }

    /// Whether the controller gives them out.
    #[must_use]
    pub fn is_controllers(&self) -> bool {
        matches!(self, Self::Controller(_))
    }

    /// Whether what has no address is known to have none. The last run's addresses do not say.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        match self {
            Self::Book(_) => true,
            Self::Controller(controller) => controller.is_heard,
        }
    }

    /// Gives back what a service has and `keep` does not name.
    pub fn keep_only(&mut self, key: &ServiceKey, keep: &[Purpose]) {
        if let Self::Book(book) = self {
            let keep: BTreeSet<_> = keep.iter().map(|purpose| purpose.book_key(key)).collect();
            book.release(&format!("{key}/"), &keep);
        }
    }

    /// Writes what changed to disk.
    pub fn save(&mut self) {
        if let Self::Book(book) = self {
            book.save();
        }
    }

    /// Waits until something else was given out. Never, if this gateway gives out.
    pub async fn changed(&mut self) {
        if let Self::Controller(controller) = self
            && controller.latest.changed().await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }

    /// Takes over what was given out since; names the services in which something is new.
    pub fn take_changes(&mut self) -> BTreeSet<ServiceKey> {
        match self {
            Self::Book(_) => BTreeSet::new(),
            Self::Controller(controller) => controller.take_changes(),
        }
    }
}

/// The controller's addresses as this gateway knows them.
#[derive(Debug)]
pub struct Controller {
    latest: AllocationSource,
    current: Option<Arc<Allocations>>,
    /// They are the controller's, and not only what was known of them at the last run.
    is_heard: bool,
    /// All addresses of this machine.
    any: IpAddr,
    state: PathBuf,
}

impl Controller {
    fn grant(&self, key: &ServiceKey, purpose: &Purpose) -> Grant {
        let service = self.current.as_ref().and_then(|all| all.get(key));
        let found = service.and_then(|service| match purpose {
            Purpose::Service => service.service.as_ref(),
            Purpose::Endpoint(cluster, id) => service.endpoints.get(&(cluster.clone(), id.clone())),
            Purpose::Name(name, _) => service.names.get(name),
            Purpose::Share(..) => None,
        });
        match found.filter(|allocation| !allocation.addresses.is_empty() && !allocation.ports.is_empty()) {
            Some(allocation) => Grant::Given(Given {
                addresses: allocation.addresses.clone(),
                arrive: Arrive::Here(self.any, allocation.clone()),
            }),
            None => Grant::Waiting,
        }
    }

    fn take_changes(&mut self) -> BTreeSet<ServiceKey> {
        let Some(new) = self.latest.borrow_and_update().clone() else { return BTreeSet::new() };
        self.is_heard = true;
        let old = self.current.replace(Arc::clone(&new)).unwrap_or_default();
        let differ = |key: &&ServiceKey| old.get(*key) != new.get(*key);
        let changed: BTreeSet<_> = old.keys().chain(new.keys()).filter(differ).cloned().collect();
        if !changed.is_empty() {
            kept::save(&self.state, &new);
        }
        changed
    }
}

/// Follows what the controller gives out, until `end`.
pub async fn follow(access: Access, latest: watch::Sender<Option<Arc<Allocations>>>, end: CancellationToken) {
    loop {
        match allocations::run(&access, latest.clone(), end.clone()).await {
            Ok(()) => return,
            Err(error) => warn!(%error, "virtual addresses cannot be read from the API server; trying again"),
        }
        // The service account or the kubeconfig may come later.
        if end.run_until_cancelled(tokio::time::sleep(CLIENT_PAUSE)).await.is_none() {
            return;
        }
    }
}

/// `[::]` takes connections of both families, where the machine has IPv6.
fn any_address() -> IpAddr {
    let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match std::net::TcpListener::bind((any, 0)) {
        Ok(_) => any,
        Err(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    }
}

#[cfg(test)]
mod tests;
