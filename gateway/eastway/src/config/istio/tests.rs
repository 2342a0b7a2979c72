//! What is made of Istio's objects: the same as of our own that say it.

use std::collections::BTreeSet;

use eastway_model::rules::Rules;
use eastway_model::rules::route::{Entry, Filters, Rule};
use eastway_model::{AppProtocol, PortName, PortNumber, Protocol, ServiceKey, ServicePort, UnixMillis};
use eastway_registry::yaml::Keys;

use super::fields;
use crate::config::load;
use crate::config::tests::{Folder, MINIMAL, PEER};

const RULE: &str = "\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: bookinfo}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: v3, labels: {version: v3}}
";

const SHARES: &str = "\
apiVersion: eastway.dev/v1alpha1
kind: ServiceShare
metadata: {name: v1, namespace: bookinfo}
spec: {service: reviews, subset: {version: v1}}
---
apiVersion: eastway.dev/v1alpha1
kind: ServiceShare
metadata: {name: v2, namespace: bookinfo}
spec: {service: reviews, subset: {version: v2}}
---
apiVersion: eastway.dev/v1alpha1
kind: ServiceShare
metadata: {name: v3, namespace: bookinfo}
spec: {service: reviews, subset: {version: v3}}
";

fn folder(files: &[(&str, &str)]) -> Folder {
    let folder = Folder::new(&[("gateway.yaml", MINIMAL), ("peers/gke.yaml", PEER)]);
    files.iter().for_each(|(name, text)| folder.write(&format!("policies/{name}.yaml"), text));
    folder
}

fn rules(files: &[(&str, &str)]) -> Rules {
    let folder = folder(files);
    match load(&folder.path("gateway.yaml")) {
        Ok(loaded) => loaded.rules(|_| UnixMillis(7)),
        Err(errors) => panic!("{errors}"),
    }
}

fn errors(file: &str) -> String {
    folder(&[("a", file)]).errors()
}

fn key() -> ServiceKey {
    "bookinfo/reviews".parse().unwrap()
}

fn port(number: u16, name: &str) -> ServicePort {
    let number = PortNumber::new(number).unwrap();
    let port = ServicePort { name: PortName::parse(name).ok(), number, protocol: Protocol::Tcp, app_protocol: None };
    assert_eq!(AppProtocol::of(&port).is_http(), name == "http");
    port
}

/// All that an entry says, with what its backends and mirrors lead to in place of their names.
fn said(entry: &Entry) -> String {
    let nothing = Rule::default();
    let rule = entry.rule().unwrap_or(&nothing);
    let Filters { request, response, redirect, rewrite, mirrors } = &rule.filters;
    let mirrors: Vec<_> = mirrors.iter().map(|one| (one.numerator, one.denominator)).zip(&*entry.mirrors).collect();
    let backends = rule.backends.iter().map(|one| (one.weight, &one.request, &one.response));
    let backends: Vec<_> = backends.zip(&*entry.targets).collect();
    format!(
        "{:?} {:?} {request:?} {response:?} {redirect:?} {rewrite:?} {mirrors:?} {backends:?} {:?} {:?} {:?} {:?}",
        entry.request_match(),
        entry.server_names(),
        rule.timeouts,
        rule.retry,
        rule.fault,
        rule.persistence,
    )
}

fn said_at(rules: &Rules, port: &ServicePort) -> Vec<String> {
    let table = rules.routes.table(&key()).expect("rules for reviews");
    table.at(port).expect("rules for the port").entries.into_iter().map(said).collect()
}

fn virtual_service(spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews, namespace: bookinfo}}\n\
         spec:\n  hosts: [reviews]\n{spec}"
    )
}

fn gateway_route(kind: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    let parent = "{group: '', kind: Service, name: reviews}";
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: reviews, namespace: bookinfo}}\n\
         spec:\n  parentRefs: [{parent}]\n{spec}"
    )
}

/// Istio's words, and ours for the same.
fn twins(istio: &str, kind: &str, ours: &str) {
    let (istio, ours) = (virtual_service(istio), gateway_route(kind, ours));
    let istio = rules(&[("rule", RULE), ("service", &istio)]);
    let ours = rules(&[("shares", SHARES), ("route", &ours)]);
    let port = if kind == "HTTPRoute" { port(9080, "http") } else { port(9090, "tcp") };
    assert_eq!(said_at(&istio, &port), said_at(&ours, &port));
}

#[test]
fn weights_and_subsets() {
    twins(
        "http: [{route: [{destination: {host: reviews, subset: v1}}]}]",
        "HTTPRoute",
        "rules: [{backendRefs: [{group: eastway.dev, kind: ServiceShare, name: v1}]}]",
    );
    twins(
        "http:
- route:
  - destination: {host: reviews.bookinfo.svc.cluster.local, subset: v1}
    weight: 80
  - destination: {host: reviews.bookinfo.svc.clusterset.local, subset: v3, port: {number: 9081}}
    weight: 20
  - destination: {host: ratings.other.svc.cluster.local}",
        "HTTPRoute",
        "rules:
- backendRefs:
  - {group: eastway.dev, kind: ServiceShare, name: v1, weight: 80}
  - {group: eastway.dev, kind: ServiceShare, name: v3, weight: 20, port: 9081}
  - {group: multicluster.x-k8s.io, kind: ServiceImport, name: ratings, namespace: other, weight: 0}",
    );
}

#[test]
fn what_is_asked_for() {
    twins(
        "http:
- match:
  - uri: {exact: /api}
    method: {exact: GET}
    headers: {End-User: {exact: jason}, x-a: {regex: 'b+'}}
    queryParams: {q: {exact: '1'}, r: {regex: '[0-9]'}}
  - uri: {regex: '/v[0-9]/.*'}
    authority: {exact: web.example}
    headers: {x-b: {prefix: 'a.b'}, x-c: {}}
  - uri: {prefix: /}
  route: [{destination: {host: reviews, subset: v2}}]",
        "HTTPRoute",
        "rules:
- matches:
  - path: {type: Exact, value: /api}
    method: GET
    headers: [{name: end-user, value: jason}, {name: x-a, type: RegularExpression, value: 'b+'}]
    queryParams: [{name: q, value: '1'}, {name: r, type: RegularExpression, value: '[0-9]'}]
  - path: {type: RegularExpression, value: '/v[0-9]/.*'}
    headers:
    - {name: host, value: web.example}
    - {name: x-b, type: RegularExpression, value: 'a\\.b.*'}
    - {name: x-c, type: RegularExpression, value: '.*'}
  - path: {value: /}
  backendRefs: [{group: eastway.dev, kind: ServiceShare, name: v2}]",
    );
}

#[test]
fn what_is_changed_on_the_way() {
    twins(
        "http:
- headers:
    request: {set: {X-Set: new}, add: {x-add: more}, remove: [x-gone]}
    response: {set: {x-answer: '1'}}
  mirror: {host: reviews, subset: v3}
  mirrorPercentage: {value: 25}
  mirrors: [{destination: {host: reviews, subset: v2}, percentage: {value: 0.5}}]
  timeout: 2.5s
  retries: {attempts: 3, perTryTimeout: 500ms, backoff: 10ms, retryOn: 'connect-failure,refused-stream, reset,503,504'}
  route:
  - destination: {host: reviews, subset: v1}
    headers: {request: {set: {x-backend: v1}}, response: {remove: [server]}}",
        "HTTPRoute",
        "rules:
- filters:
  - type: RequestHeaderModifier
    requestHeaderModifier: {set: [{name: x-set, value: new}], add: [{name: x-add, value: more}], remove: [x-gone]}
  - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-answer, value: '1'}]}}
  - type: RequestMirror
    requestMirror: {backendRef: {group: eastway.dev, kind: ServiceShare, name: v3}, percent: 25}
  - type: RequestMirror
    requestMirror:
      backendRef: {group: eastway.dev, kind: ServiceShare, name: v2}
      fraction: {numerator: 5000, denominator: 1000000}
  timeouts: {request: 2s500ms, backendRequest: 500ms}
  retry: {codes: [503, 504], attempts: 3, backoff: 10ms}
  backendRefs:
  - group: eastway.dev
    kind: ServiceShare
    name: v1
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-backend, value: v1}]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [server]}}",
    );
}

#[test]
fn other_places() {
    twins(
        "http: [{redirect: {uri: /there, authority: 'shop.example:8080', scheme: https, redirectCode: 308}}]",
        "HTTPRoute",
        "rules:
- filters:
  - type: RequestRedirect
    requestRedirect:
      hostname: shop.example
      port: 8080
      scheme: https
      statusCode: 308
      path: {type: ReplaceFullPath, replaceFullPath: /there}",
    );
    twins(
        "http: [{redirect: {authority: shop.example}}]",
        "HTTPRoute",
        "rules: [{filters: [{type: RequestRedirect, requestRedirect: {hostname: shop.example, port: 80, statusCode: 301}}]}]",
    );
    twins(
        "http: [{rewrite: {authority: other.example}, route: [{destination: {host: reviews}}]}]",
        "HTTPRoute",
        "rules:
- filters: [{type: URLRewrite, urlRewrite: {hostname: other.example}}]
  backendRefs: [{group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews}]",
    );
    let rules =
        rules(&[("a", &virtual_service("http: [{rewrite: {uri: /new}, route: [{destination: {host: reviews}}]}]"))]);
    let said = said_at(&rules, &port(9080, "http"));
    assert!(said[0].contains("Matched(\"/new\")"), "{said:?}");
}

#[test]
fn connections_and_server_names() {
    let backends = "[{group: eastway.dev, kind: ServiceShare, name: v1, weight: 9}, \
                    {group: eastway.dev, kind: ServiceShare, name: v2, weight: 1}]";
    twins(
        "tcp:
- route:
  - {destination: {host: reviews, subset: v1}, weight: 9}
  - {destination: {host: reviews, subset: v2}, weight: 1}",
        "TCPRoute",
        &format!("rules: [{{backendRefs: {backends}}}]"),
    );
    let istio = rules(&[
        ("rule", RULE),
        (
            "service",
            &virtual_service(
                "tls:
- match: [{port: 9090, sniHosts: [a.example, '*.b.example']}]
  route: [{destination: {host: reviews, subset: v1}}]
- match: [{sniHosts: [c.example]}]
  route: [{destination: {host: reviews, subset: v2}}]
tcp:
- match: [{port: 9091}]
  route: [{destination: {host: reviews, subset: v3}}]",
            ),
        ),
    ]);
    let table = istio.routes.table(&key()).unwrap();
    let at = |number| {
        let entries = table.at(&port(number, "tcp")).unwrap().entries;
        entries
            .into_iter()
            .map(|entry| (entry.server_names().join(" "), entry.targets[0].as_ref().unwrap().share.to_string()))
            .collect::<Vec<_>>()
    };
    let pair = |names: &str, share: &str| (names.to_owned(), share.to_owned());
    assert_eq!(at(9090), [pair("a.example *.b.example", "version=v1"), pair("c.example", "version=v2")]);
    // The names are asked first, and the second rule is for every port.
    assert_eq!(at(9091), [pair("c.example", "version=v2")]);
}

/// The rules come in the order of the list, whatever is more specific; with a route of the Gateway API for the same service
/// that one counts, and of two VirtualServices the first.
#[test]
fn the_first_that_matches_counts() {
    let to = |subset: &str| format!("route: [{{destination: {{host: reviews, subset: {subset}}}}}]");
    let list = virtual_service(&format!(
        "http:\n- match: [{{uri: {{prefix: /a}}}}]\n  {}\n- match: [{{uri: {{exact: /a/b}}}}, {{port: 81}}]\n  {}\n- {}",
        to("v1"),
        to("v2"),
        to("v3")
    ));
    let other = list.replace("name: reviews, namespace", "name: second, namespace");
    let files = [("rule", RULE), ("b", &list), ("a", &other)];
    let names = |rules: &Rules, number| -> Vec<String> {
        let table = rules.routes.table(&key()).unwrap();
        let entries = table.at(&port(number, "http")).unwrap().entries;
        entries.iter().map(|entry| format!("{} {}", entry.route, entry.route.rule_name(entry.rule))).collect()
    };
    let named = |numbers: &[u8]| -> Vec<String> {
        numbers.iter().map(|number| format!("VirtualService bookinfo/reviews http[{number}]")).collect()
    };
    let both = rules(&files);
    assert_eq!(names(&both, 80), named(&[0, 1, 2]));
    assert_eq!(names(&both, 81), named(&[0, 1, 1, 2]), "a match of one port");
    let ours = gateway_route("HTTPRoute", "rules: [{backendRefs: [{kind: Service, name: reviews, port: 9080}]}]");
    let with_ours = rules(&[files[0], files[1], files[2], ("c", &ours)]);
    assert_eq!(names(&with_ours, 80), ["HTTPRoute bookinfo/reviews rules[0]"]);
}

/// The rules of the Bookinfo example, by the shapes that Istio's users know.
#[test]
fn bookinfo() {
    let v1 = "http:\n- route:\n  - destination:\n      host: reviews\n      subset: v1";
    let share =
        |name: &str, weight: u32| format!("{{group: eastway.dev, kind: ServiceShare, name: {name}, weight: {weight}}}");
    twins(v1, "HTTPRoute", &format!("rules: [{{backendRefs: [{}]}}]", share("v1", 1)));
    let half = format!("{v1}\n    weight: 50\n  - destination:\n      host: reviews\n      subset: v3\n    weight: 50");
    twins(&half, "HTTPRoute", &format!("rules: [{{backendRefs: [{}, {}]}}]", share("v1", 50), share("v3", 50)));
    let jason = "- match:\n  - headers:\n      end-user:\n        exact: jason\n";
    let v2 = "  route:\n  - destination:\n      host: reviews\n      subset: v2\n";
    let his = v1.replacen("http:\n", &format!("http:\n{jason}{v2}"), 1);
    let match_his = "matches: [{headers: [{name: end-user, value: jason}]}]";
    let his_rule = format!("{{{match_his}, backendRefs: [{}]}}", share("v2", 1));
    twins(&his, "HTTPRoute", &format!("rules: [{his_rule}, {{backendRefs: [{}]}}]", share("v1", 1)));

    let fault = |fault: &str| {
        let text = virtual_service(&format!("http:\n{jason}  fault:\n{fault}{v2}{}", v1.replacen("http:\n", "", 1)));
        let rules = rules(&[("rule", RULE), ("service", &text)]);
        let table = rules.routes.table(&key()).unwrap();
        let entries = table.at(&port(9080, "http")).unwrap().entries;
        entries.iter().map(|entry| entry.rule().unwrap().fault).collect::<Vec<_>>()
    };
    let delayed = fault("    delay:\n      percentage:\n        value: 100.0\n      fixedDelay: 7s\n");
    let delay = delayed[0].unwrap().delay.unwrap();
    assert_eq!((delay.duration.as_secs(), delay.per_million, delayed[1]), (7, 1_000_000, None));
    let aborted = fault("    abort:\n      httpStatus: 500\n      percentage:\n        value: 0.1\n");
    let abort = aborted[0].unwrap().abort.unwrap();
    assert_eq!((abort.status, abort.per_million, aborted[1]), (500, 1_000, None));
}

#[test]
fn a_destination_rule_is_a_traffic_policy() {
    let policy = "  trafficPolicy:
    tls: {mode: ISTIO_MUTUAL}
    loadBalancer: {simple: LEAST_REQUEST}
    connectionPool: {tcp: {maxConnections: 100}, http: {http1MaxPendingRequests: 10, http2MaxRequests: 20}}
    outlierDetection:
      consecutive5xxErrors: 7
      consecutiveLocalOriginFailures: 2
      splitExternalLocalOriginErrors: false
      interval: 1.5s
      baseEjectionTime: 3m
      maxEjectionPercent: 50
";
    let ours = "\
apiVersion: eastway.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: reviews, namespace: bookinfo}
spec:
  service: reviews
  limits: {connections: 100, pendingRequests: 10, requests: 20}
  outlierDetection:
    consecutiveErrors: 7
    consecutiveFailures: 2
    interval: 1s500ms
    ejectionTime: 3m
    maxEjectedPercent: 50
";
    let of = |text: &str| rules(&[("a", text)]).traffic.get(&key()).map(|policy| (policy.sidecars, policy.to_string()));
    let (istio, named) = of(&format!("{RULE}{policy}")).unwrap();
    assert_eq!(istio, of(ours).unwrap().0);
    assert_eq!(named, "DestinationRule bookinfo/reviews");
    // What is not said is as Istio has it: it ejects one of ten.
    let (policy, _) = of(&format!("{RULE}  trafficPolicy: {{outlierDetection: {{}}}}\n")).unwrap();
    assert_eq!((policy.outliers.errors, policy.outliers.most_percent), (5, 10));
    for (word, balance) in [("ROUND_ROBIN", "RoundRobin"), ("RANDOM", "Random"), ("LEAST_CONN", "LeastRequest")] {
        let text = format!("{RULE}  trafficPolicy: {{loadBalancer: {{simple: {word}}}}}\n");
        assert_eq!(format!("{:?}", of(&text).unwrap().0.balance), balance);
    }
    assert_eq!(of(RULE), None, "names alone are no policy");
    assert_eq!(of(&format!("{RULE}  trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL}}}}\n")), None, "what happens anyway");
}

/// In one file or two, whichever comes first; and what is missing is a warning, for it may come.
#[test]
fn a_subset_may_come_later_and_go_again() {
    let service = virtual_service("http: [{route: [{destination: {host: reviews, subset: v2}}]}]");
    let target = |files: &[(&str, &str)]| {
        let rules = rules(files);
        let table = rules.routes.table(&key()).unwrap();
        table.at(&port(9080, "http")).unwrap().entries[0].targets[0].as_ref().map(|target| target.share.to_string())
    };
    let there = Some("version=v2".to_owned());
    assert_eq!(target(&[("a", RULE), ("b", &service)]), there);
    assert_eq!(target(&[("a", &service), ("b", RULE)]), there);
    assert_eq!(target(&[("a", &format!("{service}---\n{RULE}"))]), there);
    assert_eq!(target(&[("a", &service)]), None);
    let told = |files: &[(&str, &str)]| folder(files).warnings();
    insta::assert_snapshot!(format!(
        "{}\n\n{}",
        told(&[("a", &service)]),
        told(&[("a", &service), ("b", &RULE.replace("name: v2", "name: v-2"))])
    ));
}

/// A place for each table of fields: a line of the file is put where the comment stands.
const PLACES: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: bookinfo}
# top
spec:
  hosts: [reviews]
  # spec
  http:
  - timeout: 1s
    # spec.http[0]
    match:
    - uri: {prefix: /a}
      # spec.http[0].match[0]
    route:
    - weight: 1
      # spec.http[0].route[0]
      destination:
        host: reviews
        # spec.http[0].route[0].destination
    retries:
      attempts: 1
      # spec.http[0].retries
    rewrite:
      uri: /b
      # spec.http[0].rewrite
    fault:
      delay:
        fixedDelay: 1s
        percentage: {value: 1}
        # spec.http[0].fault.delay
      abort:
        httpStatus: 500
        percentage: {value: 1}
        # spec.http[0].fault.abort
  - redirect:
      uri: /c
      # spec.http[1].redirect
  tls:
  - match:
    - sniHosts: [a.example]
      # spec.tls[0].match[0]
    route: [{destination: {host: reviews}}]
  tcp:
  - match:
    - port: 90
      # spec.tcp[0].match[0]
    route: [{destination: {host: reviews}}]
---
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: reviews, namespace: bookinfo}
spec:
  host: reviews
  # spec
  subsets:
  - name: v1
    # spec.subsets[0]
    labels: {version: v1}
  trafficPolicy:
    # spec.trafficPolicy
    outlierDetection:
      consecutive5xxErrors: 1
      # spec.trafficPolicy.outlierDetection
    connectionPool:
      tcp:
        maxConnections: 1
        # spec.trafficPolicy.connectionPool.tcp
      http:
        http2MaxRequests: 1
        # spec.trafficPolicy.connectionPool.http
    loadBalancer:
      simple: RANDOM
      # spec.trafficPolicy.loadBalancer
    tls:
      mode: ISTIO_MUTUAL
      # spec.trafficPolicy.tls
";

/// Which object, where in it, and what is known there.
const TABLES: [(&str, &str, Keys); 21] = [
    ("VirtualService", "top", fields::OBJECT),
    ("VirtualService", "spec", fields::VIRTUAL_SERVICE),
    ("VirtualService", "spec.http[0]", fields::HTTP),
    ("VirtualService", "spec.http[0].match[0]", fields::HTTP_MATCH),
    ("VirtualService", "spec.http[0].route[0]", fields::ROUTE),
    ("VirtualService", "spec.http[0].route[0].destination", fields::DESTINATION),
    ("VirtualService", "spec.http[0].retries", fields::RETRIES),
    ("VirtualService", "spec.http[0].rewrite", fields::REWRITE),
    ("VirtualService", "spec.http[0].fault.delay", fields::DELAY),
    ("VirtualService", "spec.http[0].fault.abort", fields::ABORT),
    ("VirtualService", "spec.http[1].redirect", fields::REDIRECT),
    ("VirtualService", "spec.tls[0].match[0]", fields::TLS_MATCH),
    ("VirtualService", "spec.tcp[0].match[0]", fields::TCP_MATCH),
    ("DestinationRule", "spec", fields::DESTINATION_RULE),
    ("DestinationRule", "spec.subsets[0]", fields::SUBSET),
    ("DestinationRule", "spec.trafficPolicy", fields::TRAFFIC_POLICY),
    ("DestinationRule", "spec.trafficPolicy.outlierDetection", fields::OUTLIERS),
    ("DestinationRule", "spec.trafficPolicy.connectionPool.tcp", fields::POOL_TCP),
    ("DestinationRule", "spec.trafficPolicy.connectionPool.http", fields::POOL_HTTP),
    ("DestinationRule", "spec.trafficPolicy.loadBalancer", fields::BALANCER),
    ("DestinationRule", "spec.trafficPolicy.tls", fields::TLS),
];

/// Each refused field, and one that does not exist, has its line, its path and what to do instead.
#[test]
fn what_is_not_done_is_refused_by_name_and_line() {
    assert!(load(&folder(&[("a", PLACES)]).path("gateway.yaml")).is_ok());
    let mut tried = 0;
    for (kind, place, keys) in TABLES {
        let begins = PLACES.find(&format!("kind: {kind}")).unwrap();
        let mark = format!("# {place}\n");
        let at = begins + PLACES[begins..].find(&mark).unwrap_or_else(|| panic!("{kind} {place}"));
        let line = PLACES[..at].matches('\n').count() + 1;
        let refused = keys.iter().filter(|(_, instead)| !instead.is_empty());
        let unknown = [("noSuchField", "unknown field")];
        for (field, instead) in refused.map(|(field, instead)| (*field, *instead)).chain(unknown) {
            let text = format!("{}{field}: [1]\n{}", &PLACES[..at], &PLACES[at + mark.len()..]);
            let told = errors(&text);
            let path = if place == "top" { field.to_owned() } else { format!("{place}.{field}") };
            let what =
                if instead == "unknown field" { instead.to_owned() } else { format!("is not done here: {instead}") };
            let (begin, end) = (format!("policies/a.yaml:{line}:"), format!(": {path}: {what}"));
            let first = told.lines().next().unwrap_or_default();
            assert!(first.starts_with(&begin) && first.contains(&end), "{begin} … {end}\n{told}");
            tried += 1;
        }
    }
    println!("{tried} fields");
    assert!(tried > 75, "{tried}");
}

/// `docs/istio.md` lists every field that is refused, in the same words, and names every other one.
#[test]
fn the_document_says_the_same() {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/istio.md");
    let document = std::fs::read_to_string(document).unwrap();
    let mut lines = Vec::new();
    let mut missing = BTreeSet::new();
    for (kind, place, keys) in TABLES {
        let place =
            place.replace("spec.", "").replace("spec", "").replace("top", "").replace("[0]", "[]").replace("[1]", "[]");
        let dot = if place.is_empty() { "" } else { "." };
        for (field, instead) in keys {
            if instead.is_empty() {
                let named = [format!("`{field}`"), format!("{field}:")];
                missing.extend(
                    named.iter().all(|name| !document.contains(name)).then(|| format!("{kind} {place}{dot}{field}")),
                );
            } else {
                lines.push(format!("| {kind} | `{place}{dot}{field}` | {instead} |"));
            }
        }
    }
    lines.dedup();
    let absent: Vec<&String> = lines.iter().filter(|line| !document.contains(*line)).collect();
    assert!(absent.is_empty() && missing.is_empty(), "{missing:?}\n{}", lines.join("\n"));
}

/// Values that cannot be, and things that exclude each other.
#[test]
fn mistakes_are_told_with_their_place() {
    let cases = [
        ("hosts: [reviews]", "hosts: ['*.example.com']"),
        ("hosts: [reviews]", "hosts: [api.example.com]"),
        ("hosts: [reviews]", "hosts: [reviews.other.svc.cluster.local]"),
        ("hosts: [reviews]", "hosts: [reviews, reviews.bookinfo.svc.cluster.local]"),
        ("hosts: [reviews]", "hosts: [reviews]\n  gateways: [mesh, bookinfo-gateway]"),
        ("hosts: [reviews]", "hosts: [reviews]\n  exportTo: ['.']"),
        ("uri: {prefix: /a}", "uri: {prefix: /a, exact: /b}"),
        ("uri: {prefix: /a}", "uri: {}"),
        ("uri: {prefix: /a}", "uri: /a"),
        ("uri: {prefix: /a}", "uri: {regex: '(?<x>a)'}"),
        ("uri: {prefix: /a}", "method: {regex: 'GET|PUT'}"),
        ("uri: {prefix: /a}", "headers: {Bad Name: {exact: x}}"),
        ("uri: {prefix: /a}", "gateways: [other]"),
        ("attempts: 1", "attempts: 1\n      retryOn: 'gateway-error,conect-failure'"),
        ("attempts: 1", "attempts: many"),
        ("timeout: 1s", "timeout: 1"),
        ("timeout: 1s", "timeout: 48h"),
        ("weight: 1\n", "weight: -1\n"),
        ("percentage: {value: 1}", "percentage: {value: 101}"),
        ("percentage: {value: 1}", "percentage: {value: .nan}"),
        ("fixedDelay: 1s", "fixedDelay: 0s"),
        ("httpStatus: 500", "httpStatus: 42"),
        ("redirect:\n      uri: /c", "redirect:\n      uri: /c\n      redirectCode: 305"),
        ("redirect:\n      uri: /c", "redirect:\n      uri: /c\n      authority: 'a:b'"),
        ("sniHosts: [a.example]", "port: 90"),
        ("simple: RANDOM", "simple: PASSTHROUGH"),
        ("mode: ISTIO_MUTUAL", "mode: SIMPLE"),
        ("consecutive5xxErrors: 1", "splitExternalLocalOriginErrors: true"),
        ("name: v1\n", "name: V1\n"),
        ("networking.istio.io/v1beta1", "networking.istio.io/v2"),
        ("networking.istio.io/v1beta1", "networking.k8s.io/v1"),
    ];
    let told: Vec<String> = cases
        .iter()
        .map(|(from, to)| {
            assert!(PLACES.contains(from), "{from}");
            format!("# {to}\n{}\n", errors(&PLACES.replacen(from, to, 1)))
        })
        .collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn two_for_one_thing_are_told() {
    let policy = "apiVersion: eastway.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: bookinfo}\n\
                  spec: {service: reviews}\n";
    let rule = format!("{RULE}  trafficPolicy: {{loadBalancer: {{simple: RANDOM}}}}\n");
    let service = virtual_service("http: [{route: [{destination: {host: reviews}}]}]");
    let zero = virtual_service("http: [{route: [{destination: {host: reviews}}, {destination: {host: reviews}}]}]");
    let cases = [
        format!("{policy}---\n{rule}"),
        format!("{rule}---\n{policy}"),
        format!("{RULE}---\n{}", RULE.replace("name: reviews, namespace", "name: other, namespace")),
        format!("{service}---\n{service}"),
        format!("{RULE}  - {{name: v1, labels: {{version: v4}}}}\n"),
        zero,
        virtual_service("http: [{}]"),
        virtual_service("exportTo: ['*']"),
        service.replace("hosts: [reviews]", "hosts: []"),
    ];
    insta::assert_snapshot!(cases.iter().map(|text| errors(text)).collect::<Vec<_>>().join("\n\n"));
    // Names of parts beside a policy of our own are no contradiction.
    assert_eq!(rules(&[("a", &format!("{policy}---\n{RULE}"))]).traffic.len(), 1);
}

#[test]
fn every_list_has_a_bound() {
    let many = |one: &str, count: usize| vec![one; count].join(", ");
    let route = "{route: [{destination: {host: reviews}}]}";
    let to = "{destination: {host: reviews}, weight: 1}";
    let (hosts, subsets) = (many("reviews", 33), many("{name: x}", 65));
    for (text, said) in [
        (virtual_service(&format!("http: [{}]", many(route, 101))), "has 101 items; at most 100 are allowed"),
        (virtual_service(&format!("http: [{{route: [{}]}}]", many(to, 17))), "has 17 items; at most 16"),
        (
            virtual_service(&format!("http: [{{match: [{}], route: [{to}]}}]", many("{uri: {exact: /}}", 65))),
            "has 65 items; at most 64",
        ),
        (
            virtual_service(&format!("http: [{route}]")).replace("hosts: [reviews]", &format!("hosts: [{hosts}]")),
            "has 33 items; at most 32",
        ),
        (
            RULE.lines().take(5).map(|line| format!("{line}\n")).collect::<String>()
                + &format!("  subsets: [{subsets}]\n"),
            "has 65 items; at most 64",
        ),
    ] {
        let told = errors(&text);
        assert!(told.contains(said), "{told}");
    }
}
