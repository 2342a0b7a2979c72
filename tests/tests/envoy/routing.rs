//! Rules between versions in two clouds that cannot reach each other, obeyed by a real Envoy: cloud a has version v1 of
//! `web`, cloud b v1, v2 and v3. The rules are files in a's policies folder.

mod bed;
mod bytes;
mod istio;
mod reloads;
mod server;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use eastway_tests::{lab_test, within};
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::timeout;

use bed::{Bed, PATIENCE, http_route, share};

/// Requests of one look.
const LOOK: usize = 300;

lab_test! {
    async fn rules_choose_between_clouds_and_versions_with_envoy_1_40_0() { rules("1.40.0").await }
    async fn rules_choose_between_clouds_and_versions_with_envoy_1_36_2() { rules("1.36.2").await }

    async fn istios_words_do_the_same_with_envoy_1_40_0() { istio::run("1.40.0").await }
    async fn istios_words_do_the_same_with_envoy_1_36_2() { istio::run("1.36.2").await }

    async fn connections_by_weight_and_by_name_with_envoy_1_40_0() { bytes::run("1.40.0").await }
    async fn connections_by_weight_and_by_name_with_envoy_1_36_2() { bytes::run("1.36.2").await }

    async fn a_share_fails_over_and_back_with_envoy_1_40_0() { failover("1.40.0").await }
    async fn a_share_fails_over_and_back_with_envoy_1_36_2() { failover("1.36.2").await }

    async fn f31_reloads_under_load_fail_no_request_with_envoy_1_40_0() { reloads::run("1.40.0").await }
    async fn f31_reloads_under_load_fail_no_request_with_envoy_1_36_2() { reloads::run("1.36.2").await }
}

async fn rules(version: &str) -> Result<()> {
    let bed = Bed::start(version).await?;
    all_to_one(&bed).await?;
    by_weight(&bed).await?;
    by_what_is_asked(&bed).await?;
    changed_on_the_way(&bed).await?;
    copies(&bed).await?;
    sessions(&bed).await?;
    patience(&bed).await?;
    faults(&bed).await?;
    limits(&bed).await?;
    a_bad_file_changes_nothing(&bed).await?;
    bed.stop().await
}

async fn all_to_one(bed: &Bed) -> Result<()> {
    bed.apply(&[json!({"backendRefs": [share("v1", 1)]})]).await?;
    let seen = bed.look(LOOK, &[]).await?;
    ensure!(seen.keys().eq(["v1"]), "{seen:?}");
    Ok(())
}

async fn by_weight(bed: &Bed) -> Result<()> {
    bed.apply(&[json!({"backendRefs": [share("v1", 80), share("v3", 20)]})]).await?;
    let seen = bed.look(1_000, &[]).await?;
    let third = seen.get("v3").copied().unwrap_or_default();
    // Three standard deviations of 1,000 draws are 38.
    ensure!(seen.len() == 2 && (150..=250).contains(&third), "{seen:?}");
    println!("80/20 of 1000 requests: {seen:?}");
    Ok(())
}

/// Header, path, query and method; the most specific rule counts, wherever it stands.
async fn by_what_is_asked(bed: &Bed) -> Result<()> {
    let to = |matches, version: &str| json!({"matches": [matches], "backendRefs": [share(version, 1)]});
    let regex = format!("/({}items/[0-9]+)", "abcdefghijkl|".repeat(20));
    let rules = [
        json!({"backendRefs": [share("v1", 1)]}),
        to(json!({"headers": [{"name": "end-user", "value": "jason"}]}), "v2"),
        to(json!({"path": {"type": "PathPrefix", "value": "/shop/"}}), "v3"),
        to(json!({"path": {"type": "Exact", "value": "/shop/cart"}}), "v2"),
        to(json!({"path": {"type": "RegularExpression", "value": regex}}), "v3"),
        to(json!({"queryParams": [{"name": "version", "type": "RegularExpression", "value": "v?3"}]}), "v3"),
        to(json!({"method": "PUT"}), "v2"),
    ];
    bed.apply(&rules).await?;
    let jason = [("end-user", "jason")];
    let (his, others) = (bed.look(LOOK, &jason).await?, bed.look(LOOK, &[("end-user", "mary")]).await?);
    ensure!(his.keys().eq(["v2"]) && others.keys().eq(["v1"]), "jason {his:?}, others {others:?}");
    for (method, path, expected) in [
        ("GET", "/", "v1"),
        ("GET", "/shop", "v3"),
        ("GET", "/shop/x?a=b", "v3"),
        ("GET", "/shopping", "v1"),
        ("GET", "/shop/cart", "v2"),
        ("GET", "/items/17", "v3"),
        ("GET", "/items/x", "v1"),
        ("GET", "/?version=3", "v3"),
        ("GET", "/?version=31", "v1"),
        ("PUT", "/", "v2"),
    ] {
        let answer = bed.send(method, path, &[]).await?;
        ensure!(answer.version() == expected, "{method} {path}: {answer:?}");
    }
    let asked = ["describe", "shop/web", "--header", "end-user=jason", "--path", "/x"];
    let (code, said) = bed.mesh.cloud("a").command(0, &asked).await?;
    let tells =
        ["The request: 100 % to version=v2 of shop/web", "path is not /shop/cart", "AppliesTo: sidecars and virtual"];
    ensure!(code == Some(0) && tells.iter().all(|line| said.contains(line)), "{said}");
    // Without a rule that matches there is nothing to be had.
    bed.apply(&[to(json!({"path": {"value": "/only"}}), "v2")]).await?;
    ensure!(bed.get("/", &[]).await?.status == 404);
    ensure!(bed.get("/only", &[]).await?.version() == "v2");
    Ok(())
}

async fn changed_on_the_way(bed: &Bed) -> Result<()> {
    let headers = json!({
        "set": [{"name": "X-Set", "value": "100% new"}],
        "add": [{"name": "x-add", "value": "more"}],
        "remove": ["x-gone"],
    });
    let answers = json!({"set": [{"name": "x-answer", "value": "changed"}]});
    let mut own = share("v2", 1);
    own["filters"] = json!([
        {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-backend", "value": "v2"}]}},
    ]);
    let path = |text: &str| json!([{"path": {"value": text}}]);
    let prefix = |text: &str| json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": text});
    let rewrite = |to| json!([{"type": "URLRewrite", "urlRewrite": to}]);
    let redirect = |to| json!([{"type": "RequestRedirect", "requestRedirect": to}]);
    let rules = [
        json!({
            "matches": path("/headers"),
            "filters": [
                {"type": "RequestHeaderModifier", "requestHeaderModifier": headers},
                {"type": "ResponseHeaderModifier", "responseHeaderModifier": answers},
            ],
            "backendRefs": [own],
        }),
        json!({"matches": path("/old"), "filters": rewrite(json!({"path": prefix("/new")})), "backendRefs": [share("v1", 1)]}),
        json!({
            "matches": path("/strip"),
            "filters": rewrite(json!({"hostname": "other.example", "path": prefix("/")})),
            "backendRefs": [share("v1", 1)],
        }),
        json!({
            "matches": path("/full"),
            "filters": rewrite(json!({"path": {"type": "ReplaceFullPath", "replaceFullPath": "/one"}})),
            "backendRefs": [share("v1", 1)],
        }),
        json!({"matches": path("/moved"), "filters": redirect(json!({"path": prefix("/there"), "statusCode": 301}))}),
        json!({"matches": path("/secure"), "filters": redirect(json!({"scheme": "https", "hostname": "shop.example"}))}),
        json!({"matches": path("/nobody"), "backendRefs": [{"kind": "Service", "name": "no-such", "port": 8080}]}),
    ];
    bed.apply(&rules).await?;
    let answer = bed.get("/headers", &[("x-gone", "1"), ("x-set", "old"), ("x-add", "some")]).await?;
    let (_, seen) = (answer.version(), bed.asked(&answer));
    let all = |name: &str| seen.headers.iter().filter(|line| line.starts_with(name)).count();
    ensure!(seen.header("x-set") == Some("100% new") && all("x-set:") == 1, "{seen:?}");
    ensure!(all("x-add:") == 2 || seen.header("x-add") == Some("some,more"), "{seen:?}");
    ensure!(seen.header("x-gone").is_none() && seen.header("x-backend") == Some("v2"), "{seen:?}");
    ensure!(answer.headers.get("x-answer").is_some_and(|value| value == "changed"), "{answer:?}");
    for (path, expected) in [
        ("/old/a?b=c", "GET /new/a?b=c HTTP/1.1"),
        ("/old", "GET /new HTTP/1.1"),
        ("/strip/a/b", "GET /a/b HTTP/1.1"),
        ("/strip", "GET / HTTP/1.1"),
        ("/full/a?b=c", "GET /one?b=c HTTP/1.1"),
    ] {
        let answer = bed.get(path, &[]).await?;
        let seen = bed.asked(&answer);
        ensure!(seen.line == expected, "{path}: {seen:?}");
        ensure!(!path.starts_with("/strip") || seen.header("host") == Some("other.example"), "{seen:?}");
    }
    for (path, status, place) in
        [("/moved/x?y=z", 301, "http://web/there/x?y=z"), ("/secure/x", 302, "https://shop.example/secure/x")]
    {
        let answer = bed.get(path, &[]).await?;
        let to = answer.headers.get("location").cloned().unwrap_or_default();
        ensure!(answer.status == status && to == place, "{path}: {answer:?}");
    }
    ensure!(bed.get("/nobody", &[]).await?.status == 500, "a backend that is not there");
    Ok(())
}

async fn copies(bed: &Bed) -> Result<()> {
    let mirror = |more| {
        let mut to = json!({"backendRef": {"group": "eastway.dev", "kind": "ServiceShare", "name": "v3"}});
        eastway_tests::lab::files::merge(&mut to, &more);
        json!({"filters": [{"type": "RequestMirror", "requestMirror": to}], "backendRefs": [share("v1", 1)]})
    };
    let copied = || bed.server("b-v3").requests();
    bed.apply(&[mirror(json!({}))]).await?;
    let before = copied();
    let seen = bed.look(LOOK, &[]).await?;
    ensure!(seen.keys().eq(["v1"]), "nobody waits for copies: {seen:?}");
    within(PATIENCE, "copies of them", async || Ok(copied() - before >= 290)).await?;
    // Nobody tries again if one is lost, and one of before may have come late.
    ensure!(copied() - before <= 302, "{}", copied() - before);
    bed.apply(&[mirror(json!({"percent": 25}))]).await?;
    let before = copied();
    bed.look(LOOK, &[]).await?;
    let copied = copied() - before;
    ensure!((40..=115).contains(&copied), "{copied} of 300");
    Ok(())
}

/// Timeouts and retries, on servers that wait and fail.
async fn patience(bed: &Bed) -> Result<()> {
    let limits = |timeouts, retry| json!({"timeouts": timeouts, "retry": retry, "backendRefs": [share("b", 1)]});
    bed.apply(&[limits(json!({"request": "300ms"}), json!({"attempts": 0}))]).await?;
    let slow = [("x-misbehave", "slow")];
    let begun = Instant::now();
    ensure!(bed.get("/", &slow).await?.status == 504);
    let took = begun.elapsed();
    ensure!((290..2_000).contains(&took.as_millis()), "{took:?}");
    // No retries at all: who asks the failing one gets its failure.
    let failing = [("x-misbehave", "fail-b-v2")];
    let mut failed = 0;
    for _ in 0..60 {
        failed += usize::from(bed.get("/", &failing).await?.status == 503);
    }
    ensure!(failed > 0, "the bad one was never asked");
    // Tried again at another endpoint.
    let retry = json!({"codes": [503], "attempts": 3, "backoff": "5ms"});
    bed.apply(&[limits(json!({"request": "5s", "backendRequest": "500ms"}), retry)]).await?;
    let failing = [("x-misbehave", "fail-b-v3")];
    for _ in 0..40 {
        let answer = bed.get("/", &failing).await?;
        ensure!(answer.status == 200, "{answer:?}");
    }
    ensure!(bed.server("b-v3").last().header("x-misbehave") == Some("fail-b-v3"), "the bad one was never asked");
    // Each try has its limit, and the request the sum of four.
    let begun = Instant::now();
    let answer = bed.get("/", &slow).await?;
    ensure!(answer.status == 504 && begun.elapsed() > Duration::from_millis(1_900), "{answer:?} {:?}", begun.elapsed());
    Ok(())
}

/// Failures on purpose are seen by retries and timeouts as those of an endpoint are.
async fn faults(bed: &Bed) -> Result<()> {
    let policy = |fault| {
        json!({
            "apiVersion": "eastway.dev/v1alpha1",
            "kind": "TrafficPolicy",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"service": "web", "fault": fault, "outlierDetection": {"consecutiveErrors": 0}},
        })
    };
    let rule = |more| {
        let mut rule = json!({"backendRefs": [share("v1", 1)]});
        eastway_tests::lab::files::merge(&mut rule, &more);
        [rule]
    };
    let failed = async |requests| {
        let mut failed = 0;
        for _ in 0..requests {
            failed += usize::from(bed.get("/", &[]).await?.status == 555);
        }
        Ok::<usize, anyhow::Error>(failed)
    };
    bed.route("policy", &policy(json!({"abort": {"status": 555, "percent": 50}})))?;
    bed.apply(&rule(json!({"retry": {"attempts": 0}}))).await?;
    within(PATIENCE, "the first failure", async || Ok(failed(10).await? > 0)).await?;
    let half = failed(LOOK).await?;
    ensure!((100..=200).contains(&half), "{half} of 300 failed");
    bed.apply(&rule(json!({"retry": {"codes": [555], "attempts": 12, "backoff": "1ms"}}))).await?;
    let few = failed(LOOK).await?;
    ensure!(few <= 2, "{few} of 300 failed 13 times at 50 %");
    bed.route("policy", &policy(json!({"delay": {"duration": "2s"}})))?;
    let takes = async || {
        let begun = Instant::now();
        let status = bed.get("/", &[]).await?.status;
        Ok::<_, anyhow::Error>((status, begun.elapsed()))
    };
    within(PATIENCE, "a delay", async || Ok(takes().await?.1 >= Duration::from_millis(1_998))).await?;
    bed.apply(&rule(json!({"timeouts": {"request": "150ms"}, "retry": {"attempts": 0}}))).await?;
    let (status, took) = takes().await?;
    ensure!(status == 504 && took < Duration::from_secs(2), "{status} after {took:?}");
    bed.route("policy", &policy(json!({"delay": {"duration": "1ms", "percent": 0}})))?;
    within(PATIENCE, "no delay", async || Ok(takes().await?.0 == 200)).await?;
    println!("abort 50 %: {half} of 300 failed, {few} with retries; a delay of 2 s ended after {took:?}");
    Ok(())
}

/// What is more than one client may have under way is answered with 503 at once, and counted.
async fn limits(bed: &Bed) -> Result<()> {
    let policy = |limits| {
        json!({
            "apiVersion": "eastway.dev/v1alpha1",
            "kind": "TrafficPolicy",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"service": "web", "limits": limits, "outlierDetection": {"consecutiveErrors": 0}},
        })
    };
    bed.apply(&[json!({"backendRefs": [share("v2", 1)], "retry": {"attempts": 0}})]).await?;
    let known = async |figure: &str, value: &str| {
        let lines = bed.figures("clusters", &format!("default_priority::{figure}::")).await?;
        Ok(!lines.is_empty() && lines.iter().all(|line| (line.rsplit(':').next() == Some("1")) == (value == "1")))
    };
    // Each of them takes 5 s if it is served, and nobody waits for that.
    let refused = async || {
        let all = (0..8).map(|_| async {
            let answer = timeout(Duration::from_secs(2), bed.get("/", &[("x-misbehave", "slow")])).await;
            usize::from(matches!(answer, Ok(Ok(answer)) if answer.status == 503))
        });
        join_all(all).await.into_iter().sum::<usize>()
    };
    let counted = async || {
        // 1.36 counts all of them as pending.
        let lines = bed.figures("stats?filter=_overflow", "|version.v2|").await?;
        let ours = ["upstream_rq_pending_overflow", "upstream_rq_active_overflow"];
        let lines: Vec<_> = lines.iter().filter(|line| ours.iter().any(|name| line.contains(name))).collect();
        let numbers = lines.iter().filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok());
        Ok::<usize, anyhow::Error>(numbers.sum())
    };
    for (limits, figure) in [
        (json!({"requests": 1}), "max_requests"),
        (json!({"connections": 1, "pendingRequests": 1}), "max_pending_requests"),
    ] {
        bed.route("policy", &policy(limits.clone()))?;
        within(PATIENCE, "Envoy knows the limit", async || known(figure, "1").await).await?;
        let before = counted().await?;
        let (many, more) = (refused().await, counted().await? - before);
        println!("limits {limits}: {many} of 8 requests at once were refused, {more} counted");
        // One connection for each of Envoy's threads is always allowed, and one may wait.
        ensure!((4..=7).contains(&many) && more == many, "{many} refused, {more} counted");
        bed.route("policy", &policy(json!({})))?;
        within(PATIENCE, "no limit", async || known(figure, "none").await).await?;
    }
    ensure!(refused().await == 0, "without a limit");
    Ok(())
}

async fn sessions(bed: &Bed) -> Result<()> {
    let rule = json!({"sessionPersistence": {"sessionName": "cart"}, "backendRefs": [share("b", 1)]});
    bed.apply(&[rule]).await?;
    let cookie = async || {
        let answer = bed.get("/", &[]).await?;
        let cookie = answer.headers.get("set-cookie").and_then(|value| value.split(';').next().map(str::to_owned));
        Ok::<_, anyhow::Error>((answer.server().to_owned(), cookie))
    };
    let (server, cookie) = cookie().await?;
    let cookie = cookie.unwrap_or_default();
    ensure!(cookie.starts_with("cart="), "{cookie}");
    for _ in 0..60 {
        let answer = bed.get("/", &[("cookie", &cookie)]).await?;
        ensure!(answer.server() == server, "{} instead of {server}", answer.server());
    }
    ensure!(bed.look(60, &[]).await?.len() > 1, "others go elsewhere");
    Ok(())
}

async fn a_bad_file_changes_nothing(bed: &Bed) -> Result<()> {
    bed.apply(&[json!({"backendRefs": [share("v2", 1)]})]).await?;
    bed.route("web", &http_route(&[json!({"backendRefs": [share("v1", 1)], "fliters": []})]))?;
    within(PATIENCE, "it is told", async || {
        let errors = bed.mesh.cloud("a").status(0).await?.config.errors;
        Ok(errors.iter().any(|line| line.contains("fliters") && line.contains("did you mean filters?")))
    })
    .await?;
    let seen = bed.look(60, &[]).await?;
    ensure!(seen.keys().eq(["v2"]), "{seen:?}");
    Ok(())
}

/// A share whose cluster is lost is served elsewhere until that comes back.
async fn failover(version: &str) -> Result<()> {
    let mut bed = Bed::start(version).await?;
    let rules = [json!({"backendRefs": [share("b", 1)]})];
    bed.apply(&rules).await?;
    let seen = bed.look(60, &[]).await?;
    ensure!(bed.servers_seen(60).await?.iter().all(|name| name.starts_with("b-")), "{seen:?}");
    bed.mesh.cloud_mut("b").kill_gateway(0).await?;
    let here = async || Ok(bed.get("/", &[]).await?.server() == "a-v1");
    let lost = within(PATIENCE, "a takes over", here).await?;
    ensure!(bed.servers_seen(60).await?.iter().all(|name| name == "a-v1"));
    bed.mesh.start_gateways().await?;
    let back = async || Ok(bed.get("/", &[]).await?.server().starts_with("b-"));
    let back = within(PATIENCE, "b is back", back).await?;
    println!("Envoy {version}: the share was lost for {lost:?} and back after {back:?}");
    within(PATIENCE, "b has all again", async || {
        Ok(bed.servers_seen(30).await?.iter().all(|name| name.starts_with("b-")))
    })
    .await?;
    // A version that is gone everywhere gives its share to the others.
    bed.apply(&[json!({"backendRefs": [share("v1", 1), share("v3", 9)]})]).await?;
    bed.keep("b", |version| version != "v3")?;
    within(PATIENCE, "v1 takes over", async || Ok(bed.look(30, &[]).await?.keys().eq(["v1"]))).await?;
    bed.keep("b", |_| true)?;
    within(PATIENCE, "v3 is back", async || Ok(bed.look(30, &[]).await?.contains_key("v3"))).await?;
    bed.stop().await
}
