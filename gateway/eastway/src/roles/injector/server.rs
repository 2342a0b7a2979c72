//! The webhook: HTTPS by its own certificate, bounded in connections, in time and in what it reads.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eastway_kubernetes::injection::{self, MAX_REVIEW, Outcome, ReviewError};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use crate::admin::http::{Response, answer, text};
use crate::telemetry::{Refusal, Telemetry};

/// Where questions are sent to.
const PATH: &str = "/inject";
/// Most connections, handshakes included. API servers are few, and keep theirs.
const MAX_CONNECTIONS: usize = 256;
/// Most questions of which something is in memory.
const MAX_QUESTIONS: usize = 16;
/// Longest handshake, longest time until a question is read, and longest silence on a connection.
const HANDSHAKE: Duration = Duration::from_secs(5);
const READ: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(150);
/// How long those who are asking may finish at the end.
const FINISH: Duration = Duration::from_secs(2);
/// Largest head of a request.
const MAX_HEAD: usize = 16 << 10;
/// Pause after `accept` failed, e.g. for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the answers are made of.
pub(super) struct Server {
    settings: injection::Settings,
    telemetry: Telemetry,
    questions: Semaphore,
}

impl Server {
    pub(super) fn new(settings: injection::Settings, telemetry: Telemetry) -> Self {
        Self { settings, telemetry, questions: Semaphore::new(MAX_QUESTIONS) }
    }

    /// Answers until `stop`. No error ends it: a listener that ends would leave a process that looks alive.
    pub(super) async fn serve(self, listener: TcpListener, tls: Arc<ServerConfig>, stop: CancellationToken) {
        let server = Arc::new(self);
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let (tls, connections) = (TlsAcceptor::from(tls), TaskTracker::new());
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    server.refused(Refusal::Overload, format_args!("the webhook's port cannot accept: {error}"));
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
                let detail = format_args!("the webhook has {MAX_CONNECTIONS} connections, {from} is one more");
                server.refused(Refusal::Overload, detail);
                continue;
            };
            let (server, tls, stop) = (Arc::clone(&server), tls.clone(), stop.clone());
            connections.spawn(async move {
                let _place = place;
                server.connection(stream, tls, &stop).await;
            });
        }
        drop(listener);
        connections.close();
        let _in_time = timeout(FINISH, connections.wait()).await;
    }

    async fn connection(&self, stream: TcpStream, tls: TlsAcceptor, stop: &CancellationToken) {
        let from = stream.peer_addr().map(|address| address.to_string()).unwrap_or_default();
        let stream = match timeout(HANDSHAKE, tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            // One that does not trust the certificate says so, and it is a pod without a sidecar.
            Ok(Err(error)) => return self.refused(Refusal::Handshake, format_args!("webhook, {from}: {error}")),
            Err(_) => return self.refused(Refusal::Handshake, format_args!("webhook, {from}: too slow")),
        };
        let service = service_fn(|request| async move { Ok::<_, Infallible>(self.answer(request).await) });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(SILENCE)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(%error, from, "a connection of the webhook ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response {
        let refuse = |status: StatusCode, why: &str| {
            self.refused(Refusal::Injection, format_args!("{status}: {why}"));
            self.telemetry.metrics.injection_answered("invalid");
            text(status, format!("{why}\n"))
        };
        if request.uri().path() != PATH {
            return refuse(StatusCode::NOT_FOUND, "not found");
        }
        if request.method() != Method::POST {
            let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, "only POST");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return response;
        }
        let kind = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        if !kind.starts_with(b"application/json") {
            return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type must be application/json");
        }
        let too_large = format!("a question has at most {MAX_REVIEW} bytes");
        if request.body().size_hint().lower() > MAX_REVIEW as u64 {
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, &too_large);
        }
        let read = timeout(READ, async {
            let place = self.questions.acquire().await;
            (Limited::new(request.into_body(), MAX_REVIEW).collect().await, place)
        });
        let (body, _place) = match read.await {
            Ok((Ok(body), place)) => (body.to_bytes(), place),
            Ok((Err(error), _)) if error.is::<LengthLimitError>() => {
                return refuse(StatusCode::PAYLOAD_TOO_LARGE, &too_large);
            }
            Ok((Err(_), _)) => return refuse(StatusCode::BAD_REQUEST, "the question ends early"),
            Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, "the question takes too long"),
        };
        match self.review(&body) {
            Ok(body) => answer(StatusCode::OK, "application/json", body),
            Err(error) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
        }
    }

    fn review(&self, body: &[u8]) -> Result<Bytes, ReviewError> {
        let injection::Answer { body, outcome, pod, reason } = injection::review(body, &self.settings)?;
        self.telemetry.metrics.injection_answered(outcome.as_str());
        match (&reason, outcome) {
            (Some(reason), _) => self.refused(Refusal::Injection, format_args!("pod {pod}: {reason}")),
            (None, Outcome::Injected) => info!(pod, "a pod gets a sidecar"),
            (None, other) => debug!(pod, reason = other.as_str(), "a pod gets no sidecar"),
        }
        Ok(body.to_string().into())
    }

    fn refused(&self, kind: Refusal, detail: std::fmt::Arguments<'_>) {
        self.telemetry.refusals.refused(kind, None, detail);
    }
}

#[cfg(test)]
mod tests;
