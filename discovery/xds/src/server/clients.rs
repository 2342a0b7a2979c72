//! Who is connected, and what each has been sent, has taken and has refused.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::kind::Kind;
use crate::node::Node;
use crate::resource::Resource;
use crate::server::{Caller, Observer};
use crate::session::{Session, Status};

/// One connected client.
#[derive(Clone, Debug)]
pub struct Client {
    /// Who it says it is, and its certificate agrees.
    pub node: Node,
    /// Its SPIFFE id.
    pub identity: Arc<str>,
    /// Where it comes from.
    pub address: String,
    /// When it came.
    pub since: SystemTime,
    /// Serial number of the certificate that it showed.
    pub serial: Arc<str>,
    /// When that ends.
    pub not_after: SystemTime,
    /// What it has, by kind.
    pub kinds: BTreeMap<Kind, Report>,
    session: Arc<dyn Told>,
}

/// Where a client stands with one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it was sent, has taken and has refused.
    pub status: Status,
    /// Since when it is in this [state](Status::state).
    pub since: SystemTime,
}

impl Client {
    /// The resources of one kind that it has been told, by name; also those that it refused.
    #[must_use]
    pub fn told(&self, kind: Kind) -> Vec<Arc<Resource>> {
        self.session.told(kind)
    }
}

/// A session that others may look into.
pub(super) trait Told: fmt::Debug + Send + Sync {
    fn told(&self, kind: Kind) -> Vec<Arc<Resource>>;
}

impl<S: Session> Told for Mutex<S> {
    fn told(&self, kind: Kind) -> Vec<Arc<Resource>> {
        self.lock().unwrap_or_else(PoisonError::into_inner).told(kind)
    }
}

/// All connected clients.
#[derive(Debug, Default)]
pub struct Clients {
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    last: u64,
    clients: BTreeMap<u64, Client>,
}

impl Clients {
    /// All, in the order in which they came.
    #[must_use]
    pub fn list(&self) -> Vec<Client> {
        self.lock().clients.values().cloned().collect()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().clients.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts a client on the list for as long as the entry lives.
    pub(super) fn enter(
        self: &Arc<Self>,
        node: &Node,
        caller: &Caller,
        session: Arc<dyn Told>,
        observer: Arc<dyn Observer>,
    ) -> Entry {
        let client = Client {
            node: node.clone(),
            identity: Arc::clone(&caller.identity),
            address: caller.address.clone(),
            since: SystemTime::now(),
            serial: Arc::clone(&caller.serial),
            not_after: caller.not_after,
            kinds: BTreeMap::new(),
            session,
        };
        let (number, count) = {
            let mut list = self.lock();
            list.last += 1;
            let number = list.last;
            list.clients.insert(number, client);
            (number, list.clients.len())
        };
        observer.connected(count);
        Entry { clients: Arc::clone(self), observer, number }
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's place on the list.
pub(super) struct Entry {
    clients: Arc<Clients>,
    observer: Arc<dyn Observer>,
    number: u64,
}

impl Entry {
    pub(super) fn set(&self, kinds: BTreeMap<Kind, Status>) {
        let mut list = self.clients.lock();
        let Some(client) = list.clients.get_mut(&self.number) else { return };
        let now = SystemTime::now();
        let report = |(kind, status): (Kind, Status)| {
            let before = client.kinds.get(&kind).filter(|before| before.status.state() == status.state());
            (kind, Report { since: before.map_or(now, |before| before.since), status })
        };
        client.kinds = kinds.into_iter().map(report).collect();
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let count = {
            let mut list = self.clients.lock();
            list.clients.remove(&self.number);
            list.clients.len()
        };
        self.observer.connected(count);
    }
}

/// Its number on the list.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("number", &self.number).finish_non_exhaustive()
    }
}
