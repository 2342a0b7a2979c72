//! A small HTTP/1.1 server for ports that only answer GET: bounded in connections, header size and time.
//!
//! Every connection carries one request and is closed after its answer, so that an idle client holds nothing and a
//! pipelined second request is never read.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::telemetry::{Refusal, Refusals};

/// Most connections of one listener; for one more the oldest that asked for nothing is closed, else that one.
pub const MAX_CONNECTIONS: usize = 64;
/// Longest wait for the complete header.
pub const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// Longest life of a connection, answer included.
pub const CONNECTION_DEADLINE: Duration = Duration::from_secs(30);
/// Largest header; more is answered with 431.
pub const MAX_HEADER: usize = 16 * 1024;
/// Pause after `accept` failed, e.g. for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An answer with a complete body.
pub type Response = hyper::Response<Full<Bytes>>;

/// Why a listener could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is taken, not ours, or not allowed.
    #[error("cannot listen on {address} for {name}")]
    Bind {
        /// Which port: `health`, `metrics` or `admin`.
        name: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The admin port shows everything and asks nobody who they are.
    #[error("the admin port listens on loopback only, not on {0}")]
    NotLoopback(SocketAddr),
}

/// A bound port. Dropping it closes it.
#[derive(Debug)]
pub struct Listener {
    name: &'static str,
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `address`; port 0 chooses one.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(name: &'static str, address: SocketAddr) -> Result<Self, BindError> {
        let failed = |source| BindError::Bind { name, address, source };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { name, socket, address })
    }

    /// As [`Self::bind`], for an address of this machine alone.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind_loopback(name: &'static str, address: SocketAddr) -> Result<Self, BindError> {
        if !address.ip().is_loopback() {
            return Err(BindError::NotLoopback(address));
        }
        Self::bind(name, address).await
    }

    /// The address, with the port that was chosen.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers requests with `handler` until `shutdown`; then open connections are cut.
    ///
    /// An error of `accept` pauses and goes on: a listener that ends would leave a process that looks alive.
    pub async fn serve<H, F>(self, handler: H, refusals: Arc<Refusals>, shutdown: CancellationToken)
    where
        H: Fn(Head) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response> + Send + 'static,
    {
        accept_loop(self.name, self.socket, handler, refusals, shutdown).await;
    }
}

/// Where connections come from: a socket, or a test that makes it fail.
trait Accept: Send + Sync {
    fn accept(&self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send;
}

impl Accept for TcpListener {
    fn accept(&self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send {
        Self::accept(self)
    }
}

/// Accepts until `shutdown`. Whatever `accept` fails with (no file descriptors left, a connection that is gone
/// already, a firewall), it is tried again: there is nobody else who would.
async fn accept_loop<H, F>(
    name: &'static str,
    socket: impl Accept,
    handler: H,
    refusals: Arc<Refusals>,
    shutdown: CancellationToken,
) where
    H: Fn(Head) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let mut open: VecDeque<Open> = VecDeque::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_ended) = connections.join_next(), if !connections.is_empty() => {}
            accepted = socket.accept() => match accepted {
                Ok((stream, from)) => {
                    open.retain(|connection| !connection.task.is_finished());
                    if open.len() >= MAX_CONNECTIONS {
                        let detail = format_args!("{name} port has {MAX_CONNECTIONS} connections, {from} is one more");
                        refusals.refused(Refusal::Overload, None, detail);
                        if !close_one(&mut open) {
                            continue;
                        }
                    }
                    let asked = Arc::<AtomicBool>::default();
                    let serving = serve_connection(name, stream, from, handler.clone(), asked.clone(), refusals.clone());
                    open.push_back(Open { task: connections.spawn(serving), asked });
                }
                Err(error) => {
                    refusals.refused(Refusal::Overload, None, format_args!("{name} port cannot accept: {error}"));
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    connections.shutdown().await;
}

/// A connection, the oldest first.
struct Open {
    task: AbortHandle,
    /// Its request is there: it is being answered.
    asked: Arc<AtomicBool>,
}

/// Closes the oldest connection that has not asked for anything: who holds connections open and says nothing must not
/// keep out those who do, a kubelet's probe for instance. Whether there was one.
fn close_one(open: &mut VecDeque<Open>) -> bool {
    let silent = open.iter().position(|connection| !connection.asked.load(Ordering::Relaxed));
    let Some(closed) = silent.and_then(|index| open.remove(index)) else { return false };
    closed.task.abort();
    true
}

/// The head of a request: all that a GET says.
pub type Head = hyper::http::request::Parts;

async fn serve_connection<H, F>(
    name: &'static str,
    stream: TcpStream,
    from: SocketAddr,
    handler: H,
    asked: Arc<AtomicBool>,
    refusals: Arc<Refusals>,
) where
    H: Fn(Head) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let handler = handler.clone();
        asked.store(true, Ordering::Relaxed);
        async move {
            let (head, _unread) = request.into_parts();
            let answer = if head.method == Method::GET { handler(head).await } else { not_allowed() };
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(MAX_HEADER)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_DEADLINE, pin!(connection)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => refusals.refused(Refusal::Http, None, format_args!("{name} port, {from}: {error}")),
        Err(_elapsed) => refusals.refused(Refusal::Http, None, format_args!("{name} port, {from}: too slow")),
    }
}

/// An answer with the headers that all of them carry.
#[must_use]
pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A line of text.
#[must_use]
pub fn text(status: StatusCode, line: impl Into<Bytes>) -> Response {
    answer(status, "text/plain; charset=utf-8", line)
}

fn not_allowed() -> Response {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed here\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::telemetry::Metrics;

    /// EMFILE, ENFILE, ECONNABORTED, ENOBUFS, ENOMEM, EPERM, EPROTO.
    const FAULTS: [i32; 7] = [24, 23, 103, 105, 12, 1, 71];

    struct Faulty<'a> {
        socket: TcpListener,
        calls: &'a AtomicUsize,
    }

    impl Accept for Faulty<'_> {
        async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
            match FAULTS.get(self.calls.fetch_add(1, Ordering::Relaxed)) {
                Some(code) => Err(io::Error::from_raw_os_error(*code)),
                None => self.socket.accept().await,
            }
        }
    }

    #[tokio::test]
    async fn u6_a_failing_accept_does_not_end_the_listener() {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let calls = AtomicUsize::new(0);
        let socket = Faulty { socket, calls: &calls };
        let refusals = Arc::new(Refusals::new(Arc::new(Metrics::new())));
        let shutdown = CancellationToken::new();
        let handler = |_head| std::future::ready(text(StatusCode::OK, "ok"));
        let client = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
            shutdown.cancel();
            answer
        };
        let serve = accept_loop("test", socket, handler, refusals, shutdown.clone());
        let (answer, ()) = tokio::join!(client, serve);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(calls.load(Ordering::Relaxed) > FAULTS.len());
    }
}
