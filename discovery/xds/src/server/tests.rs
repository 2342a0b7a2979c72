//! The service and its clients in one process, without a network between them.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use eastway_model::Label;
use eastway_proto::xds::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use prost::Message;
use tokio::sync::mpsc::Sender;

use super::*;
use crate::resource::Resource;
use crate::session::State;
use crate::view::{Edit, View};

const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Seen {
    connected: AtomicUsize,
    cuts: Mutex<Vec<Cut>>,
    refusals: Mutex<Vec<String>>,
}

impl Observer for Seen {
    fn connected(&self, clients: usize) {
        self.connected.store(clients, Ordering::Relaxed);
    }

    fn pushed(&self, _kind: Kind) {}

    fn refused(&self, client: &str, kind: Kind, reason: &str) {
        self.refusals.lock().unwrap().push(format!("{client} {kind} {reason}"));
    }

    fn cut(&self, _client: &str, why: &Cut) {
        self.cuts.lock().unwrap().push(why.clone());
    }
}

/// A server of workload shop/web, whose certificates live this long.
struct Rig {
    service: AggregatedDiscoveryServiceServer<Server>,
    clients: Arc<Clients>,
    views: watch::Sender<Option<Arc<View>>>,
    seen: Arc<Seen>,
    stop: CancellationToken,
}

fn rig(life: Duration, limits: Limits) -> Rig {
    let (views, latest) = watch::channel(None);
    let admit: Admit = Arc::new(move |_| {
        let label = |text| Label::parse(text).map_err(|_| Status::internal("label"));
        Ok(Caller {
            address: "192.0.2.1:5".to_owned(),
            identity: "spiffe://a.example/ns/shop/sa/web".into(),
            serial: "0a1b".into(),
            workload: Workload { namespace: label("shop")?, service_account: label("web")? },
            not_after: SystemTime::now() + life,
        })
    });
    let (seen, stop) = (Arc::new(Seen::default()), CancellationToken::new());
    let server = Server::new(latest, admit, seen.clone(), limits, 7, stop.clone());
    let clients = server.clients();
    Rig { service: server.into_service(), clients, views, seen, stop }
}

fn day() -> Rig {
    rig(Duration::from_secs(86_400), Limits::default())
}

fn node(id: &str) -> bytes::Bytes {
    wire::Node { id: id.into(), cluster: "web.shop".into(), ..wire::Node::default() }.encode_to_vec().into()
}

fn subscribe(kind: Kind) -> wire::DeltaDiscoveryRequest {
    wire::DeltaDiscoveryRequest {
        node: node("sidecar~web-1.shop"),
        type_url: kind.url().into(),
        ..wire::DeltaDiscoveryRequest::default()
    }
}

type Requests = Sender<wire::DeltaDiscoveryRequest>;

async fn open(rig: &Rig) -> Result<(Requests, Streaming<wire::DeltaDiscoveryResponse>), Status> {
    let (sender, receiver) = mpsc::channel(4);
    let mut client = AggregatedDiscoveryServiceClient::new(rig.service.clone());
    let responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await?;
    Ok((sender, responses.into_inner()))
}

async fn next(responses: &mut Streaming<wire::DeltaDiscoveryResponse>) -> Result<wire::DeltaDiscoveryResponse, Status> {
    let message = timeout(DEADLINE, responses.message()).await.expect("an answer in time")?;
    Ok(message.expect("the stream goes on"))
}

fn clusters(view: &View, names: &[&str], size: usize) -> Arc<View> {
    let put = |name: &&str| {
        let content = wire::Hint { string_value: Some(format!("{}{}", view.generation(), "x".repeat(size))) };
        Edit::Put(Kind::Cluster, Resource::new(Kind::Cluster, name, &content))
    };
    Arc::new(view.edited(names.iter().map(put)).unwrap())
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_client_is_listed_with_what_it_has_taken_and_refused() {
    let rig = day();
    let (requests, mut responses) = open(&rig).await.unwrap();
    requests.send(subscribe(Kind::Cluster)).await.unwrap();
    until("it is listed", || rig.clients.len() == 1).await;
    let first = clusters(&View::default(), &["a"], 1);
    rig.views.send_replace(Some(first.clone()));
    let response = next(&mut responses).await.unwrap();
    assert_eq!(response.resources.len(), 1);
    // The node comes in the first message only.
    let refusal = wire::DeltaDiscoveryRequest {
        node: bytes::Bytes::new(),
        response_nonce: response.nonce,
        error_detail: Some(wire::ErrorDetail { code: 13, message: "no such filter".into() }),
        ..subscribe(Kind::Cluster)
    };
    requests.send(refusal).await.unwrap();
    let refused = || rig.clients.list()[0].kinds.get(&Kind::Cluster).and_then(|report| report.status.refused.clone());
    until("the refusal is kept", || refused().is_some()).await;
    assert_eq!(&*refused().unwrap().reason, "no such filter");
    assert_eq!(*rig.seen.refusals.lock().unwrap(), ["sidecar~web-1.shop cds no such filter"]);
    let client = &rig.clients.list()[0];
    assert_eq!(client.kinds[&Kind::Cluster].status.state(), State::Refused);
    assert_eq!(
        (client.node.id.as_str(), &*client.identity),
        ("sidecar~web-1.shop", "spiffe://a.example/ns/shop/sa/web")
    );
    rig.views.send_replace(Some(clusters(&first, &["a"], 2)));
    let response = next(&mut responses).await.unwrap();
    assert_eq!(response.resources.len(), 1);
    let told = rig.clients.list()[0].told(Kind::Cluster);
    assert_eq!(told.iter().map(|one| &**one.name()).collect::<Vec<_>>(), ["a"], "it was told, whatever it says");
    drop((requests, responses));
    until("it is gone", || rig.clients.is_empty() && rig.seen.connected.load(Ordering::Relaxed) == 0).await;
}

#[tokio::test]
async fn x2_wrong_nodes_and_types_end_the_stream_with_a_reason() {
    let rig = day();
    rig.views.send_replace(Some(clusters(&View::default(), &["a"], 1)));
    let other = wire::Node { id: "sidecar~x.bank".into(), cluster: "web.bank".into(), ..wire::Node::default() };
    let other: bytes::Bytes = other.encode_to_vec().into();
    let bad = [
        (wire::DeltaDiscoveryRequest { node: bytes::Bytes::new(), ..subscribe(Kind::Cluster) }, Code::InvalidArgument),
        (wire::DeltaDiscoveryRequest { node: other.clone(), ..subscribe(Kind::Cluster) }, Code::PermissionDenied),
        (
            wire::DeltaDiscoveryRequest {
                type_url: "type.googleapis.com/envoy.api.v2.Cluster".into(),
                ..subscribe(Kind::Cluster)
            },
            Code::InvalidArgument,
        ),
        (
            wire::DeltaDiscoveryRequest {
                resource_names_subscribe: (0..=20_000).map(|number| number.to_string()).collect(),
                ..subscribe(Kind::Endpoints)
            },
            Code::ResourceExhausted,
        ),
    ];
    for (request, code) in bad {
        let (requests, mut responses) = open(&rig).await.unwrap();
        requests.send(request).await.unwrap();
        let status = next(&mut responses).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(!status.message().is_empty());
    }
    let (requests, mut responses) = open(&rig).await.unwrap();
    requests.send(subscribe(Kind::Cluster)).await.unwrap();
    next(&mut responses).await.unwrap();
    requests
        .send(wire::DeltaDiscoveryRequest { node: node("sidecar~web-2.shop"), ..subscribe(Kind::Listener) })
        .await
        .unwrap();
    assert_eq!(next(&mut responses).await.unwrap_err().message(), "the node changed on the stream");
    assert_eq!(rig.seen.cuts.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn x4_who_does_not_read_is_cut_and_delays_nobody() {
    const STUCK: usize = 100;
    // Far longer than a push takes on a busy machine, and no longer than a test may.
    const STALLED: Duration = Duration::from_secs(3);
    let rig = rig(Duration::from_secs(86_400), Limits { stalled: STALLED, streams: STUCK + 1 });
    let mut view = clusters(&View::default(), &["a", "b"], 1_000);
    rig.views.send_replace(Some(view.clone()));
    let mut stuck = Vec::new();
    for _ in 0..STUCK {
        let (requests, responses) = open(&rig).await.unwrap();
        requests.send(subscribe(Kind::Cluster)).await.unwrap();
        stuck.push((requests, responses));
    }
    let (requests, mut responses) = open(&rig).await.unwrap();
    requests.send(subscribe(Kind::Cluster)).await.unwrap();
    next(&mut responses).await.unwrap();
    let started = Instant::now();
    let (mut slowest, mut pushes) = (Duration::ZERO, 0);
    while rig.seen.cuts.lock().unwrap().len() < STUCK {
        assert!(started.elapsed() < DEADLINE, "not all others are cut");
        view = clusters(&view, &["a"], 1_000);
        let pushed = Instant::now();
        rig.views.send_replace(Some(view.clone()));
        next(&mut responses).await.unwrap();
        slowest = slowest.max(pushed.elapsed());
        pushes += 1;
    }
    assert!(rig.seen.cuts.lock().unwrap().iter().all(|cut| *cut == Cut::Stalled));
    // Who waits for one of them, or for all at once, has a push that takes as long as they may.
    assert!(slowest < STALLED - Duration::from_millis(500), "{slowest:?}: nobody waits for the others");
    assert!(pushes > 20, "{pushes} in {:?}", started.elapsed());
    until("they are not listed any more", || rig.clients.len() == 1).await;
    drop(stuck);
}

#[tokio::test]
async fn i8_a_slow_client_gets_the_newest_view_and_no_queue() {
    let rig = day();
    let mut view = clusters(&View::default(), &["a"], 10);
    rig.views.send_replace(Some(view.clone()));
    let (requests, mut responses) = open(&rig).await.unwrap();
    requests.send(subscribe(Kind::Cluster)).await.unwrap();
    next(&mut responses).await.unwrap();
    for _ in 0..1_000 {
        view = clusters(&view, &["a"], 10);
        rig.views.send_replace(Some(view.clone()));
        tokio::task::yield_now().await;
    }
    let newest = view.generation().to_string();
    let mut read = 0;
    while next(&mut responses).await.unwrap().system_version_info != newest {
        read += 1;
    }
    assert!(read < 10, "{read} old views were kept for it");
}

#[tokio::test]
async fn i9_a_stream_ends_with_the_certificate_and_with_the_process() {
    let short = rig(Duration::from_millis(1_500), Limits::default());
    short.views.send_replace(Some(clusters(&View::default(), &["a"], 1)));
    let (requests, mut responses) = open(&short).await.unwrap();
    requests.send(subscribe(Kind::Cluster)).await.unwrap();
    next(&mut responses).await.unwrap();
    assert_eq!(next(&mut responses).await.unwrap_err().code(), Code::Unauthenticated);
    let full = rig(Duration::from_secs(86_400), Limits { streams: 1, ..Limits::default() });
    let (_requests, mut responses) = open(&full).await.unwrap();
    assert_eq!(open(&full).await.map(|_| ()).unwrap_err().code(), Code::ResourceExhausted);
    full.stop.cancel();
    assert_eq!(next(&mut responses).await.unwrap_err().code(), Code::Unavailable);
}
