//! The table "Peer config file" of bad inputs, one test per input.

use super::{Folder, MINIMAL, PEER};

fn errors(peer: &str) -> String {
    Folder::new(&[("gateway.yaml", MINIMAL), ("peers/gke.yaml", peer)]).errors()
}

fn warnings(peer: &str) -> String {
    Folder::new(&[("gateway.yaml", MINIMAL), ("peers/gke.yaml", peer)]).warnings()
}

/// The good Peer with `from` replaced by `to`.
fn with(from: &str, to: &str) -> String {
    assert!(PEER.contains(from), "{from}");
    PEER.replace(from, to)
}

fn address(text: &str) -> String {
    errors(&with("'198.51.100.12:15443'", text))
}

fn import(text: &str) -> String {
    errors(&with("import: [{namespace: bookinfo}]", &format!("import: {text}")))
}

fn withdraw_after(text: &str) -> String {
    errors(&format!("{PEER}  withdrawAfter: {text}\n"))
}

macro_rules! refused {
    ($($name:ident: $errors:expr;)*) => {$(
        #[test]
        fn $name() {
            insta::assert_snapshot!($errors);
        }
    )*};
}

refused! {
    not_yaml: errors("apiVersion: [eastway\nkind: Peer\n");
    tabs: errors(&with("  addresses", "\taddresses"));
    two_documents: errors(&format!("{PEER}---\n{PEER}"));
    an_empty_file: errors("# nothing yet\n");
    anchors_bomb: errors("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n");
    merge_keys: errors(&with("spec:", "base: &base {}\nspec:\n  <<: *base"));
    tags: errors(&with("name: gke", "name: !!str gke"));
    directives: errors(&format!("%YAML 1.2\n---\n{PEER}"));
    deep_nesting: errors(&format!("a: {}{}\n", "[".repeat(100), "]".repeat(100)));
    larger_than_1_mib: errors(&format!("{PEER}#{}\n", "x".repeat(1 << 20)));
    a_key_twice: errors(&with("  trustDomain", "  trustDomain: other.example\n  trustDomain"));
    another_kind: errors(&with("kind: Peer", "kind: Peers"));
    another_version: errors(&with("eastway.dev/v1alpha1", "eastway.dev/v2"));
    unknown_field: errors(&with("addresses:", "adress:"));
    unknown_field_without_likeness: errors(&with("spec:", "spec:\n  colour: red"));
    unknown_field_in_another_place: errors(&with("spec:", "addresses: []\nspec:"));
    name_missing: errors(&with("{name: gke}", "{}"));
    metadata_missing: errors(&with("metadata: {name: gke}\n", ""));
    pins_missing: errors(&with("  pins: ['sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa']\n", ""));
    pins_empty: errors(&with("pins: ['sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa']", "pins: []"));
    pin_singular: errors(&with("pins:", "pin:"));
    pin_without_digits: errors(&with("'sha256:aaaa", "'sha1:aaaa"));
    pin_too_short: errors(&with("sha256:aaaa", "sha256:aaa"));
    pin_twice: errors(&with("pins: [", "pins: ['sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA', "));
    name_is_a_number: errors(&with("name: gke", "name: 7"));
    name_with_capitals: errors(&with("name: gke", "name: GKE_1"));
    name_local: errors(&with("name: gke", "name: local"));
    name_our_own: errors(&with("name: gke", "name: onprem"));
    address_without_port: address("198.51.100.12");
    address_name_without_port: address("gw.gke.example");
    address_port_0: address("'198.51.100.12:0'");
    address_port_70000: address("gw.gke.example:70000");
    address_ipv6_without_brackets: address("'2001:db8::1:15443'");
    address_with_scheme: address("http://gw.gke.example:15443");
    address_with_trailing_space: address("'gw.gke.example:15443 '");
    address_unspecified: address("0.0.0.0:15443");
    address_multicast: address("'[ff02::1]:15443'");
    address_in_disguise: address("'0x7f.1:15443'");
    address_our_own: address("127.0.0.1:15443");
    address_is_a_mapping: address("{host: gw, port: 15443}");
    addresses_is_a_text: errors(&with("addresses: ['198.51.100.12:15443']", "addresses: gw.gke.example:15443"));
    address_empty: address("~");
    address_twice: address("'gw.gke.example:1', 'gw.gke.example:1'");
    import_everything: import("[{namespace: '*'}]");
    import_kube_system: import("[{namespace: kube-system}]");
    import_kube_prefix: import("[{namespace: kube-flannel}]");
    import_istio_system: import("[{namespace: istio-system}]");
    import_our_namespace: import("[{namespace: eastway-system}]");
    import_by_a_glob_that_takes_in_too_much: import("[{namespace: 'i*'}]");
    import_bad_name: import("[{namespace: Foo_bar}]");
    import_namespace_missing: import("[{services: [a]}]");
    import_services_empty: import("[{namespace: bookinfo, services: []}]");
    import_service_bad: import("[{namespace: bookinfo, services: ['re views']}]");
    import_is_a_list_of_texts: import("[bookinfo]");
    duration_without_unit: withdraw_after("5");
    duration_negative: withdraw_after("-1s");
    duration_exponent: withdraw_after("1e9h");
    duration_too_long: withdraw_after("1000000h");
    duration_too_short: withdraw_after("0s");
    duration_of_another_language: withdraw_after("1 day");
    transport_unknown: errors(&format!("{PEER}  transport: udp\n"));
    proxy_without_url: errors(&format!("{PEER}  proxy: {{username: alice}}\n"));
    proxy_by_tls: errors(&format!("{PEER}  proxy: {{url: 'https://proxy.example:3128'}}\n"));
    proxy_without_port: errors(&format!("{PEER}  proxy: {{url: 'http://proxy.example'}}\n"));
    proxy_without_password: errors(&format!("{PEER}  proxy: {{url: 'http://proxy.example:3128', username: alice}}\n"));
    proxy_without_username: errors(&format!("{PEER}  proxy: {{url: 'http://proxy.example:3128', passwordFile: secret}}\n"));
    proxy_username_with_a_colon: errors(&format!("{PEER}  proxy: {{url: 'http://proxy.example:3128', username: 'a:b', passwordFile: secret}}\n"));
    max_connections_none: errors(&format!("{PEER}  maxConnections: 0\n"));
    max_connections_too_many: errors(&format!("{PEER}  maxConnections: 17\n"));
    max_connections_is_a_text: errors(&format!("{PEER}  maxConnections: two\n"));
    own_trust_domain: errors(&with("gke.example", "onprem.example"));
    trust_domain_with_capitals: errors(&with("gke.example", "GKE.example"));
    shared_trust_domain_in_quotes: errors(&format!("{PEER}  sharedTrustDomain: 'true'\n"));
    gateway_of_another_domain: errors(&format!("{PEER}  gateway: spiffe://evil.example/ns/a/sa/b\n"));
    gateway_without_path: errors(&format!("{PEER}  gateway: spiffe://gke.example\n"));
    bundle_is_no_pem: errors(&format!("{PEER}  bundle: hello\n"));
    bundle_with_a_private_key: errors(&format!("{PEER}  bundle: |\n    -----BEGIN EC PRIVATE KEY-----\n    AA==\n    -----END EC PRIVATE KEY-----\n"));
    bundle_is_no_certificate: errors(&format!("{PEER}  bundle: |\n    -----BEGIN CERTIFICATE-----\n    AA==\n    -----END CERTIFICATE-----\n"));
    everything_at_once: errors("apiVersion: v1\nkind: Peer\nmetadata: {name: '', lables: {}}\nspec: {addresses: [a, b:0], trustDomain: 5, pins: [x], withdrawAfter: -1s, import: [{namespace: kube-system}], sharedTrustDomain: maybe}\n");
    // Hostile texts: nothing of them may move the cursor or forge a line.
    p11_control_characters: errors(&with("spec:", "\"\\e[31m\\n\\0evil\": 1\nspec:\n  \"\\u202Ereversed\": 2"));
}

#[test]
fn import_empty_is_a_warning() {
    insta::assert_snapshot!(warnings(&with("import: [{namespace: bookinfo}]", "import: []")));
}

#[test]
fn nothing_crossing_is_a_warning() {
    let quiet = with("  import: [{namespace: bookinfo}]\n", "");
    insta::assert_snapshot!(warnings(&quiet.replace("  export: [{namespace: bookinfo, services: ['*']}]\n", "")));
}

#[test]
fn a_proxy_that_is_never_used_is_a_warning() {
    let peer = format!("{PEER}  transport: quic\n  proxy: {{url: 'http://proxy.example:3128'}}\n");
    insta::assert_snapshot!(warnings(&peer));
}

#[test]
fn a_number_of_connections_that_is_never_used_is_a_warning() {
    insta::assert_snapshot!(warnings(&format!("{PEER}  transport: quic\n  maxConnections: 2\n")));
}

#[test]
fn a_shared_trust_domain_that_is_not_shared_is_a_warning() {
    insta::assert_snapshot!(warnings(&format!("{PEER}  sharedTrustDomain: true\n")));
}

#[test]
fn unusual_but_good_files_are_read() {
    let good = [
        PEER.replace('\n', "\r\n"),
        format!("\u{feff}{PEER}"),
        format!("---\n{PEER}...\n"),
        format!("{PEER}---\n# nothing\n"),
        with("'198.51.100.12:15443'", ""),
        with("gke.example", "onprem.example") + "  sharedTrustDomain: true\n",
        with("name: gke", "name: \"7\""),
        format!(
            "{PEER}  transport: tcp\n  maxConnections: 2\n  proxy: {{url: 'http://proxy.example:3128/', username: alice, passwordFile: secret}}\n"
        ),
    ];
    for peer in good {
        let folder = Folder::new(&[("gateway.yaml", MINIMAL), ("peers/gke.yaml", &peer)]);
        let loaded = super::load(&folder.path("gateway.yaml")).unwrap_or_else(|errors| panic!("{peer}\n{errors}"));
        assert_eq!(loaded.peers.len(), 1);
    }
}
