//! The engine behind routes and explanations: which cluster and subset gets which share.

use std::sync::Arc;

use super::{Candidate, RouteError, RouteRequest, any_subset};
use crate::endpoint::Subset;
use crate::import::{Import, ImportPart};
use crate::name::ClusterName;
use crate::rules::route::{Entry, Target};
use crate::rules::{ClusterRef, Locality, MAX_WEIGHT, Split};
use crate::service::ServicePort;

/// A weight of 1 in a policy, in the units of [`Share::weight`]. Leaves room below for dividing it
/// among clusters, and above for 32 splits of a million.
const UNIT: u64 = 1 << 24;

/// A part of the connections: an index into [`Plan::rows`] and one into the import's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) row: usize,
    pub(crate) part: usize,
    pub(crate) weight: u64,
}

/// One split, or what stands for it if there is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    pub(crate) weight: u32,
    pub(crate) pin: Option<&'a ClusterRef>,
    pub(crate) subset: &'a Arc<Subset>,
}

/// What one cluster has for one row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Standing {
    /// Left out by the request, or tried before.
    pub(crate) excluded: bool,
    /// The cluster has the port.
    pub(crate) port: bool,
    /// It has endpoints with the labels, ready or not.
    pub(crate) subset: bool,
    /// It cannot be reached.
    pub(crate) stale: bool,
    /// Weight of its ready endpoints, and of those in the client's zone.
    pub(crate) ready: u64,
    pub(crate) near: u64,
    /// How many are ready.
    pub(crate) ready_endpoints: u64,
    /// How many drain.
    pub(crate) draining: u64,
    /// Others would do, but take mutual TLS only.
    pub(crate) tls_required: bool,
}

/// What is good enough: tried in this order, until something is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Ready endpoints of clusters that are up.
    Ready,
    /// Draining ones too.
    Draining,
    /// Clusters that are down too.
    Stale,
}

const LEVELS: [Level; 3] = [Level::Ready, Level::Draining, Level::Stale];

impl Standing {
    /// How much this is worth at a level; 0: nothing.
    pub(crate) fn strength(&self, level: Level) -> u64 {
        if self.excluded || !self.port || (self.stale && level < Level::Stale) {
            return 0;
        }
        match level {
            Level::Ready => self.ready,
            Level::Draining | Level::Stale => self.ready.max(self.draining),
        }
    }
}

/// One decision in the making.
pub(crate) struct Plan<'a> {
    own: &'a ClusterName,
    import: &'a Import,
    /// Splits first; then, if a failover order is given, one row for any endpoint at all, which
    /// only the last resort of that order uses.
    rows: Vec<Row<'a>>,
    splits: usize,
    failover: &'a [ClusterRef],
    locality: Locality,
    /// `rows` times parts.
    table: Vec<Standing>,
    shares: Vec<Share>,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(
        own: &'a ClusterName,
        import: &'a Import,
        request: &RouteRequest<'a>,
    ) -> Result<Self, RouteError> {
        let port = import.port(request.protocol, request.port).ok_or(RouteError::UnknownPort)?;
        let policy = import.policy.as_deref();
        let (rows, splits) = rows(import, port, request);
        let mut plan = Self {
            own,
            import,
            splits,
            failover: policy.map_or(&[], |policy| &policy.failover),
            locality: policy.map_or(Locality::PreferLocal, |policy| policy.locality),
            table: Vec::with_capacity(rows.len() * import.parts.len()),
            shares: Vec::with_capacity(rows.len() * import.parts.len()),
            rows,
        };
        let mut reachable = false;
        for row in &plan.rows {
            for part in &import.parts {
                let wanted = request.cluster.is_none_or(|cluster| plan.name(part) == cluster);
                reachable |= wanted;
                plan.table.push(Standing { excluded: !wanted, ..standing(part, row.subset, request) });
            }
        }
        if reachable { Ok(plan) } else { Err(RouteError::UnknownCluster) }
    }

    /// Computes the shares anew, at the best level that has any.
    pub(crate) fn compute(&mut self) -> Level {
        for level in LEVELS {
            self.share_out(level);
            if !self.shares.is_empty() {
                return level;
            }
        }
        Level::Stale
    }

    /// The shares last computed.
    pub(crate) fn shares(&self) -> &[Share] {
        &self.shares
    }

    /// Whether there would be more for a client that speaks TLS.
    pub(crate) fn wants_tls(&self) -> bool {
        self.table.iter().any(|standing| standing.tls_required && standing.port && !standing.excluded)
    }

    /// Takes what was tried out of all further shares.
    pub(crate) fn exclude(&mut self, share: Share) {
        let Some(tried) = self.rows.get(share.row).map(|row| row.subset) else { return };
        let parts = self.import.parts.len();
        for (row, standings) in self.rows.iter().zip(self.table.chunks_mut(parts)) {
            if (Arc::ptr_eq(row.subset, tried) || row.subset == tried)
                && let Some(standing) = standings.get_mut(share.part)
            {
                standing.excluded = true;
            }
        }
    }

    pub(crate) fn candidate(&self, share: Share) -> Candidate {
        let part = self.import.parts.get(share.part);
        let row = self.rows.get(share.row);
        Candidate {
            cluster: part.and_then(|part| part.cluster.clone()),
            subset: Arc::clone(row.map_or(any_subset(), |row| row.subset)),
            endpoint: None,
            stale: part.is_some_and(|part| part.stale),
        }
    }

    /// Cluster, labels and standing of a share.
    pub(crate) fn detail(&self, share: Share) -> (&ClusterName, &Subset, Standing) {
        let (cluster, subset) = self.names(share);
        (cluster, subset, self.standing(share.row, share.part))
    }

    /// Whether a failover order is given that the part is not in.
    pub(crate) fn left_out_of_failover(&self, part: &ImportPart) -> bool {
        part.cluster.is_some()
            && !self.failover.is_empty()
            && !self.failover.iter().any(|cluster| self.is(cluster, part))
    }

    /// Cluster and labels of a share.
    pub(crate) fn names(&self, share: Share) -> (&ClusterName, &Subset) {
        let cluster = self.import.parts.get(share.part).map_or(self.own, |part| self.name(part));
        (cluster, self.rows.get(share.row).map_or(any_subset(), |row| row.subset))
    }

    /// All rows with the standing of each part, for explanations.
    pub(crate) fn table(&self) -> impl Iterator<Item = (&Row<'a>, &'a ImportPart, &Standing)> {
        let rows = self.rows.iter().take(self.splits).zip(self.table.chunks(self.import.parts.len()));
        rows.flat_map(|(row, standings)| {
            let parts = self.import.parts.iter().zip(standings);
            parts.map(move |(part, standing)| (row, part, standing))
        })
    }

    /// Every peer with every row's labels.
    pub(crate) fn remote(&self) -> impl Iterator<Item = (&'a ClusterName, &'a Arc<Subset>)> {
        let import = self.import;
        let subsets = self.rows.iter().map(|row| row.subset);
        subsets
            .flat_map(move |subset| import.parts.iter().filter_map(move |part| Some((part.cluster.as_ref()?, subset))))
    }

    /// Whether a row may be served by a part.
    pub(crate) fn fits(&self, row: &Row<'_>, part: &ImportPart) -> bool {
        row.pin.is_none_or(|pin| self.is(pin, part))
    }

    fn is(&self, cluster: &ClusterRef, part: &ImportPart) -> bool {
        match cluster {
            ClusterRef::Local => part.cluster.is_none(),
            ClusterRef::Named(name) => self.name(part) == name,
        }
    }

    fn name<'b>(&'b self, part: &'b ImportPart) -> &'b ClusterName {
        part.cluster.as_ref().unwrap_or(self.own)
    }

    fn standing(&self, row: usize, part: usize) -> Standing {
        self.table.get(row * self.import.parts.len() + part).copied().unwrap_or_default()
    }

    fn strength(&self, row: usize, part: usize, level: Level) -> u64 {
        self.standing(row, part).strength(level)
    }

    fn share_out(&mut self, level: Level) {
        self.shares.clear();
        let mut homeless = false;
        for index in 0..self.splits {
            let Some(row) = self.rows.get(index).copied() else { break };
            let weight = u64::from(row.weight) * UNIT;
            homeless |= weight > 0 && !self.share_row(index, row.pin, weight, level);
        }
        if !homeless {
            return;
        }
        // Failing over must not depend on what failed over before: only splits that found a place
        // of their own take part.
        let settled = self.shares.len();
        for index in 0..self.splits {
            let Some(row) = self.rows.get(index).copied() else { break };
            let settled_itself = self.shares.iter().take(settled).any(|share| share.row == index);
            if row.weight > 0 && !settled_itself {
                self.fail_over(index, u64::from(row.weight) * UNIT, settled, level);
            }
        }
    }

    /// Shares `weight` out among the clusters that can serve a row. False: there is none.
    fn share_row(&mut self, row: usize, pin: Option<&ClusterRef>, weight: u64, level: Level) -> bool {
        if let Some(pin) = pin {
            return self.give_first(row, std::slice::from_ref(pin), weight, level);
        }
        let strength = |plan: &Self, part: usize| plan.strength(row, part, level);
        if self.locality == Locality::PreferLocal {
            if self.give_first(row, &[ClusterRef::Local], weight, level) {
                return true;
            }
            if !self.failover.is_empty() {
                return self.give_first(row, self.failover, weight, level);
            }
            let near = |plan: &Self, part: usize| strength(plan, part).min(plan.standing(row, part).near);
            return self.divide(row, weight, near) || self.divide(row, weight, strength);
        }
        self.divide(row, weight, strength)
    }

    /// Gives all of `weight` to the first of `clusters` that can serve the row. False: none can.
    fn give_first(&mut self, row: usize, clusters: &[ClusterRef], weight: u64, level: Level) -> bool {
        let able = |part: &usize| self.strength(row, *part, level) > 0;
        let part = clusters.iter().filter_map(|cluster| self.place(cluster)).find(able);
        self.shares.extend(part.map(|part| Share { row, part, weight }));
        part.is_some()
    }

    fn place(&self, cluster: &ClusterRef) -> Option<usize> {
        self.import.parts.iter().position(|part| self.is(cluster, part))
    }

    /// Divides `weight` among the parts in proportion to their strength.
    fn divide(&mut self, row: usize, weight: u64, strength: impl Fn(&Self, usize) -> u64) -> bool {
        let parts = self.import.parts.len();
        let total: u128 = (0..parts).map(|part| u128::from(strength(self, part))).sum();
        if total == 0 {
            return false;
        }
        for part in 0..parts {
            let portion = u128::from(strength(self, part));
            if portion > 0 {
                // At least 1, so that a cluster that has endpoints is never left out by rounding.
                let weight = u64::try_from(u128::from(weight) * portion / total).unwrap_or(weight).max(1);
                self.shares.push(Share { row, part, weight });
            }
        }
        true
    }

    /// Finds a place for the share of a row that has no endpoints where it should.
    fn fail_over(&mut self, row: usize, weight: u64, settled: usize, level: Level) {
        if self.failover.is_empty() {
            // The same labels in any cluster, then the other splits.
            if self.share_row(row, None, weight, level) {
                return;
            }
        } else if self.fail_over_in_order(row, weight, level) {
            return;
        }
        let total: u128 = self.shares.iter().take(settled).map(|share| u128::from(share.weight)).sum();
        for index in 0..settled {
            let Some(share) = self.shares.get_mut(index) else { break };
            let more = u128::from(weight) * u128::from(share.weight) / total.max(1);
            share.weight = share.weight.saturating_add(u64::try_from(more).unwrap_or(0));
        }
    }

    /// The clusters of the failover order: first one with the same labels, then one with another
    /// split's, then one with any endpoint. False: there is none.
    fn fail_over_in_order(&mut self, row: usize, weight: u64, level: Level) -> bool {
        if self.give_first(row, self.failover, weight, level) {
            return true;
        }
        for part in self.failover.iter().filter_map(|cluster| self.place(cluster)) {
            let weights = |other: usize| self.admitted_weight(other, part, level);
            let total: u64 = (0..self.splits).map(weights).sum();
            if total == 0 {
                continue;
            }
            for other in 0..self.splits {
                let portion = u128::from(self.admitted_weight(other, part, level));
                if portion > 0 {
                    let weight = u64::try_from(u128::from(weight) * portion / u128::from(total)).unwrap_or(weight);
                    self.shares.push(Share { row: other, part, weight: weight.max(1) });
                }
            }
            return true;
        }
        // The row for any endpoint follows the splits, if there is one.
        self.give_first(self.splits, self.failover, weight, level)
    }

    /// The weight of a split that a cluster can serve and is meant to; 0: it cannot, or is not.
    fn admitted_weight(&self, row: usize, part: usize, level: Level) -> u64 {
        let (Some(split), Some(cluster)) = (self.rows.get(row), self.import.parts.get(part)) else { return 0 };
        let admitted = self.fits(split, cluster) && self.strength(row, part, level) > 0;
        if admitted { u64::from(split.weight) } else { 0 }
    }
}

/// The shares that a request goes by, and how many they are; a row for any endpoint may follow. They are the splits of
/// the traffic policy, else the backends of the rule for everything that comes to this port.
fn rows<'a>(import: &'a Import, port: &ServicePort, request: &RouteRequest<'a>) -> (Vec<Row<'a>>, usize) {
    let one = |subset| vec![Row { weight: 1, pin: None, subset }];
    if let Some(subset) = request.subset {
        return (one(subset), 1);
    }
    let policy = import.policy.as_deref();
    let mut rows: Vec<Row<'a>> = match by_rule(import, port) {
        None => policy.map(|policy| policy.split.as_slice()).unwrap_or_default().iter().map(Row::of_split).collect(),
        Some(entry) => entry.weighted().filter_map(|(target, weight)| Some(Row::of_target(target?, weight))).collect(),
    };
    if rows.is_empty() {
        return (one(any_subset()), 1);
    }
    let splits = rows.len();
    if policy.is_some_and(|policy| !policy.failover.is_empty()) {
        rows.push(Row { weight: 0, pin: None, subset: any_subset() });
    }
    (rows, splits)
}

/// The rule whose weights count for connections to this port: a split of the traffic policy is asked first.
pub(crate) fn by_rule<'a>(import: &'a Import, port: &ServicePort) -> Option<&'a Entry> {
    let has_split = import.policy.as_ref().is_some_and(|policy| !policy.split.is_empty());
    import.routes.as_deref().filter(|_| !has_split)?.for_addresses(&import.key, port)
}

impl<'a> Row<'a> {
    fn of_split(split: &'a Split) -> Self {
        Self { weight: split.weight, pin: split.cluster.as_ref(), subset: &split.subset }
    }

    fn of_target(target: &'a Target, weight: u32) -> Self {
        Self { weight, pin: target.share.cluster.as_ref(), subset: &target.share.subset }
    }
}

fn standing(part: &ImportPart, subset: &Subset, request: &RouteRequest<'_>) -> Standing {
    let mut standing =
        Standing { port: part.serves(request.protocol, request.port), stale: part.stale, ..Standing::default() };
    for group in &part.record.groups {
        if !group.has(subset) {
            continue;
        }
        standing.subset = true;
        if request.plain && group.tls.refuses_plain() {
            standing.tls_required |= group.ready > 0 || group.draining > 0;
            continue;
        }
        standing.draining = standing.draining.saturating_add(u64::from(group.draining));
        if group.ready > 0 {
            // A peer's sum of weights is a claim: no more than its endpoints could have.
            let ready = u64::from(group.ready);
            let weight = group.weight.clamp(ready, ready.saturating_mul(u64::from(MAX_WEIGHT)));
            standing.ready_endpoints = standing.ready_endpoints.saturating_add(ready);
            standing.ready = standing.ready.saturating_add(weight);
            if request.zone.is_some() && group.zone.as_deref() == request.zone {
                standing.near = standing.near.saturating_add(weight);
            }
        }
    }
    standing
}
