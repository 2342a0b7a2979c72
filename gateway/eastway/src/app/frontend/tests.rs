//! Imports in Kubernetes: addresses come from the controller, connections arrive at ports of the gateway.

use std::net::UdpSocket;

use eastway_dns::{DnsConfig, Limits};
use eastway_model::rules::{NameFilter, PeerRules, Rules};
use eastway_model::store::Writer;
use eastway_model::{Allocation, Allocations, Change, PeerChange, PortNumber, ServicePort, ServiceRecord, UnixMillis};

use tokio_util::task::TaskTracker;

use super::*;
use crate::proxy::copy;
use crate::proxy::dial::DialRules;
use crate::proxy::vip::VipLimits;
use crate::router::Router;
use crate::telemetry::AccessMode;

const DEADLINE: Duration = Duration::from_secs(10);

/// Response code of the A query for a name, and how many answers there are.
fn ask(server: SocketAddr, name: &str) -> (u8, u8) {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.send_to(&query, server).unwrap();
    let mut answer = [0; 512];
    socket.recv(&mut answer).unwrap();
    (answer[3] & 15, answer[7])
}

#[tokio::test(flavor = "multi_thread")]
async fn i5_in_kubernetes_an_import_is_named_once_the_controller_gave_it_an_address() {
    let (mut writer, reader) = Writer::new(ClusterName::parse("a").unwrap());
    let peer = ClusterName::parse("b").unwrap();
    let rules =
        PeerRules { import: NameFilter::everything(), ..PeerRules::new(peer.clone(), "b.example", UnixMillis(1)) };
    writer.await_registries([]);
    let key = ServiceKey::parse("shop", "web").unwrap();
    let own_name = "there.shop.example";
    let names = vec![NameRule { fqdn: own_name.into(), service: key.clone(), cluster: Some(peer.clone()) }];
    writer.set_rules(Arc::new(Rules { peers: [(peer.clone(), Arc::new(rules))].into(), names, ..Rules::default() }));
    let number = PortNumber::new(80).unwrap();
    let port = ServicePort { name: None, number, protocol: Protocol::Tcp, app_protocol: None };
    let record = Arc::new(ServiceRecord::new(key.clone(), vec![port]));
    writer.apply([Change::Peer { cluster: peer, change: PeerChange::Replace(vec![record]) }], UnixMillis(1));

    let telemetry = Telemetry::new(AccessMode::Off);
    let never = copy::Limits { idle: Duration::ZERO, half_closed: Duration::ZERO };
    let router = Router::new(reader.clone(), DialRules::default(), never, telemetry.clone());
    let metrics = telemetry.metrics.clone();
    let stop = CancellationToken::new();
    let limits = VipLimits { connections: 8, listeners: 8 };
    let listeners = Listeners::new(Arc::new(router), limits, TaskTracker::new(), stop.clone());
    let zone = ZoneStore::new([Fqdn::parse("shop.example").unwrap()]).unwrap();
    let config = DnsConfig { listen: vec!["127.0.0.1:0".parse().unwrap()], limits: Limits::default() };
    let dns = eastway_dns::Server::bind(&config, zone.clone()).unwrap();
    let server = dns.local_addrs()[0];
    let dns = tokio::spawn(dns.run(stop.clone()));
    let state = tempfile::tempdir().unwrap();
    let (given, latest) = watch::channel(None);
    let addresses = Addresses::of_controller(latest, state.path().to_owned());
    let outputs = Outputs { view: watch::Sender::default(), subscriptions: watch::Sender::default() };
    let mut view = outputs.view.subscribe();
    let (_shares, wanted) = watch::channel(false);
    let frontend =
        tokio::spawn(Frontend::new(addresses, listeners, zone, telemetry, outputs, wanted).run(reader, stop.clone()));

    let waiting = view.wait_for(|view| view.exhausted.get(&key) == Some(&Shortage::Waiting));
    drop(tokio::time::timeout(DEADLINE, waiting).await.unwrap().unwrap());
    let name = "web.shop.svc.clusterset.local";
    assert!(metrics.encode().unwrap().contains("\neastway_vips 0\n"), "none has an address");
    assert_eq!(ask(server, name), (2, 0), "SERVFAIL: it may have an address");
    assert_eq!(ask(server, "api.shop.svc.clusterset.local"), (3, 0), "NXDOMAIN: it does not exist");
    given.send_replace(Some(Arc::default()));
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while ask(server, name) != (3, 0) {
        assert!(tokio::time::Instant::now() < deadline, "NXDOMAIN: the controller has not made it yet");
        tokio::task::yield_now().await;
    }

    // Ports that were free a moment ago.
    let free = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let [port, port_of_name] = free.map(|listener| listener.local_addr().unwrap().port());
    let address: IpAddr = [10, 96, 0, 7].into();
    let allocation =
        |address, port| Allocation { addresses: vec![address], ports: [((Protocol::Tcp, number), port)].into() };
    let mut all = Allocations::new();
    all.entry(key.clone()).or_default().service = Some(allocation(address, port));
    given.send_replace(Some(Arc::new(all.clone())));
    let has = view.wait_for(|view| view.vips.get(&key).is_some_and(|vips| *vips == [address]));
    let now = tokio::time::timeout(DEADLINE, has).await.unwrap().unwrap().clone();
    assert!(now.failed.is_empty() && now.listeners == 1, "{now:?}");
    assert!(metrics.encode().unwrap().contains("\neastway_vips 1\n"));
    assert_eq!((ask(server, name), ask(server, own_name)), ((0, 1), (3, 0)), "the name waits for an address");
    all.entry(key.clone()).or_default().names.insert(own_name.into(), allocation([10, 96, 0, 8].into(), port_of_name));
    given.send_replace(Some(Arc::new(all)));
    let has = view.wait_for(|view| view.exhausted.is_empty());
    let now = tokio::time::timeout(DEADLINE, has).await.unwrap().unwrap().clone();
    assert!(now.failed.is_empty() && now.listeners == 2, "{now:?}");
    assert_eq!((ask(server, name), ask(server, own_name)), ((0, 1), (0, 1)));
    // Nothing is behind it here: it is accepted and reset.
    let refused = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
    assert!(!refused.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused));

    stop.cancel();
    frontend.await.unwrap();
    dns.await.unwrap();
}
