//! What a run of the demo found out, as one JSON object.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::bookinfo::{Call, Hop};
use super::lab::Isolation;

/// The object that `--once -o json` prints. Fields are only ever added.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct Report {
    /// Version of the software.
    pub(super) version: &'static str,
    /// How the clouds were kept apart.
    pub(super) isolation: Isolation,
    /// Why not by namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) isolation_reason: Option<String>,
    /// What is beside the workloads; `None`: nothing.
    pub(super) envoy: Option<EnvoyReport>,
    /// Why nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) envoy_reason: Option<String>,
    /// The clouds.
    pub(super) clouds: Vec<CloudReport>,
    /// From the start of the command to the first answer that came from another cloud.
    pub(super) first_cross_cloud_answer_ms: f64,
    /// What the script checked, in order.
    pub(super) steps: Vec<Step>,
    /// Every request, in order.
    pub(super) requests: Vec<Request>,
}

/// The Envoys.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct EnvoyReport {
    pub(super) version: String,
    /// Cloud and name of each workload that has one.
    pub(super) beside: Vec<String>,
}

/// One cloud.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct CloudReport {
    pub(super) name: String,
    /// Where peers dial it; `None`: nowhere.
    pub(super) inbound: Option<String>,
    /// What keeps connections from outside away, where `inbound` is `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) inbound_guard: Option<String>,
    pub(super) pod_range: String,
    pub(super) vip_range: String,
    /// Pod address to what runs there, as it says itself.
    pub(super) pods: BTreeMap<IpAddr, String>,
    /// `ip route` among the pods.
    pub(super) routes: Vec<String>,
    /// Address of another cloud's gateway to what the kernel says of the way there.
    pub(super) ways_out: BTreeMap<IpAddr, String>,
    pub(super) gateway: GatewayReport,
}

/// One gateway.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct GatewayReport {
    pub(super) version: String,
    pub(super) pid: u32,
    /// Resident memory at the end of the run.
    pub(super) rss_bytes: u64,
    /// From its start to ready.
    pub(super) ready_ms: f64,
    /// Live links at the end of the run.
    pub(super) links: Vec<LinkReport>,
}

/// One link as one of its ends sees it.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct LinkReport {
    pub(super) peer: String,
    pub(super) remote: String,
    pub(super) transport: String,
    /// Whether this end dialled it.
    pub(super) dialled: bool,
    pub(super) rtt_ms: Option<f64>,
}

/// One thing that was checked.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) ok: bool,
    /// What was measured.
    pub(super) detail: serde_json::Value,
}

/// One request.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct Request {
    /// When it was sent, since the start of the script.
    pub(super) at_ms: f64,
    /// Which step it belongs to.
    pub(super) step: &'static str,
    /// Where its client is.
    pub(super) from: String,
    /// What the client asked for.
    pub(super) name: String,
    /// What the name resolved to; `None` for a service that was called by its pod's address.
    pub(super) address: Option<IpAddr>,
    pub(super) latency_ms: f64,
    /// Who answered, callers before those they called.
    pub(super) chain: Vec<Hop>,
    /// Pairs of clouds that the chain crossed.
    pub(super) crossed: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

impl Request {
    /// From what a client at `from` got.
    pub(super) fn new(at_ms: f64, step: &'static str, from: &str, call: &Call) -> Self {
        let answer = call.answer();
        let mut crossed = Vec::new();
        if let Some(answer) = answer {
            let first = (from, answer.by.cloud.as_str());
            let edges = answer.edges();
            let rest = edges.iter().map(|(from, to)| (from.cloud.as_str(), to.cloud.as_str()));
            let between = std::iter::once(first).chain(rest).filter(|(from, to)| from != to);
            crossed.extend(between.map(|(from, to)| (from.to_owned(), to.to_owned())));
        }
        Self {
            at_ms,
            step,
            from: from.to_owned(),
            name: call.name.clone(),
            address: call.address,
            latency_ms: call.ms,
            chain: answer.map(super::bookinfo::Answer::chain).unwrap_or_default(),
            crossed,
            error: call.error().map(str::to_owned),
        }
    }

    /// Whether it got its answer, all of it.
    pub(super) fn is_ok(&self) -> bool {
        self.error.is_none()
    }
}
