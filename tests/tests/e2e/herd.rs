//! Many peers of one cluster that lose it at the same moment (fault F33). Each is a tunnel of its own with a CA of its
//! own, on the WAN; what they would carry is no matter here.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use eastway_identity::ca::{Ca, InitOptions};
use eastway_identity::{IdentityStore, PeerTrust, SpiffeId, SpkiPin, TrustStore};
use eastway_tests::kube::containers::Container;
use eastway_tests::kube::pods::list;
use eastway_tests::kube::{Bed, Cluster, eastway as installed, seconds, wan};
use eastway_tests::lab::place::Place;
use eastway_tests::{bed_tests, within};
use eastway_tunnel::header::StreamHeader;
use eastway_tunnel::transport::BoxFuture;
use eastway_tunnel::{
    AcceptedStream, HostPort, LinkInfo, PeerTarget, ReplicaId, ResetCode, StreamHandler, Timing, Tunnel, TunnelConfig,
    TunnelLimits,
};
use serde_json::{Value, json};

const PEERS: usize = 50;
const PATIENCE: Duration = Duration::from_secs(60);
/// Within this all have to be back (F33).
const BACK: Duration = Duration::from_secs(10);
/// CPU that the gateways may take meanwhile.
const CORES: f64 = 2.0;

bed_tests! {
    /// F33: the gateways of a are killed, and 50 peers want their links back at once.
    async fn f33_fifty_peers_come_back_at_once(bed) limit 240 {
        installed::ready(bed).await?;
        // One on its way out, of a test before this, would not be started again.
        within(PATIENCE, "only gateways that stay", async || settled(bed.cluster("a")).await).await?;
        let herd = Herd::gather(bed).await?;
        within(PATIENCE, "every peer has a link", async || Ok(herd.linked(&[]) == PEERS)).await?;
        let old: Vec<ReplicaId> = herd.replicas();
        let gateways = bed.cluster("a").restart_gateways().await?;
        let started = Instant::now();
        // Kubernetes leads nobody to them before.
        for gateway in &gateways {
            let ready = async || Ok(gateway.get(15021, "/healthz/ready").await?.is_some());
            within(PATIENCE, "a gateway is ready again", ready).await?;
        }
        bed.record("herd.ready_s", seconds(started.elapsed()));
        let led = ["deploy/eastway-gateway", "-n", installed::SYSTEM];
        bed.cluster("a").wait("jsonpath={.status.readyReplicas}=2", &led, PATIENCE).await?;
        let began = Instant::now();
        let back = within(BACK, "all peers have links again", async || Ok(herd.linked(&old) == PEERS)).await;
        bed.record("herd.back", herd.linked(&old));
        bed.record("herd.back_s", seconds(began.elapsed()));
        back?;
        let mut cpu = 0.0;
        for gateway in &gateways {
            cpu += cpu_seconds(gateway)?;
        }
        let cores = cpu / started.elapsed().as_secs_f64();
        bed.record("herd.cores", (cores * 100.0).round() / 100.0);
        ensure!(cores < CORES, "{cores:.2} cores");
        for gateway in &gateways {
            let metrics = gateway.get(15020, "/metrics").await?.context("no metrics")?;
            let late = metrics.lines().find(|line| line.contains("handshakes_refused_total") && line.contains("\"TIMEOUT\""));
            ensure!(late.is_none_or(|line| line.ends_with(" 0")), "handshakes were not finished in time: {late:?}");
        }
        // The one that was there before is well.
        bed.cluster("a").wait("condition=Ready", &["peers.eastway.dev", "b"], PATIENCE).await?;
        herd.leave(bed).await
    }
}

/// Whether as many gateways run as there shall be.
async fn settled(cluster: &Cluster) -> Result<bool> {
    let wanted = cluster.get(&["deploy", "eastway-gateway", "-n", installed::SYSTEM]).await?;
    let running = cluster.containers(installed::SYSTEM, "gateway").await?;
    Ok(wanted["spec"]["replicas"].as_u64() == u64::try_from(running.len()).ok())
}

struct Herd {
    tunnels: Vec<Tunnel>,
    objects: Vec<Value>,
    /// Where they live.
    _place: Place,
}

struct Refuses;

impl StreamHandler for Refuses {
    fn handle(&self, _link: LinkInfo, _header: StreamHeader, stream: AcceptedStream) -> BoxFuture<'static, ()> {
        Box::pin(async move { stream.reject(ResetCode::Draining) })
    }
}

impl Herd {
    async fn gather(bed: &Bed) -> Result<Self> {
        // What b was told of a is what every peer is told.
        let hub = bed.cluster("b").get(&["peers.eastway.dev", "a"]).await?;
        let pins = hub["spec"]["pins"].as_array().context("pins")?.iter();
        let pins: Vec<SpkiPin> = pins.filter_map(|pin| SpkiPin::parse(pin.as_str()?).ok()).collect();
        let address: SocketAddr = hub["spec"]["addresses"][0].as_str().context("an address")?.parse()?;
        let folder = tempfile::tempdir()?;
        let place = Place::host("herd").await?;
        let (mut tunnels, mut objects) = (Vec::new(), Vec::new());
        for number in 0..PEERS {
            let name = format!("herd-{number}");
            let ca = Ca::init(&folder.path().join(&name), &InitOptions::new(&format!("{name}.example")))?;
            objects.push(json!({
                "apiVersion": "eastway.dev/v1alpha1", "kind": "Peer", "metadata": {"name": name},
                "spec": {"trustDomain": format!("{name}.example"), "pins": [ca.pin().to_string()]},
            }));
            let pins = pins.clone();
            tunnels.push(place.run(async move { member(&name, &ca, pins, address) }).await?);
        }
        bed.cluster("a").apply(&list(&objects)).await?;
        Ok(Self { tunnels, objects, _place: place })
    }

    /// How many have a link to a replica that is none of `old`.
    fn linked(&self, old: &[ReplicaId]) -> usize {
        let has = |tunnel: &&Tunnel| {
            let links = tunnel.links();
            links.to("a").iter().any(|link| link.is_usable() && !old.contains(&link.replica()))
        };
        self.tunnels.iter().filter(has).count()
    }

    fn replicas(&self) -> Vec<ReplicaId> {
        let of = |tunnel: &Tunnel| tunnel.links().to("a").iter().map(eastway_tunnel::Link::replica).collect::<Vec<_>>();
        self.tunnels.iter().flat_map(of).collect()
    }

    async fn leave(self, bed: &Bed) -> Result<()> {
        bed.cluster("a").delete(&list(&self.objects)).await?;
        for tunnel in &self.tunnels {
            tunnel.close().await;
        }
        Ok(())
    }
}

fn member(name: &str, ca: &Ca, pins: Vec<SpkiPin>, hub: SocketAddr) -> Result<Tunnel> {
    let own = SpiffeId::gateway(&format!("{name}.example"))?;
    let identity = ca.issue_identity(&own, Duration::from_secs(3_600), SystemTime::now())?;
    let (crls, bundle, peer) = (Vec::new(), Vec::new(), Arc::<str>::from("a"));
    let trust = PeerTrust { name: peer.clone(), gateway: SpiffeId::gateway("a.example")?, pins, bundle, crls };
    let config = TunnelConfig {
        listen: SocketAddr::new(IpAddr::V4(wan::WAN_ADDRESS), 0),
        cluster: Arc::from(name),
        replica: ReplicaId::random()?,
        predecessors: Arc::default(),
        replicas: None,
        quic_lb: None,
        keys: ca.link_keys(),
        limits: TunnelLimits::default(),
        timing: Timing::default(),
        software_version: "herd".into(),
    };
    let tunnel = Tunnel::bind(config, IdentityStore::new(identity), TrustStore::new(vec![trust])?, Arc::new(Refuses))?;
    tunnel.set_peers(vec![PeerTarget { name: peer, addresses: vec![HostPort::from(hub)], ..PeerTarget::default() }]);
    Ok(tunnel)
}

/// What a process has taken since its start.
fn cpu_seconds(container: &Container) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", container.pid))?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("a name")?.split_ascii_whitespace().collect();
    // Fields 14 and 15 of proc(5), the name being the second.
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).context("ticks");
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}
