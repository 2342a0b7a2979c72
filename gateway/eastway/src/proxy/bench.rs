//! Measurements of a link that peers ask for (`eastway bench` at the other side).
//!
//! A peer is authenticated and not trusted: one measurement runs at a time, and a peer has so many seconds of them in an
//! hour (`limits.benchSecondsPerHour`). More than a link full of service streams it cannot take by them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use eastway_tunnel::header::BenchHeader;
use eastway_tunnel::{AcceptedStream, RecvHalf, ResetCode, SendHalf};
use tokio::sync::Semaphore;
use tokio::time::{Instant as Deadline, timeout_at};

/// Over which seconds are counted.
const HOUR: Duration = Duration::from_secs(3_600);
/// Bytes of one write.
const CHUNK: usize = 64 * 1024;
/// For what is on its way when the time is over.
const GRACE: Duration = Duration::from_secs(5);

/// Bytes to send.
pub(crate) fn chunk() -> Bytes {
    Bytes::from(vec![0; CHUNK])
}

/// Serves measurements.
#[derive(Debug)]
pub(super) struct Bench {
    ration: Mutex<Ration>,
    one: Semaphore,
}

impl Bench {
    pub(super) fn new(seconds_per_hour: u32) -> Self {
        Self { ration: Mutex::new(Ration { seconds_per_hour, used: HashMap::new() }), one: Semaphore::new(1) }
    }

    /// Serves one, or refuses it.
    pub(super) async fn serve(&self, peer: &Arc<str>, header: BenchHeader, stream: AcceptedStream) {
        let Ok(_only) = self.one.try_acquire() else { return stream.reject(ResetCode::Overloaded) };
        let taken =
            self.ration.lock().unwrap_or_else(PoisonError::into_inner).take(peer, header.seconds, Instant::now());
        if let Err(code) = taken {
            return stream.reject(code);
        }
        let Ok(stream) = stream.accept().await else { return };
        let (mut send, mut recv) = stream.split();
        let end = Deadline::now() + Duration::from_secs(header.seconds.into());
        let work = async {
            if header.download {
                download(&mut send, end).await;
            } else {
                upload(&mut send, &mut recv).await;
            }
        };
        if timeout_at(end + GRACE, work).await.is_err() {
            send.reset(ResetCode::IdleTimeout);
            recv.stop(ResetCode::IdleTimeout);
        }
    }
}

async fn download(send: &mut SendHalf, end: Deadline) {
    let chunk = chunk();
    while Deadline::now() < end {
        if send.write(chunk.clone()).await.is_err() {
            return;
        }
    }
    send.finish();
}

async fn upload(send: &mut SendHalf, recv: &mut RecvHalf) {
    let mut bytes = 0_u64;
    while let Ok(Some(chunk)) = recv.read().await {
        bytes += chunk.len() as u64;
    }
    // Whoever is gone by now asks no more.
    if send.write(Bytes::copy_from_slice(&bytes.to_be_bytes())).await.is_ok() {
        send.finish();
    }
}

/// Seconds that peers have used. Peers are configured, so that there are few.
#[derive(Debug)]
struct Ration {
    seconds_per_hour: u32,
    /// When a peer's hour began, and what it has used of it.
    used: HashMap<Arc<str>, (Instant, u32)>,
}

impl Ration {
    /// Takes the seconds of one measurement.
    ///
    /// # Errors
    /// Measurements are not allowed at all, or there are not so many seconds left.
    fn take(&mut self, peer: &Arc<str>, seconds: u8, now: Instant) -> Result<(), ResetCode> {
        if self.seconds_per_hour == 0 {
            return Err(ResetCode::PermissionDenied);
        }
        self.used.retain(|_, (began, _)| now.saturating_duration_since(*began) < HOUR);
        let (_, used) = self.used.entry(peer.clone()).or_insert((now, 0));
        let after = *used + u32::from(seconds);
        if after > self.seconds_per_hour {
            return Err(ResetCode::Overloaded);
        }
        *used = after;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i8_a_peer_has_so_many_seconds_an_hour() {
        let (now, a, b) = (Instant::now(), Arc::from("a"), Arc::from("b"));
        let mut ration = Ration { seconds_per_hour: 15, used: HashMap::new() };
        assert_eq!(ration.take(&a, 10, now), Ok(()));
        assert_eq!(ration.take(&a, 10, now), Err(ResetCode::Overloaded));
        assert_eq!(ration.take(&a, 5, now), Ok(()), "what was refused is not counted");
        assert_eq!(ration.take(&b, 10, now), Ok(()), "another peer has its own");
        assert_eq!(ration.take(&a, 1, now + HOUR - Duration::from_secs(1)), Err(ResetCode::Overloaded));
        assert_eq!(ration.take(&a, 10, now + HOUR), Ok(()));
        assert_eq!(ration.used.len(), 1, "hours that are over are forgotten");
    }

    #[test]
    fn nobody_measures_where_it_is_not_allowed() {
        let mut ration = Ration { seconds_per_hour: 0, used: HashMap::new() };
        assert_eq!(ration.take(&Arc::from("a"), 1, Instant::now()), Err(ResetCode::PermissionDenied));
        assert!(ration.used.is_empty());
    }
}
