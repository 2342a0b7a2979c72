//! Service files with mistakes: each is told by file, line, column, field, what is wrong and what to do.

use std::sync::Arc;

use crate::diagnostic::Diagnostic;
use crate::file::{MAX_BYTES, parse};
use crate::yaml::from_bytes;

const GOOD: &str = "apiVersion: eastway.dev/v1alpha1
kind: ServiceList
services:
  - namespace: shop
    name: cart
    export: true
    ports: [{name: http, port: 80}, {name: admin, port: 81}]
    health: {http: {path: /health, port: http}, interval: 2s, timeout: 1s}
    endpoints:
      - {address: 10.0.0.1, labels: {version: v1}, weight: 100, ports: {http: 9080}}
workloads:
  - {address: 10.0.0.9, namespace: shop, serviceAccount: till}
";

fn complaints(bytes: &[u8]) -> Vec<String> {
    let source = match from_bytes("services.yaml", bytes.to_vec(), MAX_BYTES) {
        Ok(source) => source,
        Err(diagnostic) => return vec![diagnostic.headline()],
    };
    let found = match parse(&Arc::new(source), false) {
        Ok((_, warnings)) => warnings,
        Err(errors) => errors,
    };
    found.iter().map(Diagnostic::headline).collect()
}

/// The complaint about [`GOOD`] with one text in place of another.
fn changed(from: &str, to: &str) -> Vec<String> {
    assert!(GOOD.contains(from), "{from}");
    complaints(GOOD.replacen(from, to, 1).as_bytes())
}

#[test]
fn the_example_is_good() {
    assert_eq!(complaints(GOOD.as_bytes()), [""; 0]);
}

#[test]
fn every_mistake_is_named_where_it_is() {
    let long = "a".repeat(64);
    let many = (0..17).map(|n| format!("l{n}: v")).collect::<Vec<_>>().join(", ");
    let ports = (1..252).map(|n| format!("{{name: p{n}, port: {n}}}")).collect::<Vec<_>>().join(", ");
    let cases: &[(&str, &str, &str)] = &[
        ("namespace: shop\n", "namespace: Shop\n", "4:16: services[0].namespace: must consist of lower-case"),
        ("namespace: shop\n", "namespace: kube-system\n", "kube-system"),
        ("name: cart", "name: car.t", "5:11: services[0].name: must consist of lower-case"),
        ("name: cart", "name: '0x7f'", "5:11: services[0].name: is a number"),
        ("name: cart", "name: '123'", "5:11: services[0].name: is a number"),
        ("name: cart", &format!("name: {long}"), "5:11: services[0].name: is 64 bytes long"),
        ("name: cart", "nmae: cart", "(did you mean name?)"),
        ("    export: true\n", "    export: perhaps\n", "6:13: services[0].export"),
        ("port: 80}", "port: 0}", "services[0].ports[0].port: port must be 1-65535"),
        ("port: 80}", "port: 65536}", "services[0].ports[0].port: port must be 1-65535"),
        ("port: 80}", "port: '80'}", "services[0].ports[0].port"),
        ("port: 81}", "port: 80}", "port 80 is already listed"),
        ("name: admin", "name: http", "another port has this name"),
        ("{name: admin, port: 81}", "{port: 81}", "name is required (the service has several ports)"),
        ("[{name: http, port: 80}, {name: admin, port: 81}]", &format!("[{ports}]"), "has 251 ports; at most 250"),
        ("port: http}", "port: htpt}", "htpt"),
        ("interval: 2s", "interval: 2", "needs a unit: 2s, 2m or 2h"),
        ("interval: 2s", "interval: -1s", "must not be negative"),
        ("interval: 2s", "interval: 1e9h", "must be a number with a unit"),
        ("path: /health", "path: health", "services[0].health.http.path"),
        ("address: 10.0.0.1,", "address: 127.0.0.1,", "endpoint 127.0.0.1 refused: loopback"),
        ("address: 10.0.0.1,", "address: 169.254.169.254,", "endpoint 169.254.169.254 refused: link-local"),
        ("address: 10.0.0.1,", "address: '::ffff:10.0.0.1',", "refused: an IPv4 address in IPv6 form"),
        ("address: 10.0.0.1,", "address: 0.0.0.0,", "refused: unspecified"),
        ("address: 10.0.0.1,", "address: 224.0.0.1,", "refused: multicast"),
        ("address: 10.0.0.1,", "address: db.example,", "must be an IP address; names are not resolved here"),
        ("address: 10.0.0.1, ", "", "services[0].endpoints[0]: address is required"),
        ("version: v1", "version: 1", "services[0].endpoints[0].labels.version"),
        ("version: v1", "version: v 1", "a label's value must be empty or letters"),
        ("version: v1", "version: v2+x", "a label's value must be empty or letters"),
        ("version: v1", "'a!b': c", "a label's key must be letters"),
        ("labels: {version: v1}", &format!("labels: {{{many}}}"), "has 17 labels; at most 16"),
        ("weight: 100", "weight: 0", "to take it out, set draining: true"),
        ("weight: 100", "weight: 1000001", "must be 1 to 1000000"),
        ("weight: 100", "weight: 1.5", "services[0].endpoints[0].weight"),
        ("{http: 9080}", "{htp: 9080}", "the service has no port \"htp\" (did you mean http?)"),
        ("{http: 9080}", "{http: 70000}", "port must be 1-65535"),
        ("namespace: shop, s", "namespace: '', s", "workloads[0].namespace: is empty"),
        ("kind: ServiceList", "kind: ServicesList", "ServiceList"),
        ("v1alpha1", "v1", "apiVersion"),
        ("services:\n", "services:\n  - 7\n", "services[0]"),
    ];
    for (from, to, expected) in cases {
        let found = changed(from, to);
        let [complaint, ..] = found.as_slice() else { panic!("{to}: nothing is wrong") };
        let good = complaint.starts_with("services.yaml:") && found.iter().any(|each| each.contains(expected));
        assert!(good, "{to}: {found:#?} instead of {expected}");
    }
}

#[test]
fn what_is_there_twice_is_named_twice() {
    let again = "services:\n  - {namespace: shop, name: cart, ports: [{port: 80}]}\n";
    let found = changed("services:\n", again);
    assert!(found.iter().any(|each| each.contains("shop/cart is already listed; merge the two")), "{found:#?}");
    let endpoint = "    endpoints:\n      - {address: 10.0.0.1, ports: {http: 9080}}\n";
    let found = changed("    endpoints:\n", endpoint);
    assert!(found.iter().any(|each| each.contains("10.0.0.1 with these ports is already listed")), "{found:#?}");
    let found = changed("workloads:\n", "workloads:\n  - {address: 10.0.0.9, namespace: shop}\n");
    assert!(found.iter().any(|each| each.contains("10.0.0.9 is already listed")), "{found:#?}");
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let text = GOOD.replace("name: cart", "name: Cart").replace("port: 81", "port: 0").replace("10.0.0.9", "nowhere");
    assert_eq!(complaints(text.as_bytes()).len(), 3, "{:#?}", complaints(text.as_bytes()));
}

#[test]
fn what_is_no_yaml_or_too_large_is_refused_in_bounded_time() {
    let bomb = {
        let mut text = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (one, before) in ('b'..='z').zip('a'..='y') {
            text.push_str(&format!(
                "{one}: &{one} [*{before}, *{before}, *{before}, *{before}, *{before}, *{before}]\n"
            ));
        }
        text
    };
    let deep = "[".repeat(100_000);
    let cases: &[(&[u8], &str)] = &[
        (b"", "services.yaml"),
        (b"services: [", "not valid YAML"),
        (b"services:\n\t- namespace: a", "not valid YAML"),
        (b"\xff\xfe\x00", "UTF-8"),
        (bomb.as_bytes(), ""),
        (deep.as_bytes(), ""),
        (b"apiVersion: eastway.dev/v1alpha1\nkind: ServiceList\n---\nkind: ServiceList\n", "document"),
        (&vec![b'#'; MAX_BYTES + 1], "larger than 16 MiB"),
    ];
    for (bytes, expected) in cases {
        let began = std::time::Instant::now();
        let found = complaints(bytes);
        assert!(found.iter().any(|each| each.contains(expected)), "{found:#?} instead of {expected}");
        assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    }
}
