//! Families of series whose number is bounded, whoever chooses the label values.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Value of a label that stands for all values above the limit.
pub(super) const OTHER: &str = "other";

/// Labels of one series.
pub(super) trait Labels: Clone + Eq + Hash + Debug + EncodeLabelSet + Send + Sync + 'static {
    /// The peer whose doings create series with these labels: it gets a share of the family, and its series
    /// go when it is removed. `None`: our own doings.
    fn owner(&self) -> Option<&Arc<str>>;

    /// The same labels with every value that is not from a fixed set replaced by [`OTHER`].
    fn overflow(&self) -> Self;
}

/// A family of at most `total` series, of which one peer can create `per_owner`. What comes later is
/// counted under [`Labels::overflow`]: numbers stay right in sum, and no label is ever lost silently.
pub(super) struct Family<L, M> {
    shared: Arc<Shared<L, M>>,
}

struct Shared<L, M> {
    series: RwLock<Series<L, M>>,
    total: usize,
    per_owner: usize,
    overflowed: Counter,
}

struct Series<L, M> {
    by_labels: HashMap<L, M>,
    by_owner: HashMap<Arc<str>, usize>,
}

impl<L, M> Clone for Family<L, M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<L, M> Debug for Family<L, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family").field("total", &self.shared.total).finish_non_exhaustive()
    }
}

impl<L: Labels, M: Clone + Default> Family<L, M> {
    /// An empty family; `overflowed` counts lookups that ended in the overflow series.
    pub(super) fn new(total: usize, per_owner: usize, overflowed: Counter) -> Self {
        let series = RwLock::new(Series { by_labels: HashMap::new(), by_owner: HashMap::new() });
        Self { shared: Arc::new(Shared { series, total, per_owner, overflowed }) }
    }

    /// The series with these labels, or the overflow series. A clone counts into the same series.
    pub(super) fn get(&self, labels: &L) -> M {
        {
            let series = self.shared.series.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(metric) = series.by_labels.get(labels) {
                return metric.clone();
            }
        }
        let mut series = self.shared.series.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(metric) = series.by_labels.get(labels) {
            return metric.clone();
        }
        let owned = labels.owner().and_then(|owner| series.by_owner.get(owner)).copied().unwrap_or(0);
        if series.by_labels.len() >= self.shared.total || owned >= self.shared.per_owner {
            self.shared.overflowed.inc();
            return series.by_labels.entry(labels.overflow()).or_default().clone();
        }
        if let Some(owner) = labels.owner() {
            *series.by_owner.entry(Arc::clone(owner)).or_default() += 1;
        }
        series.by_labels.entry(labels.clone()).or_default().clone()
    }

    /// Drops the series of a removed peer. Counters still held elsewhere go on counting, unseen.
    pub(super) fn forget_owner(&self, owner: &str) {
        let mut series = self.shared.series.write().unwrap_or_else(PoisonError::into_inner);
        series.by_owner.remove(owner);
        series.by_labels.retain(|labels, _| labels.owner().is_none_or(|name| **name != *owner));
    }

    /// Calls `visit` with each series.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&L, &M) -> fmt::Result) -> fmt::Result {
        let series = self.shared.series.read().unwrap_or_else(PoisonError::into_inner);
        series.by_labels.iter().try_for_each(|(labels, metric)| visit(labels, metric))
    }
}

impl<L: Labels, M: Clone + Default + EncodeMetric + TypedMetric> EncodeMetric for Family<L, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        self.for_each(|labels, metric| metric.encode(encoder.encode_family(labels)?))
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }

    fn is_empty(&self) -> bool {
        self.shared.series.read().unwrap_or_else(PoisonError::into_inner).by_labels.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
    struct Test {
        peer: Arc<str>,
        name: Arc<str>,
    }

    impl Labels for Test {
        fn owner(&self) -> Option<&Arc<str>> {
            Some(&self.peer)
        }

        fn overflow(&self) -> Self {
            Self { peer: Arc::clone(&self.peer), name: Arc::from(OTHER) }
        }
    }

    fn labels(peer: &str, name: &str) -> Test {
        Test { peer: Arc::from(peer), name: Arc::from(name) }
    }

    #[test]
    fn p11_one_peer_cannot_take_the_whole_family() {
        let overflowed = Counter::default();
        let family: Family<Test, Counter> = Family::new(100, 10, overflowed.clone());
        for number in 0..1_000 {
            family.get(&labels("hostile", &number.to_string())).inc();
        }
        family.get(&labels("honest", "a")).inc();
        assert_eq!(overflowed.get(), 990);
        assert_eq!(family.get(&labels("hostile", OTHER)).get(), 990);
        assert_eq!(family.get(&labels("honest", "a")).get(), 1);

        family.forget_owner("hostile");
        let mut left = Vec::new();
        family
            .for_each(|labels, _| {
                left.push(labels.peer.to_string());
                Ok(())
            })
            .unwrap();
        assert_eq!(left, ["honest"]);
    }
}
