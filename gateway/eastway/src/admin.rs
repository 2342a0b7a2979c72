//! Three small HTTP listeners: health, metrics, and the read-only admin port.
//!
//! Nothing here changes anything (invariant I10): all methods but GET are refused, and what is shown
//! holds no key and no token. What is shown comes through [`AdminSource`], so that this module knows HTTP and
//! views, and nothing of links, stores or certificates.

pub mod api;
pub mod check;
pub mod dump;
pub mod health;
pub mod http;
pub mod readiness;
pub mod rules;
pub mod scrape;
pub mod sidecars;
pub mod source;
pub mod views;

use std::net::SocketAddr;

use tokio_util::sync::CancellationToken;

pub use api::AdminContext;
pub use http::{BindError, Listener};
pub use readiness::{Guard, Readiness};
pub use source::{AdminSource, BenchPart, BenchQuery, BoxFuture, DescribeQuery, SourceError};

use crate::telemetry::{LogHandle, Telemetry};

/// The health port, bound.
#[derive(Debug)]
pub struct HealthPort(Listener);

impl HealthPort {
    /// Binds `address`.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        Listener::bind("health", address).await.map(Self)
    }

    /// The address, with the port that was chosen.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local_addr()
    }

    /// Answers until `shutdown`. Start it first and stop it last: it tells what the process waits for, and that it
    /// drains.
    pub async fn run(self, readiness: Readiness, telemetry: Telemetry, shutdown: CancellationToken) {
        let handler = move |head| {
            let answer = health::handle(&head, &readiness);
            std::future::ready(answer)
        };
        self.0.serve(handler, telemetry.refusals, shutdown).await;
    }
}

/// The metrics port, bound.
#[derive(Debug)]
pub struct MetricsPort(Listener);

impl MetricsPort {
    /// Binds `address`.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        Listener::bind("metrics", address).await.map(Self)
    }

    /// The address, with the port that was chosen.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local_addr()
    }

    /// Answers until `shutdown`.
    pub async fn run(self, context: AdminContext, shutdown: CancellationToken) {
        let refusals = std::sync::Arc::clone(&context.telemetry.refusals);
        self.0.serve(move |head| scrape::handle(head, context.clone()), refusals, shutdown).await;
    }
}

impl MetricsPort {
    /// As [`Self::run`], for a process without an admin port.
    pub async fn run_alone(
        self,
        readiness: Readiness,
        telemetry: Telemetry,
        log: Option<LogHandle>,
        shutdown: CancellationToken,
    ) {
        let refusals = std::sync::Arc::clone(&telemetry.refusals);
        let handler = move |head| scrape::handle_alone(head, readiness.clone(), telemetry.clone(), log.clone());
        self.0.serve(handler, refusals, shutdown).await;
    }
}

/// The admin port, bound to loopback.
#[derive(Debug)]
pub struct AdminPort(Listener);

impl AdminPort {
    /// Binds `address`, which must be a loopback one.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        Listener::bind_loopback("admin", address).await.map(Self)
    }

    /// The address, with the port that was chosen.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local_addr()
    }

    /// Answers until `shutdown`.
    pub async fn run(self, context: AdminContext, shutdown: CancellationToken) {
        let refusals = std::sync::Arc::clone(&context.telemetry.refusals);
        self.0.serve(move |head| api::handle(head, context.clone()), refusals, shutdown).await;
    }
}
