//! What a connection would do: `eastway_model::describe` with the names, addresses and links that
//! only this process knows.

use std::net::IpAddr;
use std::num::NonZeroU16;

use eastway_model::access::{self, SourceIdentity};
use eastway_model::describe::{ExplainedCandidate, explain, explain_rules};
use eastway_model::routing::RouteRequest;
use eastway_model::store::Snapshot;
use eastway_model::{ClusterName, Label, Protocol, ServiceKey};

use super::{istio, services};
use crate::admin::rules::{RuleView, RulesView};
use crate::admin::views::{CandidateView, Description, EndpointChoice, RejectedView};
use crate::admin::{DescribeQuery, SourceError};
use crate::app::Gateway;

pub(super) fn describe(gateway: &Gateway, query: &DescribeQuery) -> Result<Description, SourceError> {
    let snapshot = gateway.reader.load_full();
    let (key, cluster) = find(gateway, &snapshot, &query.target)?;
    let (protocol, port) = port(&snapshot, &key, query.port)?;
    let source = source(&snapshot, query)?;
    let mut request = RouteRequest { protocol, ..RouteRequest::tcp(port) };
    request.zone = query.zone.as_deref();
    request.cluster = cluster.as_ref();
    // By the virtual address: sidecars choose by themselves.
    request.plain = protocol == Protocol::Tcp;
    let explanation = explain(&snapshot, &key, &request);
    let access = snapshot.local(&key).map(|_| {
        let verdict = access::authorize(&snapshot, &source, &key);
        let word = if verdict.allowed { "allowed" } else { "denied" };
        format!("{word}: {}", verdict.rule)
    });
    let import = snapshot.import(&key);
    let mut warnings: Vec<_> = explanation.error.iter().cloned().collect();
    warnings.extend(explanation.conflicts.iter().map(|conflict| conflict.message.clone()));
    warnings.extend(snapshot.registry_conflicts(&key).iter().map(ToString::to_string));
    if explanation.candidates.iter().any(|candidate| candidate.stale) {
        warnings.push("only the last known state of an unreachable cluster is left".to_owned());
    }
    if let Some(shortage) = gateway.frontend.borrow().exhausted.get(&key) {
        warnings.push(format!("it cannot be reached by its address: {shortage}"));
    }
    Ok(Description {
        service: key.to_string(),
        port: port.get(),
        source: source.to_string(),
        dns_names: if import.is_some() { services::dns_names(&snapshot, &key) } else { Vec::new() },
        vips: gateway.frontend.borrow().vips.get(&key).cloned().unwrap_or_default(),
        policy: explanation.policy.clone().unwrap_or_else(|| "default".to_owned()),
        candidates: explanation.candidates.iter().map(|one| candidate(gateway, &snapshot, &key, one)).collect(),
        rejected: explanation
            .rejected
            .iter()
            .map(|rejected| RejectedView {
                cluster: rejected.cluster.to_string(),
                what: services::labels(&rejected.subset),
                reason: rejected.reason.to_string(),
            })
            .collect(),
        access,
        rules: (protocol == Protocol::Tcp).then(|| rules(&snapshot, &key, port, query)).flatten(),
        sidecars: sidecars(gateway, &snapshot, &key),
        istio: istio::told(gateway, &snapshot, &key),
        warnings,
    })
}

/// What becomes of a request where no rule looks at requests.
const NO_RULE: &str = "no rule: by weights, locality and failover, as every connection";

/// What is different for sidecars than for those who use the virtual address.
fn sidecars(gateway: &Gateway, snapshot: &Snapshot, key: &ServiceKey) -> Option<String> {
    let most = gateway.settings.sidecars.as_ref()?.endpoints_per_service;
    let import = snapshot.import(key).filter(|_| gateway.summaries.borrow().contains(key))?;
    let size = import.remote_size();
    Some(format!("summary: other clusters have {size} endpoints, told as one per cluster and version above {most}"))
}

fn rules(snapshot: &Snapshot, key: &ServiceKey, port: NonZeroU16, query: &DescribeQuery) -> Option<RulesView> {
    let port = snapshot.import(key)?.port(Protocol::Tcp, port)?;
    let unruled = || query.request.as_ref().map(|_| NO_RULE.to_owned());
    let Some(explained) = explain_rules(snapshot, key, port, query.request.as_ref()) else {
        return unruled().map(|outcome| RulesView { outcome: Some(outcome), ..RulesView::default() });
    };
    let rules = explained.rules.into_iter().map(|rule| RuleView {
        rule: rule.rule,
        matches: rule.matches,
        does: rule.does,
        chosen: rule.chosen,
        why_not: rule.why_not,
    });
    Some(RulesView {
        kind: explained.kind.to_string(),
        rules: rules.collect(),
        outcome: explained.outcome.or_else(unruled),
        statuses: explained.statuses,
    })
}

/// The service behind `namespace/name`, one of our names, or a virtual address.
fn find(
    gateway: &Gateway,
    snapshot: &Snapshot,
    target: &str,
) -> Result<(ServiceKey, Option<ClusterName>), SourceError> {
    let exists = |key: &ServiceKey| snapshot.import(key).is_some() || snapshot.local(key).is_some();
    if let Ok(address) = target.parse::<IpAddr>() {
        let frontend = gateway.frontend.borrow();
        let found = frontend.vips.iter().find(|(_, vips)| vips.contains(&address)).map(|(key, _)| (key.clone(), None));
        let shares = frontend.shares.iter().flatten();
        let mut shares = shares.flat_map(|(key, shares)| shares.iter().map(move |share| (key, share)));
        let mut share = || shares.find(|(_, (_, vips))| vips.contains(&address));
        let found = found.or_else(|| share().map(|(key, ((cluster, _), _))| (key.clone(), Some(cluster.clone()))));
        return found.ok_or_else(|| SourceError::NotFound(target.to_owned(), Vec::new()));
    }
    let name = target.trim_end_matches('.').to_ascii_lowercase();
    if let Some(rule) = snapshot.rules().names.iter().find(|rule| *rule.fqdn == *name) {
        return Ok((rule.service.clone(), rule.cluster.clone()));
    }
    let clusterset = name.strip_suffix(".svc.clusterset.local").and_then(|short| short.split_once('.'));
    let key = match clusterset {
        Some((service, namespace)) => ServiceKey::parse(namespace, service).ok(),
        None => name.parse().ok(),
    };
    match key.filter(exists) {
        Some(key) => Ok((key, None)),
        None => Err(SourceError::NotFound(target.to_owned(), near(snapshot, &name))),
    }
}

fn near(snapshot: &Snapshot, name: &str) -> Vec<String> {
    let mut keys: Vec<_> = snapshot.imports().map(|import| import.key.to_string()).collect();
    keys.extend(snapshot.locals().map(|local| local.key().to_string()));
    keys.sort();
    keys.dedup();
    let mut scored: Vec<_> = keys.into_iter().map(|key| (strsim::jaro_winkler(&key, name), key)).collect();
    scored.retain(|(score, _)| *score > 0.8);
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(3).map(|(_, key)| key).collect()
}

/// The port that is meant: of one number the one of TCP, and if none is named the first one.
fn port(snapshot: &Snapshot, key: &ServiceKey, wanted: Option<u16>) -> Result<(Protocol, NonZeroU16), SourceError> {
    let ports = snapshot.import(key).map(|import| import.ports.as_slice());
    let ports = ports.or(snapshot.local(key).map(|local| local.record.ports.as_slice())).unwrap_or_default();
    let of = |protocol| ports.iter().filter(move |port| port.protocol == protocol);
    let mut carried = of(Protocol::Tcp).chain(of(Protocol::Udp)).map(|port| (port.protocol, port.number));
    match wanted {
        None => carried.next().ok_or_else(|| SourceError::BadQuery(format!("{key} has no TCP or UDP port"))),
        Some(wanted) => carried.find(|(_, port)| port.get() == wanted).ok_or_else(|| {
            let has: Vec<_> = ports.iter().map(|port| port.number.to_string()).collect();
            SourceError::BadQuery(format!("{key} has no TCP or UDP port {wanted}; it has {}", has.join(", ")))
        }),
    }
}

fn source(snapshot: &Snapshot, query: &DescribeQuery) -> Result<SourceIdentity, SourceError> {
    let label = |what: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => {
            Label::parse(text).map(Some).map_err(|error| SourceError::BadQuery(format!("{what} {text:?} {error}")))
        }
    };
    let cluster = label("cluster", &query.cluster)?;
    let peers = &snapshot.rules().peers;
    if let Some(unknown) = cluster.as_ref().filter(|name| *name != snapshot.cluster() && !peers.contains_key(*name)) {
        let peers: Vec<_> = peers.keys().map(ToString::to_string).collect();
        let peers =
            if peers.is_empty() { "it has no peers".to_owned() } else { format!("its peers are {}", peers.join(", ")) };
        let own = snapshot.cluster();
        return Err(SourceError::BadQuery(format!("no cluster {:?}: this is {own}, {peers}", unknown.as_str())));
    }
    Ok(SourceIdentity {
        namespace: label("namespace", &query.namespace)?,
        service_account: label("service account", &query.service_account)?,
        ..SourceIdentity::unknown(cluster.unwrap_or_else(|| snapshot.cluster().clone()))
    })
}

fn candidate(gateway: &Gateway, snapshot: &Snapshot, key: &ServiceKey, one: &ExplainedCandidate) -> CandidateView {
    let matches = |labels: &eastway_model::Subset| one.subset.iter().all(|(key, value)| labels.get(key) == Some(value));
    let import = snapshot.import(key);
    let part = import.and_then(|import| import.part((!one.local).then_some(&one.cluster)));
    let groups = part.map(|part| part.record.groups.as_slice()).unwrap_or_default();
    let local = snapshot.local(key).filter(|_| one.local);
    let address = |id: &str| {
        let endpoints = local.into_iter().flat_map(|local| local.endpoints.iter());
        endpoints.into_iter().find(|known| known.endpoint.id.as_str() == id).map(|known| known.address)
    };
    let endpoints = one.endpoints.iter().map(|endpoint| EndpointChoice {
        id: endpoint.id.clone(),
        address: address(&endpoint.id),
        share: endpoint.share_percent,
        reason: endpoint.reason.map(|reason| reason.to_string()),
    });
    let link = gateway.router.link(&one.cluster, &[]);
    let path = match (one.local, link) {
        (true, _) => "direct".to_owned(),
        (false, Some(link)) => format!("quic {} rtt {:.1} ms", link.remote_addr(), link.rtt().as_secs_f64() * 1000.0),
        (false, None) => "no link".to_owned(),
    };
    let reason = match (one.stale, one.ready == 0) {
        (true, _) => "last resort: the cluster cannot be reached",
        (false, true) => "only draining endpoints are left",
        (false, false) if one.local => "endpoints of this cluster",
        (false, false) => "ready endpoints there",
    };
    CandidateView {
        cluster: one.cluster.to_string(),
        local: one.local,
        subset: one.subset.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        share: one.share_percent,
        ready: groups.iter().filter(|group| matches(&group.subset)).map(|group| group.ready).sum(),
        path,
        reason: reason.to_owned(),
        endpoints: endpoints.collect(),
    }
}
