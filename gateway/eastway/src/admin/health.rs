//! The health port: `/healthz/live` and `/healthz/ready`, `/healthz` and `/readyz` for short, and nothing else. It may face a load balancer, so that it
//! tells no version and no name but those of what is pending.

use std::fmt::Write as _;

use hyper::StatusCode;

use super::http::{Head, Response, text};
use super::readiness::Readiness;

/// Answers one request.
pub fn handle(head: &Head, readiness: &Readiness) -> Response {
    match head.uri.path() {
        "/healthz/live" | "/healthz" => text(StatusCode::OK, "ok\n"),
        "/healthz/ready" | "/readyz" => ready(readiness),
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

fn ready(readiness: &Readiness) -> Response {
    if readiness.is_draining() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "draining\n");
    }
    let pending = readiness.pending();
    if pending.is_empty() {
        return text(StatusCode::OK, "ready\n");
    }
    let mut body = "not ready, waiting for:\n".to_owned();
    for name in pending {
        // Writing into a String cannot fail.
        writeln!(body, "- {name}").ok();
    }
    text(StatusCode::SERVICE_UNAVAILABLE, body)
}
