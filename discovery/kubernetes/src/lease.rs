//! One of several: leader election on a Lease (`coordination.k8s.io/v1`).
//!
//! Nobody trusts another's clock. A candidate takes a Lease over when its record did not change for as long as it says
//! it lasts, by the candidate's own monotonic clock; a leader stops well before that, counted from when it began its
//! last renewal that worked. So at any time at most one of them writes, unless a process stands still for longer than
//! the difference in the middle of a request.

use std::time::Duration;

use k8s_openapi::api::coordination::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DynamicObject, PostParams};
use kube::core::TypeMeta;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::client;

/// How long a leader that says nothing counts as one. A crash costs so much, a stop costs nothing.
pub const DURATION: Duration = Duration::from_secs(15);
/// When a leader that could not renew stops: what it sent last has [`REQUEST`] to arrive, and 2 s remain.
const GIVE_UP: Duration = Duration::from_secs(8);
/// Longest a request of a leader may take.
pub const REQUEST: Duration = Duration::from_secs(5);
/// How often it is renewed, or looked at.
const INTERVAL: Duration = Duration::from_secs(2);

/// A candidate.
#[derive(Clone, Debug)]
pub struct Election {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The candidate's name: nobody else has it, now or later.
    pub identity: String,
}

impl Election {
    /// Takes part until `stop`, and says in `leading` whether this candidate leads. Gives the Lease up at the end.
    pub async fn run(self, client: Client, leading: watch::Sender<bool>, stop: CancellationToken) {
        let api = client::objects::<v1::Lease>(&client, &self.namespace);
        let mut candidate = Candidate::new(self.identity.clone());
        let mut failing = false;
        loop {
            let give_up = candidate.give_up_at();
            let result = tokio::select! {
                () = stop.cancelled() => break,
                result = self.step(&api, &mut candidate) => result,
                // A request that hangs must not keep the leader from stopping.
                () = until(give_up) => Err("no renewal arrived in time".to_owned()),
            };
            match result {
                Ok(()) => failing = false,
                Err(error) if !std::mem::replace(&mut failing, true) => {
                    warn!(error, lease = %self.name, "leader election: the API server cannot be asked");
                }
                Err(_) => {}
            }
            let now = candidate.leads(Instant::now());
            if leading.send_replace(now) != now {
                info!(lease = %self.name, identity = %self.identity, "{}", if now { "leading: this replica writes" } else { "not leading any more" });
            }
            // Two that wait for one Lease must not collide again and again.
            let pause = INTERVAL.mul_f64(0.8 + 0.4 * fastrand::f64());
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(pause) => {}
                () = until(candidate.give_up_at()) => {}
            }
        }
        leading.send_replace(false);
        if let Some(released) = candidate.released() {
            let params = PostParams::default();
            if !matches!(timeout(REQUEST, api.replace(&self.name, &params, &released.into())).await, Ok(Ok(_))) {
                warn!(lease = %self.name, "the Lease was not given up: another replica waits until it ends");
            }
        }
    }

    async fn step(&self, api: &Api<DynamicObject>, candidate: &mut Candidate) -> Result<(), String> {
        let asked = Instant::now();
        let found = timeout(REQUEST, api.get_opt(&self.name)).await;
        let found = found.map_err(|_| "timeout".to_owned())?.map_err(|error| error.to_string())?;
        let found = found.map(Lease::try_from).transpose().map_err(|error| error.to_string())?;
        let Some(mut lease) = candidate.decide(found.as_ref(), asked, Timestamp::now()) else { return Ok(()) };
        lease.metadata.name = Some(self.name.clone());
        let (params, lease) = (PostParams::default(), lease.into());
        let put = async {
            match &found {
                Some(_) => api.replace(&self.name, &params, &lease).await,
                None => api.create(&params, &lease).await,
            }
        };
        match timeout(REQUEST, put).await {
            Ok(Ok(written)) => {
                candidate.holds(Lease::try_from(written).map_err(|error| error.to_string())?, asked);
                Ok(())
            }
            // Somebody was faster.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("timeout".to_owned()),
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A Lease, as far as elections go.
#[derive(Clone, Debug, Default, PartialEq)]
struct Lease {
    metadata: ObjectMeta,
    spec: Record,
}

/// `spec` of a Lease.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Record {
    holder_identity: Option<String>,
    lease_duration_seconds: Option<i32>,
    acquire_time: Option<MicroTime>,
    renew_time: Option<MicroTime>,
    lease_transitions: Option<i32>,
}

impl TryFrom<DynamicObject> for Lease {
    type Error = serde_json::Error;

    fn try_from(object: DynamicObject) -> Result<Self, Self::Error> {
        let spec = Option::deserialize(object.data.get("spec").unwrap_or(&Value::Null))?;
        Ok(Self { metadata: object.metadata, spec: spec.unwrap_or_default() })
    }
}

impl From<Lease> for DynamicObject {
    fn from(Lease { metadata, spec }: Lease) -> Self {
        Self { types: Some(TypeMeta::resource::<v1::Lease>()), metadata, data: json!({ "spec": spec }) }
    }
}

/// What a candidate knows; decides without input and output.
#[derive(Debug)]
struct Candidate {
    identity: String,
    /// The record as it was first seen like this, and when.
    seen: Option<(Record, Instant)>,
    /// The Lease as this candidate wrote it, and when it began to.
    held: Option<(Lease, Instant)>,
}

impl Candidate {
    fn new(identity: String) -> Self {
        Self { identity, seen: None, held: None }
    }

    /// The Lease to write, if it is this candidate's or free. `found` was asked for at `now`; `wall` is what is written
    /// for people.
    fn decide(&mut self, found: Option<&Lease>, now: Instant, wall: Timestamp) -> Option<Lease> {
        let spec = found.map(|lease| lease.spec.clone()).unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let own = holder == self.identity;
        if !own {
            self.held = None;
        }
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != spec) {
            self.seen = Some((spec.clone(), now));
        }
        let lasts = u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
        let since = self.seen.as_ref().map_or(now, |(_, since)| *since);
        if !own && !holder.is_empty() && now < since + Duration::from_secs(lasts) {
            return None;
        }
        let transitions = spec.lease_transitions.unwrap_or_default();
        Some(Lease {
            metadata: found.map_or_else(ObjectMeta::default, |lease| lease.metadata.clone()),
            spec: Record {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                renew_time: Some(MicroTime(wall)),
                acquire_time: if own { spec.acquire_time } else { Some(MicroTime(wall)) },
                lease_transitions: Some(if own { transitions } else { transitions.saturating_add(1) }),
            },
        })
    }

    /// The Lease was written; the request began at `since`.
    fn holds(&mut self, written: Lease, since: Instant) {
        self.held = Some((written, since));
    }

    fn give_up_at(&self) -> Option<Instant> {
        self.held.as_ref().map(|(_, since)| *since + GIVE_UP)
    }

    fn leads(&mut self, now: Instant) -> bool {
        if self.give_up_at().is_some_and(|at| now >= at) {
            self.held = None;
        }
        self.held.is_some()
    }

    /// The Lease without a holder, if this candidate has it.
    fn released(&self) -> Option<Lease> {
        let mut lease = self.held.as_ref()?.0.clone();
        lease.spec.holder_identity = None;
        lease.spec.lease_duration_seconds = Some(1);
        Some(lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: Timestamp = Timestamp::UNIX_EPOCH;

    fn holder(lease: &Lease) -> &str {
        lease.spec.holder_identity.as_deref().unwrap_or_default()
    }

    /// One round of a candidate against the one Lease.
    fn round(candidate: &mut Candidate, lease: &mut Option<Lease>, now: Instant) {
        if let Some(new) = candidate.decide(lease.as_ref(), now, WALL) {
            *lease = Some(new.clone());
            candidate.holds(new, now);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_leader_stops_before_another_begins() {
        let (mut a, mut b) = (Candidate::new("a".to_owned()), Candidate::new("b".to_owned()));
        let mut lease = None;
        let start = Instant::now();
        round(&mut a, &mut lease, start);
        assert!(a.leads(start));
        // b sees every renewal, and a record that stays.
        let mut taken = None;
        for second in 0..40 {
            let now = start + Duration::from_secs(second);
            if second % 2 == 0 && second <= 4 {
                round(&mut a, &mut lease, now);
                // The wall clock is not what counts; but a renewal is seen by it.
                let spec = &mut lease.as_mut().unwrap().spec;
                spec.renew_time = Some(MicroTime(Timestamp::from_second(i64::try_from(second).unwrap()).unwrap()));
            }
            round(&mut b, &mut lease, now);
            if b.leads(now) {
                taken = taken.or(Some(second));
            }
            assert!(!(a.leads(now) && b.leads(now)), "two leaders after {second} s");
        }
        assert_eq!(taken, Some(4 + DURATION.as_secs()));
        assert_eq!(lease.as_ref().unwrap().spec.lease_transitions, Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_was_given_up_is_taken_at_once() {
        let (mut a, mut b) = (Candidate::new("a".to_owned()), Candidate::new("b".to_owned()));
        let now = Instant::now();
        let mut lease = None;
        round(&mut a, &mut lease, now);
        round(&mut b, &mut lease, now);
        assert!(!b.leads(now));
        lease = a.released();
        round(&mut b, &mut lease, now);
        assert!(b.leads(now));
        assert_eq!(holder(lease.as_ref().unwrap()), "b");
        // And a, had it not stopped, learns that it is not the leader.
        round(&mut a, &mut lease, now);
        assert!(!a.leads(now));
    }

    #[test]
    fn what_was_sent_last_arrives_before_the_lease_ends() {
        assert!(GIVE_UP + REQUEST < DURATION);
    }
}
