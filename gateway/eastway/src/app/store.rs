//! The one task that writes the store.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use eastway_model::rules::Rules;
use eastway_model::store::Writer;
use eastway_model::{Change, Label, UnixMillis};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

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
pub struct StoreSender(mpsc::Sender<Input>);

impl StoreSender {
    /// Hands an input over; `false` when the process is stopping.
    pub async fn send(&self, input: Input) -> bool {
        self.0.send(input).await.is_ok()
    }

    /// Hands changes over; `false` when the process is stopping.
    pub async fn changes(&self, changes: Vec<Change>) -> bool {
        changes.is_empty() || self.send(Input::Changes(changes)).await
    }
}

/// The queue to the writer, and the task that applies it.
#[must_use]
pub fn queue() -> (StoreSender, mpsc::Receiver<Input>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (StoreSender(sender), receiver)
}

/// Applies inputs until `stop`.
pub async fn run(mut writer: Writer, mut inputs: mpsc::Receiver<Input>, stop: CancellationToken) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let expiry = writer.next_expiry().map(|at| Instant::now() + at.since(now()));
        let idle = expiry.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            () = stop.cancelled() => return,
            received = inputs.recv_many(&mut batch, BATCH) => if received == 0 { return },
            () = sleep_until(idle) => {}
        }
        apply(&mut writer, &mut batch);
        if expiry.is_some() {
            writer.expire(now());
        }
    }
}

fn apply(writer: &mut Writer, batch: &mut Vec<Input>) {
    let mut changes = Vec::new();
    for input in batch.drain(..) {
        match input {
            Input::Changes(more) => changes.extend(more),
            Input::Rules(rules) => {
                // Rules decide how records are taken in: what came before them is applied first.
                writer.apply(std::mem::take(&mut changes), now());
                writer.set_rules(rules);
            }
            Input::Registries(names) => writer.await_registries(names),
        }
    }
    if !changes.is_empty() {
        writer.apply(changes, now());
    }
}

/// The wall clock.
#[must_use]
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
