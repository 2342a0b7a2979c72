//! The accepting side: requests of HTTP/2 become pipes, which are taken as TCP connections are.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use eastway_identity::{CertificateDer, VerifyReason};
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::io::Below;
use super::pipe::SharedPipe;
use super::windows::{self, Windows};
use super::*;
use crate::control::printable;
use crate::transport::Established;
use crate::transport::tcp::accept::{self, Brought, Carried};
use crate::transport::tcp::{Failure, Shared};

/// Connections that are shared, of one peer: each of its links needs one, and has at most
/// [`MAX_SHARED`](crate::config::MAX_SHARED) of them.
const MOST_OF_PEER: u32 = 256;
/// A connection without pipes is kept for so long.
const IDLE: Duration = Duration::from_secs(10);

/// Until the other side ends it, or no pipe is left after the transport stops.
pub(in crate::transport::tcp) async fn serve(
    shared: Arc<Shared>,
    carried: Carried,
    accepted: mpsc::Sender<Established>,
) {
    let Carried { session, peer, chain, remote } = carried;
    let of_peer = shared.carriers.of(&peer);
    if of_peer.fetch_add(1, Ordering::Relaxed) < MOST_OF_PEER {
        let below = Below::new(session);
        let taker = Taker {
            carrier: Arc::new(Carrier::new(below.ends())),
            cut: CancellationToken::new(),
            shared: Arc::clone(&shared),
            peer,
            chain,
            since: (shared.clock)(),
            remote,
            accepted,
        };
        if let Err(failure) = taker.run(below).await {
            shared.refuse(&failure, remote);
        }
        taker.carrier.retire();
    } else {
        shared.refuse(&Failure::TooMany, remote);
    }
    of_peer.fetch_sub(1, Ordering::Relaxed);
}

/// Takes the pipes of one connection.
struct Taker {
    carrier: Arc<Carrier>,
    /// The other side is not trusted any more.
    cut: CancellationToken,
    shared: Arc<Shared>,
    peer: Arc<str>,
    chain: Vec<CertificateDer<'static>>,
    /// When it came.
    since: SystemTime,
    remote: SocketAddr,
    accepted: mpsc::Sender<Established>,
}

impl Taker {
    async fn run(&self, below: Below) -> Result<(), Failure> {
        let config = &self.shared.config;
        let builder = bounded!(Builder::new(), &config.limits);
        let begun = timeout(config.timing.handshake, builder.handshake::<_, Bytes>(below)).await;
        let mut connection = begun.map_err(|_| Failure::Timeout)?.map_err(|error| fault(&error))?;
        let mut windows = Windows::new(config.limits);
        let mut used = Instant::now();
        let mut until = None;
        let mut trust = self.shared.trust.subscribe();
        // Since the handshake.
        trust.mark_changed();
        loop {
            tokio::select! {
                request = connection.accept() => match request {
                    None => return Ok(()),
                    // That it was cut is told by the links that it carried.
                    Some(Err(error)) if error.is_io() || error.is_remote() => return Ok(()),
                    Some(Err(error)) => return Err(fault(&error)),
                    Some(Ok((request, respond))) => self.answer(request, respond),
                },
                () = windows.due() => {
                    windows.fit(&self.carrier, &mut connection);
                    if self.carrier.pipes() > 0 {
                        used = Instant::now();
                    } else if used.elapsed() > IDLE && until.is_none() {
                        until = Some(Instant::now() + config.timing.close);
                        connection.graceful_shutdown();
                    }
                }
                () = self.shared.stop.cancelled(), if until.is_none() => {
                    // Links say goodbye on it.
                    until = Some(Instant::now() + config.timing.close * 2);
                    connection.graceful_shutdown();
                }
                Ok(()) = trust.changed(), if until.is_none() => if !self.is_trusted() {
                    until = Some(Instant::now() + config.timing.close * 2);
                    connection.graceful_shutdown();
                },
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => return Ok(()),
                () = self.cut.cancelled() => return Ok(()),
            }
        }
    }

    /// Whether the other side may be what it showed itself to be. A certificate that has ended says nothing of the links
    /// here, which are renewed inside.
    fn is_trusted(&self) -> bool {
        let judge = |at| self.shared.trust.verify_live(&self.chain, at, &self.peer);
        match judge((self.shared.clock)()) {
            Ok(_) => true,
            // That it has ended is told before all else that is wrong with it, which is asked as of then.
            Err(error) => error.reason() == VerifyReason::CertExpired && judge(self.since).is_ok(),
        }
    }

    fn answer(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let shared = &self.shared;
        if let Some(status) = refusal(&request) {
            // Nobody is dialled for a peer, wherever it wants to go.
            let text = format!("{} {} is answered with {status}", request.method(), request.uri());
            shared.refuse(&Failure::Request(printable(&text)), self.remote);
            let mut response = Response::new(());
            *response.status_mut() = status;
            respond.send_response(response, true).ok();
            return;
        }
        let Ok(permit) = Arc::clone(&shared.handshakes).try_acquire_owned() else {
            shared.refuse(&Failure::TooMany, self.remote);
            return respond.send_reset(Reason::REFUSED_STREAM);
        };
        // It is gone already.
        let Ok(send) = respond.send_response(Response::new(()), false) else { return };
        let pipe = Box::new(SharedPipe::granted(Arc::clone(&self.carrier), request.into_body(), send));
        let (task, accepted, cut) = (Arc::clone(shared), self.accepted.clone(), self.cut.clone());
        let (brought, remote) = (Brought { from: Arc::clone(&self.peer), via: None }, self.remote);
        shared.spawn(async move {
            if let Err(failure) = accept::take(&task, pipe, Some(brought), remote, permit, accepted).await {
                // Who is not trusted any more keeps nothing open here.
                if let Failure::Untrusted(_) = failure {
                    cut.cancel();
                }
                task.refuse(&failure, remote);
            }
        });
    }
}

/// How a request is refused that asks for anything but a pipe to this gateway.
fn refusal(request: &Request<RecvStream>) -> Option<StatusCode> {
    if request.method() != Method::CONNECT {
        return Some(StatusCode::METHOD_NOT_ALLOWED);
    }
    let here = request.uri().authority().is_some_and(|authority| authority.as_str() == AUTHORITY);
    (!here).then_some(StatusCode::FORBIDDEN)
}

fn fault(error: &h2::Error) -> Failure {
    Failure::Http(printable(&error.to_string()))
}
