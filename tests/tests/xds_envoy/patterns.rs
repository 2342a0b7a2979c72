//! Regular expressions: what we take, Envoy takes. One that it refuses would hold back everything that is pushed with it.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use eastway_model::rules::route::{MAX_STEPS, Pattern};
use eastway_tests::kube::tools;
use serde_json::{Value, json};

/// To the first a character is a byte, to the other one it is UTF-8, which makes larger programs.
const PROGRAMS: [&str; 2] = ["envoy-1.40.0", "envoy-1.36.2"];

/// Taken by the parser that knows nothing of RE2, refused by Envoy.
const REFUSED: [&str; 13] = [
    "a**",
    "a+*",
    "a*?*",
    "a{2}*",
    "a{1}{2}",
    "a{2}??",
    "(a{60}){60}",
    "((a{10}){10}){11}",
    "(?:a{2}b|c){501}",
    "a{1001}",
    "(?x) a",
    "/x)|(/y",
    ".)$*+(",
];

/// At the bounds of what is refused.
const TAKEN: [&str; 15] = [
    "(?:a*)*",
    "(a{2})*",
    "a{2}?",
    "a??",
    "((a{10}){10}){10}",
    "(?:a{2}b|c){500}",
    "(a{1000})*",
    "a{1000}",
    "^*a$",
    "(|a)+",
    r"[]a\]-]\_\%",
    r"[^\d\D]",
    "(?i)k{9}",
    "[a-b-c]",
    "}]",
];

/// What random expressions are made of.
const PARTS: [&str; 36] = [
    "a", "k", "*", "+", "?", "{2}", "{1,3}", "{0,}", "{60}", "{02}", "{ 2}", "{", "}", "(", "(?:", ")", "|", "[", "[^",
    "]", "^", "$", "-", "--", "&&", "a-z", r"\d", r"\W", r"\s", r"\.", r"\_", r"\b", ".", "/", "(?i)", ":",
];

/// What largest ones are made of.
const ATOMS: [&str; 20] = [
    "a",
    ".",
    "[^/]",
    r"\W",
    "[a-z0-9]",
    "[^a-z0-9_.]",
    "(?i)k",
    "(?i)[a-z]",
    "(?i)[^k-s]",
    "(?i)[^aks]",
    r"(?i)\w",
    r"(?i)\W",
    r"(?i)[\W\d]",
    "(a)",
    "a?",
    "a*",
    "a|b|cd",
    "(a)|b*",
    r"\b",
    "a?b?c?d?",
];

#[test]
fn envoy_takes_the_patterns_that_we_take() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut random = fastrand::Rng::with_seed(7);
    let mut taken: Vec<String> = TAKEN.map(str::to_owned).to_vec();
    for _ in 0..100_000 {
        let text: String = (0..random.usize(1..10)).map(|_| PARTS[random.usize(..PARTS.len())]).collect();
        if Pattern::parse(&text).is_ok() {
            taken.push(text);
        }
    }
    println!("{} random patterns", taken.len() - TAKEN.len());
    ensure!(taken.len() > 1_000, "random patterns are mostly bad ones: {}", taken.len());
    for text in &taken {
        ensure!(Pattern::parse(text).is_ok(), "{text:?} is refused: {:?}", Pattern::parse(text));
    }
    for program in PROGRAMS {
        ensure!(verdict(program, folder.path(), &taken)?.is_none(), "{:?}", verdict(program, folder.path(), &taken)?);
        for text in REFUSED {
            ensure!(Pattern::parse(text).is_err(), "{text:?} is taken");
            ensure!(verdict(program, folder.path(), &[text.to_owned()])?.is_some(), "{program} takes {text:?}");
        }
    }
    Ok(())
}

/// A gRPC method has two patterns, which become one.
#[test]
fn envoy_takes_two_of_the_largest_patterns() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let paths: Vec<String> = ATOMS.map(largest).map(|part| format!("/(?:{part})/(?:{part})")).to_vec();
    for program in PROGRAMS {
        let refused = verdict(program, folder.path(), &paths)?;
        ensure!(refused.is_none(), "{program}: {refused:?}");
    }
    Ok(())
}

/// As many of it as a pattern may have.
fn largest(atom: &str) -> String {
    let of = |count: usize| {
        format!("{}(?:{atom}){{{}}}", format!("(?:{atom}){{1000}}").repeat(count / 1_000), count % 1_000)
    };
    let most = (1..=usize::try_from(MAX_STEPS).unwrap())
        .collect::<Vec<_>>()
        .partition_point(|count| Pattern::parse(&of(*count)).is_ok());
    of(most)
}

/// Why an Envoy refuses some of these, if it does.
fn verdict(program: &str, folder: &Path, patterns: &[String]) -> Result<Option<String>> {
    let file = folder.join("patterns.json");
    std::fs::write(&file, serde_json::to_vec(&bootstrap(patterns))?)?;
    let arguments = ["--mode", "validate", "--log-level", "error", "-c"];
    let output = Command::new(tools::built(program)?).args(arguments).arg(&file).output()?;
    Ok((!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn bootstrap(patterns: &[String]) -> Value {
    let typed = |name: &str, fields: Value| {
        let mut config = json!({"@type": format!("type.googleapis.com/envoy.extensions.filters.{name}")});
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({"name": name, "typed_config": config})
    };
    let routes: Vec<Value> = patterns
        .iter()
        .map(|regex| json!({"match": {"safe_regex": {"regex": regex}}, "direct_response": {"status": 200}}))
        .collect();
    let manager = typed(
        "network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "patterns",
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
            "http_filters": [typed("http.router.v3.Router", json!({}))],
        }),
    );
    json!({
        // As the bootstrap of a sidecar has it.
        "layered_runtime": {"layers": [{
            "name": "sizes", "static_layer": {"re2.max_program_size.error_level": 32_768},
        }]},
        "static_resources": {"listeners": [{
            "name": "patterns",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
            "filter_chains": [{"filters": [manager]}],
        }]},
    })
}
