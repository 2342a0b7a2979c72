//! The HTTP server of every service.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::Full;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Answer, Args, CALLER, COUNTER, Client, END_USER, Header, Hop, MISBEHAVE, Service, Version, page};

/// Connections served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1024;

struct App {
    me: Hop,
    client: Client,
    /// Requests for what it serves, whatever became of them.
    requests: AtomicU64,
    /// What it answers with, other than 200 when it was told to fail.
    status: AtomicU16,
}

/// Serves until the task is dropped.
pub(super) async fn serve(args: Args) -> Result<()> {
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("listen on {}", args.listen))?;
    let app = Arc::new(App {
        me: Hop { service: args.service, version: args.version, cloud: args.cloud },
        client: Client::new(args.dns, args.listen.ip()),
        requests: AtomicU64::new(0),
        status: AtomicU16::new(StatusCode::OK.as_u16()),
    });
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let slot = slots.clone().acquire_owned().await?;
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        let (stream, _from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                // Out of descriptors, most likely: they come back when connections end.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let app = app.clone();
        connections.spawn(async move {
            let _slot = slot;
            let answer = service_fn(|request| respond(&app, request));
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(60));
            if let Err(error) = server.serve_connection(TokioIo::new(stream), answer).await {
                tracing::debug!(%error, "connection");
            }
        });
    }
}

async fn respond<B>(app: &App, request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path();
    let service = app.me.service;
    let response = if path == "/health" {
        reply(StatusCode::OK, "text/plain", "ok\n".into())
    } else if path == COUNTER {
        reply(StatusCode::OK, "text/plain", app.requests.load(Ordering::Relaxed).to_string().into())
    } else if let Some(status) = path.strip_prefix(MISBEHAVE).and_then(|status| status.parse().ok()) {
        app.status.store(status, Ordering::Relaxed);
        reply(StatusCode::OK, "text/plain", "ok\n".into())
    } else if path == service.path() || (path == "/" && service == Service::Productpage) {
        app.requests.fetch_add(1, Ordering::Relaxed);
        let told = StatusCode::from_u16(app.status.load(Ordering::Relaxed)).unwrap_or_default();
        if told != StatusCode::OK {
            return Ok(reply(told, "text/plain", "told to fail\n".into()));
        }
        let answer = app.answer(reader(&request), caller(&request)).await;
        // A part that is missing is the page's fault for whoever reads it.
        let status = if answer.calls.iter().all(|call| call.answer().is_some()) {
            StatusCode::OK
        } else {
            StatusCode::BAD_GATEWAY
        };
        if wants_html(&request) && service == Service::Productpage {
            reply(StatusCode::OK, "text/html; charset=utf-8", page::render(&answer).into())
        } else {
            reply(status, "application/json", serde_json::to_vec(&answer).unwrap_or_default().into())
        }
    } else {
        reply(StatusCode::NOT_FOUND, "text/plain", "not found\n".into())
    };
    Ok(response)
}

fn wants_html<B>(request: &Request<B>) -> bool {
    request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()).is_some_and(|accept| accept.contains("html"))
}

/// Who reads the page: as the header says, or the address that a browser was given.
fn reader<B>(request: &Request<B>) -> Option<Header> {
    let said = request.headers().get(END_USER).and_then(|user| user.to_str().ok());
    let asked = || request.uri().query()?.split('&').find_map(|part| part.strip_prefix("user="));
    let user = said.or_else(asked)?;
    // A browser's user could be anything, and goes into a header.
    user.bytes().all(|byte| byte.is_ascii_alphanumeric()).then(|| (END_USER, user.to_owned()))
}

/// The identity that the sidecar found in the caller's certificate.
fn caller<B>(request: &Request<B>) -> Option<String> {
    let said = request.headers().get(CALLER)?.to_str().ok()?;
    Some(said.split(';').find_map(|part| part.strip_prefix("URI="))?.to_owned())
}

fn reply(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

impl App {
    async fn answer(&self, reader: Option<Header>, caller: Option<String>) -> Answer {
        let others = self.me.service.calls(self.me.version);
        let client = self.client.clone().saying(reader);
        let calls = join_all(others.iter().map(|service| client.call(*service))).await;
        Answer { by: self.me.clone(), caller, content: content(&self.me), calls }
    }
}

/// What the service itself knows.
fn content(me: &Hop) -> serde_json::Value {
    match me.service {
        Service::Productpage => json!({"title": "The Comedy of Errors"}),
        Service::Details => json!({
            "author": "William Shakespeare", "year": 1595, "type": "paperback", "pages": 200,
            "publisher": "PublisherA", "language": "English",
        }),
        Service::Reviews => json!({
            "stars": match me.version { Version(2) => "black", Version(3) => "red", Version(_) => "none" },
            "reviews": [
                {"reviewer": "Reviewer1", "text": "An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!"},
                {"reviewer": "Reviewer2", "text": "Absolutely fun and entertaining. The play lacks thematic depth when compared to other plays by Shakespeare."},
            ],
        }),
        Service::Ratings => json!({"Reviewer1": 5, "Reviewer2": 4}),
        Service::Kiosk => json!({"place": "the shop window"}),
    }
}
