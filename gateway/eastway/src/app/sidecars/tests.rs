//! When sidecars are told something, and which endpoint records that takes.

use std::collections::BTreeMap;

use eastway_model::rules::{NameFilter, PeerRules, Rules};
use eastway_model::store::Writer;
use eastway_model::{
    Change, ClusterName, LocalChange, PeerChange, PeerState, PortNumber, Protocol, ServiceKind, ServicePort,
    ServiceRecord, UnixMillis,
};
use eastway_xds::View;
use tokio::time::sleep;

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

fn name(text: &str) -> ClusterName {
    Label::parse(text).unwrap()
}

fn record(service: &str, kind: ServiceKind) -> Arc<ServiceRecord> {
    let number = PortNumber::new(80).unwrap();
    let port = ServicePort { name: None, number, protocol: Protocol::Tcp, app_protocol: None };
    Arc::new(ServiceRecord { kind, ..ServiceRecord::new(service.parse().unwrap(), vec![port]) })
}

/// The gateway of cluster a, with the peer b, and what its publisher follows.
struct Rig {
    writer: Writer,
    reader: Reader,
    known: watch::Sender<Option<Arc<BTreeSet<ClusterName>>>>,
    frontend: watch::Sender<Arc<FrontendView>>,
    anchors: watch::Sender<Option<Arc<Trust>>>,
}

impl Rig {
    fn new() -> Self {
        let (mut writer, reader) = Writer::new(name("a"));
        let rules = PeerRules::new(name("b"), "b.example", UnixMillis(1));
        let rules = PeerRules { import: NameFilter::everything(), ..rules };
        writer.set_rules(Arc::new(Rules { peers: [(name("b"), Arc::new(rules))].into(), ..Rules::default() }));
        Self {
            writer,
            reader,
            known: watch::Sender::new(None),
            frontend: watch::Sender::default(),
            anchors: watch::Sender::default(),
        }
    }

    fn publisher(&self) -> (Publisher, watch::Receiver<Option<Arc<View>>>) {
        let settings = resources::Settings {
            gateway: GatewayAddress { host: "10.0.0.5".to_owned(), port: 15008 },
            gateway_identity: "spiffe://a.example/ns/eastway-system/sa/eastway-gateway".to_owned(),
            trust_domain: "a.example".to_owned(),
            endpoints_per_service: resources::ENDPOINTS_PER_SERVICE,
        };
        let scopes = Arc::new(Scopes::default());
        let latest = scopes.of(&name("shop"));
        let publisher = Publisher {
            reader: self.reader.clone(),
            known: self.known.subscribe(),
            frontend: self.frontend.subscribe(),
            anchors: self.anchors.subscribe(),
            generator: Generator::new(&settings),
            summaries: watch::Sender::default(),
            spoken: Arc::default(),
            scopes,
            proxyless: Proxyless { generator: proxyless::Generator::default(), scopes: Arc::default() },
        };
        (publisher, latest)
    }

    fn peer(&mut self, change: PeerChange) {
        self.writer.apply([Change::Peer { cluster: name("b"), change }], UnixMillis(1_000));
    }

    /// Local registries and peers have told all they have.
    fn sync(&mut self) {
        self.writer.await_registries([name("file")]);
        let change = LocalChange::Replace(Vec::new());
        self.writer.apply([Change::Local { registry: name("file"), change }], UnixMillis(1_000));
        self.peer(PeerChange::State(PeerState::Up));
        self.peer(PeerChange::Replace(vec![record("shop/web", ServiceKind::ClusterSetIp)]));
        self.known.send_replace(Some(Arc::new([name("b")].into())));
    }

    fn address(&self, service: &str, address: &str) {
        let vips = BTreeMap::from([(service.parse().unwrap(), vec![address.parse().unwrap()])]);
        let follows = Some(self.reader.load().version());
        self.frontend.send_replace(Arc::new(FrontendView { vips, follows, ..FrontendView::default() }));
    }
}

async fn until(views: &mut watch::Receiver<Option<Arc<View>>>, done: impl Fn(&View) -> bool) -> Arc<View> {
    let wait = views.wait_for(|view| view.as_ref().is_some_and(|view| done(view)));
    let view = timeout(DEADLINE, wait).await.expect("in time").unwrap().clone();
    view.unwrap()
}

#[tokio::test(start_paused = true)]
async fn i5_sidecars_are_told_nothing_before_everything_is_known() {
    let mut rig = Rig::new();
    let (publisher, mut views) = rig.publisher();
    let running = tokio::spawn(publisher.run());
    // However long it takes.
    sleep(Duration::from_secs(3_600)).await;
    assert!(views.borrow().is_none(), "the registries are unknown");
    rig.sync();
    sleep(Duration::from_secs(3_600)).await;
    assert!(views.borrow().is_none(), "virtual addresses are unknown: all listeners would go");
    rig.address("shop/web", "127.64.0.1");
    sleep(PEERS - Duration::from_secs(1)).await;
    assert!(views.borrow().is_none(), "anchors are unknown: sidecars would refuse everybody");
    rig.anchors.send_replace(Some(Arc::default()));
    let view = until(&mut views, |_| true).await;
    assert!(view.get(Kind::Listener, "127.64.0.1:80").is_some(), "{view:?}");
    // From now on each change is told.
    rig.peer(PeerChange::Upsert(record("shop/api", ServiceKind::ClusterSetIp)));
    until(&mut views, |view| view.len(Kind::Cluster) == 3).await;
    rig.address("shop/api", "127.64.0.2");
    until(&mut views, |view| {
        let at = |address| view.get(Kind::Listener, address).is_some();
        at("127.64.0.2:80") && !at("127.64.0.1:80")
    })
    .await;
    drop(rig);
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_change_goes_out_at_once_and_those_soon_after_it_together() {
    let mut rig = Rig::new();
    let (publisher, mut views) = rig.publisher();
    let running = tokio::spawn(publisher.run());
    rig.sync();
    rig.address("shop/web", "127.64.0.1");
    rig.anchors.send_replace(Some(Arc::default()));
    until(&mut views, |_| true).await;
    sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    rig.peer(PeerChange::Upsert(record("shop/api", ServiceKind::ClusterSetIp)));
    until(&mut views, |view| view.len(Kind::Cluster) == 3).await;
    assert!(begun.elapsed() < Duration::from_millis(2), "after {:?}", begun.elapsed());
    for service in ["shop/cart", "shop/db"] {
        rig.peer(PeerChange::Upsert(record(service, ServiceKind::ClusterSetIp)));
        sleep(Duration::from_millis(2)).await;
    }
    views.changed().await.unwrap();
    assert_eq!(views.borrow().as_ref().map(|view| view.len(Kind::Cluster)), Some(5));
    assert!(begun.elapsed() >= PACE && begun.elapsed() < PACE * 2, "after {:?}", begun.elapsed());
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn i5_a_peer_of_which_nothing_is_known_is_waited_for_but_not_for_ever() {
    let mut rig = Rig::new();
    rig.writer.await_registries([]);
    rig.known.send_replace(Some(Arc::new([name("b")].into())));
    rig.frontend.send_replace(Arc::new(FrontendView { follows: Some(u64::MAX), ..FrontendView::default() }));
    rig.anchors.send_replace(Some(Arc::default()));
    let (publisher, mut views) = rig.publisher();
    let running = tokio::spawn(publisher.run());
    sleep(PEERS - Duration::from_secs(1)).await;
    assert!(views.borrow().is_none(), "b may export what sidecars have");
    sleep(Duration::from_secs(2)).await;
    until(&mut views, |view| view.len(Kind::Cluster) == 1).await;
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn i12_without_an_api_server_sidecars_are_served_by_the_peers_of_the_last_run() {
    let mut rig = Rig::new();
    rig.sync();
    rig.known.send_replace(None);
    rig.address("shop/web", "127.64.0.1");
    rig.anchors.send_replace(Some(Arc::default()));
    let (publisher, mut views) = rig.publisher();
    let running = tokio::spawn(publisher.run());
    sleep(PEERS - Duration::from_secs(1)).await;
    assert!(views.borrow().is_none(), "there may be other peers");
    sleep(Duration::from_secs(2)).await;
    until(&mut views, |view| view.get(Kind::Listener, "127.64.0.1:80").is_some()).await;
    running.abort();
}

#[tokio::test]
async fn endpoint_records_of_all_imports_are_wanted() {
    let mut rig = Rig::new();
    rig.sync();
    rig.peer(PeerChange::Upsert(record("shop/db", ServiceKind::Headless)));
    let headless = watch::Sender::new(Arc::new(BTreeSet::new()));
    let (sender, mut wanted) = watch::channel(Arc::new(BTreeSet::new()));
    let end = CancellationToken::new();
    let running = tokio::spawn(subscribe(rig.reader.clone(), headless.subscribe(), sender, end.clone()));
    let keys = |keys: &[&str]| -> BTreeSet<ServiceKey> { keys.iter().map(|key| key.parse().unwrap()).collect() };
    let mut until = async |what: &[&str]| {
        let wait = wanted.wait_for(|wanted| **wanted == keys(what));
        drop(timeout(DEADLINE, wait).await.expect("in time").unwrap());
    };
    until(&["shop/web"]).await;
    headless.send_replace(Arc::new(keys(&["shop/db"])));
    until(&["shop/db", "shop/web"]).await;
    rig.peer(PeerChange::Remove("shop/web".parse().unwrap()));
    until(&["shop/db"]).await;
    end.cancel();
    running.await.unwrap();
}
