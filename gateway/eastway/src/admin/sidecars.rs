//! What sidecars were told, as views of the admin port: `/proxy-status` and `/proxy-config`.

use axum::extract::Query;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};

use super::api::{MAX_NAME, json, problem};
use super::http::{Head, Response};
use super::source::{AdminSource, SourceError};
use super::views::Items;

/// One connected sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarView {
    /// Its node, `sidecar~<name>.<namespace>`.
    pub node: String,
    /// What proxy it is, e.g. `envoy 1.40.0`; empty if it does not say.
    pub proxy: String,
    /// SPIFFE id in its certificate.
    pub identity: String,
    /// Where it comes from.
    pub address: String,
    /// Since when it is connected.
    pub since: u64,
    /// Serial number of the certificate that it showed then.
    pub serial: String,
    /// When that ends, and the connection with it.
    pub not_after: u64,
    /// Where it stands with each kind of resource that it asked for; clusters first.
    pub kinds: Vec<SidecarKindView>,
}

/// Where a sidecar stands with one kind of resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarKindView {
    /// `cds`, `eds`, `lds`, `rds` or `sds`.
    pub kind: String,
    /// Where it stands, in a word.
    pub state: SidecarState,
    /// Since when it stands there.
    pub since: u64,
    /// How many resources it was told; only of a sidecar that was asked for by name.
    pub resources: Option<u64>,
    /// Version of the last response.
    pub sent: Option<u64>,
    /// Version of the last response that it took.
    pub acknowledged: Option<u64>,
    /// Responses that it has not answered.
    pub unanswered: u64,
    /// Responses that it refused, ever.
    pub refusals: u64,
    /// What it refuses now.
    pub refused: Option<RefusedView>,
}

/// Where a sidecar stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SidecarState {
    /// It asked, and there was nothing to send yet.
    #[default]
    NotSent,
    /// It has taken all.
    Synced,
    /// It has not answered yet.
    Stale,
    /// It has refused something, which was not replaced since.
    Refused,
}

/// A response that a sidecar refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RefusedView {
    /// Its version.
    pub version: u64,
    /// What the proxy says.
    pub reason: String,
    /// What it held; at most 16 names.
    pub names: Vec<String>,
}

/// Kinds that can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum ResourceKind {
    /// Where it listens, and what that leads to
    Listeners,
    /// Which request goes to which cluster
    Routes,
    /// Sets of endpoints, and how they are talked to
    Clusters,
    /// Single endpoints with health, priority, weight and labels
    Endpoints,
    /// Certificates and trust bundles, never keys
    Secrets,
}

/// What one sidecar was told of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarConfigView {
    /// The sidecar.
    pub node: String,
    /// What it refuses of that kind.
    pub refused: Option<RefusedView>,
    /// By name.
    pub items: Vec<ResourceView>,
}

/// One resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceView {
    /// Its name.
    pub name: String,
    /// A digest of its content.
    pub version: String,
    /// The certificates in it; of secrets only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateView>,
    /// It, in Envoy's JSON.
    pub resource: serde_json::Value,
}

/// One certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificateView {
    /// Its subject, or its SPIFFE id.
    pub subject: String,
    /// Its serial number.
    pub serial: String,
    /// When it ends.
    pub not_after: u64,
}

/// Parameters of `/proxy-status`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFilter {
    node: Option<String>,
}

/// Parameters of `/proxy-config`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigParameters {
    node: String,
    kind: ResourceKind,
}

pub(super) fn status(head: &Head, source: &dyn AdminSource) -> Response {
    match Query::<NodeFilter>::try_from_uri(&head.uri) {
        Ok(Query(NodeFilter { node })) if node.as_ref().is_none_or(|node| node.len() <= MAX_NAME) => {
            match source.sidecars(node.as_deref()) {
                Ok(items) => json("Sidecars", &Items { items }),
                Err(error) => refusal(&error),
            }
        }
        Ok(_) | Err(_) => problem(StatusCode::BAD_REQUEST, "the query may be node=NODE"),
    }
}

pub(super) fn config(head: &Head, source: &dyn AdminSource) -> Response {
    match Query::<ConfigParameters>::try_from_uri(&head.uri) {
        Ok(Query(ConfigParameters { node, kind })) if node.len() <= MAX_NAME => {
            match source.sidecar_config(&node, kind) {
                Ok(view) => json("SidecarConfiguration", &view),
                Err(error) => refusal(&error),
            }
        }
        Ok(_) | Err(_) => {
            let usage = "the query must be node=NODE and kind=listeners, routes, clusters, endpoints or secrets";
            problem(StatusCode::BAD_REQUEST, usage)
        }
    }
}

fn refusal(error: &SourceError) -> Response {
    problem(StatusCode::NOT_FOUND, &error.to_string())
}
