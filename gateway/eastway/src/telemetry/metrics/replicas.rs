//! What gateways of one cluster hand over to each other.

use super::labels::{Direction, Reason};
use super::{Metrics, count_of, raise};

impl Metrics {
    /// How many gateways of this cluster are live.
    pub fn set_replicas(&self, live: usize) {
        self.replicas.set(count_of(live));
    }

    /// What was handed over between gateways of this cluster in one direction since our start.
    pub fn set_forwarded(&self, direction: &'static str, packets: u64, bytes: u64) {
        let label = Direction { direction };
        raise(&self.forwarded_packets.get(&label), packets);
        raise(&self.forwarded.get(&label), bytes);
    }

    /// Packets between gateways of this cluster that were dropped for this reason since our start.
    pub fn set_forward_dropped(&self, reason: &'static str, total: u64) {
        raise(&self.forward_dropped.get(&Reason { reason }), total);
    }
}
