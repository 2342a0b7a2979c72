//! The application by itself, on loopback, with a name server that knows only it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;

use super::*;

fn address(service: Service) -> Ipv4Addr {
    Ipv4Addr::new(127, 200, 1, service as u8 + 1)
}

/// Answers every name of a service with the address of that service.
async fn name_server(socket: UdpSocket) {
    let mut buffer = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let first = usize::from(buffer[12]);
        let label = String::from_utf8_lossy(&buffer[13..13 + first]).into_owned();
        let services = [Service::Productpage, Service::Details, Service::Reviews, Service::Ratings, Service::Kiosk];
        let found = services.into_iter().find(|service| service.name() == label);
        let end = 12 + buffer[12..length].iter().position(|byte| *byte == 0).unwrap() + 5;
        let mut reply = buffer[..end].to_vec();
        reply[2] = 0x84;
        reply[10..12].copy_from_slice(&[0, 0]);
        if let Some(service) = found {
            reply[7] = 1;
            reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
            reply.extend_from_slice(&address(service).octets());
        } else {
            reply[3] = 3;
        }
        socket.send_to(&reply, from).await.unwrap();
    }
}

async fn application(without: Option<Service>) -> (JoinSet<()>, Client) {
    let mut tasks = JoinSet::new();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let dns = socket.local_addr().unwrap();
    tasks.spawn(name_server(socket));
    for (service, version, cloud) in [
        (Service::Productpage, 1, "onprem"),
        (Service::Details, 1, "onprem"),
        (Service::Reviews, 3, "gke"),
        (Service::Ratings, 1, "edge"),
        (Service::Kiosk, 1, "edge"),
    ] {
        if Some(service) == without {
            continue;
        }
        let listen = SocketAddr::from((address(service), PORT));
        let args = Args { service, version: Version(version), cloud: cloud.into(), listen, dns };
        tasks.spawn(async move { server::serve(args).await.unwrap() });
    }
    let client = Client::new(dns, IpAddr::V4(Ipv4Addr::new(127, 200, 1, 99)));
    for service in [Service::Productpage, Service::Details, Service::Reviews, Service::Ratings, Service::Kiosk] {
        let address = SocketAddr::from((address(service), PORT));
        while Some(service) != without && TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    (tasks, client)
}

/// One test: the addresses are fixed, so only one application can run at a time.
#[tokio::test]
async fn answers_carry_the_whole_chain() {
    let (tasks, client) = application(None).await;
    let call = client.call(Service::Kiosk).await;
    let answer = call.answer().unwrap_or_else(|| panic!("{call:?}"));
    let chain: Vec<String> =
        answer.chain().iter().map(|hop| format!("{} {} {}", hop.service.name(), hop.version, hop.cloud)).collect();
    let expected = ["kiosk v1 edge", "productpage v1 onprem", "details v1 onprem", "reviews v3 gke", "ratings v1 edge"];
    assert_eq!(chain, expected);
    assert!(answer.crosses_clouds());
    assert_eq!(call.address, Some(IpAddr::V4(address(Service::Kiosk))));
    assert!(answer.find(Service::Ratings).is_some_and(|ratings| ratings.content["Reviewer1"] == 5));

    let page = browse().await;
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    assert!(page.contains("class=red>★★★★★<"), "{page}");
    assert!(page.contains("<td>ratings</td><td>v1</td><td><span class=cloud>edge</span>"), "{page}");

    // What a sidecar says of the caller, and what the service was told to do.
    let said = (CALLER, "Hash=1;URI=spiffe://onprem.example/ns/bookinfo/sa/page".to_owned());
    let call = client.clone().saying(Some(said)).call(Service::Details).await;
    let caller = call.answer().and_then(|answer| answer.caller.as_deref());
    assert_eq!(caller, Some("spiffe://onprem.example/ns/bookinfo/sa/page"));
    assert!(answer.chain().len() == 5 && answer.caller.is_none());
    let details = SocketAddr::from((address(Service::Details), PORT));
    let _not_an_answer = client.get(details, "details", &format!("{MISBEHAVE}500")).await;
    let call = client.call(Service::Details).await;
    assert!(call.error().is_some_and(|error| error.contains("status 500")), "{call:?}");
    drop(tasks);

    // What is missing is an error of whoever asked for it, never a made-up answer.
    let (_tasks, client) = application(Some(Service::Ratings)).await;
    let call = client.call(Service::Kiosk).await;
    let Outcome::Error(error) = &call.outcome else { panic!("{call:?}") };
    assert!(error.contains("status 502") && error.contains("ratings.bookinfo.svc.clusterset.local"), "{error}");
    let page = browse().await;
    assert!(page.contains("class=error>reviews: status 502"), "{page}");
}

async fn browse() -> String {
    let mut stream = TcpStream::connect((address(Service::Productpage), PORT)).await.unwrap();
    let request = "GET / HTTP/1.1\r\nhost: x\r\naccept: text/html\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    page
}
