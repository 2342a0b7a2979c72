//! Sidecars into pods: what a mutating admission webhook answers, and the object by which API servers know the webhook.
//!
//! The answer is a pure function of the question and of [`Settings`] ([`review`]): no clock, no network, nothing that is
//! remembered. A pod that has a sidecar already is left alone, so that being asked twice changes nothing.

mod missing;
mod pod;
mod sidecar;
pub mod webhook;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use eastway_model::Label;
use serde::Deserialize;
use serde_json::{Value, json};

pub use missing::without_sidecar;
use pod::Pod;

use crate::source::objects::Meta;

/// Largest question. An API server stores no object above 1.5 MiB, and a question holds a pod at most twice.
pub const MAX_REVIEW: usize = 4 << 20;
/// Longest `uid` of a question; those of API servers are UUIDs.
const MAX_UID: usize = 128;
/// The one version of questions and answers.
const API_VERSION: &str = "admission.k8s.io/v1";
/// Their kind.
const KIND: &str = "AdmissionReview";

/// Annotation of a pod: `"false"` keeps sidecars out of it.
pub const INJECT: &str = "sidecar.eastway.dev/inject";
/// Annotation of a pod: addresses that are led to its sidecar, as ranges with commas between them.
pub const RANGES: &str = "sidecar.eastway.dev/ranges";
/// Annotation of a pod: ports of its own that lead to an import each, instead of rules that lead all connections to its sidecar:
/// `9080=bookinfo/reviews:9080/http`, with commas between them.
pub const LISTENERS: &str = "sidecar.eastway.dev/listeners";
/// Annotation of a pod: ports of its workload where its sidecar takes connections, mutual TLS and plain text: `9080,7000`. What is
/// spoken there Services say, or the annotation itself: `9080/http`.
pub const INBOUND: &str = "sidecar.eastway.dev/inbound";
/// Annotation of a pod with [`INBOUND`]: `strict`, it takes mutual TLS alone there; or `permissive`, as without it.
pub const TLS: &str = "sidecar.eastway.dev/tls";
/// Annotation that an injected pod has.
pub const STATUS: &str = "sidecar.eastway.dev/status";
/// Label of namespaces whose pods get sidecars, and its value.
pub const NAMESPACE_LABEL: (&str, &str) = ("eastway.dev/injection", "enabled");
/// ConfigMap with the public half of the CA, in each such namespace.
pub const TRUST: &str = "eastway-trust";
/// Namespaces of Kubernetes itself, whose pods never get a sidecar.
pub const NEVER: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// User of sidecars in pods. What it connects to is not led to Envoy once more; nobody else in a pod may be it.
pub const USER: u32 = 1337;

/// What sidecars of this cluster are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Image with Envoy, `nft` and this program.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub pull_policy: String,
    /// Eastway's own namespace.
    pub system_namespace: Label,
    /// Trust domain of the cluster.
    pub trust_domain: String,
    /// The ca role, `https://` with host and port.
    pub ca: String,
    /// The gateways' local port, host and port.
    pub gateway: String,
    /// Addresses that are led to sidecars; empty: all.
    pub ranges: Vec<String>,
    /// `resources` of the containers.
    pub resources: Value,
    /// Pods have IPv6.
    pub ipv6: bool,
}

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The pod gets a sidecar.
    Injected,
    /// It has one.
    Already,
    /// Its annotation says no.
    OptedOut,
    /// It uses its node's network, where a capture would be the node's.
    HostNetwork,
    /// It does not use the cluster's resolver, so that gateway and CA have no names in it.
    DnsPolicy,
    /// It is for another system than Linux.
    OtherSystem,
    /// It is of a namespace that never gets any.
    SystemNamespace,
    /// The kubelet has it from a file: nothing of it can be changed.
    Static,
    /// No pod, or none that is made.
    NotAPod,
    /// It asks for what cannot be.
    Refused,
}

impl Outcome {
    /// For metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Already => "already",
            Self::OptedOut => "opted_out",
            Self::HostNetwork => "host_network",
            Self::DnsPolicy => "dns_policy",
            Self::OtherSystem => "other_system",
            Self::SystemNamespace => "system_namespace",
            Self::Static => "static",
            Self::NotAPod => "not_a_pod",
            Self::Refused => "refused",
        }
    }

    /// What whoever made the pod should know of it.
    fn warning(self) -> Option<&'static str> {
        match self {
            Self::HostNetwork => Some("no sidecar: the pod uses the network of its node"),
            Self::DnsPolicy => Some("no sidecar: the pod does not use the cluster's resolver (dnsPolicy)"),
            Self::Injected
            | Self::Already
            | Self::OptedOut
            | Self::OtherSystem
            | Self::SystemNamespace
            | Self::Static
            | Self::NotAPod
            | Self::Refused => None,
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What is sent: an AdmissionReview.
    pub body: Value,
    /// What it says.
    pub outcome: Outcome,
    /// The pod, as `namespace/name`, for logs; the name may be the beginning of one.
    pub pod: String,
    /// Why it was refused.
    pub reason: Option<String>,
}

/// Not a question that could be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// No JSON, or not of this form.
    #[error("not an AdmissionReview: {0}")]
    Malformed(String),
    /// Of another kind or version.
    #[error("must be of kind AdmissionReview and apiVersion admission.k8s.io/v1")]
    Kind,
    /// Nobody could say what the answer belongs to.
    #[error("request.uid must be 1 to {MAX_UID} bytes long")]
    Uid,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    kind: GroupVersionKind,
    #[serde(default)]
    sub_resource: Option<String>,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    object: Option<Value>,
}

#[derive(Deserialize)]
struct GroupVersionKind {
    #[serde(default)]
    group: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    kind: String,
}

impl Request {
    fn makes_a_pod(&self) -> bool {
        let GroupVersionKind { group, version, kind } = &self.kind;
        (group.as_str(), version.as_str(), kind.as_str()) == ("", "v1", "Pod")
            && self.operation == "CREATE"
            && self.sub_resource.as_deref().unwrap_or_default().is_empty()
    }
}

/// Answers a question.
///
/// # Errors
/// [`ReviewError`]: it is none.
pub fn review(body: &[u8], settings: &Settings) -> Result<Answer, ReviewError> {
    let review: Review = serde_json::from_slice(body).map_err(|error| ReviewError::Malformed(error.to_string()))?;
    if (review.api_version.as_str(), review.kind.as_str()) != (API_VERSION, KIND) {
        return Err(ReviewError::Kind);
    }
    let request = review.request;
    if request.uid.is_empty() || request.uid.len() > MAX_UID {
        return Err(ReviewError::Uid);
    }
    let namespace = request.namespace.clone().unwrap_or_default();
    if !request.makes_a_pod() {
        return Ok(answer(&request.uid, namespace, Ok((Outcome::NotAPod, Vec::new()))));
    }
    let object = request.object.unwrap_or_default();
    let pod: Pod = serde_json::from_value(object).map_err(|error| ReviewError::Malformed(error.to_string()))?;
    let name = format!("{namespace}/{}", pod.name());
    let decision = match left_out(&pod, &namespace, settings.system_namespace.as_str()) {
        Ok(Some(outcome)) => Ok((outcome, Vec::new())),
        Ok(None) => sidecar::patch(&pod, &namespace, settings).map(|patch| (Outcome::Injected, patch)),
        Err(reason) => Err(reason),
    };
    Ok(answer(&request.uid, name, decision))
}

/// Why a pod gets none, if that is not a mistake.
fn left_out(pod: &Pod, namespace: &str, system_namespace: &str) -> Result<Option<Outcome>, String> {
    // The webhook's own object keeps these away already; a mistake there must not stop a cluster.
    if NEVER.contains(&namespace) || namespace == system_namespace {
        return Ok(Some(Outcome::SystemNamespace));
    }
    match pod.annotation(INJECT) {
        None | Some("true") => {}
        Some("false") => return Ok(Some(Outcome::OptedOut)),
        Some(_) => return Err(format!("annotation {INJECT} must be \"true\" or \"false\"")),
    }
    Ok(if pod.is_static() {
        Some(Outcome::Static)
    } else if sidecar::is_in(pod) {
        Some(Outcome::Already)
    } else if pod.is_on_host_network() {
        Some(Outcome::HostNetwork)
    } else if !pod.is_for_linux() {
        Some(Outcome::OtherSystem)
    } else if !pod.uses_cluster_resolver() {
        Some(Outcome::DnsPolicy)
    } else {
        None
    })
}

fn answer(uid: &str, pod: String, decision: Result<(Outcome, Vec<Value>), String>) -> Answer {
    let mut response = json!({"uid": uid, "allowed": decision.is_ok()});
    let mut say = |key: &str, value: Value| {
        if let Some(fields) = response.as_object_mut() {
            fields.insert(key.to_owned(), value);
        }
    };
    let (outcome, reason) = match decision {
        Ok((outcome, patch)) => {
            if !patch.is_empty() {
                say("patchType", "JSONPatch".into());
                say("patch", STANDARD.encode(Value::from(patch).to_string()).into());
            }
            if let Some(warning) = outcome.warning() {
                say("warnings", json!([warning]));
            }
            (outcome, None)
        }
        Err(reason) => {
            let message = format!("eastway cannot put a sidecar beside it: {reason}");
            say("status", json!({"code": 422, "reason": "Invalid", "message": message}));
            (Outcome::Refused, Some(reason))
        }
    };
    let body = json!({"apiVersion": API_VERSION, "kind": KIND, "response": response});
    Answer { body, outcome, pod, reason }
}

/// Where the sidecar of a pod takes connections for it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Inbound {
    /// Ports of the workload.
    pub(crate) ports: Box<[u16]>,
    /// By mutual TLS alone.
    pub(crate) strict: bool,
}

/// What an injected pod's annotations say of it; `None`: nowhere.
pub(crate) fn inbound_of(metadata: &Meta) -> Option<Inbound> {
    metadata.annotation(STATUS)?;
    let places = sidecar::inbound(metadata.annotation(INBOUND)?).ok()?;
    let strict = sidecar::is_strict(metadata.annotation(TLS)).ok()?;
    Some(Inbound { ports: places.into_iter().map(|(port, _)| port).collect(), strict })
}

#[cfg(test)]
mod tests;
