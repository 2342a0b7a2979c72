//! A UDP relay between a dialler and a gateway that does what networks do: lose, cut one way, change a
//! NAT's port, blackhole one flow for ever.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};

use crate::support::any_port;

/// What the relay does to datagrams.
#[derive(Default)]
pub(crate) struct Rules {
    pub(crate) drop_to_server: bool,
    pub(crate) drop_to_client: bool,
    /// Diallers whose flow is gone for good, as with stale conntrack.
    pub(crate) blackholed: HashSet<SocketAddr>,
    /// Nobody else gets anything through, from whatever port.
    pub(crate) only: Option<HashSet<SocketAddr>>,
    /// So many of the next full datagrams to the server are lost, and so many of those to the client. Packets that validate
    /// a path are always full (RFC 9000 §8.2).
    pub(crate) lose_full: [usize; 2],
    /// Share of datagrams that is lost, 0 to 1.
    pub(crate) loss: f64,
    /// Where the server is now.
    pub(crate) server: Option<SocketAddr>,
}

impl Rules {
    fn is_shut_out(&self, client: SocketAddr) -> bool {
        self.blackholed.contains(&client) || self.only.as_ref().is_some_and(|only| !only.contains(&client))
    }

    fn loses(&mut self, direction: usize, length: usize) -> bool {
        let left = &mut self.lose_full[direction];
        let lost = length >= 1_200 && *left > 0;
        *left -= usize::from(lost);
        lost || fastrand::f64() < self.loss
    }
}

/// What passed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) to_server: u64,
    pub(crate) to_client: u64,
}

#[derive(Default)]
struct State {
    rules: Rules,
    traffic: Traffic,
    flows: HashMap<SocketAddr, Flow>,
    /// Sizes of the datagrams to the server.
    sizes: Vec<usize>,
    /// Every client address that was seen.
    clients: Vec<SocketAddr>,
}

struct Flow {
    /// As the server sees the client.
    outside: Arc<UdpSocket>,
    task: AbortHandle,
}

pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

impl Relay {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let inside = Arc::new(UdpSocket::bind(any_port()).await.unwrap());
        let address = inside.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        state.lock().unwrap().rules.server = Some(server);
        let mut tasks = JoinSet::new();
        tasks.spawn(inbound(inside, Arc::clone(&state)));
        Self { address, state, _tasks: tasks }
    }

    pub(crate) fn rules(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.state.lock().unwrap().rules);
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.state.lock().unwrap().traffic
    }

    /// Sizes of the datagrams that came for the server since the last time.
    pub(crate) fn take_sizes(&self) -> Vec<usize> {
        std::mem::take(&mut self.state.lock().unwrap().sizes)
    }

    /// The addresses that diallers came from, in the order they were seen.
    pub(crate) fn clients(&self) -> Vec<SocketAddr> {
        self.state.lock().unwrap().clients.clone()
    }

    /// Every flow gets a new port towards the server, as when a NAT forgets.
    pub(crate) fn rebind(&self) {
        let flows = std::mem::take(&mut self.state.lock().unwrap().flows);
        flows.into_values().for_each(|flow| flow.task.abort());
    }
}

async fn inbound(inside: Arc<UdpSocket>, state: Arc<Mutex<State>>) {
    let mut flows = JoinSet::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((length, client)) = inside.recv_from(&mut buffer).await else { continue };
        let known = {
            let mut state = state.lock().unwrap();
            if !state.clients.contains(&client) {
                state.clients.push(client);
            }
            if state.rules.drop_to_server || state.rules.is_shut_out(client) {
                continue;
            }
            if state.rules.loses(0, length) {
                continue;
            }
            state.traffic.to_server += length as u64;
            state.sizes.push(length);
            state.flows.get(&client).map(|flow| Arc::clone(&flow.outside))
        };
        let outside = match known {
            Some(outside) => outside,
            None => {
                let outside = Arc::new(UdpSocket::bind(any_port()).await.unwrap());
                let task = flows.spawn(outbound(Arc::clone(&inside), Arc::clone(&outside), client, Arc::clone(&state)));
                state.lock().unwrap().flows.insert(client, Flow { outside: Arc::clone(&outside), task });
                outside
            }
        };
        let server = state.lock().unwrap().rules.server;
        if let Some(server) = server {
            // A port that nobody listens on answers with an error; the network drops it.
            outside.send_to(&buffer[..length], server).await.ok();
        }
    }
}

async fn outbound(inside: Arc<UdpSocket>, outside: Arc<UdpSocket>, client: SocketAddr, state: Arc<Mutex<State>>) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((length, _)) = outside.recv_from(&mut buffer).await else { continue };
        {
            let mut state = state.lock().unwrap();
            state.traffic.to_client += length as u64;
            if state.rules.drop_to_client || state.rules.is_shut_out(client) || state.rules.loses(1, length) {
                continue;
            }
        }
        inside.send_to(&buffer[..length], client).await.ok();
    }
}
