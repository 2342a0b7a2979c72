//! The metrics port: `/metrics`, and nothing else.

use hyper::StatusCode;

use super::api::AdminContext;
use super::http::{Head, Response, answer, text};
use crate::telemetry::LogHandle;

/// OpenMetrics 1.0, which Prometheus prefers over its own older text format.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers one request.
pub async fn handle(head: Head, context: AdminContext) -> Response {
    if head.uri.path() != "/metrics" {
        return text(StatusCode::NOT_FOUND, "not found\n");
    }
    // Thousands of series: not on the threads that forward bytes.
    let page = tokio::task::spawn_blocking(move || page(&context));
    page.await.unwrap_or_else(|error| text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot scrape: {error}\n")))
}

fn page(context: &AdminContext) -> Response {
    let metrics = &context.telemetry.metrics;
    metrics.set_ready(context.readiness.is_ready());
    metrics.set_log_lines_dropped(context.log.as_ref().map_or(0, LogHandle::dropped));
    context.source.refresh(metrics);
    match metrics.encode() {
        Ok(page) => answer(StatusCode::OK, CONTENT_TYPE, page),
        Err(_format) => text(StatusCode::INTERNAL_SERVER_ERROR, "cannot encode the metrics\n"),
    }
}
