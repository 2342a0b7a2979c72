//! What the loop follows, and what it tells.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eastway_model::store::Reader;
use eastway_model::{ServiceKey, UnixMillis};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::controller::desired::{Gateways, Istio, Names};
use crate::controller::object::Kind;
use crate::controller::selection::Selection;

/// What the API server tells.
#[derive(Clone, Debug)]
pub enum Event {
    /// Objects of one kind changed.
    Objects {
        /// The kind.
        kind: Kind,
        /// What changed.
        changes: Vec<Change>,
        /// All there are have been told now.
        listed: bool,
    },
    /// Services of all kinds: namespace, name, and what they are; `None` if they are gone.
    Services {
        /// What changed.
        changes: Vec<(String, String, Option<Service>)>,
        /// All there are have been told now.
        listed: bool,
    },
    /// The namespaces that are not on their way out.
    Namespaces(BTreeSet<String>),
    /// The gateways that are ready.
    Gateways(Gateways),
}

/// What matters of a Service to its export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// It has endpoints of its own, and selects them by labels if Istio is to know that.
    Real(Option<Arc<Selection>>),
    /// It is a name for something else.
    ExternalName,
}

impl Service {
    /// What it selects.
    #[must_use]
    pub fn selection(&self) -> Option<&Arc<Selection>> {
        match self {
            Self::Real(selection) => selection.as_ref(),
            Self::ExternalName => None,
        }
    }
}

/// What became of an object.
#[derive(Clone, Debug)]
pub enum Change {
    /// It is like this now.
    Set(Value),
    /// It is gone: namespace and name.
    Gone(String, String),
}

/// How the feed of the gateways is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Feed {
    /// A gateway is being listened to.
    pub connected: bool,
    /// A gateway said which peers there are, at least once since the start.
    pub peers_known: bool,
}

/// What was left out of exported services, and why.
pub type LeftOut = Arc<BTreeMap<ServiceKey, String>>;

/// What the loop follows.
pub struct Inputs {
    /// The store.
    pub reader: Reader,
    /// How the feed is doing. Before it says which peers there are nothing of any peer is removed.
    pub feed: watch::Receiver<Feed>,
    /// The API server.
    pub events: mpsc::Receiver<Event>,
    /// What was left out of exported services, in words.
    pub left_out: watch::Receiver<LeftOut>,
    /// Names of one's own that lead to one cluster.
    pub names: watch::Receiver<Arc<Names>>,
    /// `None`: it is not there.
    pub istio: Option<Istio>,
    /// This replica writes.
    pub leading: watch::Receiver<bool>,
    /// The clock that the store is given.
    pub clock: Arc<dyn Fn() -> UnixMillis + Send + Sync>,
}

/// How the controller is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// This replica writes.
    pub leading: bool,
    /// The API server and the registries have told all they have.
    pub synced: bool,
    /// Services that wait or are worked on.
    pub pending: usize,
    /// Services whose last try failed.
    pub failing: usize,
    /// Ports of the gateways in use.
    pub ports: usize,
    /// Requests that wrote something, since the start.
    pub writes: u64,
    /// Requests that failed, since the start.
    pub failures: u64,
}
