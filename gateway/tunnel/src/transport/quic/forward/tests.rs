use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::task::Waker;

use quinn::ConnectionIdGenerator as _;

use super::*;
use crate::config::{LinkKeys, ReplicaId};
use crate::replicas::SiblingStatus;
use crate::transport::quic::cid::KeyedConnectionIds;

const CLIENT: &str = "192.0.2.7:50000";

/// Receives what it is told to, and keeps what it is to send.
#[derive(Debug, Default)]
struct Wire {
    incoming: Mutex<Vec<(SocketAddr, Vec<u8>, usize)>>,
    sent: Mutex<Vec<(SocketAddr, Vec<u8>)>>,
}

impl AsyncUdpSocket for Wire {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        unreachable!("nobody waits here")
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.sent.lock().unwrap().push((transmit.destination, transmit.contents.to_vec()));
        Ok(())
    }

    fn poll_recv(
        &self,
        _: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut incoming = self.incoming.lock().unwrap();
        let count = incoming.len().min(bufs.len());
        for ((from, bytes, stride), (buf, meta)) in incoming.drain(..count).zip(bufs.iter_mut().zip(meta)) {
            buf[..bytes.len()].copy_from_slice(&bytes);
            (meta.addr, meta.len, meta.stride) = (from, bytes.len(), stride);
        }
        if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok((Ipv4Addr::LOCALHOST, 1).into())
    }
}

struct Replica {
    wire: Arc<Wire>,
    socket: ForwardingSocket,
    network: Arc<Network>,
    ids: KeyedConnectionIds,
    status: SiblingStatus,
}

fn replica(number: u8) -> Replica {
    let keys = LinkKeys { reset: [0; 64], connection_id: [1; 64], token: [0; 64] };
    let (own, key) = (ReplicaId([number; 16]), ConnectionIdKey::new(&keys.connection_id, None));
    let network = Arc::new(Network::bind((Ipv4Addr::LOCALHOST, 0).into(), own, &keys).unwrap());
    let wire = Arc::new(Wire::default());
    let socket = ForwardingSocket::new(Arc::clone(&wire) as _, Arc::clone(&network), key.clone(), own.short());
    let status = SiblingStatus { replica: own, address: network.local_addr(), draining: false };
    Replica { wire, socket, network, ids: KeyedConnectionIds::new(key, own, Arc::default(), None), status }
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

impl Replica {
    /// A packet of a link of this replica.
    fn packet(&mut self, fill: u8, length: usize) -> Vec<u8> {
        let mut packet = [&[0x40][..], &self.ids.generate_cid()].concat();
        packet.resize(length, fill);
        packet
    }

    fn comes(&self, from: &str, packets: &[&[u8]], stride: usize) {
        self.wire.incoming.lock().unwrap().push((from.parse().unwrap(), packets.concat(), stride));
    }

    /// What the endpoint would see: source and bytes of each train.
    fn received(&self) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut memory = vec![[0_u8; 8_192]; 8];
        let mut bufs: Vec<_> = memory.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
        let mut meta = [RecvMeta::default(); 8];
        match self.socket.poll_recv(&mut Context::from_waker(Waker::noop()), &mut bufs, &mut meta) {
            Poll::Ready(count) => {
                let trains = bufs.iter().zip(&meta).take(count.unwrap());
                trains.map(|(buf, meta)| (meta.addr, buf[..meta.len].to_vec())).collect()
            }
            Poll::Pending => Vec::new(),
        }
    }

    fn counted(&self) -> crate::ForwardingCounters {
        self.network.counters()
    }
}

#[tokio::test]
async fn of_a_train_only_the_packets_of_others_are_taken_out() {
    let (mut one, mut two) = siblings().await;
    let mine = [one.packet(1, 100), one.packet(2, 100)];
    let (theirs, last) = (two.packet(3, 100), two.packet(4, 60));
    one.comes(CLIENT, &[&mine[0], &theirs, &mine[1], &last], 100);
    one.comes(CLIENT, &[&mine[0], &mine[1]], 100);
    one.comes(CLIENT, &[&theirs], 100);
    let client = CLIENT.parse().unwrap();
    let own = mine.concat();
    assert_eq!(one.received(), [(client, own.clone()), (client, own), (client, Vec::new())]);
    for _ in 0..3 {
        two.network.receive().await.unwrap();
    }
    let handed = two.received();
    assert_eq!(handed.iter().map(|(_, packet)| packet.clone()).collect::<Vec<_>>(), [theirs.clone(), last, theirs]);
    assert!(handed.iter().all(|(path, _)| is_path(path) && two.network.client(*path) == Some(client)));
    assert_eq!((one.counted().packets["to_owner"], two.counted().packets["from_sibling"]), (3, 3));
}

#[tokio::test]
async fn an_answer_leaves_where_the_client_sent_to() {
    let (one, mut two) = siblings().await;
    let packet = two.packet(0, 100);
    one.comes(CLIENT, &[&packet], 100);
    one.received();
    two.network.receive().await.unwrap();
    let (path, _) = two.received()[0];
    let train = Transmit { destination: path, ecn: None, contents: &[9; 250], segment_size: Some(100), src_ip: None };
    two.socket.try_send(&train).unwrap();
    assert!(two.wire.sent.lock().unwrap().is_empty(), "not from here");
    for length in [100, 100, 50] {
        one.network.receive().await.unwrap();
        assert_eq!(one.wire.sent.lock().unwrap().pop().unwrap(), (CLIENT.parse().unwrap(), vec![9; length]));
    }
    two.network.set_siblings(&[]);
    two.socket.try_send(&train).unwrap();
    assert_eq!(two.counted().dropped["sibling_gone"], 3);
}

#[tokio::test]
async fn what_is_nobodys_stays_and_what_poses_as_a_path_goes() {
    let (mut one, _two) = siblings().await;
    let stranger = replica(9).packet(0, 100);
    one.comes(CLIENT, &[&stranger], 100);
    one.comes(CLIENT, &[b"x"], 1);
    let own = one.packet(0, 100);
    one.comes("[100::7]:50000", &[&own], 100);
    let lengths: Vec<_> = one.received().iter().map(|(_, bytes)| bytes.len()).collect();
    assert_eq!(lengths, [100, 1, 0]);
    assert_eq!(one.counted().dropped["spoofed_path"], 1);
    assert!(one.counted().packets.is_empty());
}

#[tokio::test]
async fn packets_that_wait_leave_room_for_those_from_outside() {
    let (one, mut two) = siblings().await;
    for number in 0..8 {
        one.comes(CLIENT, &[&two.packet(number, 100)], 100);
        one.received();
        two.network.receive().await.unwrap();
    }
    let direct = two.packet(0, 100);
    two.comes(CLIENT, &[&direct], 100);
    let trains = two.received();
    assert_eq!((trains.len(), is_path(&trains[3].0), is_path(&trains[4].0)), (5, true, false));
    assert_eq!(two.received().len(), 4);
    assert!(two.received().is_empty());
}
