//! `kind: SidecarConfig`, good and with mistakes.

use super::Folder;
use crate::config::file::{CaptureWord, EnvoyLogWord, SidecarMode};
use crate::config::{CaAddress, load_sidecar};

const MINIMAL: &str = "\
apiVersion: eastway.dev/v1alpha1
kind: SidecarConfig
workload: {namespace: shop, serviceAccount: web, name: web-1}
trust: {domain: onprem.example, ca: 'unix:./run/web.sock'}
gateway: 127.0.0.1:15012
";

const VIPS: [&str; 2] = ["242.0.0.0/16", "fd65:6173:7477::/48"];

fn errors(text: &str) -> String {
    let folder = Folder::new(&[("sidecar.yaml", text)]);
    folder.relative(&load_sidecar(&folder.path("sidecar.yaml")).unwrap_err().to_string())
}

#[test]
fn five_settings_are_enough() {
    let folder = Folder::new(&[("sidecar.yaml", MINIMAL)]);
    let settings = load_sidecar(&folder.path("sidecar.yaml")).unwrap();
    assert_eq!(settings.identity().unwrap().as_str(), "spiffe://onprem.example/ns/shop/sa/web");
    assert_eq!(settings.trust.ca, CaAddress::Unix(folder.path("run/web.sock")));
    assert_eq!(settings.gateway.to_string(), "127.0.0.1:15012");
    assert_eq!(settings.state, folder.path("state"));
    assert_eq!((settings.drain.as_secs(), settings.envoy.concurrency.get()), (10, 2));
    let gateway = settings.system_account("eastway-gateway").unwrap();
    assert_eq!(gateway.as_str(), "spiffe://onprem.example/ns/eastway-system/sa/eastway-gateway");
}

#[test]
fn all_of_it() {
    let more = "state: /run/web\ndrain: 0s\nlog: {level: 'info,envoy=debug', format: json}\n\
                envoy: {path: ./envoy-1.40.0, args: ['--component-log-level', 'upstream:debug'], admin: 9901, concurrency: 4, log: info}\n";
    let folder = Folder::new(&[("sidecar.yaml", &format!("{MINIMAL}{more}"))]);
    let settings = load_sidecar(&folder.path("sidecar.yaml")).unwrap();
    assert_eq!(settings.envoy.path, folder.path("envoy-1.40.0"));
    assert_eq!(settings.envoy.args, ["--component-log-level", "upstream:debug"]);
    assert_eq!(
        (settings.envoy.admin.map(std::num::NonZeroU16::get), settings.envoy.log),
        (Some(9901), EnvoyLogWord::Info)
    );
}

#[test]
fn what_is_captured_and_kept() {
    let more = "capture: nftables\nhealth: 127.0.0.1:15021\n";
    let text = format!("{MINIMAL}{more}").replace("web.sock'}", "web.sock', keep: ./keep}");
    let folder = Folder::new(&[("sidecar.yaml", &text)]);
    let settings = load_sidecar(&folder.path("sidecar.yaml")).unwrap();
    let vips: Vec<_> = settings.vips.iter().map(ToString::to_string).collect();
    assert_eq!((settings.capture, vips.as_slice()), (CaptureWord::Nftables, &VIPS.map(str::to_owned)[..]));
    assert_eq!(settings.health.unwrap().port(), 15021);
    assert_eq!(settings.trust.keep, Some(folder.path("keep")));
    let said = errors(&format!("{MINIMAL}capture: iptables\nvips: [10.0.0.1/8]\nhealth: localhost\n"));
    for words in ["sidecar.yaml:6:10: capture: ", "sidecar.yaml:7:8: vips[0]: ", "sidecar.yaml:8:9: health: "] {
        assert!(said.contains(words), "{words}\n{said}");
    }
    let said = errors(&format!("{MINIMAL}mode: agent\ncapture: nftables\n"));
    assert!(said.contains("sidecar.yaml:7:10: capture: has no effect"), "{said}");
}

#[test]
fn sidecars_with_mistakes() {
    insta::assert_snapshot!(errors("{}"));
    let text = "apiVersion: eastway.dev/v1alpha1
kind: SidecarConfig
workload: {namespace: Shop, serviceAcount: web, name: Web.}
trust: {domain: onprem.example, ca: ./run/web.sock, leafTtl: 48h}
gateway: 0.0.0.0:15012
state: 'LONG'
envoy: {args: [--concurrency=3, -c, x], admin: 0, concurrency: 2000, log: warn}
drain: 2h
log: {level: inof}
";
    insta::assert_snapshot!(errors(&text.replace("LONG", &format!("/{}", "a".repeat(91)))));
}

#[test]
fn without_envoy_nothing_is_said_of_it() {
    let folder = Folder::new(&[("sidecar.yaml", &format!("{MINIMAL}mode: agent\n"))]);
    let settings = load_sidecar(&folder.path("sidecar.yaml")).unwrap();
    assert_eq!(settings.mode, SidecarMode::Agent);
    let said = errors(&format!("{MINIMAL}mode: agent\nenvoy: {{path: ./envoy}}\ndrain: 5s\n"));
    assert!(said.contains("sidecar.yaml:7:8: envoy: has no effect with `mode: agent`"), "{said}");
    assert!(said.contains("sidecar.yaml:8:8: drain: has no effect"), "{said}");
    let said = errors(&format!("{MINIMAL}mode: proxy\n"));
    assert!(said.contains("sidecar.yaml:6:7: mode: ") && said.contains("agent"), "{said}");
}

#[test]
fn config_check_knows_it() {
    let folder = Folder::new(&[("sidecar.yaml", MINIMAL)]);
    let said = folder.relative(&crate::config::check(&folder.path("sidecar.yaml")).to_string());
    assert_eq!(said, "sidecar.yaml: a good SidecarConfig; 0 warnings");
}

#[test]
fn places_that_exclude_each_other_are_refused() {
    let inbound = |listens: &[&str]| {
        let item = |listen: &&str| format!("{{listen: '{listen}', app: '127.0.0.1:8080'}}");
        let items: Vec<_> = listens.iter().map(item).collect();
        format!("{MINIMAL}inbound: [{}]\n", items.join(", "))
    };
    for pair in [["0.0.0.0:9443", "10.244.0.2:9443"], ["[2001:db8::1]:9443", "[::]:9443"]] {
        let said = errors(&inbound(&pair));
        let wanted = format!("inbound[1].listen: {} and {} cannot both be listened at", pair[1], pair[0]);
        assert!(said.contains("sidecar.yaml:6:") && said.contains(&wanted), "{said}");
    }
    let apart = ["0.0.0.0:9443", "10.244.0.2:9444", "[::]:9443", "10.244.0.3:9444"];
    let folder = Folder::new(&[("sidecar.yaml", &inbound(&apart))]);
    assert_eq!(load_sidecar(&folder.path("sidecar.yaml")).unwrap().inbound.len(), apart.len());
    let said = errors(&format!("{MINIMAL}inbound: [{{listen: '0.0.0.0:8080', app: '127.0.0.1:8080'}}]\n"));
    assert!(said.contains("inbound[0].listen: the workload itself listens there"), "{said}");
}

#[test]
fn what_services_say_is_spoken_wants_to_know_where_they_lead() {
    let text = |addresses: &str| {
        let minimal = MINIMAL.replace("workload: {", &format!("workload: {{{addresses}"));
        let place = |port: u16, protocol: &str| {
            format!("{{listen: '0.0.0.0:1{port}', app: '127.0.0.1:{port}', protocol: {protocol}}}")
        };
        format!("{minimal}inbound: [{}, {}]\n", place(8080, "service"), place(7000, "tcp"))
    };
    let read = |addresses: &str| {
        let folder = Folder::new(&[("sidecar.yaml", &text(addresses))]);
        load_sidecar(&folder.path("sidecar.yaml")).unwrap().by_service
    };
    let both = read("addresses: '10.244.0.7,fd00::7', ");
    assert_eq!(both.addresses, ["10.244.0.7", "fd00::7"].map(|one| one.parse().unwrap()).into());
    assert_eq!(both.ports, [8080].into());
    assert!(read("addresses: '', ").addresses.is_empty(), "a pod that has none yet");
    let said = errors(&text(""));
    assert!(said.contains("inbound[0].protocol: service wants `workload.addresses`"), "{said}");
    let said = errors(&text("addresses: 'web,10.244.0.7', "));
    assert!(said.contains("workload.addresses: must be IP addresses"), "{said}");
}

#[test]
fn another_kind_or_nothing_is_told_as_what_it_is() {
    let check = |text: &str| {
        let folder = Folder::new(&[("file.yaml", text)]);
        let said = crate::config::check_sidecar(&folder.path("file.yaml")).to_string();
        folder.relative(&said)
    };
    let said = check("apiVersion: eastway.dev/v1alpha1\nkind: GatewayConfig\ncluster: onprem\n");
    assert!(said.starts_with("file.yaml:2:7: kind: must be SidecarConfig, not GatewayConfig\n"), "{said}");
    assert!(!said.contains("services.yaml") && !said.contains("cluster"), "{said}");
    for nothing in ["", "# nothing yet\n"] {
        let said = check(nothing);
        assert!(said.contains("is empty; a SidecarConfig was expected"), "{said}");
    }
    assert!(check(MINIMAL).contains("a good SidecarConfig"), "{}", check(MINIMAL));
}

#[test]
fn the_port_that_is_missing_is_that_of_sidecars() {
    let said = errors(&MINIMAL.replace("127.0.0.1:15012", "gw.onprem.example"));
    assert!(said.contains("gateway: must be host:port; the port is missing, e.g. gw.onprem.example:15012"), "{said}");
}

#[test]
fn an_envoy_that_nobody_gets_to_is_worth_a_word() {
    let warned = |more: &str| {
        let folder = Folder::new(&[("sidecar.yaml", &format!("{MINIMAL}{more}"))]);
        folder.relative(&crate::config::check_sidecar(&folder.path("sidecar.yaml")).to_string())
    };
    let said = warned("outbound: false\n");
    let warning = "sidecar.yaml:6:11: warning: outbound: without `inbound` or `listeners` Envoy takes no connections";
    assert!(said.contains(warning), "{said}");
    assert!(said.contains("1 warning"), "{said}");
    let place = "inbound: [{listen: '10.0.0.7:9443', app: '127.0.0.1:8080'}]\n";
    let own = "listeners: [{listen: '127.0.0.1:9080', service: shop/cart, port: 80}]\n";
    for useful in
        ["", "mode: agent\noutbound: false\n", &format!("outbound: false\n{place}"), &format!("outbound: false\n{own}")]
    {
        let said = warned(useful);
        assert!(said.contains("0 warnings"), "{said}");
    }
}
