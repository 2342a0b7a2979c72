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
