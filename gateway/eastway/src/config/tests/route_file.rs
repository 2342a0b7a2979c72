//! Routes with mistakes.

use super::{Folder, MINIMAL, PEER};

const ROUTES: &str = "\
apiVersion: eastway.dev/v1alpha1
kind: ServiceShare
metadata: {name: v2, namespace: shop}
spec: {service: web, cluster: gke, subset: {version: v2}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web.example, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /a/}, headers: [{name: End-User, value: jason}]}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: b}]}}]
    backendRefs: [{group: eastway.dev, kind: ServiceShare, name: v2, weight: 3}]
    timeouts: {request: 2s, backendRequest: 1s}
    retry: {codes: [503], attempts: 2, backoff: 10ms}
    sessionPersistence: {sessionName: cart}
";

fn folder(routes: &str) -> Folder {
    Folder::new(&[("gateway.yaml", MINIMAL), ("peers/gke.yaml", PEER), ("policies/a.yaml", routes)])
}

fn errors(from: &str, to: &str) -> String {
    assert!(ROUTES.contains(from), "{from}");
    folder(&ROUTES.replace(from, to)).errors()
}

#[test]
fn a_good_route_is_taken() {
    let folder = folder(ROUTES);
    let loaded = super::load(&folder.path("gateway.yaml")).unwrap();
    assert_eq!(loaded.warnings.iter().count(), 0, "{}", loaded.warnings);
    let rules = loaded.rules(|_| eastway_model::UnixMillis(7));
    let [route] = rules.routes.routes() else { panic!("{:?}", rules.routes) };
    insta::assert_json_snapshot!(**route);
    assert_eq!(rules.routes.table(&"shop/web".parse().unwrap()).unwrap().attached.len(), 1);
}

/// Every mistake has its place, its field and what to do.
#[test]
fn mistakes_are_told_with_their_place() {
    let cases = [
        ("retry:", "retires:"),
        ("name: v2, weight", "name: v3, weight"),
        ("group: '', kind: Service, name: web", "name: web"),
        ("group: '', kind: Service, name: web", "group: '', kind: Service, name: web, namespace: other"),
        ("group: eastway.dev, kind: ServiceShare, name: v2", "kind: Service, name: web"),
        ("group: eastway.dev, kind: ServiceShare, name: v2", "kind: Pod, name: web"),
        ("weight: 3", "weight: 1000001"),
        ("backendRequest: 1s", "backendRequest: 3s"),
        ("codes: [503]", "codes: [200]"),
        ("value: /a/", "value: a"),
        ("type: PathPrefix, value: /a/", "type: RegularExpression, value: '(?<x>a)'"),
        ("type: PathPrefix, value: /a/", "type: RegularExpression, value: '/x)|(/y'"),
        ("name: x-a, value: b", "name: Host, value: b"),
        ("requestHeaderModifier: {set: [{name: x-a, value: b}]}", "requestRedirect: {}"),
        ("sessionName: cart", "sessionName: cart, idleTimeout: 5s"),
        ("kind: HTTPRoute", "kind: UDPRoute"),
        ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v2"),
        ("cluster: gke, subset: {version: v2}", ""),
    ];
    let told: Vec<String> = cases.iter().map(|(from, to)| format!("# {to}\n{}\n", errors(from, to))).collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn every_bound_has_a_name() {
    let many = |text: &str, count: usize| vec![text; count].join(", ");
    let backend = "{group: eastway.dev, kind: ServiceShare, name: v2, weight: 3}";
    let cases = [
        (format!("[{backend}]"), format!("[{}]", many(backend, 17))),
        (
            "headers: [{name: End-User, value: jason}]".to_owned(),
            format!(
                "headers: [{}]",
                (0..17).map(|n| format!("{{name: h{n}, value: x}}")).collect::<Vec<_>>().join(", ")
            ),
        ),
        ("codes: [503]".to_owned(), format!("codes: [{}]", many("503", 201))),
    ];
    let told: Vec<String> = cases.iter().map(|(from, to)| errors(from, to)).collect();
    insta::assert_snapshot!(told.join("\n"));
    let rule = "  - backendRefs: [{group: eastway.dev, kind: ServiceShare, name: v2}]\n";
    let rules = format!("{ROUTES}{}", rule.repeat(16));
    assert!(folder(&rules).errors().contains("has 17 rules; at most 16 are allowed"), "{}", folder(&rules).errors());
    let route = ROUTES.split("---\n").nth(1).unwrap();
    let names = (0..100).map(|number| format!("---\n{}", route.replace("web.example", &format!("r{number}"))));
    let told = folder(&format!("{ROUTES}{}", names.collect::<String>())).errors();
    assert!(told.contains("shop/web has more than 100 routes"), "{told}");
}

#[test]
fn what_has_no_effect_is_a_warning() {
    let text = ROUTES
        .replace("  rules:", "  hostnames: [web.example]\n  rules:")
        .replace("{name: End-User, value: jason}", "{name: End-User, value: jason}, {name: end-user, value: mary}")
        .replace("weight: 3", "weight: 0");
    insta::assert_snapshot!(folder(&text).warnings());
}

/// A file of 100 kB whose expressions would be gigabytes: known by their counts, never made.
#[test]
fn expressions_that_are_bombs_are_refused_at_once() {
    let route = ROUTES.split("---\n").nth(1).unwrap();
    let with = |patterns: &dyn Fn(usize, usize) -> String| {
        let rules = (0..16).map(|rule| {
            let matches =
                (0..64).map(|one| format!("{{path: {{type: RegularExpression, value: '{}'}}}}", patterns(rule, one)));
            format!(
                "  - matches: [{}]\n    backendRefs: [{{kind: Service, name: web, port: 80}}]\n",
                matches.collect::<Vec<_>>().join(", ")
            )
        });
        let head = route.split_once("  rules:").unwrap().0;
        format!("{head}  rules:\n{}", rules.collect::<String>())
    };
    let quick = |text: &str| {
        let folder = folder(text);
        let before = std::time::Instant::now();
        let told = folder.errors();
        let took = before.elapsed();
        assert!(took < std::time::Duration::from_secs(2), "{took:?}");
        told
    };
    let told = quick(&with(&|rule, one| format!("/{one}/{rule}/(a{{100}}){{80}}")));
    assert!(told.contains("repeats a part 8000 times with all counts around it"), "{told}");
    let told = quick(&with(&|rule, one| format!("/{one}/{rule}/.{{900}}")));
    assert!(told.contains("the regular expressions of the routes of shop/web come to"), "{told}");
    let few = with(&|rule, one| format!("/{one}/{rule}/[a-z]{{8}}"));
    assert!(super::load(&folder(&few).path("gateway.yaml")).is_ok(), "{}", folder(&few).errors());
    // Each service has few, and all together have too many.
    let many = (0..12)
        .map(|n| with(&|rule, one| format!("/{one}/{rule}/a{{60}}")).replace("name: web", &format!("name: web{n}")));
    let told = quick(&many.collect::<Vec<_>>().join("---\n"));
    assert!(told.contains("the regular expressions of all routes come to"), "{told}");
}

/// As `kubectl get -o yaml` prints them: what the API server adds is nobody's.
#[test]
fn objects_can_be_kept_as_an_api_server_has_them() {
    let added = "{uid: 7d3f, resourceVersion: '12', generation: 3, creationTimestamp: '2026-11-02T10:00:00Z', managedFields: [{manager: kubectl}], ";
    let policy = "apiVersion: eastway.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: t, namespace: shop}\nspec: {service: db}\n";
    let istio = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: shop}\nspec: {host: cache}\n";
    let text = format!("{ROUTES}---\n{policy}---\n{istio}").replace("metadata: {", &format!("metadata: {added}"));
    let text = text.replace("---\n", "status: {conditions: []}\n---\n") + "status: {parents: []}\n";
    let folder = folder(&text);
    assert!(super::load(&folder.path("gateway.yaml")).is_ok(), "{}", folder.errors());
    let told = self::folder(&text.replace("uid: 7d3f", "uuid: 7d3f")).errors();
    assert!(told.contains("unknown field"), "{told}");
}

#[test]
fn an_object_that_is_there_twice_is_told_at_its_name() {
    let told = folder(&format!("{ROUTES}---\n{}", ROUTES.split("---\n").nth(1).unwrap())).errors();
    insta::assert_snapshot!(told);
}

#[test]
fn a_policy_of_sidecars() {
    let policy = "\
apiVersion: eastway.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec:
  service: web
  outlierDetection: {consecutiveErrors: 7, ejectionTime: 5s}
  limits: {connections: 10}
  fault: {delay: {duration: 2s, percent: 10}, abort: {status: 503}}
";
    let good = folder(policy);
    let loaded = super::load(&good.path("gateway.yaml")).unwrap();
    let policy_of = &loaded.policies.traffic[&"shop/web".parse().unwrap()];
    insta::assert_json_snapshot!(policy_of.sidecars);
    let bad = policy.replace("status: 503", "status: 99").replace("percent: 10", "percent: 101").replace("5s", "1ms");
    insta::assert_snapshot!(folder(&bad).errors());
    assert!(
        folder(&policy.replace("fault: {delay: {duration: 2s, percent: 10}, abort: {status: 503}}", "fault: {}"))
            .errors()
            .contains("delay or abort is required")
    );
}
