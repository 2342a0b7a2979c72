//! Gateways of the first release: they know QUIC and one connection for a link, no lanes, no datagrams and no TCP (F29).

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use eastway_identity::{IdentityStore, system_clock, tls};
use eastway_proto::control::v1::control_message::Body;
use eastway_proto::control::v1::{ControlMessage, HeartbeatAck};
use eastway_tunnel::control::codec;
use eastway_tunnel::header::{Decoded, decode};
use eastway_tunnel::{ResetCode, TransportPolicy};
use quinn::{Connection, Endpoint, RecvStream, SendStream, ServerConfig};
use quinn_proto::crypto::rustls::QuicServerConfig;
use tokio::sync::watch;

use crate::raw::{RawPeer, hello, polite, send_message};
use crate::support::{Cloud, Gateway, any_port, header, pair, soon, until};

/// A gateway of the first release that listens. It serves every stream as an echo.
struct Old {
    address: SocketAddr,
    seen: watch::Receiver<Seen>,
    _endpoint: Endpoint,
}

/// What it has seen so far.
#[derive(Default)]
struct Seen {
    connections: usize,
    heartbeats: usize,
    /// What was asked for by streams.
    asked: Vec<String>,
}

impl Old {
    fn listen(cloud: &Cloud) -> Self {
        let identity = IdentityStore::new(cloud.identity());
        let tls = tls::server_config(identity, Arc::clone(&cloud.trust), system_clock()).unwrap();
        let tls = QuicServerConfig::try_from(rustls::ServerConfig::clone(&tls)).unwrap();
        let mut config = ServerConfig::with_crypto(Arc::new(tls));
        let mut transport = polite();
        transport.datagram_receive_buffer_size(None);
        config.transport_config(Arc::new(transport));
        let endpoint = Endpoint::server(config, any_port()).unwrap();
        let (tell, seen) = watch::channel(Seen::default());
        let (name, address) = (cloud.name.to_string(), endpoint.local_addr().unwrap());
        let accepting = endpoint.clone();
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let Ok(connection) = incoming.await else { continue };
                tell.send_modify(|seen| seen.connections += 1);
                tokio::spawn(serve(connection, name.clone(), tell.clone()));
            }
        });
        Self { address, seen, _endpoint: endpoint }
    }

    fn connections(&self) -> usize {
        self.seen.borrow().connections
    }

    fn heartbeats(&self) -> usize {
        self.seen.borrow().heartbeats
    }
}

async fn serve(connection: Connection, name: String, tell: watch::Sender<Seen>) {
    let Ok((mut send, recv)) = connection.accept_bi().await else { return };
    send_message(&mut send, hello(&name)).await;
    tokio::spawn(heartbeats(send, recv, tell.clone()));
    while let Ok((send, recv)) = connection.accept_bi().await {
        tokio::spawn(echo(send, recv, tell.clone()));
    }
}

/// Acknowledges what comes on the control stream, until it ends.
async fn heartbeats(mut send: SendStream, mut recv: RecvStream, tell: watch::Sender<Seen>) {
    let mut buffer = BytesMut::new();
    while let Ok(Some(chunk)) = recv.read_chunk(usize::MAX, true).await {
        buffer.extend_from_slice(&chunk.bytes);
        while let Some(message) = codec::decode(&mut buffer).unwrap() {
            let Some(Body::Heartbeat(heartbeat)) = message.body else { continue };
            tell.send_modify(|seen| seen.heartbeats += 1);
            let ack = HeartbeatAck { sequence: heartbeat.sequence, wall_clock_ms: 0 };
            let ack = codec::encode(&ControlMessage { body: Some(Body::HeartbeatAck(ack)) });
            if send.write_chunk(ack).await.is_err() {
                return;
            }
        }
    }
}

async fn echo(mut send: SendStream, mut recv: RecvStream, tell: watch::Sender<Seen>) {
    let mut buffer = BytesMut::new();
    let used = loop {
        match decode(&buffer) {
            Ok(Decoded::Complete { header, used }) => {
                tell.send_modify(|seen| seen.asked.push(format!("{header:?}")));
                break used;
            }
            Ok(Decoded::Incomplete(_)) => {}
            Err(error) => panic!("it cannot read {buffer:?}: {error}"),
        }
        let Ok(Some(chunk)) = recv.read_chunk(usize::MAX, true).await else { return };
        buffer.extend_from_slice(&chunk.bytes);
    };
    // The status byte, then what came with the header.
    let mut next = Some([&[1][..], buffer.get(used..).unwrap_or_default()].concat().into());
    while let Some(chunk) = next {
        if send.write_chunk(chunk).await.is_err() {
            return;
        }
        next = recv.read_chunk(usize::MAX, true).await.ok().flatten().map(|chunk| chunk.bytes);
    }
    send.finish().ok();
}

/// A gateway of today with several lanes, which takes whatever transport works.
fn today(mut cloud: Cloud) -> Gateway {
    cloud.limits.workers = Some(3);
    let mut gateway = cloud.gateway();
    gateway.policy = TransportPolicy::Auto;
    gateway
}

#[tokio::test]
async fn f29_a_gateway_that_knows_neither_lanes_nor_tcp_is_dialled_as_ever() {
    let (a, b) = pair();
    let old = Old::listen(&b);
    let a = today(a);
    a.knows(&[("b", &[old.address])]);
    let link = a.link_to("b").await;
    until("heartbeats are acknowledged", || a.is_up("b").then_some(())).await;
    for number in 0..8_u8 {
        let mut stream = link.open(&header("echo")).await.unwrap();
        soon("an answer", stream.accepted()).await.unwrap();
        stream.send.write(Bytes::copy_from_slice(&[number; 4])).await.unwrap();
        assert_eq!(soon("echo", stream.recv.read()).await.unwrap().unwrap(), [number; 4][..]);
        stream.send.finish();
        assert_eq!(soon("the end", stream.recv.read()).await, Ok(None));
    }
    // Three more heartbeats are longer than a lane would take to come, and to be tried again.
    let enough = old.heartbeats() + 3;
    until("three more heartbeats", || (old.heartbeats() >= enough).then_some(())).await;
    assert_eq!(old.connections(), 1, "one connection, and nothing else is tried");
    let status = a.tunnel.status();
    // Where UDP answers late TCP is tried as well, and nobody listens there.
    let error = status[0].last_error.as_deref();
    assert!(status[0].links.len() == 1 && error.is_none_or(|text| text.contains("no connection to")), "{status:?}");
    assert_eq!(old.seen.borrow().asked.len(), 8);
}

#[tokio::test]
async fn f29_a_gateway_that_knows_neither_lanes_nor_tcp_may_dial_as_ever() {
    let (a, b) = pair();
    let today = today(b);
    today.knows(&[("a", &[])]);
    let raw = RawPeer::polite(&a, "b", today.tunnel.local_addr()).await;
    let link = today.link_to("a").await;
    until("its heartbeats count", || today.is_up("a").then_some(())).await;
    // Either side opens streams.
    let (tell, seen) = watch::channel(Seen::default());
    let connection = raw.connection.clone();
    tokio::spawn(async move {
        while let Ok((send, recv)) = connection.accept_bi().await {
            tokio::spawn(echo(send, recv, tell.clone()));
        }
    });
    for _ in 0..4 {
        let mut stream = link.open(&header("echo")).await.unwrap();
        soon("an answer", stream.accepted()).await.unwrap();
        stream.send.reset(ResetCode::Cancelled);
    }
    assert_eq!(seen.borrow().asked.len(), 4);
    for _ in 0..4 {
        let (mut send, mut recv) = raw.connection.open_bi().await.unwrap();
        send.write_all(&header("echo").encode().unwrap()).await.unwrap();
        send.write_all(b"ping").await.unwrap();
        let mut said = [0; 5];
        soon("an answer", recv.read_exact(&mut said)).await.unwrap();
        assert_eq!(&said, b"\x01ping");
    }
    assert_eq!(today.tunnel.status()[0].links.len(), 1);
}
