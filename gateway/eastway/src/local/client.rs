//! The controller's end of the feed: follows one gateway of its cluster, and the next one when that goes.

use std::sync::Arc;
use std::time::Duration;

use eastway_identity::local::{LocalTrust, Wanted, anchors_of, client_config};
use eastway_identity::{IdentityStore, SpiffeId, system_clock};
use eastway_model::ClusterName;
use eastway_proto::local::v1 as wire;
use eastway_proto::local::v1::imports_client::ImportsClient;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{debug, info, warn};

use crate::app::clock::Clock;
use crate::config::value::HostPort;
use crate::local::dial::{DialError, dial};
pub use crate::local::intake::FeedUpdate;
use crate::local::intake::{Intake, IntakeError};
use crate::telemetry::{Refusal, Telemetry};

/// First and longest pause between two connections.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A connection that lived this long was a success: the next pause is the first one again.
const SETTLED: Duration = Duration::from_secs(10);
/// Largest message: a chunk of services and one service more, with room.
const MAX_MESSAGE: usize = 1 << 20;
/// Updates that wait for the watcher's store; then the gateway waits, and sends less in larger steps.
pub const QUEUE: usize = 64;

/// Whom to watch, and as whom.
#[derive(Clone, Debug)]
pub struct FeedClient {
    /// This cluster: a gateway of another one is refused.
    pub cluster: ClusterName,
    /// The gateways' local port.
    pub gateways: HostPort,
    /// Their identity.
    pub gateway: SpiffeId,
    /// Who we are.
    pub identity: Arc<IdentityStore>,
    /// The clock that the watcher's store is given.
    pub clock: Clock,
    /// Counters and logs.
    pub telemetry: Telemetry,
}

/// How the feed is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedStatus {
    /// A gateway is being watched.
    pub connected: bool,
    /// All peers are known: it was connected at least once since the start.
    pub peers_known: bool,
    /// Why it is not connected.
    pub error: Option<String>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum FeedEnd {
    #[error("no TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{}: {}", .0.code(), .0.message())]
    Status(#[from] Status),
    #[error(transparent)]
    Intake(#[from] IntakeError),
    #[error("the gateway ended the stream")]
    Finished,
    #[error("the process stops")]
    Stopping,
}

impl FeedClient {
    /// Follows the feed until `stop`. Nothing is ever removed because the feed is down (invariant I4).
    ///
    /// The future does the work; whoever spawns it owns it.
    pub fn follow(
        self,
        updates: mpsc::Sender<FeedUpdate>,
        stop: CancellationToken,
    ) -> (watch::Receiver<FeedStatus>, impl Future<Output = ()> + Send + 'static) {
        let (status, receiver) = watch::channel(FeedStatus::default());
        let run = async move {
            let intake = Intake::new(self.cluster.clone());
            let mut follower = Follower { client: self, updates, status, intake };
            let _stopped: Option<()> = stop.run_until_cancelled(follower.run()).await;
        };
        (receiver, run)
    }
}

struct Follower {
    client: FeedClient,
    updates: mpsc::Sender<FeedUpdate>,
    status: watch::Sender<FeedStatus>,
    intake: Intake,
}

impl Follower {
    async fn run(&mut self) {
        let mut pause = RETRY.0;
        let mut told = false;
        loop {
            let began = Instant::now();
            let Err(end) = self.connection().await;
            if let FeedEnd::Stopping = end {
                return;
            }
            let lived = self.status.borrow().connected;
            if lived || !told {
                warn!(gateway = %self.client.gateways, reason = %end, "feed: not connected; what is known of peers stays");
                told = true;
            } else {
                debug!(gateway = %self.client.gateways, reason = %end, "feed: not connected");
            }
            self.status.send_modify(|status| {
                status.connected = false;
                status.error = Some(end.to_string());
            });
            pause = if lived && began.elapsed() > SETTLED { RETRY.0 } else { (pause * 2).min(RETRY.1) };
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        }
    }

    async fn connection(&mut self) -> Result<std::convert::Infallible, FeedEnd> {
        let client = &self.client;
        let trust = LocalTrust::new(anchors_of(Arc::clone(&client.identity)), Wanted::Identity(client.gateway.clone()));
        let tls = client_config(Some(Arc::clone(&client.identity)), trust, system_clock())?;
        let channel = dial(&client.gateways, tls).await?;
        let mut imports = ImportsClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let mut stream = imports.watch(wire::WatchRequest {}).await?.into_inner();
        self.intake.reconnected();
        while let Some(update) = stream.message().await? {
            let updates = self.intake.take(update, self.client.clock.steady())?;
            for rejected in self.intake.take_rejected() {
                let what = rejected.service.map_or_else(|| "a record".to_owned(), |key| key.to_string());
                let (peer, reason) = (Arc::from(rejected.cluster.as_str()), rejected.reason);
                self.client.telemetry.refusals.refused(Refusal::Record, Some(&peer), format_args!("{what}: {reason}"));
            }
            let peers_known =
                self.status.borrow().peers_known || updates.iter().any(|update| matches!(update, FeedUpdate::Peers(_)));
            for update in updates {
                self.updates.send(update).await.map_err(|_| FeedEnd::Stopping)?;
            }
            if !self.status.borrow().connected {
                info!(gateway = %self.client.gateways, "feed: connected");
                self.status.send_replace(FeedStatus { connected: true, peers_known, error: None });
            }
        }
        Err(FeedEnd::Finished)
    }
}
