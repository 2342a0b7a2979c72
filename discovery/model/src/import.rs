//! A service as it looks from here: what all clusters that export it say, merged by the rules of
//! the MCS API (KEP-1645).
//!
//! Where exports disagree the oldest wins, ties go to the smaller cluster name. Unlike KEP-1645 a
//! loser keeps its ports and endpoints: an export time is a claim, and a peer must not be able to
//! take a port away from others by claiming to be old. So connections are always routed by
//! (protocol, number) to every cluster that has that port; only names and settings are decided by
//! the winner. And a service that this cluster exports with a virtual address keeps it: a peer must
//! not be able to take it away from those who use it (invariant I6).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::endpoint::RemoteEndpoints;
use crate::name::{ClusterName, PortName, ServiceKey};
use crate::rules::route::{RouteTable, Wanted};
use crate::rules::{Rules, TrafficPolicy};
use crate::service::{
    EndpointGroup, InternalTrafficPolicy, IpFamily, PortNumber, Protocol, ServiceKind, ServicePort, ServiceRecord,
    SessionAffinity,
};
use crate::time::UnixMillis;

/// A service that at least one cluster exports, this one or a peer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Import {
    /// Namespace and name.
    pub key: ServiceKey,
    /// With a virtual address if this cluster exports it with one, else what the oldest export says.
    pub kind: ServiceKind,
    /// All ports of all clusters, each (protocol, number) once. A port without a name may be one
    /// whose name another cluster's port has won.
    pub ports: Vec<ServicePort>,
    /// Families in order of preference; empty if no cluster says.
    pub ip_families: Vec<IpFamily>,
    /// Stickiness.
    pub session_affinity: SessionAffinity,
    /// Kubernetes field of this name.
    pub internal_traffic_policy: InternalTrafficPolicy,
    /// Kubernetes field of this name.
    pub traffic_distribution: Option<Arc<str>>,
    /// Exported labels.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Exported annotations.
    pub annotations: BTreeMap<Arc<str>, Arc<str>>,
    /// When the oldest of the exports was made.
    pub exported_at: UnixMillis,
    /// The clusters that export it: this one first, then peers by name.
    pub parts: Vec<ImportPart>,
    /// What they disagree about.
    pub conflicts: Vec<Conflict>,
    /// How connections are shared out, if an operator said so.
    pub policy: Option<Arc<TrafficPolicy>>,
    /// The rules for its traffic, if there are any.
    #[serde(skip)]
    pub routes: Option<Arc<RouteTable>>,
    /// Parts of it that rules, its own or those of other services, lead to.
    #[serde(skip)]
    pub wanted: Option<Arc<BTreeSet<Wanted>>>,
}

/// What one cluster contributes to an import.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportPart {
    /// The peer; none: this cluster.
    pub cluster: Option<ClusterName>,
    /// What it exports.
    pub record: Arc<ServiceRecord>,
    /// The peer cannot be reached now; this is what it last said.
    pub stale: bool,
    /// Endpoint records, if we subscribed to them. Always empty for this cluster: see
    /// [`crate::store::Snapshot::local`].
    #[serde(skip_serializing_if = "RemoteEndpoints::is_empty")]
    pub endpoints: RemoteEndpoints,
}

impl ImportPart {
    /// Whether this cluster has the port: only then connections to it may go there.
    #[must_use]
    pub fn serves(&self, protocol: Protocol, number: PortNumber) -> bool {
        self.record.port(protocol, number).is_some()
    }

    /// How many endpoints it has, as far as it is known: by their records, else by what the export counts.
    #[must_use]
    pub fn size(&self) -> usize {
        if !self.endpoints.is_empty() {
            return self.endpoints.len();
        }
        let of = |group: &EndpointGroup| u64::from(group.ready) + u64::from(group.draining);
        usize::try_from(self.record.groups.iter().map(of).sum::<u64>()).unwrap_or(usize::MAX)
    }
}

impl Import {
    /// The port of this transport and number.
    #[must_use]
    pub fn port(&self, protocol: Protocol, number: PortNumber) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number && port.protocol == protocol)
    }

    /// The part of this cluster, `None` being the own one.
    #[must_use]
    pub fn part(&self, cluster: Option<&ClusterName>) -> Option<&ImportPart> {
        self.parts.iter().find(|part| part.cluster.as_ref() == cluster)
    }

    /// How many endpoints other clusters have.
    #[must_use]
    pub fn remote_size(&self) -> usize {
        let remote = self.parts.iter().filter(|part| part.cluster.is_some());
        remote.map(ImportPart::size).fold(0, usize::saturating_add)
    }
}

/// A disagreement between exports.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Conflict {
    /// What about.
    pub kind: ConflictKind,
    /// Whose word counts.
    pub winner: ClusterName,
    /// Whose does not, by name.
    pub losers: Vec<ClusterName>,
    /// Field, values and reason in one sentence.
    pub message: String,
}

/// What exports disagree about; the names are the condition reasons of the MCS API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub enum ConflictKind {
    /// A port of one name, or of one number, is defined differently.
    PortConflict,
    /// Headless here, with a virtual address there.
    TypeConflict,
    /// Sticky here, not there.
    SessionAffinityConflict,
    /// Sticky for different times.
    SessionAffinityConfigConflict,
    /// Exported labels differ.
    LabelsConflict,
    /// Exported annotations differ.
    AnnotationsConflict,
    /// `internalTrafficPolicy` differs.
    InternalTrafficPolicyConflict,
    /// `trafficDistribution` differs.
    TrafficDistributionConflict,
    /// A family has endpoints in some clusters only.
    IPFamilyConflict,
}

impl fmt::Display for ConflictKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One export while it is merged: `name` is the part's cluster, the own one included.
struct Export<'a> {
    name: &'a ClusterName,
    record: &'a ServiceRecord,
}

/// Merges the parts of one service; `None` if there is none. The result does not depend on the
/// order of `parts`.
pub(crate) fn merge(own: &ClusterName, key: &ServiceKey, mut parts: Vec<ImportPart>, rules: &Rules) -> Option<Import> {
    parts.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    let mut exports: Vec<Export<'_>> =
        parts.iter().map(|part| Export { name: part.cluster.as_ref().unwrap_or(own), record: &part.record }).collect();
    exports.sort_by_key(|export| (export.record.exported_at, export.name));
    let (oldest, younger) = exports.split_first()?;
    let winner = oldest.record;
    let mut conflicts = Conflicts::default();
    let ports = merge_ports(oldest, younger, &mut conflicts);
    let has_address = |export: &&Export<'_>| export.name == own && export.record.kind == ServiceKind::ClusterSetIp;
    let typed = exports.iter().find(has_address).unwrap_or(oldest);
    conflicts.of_kinds(typed, &exports);
    conflicts.of_settings(oldest, younger);
    let families = exports.iter().find(|export| !export.record.ip_families.is_empty());
    if let Some(families) = families {
        conflicts.of_families(families, &exports);
    }
    let mut found = conflicts.found;
    found.sort_by_key(|conflict| conflict.kind);
    Some(Import {
        key: key.clone(),
        kind: typed.record.kind,
        ports,
        ip_families: families.map(|export| export.record.ip_families.clone()).unwrap_or_default(),
        session_affinity: winner.session_affinity,
        internal_traffic_policy: winner.internal_traffic_policy,
        traffic_distribution: winner.traffic_distribution.clone(),
        labels: winner.labels.clone(),
        annotations: winner.annotations.clone(),
        exported_at: winner.exported_at,
        conflicts: found,
        policy: rules.traffic.get(key).cloned(),
        routes: rules.routes.table(key).cloned(),
        wanted: rules.routes.wanted(key).cloned(),
        parts,
    })
}

/// The union of all ports: each (protocol, number) once, with the name its oldest export gives it
/// unless an older port has that name.
fn merge_ports(oldest: &Export<'_>, younger: &[Export<'_>], conflicts: &mut Conflicts) -> Vec<ServicePort> {
    let mut ports: Vec<(ServicePort, &ClusterName)> =
        oldest.record.ports.iter().map(|port| (port.clone(), oldest.name)).collect();
    let mut by_number: BTreeMap<(Protocol, PortNumber), usize> = BTreeMap::new();
    let mut by_name: BTreeMap<Option<PortName>, usize> = BTreeMap::new();
    for (index, (port, _)) in ports.iter().enumerate() {
        by_number.entry((port.protocol, port.number)).or_insert(index);
        by_name.entry(port.name.clone()).or_insert(index);
    }
    for export in younger {
        for port in &export.record.ports {
            if let Some(index) = by_number.get(&(port.protocol, port.number)) {
                let Some((known, winner)) = ports.get(*index) else { continue };
                if known.name != port.name || known.app_protocol != port.app_protocol {
                    conflicts.port(winner, export.name, known, port);
                }
                continue;
            }
            let mut added = port.clone();
            match by_name.get(&port.name).and_then(|index| ports.get(*index)) {
                Some((known, winner)) => {
                    conflicts.port(winner, export.name, known, port);
                    added.name = None;
                }
                None => {
                    by_name.insert(port.name.clone(), ports.len());
                }
            }
            by_number.insert((port.protocol, port.number), ports.len());
            ports.push((added, export.name));
        }
    }
    ports.into_iter().map(|(port, _)| port).collect()
}

#[derive(Default)]
struct Conflicts {
    found: Vec<Conflict>,
}

impl Conflicts {
    /// Notes that `loser` disagrees with `winner`; one conflict per kind and winner. The message is
    /// that of the first loser.
    fn add(&mut self, kind: ConflictKind, winner: &ClusterName, loser: &ClusterName, message: impl FnOnce() -> String) {
        let known = self.found.iter_mut().find(|conflict| conflict.kind == kind && conflict.winner == *winner);
        let Some(known) = known else {
            let (winner, losers, message) = (winner.clone(), vec![loser.clone()], message());
            self.found.push(Conflict { kind, winner, losers, message });
            return;
        };
        if let Err(place) = known.losers.binary_search(loser) {
            known.losers.insert(place, loser.clone());
        }
    }

    fn port(&mut self, winner: &ClusterName, loser: &ClusterName, known: &ServicePort, port: &ServicePort) {
        self.add(ConflictKind::PortConflict, winner, loser, || {
            format!(
                "ports: {} in {winner} is {} in {loser}; {winner} exported first and names it, both stay reachable by number",
                Shown(known),
                Shown(port),
            )
        });
    }

    fn of_settings(&mut self, oldest: &Export<'_>, younger: &[Export<'_>]) {
        for export in younger {
            let (a, b) = (oldest.record, export.record);
            let mut differs = |kind, field: &str, a: String, b: String| {
                let (winner, loser) = (oldest.name, export.name);
                self.add(kind, winner, loser, || {
                    format!("{field}: {a} in {winner}, {b} in {loser}; {winner} exported first and wins")
                });
            };
            match (a.session_affinity, b.session_affinity) {
                (SessionAffinity::None, SessionAffinity::None) => {}
                (SessionAffinity::ClientIp { timeout: a }, SessionAffinity::ClientIp { timeout: b }) => {
                    if a != b {
                        let (a, b) = (format!("{} s", a.as_secs()), format!("{} s", b.as_secs()));
                        differs(ConflictKind::SessionAffinityConfigConflict, "sessionAffinityConfig", a, b);
                    }
                }
                (SessionAffinity::None, SessionAffinity::ClientIp { .. }) => {
                    differs(ConflictKind::SessionAffinityConflict, "sessionAffinity", "None".into(), "ClientIP".into());
                }
                (SessionAffinity::ClientIp { .. }, SessionAffinity::None) => {
                    differs(ConflictKind::SessionAffinityConflict, "sessionAffinity", "ClientIP".into(), "None".into());
                }
            }
            if a.labels != b.labels {
                let (a, b) = (format!("{:?}", a.labels), format!("{:?}", b.labels));
                differs(ConflictKind::LabelsConflict, "labels", a, b);
            }
            if a.annotations != b.annotations {
                let (a, b) = (format!("{} of them", a.annotations.len()), format!("{} of them", b.annotations.len()));
                differs(ConflictKind::AnnotationsConflict, "annotations", a, b);
            }
            if a.internal_traffic_policy != b.internal_traffic_policy {
                let (a, b) = (format!("{:?}", a.internal_traffic_policy), format!("{:?}", b.internal_traffic_policy));
                differs(ConflictKind::InternalTrafficPolicyConflict, "internalTrafficPolicy", a, b);
            }
            if a.traffic_distribution != b.traffic_distribution {
                let shown = |value: &Option<Arc<str>>| value.as_deref().unwrap_or("none").to_owned();
                let (a, b) = (shown(&a.traffic_distribution), shown(&b.traffic_distribution));
                differs(ConflictKind::TrafficDistributionConflict, "trafficDistribution", a, b);
            }
        }
    }

    fn of_kinds(&mut self, winner: &Export<'_>, exports: &[Export<'_>]) {
        let kind = winner.record.kind;
        let is_older =
            |export: &Export<'_>| (export.record.exported_at, export.name) < (winner.record.exported_at, winner.name);
        let why = if exports.iter().any(is_older) {
            "is this cluster, where the address is in use"
        } else {
            "exported first and wins"
        };
        for export in exports.iter().filter(|export| export.record.kind != kind) {
            let (winner, loser, other) = (winner.name, export.name, export.record.kind);
            self.add(ConflictKind::TypeConflict, winner, loser, || {
                format!("type: {kind} in {winner}, {other} in {loser}; {winner} {why}")
            });
        }
    }

    /// Exports that do not say their families have no word in this.
    fn of_families(&mut self, winner: &Export<'_>, exports: &[Export<'_>]) {
        let set = |record: &ServiceRecord| record.ip_families.iter().copied().collect::<BTreeSet<_>>();
        let expected = set(winner.record);
        for export in exports.iter().filter(|export| !export.record.ip_families.is_empty()) {
            let families = set(export.record);
            if families != expected {
                let (winner, loser) = (winner.name, export.name);
                self.add(ConflictKind::IPFamilyConflict, winner, loser, || {
                    let (expected, families) = (listed(&expected), listed(&families));
                    format!(
                        "ipFamilies: {expected} in {winner}, {families} in {loser}; {winner} exported first and wins"
                    )
                });
            }
        }
    }
}

fn listed<T: fmt::Display>(set: &BTreeSet<T>) -> String {
    set.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

struct Shown<'a>(&'a ServicePort);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServicePort { name, number, protocol, app_protocol } = self.0;
        let name = name.as_ref().map_or("(unnamed)", PortName::as_str);
        write!(f, "{name} {number}/{protocol}")?;
        app_protocol.as_ref().map_or(Ok(()), |protocol| write!(f, " {protocol}"))
    }
}
