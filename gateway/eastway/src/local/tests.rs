//! A gateway's store, the feed over real sockets, and a controller's store that must come to hold the same.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eastway_identity::ca::{Ca, InitOptions};
use eastway_identity::{IdentityStore, SpiffeId};
use eastway_model::rules::{NameFilter, PeerRules, Rules};
use eastway_model::store::{Snapshot, Writer};
use eastway_model::{
    Change, ClusterName, Endpoint, EndpointCondition, EndpointId, Label, PeerChange, PeerState, Protocol, ServiceKey,
    ServiceKind, ServicePort, ServiceRecord, Subset, TlsMode, UnixMillis,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::client::{FeedClient, FeedStatus, QUEUE};
use super::feed::Feed;
use super::intake::{FeedUpdate, Intake};
use super::links::AllFacts;
use super::listener::LocalListener;
use super::server::{self, FeedSource};
use crate::app::clock::Clock;
use crate::config::value::HostPort;
use crate::telemetry::{AccessMode, Telemetry};

const DEADLINE: Duration = Duration::from_secs(10);

fn name(text: &str) -> ClusterName {
    Label::parse(text).unwrap()
}

fn record(text: &str, kind: ServiceKind) -> Arc<ServiceRecord> {
    let port = ServicePort { name: None, number: NonZeroU16::MIN, protocol: Protocol::Tcp, app_protocol: None };
    let key: ServiceKey = text.parse().unwrap();
    Arc::new(ServiceRecord { kind, exported_at: UnixMillis(7), ..ServiceRecord::new(key, vec![port]) })
}

fn virtual_ip(text: &str) -> Arc<ServiceRecord> {
    record(text, ServiceKind::ClusterSetIp)
}

fn endpoint(id: &str) -> Endpoint {
    Endpoint {
        id: EndpointId::parse(id).unwrap(),
        hostname: Some(name(id)),
        subset: Subset::new(),
        zone: None,
        condition: EndpointCondition::READY,
        weight: 100,
        identity: None,
        tls: TlsMode::None,
    }
}

/// The store of the gateway of cluster `a`.
struct Truth {
    writer: Writer,
    known: watch::Sender<Option<Arc<BTreeSet<ClusterName>>>>,
    now: UnixMillis,
}

impl Truth {
    fn new() -> (Self, eastway_model::store::Reader) {
        let (writer, reader) = Writer::new(name("a"));
        (Self { writer, known: watch::Sender::new(None), now: UnixMillis(1_000_000) }, reader)
    }

    fn peers(&mut self, names: &[&str]) {
        let rules = |peer: &&str| {
            let rules = PeerRules::new(name(peer), &format!("{peer}.example"), UnixMillis(1));
            (name(peer), Arc::new(PeerRules { import: NameFilter::everything(), ..rules }))
        };
        let peers: BTreeMap<_, _> = names.iter().map(rules).collect();
        let known = peers.keys().cloned().collect();
        self.writer.set_rules(Arc::new(Rules { peers, ..Rules::default() }));
        self.known.send_replace(Some(Arc::new(known)));
    }

    fn apply(&mut self, peer: &str, change: PeerChange) {
        self.writer.apply([Change::Peer { cluster: name(peer), change }], self.now);
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(self.writer.snapshot())
    }

    fn known(&self) -> BTreeSet<ClusterName> {
        self.known.borrow().as_deref().cloned().unwrap_or_default()
    }
}

/// A watcher's store.
struct Copy(Writer);

impl Copy {
    fn new() -> Self {
        Self(Writer::new(name("a")).0)
    }

    fn take(&mut self, update: FeedUpdate, now: UnixMillis) {
        match update {
            FeedUpdate::Peers(peers) => drop(self.0.set_rules(Arc::new(Rules { peers, ..Rules::default() }))),
            FeedUpdate::Links(_) => {}
            FeedUpdate::Changes(changes) => drop(self.0.apply(changes, now)),
        }
    }
}

/// What both must agree on.
fn contents(snapshot: &Snapshot) -> String {
    let imports: Vec<_> = snapshot.imports().map(|import| format!("{:?} {:?}", import.key, import.parts)).collect();
    let peers: Vec<_> =
        snapshot.peers().map(|peer| format!("{} {:?} {}", peer.name, peer.state, peer.synced)).collect();
    format!("{imports:#?}\n{peers:#?}")
}

#[test]
fn i4_a_watcher_that_connects_again_ends_up_with_what_the_gateway_has() {
    let mut seed = fastrand::Rng::with_seed(7);
    let (mut truth, _reader) = Truth::new();
    let (mut feed, mut intake, mut copy) = (Feed::default(), Intake::new(name("a")), Copy::new());
    let peers = ["b", "c", "d"];
    truth.peers(&peers);
    for step in 0..2_000 {
        let peer = peers[seed.usize(..3)];
        let service = format!("shop/s{}", seed.u8(..6));
        let kind = if seed.bool() { ServiceKind::Headless } else { ServiceKind::ClusterSetIp };
        let id = format!("e{}", seed.u8(..5));
        match seed.u8(..12) {
            0 => truth.apply(peer, PeerChange::Replace(vec![record(&service, kind)])),
            1..=3 => truth.apply(peer, PeerChange::Upsert(record(&service, kind))),
            4 => truth.apply(peer, PeerChange::Remove(service.parse().unwrap())),
            5 | 6 => {
                let (service, upsert) = (service.parse().unwrap(), vec![endpoint(&id)]);
                truth.apply(peer, PeerChange::Endpoints { service, upsert, remove: vec![] });
            }
            7 => {
                let (service, remove) = (service.parse().unwrap(), vec![EndpointId::parse(&id).unwrap()]);
                truth.apply(peer, PeerChange::Endpoints { service, upsert: vec![], remove });
            }
            8 => truth.apply(peer, PeerChange::State(PeerState::Up)),
            9 => truth.apply(peer, PeerChange::State(PeerState::Down { since: truth.now })),
            10 => {
                truth.peers(&["b", "c"]);
                truth.apply("d", PeerChange::Removed);
                truth.peers(&peers);
            }
            // The connection breaks, somewhere in the middle of what was to be said.
            _ => {
                let cut = seed.usize(..4);
                for update in
                    feed.updates(&truth.snapshot(), &truth.known(), &BTreeMap::new(), truth.now).into_iter().take(cut)
                {
                    for update in intake.take(update, truth.now).unwrap() {
                        copy.take(update, truth.now);
                    }
                }
                (feed, intake) = (Feed::default(), intake);
                intake.reconnected();
            }
        }
        if seed.u8(..3) > 0 {
            for update in feed.updates(&truth.snapshot(), &truth.known(), &BTreeMap::new(), truth.now) {
                for update in intake.take(update, truth.now).unwrap() {
                    copy.take(update, truth.now);
                }
            }
            let synced: Vec<_> = truth.snapshot().peers().filter(|peer| peer.synced).map(|p| p.name.clone()).collect();
            if synced.len() == peers.len() {
                assert_eq!(contents(copy.0.snapshot()), contents(&truth.snapshot()), "step {step}");
            }
        }
    }
    assert!(intake.take_rejected().is_empty());
}

#[test]
fn i4_i5_a_gateway_that_knows_its_peers_but_not_yet_their_rules_says_nothing() {
    let (mut truth, _reader) = Truth::new();
    let mut feed = Feed::default();
    let known = BTreeSet::from([name("b")]);
    assert!(
        feed.updates(&truth.snapshot(), &known, &BTreeMap::new(), truth.now).is_empty(),
        "b would count as removed"
    );
    truth.peers(&["b"]);
    let updates = feed.updates(&truth.snapshot(), &known, &BTreeMap::new(), truth.now);
    assert_eq!(updates.len(), 1, "the peer, and nothing about services of a peer that is not synced: {updates:?}");
}

#[test]
fn a_bad_record_is_left_out_and_reported() {
    use eastway_proto::federation::v1::{Service, ServiceState};
    use eastway_proto::local::v1 as wire;
    use eastway_proto::local::v1::update::Body;
    use prost::Message as _;
    let (mut truth, _reader) = Truth::new();
    truth.peers(&["b"]);
    let mut intake = Intake::new(name("a"));
    for update in Feed::default().updates(&truth.snapshot(), &truth.known(), &BTreeMap::new(), truth.now) {
        intake.take(update, truth.now).unwrap();
    }
    let bad = Service { namespace: "shop".into(), name: "Bad_Name".into(), ..Service::default() };
    let service = ServiceState { service: bad.encode_to_vec().into(), counts: vec![] };
    let upsert = wire::Upsert { cluster: "b".into(), service: Some(service) };
    let update = |body| wire::Update { body: Some(body) };
    assert!(intake.take(update(Body::Upsert(upsert.clone())), truth.now).unwrap().is_empty());
    assert_eq!(intake.take_rejected().len(), 1);
    let stranger = wire::Upsert { cluster: "z".into(), ..upsert };
    assert!(intake.take(update(Body::Upsert(stranger)), truth.now).unwrap_err().to_string().contains("z"));
    let other = wire::Peers { cluster: "other".into(), peers: vec![] };
    assert!(intake.take(update(Body::Peers(other)), truth.now).unwrap_err().to_string().contains("\"other\""));
    assert!(intake.take(wire::Update { body: None }, truth.now).is_err());
}

/// A cluster: its CA, a gateway that serves the feed.
pub(super) struct Cluster {
    _folder: tempfile::TempDir,
    ca: Ca,
    pub(super) telemetry: Telemetry,
    pub(super) stop: CancellationToken,
}

impl Cluster {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::init(&folder.path().join("ca"), &InitOptions::new("a.example")).unwrap();
        Self { _folder: folder, ca, telemetry: Telemetry::new(AccessMode::Off), stop: CancellationToken::new() }
    }

    pub(super) fn id(account: &str) -> SpiffeId {
        SpiffeId::workload("a.example", "eastway-system", account).unwrap()
    }

    pub(super) fn identity(&self, account: &str) -> Arc<IdentityStore> {
        self.identity_of(&Self::id(account))
    }

    pub(super) fn identity_of(&self, id: &SpiffeId) -> Arc<IdentityStore> {
        let day = Duration::from_secs(24 * 3600);
        IdentityStore::new(self.ca.issue_identity(id, day, SystemTime::now()).unwrap())
    }

    async fn serve(&self, truth: &Truth, reader: eastway_model::store::Reader, stop: CancellationToken) -> HostPort {
        self.serve_at("127.0.0.1:0", truth, reader, stop).await.0
    }

    async fn serve_at(
        &self,
        address: &str,
        truth: &Truth,
        reader: eastway_model::store::Reader,
        stop: CancellationToken,
    ) -> (HostPort, JoinHandle<()>) {
        let listener = LocalListener::bind("listen.local", address.parse().unwrap()).await.unwrap();
        let address = HostPort::parse(&listener.local_addr().to_string()).unwrap();
        let source = FeedSource {
            reader,
            known: truth.known.subscribe(),
            links: watch::channel(AllFacts::default()).1,
            clock: Clock::start(),
            telemetry: self.telemetry.clone(),
        };
        let (gateway, controller) = (self.identity("eastway-gateway"), Self::id("eastway-controller"));
        let stalled = Duration::from_millis(200);
        let serve = server::serve_stalling(listener, source, gateway, controller, None, stalled, stop);
        (address, tokio::spawn(async move { serve.await.unwrap() }))
    }

    fn client(&self, gateways: &HostPort, account: &str) -> FeedClient {
        FeedClient {
            cluster: name("a"),
            gateways: gateways.clone(),
            gateway: Self::id("eastway-gateway"),
            identity: self.identity(account),
            clock: Clock::start(),
            telemetry: self.telemetry.clone(),
        }
    }

    fn follow(&self, client: FeedClient) -> (watch::Receiver<FeedStatus>, mpsc::Receiver<FeedUpdate>) {
        let (sender, updates) = mpsc::channel(QUEUE);
        let (status, run) = client.follow(sender, self.stop.clone());
        tokio::spawn(run);
        (status, updates)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn until(copy: &mut Copy, updates: &mut mpsc::Receiver<FeedUpdate>, done: impl Fn(&Snapshot) -> bool) {
    let wait = async {
        while !done(copy.0.snapshot()) {
            let update = updates.recv().await.expect("the feed goes on");
            copy.take(update, UnixMillis(1_000_000));
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{}", contents(copy.0.snapshot())));
}

#[tokio::test]
async fn i4_the_controller_follows_the_gateway_over_tls_and_over_a_restart() {
    let cluster = Cluster::new();
    let (mut truth, reader) = Truth::new();
    truth.peers(&["b"]);
    truth.apply("b", PeerChange::Replace(vec![virtual_ip("shop/web"), record("shop/db", ServiceKind::Headless)]));
    let db: ServiceKey = "shop/db".parse().unwrap();
    let both = vec![endpoint("db-0"), endpoint("db-1")];
    truth.apply("b", PeerChange::Endpoints { service: db.clone(), upsert: both, remove: vec![] });
    let first = CancellationToken::new();
    let (address, served) = cluster.serve_at("127.0.0.1:0", &truth, reader.clone(), first.clone()).await;
    let (status, mut updates) = cluster.follow(cluster.client(&address, "eastway-controller"));
    let mut copy = Copy::new();
    let endpoints = |snapshot: &Snapshot| {
        let part = snapshot.import(&"shop/db".parse().unwrap()).and_then(|import| import.part(Some(&name("b"))));
        part.map_or(0, |part| part.endpoints.len())
    };
    until(&mut copy, &mut updates, |snapshot| endpoints(snapshot) == 2).await;
    assert!(copy.0.snapshot().import(&"shop/web".parse().unwrap()).is_some());

    truth.apply("b", PeerChange::Remove("shop/web".parse().unwrap()));
    until(&mut copy, &mut updates, |snapshot| snapshot.import(&"shop/web".parse().unwrap()).is_none()).await;

    // The gateway stops; meanwhile an endpoint goes and a service comes.
    first.cancel();
    served.await.unwrap();
    truth.apply("b", PeerChange::Endpoints { service: db, upsert: vec![], remove: vec![endpoint("db-1").id] });
    truth.apply("b", PeerChange::Upsert(virtual_ip("shop/new")));
    let mut waiting = status.clone();
    let down = waiting.wait_for(|status| !status.connected);
    tokio::time::timeout(DEADLINE, down).await.unwrap().unwrap();
    assert_eq!(endpoints(copy.0.snapshot()), 2, "nothing goes because the feed is down");
    let again = CancellationToken::new();
    let text = address.to_string();
    cluster.serve_at(&text, &truth, reader, again.clone()).await;
    until(&mut copy, &mut updates, |snapshot| {
        endpoints(snapshot) == 1 && snapshot.import(&"shop/new".parse().unwrap()).is_some()
    })
    .await;
    assert!(status.borrow().peers_known);

    // The Peer is removed.
    truth.peers(&[]);
    truth.apply("b", PeerChange::Removed);
    until(&mut copy, &mut updates, |snapshot| snapshot.imports().next().is_none()).await;
    again.cancel();
}

#[tokio::test]
async fn only_the_controller_of_this_cluster_may_watch() {
    let cluster = Cluster::new();
    let (mut truth, reader) = Truth::new();
    truth.peers(&[]);
    let address = cluster.serve(&truth, reader, cluster.stop.clone()).await;
    let other = Cluster::new();
    let pod = cluster.client(&address, "default");
    let stranger = FeedClient { identity: other.identity("eastway-controller"), ..pod.clone() };
    let fooled = FeedClient { gateway: Cluster::id("other"), ..cluster.client(&address, "eastway-controller") };
    let confused = FeedClient { cluster: name("z"), ..cluster.client(&address, "eastway-controller") };
    let told = [
        (pod, ""),
        (stranger, "of another CA"),
        (fooled, "is spiffe://a.example/ns/eastway-system/sa/eastway-gateway; wanted is"),
        (confused, "the gateway is of cluster \"a\""),
    ];
    for (client, words) in told {
        let (mut status, mut updates) = cluster.follow(client);
        let failed = status.wait_for(|status| status.error.is_some());
        let failed = tokio::time::timeout(DEADLINE, failed).await.unwrap().unwrap().clone();
        let error = failed.error.unwrap();
        assert!(error.contains(words), "{error}");
        assert!(!failed.peers_known && updates.try_recv().is_err(), "{error}");
    }
    let page = cluster.telemetry.metrics.encode().unwrap();
    assert!(page.contains("reason=\"handshake\""), "refusals are counted: {page}");
}

#[tokio::test]
async fn i8_a_watcher_that_does_not_read_is_cut_and_the_gateway_keeps_nothing_for_it() {
    use eastway_identity::local::{LocalTrust, Wanted, anchors_of, client_config};
    use eastway_proto::local::v1::WatchRequest;
    use eastway_proto::local::v1::imports_client::ImportsClient;
    let cluster = Cluster::new();
    let (mut truth, reader) = Truth::new();
    truth.peers(&["b"]);
    // Far more than the windows of one stream take.
    let records = (0..3_000).map(|number| {
        let mut record = ServiceRecord::clone(&virtual_ip(&format!("shop/s{number}")));
        record.annotations = [("example.com/note".into(), "x".repeat(4_000).into())].into();
        Arc::new(record)
    });
    truth.apply("b", PeerChange::Replace(records.collect()));
    let address = cluster.serve(&truth, reader, cluster.stop.clone()).await;
    let identity = cluster.identity("eastway-controller");
    let trust = LocalTrust::new(anchors_of(identity.clone()), Wanted::Identity(Cluster::id("eastway-gateway")));
    let tls = client_config(Some(identity), trust, eastway_identity::system_clock()).unwrap();
    let channel = super::dial::dial(&address, tls).await.unwrap();
    let mut client = ImportsClient::new(channel);
    let mut stream = client.watch(WatchRequest {}).await.unwrap().into_inner();
    // Nobody reads until the server has given up.
    let cut = async {
        while !cluster.telemetry.metrics.encode().unwrap().contains("reason=\"overload\"") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, cut).await.expect("the watcher is cut");
    let mut services = 0;
    while let Ok(Some(update)) = stream.message().await {
        if let Some(eastway_proto::local::v1::update::Body::Snapshot(snapshot)) = update.body {
            services += snapshot.services.len();
            assert!(!snapshot.end, "a snapshot that was cut has no end");
        }
    }
    assert!(services < 3_000);
}
