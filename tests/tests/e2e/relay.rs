//! Two clusters whose gateways nobody can dial, and a gateway outside of Kubernetes that carries their links.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_identity::ca::{Ca, InitOptions};
use eastway_tests::kube::process::Daemon;
use eastway_tests::kube::{Bed, Cluster, eastway as installed, process, seconds, stage, wan};
use eastway_tests::lab::files::{self, GatewaySpec};
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};

use crate::answering::Answering;

const NAMESPACE: &str = "e2e-relay";
const HUB: &str = "hub";
const PATIENCE: Duration = Duration::from_secs(60);

/// The gateway in the middle: two processes on the WAN.
struct Hub {
    pin: String,
    _ca: Daemon,
    gateway: Daemon,
}

impl Hub {
    async fn start(bed: &Bed) -> Result<Self> {
        let folder = stage::folder()?.join(HUB);
        for inner in ["run", "peers", "policies"] {
            std::fs::create_dir_all(folder.join(inner))?;
        }
        let ca = Ca::init(&folder.join("cacerts"), &InitOptions::new(&files::trust_domain(HUB)))?;
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let spec = GatewaySpec {
            cluster: HUB.to_owned(),
            replica: 0,
            link: wan::WAN_ADDRESS.into(),
            advertise: Vec::new(),
            inside: loopback,
            operator: loopback,
            vip_ranges: vec!["242.0.0.0/16".to_owned()],
            loopback: false,
        };
        let mut main = spec.value();
        files::merge(&mut main, &json!({"relay": {"allow": [{"between": ["a", "b"]}]}}));
        files::write(&folder.join("gateway.yaml"), &main)?;
        files::write(&folder.join("services.yaml"), &files::service_list(&[], &[]))?;
        for (cluster, other) in [("a", "b"), ("b", "a")] {
            let pins = bed.cluster(other).get(&["peer", cluster]).await?["spec"]["pins"].clone();
            let pin = pins[0].as_str().context("a pin")?;
            let file = files::peer(cluster, &[], pin, &[]);
            files::write(&folder.join("peers").join(format!("{cluster}.yaml")), &file)?;
        }
        let main = folder.join("gateway.yaml").display().to_string();
        let start = |roles| {
            installed::daemon(&format!("{HUB}-{roles}"), &["run", "--roles", roles, "--config", &main], &folder)
        };
        Ok(Self { pin: ca.pin().to_string(), _ca: start("ca")?, gateway: start("gateway")? })
    }

    /// As the clusters know it.
    fn peer(&self) -> Value {
        let address = format!("{}:{}", wan::WAN_ADDRESS, files::LINK_PORT);
        files::peer(HUB, &[address], &self.pin, &[])
    }
}

/// No packet of the other cluster comes in, neither from its node nor from the address of its gateways.
async fn shut_off(cluster: &Cluster, from: &str) -> Result<()> {
    let table = format!(
        "table inet shut {{ chain others {{ type filter hook prerouting priority raw; ip saddr {{ {from} }} drop; }}; }}"
    );
    process::output(&mut cluster.on_node("nft", &[&table])?).await.map(drop)
}

async fn opened(cluster: &Cluster) -> Result<()> {
    process::output(&mut cluster.on_node("nft", &["delete table inet shut"])?).await.map(drop)
}

/// Waits until the Peer that `cluster` has for the other one tells of this path.
async fn goes_by(cluster: &Cluster, peer: &str, path: &str) -> Result<Duration> {
    within(PATIENCE, format!("{} reaches {peer} by {path}", cluster.name()), async || {
        let peer = cluster.get(&["peer", peer]).await?;
        let ready = peer["status"]["conditions"].as_array().context("conditions")?.iter();
        let ready = ready.clone().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        ensure!(ready && peer["status"]["link"]["path"] == path, "{:#}", peer["status"]);
        Ok(true)
    })
    .await
}

async fn relayed(bed: &Bed, hub: &Hub, answering: &Answering) -> Result<()> {
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    for (cluster, other) in [(a, "b"), (b, "a")] {
        cluster.apply(&hub.peer().to_string()).await?;
        let via = json!({"spec": {"addresses": [], "via": HUB}}).to_string();
        cluster.kubectl(&["patch", "peer", other, "--type=merge", "-p", &via]).await?;
    }
    let begun = Instant::now();
    shut_off(a, "198.51.100.12, 198.51.100.22").await?;
    shut_off(b, "198.51.100.11, 198.51.100.21").await?;
    for (cluster, other) in [(a, "b"), (b, "a")] {
        goes_by(cluster, other, "relay").await.with_context(|| hub.gateway.tail())?;
    }
    bed.record("relay.linked_s", seconds(begun.elapsed()));
    let talked = answering.ask(bed).await?;
    bed.record("relay.udp_lost", talked.asked - talked.answered);
    within(PATIENCE, "`eastway peers` tells the way", async || {
        let said = a.exec(installed::SYSTEM, "deploy/eastway-gateway", &["eastway", "peers"]).await?;
        ensure!(said.contains("relay via hub"), "{said}");
        Ok(true)
    })
    .await
    .map(drop)
}

bed_tests! {
    /// Both clusters only dial, and what dials between them is dropped: a pod in a uses a service in b all the same, by its
    /// name, and what a person sees tells which way it goes. Afterwards they are linked directly again.
    async fn clusters_that_nobody_can_dial_meet_at_a_third(bed) {
        installed::ready(bed).await?;
        let both = Answering::start(bed, NAMESPACE).await?;
        let hub = Hub::start(bed).await?;
        let (a, b) = (bed.cluster("a"), bed.cluster("b"));
        let before = [a.get(&["peer", "b"]).await?, b.get(&["peer", "a"]).await?];
        let carried = relayed(bed, &hub, &both).await;
        // Whatever came of it: other tests of this bed want the direct way.
        for (cluster, other, before) in [(a, "b", &before[0]), (b, "a", &before[1])] {
            opened(cluster).await?;
            let direct = json!({"spec": {"addresses": before["spec"]["addresses"], "via": null}}).to_string();
            cluster.kubectl(&["patch", "peer", other, "--type=merge", "-p", &direct]).await?;
        }
        carried?;
        let begun = Instant::now();
        for (cluster, other) in [(a, "b"), (b, "a")] {
            goes_by(cluster, other, "udp").await?;
            cluster.kubectl(&["delete", "peer", HUB]).await?;
        }
        bed.record("relay.direct_again_s", seconds(begun.elapsed()));
        both.ask(bed).await?;
        both.end(bed).await
    }
}
