//! `eastway check` of running gateways: each fault is named, with its cause and what to do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use eastway_identity::ca::{Ca, InitOptions};
use eastway_identity::{IdentityStore, PeerTrust, SpiffeId, SpkiPin, TrustStore};
use eastway_tests::lab::files::{self, LINK_PORT};
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE};
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, within};
use eastway_tunnel::header::StreamHeader;
use eastway_tunnel::transport::BoxFuture;
use eastway_tunnel::{
    AcceptedStream, LinkInfo, LinkKeys, PeerTarget, ReplicaId, ResetCode, StreamHandler, Timing, Tunnel, TunnelConfig,
    TunnelLimits, World,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const HOUR: Duration = Duration::from_secs(3_600);
/// A list that ended in 2020, of a CA that nobody has.
const OLD_LIST: &str = "\
-----BEGIN X509 CRL-----
MIHjMIGLAgEBMAoGCCqGSM49BAMCMCsxFDASBgNVBAoMC29sZC5leGFtcGxlMRMw
EQYDVQQDDAppc3N1aW5nIENBFw0yMDAxMDEwMDAwMDBaFw0yMDAyMDEwMDAwMDBa
oC8wLTAfBgNVHSMEGDAWgBSvkY3TnW5f33Z/m6IYFTs6GZmOkTAKBgNVHRQEAwIB
ATAKBggqhkjOPQQDAgNHADBEAiAqStl+oEKGMaGR/5c7CpnqELqf6mnuFAHydZ0F
yPWJHQIgLj3drCpbjO/caCWBEhhdFDGtgIOnbhpylCeS+IDfA3s=
-----END X509 CRL-----
";

/// What `eastway check` says in a cloud, by code: everything that is not well and is not about this machine.
struct Complaints {
    exit: Option<i32>,
    by_code: BTreeMap<String, Value>,
    machine: Vec<String>,
}

impl Complaints {
    async fn of(mesh: &Mesh, cloud: &str) -> Result<Self> {
        let (exit, output) = mesh.cloud(cloud).command(0, &["check", "-o", "json"]).await?;
        let report: Value = serde_json::from_str(&output).with_context(|| format!("check prints {output}"))?;
        let mut this = Self { exit, by_code: BTreeMap::new(), machine: Vec::new() };
        for finding in report["findings"].as_array().context("no findings")? {
            let code = finding["code"].as_str().context("no code")?.to_owned();
            // File descriptors and socket buffers are those of whatever machine this is.
            match code.as_str() {
                _ if finding["severity"] == "ok" => {}
                "EW111" | "EW112" => this.machine.push(code),
                _ => drop(this.by_code.insert(code, finding.clone())),
            }
        }
        Ok(this)
    }

    fn codes(&self) -> Vec<&str> {
        self.by_code.keys().map(String::as_str).collect()
    }

    /// Exactly these codes, and in the finding of the first one these words.
    fn are(&self, codes: &[&str], words: &[&str]) -> Result<()> {
        ensure!(self.codes() == codes, "{:#?}", self.by_code);
        let Some(finding) = codes.first().and_then(|code| self.by_code.get(*code)) else { return Ok(()) };
        let text = finding.to_string();
        ensure!(words.iter().all(|word| text.contains(word)), "{words:?} are not all in {finding:#}");
        ensure!(finding["cause"].as_str().is_some_and(|cause| !cause.is_empty()), "{finding:#}");
        ensure!(finding["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{finding:#}");
        let error = self.by_code.values().any(|finding| finding["severity"] == "error");
        ensure!(self.exit == Some(if error { 1 } else { 3 }), "exit code {:?}", self.exit);
        Ok(())
    }
}

/// Waits until the complaints of `cloud` are exactly these.
pub(crate) async fn complains(mesh: &Mesh, cloud: &str, codes: &[&str], words: &[&str]) -> Result<()> {
    within(Duration::from_secs(15), format!("{cloud} complains of {codes:?}"), async || {
        Complaints::of(mesh, cloud).await?.are(codes, words)?;
        Ok(true)
    })
    .await?;
    Ok(())
}

/// What `eastway check` in `cloud` says by this code, if it does.
pub(crate) async fn finding(mesh: &Mesh, cloud: &str, code: &str) -> Result<Option<Value>> {
    Ok(Complaints::of(mesh, cloud).await?.by_code.remove(code))
}

/// Asked twice, the report is the same to the byte but for the time of a round trip.
async fn says_the_same_twice(mesh: &Mesh, cloud: &str) -> Result<()> {
    let report = async || -> Result<String> {
        let (_, output) = mesh.cloud(cloud).command(0, &["check", "-o", "json"]).await?;
        Ok(output.lines().filter(|line| !line.contains("there and back in")).collect::<Vec<_>>().join("\n"))
    };
    let (first, second) = (report().await?, report().await?);
    ensure!(first == second, "{cloud} says\n{first}\nand then\n{second}");
    Ok(())
}

/// Serves nothing.
struct Nothing;

impl StreamHandler for Nothing {
    fn handle(&self, _link: LinkInfo, _header: StreamHeader, stream: AcceptedStream) -> BoxFuture<'static, ()> {
        stream.reject(ResetCode::NotExported);
        Box::pin(std::future::ready(()))
    }
}

/// A gateway of `b` whose clock goes wrong: it dials `a` from b's place. It lives as long as the value.
async fn gateway_with_clock(mesh: &Mesh, life: Duration, now: fn() -> SystemTime) -> Result<Tunnel> {
    gateway_of_b(mesh, "b", life, now).await
}

/// A gateway in the place of b's, with a certificate of b's CA, that says it is of `cluster`.
pub(crate) async fn gateway_of_b(
    mesh: &Mesh,
    cluster: &'static str,
    life: Duration,
    now: fn() -> SystemTime,
) -> Result<Tunnel> {
    let (a, b) = (mesh.cloud("a"), mesh.cloud("b"));
    let ca = Ca::load(&b.folder().join("cacerts"))?;
    let identity = ca.issue_identity(&SpiffeId::gateway(&files::trust_domain("b"))?, life, now())?;
    let trust = PeerTrust {
        name: "a".into(),
        gateway: SpiffeId::gateway(&files::trust_domain("a"))?,
        pins: vec![SpkiPin::parse(a.pin())?],
        bundle: Vec::new(),
        crls: Vec::new(),
    };
    let keys = ca.link_keys();
    let net = &b.net().gateways()[0];
    let config = TunnelConfig {
        listen: SocketAddr::new(net.wan, LINK_PORT),
        cluster: cluster.into(),
        replica: ReplicaId::random()?,
        predecessors: Arc::default(),
        replicas: None,
        quic_lb: None,
        keys: LinkKeys { reset: keys.reset, connection_id: keys.connection_id, token: keys.token },
        limits: TunnelLimits::default(),
        timing: Timing::default(),
        software_version: "test".into(),
    };
    let target = PeerTarget { name: "a".into(), addresses: vec![a.advertised()[0].parse()?], ..PeerTarget::default() };
    let world = World { clock: Arc::new(now), ..World::default() };
    net.place
        .run(async move {
            let (identity, trust) = (IdentityStore::new(identity), TrustStore::new(vec![trust])?);
            let tunnel = Tunnel::bind_in(world, config, identity, trust, Arc::new(Nothing))?;
            tunnel.set_peers(vec![target]);
            Ok(tunnel)
        })
        .await
}

lab_test! {
    /// Nothing is wrong with two clouds that work, and what is said about the machine is true.
    async fn check_finds_nothing_in_clouds_that_work() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("a", "in-a", 12, Habit::Http).await?;
        mesh.serve("b", "in-b", 11, Habit::Http).await?;
        mesh.target("a", "in-b").await?;
        mesh.target("b", "in-a").await?;
        complains(&mesh, "a", &[], &[]).await?;
        says_the_same_twice(&mesh, "a").await?;
        let largest: u64 = std::fs::read_to_string("/proc/sys/net/core/rmem_max")?.trim().parse()?;
        let found = Complaints::of(&mesh, "a").await?;
        let warned = found.machine.iter().any(|code| code == "EW112");
        ensure!(warned == (largest < 1 << 20), "net.core.rmem_max is {largest}: {:?}", found.machine);
        ensure!(found.exit == Some(if found.machine.is_empty() { 0 } else { 3 }), "exit code {:?}", found.exit);
        let status = mesh.cloud("a").status(0).await?;
        let identity = status.identity.context("no identity")?;
        ensure!(identity.issuer_not_after > Some(identity.not_after), "{identity:?}");
        let metrics = mesh.cloud("a").metrics(0).await?;
        ensure!(metrics.contains(r#"eastway_certificate_not_after_timestamp_seconds{kind="issuer""#), "{metrics}");
        mesh.stop().await
    }

    /// Both ends of a denied connection are told: the owner whom it denied, the other side that it was denied.
    async fn check_names_policies_that_deny() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("a", "in-a", 12, Habit::Http).await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.target("b", "in-a").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let somebody = files::access_policy(NAMESPACE, "everyone", &["*"], &[("a", "somebody-else")]);
        mesh.cloud("b").write_policy("everyone", &somebody)?;
        within(Duration::from_secs(5), "a is denied", async || Ok(mesh.ask("a", target).await.is_err())).await?;
        complains(&mesh, "b", &["EW601"], &["peer a", "shop/web", "client", "AccessPolicy"]).await?;
        complains(&mesh, "a", &["EW602"], &["peer b", "AccessPolicy"]).await?;
        mesh.stop().await
    }

    /// Names that lead nowhere, virtual addresses that do not lead here or are used up, lists of 2020.
    async fn check_names_what_is_wrong_at_home() {
        let mut mesh = MeshBuilder::of(&["a", "b", "c"])
            .settings("a", &json!({
                "dns": {"zones": ["shop.example"], "names": [{"name": "web.shop.example", "service": format!("{NAMESPACE}/wbe")}]},
                "trust": {"crl": "./lists.pem"},
            }))
            .settings("b", &json!({"vip": {"ranges": ["10.99.0.0/24"]}}))
            .settings("c", &json!({"vip": {"ranges": ["242.0.0.0/30"]}}))
            .prepare()
            .await?;
        std::fs::write(mesh.cloud("a").folder().join("lists.pem"), OLD_LIST)?;
        mesh.start_gateways().await?;
        for (cloud, pod) in [("a", 11), ("b", 12), ("c", 13)] {
            mesh.serve(cloud, &format!("in-{cloud}"), pod, Habit::Http).await?;
        }
        complains(&mesh, "a", &["EW108", "EW203"], &["ended", "ago", "trust.crl"]).await?;
        let found = Complaints::of(&mesh, "a").await?;
        let dangling = found.by_code["EW203"].to_string();
        ensure!(dangling.contains("web.shop.example") && dangling.contains("shop/wbe"), "{dangling}");
        complains(&mesh, "b", &["EW116", "EW204"], &["10.99.0.", "ip route add local"]).await?;
        let found = Complaints::of(&mesh, "b").await?;
        let unresolved = found.by_code["EW204"].to_string();
        ensure!(unresolved.contains(".shop.svc.clusterset.local"), "{unresolved}");
        complains(&mesh, "c", &["EW113", "EW204"], &["vip.ranges"]).await?;
        says_the_same_twice(&mesh, "c").await?;
        mesh.stop().await
    }

    /// A registry's file with a mistake is named with its line, at the start and while an older version runs.
    async fn check_names_a_registry_that_cannot_be_read() {
        let mut mesh = MeshBuilder::of(&["a"]).prepare().await?;
        let file = mesh.cloud("a").folder().join("services.yaml");
        let good = std::fs::read(&file)?;
        files::replace(&file, b"apiVersion: eastway.dev/v1alpha1\nkind: ServiceList\nservicse: []\n")?;
        mesh.cloud_mut("a").start_gateway(0).await?;
        let bad = ["EW101", "EW115", "EW118", "EW202"];
        let line = ["services.yaml:3:1", "did you mean services"];
        within(Duration::from_secs(15), "the mistake is named", async || {
            let found = Complaints::of(&mesh, "a").await?;
            ensure!(found.codes() == bad, "{:?}", found.codes());
            let text = found.by_code["EW118"].to_string();
            Ok(line.iter().all(|word| text.contains(word)))
        }).await?;
        files::replace(&file, &good)?;
        mesh.cloud_mut("a").wait_ready(0).await?;
        files::replace(&file, b"services: [")?;
        complains(&mesh, "a", &["EW115", "EW118"], &[]).await?;
        let (_, status) = mesh.cloud("a").command(0, &["status"]).await?;
        ensure!(status.contains("REFUSED: ") && status.contains("services.yaml"), "{status}");
        mesh.stop().await
    }

    /// A log that nobody reads costs lines and no more: the gateway goes on, and says how many.
    async fn check_names_log_lines_that_were_lost() {
        let mesh = MeshBuilder::of(&["a"]).prepare().await?;
        let main = mesh.cloud("a").main_file(0);
        let gateway = async move {
            let mut command = tokio::process::Command::new(eastway_tests::binary());
            command.args(["run", "--roles", "gateway", "--log-level", "trace", "--config"]).arg(main);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
            Ok(command.spawn()?)
        };
        let mut unread = mesh.cloud("a").net().gateways()[0].place.run(gateway).await?;
        within(Duration::from_secs(90), "lines are lost and told", async || {
            for _ in 0..50 {
                mesh.cloud("a").status(0).await?;
            }
            let found = Complaints::of(&mesh, "a").await?;
            Ok(found.by_code.get("EW110").context("no EW110")?.to_string().contains("log lines were dropped"))
        }).await?;
        ensure!(mesh.cloud("a").is_ready(0).await, "the gateway waits for its log");
        unread.kill().await?;
        mesh.stop().await
    }

    /// An issuing CA near its end is reported while there is time.
    async fn check_names_a_ca_that_ends() {
        let mut mesh = MeshBuilder::of(&["a"]).settings("a", &json!({"trust": {"cacerts": "./short"}})).prepare().await?;
        let options = InitOptions { lifetime: 24 * 10 * HOUR, ..InitOptions::new(&files::trust_domain("a")) };
        Ca::init(&mesh.cloud("a").folder().join("short"), &options)?;
        mesh.cloud_mut("a").start_ca().await?;
        mesh.start_gateways().await?;
        complains(&mesh, "a", &["EW106", "EW115"], &["in 9d", "ca rotate"]).await?;
        mesh.stop().await
    }

    /// A ca role that hangs, or is gone, is told long before certificates end; one that is back is not.
    async fn check_names_a_ca_role_that_does_not_answer() {
        let mut mesh = MeshBuilder::of(&["a"]).start().await?;
        complains(&mesh, "a", &["EW115"], &[]).await?;
        mesh.cloud_mut("a").ca()?.signal(Signal::SIGSTOP)?;
        let hangs = Complaints::of(&mesh, "a").await?;
        ensure!(hangs.codes() == ["EW115", "EW119"], "{:#?}", hangs.by_code);
        mesh.cloud_mut("a").ca()?.signal(Signal::SIGCONT)?;
        complains(&mesh, "a", &["EW115"], &[]).await?;
        mesh.cloud_mut("a").ca()?.kill().await?;
        complains(&mesh, "a", &["EW115", "EW119"], &[]).await?;
        let gone = Complaints::of(&mesh, "a").await?.by_code["EW119"].to_string();
        ensure!(gone.contains("ca.sock") && gone.contains("is `eastway ca` running?"), "{gone}");
        mesh.cloud_mut("a").start_ca().await?;
        complains(&mesh, "a", &["EW115"], &[]).await?;
        mesh.stop().await
    }

    /// Gateways of one cluster that should know each other and do not.
    async fn check_names_gateways_of_the_cluster_that_are_silent() {
        let siblings = json!({"replicas": {"siblings": ["10.244.0.1:15442", "10.244.0.2:15442"]}});
        let mut mesh = MeshBuilder::of(&["a"]).replicas("a", 2).settings("a", &siblings).prepare().await?;
        mesh.cloud_mut("a").start_gateway(0).await?;
        mesh.cloud_mut("a").wait_ready(0).await?;
        complains(&mesh, "a", &["EW115", "EW120"], &[]).await?;
        let silent = Complaints::of(&mesh, "a").await?.by_code["EW120"]["message"].to_string();
        ensure!(silent.contains("10.244.0.2:15442") && !silent.contains("10.244.0.1:"), "{silent}");
        mesh.start_gateways().await?;
        complains(&mesh, "a", &["EW115"], &[]).await?;
        mesh.cloud_mut("a").kill_gateway(1).await?;
        complains(&mesh, "a", &["EW115", "EW120"], &[]).await?;
        mesh.stop().await
    }

    /// Records that the rules do not allow are told with their reason.
    async fn check_names_records_that_were_refused() {
        let only_web = json!({"spec": {"import": [{"namespace": NAMESPACE, "services": ["web"]}]}});
        let mut mesh = MeshBuilder::of(&["a", "b"]).peer("a", "b", &only_web).start().await?;
        mesh.serve("a", "in-a", 12, Habit::Http).await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.target("a", "web").await?;
        mesh.target("b", "in-a").await?;
        complains(&mesh, "a", &[], &[]).await?;
        mesh.serve("b", "other", 13, Habit::Http).await?;
        complains(&mesh, "a", &["EW506"], &["not_allowed 1", "last 10 minutes", "peer b"]).await?;
        mesh.stop().await
    }

    /// UDP that does not get through is told from a gateway that is not there.
    async fn check_tells_blocked_udp_from_no_gateway() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("a", "in-a", 12, Habit::Http).await?;
        mesh.serve("b", "in-b", 11, Habit::Http).await?;
        mesh.target("a", "in-b").await?;
        let (a, b) = (mesh.cloud("a").net(), mesh.cloud("b").net());
        a.block_from(b).await?;
        mesh.wait_down("a", "b", Duration::from_secs(10)).await?;
        complains(&mesh, "a", &["EW302", "EW507"], &["198.51.100.", ":15443", "firewall"]).await?;
        a.unblock_from(b).await?;
        mesh.wait_up("a", "b", Duration::from_secs(15)).await?;
        mesh.cloud_mut("b").kill_gateway(0).await?;
        mesh.wait_down("a", "b", Duration::from_secs(10)).await?;
        complains(&mesh, "a", &["EW303", "EW507"], &["198.51.100.", ":15443"]).await?;
        mesh.stop().await
    }

    /// A path that carries only small packets is reported, and works.
    async fn check_names_a_small_mtu() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).prepare().await?;
        for cloud in ["a", "b"] {
            mesh.cloud(cloud).net().gateways()[0].place.ip("link set eth0 mtu 1280").await?;
        }
        mesh.start_gateways().await?;
        mesh.serve("a", "in-a", 12, Habit::Http).await?;
        mesh.serve("b", "in-b", 11, Habit::Http).await?;
        mesh.target("a", "in-b").await?;
        mesh.target("b", "in-a").await?;
        complains(&mesh, "a", &["EW308"], &["MTU"]).await?;
        mesh.stop().await
    }

    /// Each side of a wrong pin learns its half: whose key was shown, and that the other side does not know ours.
    async fn check_names_a_wrong_pin_on_both_sides() {
        let wrong = format!("sha256:{}", "ab".repeat(32));
        let mut mesh = MeshBuilder::of(&["a", "b"]).peer("a", "b", &json!({"spec": {"pins": [wrong]}})).prepare().await?;
        mesh.start_gateways().await?;
        mesh.serve("a", "in-a", 12, Habit::Http).await?;
        let shown = mesh.cloud("b").pin().to_owned();
        complains(&mesh, "a", &["EW401"], &[&shown, "`pins` of peer b"]).await?;
        complains(&mesh, "b", &["EW407", "EW505"], &["NOT_PINNED", "eastway peer export"]).await?;
        mesh.stop().await
    }

    /// A gateway whose clock, or certificate, is of another time.
    async fn check_names_clocks_and_certificates_of_another_time() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).prepare().await?;
        mesh.cloud_mut("a").start_gateway(0).await?;
        mesh.cloud_mut("a").wait_ready(0).await?;
        mesh.serve("a", "in-a", 12, Habit::Http).await?;
        let ahead = gateway_with_clock(&mesh, HOUR, || SystemTime::now() + Duration::from_secs(40)).await?;
        within(Duration::from_secs(10), "the skew is known", async || {
            let found = Complaints::of(&mesh, "a").await?;
            let skew = found.by_code.get("EW413").context("no EW413")?.to_string();
            Ok(skew.contains("differs from ours by 40s") || skew.contains("by 39s"))
        }).await?;
        ahead.close().await;
        let future = gateway_with_clock(&mesh, HOUR, || SystemTime::now() + 3 * HOUR).await?;
        within(Duration::from_secs(10), "the certificate is of the future", async || {
            let found = Complaints::of(&mesh, "a").await?;
            let finding = found.by_code.get("EW404").context("no EW404")?;
            Ok(finding.to_string().contains("begins in 2h") && finding.to_string().contains("clock"))
        }).await?;
        future.close().await;
        let past = gateway_with_clock(&mesh, HOUR / 60, || SystemTime::now() - HOUR / 12).await?;
        within(Duration::from_secs(10), "the certificate is of the past", async || {
            let found = Complaints::of(&mesh, "a").await?;
            let finding = found.by_code.get("EW403").context("no EW403")?;
            Ok(finding.to_string().contains("ended 4m"))
        }).await?;
        past.close().await;
        mesh.stop().await
    }
}
