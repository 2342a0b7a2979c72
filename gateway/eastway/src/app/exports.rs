//! Serves the federation sessions that peers open: what this cluster exports to each of them.

use std::sync::Arc;

use dashmap::DashMap;
use eastway_federation::codec::{Decoder, FrameError, encode};
use eastway_federation::{ExportAction, ExportSession, Limits};
use eastway_model::store::Reader;
use eastway_model::{ClusterName, Label};
use eastway_proto::federation::v1 as wire;
use eastway_tunnel::{AcceptedStream, LinkInfo, RecvHalf, ReplicaId, ResetCode, SendHalf, StreamError};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::app::clock::Clock;
use crate::telemetry::{Refusal, Telemetry};

/// What all export sessions share.
pub struct Exports {
    cluster: ClusterName,
    /// One process of one replica.
    epoch: u64,
    limits: Limits,
    reader: Reader,
    clock: Clock,
    telemetry: Telemetry,
    stop: CancellationToken,
    /// The session of each importing replica: a newer one ends the older (design: federation).
    active: DashMap<(Arc<str>, ReplicaId), CancellationToken>,
}

#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error("the stream ended: {0}")]
    Stream(#[from] StreamError),
    #[error("the importer ended the stream")]
    Finished,
    #[error("bad frame: {0}")]
    Frame(#[from] FrameError),
    #[error("closed: {0}")]
    Closed(String),
    #[error("a newer session took over")]
    Superseded,
}

impl Exports {
    /// Exports what `reader` shows; sessions end with `stop`.
    #[must_use]
    pub fn new(
        reader: Reader,
        limits: Limits,
        epoch: u64,
        clock: Clock,
        telemetry: Telemetry,
        stop: CancellationToken,
    ) -> Self {
        let cluster = reader.load().cluster().clone();
        Self { cluster, epoch, limits, reader, clock, telemetry, stop, active: DashMap::new() }
    }

    /// Serves one session until it ends.
    pub async fn serve(&self, link: &LinkInfo, stream: AcceptedStream) {
        let Ok(peer) = Label::parse(&link.peer) else {
            stream.reject(ResetCode::BadName);
            return;
        };
        let Ok(accepted) = stream.accept().await else { return };
        let key = (link.peer.clone(), link.replica);
        let mine = self.stop.child_token();
        if let Some(older) = self.active.insert(key.clone(), mine.clone()) {
            older.cancel();
        }
        let (mut send, mut recv) = accepted.split();
        let end = tokio::select! {
            end = self.session(peer, link, &mut send, &mut recv) => end,
            () = mine.cancelled() => Err(SessionEnd::Superseded),
        };
        if !mine.is_cancelled() {
            self.active.remove(&key);
        }
        let Err(end) = end;
        if let SessionEnd::Frame(error) = &end {
            self.telemetry.refusals.refused(Refusal::Federation, Some(&link.peer), error);
        }
        debug!(peer = %link.peer, reason = %end, "export session ended");
        send.finish_unawaited();
        recv.stop(ResetCode::Cancelled);
    }

    async fn session(
        &self,
        peer: ClusterName,
        link: &LinkInfo,
        send: &mut SendHalf,
        recv: &mut RecvHalf,
    ) -> Result<std::convert::Infallible, SessionEnd> {
        let mut reader = self.reader.clone();
        let mut session = ExportSession::new(self.cluster.clone(), peer, self.epoch, self.limits.clone());
        let mut decoder = Decoder::<wire::ImporterMessage>::new();
        loop {
            let due = session.next_timeout().map(|at| self.clock.instant(at));
            let actions = tokio::select! {
                chunk = recv.read() => {
                    decoder.push(&chunk?.ok_or(SessionEnd::Finished)?);
                    let snapshot = reader.load_full();
                    let mut actions = Vec::new();
                    while let Some(message) = decoder.next_message()? {
                        actions.extend(session.handle(message, &snapshot, self.clock.now()));
                    }
                    actions
                }
                Ok(()) = reader.changed() => {
                    let snapshot = reader.load_full();
                    session.on_snapshot(&snapshot, self.clock.now())
                }
                () = sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                    let snapshot = reader.load_full();
                    session.handle_timeout(&snapshot, self.clock.now())
                }
            };
            for action in actions {
                match action {
                    ExportAction::Send(message) => send.write(encode(&message)?).await?,
                    ExportAction::Skipped { service, reason } => {
                        warn!(%service, %reason, peer = %link.peer, "a service cannot be exported");
                    }
                    ExportAction::Close { reason } => return Err(SessionEnd::Closed(reason.to_string())),
                }
            }
        }
    }
}
