//! Which endpoint takes a connection.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use eastway_model::routing::{Failing, PickError, PickRequest, pick_endpoint};
use eastway_model::{
    Endpoint, EndpointCondition, EndpointId, LocalEndpoint, LocalService, ServiceKind, Subset, TlsMode, Zone,
};

use super::support::*;

static ANY: Subset = Subset::new();

fn with(number: u32, change: impl FnOnce(&mut Endpoint)) -> LocalEndpoint {
    let mut endpoint = local_endpoint(number, "v1");
    change(&mut endpoint.endpoint);
    endpoint
}

fn service(endpoints: impl IntoIterator<Item = LocalEndpoint>) -> LocalService {
    local_service("bookinfo/reviews", endpoints)
}

fn http() -> PickRequest<'static> {
    PickRequest::tcp(port_number(9080), &ANY)
}

/// How many of 10,000 connections each endpoint gets in an idle service.
fn shares(service: &LocalService, request: &PickRequest<'_>) -> BTreeMap<String, u32> {
    let (mut random, mut shares) = (fastrand::Rng::with_seed(3), BTreeMap::new());
    for _ in 0..10_000 {
        let picked = pick_endpoint(service, request, |_| 0, |below| random.u64(..below)).unwrap();
        *shares.entry(picked.endpoint.id.to_string()).or_default() += 1;
    }
    shares
}

fn only(service: &LocalService, request: &PickRequest<'_>) -> Vec<String> {
    shares(service, request).into_keys().collect()
}

fn assert_share(count: u32, share: f64) {
    let mean = 10_000.0 * share;
    assert!((f64::from(count) - mean).abs() <= 3.0 * (mean * (1.0 - share)).sqrt(), "{count}, expected {mean}");
}

#[test]
fn an_idle_service_is_used_by_weight() {
    let weighed = [100, 300, 600].into_iter().zip(1..).map(|(weight, n)| with(n, |endpoint| endpoint.weight = weight));
    let shares = shares(&service(weighed), &http());
    assert_share(shares["e00001"], 0.1);
    assert_share(shares["e00002"], 0.3);
    assert_share(shares["e00003"], 0.6);
}

#[test]
fn a_large_service_is_used_evenly_too() {
    let weight = |n: u32| if n.is_multiple_of(2) { 100 } else { 300 };
    let service = service((0..1_000).map(|n| with(n, |endpoint| endpoint.weight = weight(n))));
    let shares = shares(&service, &http());
    let odd: u32 = shares.iter().filter(|(id, _)| id.ends_with(['1', '3', '5', '7', '9'])).map(|(_, n)| n).sum();
    assert_share(odd, 0.75);
    assert!(shares.len() > 990);
}

#[test]
fn of_two_draws_the_endpoint_with_fewer_connections_is_taken() {
    let service = service((0..50).map(|n| local_endpoint(n, "v1")));
    let mut random = fastrand::Rng::with_seed(3);
    let mut in_flight: BTreeMap<EndpointId, u32> = BTreeMap::new();
    for _ in 0..50_000 {
        let count = |id: &EndpointId| in_flight.get(id).copied().unwrap_or_default();
        let picked = pick_endpoint(&service, &http(), count, |below| random.u64(..below)).unwrap();
        *in_flight.entry(picked.endpoint.id.clone()).or_default() += 1;
    }
    // By chance alone the fullest of 50 would be about 70 above the mean of 1,000.
    let (least, most) = (in_flight.values().min().unwrap(), in_flight.values().max().unwrap());
    assert!(most - least < 20, "{least} to {most}");
}

#[test]
fn connections_in_flight_count_per_weight() {
    let pair = [with(1, |endpoint| endpoint.weight = 100), with(2, |endpoint| endpoint.weight = 300)];
    let service = service(pair);
    let mut random = fastrand::Rng::with_seed(3);
    let mut in_flight: BTreeMap<EndpointId, u32> = BTreeMap::new();
    for _ in 0..4_000 {
        let count = |id: &EndpointId| in_flight.get(id).copied().unwrap_or_default();
        let picked = pick_endpoint(&service, &http(), count, |below| random.u64(..below)).unwrap();
        *in_flight.entry(picked.endpoint.id.clone()).or_default() += 1;
    }
    assert!(in_flight[&id("e00001")].abs_diff(1_000) < 20, "{in_flight:?}");
}

#[test]
fn draining_endpoints_take_connections_only_if_none_is_ready() {
    let draining = |n| with(n, |endpoint| endpoint.condition = EndpointCondition::DRAINING);
    let dead = |n| with(n, |endpoint| endpoint.condition = EndpointCondition::DOWN);
    let both = service([draining(1), local_endpoint(2, "v1"), dead(3)]);
    assert_eq!(only(&both, &http()), ["e00002"]);
    assert_eq!(only(&service([draining(1), dead(3)]), &http()), ["e00001"]);
    assert_eq!(pick_endpoint(&service([dead(3)]), &http(), |_| 0, |_| 0), Err(PickError::NoEndpoints));
    assert_eq!(pick_endpoint(&service([]), &http(), |_| 0, |_| 0), Err(PickError::NoEndpoints));
}

#[test]
fn the_clients_zone_is_preferred_as_long_as_it_has_a_ready_endpoint() {
    let zoned = |n, zone: &str, condition| {
        with(n, |endpoint| {
            endpoint.zone = Some(Zone::from(zone));
            endpoint.condition = condition;
        })
    };
    let endpoints =
        || (0..40).map(|n| zoned(n, if n < 3 { "a" } else { "b" }, EndpointCondition::READY)).collect::<Vec<_>>();
    let request = PickRequest { zone: Some("a"), ..http() };
    assert_eq!(only(&service(endpoints()), &request), ["e00000", "e00001", "e00002"]);
    let drained = endpoints().into_iter().map(|mut endpoint| {
        if endpoint.endpoint.zone.as_deref() == Some("a") {
            endpoint.endpoint.condition = EndpointCondition::DRAINING;
        }
        endpoint
    });
    assert_eq!(only(&service(drained), &request).len(), 37);
}

#[test]
fn labels_and_ports_are_respected() {
    let other_port = LocalEndpoint { target_ports: [(port_number(1).into(), 1)].into(), ..local_endpoint(3, "v2") };
    let service = service([local_endpoint(1, "v1"), local_endpoint(2, "v2"), other_port]);
    let v2 = subset("v2");
    assert_eq!(only(&service, &PickRequest::tcp(port_number(9080), &v2)), ["e00002"]);
    let pick = |request: PickRequest<'_>| pick_endpoint(&service, &request, |_| 0, |_| 0).map(|_| ());
    assert_eq!(pick(PickRequest::tcp(port_number(9080), &subset("v9"))), Err(PickError::NoEndpoints));
    assert_eq!(pick(PickRequest::tcp(port_number(80), &ANY)), Err(PickError::UnknownPort));
    assert_eq!(pick(PickRequest { protocol: eastway_model::Protocol::Udp, ..http() }), Err(PickError::UnknownPort));
}

#[test]
fn a_named_endpoint_is_that_one_or_none() {
    let down = with(2, |endpoint| endpoint.condition = EndpointCondition::DOWN);
    let service = service([local_endpoint(1, "v1"), down]);
    let pick = |name: &str| {
        let endpoint = id(name);
        let request = PickRequest { endpoint: Some(&endpoint), ..http() };
        pick_endpoint(&service, &request, |_| 0, |_| 0).map(|picked| picked.endpoint.id.to_string())
    };
    assert_eq!(pick("e00001"), Ok("e00001".to_owned()));
    assert_eq!(pick("e00002"), Err(PickError::NoEndpoints));
    assert_eq!(pick("e00003"), Err(PickError::NoEndpoints));
}

#[test]
fn a_retry_avoids_what_was_tried_as_long_as_something_else_is_left() {
    let service = service((1..4).map(|n| local_endpoint(n, "v1")));
    let tried = [id("e00001"), id("e00003")];
    assert_eq!(only(&service, &PickRequest { avoid: &tried, ..http() }), ["e00002"]);
    let all = [id("e00001"), id("e00002"), id("e00003")];
    assert_eq!(only(&service, &PickRequest { avoid: &all, ..http() }).len(), 3);
}

#[test]
fn who_fails_is_used_only_if_nobody_else_is_left() {
    let draining = with(3, |endpoint| endpoint.condition = EndpointCondition::DRAINING);
    let service = service([local_endpoint(1, "v1"), local_endpoint(2, "v1"), draining]);
    let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(5));
    let failing = |numbers: &[&str]| numbers.iter().map(|number| (id(number), later)).collect::<HashMap<_, _>>();
    let pick = |numbers: &[&str], now, avoid: &[EndpointId]| {
        let until = failing(numbers);
        only(&service, &PickRequest { failing: Some(Failing { until: &until, now }), avoid, ..http() })
    };
    assert_eq!(pick(&["e00001"], now, &[]), ["e00002"]);
    assert_eq!(pick(&["e00001", "e00002"], now, &[]), ["e00003"], "rather one that drains");
    assert_eq!(pick(&["e00001", "e00002", "e00003"], now, &[]).len(), 3);
    let tried = [id("e00002"), id("e00003")];
    assert_eq!(pick(&["e00001"], now, &tried), ["e00001"], "rather than one that was tried just now");
    assert_eq!(pick(&["e00001"], later, &[]), ["e00001", "e00002"], "for a time only");
}

#[test]
fn one_of_the_same_version_stands_in_for_a_named_endpoint_that_cannot_be_reached() {
    let until: HashMap<_, _> = [(id("e00001"), Instant::now() + Duration::from_secs(5))].into();
    let failing = Some(Failing { until: &until, now: Instant::now() });
    let named = id("e00001");
    let request = PickRequest { endpoint: Some(&named), failing, ..http() };
    let strict = with(1, |endpoint| endpoint.tls = TlsMode::MeshStrict);
    let siblings = || [local_endpoint(2, "v2"), local_endpoint(3, "v1")];
    let plain = service([local_endpoint(1, "v1")].into_iter().chain(siblings()));
    assert_eq!(only(&plain, &request), ["e00003"]);
    assert_eq!(only(&plain, &PickRequest { failing: None, ..request }), ["e00001"], "while it can be reached");
    let tried = [named.clone()];
    assert_eq!(only(&plain, &PickRequest { failing: None, avoid: &tried, ..request }), ["e00003"], "at once");
    let all = [named.clone(), id("e00003")];
    assert_eq!(only(&plain, &PickRequest { avoid: &all, ..request }), ["e00001"], "nobody is left");
    let alone = service([local_endpoint(1, "v1"), local_endpoint(2, "v2")]);
    assert_eq!(only(&alone, &request), ["e00001"], "another version is another thing");
    let mutual = service([strict].into_iter().chain(siblings()));
    assert_eq!(only(&mutual, &request), ["e00001"], "the client asks it who it is");
    let mut headless = plain.clone();
    Arc::make_mut(&mut headless.record).kind = ServiceKind::Headless;
    assert_eq!(only(&headless, &request), ["e00001"], "its name says which");
}

#[test]
fn a_sticky_client_stays_and_only_those_of_a_lost_endpoint_move() {
    let all: Vec<LocalEndpoint> = (0..10).map(|n| local_endpoint(n, "v1")).collect();
    let of = |service: &LocalService, client: u64| {
        let request = PickRequest { affinity: Some(client), ..http() };
        pick_endpoint(service, &request, |_| 9, |_| panic!("no chance")).unwrap().endpoint.id.clone()
    };
    let (whole, less) = (service(all.clone()), service(all.into_iter().skip(1)));
    // Keys of clients are hashes already.
    let clients = || (0..10_000_u64).map(|client| client.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let lost = id("e00000");
    let moved = clients().filter(|client| of(&whole, *client) != of(&less, *client));
    assert!(moved.map(|client| of(&whole, client)).all(|endpoint| endpoint == lost));
    let of_lost = clients().filter(|client| of(&whole, *client) == lost).count();
    assert_share(u32::try_from(of_lost).unwrap(), 0.1);
}

#[test]
fn a_draw_out_of_bounds_does_no_harm() {
    let service = service((0..3).map(|n| local_endpoint(n, "v1")));
    assert!(pick_endpoint(&service, &http(), |_| 0, |_| u64::MAX).is_err());
    let large = self::service((0..300).map(|n| local_endpoint(n, "v1")));
    assert!(pick_endpoint(&large, &http(), |_| 0, |_| u64::MAX).is_err());
    drop(Arc::new(large));
}

#[test]
fn an_endpoint_that_takes_tls_only_is_not_for_a_client_without() {
    let strict = |number| {
        let mut endpoint = local_endpoint(number, "v1");
        endpoint.endpoint.tls = TlsMode::MeshStrict;
        endpoint
    };
    let plain = PickRequest { plain: true, ..http() };
    assert_eq!(only(&service([strict(1), local_endpoint(2, "v1")]), &plain), ["e00002"]);
    let all_strict = service([strict(1), strict(2)]);
    assert_eq!(pick_endpoint(&all_strict, &plain, |_| 0, |_| 0), Err(PickError::TlsRequired));
    assert_eq!(
        pick_endpoint(&all_strict, &PickRequest { affinity: Some(1), ..plain }, |_| 0, |_| 0),
        Err(PickError::TlsRequired)
    );
    assert_eq!(only(&all_strict, &http()).len(), 2, "with a sidecar");
}
