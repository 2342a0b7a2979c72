//! Who may ask at the local port for what, once sidecars are served there.

use std::sync::Arc;
use std::time::Duration;

use eastway_identity::local::{LocalTrust, Wanted, anchors_of, client_config};
use eastway_identity::{IdentityStore, SpiffeId};
use eastway_proto::local::v1::WatchRequest;
use eastway_proto::local::v1::imports_client::ImportsClient;
use eastway_proto::xds::discovery as wire;
use eastway_proto::xds::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use eastway_xds::Kind;
use eastway_xds::resources::{Addresses, GatewayAddress, Generator, Settings};
use eastway_xds::server::{Limits, Server};
use prost::Message;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::dial::{self, DialError};
use super::links::AllFacts;
use super::listener::{ConnectionLimits, LocalListener};
use super::server::{self, FeedSource};
use super::tests::Cluster;
use crate::app::clock::Clock;
use crate::app::sidecars::{Counting, admit};
use crate::config::value::HostPort;

async fn serve(cluster: &Cluster) -> HostPort {
    serve_with(cluster, ConnectionLimits::default()).await
}

async fn serve_with(cluster: &Cluster, limits: ConnectionLimits) -> HostPort {
    let listener = LocalListener::bind("listen.local", "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let listener = listener.with_limits(limits);
    let address = HostPort::parse(&listener.local_addr().to_string()).unwrap();
    let (writer, reader) = eastway_model::store::Writer::new(eastway_model::Label::parse("a").unwrap());
    let settings = Settings {
        gateway: GatewayAddress { host: "10.0.0.5".to_owned(), port: 15008 },
        gateway_identity: Cluster::id("eastway-gateway").as_str().to_owned(),
        trust_domain: "a.example".to_owned(),
        endpoints_per_service: 500,
    };
    let view = Generator::new(&settings).update(writer.snapshot(), &Addresses::new());
    let views = watch::Sender::new(Some(view)).subscribe();
    let telemetry = cluster.telemetry.clone();
    let source = FeedSource {
        reader,
        known: watch::channel(None).1,
        links: watch::channel(AllFacts::default()).1,
        clock: Clock::start(),
        telemetry: telemetry.clone(),
    };
    let admit = admit("eastway-system", telemetry.clone());
    let observer = Arc::new(Counting(telemetry));
    let sidecars = Server::new(views, admit, observer, Limits::default(), 1, cluster.stop.clone());
    let (gateway, controller) = (cluster.identity("eastway-gateway"), Cluster::id("eastway-controller"));
    let stop = cluster.stop.clone();
    tokio::spawn(async move {
        // What a watcher waits for stays while the port is served.
        let _writer = writer;
        server::serve(listener, source, gateway, controller, Some(sidecars), stop).await.unwrap();
    });
    address
}

async fn dial(address: &HostPort, identity: Arc<IdentityStore>) -> Result<Channel, DialError> {
    dial_trusting(address, identity.clone(), identity).await
}

/// `ours` has the CA that the gateway is known by.
async fn dial_trusting(
    address: &HostPort,
    ours: Arc<IdentityStore>,
    identity: Arc<IdentityStore>,
) -> Result<Channel, DialError> {
    let trust = LocalTrust::new(anchors_of(ours), Wanted::Identity(Cluster::id("eastway-gateway")));
    let tls = client_config(Some(identity), trust, eastway_identity::system_clock()).unwrap();
    dial::dial(address, tls).await
}

/// What the first request of a sidecar with this node gets.
async fn ask(channel: Channel, id: &str, cluster: &str) -> Result<wire::DeltaDiscoveryResponse, Status> {
    ask_for(channel, id, cluster, Kind::Cluster, &[]).await
}

/// As [`ask`], for resources by name.
async fn ask_for(
    channel: Channel,
    id: &str,
    cluster: &str,
    kind: Kind,
    names: &[&str],
) -> Result<wire::DeltaDiscoveryResponse, Status> {
    let node = wire::Node { id: id.into(), cluster: cluster.into(), ..wire::Node::default() };
    let request = wire::DeltaDiscoveryRequest {
        node: node.encode_to_vec().into(),
        type_url: kind.url().into(),
        resource_names_subscribe: names.iter().map(|&name| name.into()).collect(),
        ..wire::DeltaDiscoveryRequest::default()
    };
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    // The stream stays open: a client that ends its half has gone.
    let requests = futures_util::stream::once(async { request });
    let requests = futures_util::StreamExt::chain(requests, futures_util::stream::pending());
    let asked = async {
        let mut responses = client.delta_aggregated_resources(requests).await?.into_inner();
        Ok(responses.message().await?.expect("an answer"))
    };
    tokio::time::timeout(Duration::from_secs(10), asked).await.expect("an answer in time")
}

#[tokio::test]
async fn x1_x2_workloads_get_their_configuration_and_nothing_else() {
    let cluster = Cluster::new();
    let address = serve(&cluster).await;
    let web = SpiffeId::workload("a.example", "shop", "web").unwrap();
    let channel = dial(&address, cluster.identity_of(&web)).await.unwrap();
    let response = ask(channel.clone(), "sidecar~web-1.shop", "web.shop").await.unwrap();
    assert_eq!(response.resources.len(), 1, "the way to the gateway");
    let foreign = ask(channel.clone(), "sidecar~web-1.bank", "web.bank").await.unwrap_err();
    assert_eq!(foreign.code(), Code::PermissionDenied, "{foreign}");
    let feed = ImportsClient::new(channel).watch(WatchRequest {}).await.unwrap_err();
    assert_eq!(feed.code(), Code::PermissionDenied, "{feed}");

    // The controller watches the feed as ever, and has no sidecar; nor has any other process of ours.
    for account in ["eastway-controller", "eastway-gateway", "eastway-ca"] {
        let channel = dial(&address, cluster.identity(account)).await.unwrap();
        let refused = ask(channel.clone(), "sidecar~x.eastway-system", &format!("{account}.eastway-system")).await;
        assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied, "{account}");
        let watched = ImportsClient::new(channel).watch(WatchRequest {}).await;
        assert_eq!(watched.is_ok(), account == "eastway-controller");
    }
    // An identity of another form, and one of another CA.
    let odd = SpiffeId::parse("spiffe://a.example/shop/web").unwrap();
    let channel = dial(&address, cluster.identity_of(&odd)).await.unwrap();
    assert_eq!(ask(channel, "sidecar~web-1.shop", "web.shop").await.unwrap_err().code(), Code::PermissionDenied);
    let stranger = Cluster::new().identity_of(&web);
    if let Ok(channel) = dial_trusting(&address, cluster.identity_of(&web), stranger).await {
        assert!(ask(channel, "sidecar~web-1.shop", "web.shop").await.is_err(), "nothing comes after the handshake");
    }
    let page = cluster.telemetry.metrics.encode().unwrap();
    assert!(page.contains("eastway_sidecar_pushes_total{kind=\"cds\"} 1"), "{page}");
    assert!(page.contains("reason=\"sidecar\""), "{page}");
}

/// Whether the other side ends this connection before it would for want of a handshake, 5 s.
async fn is_cut(mut stream: TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_secs(4), stream.read(&mut [0])).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

/// Who only connects holds half of the port, and the others go on.
#[tokio::test]
async fn i8_one_address_leaves_room_for_others() {
    let cluster = Cluster::new();
    let address = serve_with(&cluster, ConnectionLimits::shared(4)).await;
    let connect = async || {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
        socket.connect(address.to_string().parse().unwrap()).await.unwrap()
    };
    let greedy = [connect().await, connect().await];
    assert!(is_cut(connect().await).await, "one address has more than half");
    let web = SpiffeId::workload("a.example", "shop", "web").unwrap();
    let channel = dial(&address, cluster.identity_of(&web)).await.unwrap();
    assert_eq!(ask(channel, "sidecar~web-1.shop", "web.shop").await.unwrap().resources.len(), 1);
    let page = cluster.telemetry.metrics.encode().unwrap();
    assert!(page.contains("eastway_refused_total{peer=\"\",reason=\"overload\"} 1"), "{page}");
    drop(greedy);
}

/// Keys are made where they are used, so the gateway has none to give away: who asks for another's secret, or for its
/// own, is told what is told of a name that never was.
#[tokio::test]
async fn x3_no_name_gets_a_key() {
    let cluster = Cluster::new();
    let address = serve(&cluster).await;
    let web = SpiffeId::workload("a.example", "shop", "web").unwrap();
    let channel = dial(&address, cluster.identity_of(&web)).await.unwrap();
    let bank = "spiffe://a.example/ns/bank/sa/web";
    let gateway = Cluster::id("eastway-gateway");
    let names = ["workload", web.as_str(), bank, gateway.as_str(), "default", "never-was"];
    let response = ask_for(channel, "sidecar~web-1.shop", "web.shop", Kind::Secret, &names).await.unwrap();
    assert!(response.resources.is_empty(), "nothing has such a name: {:?}", response.resources);
    let mut absent: Vec<&str> = response.removed_resources.iter().map(AsRef::as_ref).collect();
    absent.sort_unstable();
    let mut asked = names;
    asked.sort_unstable();
    assert_eq!(absent, asked, "and all are absent alike");
}
