//! Connected sidecars, and what each was told.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use eastway_identity::{CertificateFacts, certificate_facts, certificates_from_pem};
use eastway_model::Label;
use eastway_model::store::Snapshot;
use eastway_xds::explain::Schema;
use eastway_xds::server::{Client, Report};
use eastway_xds::session::{Refused, State};
use eastway_xds::{Kind, Resource, spoken};
use serde_json::Value;

use super::millis;
use crate::admin::SourceError;
use crate::admin::sidecars::{
    CertificateView, RefusedView, ResourceKind, ResourceView, SidecarConfigView, SidecarKindView, SidecarState,
    SidecarView,
};
use crate::app::Gateway;

/// Nodes that are named to who asks for another one.
const NAMED: usize = 10;
/// The secret that is the workload's own certificate, as its agent calls it.
const WORKLOAD: &str = "workload";

/// All of them by name, or those that `node` names.
pub(super) fn views(gateway: &Gateway, node: Option<&str>) -> Result<Vec<SidecarView>, SourceError> {
    let mut clients = clients(gateway)?;
    clients.sort_by(|a, b| a.node.id.cmp(&b.node.id).then(a.since.cmp(&b.since)));
    let Some(node) = node else { return Ok(clients.iter().map(|client| view(client, false)).collect()) };
    let found: Vec<_> = clients.iter().filter(|client| is(client, node)).map(|client| view(client, true)).collect();
    if found.is_empty() { Err(unknown(node, &clients)) } else { Ok(found) }
}

/// What the sidecar `node` was told; the newest one, if a connection of before lingers.
pub(super) fn config(gateway: &Gateway, node: &str, kind: ResourceKind) -> Result<SidecarConfigView, SourceError> {
    let clients = clients(gateway)?;
    let Some(client) = clients.iter().rfind(|client| is(client, node)) else { return Err(unknown(node, &clients)) };
    let schema = Schema::load();
    let of = kind_of(kind);
    let mut items: Vec<_> = client.told(of).iter().map(|resource| resource_view(&schema, of, resource)).collect();
    if kind == ResourceKind::Secrets {
        items.insert(0, own_certificate(client));
    }
    let refused = client.kinds.get(&of).and_then(|report| report.status.refused.as_ref()).map(refused);
    Ok(SidecarConfigView { node: client.node.id.clone(), refused, items })
}

/// Those that refuse something now, a line for each kind of it, by name.
pub(super) fn refusing(gateway: &Gateway) -> Vec<String> {
    let clients = gateway.sidecars.get().map(|clients| clients.list()).unwrap_or_default();
    let mut lines: Vec<String> = clients.iter().flat_map(refusals).collect();
    lines.sort();
    // Connections of before may linger, and say the same.
    lines.dedup();
    lines
}

/// Ports at which sidecars take something else than Services say.
pub(super) fn differing(gateway: &Gateway, snapshot: &Snapshot) -> Vec<String> {
    let clients = gateway.sidecars.get().map(|clients| clients.list()).unwrap_or_default();
    let namespace = |client: &Client| Label::parse(client.node.cluster.split_once('.')?.1).ok();
    let namespaces: Vec<Option<Label>> = clients.iter().map(namespace).collect();
    let each = clients.iter().zip(&namespaces).filter_map(|(client, of)| Some((of.as_ref()?, &client.node)));
    spoken::contradictions(snapshot, each)
}

fn refusals(client: &Client) -> impl Iterator<Item = String> {
    let name = short(&client.node.id);
    client.kinds.iter().filter(|(_, report)| report.status.state() == State::Refused).filter_map(
        move |(kind, report)| {
            let reason = &report.status.refused.as_ref()?.reason;
            Some(format!("{name}: {}: {reason}", kind.short()))
        },
    )
}

fn clients(gateway: &Gateway) -> Result<Vec<Client>, SourceError> {
    let clients = gateway.sidecars.get().ok_or(SourceError::NoSidecars)?;
    Ok(clients.list())
}

fn is(client: &Client, node: &str) -> bool {
    let id = client.node.id.as_str();
    id == node || short(id) == node
}

/// A node's id without its role, which people may leave out.
fn short(id: &str) -> &str {
    id.split_once('~').map_or(id, |(_, name)| name)
}

fn unknown(node: &str, clients: &[Client]) -> SourceError {
    let names = clients.iter().map(|client| client.node.id.as_str());
    let mut names: Vec<_> = names.map(|id| short(id).to_owned()).collect();
    names.sort();
    names.dedup();
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    if more > 0 {
        names.push(format!("{more} more"));
    }
    SourceError::UnknownSidecar(node.to_owned(), names)
}

fn view(client: &Client, with_counts: bool) -> SidecarView {
    let kind = |(kind, report): (&Kind, &Report)| kind_view(client, *kind, report, with_counts);
    SidecarView {
        node: client.node.id.clone(),
        proxy: client.node.agent.clone(),
        identity: client.identity.to_string(),
        address: client.address.clone(),
        since: millis(client.since),
        serial: client.serial.to_string(),
        not_after: millis(client.not_after),
        kinds: client.kinds.iter().map(kind).collect(),
    }
}

fn kind_view(client: &Client, kind: Kind, report: &Report, with_counts: bool) -> SidecarKindView {
    let status = &report.status;
    SidecarKindView {
        kind: kind.short().to_owned(),
        state: match status.state() {
            State::NotSent => SidecarState::NotSent,
            State::Synced => SidecarState::Synced,
            State::Stale => SidecarState::Stale,
            State::Refused => SidecarState::Refused,
        },
        since: millis(report.since),
        resources: with_counts.then(|| client.told(kind).len() as u64),
        sent: status.sent,
        acknowledged: status.accepted,
        unanswered: status.outstanding as u64,
        refusals: status.refusals,
        refused: status.refused.as_ref().map(refused),
    }
}

fn refused(refused: &Refused) -> RefusedView {
    RefusedView {
        version: refused.generation,
        reason: refused.reason.to_string(),
        names: refused.names.iter().map(ToString::to_string).collect(),
    }
}

fn kind_of(kind: ResourceKind) -> Kind {
    match kind {
        ResourceKind::Listeners => Kind::Listener,
        ResourceKind::Routes => Kind::Route,
        ResourceKind::Clusters => Kind::Cluster,
        ResourceKind::Endpoints => Kind::Endpoints,
        ResourceKind::Secrets => Kind::Secret,
    }
}

fn resource_view(schema: &Schema, kind: Kind, resource: &Arc<Resource>) -> ResourceView {
    let shown = schema.resource(kind, resource);
    let certificates = bundle(&shown).and_then(|pem| certificates_from_pem(&pem).ok()).unwrap_or_default();
    ResourceView {
        name: resource.name().to_string(),
        version: resource.version().to_string(),
        certificates: certificates.iter().filter_map(certificate_facts).map(certificate).collect(),
        resource: shown,
    }
}

/// The trust bundle in a secret.
fn bundle(secret: &Value) -> Option<Vec<u8>> {
    let source = secret.pointer("/validation_context/trusted_ca")?;
    match source.get("inline_string").and_then(Value::as_str) {
        Some(text) => Some(text.as_bytes().to_vec()),
        None => BASE64.decode(source.get("inline_bytes")?.as_str()?).ok(),
    }
}

fn certificate(facts: CertificateFacts) -> CertificateView {
    CertificateView { subject: facts.subject, serial: facts.serial, not_after: millis(facts.not_after) }
}

/// What is known of the secret that only the agent has: the certificate that it showed here.
fn own_certificate(client: &Client) -> ResourceView {
    let certificate = CertificateView {
        subject: client.identity.to_string(),
        serial: client.serial.to_string(),
        not_after: millis(client.not_after),
    };
    ResourceView { name: WORKLOAD.to_owned(), certificates: vec![certificate], ..ResourceView::default() }
}
