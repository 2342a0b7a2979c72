//! The same between the same clouds, said in Istio's words: a VirtualService and a DestinationRule, as their users have them,
//! beside each other in a's policies folder.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use eastway_tests::mesh::NAMESPACE;
use eastway_tests::within;
use serde_json::{Value, json};

use super::bed::{Bed, PATIENCE, http_route, share};

/// Requests of one look.
const LOOK: usize = 300;

pub(super) async fn run(version: &str) -> Result<()> {
    let bed = Bed::start(version).await?;
    bed.route("rule", &rule(&["v1", "v2", "v3"]))?;
    weights(&bed).await?;
    the_first_that_matches(&bed).await?;
    on_the_way(&bed).await?;
    patience(&bed).await?;
    faults(&bed).await?;
    subsets_go_and_come(&bed).await?;
    beside_a_route(&bed).await?;
    what_is_refused(&bed).await?;
    bed.stop().await
}

fn object(kind: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": spec,
    })
}

fn rule(subsets: &[&str]) -> Value {
    let subsets: Vec<Value> = subsets.iter().map(|name| json!({"name": name, "labels": {"version": name}})).collect();
    let policy = json!({"loadBalancer": {"simple": "ROUND_ROBIN"}, "tls": {"mode": "ISTIO_MUTUAL"}, "outlierDetection": {"consecutive5xxErrors": 0}});
    object("DestinationRule", &json!({"host": "web", "subsets": subsets, "trafficPolicy": policy}))
}

fn service(http: &[Value]) -> Value {
    object("VirtualService", &json!({"hosts": [format!("web.{NAMESPACE}.svc.cluster.local")], "http": http}))
}

fn to(subset: &str) -> Value {
    json!({"destination": {"host": "web", "subset": subset}})
}

fn jason(entry: Value) -> Value {
    let mut entry = entry;
    entry["match"] = json!([{"headers": {"end-user": {"exact": "jason"}}}]);
    entry
}

/// Writes the VirtualService, and waits until Envoy goes by it.
async fn apply(bed: &Bed, http: &[Value]) -> Result<()> {
    // A rule that shows: each time another.
    let path = format!("/rules-{:x}", fastrand::u64(..));
    let marker = json!({"match": [{"uri": {"exact": path}}], "redirect": {"authority": "applied.example"}});
    bed.route("service", &service(&[&[marker], http].concat()))?;
    within(PATIENCE, "the new rules", async || Ok(bed.get(&path, &[]).await?.status == 301)).await?;
    Ok(())
}

async fn describe(bed: &Bed, more: &[&str]) -> Result<String> {
    let (code, said) = bed.mesh.cloud("a").command(0, &[&["describe", "shop/web"], more].concat()).await?;
    ensure!(code == Some(0), "{said}");
    Ok(said)
}

async fn weights(bed: &Bed) -> Result<()> {
    apply(bed, &[json!({"route": [to("v1")]})]).await?;
    let seen = bed.look(LOOK, &[]).await?;
    ensure!(seen.keys().eq(["v1"]), "{seen:?}");
    let share = |subset, weight| {
        let mut to = to(subset);
        to["weight"] = json!(weight);
        to
    };
    apply(bed, &[json!({"route": [share("v1", 80), share("v3", 20)]})]).await?;
    let seen = bed.look(1_000, &[]).await?;
    let third = seen.get("v3").copied().unwrap_or_default();
    // Three standard deviations of 1,000 draws are 38.
    ensure!(seen.len() == 2 && (150..=250).contains(&third), "{seen:?}");
    println!("80/20 of 1000 requests: {seen:?}");
    Ok(())
}

/// Rules are tried in the order of the list, and a prefix is a text.
async fn the_first_that_matches(bed: &Bed) -> Result<()> {
    let on = |wanted: Value, subset: &str| json!({"match": [wanted], "route": [to(subset)]});
    let rules = [
        jason(json!({"route": [to("v2")]})),
        on(json!({"uri": {"prefix": "/shop"}}), "v3"),
        on(json!({"uri": {"exact": "/shop/cart"}}), "v2"),
        on(json!({"uri": {"regex": "/items/[0-9]+"}, "method": {"exact": "GET"}}), "v3"),
        on(json!({"queryParams": {"version": {"regex": "v?2"}}}), "v2"),
        on(json!({"headers": {"x-tier": {"prefix": "gold-"}, "x-here": {}}}), "v3"),
        on(json!({"port": 1}), "v3"),
        json!({"route": [to("v1")]}),
    ];
    apply(bed, &rules).await?;
    let (his, others) = (bed.look(60, &[("end-user", "jason")]).await?, bed.look(60, &[("end-user", "mary")]).await?);
    ensure!(his.keys().eq(["v2"]) && others.keys().eq(["v1"]), "jason {his:?}, others {others:?}");
    for (method, path, expected) in [
        ("GET", "/", "v1"),
        ("GET", "/shop", "v3"),
        ("GET", "/shopping?a=b", "v3"),
        ("GET", "/shop/cart", "v3"),
        ("GET", "/items/17", "v3"),
        ("PUT", "/items/17", "v1"),
        ("GET", "/?version=2", "v2"),
        ("GET", "/?version=21", "v1"),
    ] {
        let answer = bed.send(method, path, &[]).await?;
        ensure!(answer.version() == expected, "{method} {path}: {answer:?}");
    }
    let gold = bed.get("/", &[("x-tier", "gold-1"), ("x-here", "1")]).await?;
    let silver = bed.get("/", &[("x-tier", "silver"), ("x-here", "1")]).await?;
    let absent = bed.get("/", &[("x-tier", "gold-1")]).await?;
    ensure!([gold.version(), silver.version(), absent.version()] == ["v3", "v1", "v1"]);
    let said = describe(bed, &["--header", "end-user=jason", "--path", "/shop/cart"]).await?;
    let tells = [
        "VirtualService shop/web http[1]",
        "100 % to version=v2 of shop/web",
        "VirtualService shop/web http[1] comes first",
        "VirtualService shop/web: Accepted: True",
        "VirtualService shop/web: AppliesTo: sidecars and virtual",
    ];
    ensure!(tells.iter().all(|line| said.contains(line)), "{said}");
    apply(bed, &[on(json!({"uri": {"prefix": "/only"}}), "v2")]).await?;
    ensure!(bed.get("/", &[]).await?.status == 404, "no rule matches");
    ensure!(bed.get("/only", &[]).await?.version() == "v2");
    Ok(())
}

async fn on_the_way(bed: &Bed) -> Result<()> {
    let on = |path: &str, more: Value| {
        let mut entry = json!({"match": [{"uri": {"prefix": path}}]});
        eastway_tests::lab::files::merge(&mut entry, &more);
        entry
    };
    let headers = json!({
        "request": {"set": {"X-Set": "100% new"}, "add": {"x-add": "more"}, "remove": ["x-gone"]},
        "response": {"set": {"x-answer": "changed"}},
    });
    let mut own = to("v2");
    own["headers"] = json!({"request": {"set": {"x-backend": "v2"}}});
    let rules = [
        on("/headers", json!({"headers": headers, "route": [own]})),
        on("/old", json!({"rewrite": {"uri": "/new"}, "route": [to("v1")]})),
        json!({"match": [{"uri": {"exact": "/one"}}, {"uri": {"regex": "/any/.*"}}], "rewrite": {"uri": "/whole", "authority": "other.example"}, "route": [to("v1")]}),
        on("/moved", json!({"redirect": {"uri": "/there"}})),
        on("/secure", json!({"redirect": {"scheme": "https", "authority": "shop.example", "redirectCode": 302}})),
        on(
            "/copy",
            json!({"route": [to("v1")], "mirror": {"host": "web", "subset": "v3"}, "mirrorPercentage": {"value": 100}}),
        ),
    ];
    apply(bed, &rules).await?;
    let answer = bed.get("/headers", &[("x-gone", "1"), ("x-set", "old"), ("x-add", "some")]).await?;
    let seen = bed.asked(&answer);
    ensure!(answer.version() == "v2" && seen.header("x-set") == Some("100% new"), "{seen:?}");
    ensure!(seen.header("x-gone").is_none() && seen.header("x-backend") == Some("v2"), "{seen:?}");
    ensure!(answer.headers.get("x-answer").is_some_and(|value| value == "changed"), "{answer:?}");
    for (path, expected) in [
        ("/old/a?b=c", "GET /new/a?b=c HTTP/1.1"),
        ("/older", "GET /newer HTTP/1.1"),
        ("/one?b=c", "GET /whole?b=c HTTP/1.1"),
        ("/any/thing", "GET /whole HTTP/1.1"),
    ] {
        let answer = bed.get(path, &[]).await?;
        let seen = bed.asked(&answer);
        ensure!(seen.line == expected, "{path}: {seen:?}");
        ensure!(!expected.contains("whole") || seen.header("host") == Some("other.example"), "{seen:?}");
    }
    for (path, status, place) in
        [("/moved/x", 301, "http://web/there"), ("/secure/x", 302, "https://shop.example/secure/x")]
    {
        let answer = bed.get(path, &[]).await?;
        let to = answer.headers.get("location").cloned().unwrap_or_default();
        ensure!(answer.status == status && to == place, "{path}: {answer:?}");
    }
    let copied = || bed.server("b-v3").requests();
    let before = copied();
    for _ in 0..40 {
        ensure!(bed.get("/copy", &[]).await?.version() == "v1", "nobody waits for copies");
    }
    within(PATIENCE, "copies of them", async || Ok(copied() - before >= 39)).await?;
    Ok(())
}

async fn patience(bed: &Bed) -> Result<()> {
    apply(bed, &[json!({"route": [to("v1")], "timeout": "0.3s", "retries": {"attempts": 0}})]).await?;
    let begun = Instant::now();
    ensure!(bed.get("/", &[("x-misbehave", "slow")]).await?.status == 504);
    let took = begun.elapsed();
    ensure!((290..2_000).contains(&took.as_millis()), "{took:?}");
    // How often the one server of v3, which fails, is asked for each request.
    let failing = [("x-misbehave", "fail-b-v3")];
    for (retries, expected) in [
        (json!({"attempts": 3, "perTryTimeout": "2s", "retryOn": "503"}), 4),
        (json!({"attempts": 2, "retryOn": "5xx", "backoff": "5ms"}), 3),
        (json!({"attempts": 3, "retryOn": "connect-failure,refused-stream"}), 1),
        (json!({"retryOn": "503"}), 1),
    ] {
        apply(bed, &[json!({"route": [to("v3")], "retries": retries})]).await?;
        let before = bed.server("b-v3").requests();
        ensure!(bed.get("/", &failing).await?.status == 503);
        let asked = bed.server("b-v3").requests() - before;
        ensure!(asked == expected, "{retries}: asked {asked} times");
    }
    Ok(())
}

/// As in Istio a rule's failures are for its own requests, and no retry mends them.
async fn faults(bed: &Bed) -> Result<()> {
    let fault = |fault: Value| {
        jason(json!({"fault": fault, "route": [to("v2")], "retries": {"attempts": 5, "retryOn": "5xx"}}))
    };
    let all = json!({"value": 100});
    apply(bed, &[fault(json!({"delay": {"fixedDelay": "2s", "percentage": all}})), json!({"route": [to("v1")]})])
        .await?;
    let takes = async |user: &str| {
        let begun = Instant::now();
        let answer = bed.get("/", &[("end-user", user)]).await?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok::<_, anyhow::Error>(begun.elapsed())
    };
    let (his, others) = (takes("jason").await?, takes("mary").await?);
    // Envoy's timers count milliseconds, and the one that runs has begun already.
    ensure!(his >= Duration::from_millis(1_998) && others < Duration::from_millis(1_998), "{his:?} and {others:?}");
    let half = json!({"abort": {"httpStatus": 555, "percentage": {"value": 50.0}}});
    apply(bed, &[fault(half), json!({"route": [to("v1")]})]).await?;
    let mut failed = 0;
    for _ in 0..LOOK {
        failed += usize::from(bed.get("/", &[("end-user", "jason")]).await?.status == 555);
    }
    ensure!((100..=200).contains(&failed), "{failed} of {LOOK} failed");
    let others = bed.look(60, &[]).await?;
    ensure!(others.keys().eq(["v1"]), "{others:?}");
    println!(
        "abort 50 %: {failed} of {LOOK} requests of jason failed, 0 of 60 of others; his delay of 400 ms took {his:?}"
    );
    Ok(())
}

async fn subsets_go_and_come(bed: &Bed) -> Result<()> {
    apply(bed, &[json!({"route": [to("v3")]})]).await?;
    ensure!(bed.look(30, &[]).await?.keys().eq(["v3"]));
    let answers = async |status: u16| Ok(bed.get("/", &[]).await?.status == status);
    bed.route("rule", &rule(&["v1"]))?;
    within(PATIENCE, "the subset is gone", async || answers(500).await).await?;
    let said = describe(bed, &[]).await?;
    let why = "ResolvedRefs: False BackendNotFound (subset v3 of shop/web: no DestinationRule of the service has it)";
    ensure!(said.contains(why), "{said}");
    bed.remove("rule")?;
    bed.route("later", &rule(&["v3"]))?;
    within(PATIENCE, "it is back, in another file", async || answers(200).await).await?;
    ensure!(bed.look(30, &[]).await?.keys().eq(["v3"]));
    bed.remove("later")?;
    bed.route("rule", &rule(&["v1", "v2", "v3"]))
}

/// A route of the Gateway API counts before a VirtualService, which says so.
async fn beside_a_route(bed: &Bed) -> Result<()> {
    apply(bed, &[json!({"route": [to("v3")]})]).await?;
    bed.route("web", &http_route(&[json!({"backendRefs": [share("v1", 1)]})]))?;
    let only = async |version: &str| Ok(bed.look(20, &[]).await?.keys().eq([version]));
    within(PATIENCE, "the route counts", async || only("v1").await).await?;
    let said = describe(bed, &[]).await?;
    let why = "VirtualService shop/web: Accepted: False Conflicted (HTTPRoute shop/web has the port)";
    ensure!(said.contains(why), "{said}");
    bed.remove("web")?;
    within(PATIENCE, "the VirtualService counts", async || only("v3").await).await?;
    Ok(())
}

async fn what_is_refused(bed: &Bed) -> Result<()> {
    let sources = json!({"match": [{"sourceLabels": {"app": "x"}}], "route": [to("v1")]});
    bed.route("service", &service(&[sources]))?;
    within(PATIENCE, "it is told", async || {
        let errors = bed.mesh.cloud("a").status(0).await?.config.errors;
        let what = "spec.http[0].match[0].sourceLabels: is not done here: ";
        Ok(errors.iter().any(|line| line.contains("policies/service.yaml:") && line.contains(what)))
    })
    .await?;
    ensure!(bed.look(30, &[]).await?.keys().eq(["v3"]), "what was there goes on");
    Ok(())
}
