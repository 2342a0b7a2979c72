//! Takes packets at virtual addresses, and knows which flow each belongs to.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::client::ClientFlow;
use super::socket::{Arrived, Message, PacketSocket};
use crate::proxy::clients::Clients;
use crate::proxy::outbound::Target;
use crate::router::Router;
use crate::telemetry::Refusal;

/// Pause after an error of the socket that is the machine's.
const PAUSE: Duration = Duration::from_millis(50);

/// What all listeners share.
pub(in crate::proxy) struct FlowLimits {
    router: Arc<Router>,
    tasks: TaskTracker,
    flows: Arc<Semaphore>,
    clients: Arc<Clients>,
    /// No flow begins any more.
    draining: CancellationToken,
}

impl FlowLimits {
    /// So many flows at once, of which one client has a quarter; each is a task of `tasks`. None begins after `draining`.
    pub(in crate::proxy) fn new(
        router: Arc<Router>,
        flows: usize,
        tasks: TaskTracker,
        draining: CancellationToken,
    ) -> Arc<Self> {
        let (clients, flows) = (Clients::new(flows / 4), Arc::new(Semaphore::new(flows.min(Semaphore::MAX_PERMITS))));
        Arc::new(Self { router, tasks, flows, clients, draining })
    }
}

/// Who sends from where to where: what a flow is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// As the socket says it.
    pub(super) client: SocketAddr,
    pub(super) at: Option<Arrived>,
}

/// One address and port that is listened on.
pub(in crate::proxy) struct Listener {
    pub(super) address: SocketAddr,
    pub(super) socket: Arc<PacketSocket>,
    shared: Arc<FlowLimits>,
    target: watch::Receiver<Arc<Target>>,
    flows: Mutex<HashMap<Key, Arc<ClientFlow>>>,
    /// The thread that carries the first link that a flow went by: packets go from the kernel to the link there, and wake no
    /// other thread.
    pub(super) home: Arc<OnceLock<Handle>>,
    /// Ends all flows.
    over: CancellationToken,
}

impl Listener {
    /// # Errors
    /// The system refuses the address.
    pub(in crate::proxy) fn bind(
        address: SocketAddr,
        target: watch::Receiver<Arc<Target>>,
        shared: Arc<FlowLimits>,
    ) -> io::Result<Arc<Self>> {
        let socket = Arc::new(PacketSocket::listen(address)?);
        let (flows, home, over) = (Mutex::default(), Arc::default(), CancellationToken::new());
        Ok(Arc::new(Self { address, socket, shared, target, flows, home, over }))
    }

    /// Takes packets until `stop`. If the process drains then, those of flows that exist go on as long as they do; else the
    /// flows end with the listener, for the service is gone. No error of the socket ends it (threat U6).
    pub(in crate::proxy) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let _over = self.over.clone().drop_guard();
        let ended = async {
            stop.cancelled().await;
            if self.shared.draining.is_cancelled() {
                lock(&self.flows).values().for_each(|flow| flow.leave());
                self.shared.tasks.wait().await;
            }
        };
        let receiving = async {
            self.receive_until(|| self.home.get().is_some()).await;
            if let Some(home) = self.home.get() {
                let here = Arc::clone(&self);
                let task = home.spawn(async move { here.receive_until(|| false).await });
                // Its thread lives as long as the tunnel.
                let _over = AbortOnDropHandle::new(task).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = ended => {}
            () = receiving => {}
        }
    }

    /// Takes packets until this is so.
    async fn receive_until(self: &Arc<Self>, is_enough: impl Fn() -> bool) {
        let mut receiver = None;
        while !is_enough() {
            let receiver = match &receiver {
                Some(receiver) => Ok(receiver),
                None => self.socket.receiver().map(|new| &*receiver.insert(new)),
            };
            let received = match receiver {
                Ok(receiver) => receiver.receive(|messages| self.take(messages)).await,
                Err(error) => Err(error),
            };
            if let Err(error) = received {
                self.refused(format_args!("{}: cannot receive packets: {error}", self.address));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn take(self: &Arc<Self>, messages: &[Message<'_>]) {
        let mut rest = messages;
        while let Some(Message { from, at, .. }) = rest.first().copied() {
            let alike = rest.iter().take_while(|message| (message.from, message.at) == (from, at)).count();
            let (run, others) = rest.split_at(alike);
            rest = others;
            let packets = run.iter().flat_map(|message| message.packets());
            match from.and_then(|client| self.flow(Key { client, at })) {
                Some(flow) => flow.push(packets),
                None => self.shared.router.telemetry.metrics.udp_dropped("flow_limit", packets.count()),
            }
        }
    }

    /// The flow of these packets; a new one if there is none, or if it had better go another way from now on.
    fn flow(self: &Arc<Self>, key: Key) -> Option<Arc<ClientFlow>> {
        let mut flows = lock(&self.flows);
        let known = flows.get(&key).filter(|flow| !flow.is_over()).cloned();
        if let Some(known) = known.as_ref().filter(|flow| !flow.has_better_way(&self.shared.router)) {
            return Some(Arc::clone(known));
        }
        let Some(begun) = self.begin(key) else { return known };
        flows.insert(key, Arc::clone(&begun));
        if let Some(known) = known {
            known.leave();
        }
        Some(begun)
    }

    fn begin(self: &Arc<Self>, key: Key) -> Option<Arc<ClientFlow>> {
        let FlowLimits { router, tasks, flows, clients, draining } = &*self.shared;
        if draining.is_cancelled() {
            return None;
        }
        let client = key.client.ip().to_canonical();
        let Some(share) = clients.enter(client) else {
            self.refused(format_args!("{client} has its share of UDP flows"));
            return None;
        };
        let Ok(permit) = Arc::clone(flows).try_acquire_owned() else {
            self.refused(format_args!("{client}: there are too many UDP flows"));
            return None;
        };
        let flow = ClientFlow::new(key, self, tasks);
        let (listener, router, target) = (Arc::clone(self), Arc::clone(router), self.target.borrow().clone());
        let running = Arc::clone(&flow);
        tasks.spawn(async move {
            let run = Arc::clone(&running).run(router, target, listener.address);
            let _over = listener.over.run_until_cancelled(run).await;
            running.set_over();
            listener.forget(&running);
            drop((permit, share));
        });
        Some(flow)
    }

    fn forget(&self, flow: &Arc<ClientFlow>) {
        let mut flows = lock(&self.flows);
        // Another one may have taken its place.
        if flows.get(&flow.key).is_some_and(|current| Arc::ptr_eq(current, flow)) {
            flows.remove(&flow.key);
        }
        if flows.is_empty() {
            // A burst of flows must not leave its memory behind.
            flows.shrink_to(64);
        }
    }

    fn refused(&self, detail: fmt::Arguments<'_>) {
        self.shared.router.telemetry.refusals.refused(Refusal::Overload, None, detail);
    }
}

/// Nothing panics while one of these locks is held.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use eastway_model::store::Writer;
    use eastway_model::{
        Change, ClusterName, Endpoint, EndpointCondition, EndpointId, Label, LocalChange, LocalEndpoint, LocalService,
        PortKey, PortNumber, Protocol, ServiceKey, ServicePort, ServiceRecord, Subset, TlsMode, UnixMillis,
    };
    use tokio::net::UdpSocket;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::proxy::copy::Limits;
    use crate::proxy::dial::DialRules;
    use crate::telemetry::{AccessMode, Telemetry};

    const DEADLINE: Duration = Duration::from_secs(10);
    /// Of which one client has two.
    const FLOWS: usize = 8;

    /// A listener of a service with one endpoint, which answers each packet with itself.
    struct Rig {
        address: SocketAddr,
        telemetry: Telemetry,
        /// Packets that the endpoint got.
        served: Arc<AtomicUsize>,
        _writer: Writer,
    }

    impl Rig {
        async fn start() -> Self {
            let served = Arc::new(AtomicUsize::new(0));
            let port = echo(Arc::clone(&served)).await;
            let (mut writer, reader) = Writer::new(ClusterName::parse("a").unwrap());
            writer.await_registries([]);
            let change = LocalChange::Replace(vec![Arc::new(service(port))]);
            writer.apply([Change::Local { registry: Label::parse("hosts").unwrap(), change }], UnixMillis(1));
            let rules = DialRules { allow_loopback: true, ..DialRules::default() };
            let never = Limits { idle: Duration::ZERO, half_closed: Duration::ZERO };
            let telemetry = Telemetry::new(AccessMode::Off);
            let router = Arc::new(Router::new(reader, rules, never, telemetry.clone()));
            let limits = FlowLimits::new(router, FLOWS, TaskTracker::new(), CancellationToken::new());
            let target = Target { service: key(), port: number(), cluster: None, subset: None, endpoint: None };
            let (_, target) = watch::channel(Arc::new(target));
            // A port that was free a moment ago.
            let address = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let listener = Listener::bind(address, target, limits).unwrap();
            tokio::spawn(listener.run(CancellationToken::new()));
            Self { address, telemetry, served, _writer: writer }
        }

        /// One packet from each of so many ports of a client.
        async fn ask(&self, client: u8, flows: usize) -> Vec<UdpSocket> {
            let mut sockets = Vec::new();
            for _ in 0..flows {
                let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, client], 0))).await.unwrap();
                socket.send_to(b"ask", self.address).await.unwrap();
                sockets.push(socket);
            }
            sockets
        }

        /// Waits until so many packets in all reached the endpoint, and so many were dropped.
        async fn until(&self, served: usize, dropped: usize) {
            let line = format!("eastway_udp_dropped_packets_total{{reason=\"flow_limit\"}} {dropped}");
            let page = || self.telemetry.metrics.encode().unwrap();
            let counted = async {
                while self.served.load(Ordering::Relaxed) != served || !page().lines().any(|known| known == line) {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            let waited = timeout(DEADLINE, counted).await;
            assert!(waited.is_ok(), "{} of {served} served, not: {line}", self.served.load(Ordering::Relaxed));
        }
    }

    async fn echo(served: Arc<AtomicUsize>) -> u16 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut packet = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut packet).await {
                served.fetch_add(1, Ordering::Relaxed);
                socket.send_to(&packet[..length], from).await.unwrap();
            }
        });
        port
    }

    fn key() -> ServiceKey {
        ServiceKey::parse("shop", "names").unwrap()
    }

    fn number() -> PortNumber {
        PortNumber::new(53).unwrap()
    }

    fn service(port: u16) -> LocalService {
        let listed = ServicePort { name: None, number: number(), protocol: Protocol::Udp, app_protocol: None };
        let endpoint = LocalEndpoint {
            endpoint: Endpoint {
                id: EndpointId::parse("e-1").unwrap(),
                hostname: None,
                subset: Subset::default(),
                zone: None,
                condition: EndpointCondition::READY,
                weight: 100,
                identity: None,
                tls: TlsMode::None,
            },
            address: [127, 0, 0, 1].into(),
            service_account: None,
            target_ports: [(PortKey { number: number(), protocol: Protocol::Udp }, port)].into(),
        };
        LocalService::new(ServiceRecord::new(key(), vec![listed]), true, [endpoint])
    }

    #[tokio::test]
    async fn i8_flows_beyond_a_clients_share_and_beyond_all_are_refused_and_counted() {
        let rig = Rig::start().await;
        let mut held = rig.ask(2, 5).await;
        rig.until(2, 3).await;
        let other = rig.ask(3, 2).await;
        rig.until(4, 3).await;
        for socket in &other {
            let mut answer = [0; 8];
            let length = timeout(DEADLINE, socket.recv(&mut answer)).await.unwrap().unwrap();
            assert_eq!(&answer[..length], b"ask", "another client is served");
        }
        // Two more have the rest.
        held.extend(rig.ask(4, 2).await);
        held.extend(rig.ask(5, 2).await);
        rig.until(8, 3).await;
        held.extend(rig.ask(6, 2).await);
        rig.until(8, 5).await;
        // Flows that there are go on.
        other[0].send_to(b"again", rig.address).await.unwrap();
        rig.until(9, 5).await;
        let page = rig.telemetry.metrics.encode().unwrap();
        assert!(page.contains("eastway_refused_total{peer=\"\",reason=\"overload\"} 5\n"), "{page}");
    }
}
