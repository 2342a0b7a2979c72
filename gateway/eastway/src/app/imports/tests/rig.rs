//! Two clouds whose gateways are joined in memory, as far as federation goes: real links, sessions,
//! stores and files; a clock that the test sets.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eastway_federation::Limits;
use eastway_identity::ca::{Ca, InitOptions};
use eastway_identity::{IdentityStore, PeerTrust, SpiffeId, TrustStore};
use eastway_model::rules::{NameFilter, PeerRules, Rules};
use eastway_model::store::{Reader, Writer};
use eastway_model::{
    Change, ClusterName, Label, LocalChange, LocalService, PeerState, Protocol, ServiceKey, ServicePort, ServiceRecord,
    UnixMillis,
};
use eastway_tunnel::header::StreamHeader;
use eastway_tunnel::transport::BoxFuture;
use eastway_tunnel::transport::memory::MemoryNetwork;
use eastway_tunnel::{
    AcceptedStream, HostPort, LinkInfo, PeerTarget, ReplicaId, StreamHandler, Timing, Tunnel, TunnelConfig,
    TunnelLimits, World,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::super::{Freshness, Imports, Stop, run};
use crate::app::clock::Clock;
use crate::app::exports::Exports;
use crate::app::peers::Told;
use crate::app::store::{self, Input};
use crate::telemetry::{AccessMode, Telemetry};

fn label(text: &str) -> Label {
    Label::parse(text).unwrap()
}

fn service(name: &str) -> Arc<LocalService> {
    let key = ServiceKey::parse("shop", name).unwrap();
    let port = ServicePort { name: None, number: NonZeroU16::MIN, protocol: Protocol::Tcp, app_protocol: None };
    Arc::new(LocalService::new(ServiceRecord::new(key, vec![port]), true, []))
}

/// A cloud that outlives its gateways.
pub(super) struct Cloud {
    name: &'static str,
    folder: tempfile::TempDir,
    ca: Ca,
    address: SocketAddr,
}

impl Cloud {
    pub(super) fn new(name: &'static str, host: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::init(&folder.path().join("ca"), &InitOptions::new(&format!("{name}.example"))).unwrap();
        Self { name, folder, ca, address: ([10, 0, 0, host], 15_443).into() }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    fn gateway_id(&self) -> SpiffeId {
        SpiffeId::gateway(&format!("{}.example", self.name)).unwrap()
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The copy on disk of what `peer` exports.
    pub(super) fn copy_of(&self, peer: &str) -> PathBuf {
        self.state().join("imports").join(format!("{peer}.bin"))
    }

    /// Starts a gateway that offers `services` to `peer` and imports from it; all its timers and dates go
    /// by `clock`.
    pub(super) fn start(
        &self,
        network: &MemoryNetwork,
        peer: &Cloud,
        services: &[&str],
        withdraw_after: Duration,
        clock: Clock,
    ) -> Gateway {
        let (writer, reader) = Writer::new(label(self.name));
        let (store, inputs) = store::queue();
        let end = CancellationToken::new();
        let telemetry = Telemetry::new(AccessMode::Off);
        let exports = Exports::new(reader.clone(), Limits::default(), 1, clock, telemetry.clone(), end.clone());
        let tunnel = Arc::new(self.tunnel(network, peer, Arc::new(exports)));
        tunnel.set_peers(vec![PeerTarget {
            name: peer.name.into(),
            addresses: vec![HostPort::from(peer.address)],
            ..PeerTarget::default()
        }]);
        let shop = NameFilter::of_namespace(&label("shop")).unwrap();
        let rules = PeerRules::new(label(peer.name), &format!("{}.example", peer.name), UnixMillis(1));
        let rules = Arc::new(PeerRules { export: shop.clone(), import: shop, withdraw_after, ..rules });
        std::fs::create_dir_all(self.state()).unwrap();
        let freshness = Freshness::new(clock);
        let imports = Imports {
            cluster: label(self.name),
            limits: Limits::default(),
            store: store.clone(),
            tunnel: tunnel.clone(),
            subscriptions: watch::Sender::default().subscribe(),
            state: self.state(),
            clock,
            freshness: freshness.clone(),
            telemetry,
        };
        let stop = Stop { process: end.clone(), removed: CancellationToken::new() };
        let all = Rules { peers: [(label(peer.name), rules.clone())].into(), ..Rules::default() };
        let local = LocalChange::Replace(services.iter().map(|name| service(name)).collect());
        let importer = async move {
            store.send(Input::Rules(Arc::new(all))).await;
            store.send(Input::Registries(vec![label("file")])).await;
            store.changes(vec![Change::Local { registry: label("file"), change: local }]).await;
            let (_rules, receiver) = watch::channel(rules.clone());
            tokio::join!(run(imports.clone(), receiver, stop.clone()), tell(imports, rules.name.clone(), stop.process));
        };
        let tasks = vec![tokio::spawn(store::run(writer, inputs, clock, end.clone())), tokio::spawn(importer)];
        Gateway { reader, tunnel, end, tasks, freshness }
    }

    fn tunnel(&self, network: &MemoryNetwork, peer: &Cloud, exports: Arc<Exports>) -> Tunnel {
        let trust = PeerTrust {
            name: peer.name.into(),
            gateway: peer.gateway_id(),
            pins: vec![peer.ca.pin()],
            bundle: Vec::new(),
            crls: Vec::new(),
        };
        let trust = TrustStore::new(vec![trust]).unwrap();
        let world = World::default();
        let leaf = self.ca.issue_identity(&self.gateway_id(), Duration::from_secs(24 * 3600), SystemTime::now());
        let identity = IdentityStore::new(leaf.unwrap());
        let transport =
            network.transport(self.address, Arc::clone(&identity), Arc::clone(&trust), Arc::clone(&world.clock));
        let config = TunnelConfig {
            listen: self.address,
            cluster: self.name.into(),
            replica: ReplicaId::random().unwrap(),
            predecessors: Arc::default(),
            replicas: None,
            quic_lb: None,
            keys: self.ca.link_keys(),
            limits: TunnelLimits::default(),
            timing: Timing::default(),
            software_version: "test".into(),
        };
        Tunnel::with_transport(world, config, identity, trust, Arc::new(Federation(exports)), transport)
    }
}

/// Tells the store about links, as the owner of all peers does.
async fn tell(imports: Imports, peer: ClusterName, stop: CancellationToken) {
    let mut told = Told::default();
    let mut events = imports.tunnel.events();
    while let Some(Ok(())) = stop.run_until_cancelled(events.changed()).await {
        let states = events.borrow_and_update().clone();
        imports.store.changes(told.changes([&peer].into_iter(), &states, imports.clock.steady())).await;
    }
}

/// Serves federation streams and nothing else.
struct Federation(Arc<Exports>);

impl StreamHandler for Federation {
    fn handle(&self, link: LinkInfo, header: StreamHeader, stream: AcceptedStream) -> BoxFuture<'static, ()> {
        assert!(matches!(header, StreamHeader::Federation(_)));
        let exports = self.0.clone();
        Box::pin(async move { exports.serve(&link, stream).await })
    }
}

/// One process.
pub(super) struct Gateway {
    reader: Reader,
    tunnel: Arc<Tunnel>,
    end: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    pub(super) freshness: Freshness,
}

impl Gateway {
    /// Services of `peer` that are imported.
    pub(super) fn imports(&self, peer: &str) -> Vec<String> {
        let snapshot = self.reader.load_full();
        let of_peer =
            |part: &eastway_model::ImportPart| part.cluster.as_ref().is_some_and(|name| name.as_str() == peer);
        let names = snapshot.imports().filter(|import| import.parts.iter().any(of_peer));
        names.map(|import| import.key.name.to_string()).collect()
    }

    /// How the store sees `peer`.
    pub(super) fn state(&self, peer: &str) -> PeerState {
        self.reader.load().peer(peer).map_or(PeerState::Unknown, |view| view.state)
    }

    /// Orderly stop: what a process does at SIGTERM.
    pub(super) async fn stop(self) {
        self.end.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
        self.tunnel.close().await;
    }
}

/// Waits in virtual time.
pub(super) async fn eventually(what: &str, mut look: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !look() {
        assert!(start.elapsed() < Duration::from_secs(60), "not within a virtual minute: {what}");
        sleep(Duration::from_millis(10)).await;
    }
    start.elapsed()
}
