//! Measures a link for `eastway bench`, one part at a time.

use std::time::{Duration, Instant};

use bytes::Bytes;
use eastway_model::Label;
use eastway_tunnel::header::{BenchHeader, StreamHeader};
use eastway_tunnel::{Link, OpenError, ResetCode, StreamError};
use tokio::time::timeout;

use crate::admin::source::{BenchPart, BenchQuery};
use crate::admin::views::BenchView;
use crate::app::Gateway;
use crate::proxy::bench::chunk;

/// Round trips that are measured.
const PINGS: usize = 20;
/// Beyond the time that was asked for.
const GRACE: Duration = Duration::from_secs(6);

pub(super) async fn measure(gateway: &Gateway, query: BenchQuery) -> Result<BenchView, String> {
    let peer = Label::parse(&query.peer).map_err(|error| error.to_string())?;
    let link = gateway.router.link(&peer, &[]);
    let link = link.ok_or_else(|| format!("no link to {peer}: `eastway peers` says why"))?;
    let limit = Duration::from_secs(query.seconds.into()) + GRACE;
    let measured = async {
        match query.part {
            BenchPart::Rtt => pings(&link).await,
            BenchPart::Up => upload(&link, query.seconds).await,
            BenchPart::Down => download(&link, query.seconds).await,
        }
    };
    let result = timeout(limit, measured).await.unwrap_or(Err(Fault::Late));
    let view = result.map_err(|fault| fault.explain(&query.peer))?;
    let path = link.path();
    Ok(BenchView { peer: query.peer, transport: link.transport().name().to_owned(), mtu: path.mtu, ..view })
}

async fn pings(link: &Link) -> Result<BenchView, Fault> {
    let mut took = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let began = Instant::now();
        let (mut send, mut recv) = link.open_with(&StreamHeader::Probe, Bytes::from_static(b"?")).await?.split();
        send.finish();
        recv.accepted().await?;
        while recv.read().await?.is_some() {}
        took.push(began.elapsed());
    }
    took.sort_unstable();
    let us = |index: usize| took.get(index).and_then(|took| u64::try_from(took.as_micros()).ok());
    Ok(BenchView { rtt_us: us(PINGS / 2), rtt_best_us: us(0), rtt_worst_us: us(PINGS - 1), ..BenchView::default() })
}

async fn upload(link: &Link, seconds: u8) -> Result<BenchView, Fault> {
    let before = link.path();
    let stream = link.open(&StreamHeader::Bench(BenchHeader { download: false, seconds })).await?;
    let (mut send, mut recv) = stream.split();
    recv.accepted().await?;
    let (began, chunk) = (Instant::now(), chunk());
    while began.elapsed() < Duration::from_secs(seconds.into()) {
        send.write(chunk.clone()).await?;
    }
    send.finish();
    let mut answer = Vec::with_capacity(8);
    while let Some(bytes) = recv.read().await? {
        answer.extend_from_slice(&bytes);
    }
    let took = began.elapsed();
    let bytes = answer.try_into().map(u64::from_be_bytes).map_err(|_| Fault::Answer)?;
    let path = link.path();
    let sent = path.sent_packets.saturating_sub(before.sent_packets);
    let lost = path.lost_packets.saturating_sub(before.lost_packets);
    let loss = (sent > 0).then_some(lost as f64 / sent as f64);
    Ok(BenchView { bytes, bits_per_second: rate(bytes, took), loss, ..BenchView::default() })
}

async fn download(link: &Link, seconds: u8) -> Result<BenchView, Fault> {
    let stream = link.open(&StreamHeader::Bench(BenchHeader { download: true, seconds })).await?;
    let (mut send, mut recv) = stream.split();
    send.finish();
    recv.accepted().await?;
    let (began, mut bytes) = (Instant::now(), 0_u64);
    while let Some(chunk) = recv.read().await? {
        bytes += chunk.len() as u64;
    }
    Ok(BenchView { bytes, bits_per_second: rate(bytes, began.elapsed()), ..BenchView::default() })
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bits a second of a link fit")]
fn rate(bytes: u64, took: Duration) -> u64 {
    (bytes as f64 * 8.0 / took.as_secs_f64().max(1e-3)) as u64
}

/// Why nothing was measured.
#[derive(Debug)]
enum Fault {
    Open(OpenError),
    Stream(StreamError),
    Answer,
    Late,
}

impl From<OpenError> for Fault {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

impl From<StreamError> for Fault {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

impl Fault {
    /// For the operator, with what to do.
    fn explain(&self, peer: &str) -> String {
        let code = match self {
            Self::Open(OpenError::Refused(code)) | Self::Stream(StreamError::Reset(code)) => Some(*code),
            Self::Open(_) | Self::Stream(_) | Self::Answer | Self::Late => None,
        };
        match (code, self) {
            (Some(ResetCode::PermissionDenied), _) => {
                format!("{peer} lets nobody measure: there, `limits.benchSecondsPerHour` is 0")
            }
            (Some(ResetCode::Overloaded), _) => format!(
                "{peer} measures with somebody else just now, or this cluster has used its seconds of the hour \
                 (`limits.benchSecondsPerHour` there); try again later, or with fewer --seconds"
            ),
            (Some(ResetCode::Unsupported), _) => format!("{peer} does not know measurements: its version is older"),
            (Some(code), _) => format!("{peer} refused: {code}"),
            (None, Self::Open(error)) => format!("no stream to {peer}: {error}"),
            (None, Self::Stream(error)) => format!("the link to {peer} broke off: {error}"),
            (None, Self::Answer) => format!("{peer} answered with something that is no count"),
            (None, Self::Late) => format!("{peer} did not come to an end in time"),
        }
    }
}
