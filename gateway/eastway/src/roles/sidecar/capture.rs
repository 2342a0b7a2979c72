//! Connections led to Envoy that know nothing of it: one nftables table in this network namespace.
//!
//! What goes out to a virtual address is redirected to a listener of Envoy that gives each connection to the one for its
//! original destination; Envoy itself connects to no virtual address, so that nothing goes round. What comes from other hosts
//! to the port of the workload is led to the place that is configured for it. All else, DNS included, is left alone.
//!
//! In a pod the rules are made by a container that runs before all others and may, so that the sidecar need not. Virtual
//! addresses there are those of Services, among which they cannot be told apart: all are led to Envoy, and what goes to none of
//! an import goes on from it as it would have gone.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::process::Stdio;

use eastway_model::vip::VipRange;
use eastway_xds::inbound::Inbound;
use eastway_xds::resources::BUFFER;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tracing::{info, warn};

use eastway_kubernetes::injection::USER;

use crate::config::SidecarSettings;
use crate::config::file::CaptureWord;
use crate::telemetry::Escaped;

/// The program that makes rules.
const NFT: &str = "nft";
/// The table. There is one in a network namespace: what one sidecar has captured, another cannot capture too.
const TABLE: &str = "eastway";
/// Where Envoy gets what goes out; the port that Istio has for it.
const PORT: u16 = 15001;

/// Why connections cannot be led to Envoy.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// There is no `nft`.
    #[error("capture: there is no `{NFT}` in PATH; install nftables, or leave `capture` out")]
    Missing,
    /// It may not.
    #[error("capture: rules of this network namespace may not be changed ({0}); it takes CAP_NET_ADMIN there")]
    Forbidden(String),
    /// It says something else.
    #[error("capture: `{NFT}`: {0}")]
    Refused(String),
    /// It cannot be run.
    #[error("capture: `{NFT}` cannot be run: {0}")]
    Run(#[from] io::Error),
}

/// The rules, while they are there. A process that is killed leaves them: what they lead to Envoy is refused then, until the
/// next start, which replaces them.
#[derive(Debug)]
pub(super) struct Capture(());

impl Capture {
    /// Makes the rules, in place of those that one that was killed has left. `None`: nothing is to be captured.
    pub(super) async fn begin(settings: &SidecarSettings) -> Result<Option<Self>, CaptureError> {
        match settings.capture {
            CaptureWord::None | CaptureWord::Prepared => return Ok(None),
            CaptureWord::Nftables => {}
        }
        let outbound: &[VipRange] = if settings.outbound { &settings.vips } else { &[] };
        nft(&format!("{}{}", removal(), table(outbound, &settings.inbound))).await?;
        info!(table = TABLE, "connections are led to Envoy");
        Ok(Some(Self(())))
    }

    /// Takes the rules away.
    pub(super) async fn end(self) {
        if let Err(error) = nft(&removal()).await {
            warn!(%error, "connections are led to an Envoy that is gone: remove them with `nft delete table inet {TABLE}`");
        }
    }
}

/// Makes the rules of a pod, which go with its network. Those of an earlier try are replaced.
pub(super) async fn prepare(settings: &SidecarSettings) -> Result<(), CaptureError> {
    nft(&format!("{}{}", removal(), pod_table(settings))).await?;
    info!(table = TABLE, "connections of this pod are led to Envoy, but for those of user {USER}");
    Ok(())
}

/// Also if there is none.
fn removal() -> String {
    format!("table inet {TABLE}\ndelete table inet {TABLE}\n")
}

fn table(vips: &[VipRange], inbound: &[Inbound]) -> String {
    written(led_out(vips).collect(), inbound)
}

/// Envoy connects to what it was led away from, which must not come back to it.
fn pod_table(settings: &SidecarSettings) -> String {
    let mut out = Vec::new();
    if settings.outbound {
        // What goes to the pod itself stays in it.
        out.extend([format!("meta skuid {USER} return"), "oif lo return".to_owned()]);
        match settings.vips.as_slice() {
            [] => out.push(format!("meta l4proto tcp redirect to :{PORT}")),
            vips => out.extend(led_out(vips)),
        }
    }
    written(out, &settings.inbound)
}

fn led_out(vips: &[VipRange]) -> impl Iterator<Item = String> + '_ {
    vips.iter().map(|range| format!("{} daddr {range} meta l4proto tcp redirect to :{PORT}", family(range)))
}

fn written(out: Vec<String>, inbound: &[Inbound]) -> String {
    let mut rules = String::new();
    let mut chain = |name: &str, hook: &str, lines: Vec<String>| {
        // What could fail is only a writer that is none of memory.
        let _written = write!(
            rules,
            "chain {name} {{\ntype nat hook {hook} priority -100; policy accept;\n{}\n}}\n",
            lines.join("\n")
        );
    };
    chain("outbound", "output", out);
    // What the workload, or Envoy, connects to on its own host stays as it is.
    let first = std::iter::once("iif lo return".to_owned());
    // Places for all addresses of IPv4 come last: theirs is what no place of IPv6 has, which Envoy refuses there.
    let (last, others): (Vec<_>, Vec<_>) = inbound.iter().partition(|one| one.listen.ip() == Ipv4Addr::UNSPECIFIED);
    let places = others.into_iter().chain(last).filter_map(led_in);
    chain("inbound", "prerouting", first.chain(places).collect());
    format!("table inet {TABLE} {{\n{rules}}}\n")
}

fn family(range: &VipRange) -> &'static str {
    if range.is_ipv4() { "ip" } else { "ip6" }
}

/// From where other hosts would reach the workload itself. `None`: they do not, as it listens on no port but Envoy's.
fn led_in(inbound: &Inbound) -> Option<String> {
    let (app, to) = (inbound.app.port(), inbound.listen);
    let rule = match to.ip() {
        _ if app == to.port() => return None,
        ip if ip.is_unspecified() => {
            let family = if ip.is_ipv6() { "meta nfproto ipv6 " } else { "" };
            format!("{family}fib daddr type local tcp dport {app} redirect to :{}", to.port())
        }
        IpAddr::V4(ip) => format!("ip daddr {ip} tcp dport {app} dnat ip to {to}"),
        IpAddr::V6(ip) => format!("ip6 daddr {ip} tcp dport {app} dnat ip6 to {to}"),
    };
    Some(rule)
}

/// Applies a script: all of it, or nothing.
async fn nft(script: &str) -> Result<(), CaptureError> {
    let mut command = Command::new(NFT);
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| match error.kind() == io::ErrorKind::NotFound {
        true => CaptureError::Missing,
        false => error.into(),
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = Escaped(said.lines().next().unwrap_or_default()).to_string();
    Err(match said.contains("Operation not permitted") {
        true => CaptureError::Forbidden(first),
        false => CaptureError::Refused(first),
    })
}

/// Cluster of what goes out to no address of an import: to where it went, from a sidecar that has led everything to itself.
const PASSTHROUGH: &str = "passthrough";
/// No such cluster: what is led to it ends at once.
const NOWHERE: &str = "nowhere";

/// Envoy's cluster beside [`listener`], if it needs one. It has as many connections as Envoy takes.
pub(super) fn passthrough(capture: CaptureWord, most: u64) -> Option<Value> {
    if !goes_on(capture) {
        return None;
    }
    Some(json!({
        "name": PASSTHROUGH,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
        "per_connection_buffer_limit_bytes": BUFFER,
        "circuit_breakers": {"thresholds": [{"max_connections": most, "max_pending_requests": most}]},
    }))
}

/// Whether what goes to no import goes on to where it went.
fn goes_on(capture: CaptureWord) -> bool {
    match capture {
        CaptureWord::Prepared => true,
        CaptureWord::None | CaptureWord::Nftables => false,
    }
}

/// Envoy's listener for what goes out. What goes to an address of no import ends at once, or goes on in a pod.
pub(super) fn listener(capture: CaptureWord) -> Value {
    let otherwise = if goes_on(capture) { PASSTHROUGH } else { NOWHERE };
    let at = |address: IpAddr| json!({"socket_address": {"address": address, "port_value": PORT}});
    let typed = |name: &str, kind: &str| json!({"name": name, "typed_config": {"@type": format!("type.googleapis.com/{kind}")}});
    let mut proxy = typed("envoy.filters.network.tcp_proxy", "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy");
    if let Some(config) = proxy.get_mut("typed_config").and_then(Value::as_object_mut) {
        // How long a connection may stand still is for its two ends to say.
        let fields = [("stat_prefix", "capture"), ("cluster", otherwise), ("idle_timeout", "0s")];
        config.extend(fields.map(|(key, value)| (key.to_owned(), value.into())));
    }
    let original = "envoy.extensions.filters.listener.original_dst.v3.OriginalDst";
    let mut listener = json!({
        "name": "capture",
        "address": at(Ipv4Addr::LOCALHOST.into()),
        "use_original_dst": true,
        "listener_filters": [typed("envoy.filters.listener.original_dst", original)],
        "filter_chains": [{"filters": [proxy]}],
        "traffic_direction": "OUTBOUND",
        "per_connection_buffer_limit_bytes": BUFFER,
    });
    // A host without IPv6 has no such connections.
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
        && let Some(fields) = listener.as_object_mut()
    {
        fields.insert("additional_addresses".to_owned(), json!([{"address": at(Ipv6Addr::LOCALHOST.into())}]));
    }
    listener
}

#[cfg(test)]
mod tests {
    use eastway_xds::inbound;

    use super::*;

    #[test]
    fn only_virtual_addresses_and_the_workloads_own_ports_are_led_to_envoy() {
        let vips: Vec<VipRange> = vec!["242.0.0.0/16".parse().unwrap(), "fd65:6173:7477::/48".parse().unwrap()];
        let place = |listen: &str, app: &str| {
            format!(r#"{{"listen": "{listen}", "app": "{app}", "protocol": "tcp", "mode": "strict"}}"#)
        };
        let places = [
            place("10.0.0.7:9443", "127.0.0.1:8080"),
            place("[fd00::7]:9443", "[::1]:8080"),
            place("0.0.0.0:9444", "127.0.0.1:8081"),
            place("10.0.0.7:8082", "127.0.0.1:8082"),
            place("[::]:9444", "[::1]:8081"),
        ];
        let inbound = inbound::parse(Some(&format!("[{}]", places.join(",")))).unwrap();
        insta::assert_snapshot!(table(&vips, &inbound), @r"
        table inet eastway {
        chain outbound {
        type nat hook output priority -100; policy accept;
        ip daddr 242.0.0.0/16 meta l4proto tcp redirect to :15001
        ip6 daddr fd65:6173:7477::/48 meta l4proto tcp redirect to :15001
        }
        chain inbound {
        type nat hook prerouting priority -100; policy accept;
        iif lo return
        ip daddr 10.0.0.7 tcp dport 8080 dnat ip to 10.0.0.7:9443
        ip6 daddr fd00::7 tcp dport 8080 dnat ip6 to [fd00::7]:9443
        meta nfproto ipv6 fib daddr type local tcp dport 8081 redirect to :9444
        fib daddr type local tcp dport 8081 redirect to :9444
        }
        }
        ");
    }

    fn of_a_pod(more: &str) -> SidecarSettings {
        let text = format!(
            "{{apiVersion: eastway.dev/v1alpha1, kind: SidecarConfig, gateway: 'gateway:15012', capture: prepared, \
             workload: {{namespace: shop, serviceAccount: web, name: web-1}}, \
             trust: {{domain: a.example, ca: 'https://ca:15012'}}{more}}}"
        );
        crate::config::read_sidecar("EASTWAY_SIDECAR_CONFIG", &text).unwrap_or_else(|errors| panic!("{errors}"))
    }

    #[test]
    fn in_a_pod_everything_is_led_to_envoy_but_what_envoy_itself_sends() {
        insta::assert_snapshot!(pod_table(&of_a_pod("")), @r"
        table inet eastway {
        chain outbound {
        type nat hook output priority -100; policy accept;
        meta skuid 1337 return
        oif lo return
        meta l4proto tcp redirect to :15001
        }
        chain inbound {
        type nat hook prerouting priority -100; policy accept;
        iif lo return
        }
        }
        ");
        let some = pod_table(&of_a_pod(", vips: ['10.96.0.0/16', 'fd00:1::/64']"));
        assert!(some.contains("ip daddr 10.96.0.0/16 meta l4proto tcp redirect to :15001"), "{some}");
        assert!(some.contains("ip6 daddr fd00:1::/64 meta l4proto tcp redirect to :15001"), "{some}");
        assert!(!some.contains("\nmeta l4proto"), "{some}");
        let none = pod_table(&of_a_pod(", outbound: false"));
        assert!(!none.contains("redirect"), "{none}");
    }

    #[test]
    fn what_goes_to_no_import_goes_on_in_a_pod_and_ends_elsewhere() {
        let leads_to = |capture| listener(capture)["filter_chains"][0]["filters"][0]["typed_config"]["cluster"].clone();
        assert_eq!(leads_to(CaptureWord::Prepared), passthrough(CaptureWord::Prepared, 7).unwrap()["name"]);
        assert_eq!(leads_to(CaptureWord::Nftables), "nowhere");
        assert!(passthrough(CaptureWord::Nftables, 7).is_none());
    }
}
