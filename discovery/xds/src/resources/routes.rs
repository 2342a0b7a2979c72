//! Which HTTP request goes to which cluster: the rules of a service, as a proxy's route configuration.

use std::time::Duration;

use eastway_model::rules::route::{
    Entry, HeaderEdit, HeaderEdits, Lifetime, Mirror, Persistence, Retry, Rule, Target, Timeouts,
};
use eastway_model::store::Snapshot;
use eastway_model::{Import, ServicePort};
use eastway_proto::envoy::config::core::v3 as core;
use eastway_proto::envoy::config::route::v3 as route;
use eastway_proto::envoy::extensions::filters::http::stateful_session::v3 as session;
use eastway_proto::envoy::extensions::http::stateful_session::cookie::v3 as cookie;
use eastway_proto::envoy::extensions::http::stateful_session::header::v3 as header;
use eastway_proto::envoy::extensions::retry::host::previous_hosts::v3 as previous;
use eastway_proto::envoy::r#type::http::v3::Cookie;
use eastway_proto::envoy::r#type::v3::FractionalPercent;
use eastway_proto::envoy::r#type::v3::fractional_percent::DenominatorType;
use prost::{Message, Name};

use super::affinity;
use super::fault::{FAULTS, faults};
use super::matching::request_match;
use super::parts::{any, duration, for_all_hosts, number};
use super::rewriting::{redirect, rewrite};
use super::subset::{NOWHERE, Weighted, cluster_of, splits, weighted};

/// Name of the filter that keeps the requests of a session together.
pub(super) const SESSIONS: &str = "envoy.filters.http.stateful_session";
/// What is tried again unless a rule says otherwise.
const SAFE: &str = "connect-failure,refused-stream,gateway-error";
/// Tries of a request after the first, each at another endpoint.
const RETRIES: u32 = 2;
/// Choices made to find an endpoint that was not tried yet.
const CHOICES: i64 = 5;
/// The longest wait before a retry, in shortest ones.
const LONGEST_BACKOFF: u32 = 10;

/// The route configuration of a port. Without rules everything goes by the splits of the service's policy, else to its
/// one cluster.
pub(super) fn configuration(
    snapshot: &Snapshot,
    import: &Import,
    port: &ServicePort,
    name: &str,
) -> route::RouteConfiguration {
    let table = import.routes.as_deref().and_then(|table| table.at(port));
    let mut routes = match table {
        Some(routes) => routes.entries.iter().map(|entry| of_entry(snapshot, port, entry)).collect(),
        None => vec![without_rules(snapshot, import, port)],
    };
    for route in routes.iter_mut().filter(|_| affinity::is_sticky(import)) {
        if let Some(route::route::Action::Route(action)) = &mut route.action {
            affinity::of_request(action);
        }
    }
    for_all_hosts(name, routes)
}

fn without_rules(snapshot: &Snapshot, import: &Import, port: &ServicePort) -> route::Route {
    let weighted = splits(snapshot, import, port);
    let action = route::RouteAction {
        cluster_specifier: Some(clusters(&Rule::default(), &weighted)),
        timeout: duration(Duration::ZERO),
        retry_policy: Some(retry(None, Timeouts::default())),
        ..route::RouteAction::default()
    };
    route::Route {
        r#match: Some(request_match(None)),
        action: Some(route::route::Action::Route(action)),
        ..route::Route::default()
    }
}

fn of_entry(snapshot: &Snapshot, port: &ServicePort, entry: &Entry) -> route::Route {
    let nothing = Rule::default();
    let rule = entry.rule().unwrap_or(&nothing);
    let wanted = entry.request_match();
    let action = match &rule.filters.redirect {
        Some(to) => route::route::Action::Redirect(redirect(to, wanted, port)),
        None => forward(snapshot, port, entry, rule),
    };
    let Edits { add, remove } = edits(&rule.filters.request);
    let Edits { add: add_to_answer, remove: remove_from_answer } = edits(&rule.filters.response);
    let fault = rule.fault.map(|fault| (FAULTS.to_owned(), any(&faults(fault))));
    let session = rule.persistence.as_ref().map(|persistence| (SESSIONS.to_owned(), any(&sessions(persistence))));
    route::Route {
        name: format!("{}/{}/{}", entry.route.object_kind(), entry.route.name, entry.rule),
        r#match: Some(request_match(wanted)),
        action: Some(action),
        request_headers_to_add: add,
        request_headers_to_remove: remove,
        response_headers_to_add: add_to_answer,
        response_headers_to_remove: remove_from_answer,
        typed_per_filter_config: session.into_iter().chain(fault).collect(),
        ..route::Route::default()
    }
}

/// To the backends. Without any that could get something it is answered with 500 (Gateway API,
/// `HTTPRouteRule.backendRefs`).
fn forward(snapshot: &Snapshot, port: &ServicePort, entry: &Entry, rule: &Rule) -> route::route::Action {
    let references = rule.backends.iter().map(|backend| &backend.reference);
    let all = references.zip(entry.weighted()).map(|(reference, (target, weight))| (reference, target, weight));
    let weighted = weighted(snapshot, port, all);
    if weighted.iter().all(|one| one.name == NOWHERE) {
        let answer = route::DirectResponseAction { status: 500, ..route::DirectResponseAction::default() };
        return route::route::Action::DirectResponse(answer);
    }
    let mut action = route::RouteAction {
        cluster_specifier: Some(clusters(rule, &weighted)),
        cluster_not_found_response_code: route::route_action::ClusterNotFoundResponseCode::InternalServerError.into(),
        timeout: duration(rule.timeouts.request.unwrap_or_default()),
        retry_policy: Some(retry(rule.retry.as_ref(), rule.timeouts)),
        request_mirror_policies: mirrors(snapshot, port, &rule.filters.mirrors, &entry.mirrors),
        ..route::RouteAction::default()
    };
    if let Some(to) = &rule.filters.rewrite {
        rewrite(to, entry.request_match(), &mut action);
    }
    route::route::Action::Route(action)
}

fn clusters(rule: &Rule, weighted: &[Weighted]) -> route::route_action::ClusterSpecifier {
    use route::route_action::ClusterSpecifier;
    let backend = |one: &Weighted| rule.backends.get(one.index);
    let has_edits = |one: &Weighted| backend(one).is_some_and(|it| !it.request.is_empty() || !it.response.is_empty());
    if let [only] = weighted
        && !has_edits(only)
    {
        return ClusterSpecifier::Cluster(only.name.clone());
    }
    let clusters = weighted.iter().map(|one| {
        let Edits { add, remove } = backend(one).map(|backend| edits(&backend.request)).unwrap_or_default();
        let answer = backend(one).map(|backend| edits(&backend.response)).unwrap_or_default();
        route::weighted_cluster::ClusterWeight {
            name: one.name.clone(),
            weight: number(one.weight),
            request_headers_to_add: add,
            request_headers_to_remove: remove,
            response_headers_to_add: answer.add,
            response_headers_to_remove: answer.remove,
            ..route::weighted_cluster::ClusterWeight::default()
        }
    });
    ClusterSpecifier::WeightedClusters(route::WeightedCluster {
        clusters: clusters.collect(),
        ..route::WeightedCluster::default()
    })
}

/// What a rule says of retries, and each at another endpoint.
fn retry(retry: Option<&Retry>, timeouts: Timeouts) -> route::RetryPolicy {
    let predicate = route::retry_policy::RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(route::retry_policy::retry_host_predicate::ConfigType::TypedConfig(any(
            &previous::PreviousHostsPredicate::default(),
        ))),
    };
    let per_try = timeouts.backend_request.filter(|limit| !limit.is_zero());
    let mut policy = route::RetryPolicy {
        retry_on: SAFE.to_owned(),
        num_retries: number(RETRIES),
        per_try_timeout: per_try.and_then(duration),
        retry_host_predicate: vec![predicate],
        host_selection_retry_max_attempts: CHOICES,
        ..route::RetryPolicy::default()
    };
    if let Some(retry) = retry {
        let by_status = (!retry.codes.is_empty()).then_some("retriable-status-codes");
        policy.retry_on = retry.on.iter().map(|on| on.as_str()).chain(by_status).collect::<Vec<_>>().join(",");
        policy.retriable_status_codes = retry.codes.iter().map(|code| u32::from(*code)).collect();
        policy.num_retries = number(retry.attempts.unwrap_or(RETRIES));
        policy.retry_back_off = retry.backoff.map(|base| route::retry_policy::RetryBackOff {
            base_interval: duration(base),
            max_interval: duration(base * LONGEST_BACKOFF),
        });
    }
    policy
}

fn mirrors(
    snapshot: &Snapshot,
    port: &ServicePort,
    mirrors: &[Mirror],
    targets: &[Option<Target>],
) -> Vec<route::route_action::RequestMirrorPolicy> {
    let policies = mirrors.iter().zip(targets).filter_map(|(mirror, target)| {
        // A copy that goes nowhere is none.
        let cluster = cluster_of(snapshot, port, target.as_ref()?)?;
        let (numerator, denominator) = (u64::from(mirror.numerator), u64::from(mirror.denominator.max(1)));
        let millionths = u32::try_from(numerator * 1_000_000 / denominator).unwrap_or(1_000_000).min(1_000_000);
        let fraction = FractionalPercent { numerator: millionths, denominator: DenominatorType::Million.into() };
        Some(route::route_action::RequestMirrorPolicy {
            cluster,
            runtime_fraction: Some(core::RuntimeFractionalPercent {
                default_value: Some(fraction),
                runtime_key: String::new(),
            }),
            // The copy is what the request is.
            disable_shadow_host_suffix_append: true,
            ..route::route_action::RequestMirrorPolicy::default()
        })
    });
    policies.collect()
}

/// Changes of headers.
#[derive(Debug, Default)]
struct Edits {
    add: Vec<core::HeaderValueOption>,
    remove: Vec<String>,
}

fn edits(edits: &HeaderEdits) -> Edits {
    use core::header_value_option::HeaderAppendAction;
    let option = |edit: &HeaderEdit, action: HeaderAppendAction| core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: edit.name.to_string(),
            // Envoy fills in what stands between percent signs.
            value: edit.value.replace('%', "%%"),
            ..core::HeaderValue::default()
        }),
        append_action: action.into(),
        keep_empty_value: true,
        ..core::HeaderValueOption::default()
    };
    let set = edits.set.iter().map(|edit| option(edit, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = edits.add.iter().map(|edit| option(edit, HeaderAppendAction::AppendIfExistsOrAdd));
    Edits { add: set.chain(add).collect(), remove: edits.remove.iter().map(ToString::to_string).collect() }
}

fn sessions(persistence: &Persistence) -> session::StatefulSessionPerRoute {
    let name = persistence.name.to_string();
    let with_cookie = |ttl: Option<Duration>| {
        let cookie =
            Cookie { name: name.clone(), ttl: ttl.and_then(duration), path: "/".to_owned(), ..Cookie::default() };
        extension("envoy.http.stateful_session.cookie", &cookie::CookieBasedSessionState { cookie: Some(cookie) })
    };
    let state = match persistence.carrier {
        Lifetime::SessionCookie => with_cookie(None),
        Lifetime::PermanentCookie(lifetime) => with_cookie(Some(lifetime)),
        Lifetime::Header => {
            extension("envoy.http.stateful_session.header", &header::HeaderBasedSessionState { name: name.clone() })
        }
    };
    let session = session::StatefulSession { session_state: Some(state), ..session::StatefulSession::default() };
    session::StatefulSessionPerRoute {
        r#override: Some(session::stateful_session_per_route::Override::StatefulSession(session)),
    }
}

fn extension<M: Message + Name>(name: &str, config: &M) -> core::TypedExtensionConfig {
    core::TypedExtensionConfig { name: name.to_owned(), typed_config: Some(any(config)) }
}
