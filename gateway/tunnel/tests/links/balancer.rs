//! A load balancer in front of the replicas of a gateway: it knows flows by their addresses and nothing else,
//! and gives them to other replicas when it is told to. As with conntrack, an answer passes only if it comes
//! from the replica that has the flow.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};

use crate::support::any_port;

#[derive(Default)]
struct State {
    backends: Vec<SocketAddr>,
    next: usize,
    /// By client.
    flows: HashMap<SocketAddr, Flow>,
    /// A new flow is moved after its first packet.
    fickle: bool,
    /// Replicas by the 8 bytes of their server ids: packets with such a connection id go there, whatever flow they are of.
    servers: HashMap<[u8; 8], SocketAddr>,
    /// Answers from a replica that does not have the flow.
    strays: u64,
}

struct Flow {
    backend: SocketAddr,
    packets: u64,
    /// As the replicas see the client.
    outside: Arc<UdpSocket>,
    task: AbortHandle,
}

impl State {
    /// Where a packet goes by its connection id (QUIC-LB, plain).
    fn by_id(&self, packet: &[u8]) -> Option<SocketAddr> {
        let id = if packet.first()? & 0x80 == 0 { packet.get(1..)? } else { packet.get(6..)? };
        self.servers.get(id.get(1..)?.first_chunk()?).copied()
    }

    fn next(&mut self) -> Option<SocketAddr> {
        self.next += 1;
        self.backends.get(self.next % self.backends.len().max(1)).copied()
    }
}

pub(crate) struct Balancer {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

impl Balancer {
    /// New flows go to `backends` in turn.
    pub(crate) async fn new(backends: &[SocketAddr]) -> Self {
        let inside = Arc::new(UdpSocket::bind(any_port()).await.unwrap());
        let address = inside.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { backends: backends.to_vec(), ..State::default() }));
        let mut tasks = JoinSet::new();
        tasks.spawn(inbound(inside, Arc::clone(&state)));
        Self { address, state, _tasks: tasks }
    }

    /// New flows go to these from now on; others stay where they are.
    pub(crate) fn set_backends(&self, backends: &[SocketAddr]) {
        self.state.lock().unwrap().backends = backends.to_vec();
    }

    /// Every new flow is moved after its first packet, from now on.
    pub(crate) fn be_fickle(&self) {
        self.state.lock().unwrap().fickle = true;
    }

    /// Reads server ids from now on.
    pub(crate) fn reads(&self, servers: impl IntoIterator<Item = ([u8; 8], SocketAddr)>) {
        self.state.lock().unwrap().servers = servers.into_iter().collect();
    }

    /// Gives the flow that the replicas see coming from `seen` to `backend`.
    pub(crate) fn give(&self, seen: SocketAddr, backend: SocketAddr) {
        let mut state = self.state.lock().unwrap();
        let flow = state.flows.values_mut().find(|flow| flow.outside.local_addr().unwrap() == seen);
        flow.expect("a flow").backend = backend;
    }

    /// Gives every flow to `backend`, with a new address of its client, as by a NAT before the balancer that forgets.
    pub(crate) fn rebind(&self, backend: SocketAddr) {
        self.set_backends(&[backend]);
        self.forget();
    }

    /// Likewise, to the backends in turn.
    pub(crate) fn forget(&self) {
        let mut state = self.state.lock().unwrap();
        for (_, flow) in state.flows.drain() {
            flow.task.abort();
        }
    }

    /// Answers that were dropped because they came from a replica that does not have the flow.
    pub(crate) fn strays(&self) -> u64 {
        self.state.lock().unwrap().strays
    }
}

async fn inbound(inside: Arc<UdpSocket>, state: Arc<Mutex<State>>) {
    let mut flows = JoinSet::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((length, client)) = inside.recv_from(&mut buffer).await else { continue };
        if !state.lock().unwrap().flows.contains_key(&client) {
            let outside = Arc::new(UdpSocket::bind(any_port()).await.unwrap());
            let task = flows.spawn(outbound(Arc::clone(&inside), Arc::clone(&outside), client, Arc::clone(&state)));
            let mut state = state.lock().unwrap();
            let Some(backend) = state.next() else { continue };
            state.flows.insert(client, Flow { backend, packets: 0, outside, task });
        }
        let (outside, backend) = {
            let mut state = state.lock().unwrap();
            let next = if state.fickle { state.next() } else { None };
            let by_id = state.by_id(&buffer[..length]);
            // Forgotten meanwhile: lost.
            let Some(flow) = state.flows.get_mut(&client) else { continue };
            if let Some(next) = next.filter(|_| flow.packets == 1) {
                flow.backend = next;
            }
            if let Some(server) = by_id {
                flow.backend = server;
            }
            flow.packets += 1;
            (Arc::clone(&flow.outside), flow.backend)
        };
        // A port that nobody listens on answers with an error; the network drops it.
        outside.send_to(&buffer[..length], backend).await.ok();
    }
}

async fn outbound(inside: Arc<UdpSocket>, outside: Arc<UdpSocket>, client: SocketAddr, state: Arc<Mutex<State>>) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((length, from)) = outside.recv_from(&mut buffer).await else { continue };
        {
            let mut state = state.lock().unwrap();
            if state.flows.get(&client).is_none_or(|flow| flow.backend != from) {
                state.strays += 1;
                continue;
            }
        }
        inside.send_to(&buffer[..length], client).await.ok();
    }
}
