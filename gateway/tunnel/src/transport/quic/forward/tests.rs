use std::net::{Ipv4Addr, SocketAddr};

use quinn_proto::ConnectionIdGenerator as _;
use tokio::net::UdpSocket;
use tokio::runtime::Handle;

use super::*;
use crate::config::{LinkKeys, ReplicaId};
use crate::replicas::SiblingStatus;
use crate::transport::quic::cid::KeyedConnectionIds;

struct Replica {
    forwarding: Forwarding,
    network: Arc<Network>,
    ids: KeyedConnectionIds,
    status: SiblingStatus,
}

fn replica(number: u8) -> Replica {
    let keys = LinkKeys { reset: [0; 64], connection_id: [1; 64], token: [0; 64] };
    let (own, key) = (ReplicaId([number; 16]), ConnectionIdKey::new(&keys.connection_id, None));
    let network = Arc::new(Network::bind((Ipv4Addr::LOCALHOST, 0).into(), own, &keys).unwrap());
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let socket = Arc::new(Udp::new(socket, &Handle::current()).unwrap());
    let forwarding = Forwarding::new(socket, Arc::clone(&network), key.clone(), own.short());
    let status = SiblingStatus { replica: own, address: network.local_addr(), draining: false };
    Replica { forwarding, network, ids: KeyedConnectionIds::new(key, own, Arc::default(), None), status }
}

async fn siblings() -> (Replica, Replica) {
    let (one, two) = (replica(1), replica(2));
    one.network.set_siblings(std::slice::from_ref(&two.status));
    two.network.set_siblings(std::slice::from_ref(&one.status));
    for network in [&one.network, &two.network] {
        network.writable().await;
    }
    (one, two)
}

async fn client() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

impl Replica {
    /// A packet of a link of this replica.
    fn packet(&mut self, fill: u8, length: usize) -> Vec<u8> {
        let mut packet = [&[0x40][..], &self.ids.generate_cid()].concat();
        packet.resize(length, fill);
        packet
    }

    /// What the endpoint sees of a train.
    fn comes(&self, from: SocketAddr, packets: &[&[u8]], stride: usize) -> Vec<u8> {
        let mut train = packets.concat();
        let mut meta = RecvMeta { addr: from, len: train.len(), stride, ..RecvMeta::default() };
        meta.dst_ip = None;
        self.forwarding.divert(&self.forwarding.view(), &mut train, &mut meta);
        train[..meta.len].to_vec()
    }

    fn counted(&self) -> crate::ForwardingCounters {
        self.network.counters()
    }
}

#[tokio::test]
async fn of_a_train_only_the_packets_of_others_are_taken_out() {
    let (mut one, mut two) = siblings().await;
    let (_socket, client) = client().await;
    let mine = [one.packet(1, 100), one.packet(2, 100)];
    let (theirs, last) = (two.packet(3, 100), two.packet(4, 60));
    let own = mine.concat();
    assert_eq!(one.comes(client, &[&mine[0], &theirs, &mine[1], &last], 100), own);
    assert_eq!(one.comes(client, &[&mine[0], &mine[1]], 100), own);
    assert_eq!(one.comes(client, &[&theirs], 100), Vec::<u8>::new());
    for packet in [&theirs, &last, &theirs] {
        two.network.receive().await.unwrap();
        let handed = two.network.take().unwrap();
        assert_eq!(handed.packet, *packet);
        assert!(is_path(&handed.path) && two.network.client(handed.path) == Some(client));
    }
    assert_eq!((one.counted().packets["to_owner"], two.counted().packets["from_sibling"]), (3, 3));
}

#[tokio::test]
async fn an_answer_leaves_where_the_client_sent_to() {
    let (one, mut two) = siblings().await;
    let (socket, client) = client().await;
    let packet = two.packet(0, 100);
    one.comes(client, &[&packet], 100);
    two.network.receive().await.unwrap();
    let path = two.network.take().unwrap().path;
    let train = Transmit { destination: path, ecn: None, size: 250, segment_size: Some(100), src_ip: None };
    two.forwarding.answer(&train, &[9; 250]);
    let mut buffer = [0; 2_000];
    for length in [100, 100, 50] {
        one.network.receive().await.unwrap();
        let (received, _) = socket.recv_from(&mut buffer).await.unwrap();
        assert_eq!(buffer[..received], vec![9; length]);
    }
    two.network.set_siblings(&[]);
    two.forwarding.answer(&train, &[9; 250]);
    assert_eq!(two.counted().dropped["sibling_gone"], 3);
}

#[tokio::test]
async fn what_is_nobodys_stays_and_what_poses_as_a_path_goes() {
    let (mut one, _two) = siblings().await;
    let (_socket, client) = client().await;
    let (stranger, own) = (replica(9).packet(0, 100), one.packet(0, 100));
    assert_eq!(one.comes(client, &[&stranger], 100), stranger);
    assert_eq!(one.comes(client, &[b"x"], 1), b"x");
    assert_eq!(one.comes("[100::7]:50000".parse().unwrap(), &[&own], 100), Vec::<u8>::new());
    assert_eq!(one.counted().dropped["spoofed_path"], 1);
    assert!(one.counted().packets.is_empty());
}
