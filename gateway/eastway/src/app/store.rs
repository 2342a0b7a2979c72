//! The one task that writes the store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use eastway_model::rules::Rules;
use eastway_model::store::Writer;
use eastway_model::{Change, ClusterName, Label};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::app::clock::Clock;

/// Inputs that wait for the writer. A sender that finds it full waits: a registry is slowed down,
/// and a peer's session stops reading, which its quota turns into back pressure.
const QUEUE: usize = 1024;
/// Inputs applied in one go, and so published as one snapshot.
const BATCH: usize = 256;

/// Something the writer is to take in.
#[derive(Debug)]
pub enum Input {
    /// Changes of registries and peers.
    Changes(Vec<Change>),
    /// New rules from the configuration.
    Rules(Arc<Rules>),
    /// The registries that make up local sync.
    Registries(Vec<Label>),
}

/// Where inputs are sent.
#[derive(Clone, Debug)]
pub struct StoreSender {
    inputs: mpsc::Sender<Input>,
    withdrawn: watch::Receiver<BTreeMap<ClusterName, u64>>,
}

impl StoreSender {
    /// Hands an input over; `false` when the process is stopping.
    pub async fn send(&self, input: Input) -> bool {
        self.inputs.send(input).await.is_ok()
    }

    /// Hands changes over; `false` when the process is stopping.
    pub async fn changes(&self, changes: Vec<Change>) -> bool {
        changes.is_empty() || self.send(Input::Changes(changes)).await
    }

    /// Follows the withdrawals of a peer's services from now on.
    #[must_use]
    pub fn withdrawals(&self, peer: &ClusterName) -> Withdrawals {
        let latest = self.withdrawn.clone();
        let seen = latest.borrow().get(peer).copied().unwrap_or_default();
        Withdrawals { peer: peer.clone(), seen, latest }
    }
}

/// Tells when the store withdrew what a peer exported. The store decides, the importer follows: what
/// it holds of the peer goes too.
#[derive(Clone, Debug)]
pub struct Withdrawals {
    peer: ClusterName,
    seen: u64,
    latest: watch::Receiver<BTreeMap<ClusterName, u64>>,
}

impl Withdrawals {
    /// Waits for the next one. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) {
        let Self { peer, seen, latest } = self;
        let newer = latest.wait_for(|latest| latest.get(peer).is_some_and(|number| number > seen)).await;
        if let Some(number) = newer.ok().and_then(|latest| latest.get(peer).copied()) {
            *seen = number;
            return;
        }
        // The writer is gone: the process stops, and whoever waits here with it.
        std::future::pending::<()>().await;
    }
}

/// The writer's end of the queue.
#[derive(Debug)]
pub struct Inputs {
    inputs: mpsc::Receiver<Input>,
    /// Number of the last withdrawal of each peer; all withdrawals are counted in one row.
    withdrawn: watch::Sender<BTreeMap<ClusterName, u64>>,
}

/// The queue to the writer.
#[must_use]
pub fn queue() -> (StoreSender, Inputs) {
    let (sender, inputs) = mpsc::channel(QUEUE);
    let (withdrawn, latest) = watch::channel(BTreeMap::new());
    (StoreSender { inputs: sender, withdrawn: latest }, Inputs { inputs, withdrawn })
}

/// Applies inputs until `stop`.
pub async fn run(mut writer: Writer, mut inputs: Inputs, clock: Clock, stop: CancellationToken) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut withdrawals = 0;
    loop {
        let expiry = writer.next_expiry().map(|at| clock.steady_instant(at));
        let idle = expiry.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            () = stop.cancelled() => return,
            received = inputs.inputs.recv_many(&mut batch, BATCH) => if received == 0 { return },
            () = sleep_until(idle) => {}
        }
        apply(&mut writer, &mut batch, clock);
        for peer in writer.expire(clock.steady()) {
            withdrawals += 1;
            inputs.withdrawn.send_modify(|withdrawn| {
                // Peers that were removed do not come again.
                withdrawn.retain(|peer, _| writer.snapshot().rules().peers.contains_key(peer));
                withdrawn.insert(peer, withdrawals);
            });
        }
    }
}

fn apply(writer: &mut Writer, batch: &mut Vec<Input>, clock: Clock) {
    let mut changes = Vec::new();
    for input in batch.drain(..) {
        match input {
            Input::Changes(more) => changes.extend(more),
            Input::Rules(rules) => {
                // Rules decide how records are taken in: what came before them is applied first.
                writer.apply(std::mem::take(&mut changes), clock.steady());
                writer.set_rules(rules);
            }
            Input::Registries(names) => writer.await_registries(names),
        }
    }
    if !changes.is_empty() {
        writer.apply(changes, clock.steady());
    }
}
