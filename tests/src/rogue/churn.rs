//! An exporter whose services change all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_federation::MAX_VERSION;
use eastway_federation::codec::{Decoder, encode};
use eastway_federation::digest::ServicesDigest;
use eastway_federation::limits::MAX_UNACKNOWLEDGED;
use eastway_proto::federation::v1 as wire;
use eastway_proto::federation::v1::exporter_message::Body;
use eastway_proto::federation::v1::importer_message::Body as FromImporter;
use eastway_tunnel::header::StreamHeader;
use eastway_tunnel::transport::BoxFuture;
use eastway_tunnel::{AcceptedStream, LinkInfo, ResetCode, StreamHandler};
use prost::Message as _;
use tokio::time::Instant;

/// Records of one message.
const BATCH: u64 = 100;
/// Services that change.
const SERVICES: u64 = 200;

/// Offers its importers changes of services in the namespace of the tests, as many per second as it is told to.
#[derive(Clone, Debug)]
pub struct Churn(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cluster: String,
    namespace: String,
    rate: u64,
    on: AtomicBool,
    sent: AtomicU64,
    held_up: AtomicU64,
}

impl Churn {
    /// Of this cluster; `rate` changed records per second while it is on. It is off.
    #[must_use]
    pub fn new(cluster: &str, namespace: &str, rate: u64) -> Self {
        let (cluster, namespace) = (cluster.to_owned(), namespace.to_owned());
        let (on, sent, held_up) = Default::default();
        Self(Arc::new(Inner { cluster, namespace, rate, on, sent, held_up }))
    }

    /// Begins or ends.
    pub fn set(&self, on: bool) {
        self.0.on.store(on, Ordering::Relaxed);
    }

    /// Records that were sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }

    /// Messages that were due and had to wait: the importer had not acknowledged those before.
    #[must_use]
    pub fn held_up(&self) -> u64 {
        self.0.held_up.load(Ordering::Relaxed)
    }
}

impl StreamHandler for Churn {
    fn handle(&self, _link: LinkInfo, header: StreamHeader, stream: AcceptedStream) -> BoxFuture<'static, ()> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            if !matches!(header, StreamHeader::Federation(_)) {
                return stream.reject(ResetCode::NotExported);
            }
            // It ends when the importer ends it, which opens another then.
            inner.session(stream).await.ok();
        })
    }
}

impl Inner {
    async fn session(&self, stream: AcceptedStream) -> Result<()> {
        let (mut send, mut recv) = stream.accept().await?.split();
        let mut decoder = Decoder::<wire::ImporterMessage>::new();
        let open = wire::ExportOpen { version: MAX_VERSION, epoch: fastrand::u64(..), cluster: self.cluster.clone() };
        let complete = wire::Complete { sequence: 2, digest: ServicesDigest::default().to_bytes().into() };
        let snapshot = [
            Body::Open(open),
            Body::Begin(wire::SnapshotBegin { sequence: 1, buckets: u64::MAX }),
            Body::Complete(complete),
        ];
        for body in snapshot {
            send.write(encode(&wire::ExporterMessage { body: Some(body) })?).await?;
        }
        let (mut sequence, mut acknowledged) = (2_u64, 0_u64);
        let mut due = Instant::now();
        loop {
            let room = sequence.saturating_sub(acknowledged) < MAX_UNACKNOWLEDGED as u64;
            tokio::select! {
                chunk = recv.read() => {
                    decoder.push(&chunk?.context("the importer ended the stream")?);
                    while let Some(message) = decoder.next_message()? {
                        match message.body {
                            Some(FromImporter::Ack(ack)) => acknowledged = ack.sequence,
                            Some(FromImporter::Resync(_)) => ensure!(false, "a resync is another session here"),
                            _ => {}
                        }
                    }
                }
                () = tokio::time::sleep_until(due), if room => {
                    // What was held up is not caught up on.
                    due = (due + Duration::from_secs(1) * u32::try_from(BATCH)? / u32::try_from(self.rate)?).max(Instant::now());
                    if self.on.load(Ordering::Relaxed) {
                        sequence += 1;
                        send.write(encode(&self.update(sequence))?).await?;
                        self.sent.fetch_add(BATCH, Ordering::Relaxed);
                        if sequence.saturating_sub(acknowledged) == MAX_UNACKNOWLEDGED as u64 {
                            self.held_up.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
        }
    }

    /// Services whose ports and counts are others than in the message before.
    fn update(&self, sequence: u64) -> wire::ExporterMessage {
        let service = |number: u64| {
            let port = wire::Port {
                name: "tcp".to_owned(),
                number: u32::try_from(1 + sequence % 60_000).unwrap_or(1),
                protocol: wire::Protocol::Tcp.into(),
                ..Default::default()
            };
            let service = wire::Service {
                namespace: self.namespace.clone(),
                name: format!("churn-{}", (sequence * BATCH + number) % SERVICES),
                r#type: wire::ServiceType::ClusterSetIp.into(),
                ports: vec![port],
                ip_families: vec![wire::IpFamily::Ipv4.into()],
                exported_at_ms: 1,
                groups: vec![wire::Group { tls: wire::TlsMode::None.into(), ..Default::default() }],
                ..Default::default()
            };
            let counts = vec![wire::GroupCount { ready: sequence % 9, draining: 0, weight: 1 }];
            wire::ServiceState { service: service.encode_to_vec().into(), counts }
        };
        let services = (0..BATCH).map(service).collect();
        wire::ExporterMessage { body: Some(Body::Update(wire::Update { sequence, services, ..Default::default() })) }
    }
}
