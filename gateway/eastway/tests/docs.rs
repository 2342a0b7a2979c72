//! The reference pages under `docs` say what the code does. `make regenerate` writes them anew.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use eastway::admin::check::Severity;
use eastway::admin::check::catalogue;
use eastway::telemetry::{
    Certificate, ConnectionLabels, Destination, DialOutcome, Metrics, PeerSample, Refusal, Refusals, Reporter, Workload,
};
use eastway_tunnel::RelayStatus;

fn page(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations").join(name)
}

/// Every key of every kind of file.
#[test]
fn keys_are_documented() {
    let mut text = String::new();
    for kind in eastway::config::KINDS {
        let schema: serde_json::Value = serde_json::from_str(&eastway::config::schema(kind).unwrap()).unwrap();
        let about = schema["description"].as_str().unwrap().replace('\n', " ");
        text.push_str(&format!("\n## {kind}\n\n{about}\n\n| key | | |\n|---|---|---|\n"));
        keys_of(&schema, &schema, "", &mut text);
    }
    assert_page("../configuration.md", &text);
}

/// A row for each key of `object`, depth first, in the order of the file.
fn keys_of(root: &serde_json::Value, object: &serde_json::Value, above: &str, text: &mut String) {
    let required = object["required"].as_array().cloned().unwrap_or_default();
    for (key, value) in object["properties"].as_object().into_iter().flatten() {
        let path = format!("{above}{key}");
        let inner = resolve(root, value);
        let (inner, path) = match inner.get("items") {
            Some(items) => (resolve(root, items), format!("{path}[]")),
            None => (inner, path),
        };
        let must = if required.contains(&serde_json::json!(key)) { "**required**" } else { "" };
        let about = value["description"].as_str().or(inner["description"].as_str()).unwrap_or_default();
        let about = about.replace('\n', " ").replace('|', "\\|");
        text.push_str(&format!("| `{path}` | {must} | {about} |\n"));
        keys_of(root, inner, &format!("{path}."), text);
    }
}

/// What a schema refers to.
fn resolve<'a>(root: &'a serde_json::Value, value: &'a serde_json::Value) -> &'a serde_json::Value {
    let reference = value["$ref"].as_str().or_else(|| value["anyOf"][0]["$ref"].as_str());
    match reference.and_then(|reference| reference.strip_prefix('#')) {
        Some(pointer) => root.pointer(pointer).expect("a schema refers to its own parts"),
        None => value,
    }
}

/// Compares the part of a page after its marker with what the code says; with `EASTWAY_REGENERATE` writes it.
fn assert_page(name: &str, generated: &str) {
    const MARKER: &str = "<!-- generated below this line -->\n";
    let path = page(name);
    let text = std::fs::read_to_string(&path).expect("the page exists");
    let (head, committed) = text.split_once(MARKER).expect("the page has its marker");
    if std::env::var_os("EASTWAY_REGENERATE").is_some() {
        std::fs::write(&path, format!("{head}{MARKER}{generated}")).unwrap();
    } else {
        assert!(committed == generated, "{} is out of date: run `make regenerate`", path.display());
    }
}

#[test]
fn checks_are_documented() {
    let group = |id: &str| match id.as_bytes().get(2) {
        Some(b'1') => "This gateway",
        Some(b'2') => "Names",
        Some(b'3') => "The way to a peer",
        Some(b'4') => "Trust",
        Some(b'5') => "What is exchanged",
        _ => "Policy",
    };
    let mut text = String::new();
    let mut before = "";
    let plain = |text: &str| text.replace("{what}", "…").replace("{peer}", "PEER").replace('|', "\\|");
    for code in catalogue::ALL {
        if group(code.id) != before {
            before = group(code.id);
            text.push_str(&format!(
                "\n## {before}\n\n| code | | finding | why | what to do |\n|---|---|---|---|---|\n"
            ));
        }
        let severity = match code.severity {
            Severity::Ok => "ok",
            Severity::Warning => "warning",
            Severity::Error => "**error**",
        };
        let [title, cause, fix] = [code.title, code.cause, code.fix].map(plain);
        text.push_str(&format!("| {} | {severity} | {title} | {cause} | {fix} |\n", code.id));
    }
    assert_page("checks.md", &text);
}

/// Touches every metric once: empty families are not shown.
fn touch(metrics: &Arc<Metrics>) {
    let peer: Arc<str> = Arc::from("gke");
    let workload = Workload { cluster: Arc::clone(&peer), namespace: "a".into(), name: "b".into(), version: None };
    let (namespace, service) = (Arc::from("bookinfo"), Arc::from("reviews"));
    metrics.access_denied(&workload, &namespace, &service, false);
    metrics
        .connection_opened(&ConnectionLabels {
            reporter: Reporter::Source,
            peer: Some(Arc::clone(&peer)),
            source: workload.clone(),
            destination: Destination { namespace, service, workload },
            udp: false,
            mutual_tls: true,
        })
        .carried(1, 1);
    let sample = PeerSample { rtt: Some(std::time::Duration::ZERO), clock_skew_ms: Some(0), ..PeerSample::default() };
    metrics.set_peer(&peer, &sample);
    metrics.hbone_answered("tunnel");
    metrics.upstream_dial(DialOutcome::Connected);
    metrics.link_dial(&peer, DialOutcome::Connected);
    metrics.link_closed(&peer, "idle");
    metrics.handshake_refused("pin");
    metrics.set_forwarded("to_owner", 1, 1);
    metrics.set_forward_dropped("forged", 1);
    let between = ["a", "b"].map(Arc::from);
    metrics.set_relayed(&[RelayStatus {
        between,
        streams: 1,
        opened: 1,
        refused: 1,
        bytes: [1, 1],
        today: 2,
        max_streams: 1,
        bytes_per_second: None,
        bytes_per_day: None,
    }]);
    metrics.stream_opened(&peer, "dialled");
    metrics.stream_answered(&peer, "dialled");
    metrics.stream_retried(&peer);
    metrics.udp_dropped("flow_limit", 0);
    metrics.federation_applied(&peer, "upsert");
    metrics.federation_rejected(&peer, "namespace", 1);
    metrics.federation_closed(&peer, "version");
    metrics.set_federation_lag(&peer, std::time::Duration::ZERO);
    metrics.set_federation_objects(&peer, 0, 0, 0);
    metrics.injection_answered("injected");
    metrics.sidecar_pushed("cds");
    metrics.sidecar_refused("cds");
    metrics.set_dns_answers("NOERROR", 1);
    metrics.set_dns_dropped("rate", 1);
    metrics.set_certificate(&Certificate::Leaf, SystemTime::now());
    metrics.config_reloaded(true);
    Refusals::new(Arc::clone(metrics)).refused(Refusal::Dns, None, "x");
}

#[test]
fn metrics_are_documented() {
    let metrics = Arc::new(Metrics::new());
    touch(&metrics);
    // Where it is asked for, there are tasks.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let page = {
        let _inside = runtime.enter();
        metrics.encode().unwrap()
    };
    let mut kinds = BTreeMap::new();
    let mut labels: BTreeMap<String, String> = BTreeMap::new();
    for line in page.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kinds.insert(name.to_owned(), kind.to_owned());
        } else if let Some((series, rest)) = line.split_once('{') {
            let names: Vec<&str> =
                rest.split("\",").filter_map(|pair| pair.split_once('=')).map(|(key, _)| key).collect();
            labels.insert(series.to_owned(), names.join(", "));
        }
    }
    let mut text = String::from("\n| metric | kind | labels | |\n|---|---|---|---|\n");
    for line in page.lines() {
        let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) else { continue };
        let kind = kinds.get(name).expect("each metric has a type").as_str();
        let shown = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        let names = match labels.get(&shown).map(String::as_str) {
            Some(_) if name.starts_with("istio_") => "as above",
            Some(names) => names,
            None => "",
        };
        text.push_str(&format!("| `{shown}` | {kind} | {names} | {} |\n", help.trim_end_matches('.')));
    }
    assert_page("metrics.md", &text);
}
