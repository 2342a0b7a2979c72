//! What the server tells: a store, and who made of it what.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use eastway_model::rules::{NameFilter, PeerRules, Rules};
use eastway_model::store::Writer;
use eastway_model::{
    Change, Endpoint, EndpointCondition, EndpointId, Label, LocalChange, LocalEndpoint, LocalService, PeerChange,
    PeerState, PortName, PortNumber, Protocol, ServiceKey, ServicePort, ServiceRecord, Subset, TlsMode, UnixMillis,
};
use eastway_proto::envoy::service::discovery::v3 as discovery;
use eastway_proto::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use eastway_tests::within;
use eastway_xds::node::Workload;
use eastway_xds::resources::{Addresses, GatewayAddress, Generator, Settings};
use eastway_xds::server::{Caller, Clients, Cut, Limits, Observer, Server};
use eastway_xds::{Kind, View};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};

use crate::PATIENCE;
use crate::proxy::{Envoy, names};

/// How often it is looked whether the proxy has answered.
const LOOK: Duration = Duration::from_millis(1);

/// A store with one peer, and a server of what is in it.
pub(crate) struct World {
    writer: Writer,
    addresses: Addresses,
    generator: Generator,
    views: watch::Sender<Option<Arc<View>>>,
    clients: Arc<Clients>,
    pub(crate) problems: Arc<std::sync::Mutex<Vec<String>>>,
    /// Responses handed over.
    pub(crate) pushed: Arc<AtomicU64>,
    stop: DropGuard,
}

impl World {
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        let (mut writer, _) = Writer::new(Label::parse("a")?);
        let peer = Label::parse("b")?;
        let rules = PeerRules::new(peer.clone(), "b.example", UnixMillis(1));
        let rules = PeerRules { import: NameFilter::everything(), ..rules };
        writer.set_rules(Arc::new(Rules { peers: [(peer, Arc::new(rules))].into(), ..Rules::default() }));
        let settings = Settings {
            gateway: GatewayAddress { host: "127.0.0.1".to_owned(), port: 9 },
            gateway_identity: "spiffe://a.example/ns/eastway-system/sa/eastway-gateway".to_owned(),
            trust_domain: "a.example".to_owned(),
            endpoints_per_service: 500,
        };
        let views = watch::Sender::new(None);
        let (problems, pushed) = (Arc::default(), Arc::default());
        let (clients, stop) = serve(folder, views.subscribe(), &problems, &pushed)?;
        let generator = Generator::new(&settings);
        let mut world = Self { writer, addresses: Addresses::new(), generator, views, clients, problems, pushed, stop };
        world.peer(PeerChange::State(PeerState::Up));
        Ok(world)
    }

    /// Ends the server and starts another at the same place.
    pub(crate) fn reconnect(&mut self, folder: &Path) -> Result<()> {
        std::fs::remove_file(folder.join("xds.sock"))?;
        (self.clients, self.stop) = serve(folder, self.views.subscribe(), &self.problems, &self.pushed)?;
        Ok(())
    }

    pub(crate) fn peer(&mut self, change: PeerChange) {
        self.writer.apply([Change::Peer { cluster: Label::parse("b").unwrap(), change }], UnixMillis(1_000));
    }

    pub(crate) fn export(&mut self, service: &str, ports: &[ServicePort]) {
        let mut record = ServiceRecord::new(service.parse().unwrap(), ports.to_vec());
        record.groups = vec![eastway_model::EndpointGroup {
            zone: None,
            subset: Subset::new(),
            ready: 3,
            draining: 0,
            weight: 300,
            identities: Vec::new(),
            tls: TlsMode::None,
        }];
        self.peer(PeerChange::Upsert(Arc::new(record)));
    }

    pub(crate) fn endpoints(&mut self, service: &str, ids: &[&str]) {
        let upsert = ids.iter().map(|id| endpoint(id)).collect();
        self.peer(PeerChange::Endpoints { service: service.parse().unwrap(), upsert, remove: Vec::new() });
    }

    /// Endpoints of this cluster's own, each a host and port and its weight.
    pub(crate) fn local(&mut self, service: &str, port: &ServicePort, endpoints: &[(SocketAddr, u32)]) {
        let local = |(address, weight): &(SocketAddr, u32)| LocalEndpoint {
            endpoint: Endpoint { weight: *weight, ..endpoint(&format!("l-{}", address.port())) },
            address: address.ip(),
            service_account: None,
            target_ports: [(port.key(), address.port())].into(),
        };
        let record = ServiceRecord::new(service.parse().unwrap(), vec![port.clone()]);
        let service = LocalService::new(record, true, endpoints.iter().map(local));
        let change = LocalChange::Upsert(Arc::new(service));
        let change = Change::Local { registry: Label::parse("file").unwrap(), change };
        self.writer.apply([change], UnixMillis(1_000));
    }

    pub(crate) fn remove_endpoint(&mut self, service: &str, id: &str) {
        let remove = vec![EndpointId::parse(id).unwrap()];
        self.peer(PeerChange::Endpoints { service: service.parse().unwrap(), upsert: Vec::new(), remove });
    }

    pub(crate) fn address(&mut self, service: &str, address: &str) {
        let key: ServiceKey = service.parse().unwrap();
        self.addresses.insert(key, vec![address.parse().unwrap()]);
    }

    pub(crate) fn publish(&mut self) {
        let view = self.generator.update(self.writer.snapshot(), &self.addresses);
        self.views.send_replace(Some(view));
    }

    /// Waits until the proxy has answered all that it was sent, and was sent the newest.
    pub(crate) async fn until_answered(&self) -> Result<()> {
        let newest = self.views.borrow().as_ref().map(|view| view.generation()).context("a view")?;
        let answered = async {
            loop {
                if let [client] = &self.clients.list()[..] {
                    let sent = client.kinds.values().any(|report| report.status.sent == Some(newest));
                    if sent && client.kinds.values().all(|report| report.status.outstanding == 0) {
                        return;
                    }
                }
                sleep(LOOK).await;
            }
        };
        let waited = timeout(PATIENCE, answered).await;
        waited.with_context(|| format!("not answered: {:#?}", self.clients.list()))
    }

    /// Waits until the proxy has taken the newest of everything.
    pub(crate) async fn until_accepted(&self, envoy: &Envoy, when: &str) -> Result<Duration> {
        let newest = self.views.borrow().clone().context("a view")?;
        let complete = async || {
            let [client] = &self.clients.list()[..] else { return Ok(false) };
            let refused = client.kinds.iter().find_map(|(kind, report)| Some((kind, report.status.refused.as_ref()?)));
            ensure!(refused.is_none(), "{refused:?}");
            let taken = |kind| {
                let status = client.kinds.get(&kind).map(|report| &report.status);
                status.is_some_and(|status| status.outstanding == 0 && status.sent.is_some())
            };
            let complete = [Kind::Cluster, Kind::Endpoints, Kind::Listener].into_iter().all(taken);
            let clusters = names(&envoy.dump().await?, "dynamic_active_clusters", |one| &one["cluster"]["name"]);
            Ok(complete && clusters.len() == newest.len(Kind::Cluster))
        };
        let waited = within(PATIENCE, format!("all is taken {when}"), complete).await;
        waited.with_context(|| format!("{:#?}\n{}", self.clients.list(), envoy.log()))
    }
}

fn serve(
    folder: &Path,
    views: watch::Receiver<Option<Arc<View>>>,
    problems: &Arc<std::sync::Mutex<Vec<String>>>,
    pushed: &Arc<AtomicU64>,
) -> Result<(Arc<Clients>, DropGuard)> {
    let stop = CancellationToken::new();
    let workload = Workload { namespace: Label::parse("shop")?, service_account: Label::parse("client")? };
    let admit = move |_: &tonic::Extensions| {
        Ok(Caller {
            serial: "0a1b".into(),
            address: "its socket".to_owned(),
            identity: "spiffe://a.example/ns/shop/sa/client".into(),
            workload: workload.clone(),
            not_after: SystemTime::now() + Duration::from_secs(3_600),
        })
    };
    let observer = Arc::new(Problems { problems: problems.clone(), pushed: pushed.clone() });
    let epoch = u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos() & 0xffff_ffff)?;
    let server = Server::new(views, Arc::new(admit), observer, Limits::default(), epoch, stop.clone());
    let clients = server.clients();
    let socket = UnixListener::bind(folder.join("xds.sock"))?;
    let grpc = tonic::transport::Server::builder()
        .add_service(server.into_service())
        .add_service(SecretDiscoveryServiceServer::new(NoSecrets));
    let serve = grpc.serve_with_incoming_shutdown(UnixListenerStream::new(socket), stop.clone().cancelled_owned());
    tokio::spawn(serve);
    Ok((clients, stop.drop_guard()))
}

/// Notes what a good proxy never does, and counts.
struct Problems {
    problems: Arc<std::sync::Mutex<Vec<String>>>,
    pushed: Arc<AtomicU64>,
}

impl Observer for Problems {
    fn connected(&self, _clients: usize) {}

    fn pushed(&self, _kind: Kind) {
        self.pushed.fetch_add(1, Ordering::Relaxed);
    }

    fn refused(&self, client: &str, kind: Kind, reason: &str) {
        self.problems.lock().unwrap().push(format!("{client} refuses {kind}: {reason}"));
    }

    fn cut(&self, client: &str, why: &Cut) {
        self.problems.lock().unwrap().push(format!("{client} is cut: {why}"));
    }
}

/// An agent that has no certificate: every secret is absent, so that nobody waits for it.
struct NoSecrets;

type Secrets = Pin<Box<dyn Stream<Item = Result<discovery::DeltaDiscoveryResponse, Status>> + Send>>;

#[tonic::async_trait]
impl SecretDiscoveryService for NoSecrets {
    type DeltaSecretsStream = Secrets;
    type StreamSecretsStream = Pin<Box<dyn Stream<Item = Result<discovery::DiscoveryResponse, Status>> + Send>>;

    async fn delta_secrets(
        &self,
        request: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Secrets>, Status> {
        let mut requests = request.into_inner();
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                if request.resource_names_subscribe.is_empty() {
                    continue;
                }
                let response = discovery::DeltaDiscoveryResponse {
                    type_url: request.type_url,
                    removed_resources: request.resource_names_subscribe,
                    nonce: "1".to_owned(),
                    ..discovery::DeltaDiscoveryResponse::default()
                };
                if sender.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn stream_secrets(
        &self,
        _request: Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn fetch_secrets(
        &self,
        _request: Request<discovery::DiscoveryRequest>,
    ) -> Result<Response<discovery::DiscoveryResponse>, Status> {
        Err(Status::unimplemented("delta only"))
    }
}

fn endpoint(id: &str) -> Endpoint {
    Endpoint {
        id: EndpointId::parse(id).unwrap(),
        hostname: None,
        subset: [("version".into(), "v1".into()), ("track".into(), "".into())].into(),
        zone: Some("z1".into()),
        condition: EndpointCondition::READY,
        weight: 100,
        identity: None,
        tls: TlsMode::None,
    }
}

pub(crate) fn named_port(number: u16, name: Option<&str>) -> ServicePort {
    ServicePort {
        name: name.map(|name| PortName::parse(name).unwrap()),
        number: PortNumber::new(number).unwrap(),
        protocol: Protocol::Tcp,
        app_protocol: None,
    }
}
