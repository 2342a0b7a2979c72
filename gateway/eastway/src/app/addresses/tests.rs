use std::collections::BTreeMap;

use super::*;

fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

fn allocation(address: &str, port: u16) -> Allocation {
    let number = PortNumber::new(80).unwrap();
    Allocation {
        addresses: vec![address.parse().unwrap()],
        ports: BTreeMap::from([((Protocol::Tcp, number), port), ((Protocol::Udp, number), port)]),
    }
}

#[test]
fn the_controllers_addresses_are_read_and_outlive_a_restart() {
    let state = tempfile::tempdir().unwrap();
    let (sender, latest) = watch::channel(None);
    let mut addresses = Addresses::of_controller(latest.clone(), state.path().to_owned());
    let (web, db) = (key("shop/web"), key("shop/db"));
    assert_eq!(addresses.grant(&web, &Purpose::Service), Grant::Waiting, "nothing was read yet");
    assert!(addresses.take_changes().is_empty());

    let mut all = Allocations::new();
    all.entry(web.clone()).or_default().service = Some(allocation("10.96.0.7", 20_000));
    let (gke, id) = (ClusterName::parse("gke").unwrap(), EndpointId::parse("db-0-x").unwrap());
    all.entry(db.clone()).or_default().endpoints.insert((gke.clone(), id.clone()), allocation("10.96.0.8", 20_001));
    let stars: Arc<str> = "stars.shop.example".into();
    all.entry(web.clone()).or_default().names.insert(stars.clone(), allocation("10.96.0.10", 20_003));
    // An address without a port leads nowhere yet.
    let half = Allocation { ports: BTreeMap::new(), ..allocation("10.96.0.9", 1) };
    all.entry(key("shop/new")).or_default().service = Some(half);
    sender.send_replace(Some(Arc::new(all)));
    assert_eq!(addresses.take_changes().len(), 3);
    let (name, endpoint) = (Purpose::Name(stars, gke.clone()), Purpose::Endpoint(gke, id));
    for addresses in [&mut addresses, &mut Addresses::of_controller(latest, state.path().to_owned())] {
        let Grant::Given(given) = addresses.grant(&web, &Purpose::Service) else { panic!() };
        assert_eq!(given.addresses, ["10.96.0.7".parse::<IpAddr>().unwrap()]);
        let sockets = given.sockets(Protocol::Tcp, PortNumber::new(80).unwrap());
        assert!(sockets.len() == 1 && sockets[0].port() == 20_000 && sockets[0].ip().is_unspecified(), "{sockets:?}");
        assert!(given.sockets(Protocol::Tcp, PortNumber::new(81).unwrap()).is_empty());
        assert!(matches!(addresses.grant(&db, &endpoint), Grant::Given(_)));
        let Grant::Given(given) = addresses.grant(&web, &name) else { panic!() };
        assert_eq!(given.addresses, ["10.96.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(given.sockets(Protocol::Tcp, PortNumber::new(80).unwrap())[0].port(), 20_003);
        assert_eq!(addresses.grant(&db, &name), Grant::Waiting, "it leads to another service");
        assert_eq!(addresses.grant(&db, &Purpose::Service), Grant::Waiting);
        assert_eq!(addresses.grant(&key("shop/new"), &Purpose::Service), Grant::Waiting);
    }
    sender.send_replace(Some(Arc::default()));
    assert_eq!(addresses.take_changes().len(), 3);
    assert_eq!(addresses.grant(&web, &Purpose::Service), Grant::Waiting);
}

#[test]
fn f20_a_damaged_file_is_none() {
    let state = tempfile::tempdir().unwrap();
    std::fs::write(state.path().join("allocations.json"), "{\"version\":1,\"services\":[{").unwrap();
    assert_eq!(kept::load(state.path()), None);
    std::fs::write(state.path().join("allocations.json"), "{\"version\":2,\"services\":[]}").unwrap();
    assert_eq!(kept::load(state.path()), None);
}

#[tokio::test]
async fn one_socket_takes_connections_of_both_families() {
    let listener = crate::proxy::vip::bind(SocketAddr::new(any_address(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (client, accepted) = tokio::join!(tokio::net::TcpStream::connect(("127.0.0.1", port)), listener.accept());
    client.unwrap();
    assert_eq!(accepted.unwrap().1.ip().to_canonical(), IpAddr::from([127, 0, 0, 1]));
}
