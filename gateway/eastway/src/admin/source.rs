//! Where the admin port's contents come from.

use std::future::Future;
use std::pin::Pin;

use super::check::CheckFacts;
use super::sidecars::{ResourceKind, SidecarConfigView, SidecarView};
use super::views::{BenchView, Description, DnsView, EndpointView, Leftovers, PeerView, ServiceView, StatusView};
use crate::telemetry::Metrics;

/// A boxed future, so that [`AdminSource`] can be used as a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A running process as the admin port shows it. Each method reads what is published and returns at once; only
/// [`AdminSource::check`] touches the network, and [`AdminSource::describe`] the API server where Istio is: it is called where
/// waiting is allowed.
pub trait AdminSource: Send + Sync + 'static {
    /// The process as a whole.
    fn status(&self) -> StatusView;

    /// The configured peers, sorted by name.
    fn peers(&self) -> Vec<PeerView>;

    /// Local services and imports, merged by name, sorted by namespace and name.
    fn services(&self) -> Vec<ServiceView>;

    /// Local endpoints, and those of peers whose records crossed; sorted by service and id.
    fn endpoints(&self) -> Vec<EndpointView>;

    /// What the DNS server does.
    fn dns(&self) -> DnsView;

    /// What a connection would do, by the same rules that route it.
    ///
    /// # Errors
    /// [`SourceError`] if no service goes by that name.
    fn describe(&self, query: &DescribeQuery) -> Result<Description, SourceError>;

    /// Connected sidecars, sorted by node: all, or those called `node`.
    ///
    /// # Errors
    /// [`SourceError`] if sidecars are not served, or none is called that.
    fn sidecars(&self, node: Option<&str>) -> Result<Vec<SidecarView>, SourceError>;

    /// What the sidecar called `node` was told of one kind, by name.
    ///
    /// # Errors
    /// As above.
    fn sidecar_config(&self, node: &str, kind: ResourceKind) -> Result<SidecarConfigView, SourceError>;

    /// The configuration that runs, with sorted keys. Secrets are to be left out at the source; the admin port
    /// checks once more and refuses to show a dump that holds any.
    fn config(&self) -> serde_json::Value;

    /// What is left of a peer, configured or not: `eastway peer remove` waits until this is nothing.
    fn leftovers(&self, peer: &str) -> Leftovers;

    /// Probes the peers (all, or the one named) and gathers what the checks need. Takes at most
    /// [`super::check::PROBE_BUDGET`].
    fn check(&self, peer: Option<String>) -> BoxFuture<'_, CheckFacts>;

    /// Measures one part of what the link to a peer can carry. Takes at most as long as asked for, and 6 s.
    ///
    /// # Errors
    /// [`SourceError::BadQuery`] with the reason: there is no link, or the peer refuses.
    fn bench(&self, query: BenchQuery) -> BoxFuture<'_, Result<BenchView, SourceError>>;

    /// Brings gauges up to date; called before each scrape.
    fn refresh(&self, metrics: &Metrics);
}

/// What [`AdminSource::bench`] measures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BenchQuery {
    /// The peer's name.
    pub peer: String,
    /// Which part.
    pub part: BenchPart,
    /// For so long, 1 to 10.
    pub seconds: u8,
}

/// A part of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BenchPart {
    /// Round trips.
    Rtt,
    /// Bytes to the peer.
    Up,
    /// Bytes from it.
    Down,
}

/// Which connection [`AdminSource::describe`] is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DescribeQuery {
    /// `namespace/name`, a DNS name that we serve, or a virtual address.
    pub target: String,
    /// Port of the service; its first port if it is left out.
    pub port: Option<u16>,
    /// Cluster of the client; this one if it is left out.
    pub cluster: Option<String>,
    /// Namespace of the client.
    pub namespace: Option<String>,
    /// Service account of the client.
    pub service_account: Option<String>,
    /// Topology zone of the client.
    pub zone: Option<String>,
    /// A request, to be followed through the rules.
    pub request: Option<eastway_model::rules::route::Request>,
}

/// Why there is nothing to show.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// No service, name or address like this; the second field names near ones.
    #[error("nothing is called {0:?}{list}", list = suggestion(.1))]
    NotFound(String, Vec<String>),
    /// The query contradicts itself or the service, e.g. a port that it does not have.
    #[error("{0}")]
    BadQuery(String),
    /// This process serves no sidecars.
    #[error("this gateway serves no sidecars: `listen.local` and `sidecars.gateway` are not in its configuration")]
    NoSidecars,
    /// No sidecar of this name is connected; the second field names those that are.
    #[error("no sidecar {0:?} is connected to this gateway; {connected}", connected = connected(.1))]
    UnknownSidecar(String, Vec<String>),
}

fn connected(names: &[String]) -> String {
    if names.is_empty() {
        "none is, look at the log of `eastway sidecar`".to_owned()
    } else {
        format!("connected are {}", names.join(", "))
    }
}

fn suggestion(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("; did you mean {}?", names.join(" or ")) }
}
