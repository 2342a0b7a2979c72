//! Finds an endpoint of this cluster that takes a connection.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use eastway_model::EndpointId;
use eastway_model::routing::{Failing, PickError};
use tokio::net::TcpStream;

use crate::proxy::connection::Connection;
use crate::proxy::dial::{self, DIAL_TIMEOUT, DialError, InFlightGuard};
use crate::router::{Picked, Router};
use crate::telemetry::{Path, Refusal};

/// Endpoints tried for one connection at most. One that refuses costs a fraction of a millisecond, and each is known
/// to fail after that.
const MAX_DIALS: usize = 32;
/// Of these, how many that were known to fail.
const MAX_FAILING_DIALS: usize = 3;
/// No other endpoint is tried for one connection later than this after the first that failed: with two that do not
/// answer the connection has taken as long as anybody waits.
const LAST_DIAL: Duration = DIAL_TIMEOUT.saturating_add(Duration::from_millis(500));
/// How long an endpoint that could not be dialled gets connections only if there is no other.
const FAILING_FOR: Duration = Duration::from_secs(5);
/// Endpoints that are remembered at most.
const MAX_FAILING: usize = 4_096;

/// Why no endpoint was reached.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// There was none to try.
    #[error(transparent)]
    Pick(#[from] PickError),
    /// The last one that was tried.
    #[error(transparent)]
    Dial(#[from] DialError),
}

/// An endpoint that took the connection.
#[derive(Debug)]
pub struct Reached {
    /// The connection.
    pub tcp: TcpStream,
    /// Which endpoint.
    pub picked: Picked,
    /// Counts the connection.
    pub in_flight: InFlightGuard,
}

/// Endpoints of this cluster that could not be dialled lately. Their registry will say so, too; until then this does.
#[derive(Debug, Default)]
pub struct FailingEndpoints {
    /// Until when each is avoided.
    until: ArcSwap<HashMap<EndpointId, Instant>>,
}

impl FailingEndpoints {
    /// Calls `then` with those that fail at `now`; `None` if there are none.
    pub fn with<R>(&self, then: impl FnOnce(Option<Failing<'_>>) -> R) -> R {
        let until = self.until.load();
        then(if until.is_empty() { None } else { Some(Failing { until: &until, now: Instant::now() }) })
    }

    /// Whether an endpoint is avoided now.
    #[must_use]
    pub fn contains(&self, endpoint: &EndpointId) -> bool {
        self.with(|failing| failing.is_some_and(|failing| failing.contains(endpoint)))
    }

    fn note(&self, endpoint: &EndpointId) {
        let now = Instant::now();
        self.until.rcu(|until| {
            // Ids are never reused: without this the table would grow for ever.
            let others = until.iter().filter(|(_, until)| **until > now).take(MAX_FAILING - 1);
            let others = others.map(|(id, until)| (id.clone(), *until));
            others.chain([(endpoint.clone(), now + FAILING_FOR)]).collect::<HashMap<_, _>>()
        });
    }

    fn forget(&self, endpoint: &EndpointId) {
        if self.until.load().contains_key(endpoint) {
            self.until.rcu(|until| {
                let mut others = HashMap::clone(until);
                others.remove(endpoint);
                others
            });
        }
    }
}

/// What was tried for one connection.
#[derive(Debug, Default)]
struct Tries {
    tried: Vec<EndpointId>,
    failing: usize,
    first_failed: Option<Instant>,
}

impl Tries {
    /// Notes an endpoint that was not reached; whether another may be tried.
    fn failed(&mut self, picked: &Picked) -> bool {
        let first_failed = *self.first_failed.get_or_insert_with(Instant::now);
        self.tried.push(picked.endpoint.clone());
        self.failing += usize::from(picked.is_failing);
        let room = self.tried.len() < MAX_DIALS && self.failing < MAX_FAILING_DIALS;
        room && first_failed.elapsed() < LAST_DIAL
    }
}

/// Dials what `pick` names, given what was tried, until an endpoint takes the connection.
///
/// # Errors
/// [`ReachError`]
pub async fn reach(
    router: &Router,
    path: Path,
    connection: &mut Connection,
    pick: impl Fn(&[EndpointId]) -> Result<Picked, PickError>,
) -> Result<Reached, ReachError> {
    let mut tries = Tries::default();
    let mut last: Option<DialError> = None;
    loop {
        let picked = match (pick(&tries.tried), last.take()) {
            (Ok(picked), None) => picked,
            (Ok(picked), Some(_)) if !tries.tried.contains(&picked.endpoint) => picked,
            (_, Some(last)) => return Err(last.into()),
            (Err(error), None) => return Err(error.into()),
        };
        connection.set_upstream(path, picked.address);
        connection.set_version(picked.version.clone());
        let in_flight = router.in_flight.enter(&picked.endpoint);
        match dial(router, &picked).await {
            Ok(tcp) => return Ok(Reached { tcp, picked, in_flight }),
            Err(error) if tries.failed(&picked) => last = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
}

async fn dial(router: &Router, picked: &Picked) -> Result<TcpStream, DialError> {
    let dialled = dial::dial(picked.address, &router.dial).await;
    router.telemetry.metrics.upstream_dial(dial::outcome(&dialled));
    match &dialled {
        Ok(_) => router.failing.forget(&picked.endpoint),
        Err(error @ DialError::Forbidden(..)) => router.telemetry.refusals.refused(Refusal::Address, None, error),
        Err(DialError::Timeout(_) | DialError::Failed(..)) => router.failing.note(&picked.endpoint),
    }
    dialled
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use super::*;

    fn picked(number: usize, is_failing: bool) -> Picked {
        let endpoint = EndpointId::parse(&format!("e-{number}")).unwrap();
        Picked { endpoint, address: SocketAddr::from(([10, 0, 0, 1], 80)), version: None, is_failing, cut: None }
    }

    #[test]
    fn what_failed_is_avoided_until_it_is_reached_again() {
        let endpoints = FailingEndpoints::default();
        let (one, other) = (picked(1, false).endpoint, picked(2, false).endpoint);
        endpoints.with(|failing| assert!(failing.is_none(), "nothing is asked for the time"));
        endpoints.note(&one);
        endpoints.note(&other);
        assert!(endpoints.contains(&one));
        endpoints.forget(&one);
        assert!(!endpoints.contains(&one));
        endpoints.with(|failing| {
            let later = Failing { now: Instant::now() + FAILING_FOR, ..failing.unwrap() };
            assert!(!later.contains(&other), "for some seconds only");
        });
    }

    #[test]
    fn the_table_of_failing_endpoints_is_bounded() {
        let endpoints = FailingEndpoints::default();
        endpoints.until.store(Arc::new((0..2 * MAX_FAILING).map(|n| (picked(n, false).endpoint, far())).collect()));
        endpoints.note(&picked(9_999, false).endpoint);
        assert_eq!(endpoints.until.load().len(), MAX_FAILING);
        assert!(endpoints.contains(&picked(9_999, false).endpoint));
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn many_that_refuse_are_tried_and_few_that_are_known_to() {
        let dials = |is_failing| {
            let mut tries = Tries::default();
            (0..100).take_while(|number| tries.failed(&picked(*number, is_failing))).count() + 1
        };
        assert_eq!(dials(false), MAX_DIALS);
        assert_eq!(dials(true), MAX_FAILING_DIALS);
    }

    #[test]
    fn nobody_waits_for_a_third_that_does_not_answer() {
        let mut tries = Tries { first_failed: Instant::now().checked_sub(LAST_DIAL), ..Tries::default() };
        assert!(!tries.failed(&picked(1, false)));
    }
}
