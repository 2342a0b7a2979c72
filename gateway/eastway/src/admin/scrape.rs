//! The metrics port: `/metrics`, and nothing else.

use hyper::StatusCode;

use super::api::AdminContext;
use super::http::{Head, Response, answer, text};
use super::readiness::Readiness;
use crate::telemetry::{LogHandle, Telemetry};

/// OpenMetrics 1.0, which Prometheus prefers over its own older text format.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers one request.
pub async fn handle(head: Head, context: AdminContext) -> Response {
    scrape(head, move || {
        context.source.refresh(&context.telemetry.metrics);
        page(&context.readiness, &context.telemetry, context.log.as_ref())
    })
    .await
}

/// Answers one request of a process without an admin port.
pub async fn handle_alone(head: Head, readiness: Readiness, telemetry: Telemetry, log: Option<LogHandle>) -> Response {
    scrape(head, move || page(&readiness, &telemetry, log.as_ref())).await
}

async fn scrape(head: Head, page: impl FnOnce() -> Response + Send + 'static) -> Response {
    if head.uri.path() != "/metrics" {
        return text(StatusCode::NOT_FOUND, "not found\n");
    }
    // Thousands of series: not on the threads that forward bytes.
    let page = tokio::task::spawn_blocking(page);
    page.await.unwrap_or_else(|error| text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot scrape: {error}\n")))
}

fn page(readiness: &Readiness, telemetry: &Telemetry, log: Option<&LogHandle>) -> Response {
    let metrics = &telemetry.metrics;
    metrics.set_ready(readiness.is_ready());
    metrics.set_log_lines_dropped(log.map_or(0, LogHandle::dropped));
    match metrics.encode() {
        Ok(page) => answer(StatusCode::OK, CONTENT_TYPE, page),
        Err(_format) => text(StatusCode::INTERNAL_SERVER_ERROR, "cannot encode the metrics\n"),
    }
}
