//! A small HTTP/1.1 server for ports that only answer GET: bounded in connections, header size and time.
//!
//! Every connection carries one request and is closed after its answer, so that an idle client holds nothing and a
//! pipelined second request is never read.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::telemetry::{Refusal, Refusals};

/// Most connections of one listener; more are closed at once.
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
        source: std::io::Error,
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
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_ended) = connections.join_next(), if !connections.is_empty() => {}
                accepted = self.socket.accept() => match accepted {
                    Ok((stream, from)) if connections.len() < MAX_CONNECTIONS => {
                        let (handler, refusals) = (handler.clone(), Arc::clone(&refusals));
                        connections.spawn(serve_connection(self.name, stream, from, handler, refusals));
                    }
                    Ok((_closed, from)) => {
                        let name = self.name;
                        let detail = format_args!("{name} port has {MAX_CONNECTIONS} connections, closed one from {from}");
                        refusals.refused(Refusal::Overload, None, detail);
                    }
                    Err(error) => {
                        tracing::warn!(port = self.name, %error, "cannot accept; trying again");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        connections.shutdown().await;
    }
}

/// The head of a request: all that a GET says.
pub type Head = hyper::http::request::Parts;

async fn serve_connection<H, F>(
    name: &'static str,
    stream: TcpStream,
    from: SocketAddr,
    handler: H,
    refusals: Arc<Refusals>,
) where
    H: Fn(Head) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let handler = handler.clone();
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
