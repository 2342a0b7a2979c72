//! The flows of a link.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::time::Instant;

use super::{FlowId, FlowShared, FlowSink, lock};
use crate::link::LinkShared;
use crate::metrics::PacketLoss;
use crate::transport::Side;

/// Packets that overtook the header of their flow: so many of a link are kept, for so long.
const EARLY: usize = 16;
const EARLY_FOR: Duration = Duration::from_secs(1);

/// The flows of a link, by id.
#[derive(Default)]
pub(crate) struct Flows {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    live: HashMap<FlowId, Arc<FlowShared>>,
    /// How many were opened from here.
    opened: u64,
    early: VecDeque<(Instant, FlowId, Bytes)>,
}

impl Flows {
    /// Flows now.
    pub(crate) fn len(&self) -> usize {
        lock(&self.table).live.len()
    }

    /// Gives each of `datagrams` to its flow, those that came together for one together.
    pub(crate) fn deliver(&self, link: &LinkShared, datagrams: &mut Vec<Bytes>, now: Instant) {
        link.counters().packets_received(datagrams.len());
        let mut current: Option<Arc<FlowShared>> = None;
        let mut run = Vec::with_capacity(datagrams.len());
        for mut packet in datagrams.drain(..) {
            let Some((id, length)) = FlowId::decode(&packet) else {
                link.counters().packets_lost(PacketLoss::UnknownFlow, 1);
                continue;
            };
            packet.advance(length);
            if current.as_ref().is_none_or(|flow| flow.id != id) {
                hand_over(current.take(), &mut run);
                current = self.find(link, id, &packet, now);
            }
            if current.is_some() {
                run.push(packet);
            }
        }
        hand_over(current, &mut run);
    }

    /// The flow with this id. Of one that may be about to begin the packet is kept.
    fn find(&self, link: &LinkShared, id: FlowId, packet: &Bytes, now: Instant) -> Option<Arc<FlowShared>> {
        let mut table = lock(&self.table);
        let found = table.live.get(&id).cloned();
        if found.is_none() {
            if id.opener() == link.identity.side {
                link.counters().packets_lost(PacketLoss::UnknownFlow, 1);
            } else {
                if table.early.len() >= EARLY {
                    table.early.pop_front();
                    link.counters().packets_lost(PacketLoss::Early, 1);
                }
                // A copy: a small one must not keep the whole packet of the link in memory.
                table.early.push_back((now, id, Bytes::copy_from_slice(packet)));
            }
        }
        found
    }

    fn enter(&self, link: &Arc<LinkShared>, id: FlowId, now: Instant) -> Option<Arc<FlowShared>> {
        let mut table = lock(&self.table);
        if table.live.contains_key(&id) {
            return None;
        }
        let flow = FlowShared::new(id, link, id.opener() != link.identity.side);
        table.live.insert(id, Arc::clone(&flow));
        let early = std::mem::take(&mut table.early);
        let (fresh, stale): (VecDeque<_>, VecDeque<_>) =
            early.into_iter().partition(|(came, ..)| now.saturating_duration_since(*came) < EARLY_FOR);
        let (ours, others): (VecDeque<_>, VecDeque<_>) = fresh.into_iter().partition(|(_, of, _)| *of == id);
        table.early = others;
        drop(table);
        if !stale.is_empty() {
            link.counters().packets_lost(PacketLoss::Early, stale.len());
        }
        for (.., packet) in ours {
            flow.deliver(&[packet]);
        }
        Some(flow)
    }

    fn leave(&self, id: FlowId) {
        let mut table = lock(&self.table);
        table.live.remove(&id);
        if table.live.is_empty() {
            // A burst of flows must not leave its memory behind.
            table.live.shrink_to(64);
        }
    }
}

fn hand_over(flow: Option<Arc<FlowShared>>, run: &mut Vec<Bytes>) {
    if let Some(flow) = flow {
        flow.deliver(run);
    }
    run.clear();
}

/// The place of a flow among those of its link, until it is dropped.
pub(crate) struct Slot(Arc<FlowShared>);

impl Slot {
    /// For a flow that is opened here. `None`: the link has had all that it can have.
    pub(crate) fn open(link: &Arc<LinkShared>) -> Option<Self> {
        let number = {
            let mut table = lock(&link.flows.table);
            table.opened += 1;
            table.opened
        };
        let id = FlowId::numbered(number, link.identity.side)?;
        link.flows.enter(link, id, Instant::now()).map(Self)
    }

    /// For a flow that the other side opens. `None`: the id is not one of its own, or of another flow.
    pub(crate) fn serve(link: &Arc<LinkShared>, id: FlowId) -> Option<Self> {
        let other = match link.identity.side {
            Side::Dialler => Side::Acceptor,
            Side::Acceptor => Side::Dialler,
        };
        if id.opener() != other {
            return None;
        }
        link.flows.enter(link, id, Instant::now()).map(Self)
    }

    /// From now on `sink` takes its packets.
    pub(crate) fn attach(&self, sink: Arc<dyn FlowSink>) {
        self.0.attach(sink);
    }

    pub(super) fn shared(&self) -> &Arc<FlowShared> {
        &self.0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.link.flows.leave(self.0.id);
    }
}
