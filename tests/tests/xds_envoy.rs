//! Real Envoys that take their whole configuration from our server, and refuse nothing of it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a panic is a verdict")]

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use eastway_model::rules::{NameFilter, PeerRules, Rules};
use eastway_model::store::Writer;
use eastway_model::{
    Change, Endpoint, EndpointCondition, EndpointId, Label, PeerChange, PeerState, PortName, PortNumber, Protocol,
    ServiceKey, ServicePort, ServiceRecord, Subset, TlsMode, UnixMillis,
};
use eastway_proto::envoy::service::discovery::v3 as discovery;
use eastway_proto::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use eastway_tests::kube::tools;
use eastway_tests::within;
use eastway_xds::node::Workload;
use eastway_xds::resources::{Addresses, GatewayAddress, Generator, Settings};
use eastway_xds::server::{Caller, Clients, Cut, Limits, Observer, Server};
use eastway_xds::{Kind, View};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};

/// Ready, and each change applied: many times what it takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// Less than a new cluster waits for endpoints that do not come, which is 15 s.
const WARMING: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn envoy_1_40_takes_everything() -> Result<()> {
    takes_everything("envoy-1.40.0", 18_040).await
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_1_36_takes_everything() -> Result<()> {
    takes_everything("envoy-1.36.2", 18_036).await
}

async fn takes_everything(program: &str, port: u16) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut world = World::start(folder.path())?;
    world.export("shop/web", &[named_port(port, Some("http")), named_port(port + 100, Some("grpc"))]);
    world.export("shop/db", &[named_port(port + 200, None)]);
    world.address("shop/web", "127.64.0.1");
    world.address("shop/db", "127.64.0.2");
    world.publish();
    let envoy = Envoy::start(program, folder.path())?;
    world.until_accepted(&envoy, "at the start").await?;
    let clusters = names(&envoy.dump().await?, "dynamic_active_clusters", |one| &one["cluster"]["name"]);
    let web = format!("outbound|{port}||web.shop.svc.clusterset.local");
    let db = format!("outbound|{}||db.shop.svc.clusterset.local", port + 200);
    let grpc = format!("outbound|{}||web.shop.svc.clusterset.local", port + 100);
    assert_eq!(clusters, ["eastway-gateway", web.as_str(), grpc.as_str(), db.as_str()]);
    let listening = envoy.listening().await?;
    assert_eq!(
        listening,
        [
            format!("127.64.0.1:{port}"),
            format!("127.64.0.1:{}", port + 100),
            format!("127.64.0.2:{}", port + 200),
            "hbone".to_owned()
        ]
    );
    let routes = names(&envoy.dump().await?, "dynamic_route_configs", |one| &one["route_config"]["name"]);
    assert_eq!(routes, [web.as_str(), grpc.as_str()]);
    assert_eq!(envoy.hosts(&web).await?, 1, "the service as a whole");

    // One host per remote endpoint, and each change of them.
    world.endpoints("shop/web", &["web-1", "web-2", "web-3"]);
    world.publish();
    within(PATIENCE, "one host per endpoint", async || Ok(envoy.hosts(&web).await? == 3)).await?;
    world.remove_endpoint("shop/web", "web-2");
    world.publish();
    within(PATIENCE, "the endpoint is gone", async || Ok(envoy.hosts(&web).await? == 2)).await?;

    // A changed cluster (its port speaks another protocol now) is live with its endpoints at once.
    world.export("shop/web", &[named_port(port, Some("http2")), named_port(port + 100, Some("grpc"))]);
    world.publish();
    let took = world.until_accepted(&envoy, "with a changed cluster").await?;
    ensure!(took < WARMING, "it waited for endpoints that did not follow: {took:?}");
    assert_eq!(envoy.hosts(&web).await?, 2);

    // What is gone goes, and the connection to us may break meanwhile.
    world.peer(PeerChange::Remove("shop/db".parse()?));
    world.publish();
    within(PATIENCE, "the cluster is gone", async || Ok(!envoy.has_cluster(&db).await?)).await?;
    world.until_accepted(&envoy, "after a removal").await?;
    let listening = envoy.listening().await?;
    assert!(!listening.iter().any(|name| name.starts_with("127.64.0.2")), "{listening:?}");

    world.reconnect(folder.path())?;
    world.endpoints("shop/web", &["web-4"]);
    world.publish();
    within(PATIENCE, "it goes on after a reconnect", async || Ok(envoy.hosts(&web).await? == 3)).await?;
    world.until_accepted(&envoy, "after a reconnect").await?;
    envoy.assert_nothing_rejected().await?;
    ensure!(world.problems.lock().unwrap().is_empty(), "{:?}", world.problems.lock().unwrap());
    Ok(())
}

fn named_port(number: u16, name: Option<&str>) -> ServicePort {
    ServicePort {
        name: name.map(|name| PortName::parse(name).unwrap()),
        number: PortNumber::new(number).unwrap(),
        protocol: Protocol::Tcp,
        app_protocol: None,
    }
}

/// Names in one list of a configuration dump, sorted.
fn names(dump: &Value, list: &str, name: impl Fn(&Value) -> &Value) -> Vec<String> {
    let configs = dump["configs"].as_array().unwrap();
    let entries = configs.iter().filter_map(|config| config[list].as_array()).flatten();
    let mut names: Vec<String> = entries.map(|entry| name(entry).as_str().unwrap_or_default().to_owned()).collect();
    names.sort();
    names
}

/// A store with one peer, and a server of what is in it.
struct World {
    writer: Writer,
    addresses: Addresses,
    generator: Generator,
    views: watch::Sender<Option<Arc<View>>>,
    clients: Arc<Clients>,
    problems: Arc<std::sync::Mutex<Vec<String>>>,
    stop: DropGuard,
}

impl World {
    fn start(folder: &Path) -> Result<Self> {
        let (mut writer, _) = Writer::new(Label::parse("a")?);
        let peer = Label::parse("b")?;
        let rules = PeerRules::new(peer.clone(), "b.example", UnixMillis(1));
        let rules = PeerRules { import: NameFilter::everything(), ..rules };
        writer.set_rules(Arc::new(Rules { peers: [(peer, Arc::new(rules))].into(), ..Rules::default() }));
        let settings = Settings {
            gateway: GatewayAddress { host: "127.0.0.1".to_owned(), port: 9 },
            gateway_identity: "spiffe://a.example/ns/eastway-system/sa/eastway-gateway".to_owned(),
            trust_domain: "a.example".to_owned(),
        };
        let views = watch::Sender::new(None);
        let problems = Arc::default();
        let (clients, stop) = serve(folder, views.subscribe(), &problems)?;
        let generator = Generator::new(&settings);
        let mut world = Self { writer, addresses: Addresses::new(), generator, views, clients, problems, stop };
        world.peer(PeerChange::State(PeerState::Up));
        Ok(world)
    }

    /// Ends the server and starts another at the same place.
    fn reconnect(&mut self, folder: &Path) -> Result<()> {
        std::fs::remove_file(folder.join("xds.sock"))?;
        (self.clients, self.stop) = serve(folder, self.views.subscribe(), &self.problems)?;
        Ok(())
    }

    fn peer(&mut self, change: PeerChange) {
        self.writer.apply([Change::Peer { cluster: Label::parse("b").unwrap(), change }], UnixMillis(1_000));
    }

    fn export(&mut self, service: &str, ports: &[ServicePort]) {
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

    fn endpoints(&mut self, service: &str, ids: &[&str]) {
        let upsert = ids.iter().map(|id| Endpoint {
            id: EndpointId::parse(id).unwrap(),
            hostname: None,
            subset: [("version".into(), "v1".into()), ("track".into(), "".into())].into(),
            zone: Some("z1".into()),
            condition: EndpointCondition::READY,
            weight: 100,
            identity: None,
            tls: TlsMode::None,
        });
        let upsert = upsert.collect();
        self.peer(PeerChange::Endpoints { service: service.parse().unwrap(), upsert, remove: Vec::new() });
    }

    fn remove_endpoint(&mut self, service: &str, id: &str) {
        let remove = vec![EndpointId::parse(id).unwrap()];
        self.peer(PeerChange::Endpoints { service: service.parse().unwrap(), upsert: Vec::new(), remove });
    }

    fn address(&mut self, service: &str, address: &str) {
        let key: ServiceKey = service.parse().unwrap();
        self.addresses.insert(key, vec![address.parse().unwrap()]);
    }

    fn publish(&mut self) {
        let view = self.generator.update(self.writer.snapshot(), &self.addresses);
        self.views.send_replace(Some(view));
    }

    /// Waits until the proxy has taken the newest of everything.
    async fn until_accepted(&self, envoy: &Envoy, when: &str) -> Result<Duration> {
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
    let observer = Arc::new(Problems(problems.clone()));
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

/// Notes what a good proxy never does.
struct Problems(Arc<std::sync::Mutex<Vec<String>>>);

impl Observer for Problems {
    fn connected(&self, _clients: usize) {}

    fn pushed(&self, _kind: Kind) {}

    fn refused(&self, client: &str, kind: Kind, reason: &str) {
        self.0.lock().unwrap().push(format!("{client} refuses {kind}: {reason}"));
    }

    fn cut(&self, client: &str, why: &Cut) {
        self.0.lock().unwrap().push(format!("{client} is cut: {why}"));
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

/// A running Envoy; it ends with this.
struct Envoy {
    process: Child,
    folder: PathBuf,
}

impl Envoy {
    fn start(program: &str, folder: &Path) -> Result<Self> {
        let binary = tools::built(program)?;
        let bootstrap = folder.join("bootstrap.json");
        std::fs::write(&bootstrap, serde_json::to_vec_pretty(&self::bootstrap(folder))?)?;
        let log = std::fs::File::create(folder.join("envoy.log"))?;
        let process = Command::new(binary)
            .args(["--disable-hot-restart", "--concurrency", "1", "--drain-time-s", "1", "--log-level", "warning"])
            .arg("-c")
            .arg(&bootstrap)
            .arg("--admin-address-path")
            .arg(folder.join("admin"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Self { process, folder: folder.to_owned() })
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("envoy.log")).unwrap_or_default()
    }

    async fn get(&self, path: &str) -> Result<String> {
        let address = std::fs::read_to_string(self.folder.join("admin"))?;
        let mut stream = TcpStream::connect(address.trim()).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
        if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            return Ok(body.to_owned());
        }
        // Chunks: a line with the length in hexadecimal, then so many bytes and a line end.
        let (mut rest, mut text) = (body, String::new());
        while let Some((length, after)) = rest.split_once("\r\n") {
            let length = usize::from_str_radix(length.trim(), 16)?;
            text.push_str(after.get(..length).context("a whole chunk")?);
            rest = after.get(length + 2..).unwrap_or_default();
        }
        Ok(text)
    }

    async fn dump(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.get("/config_dump").await?)?)
    }

    /// Listeners but for those that drain.
    async fn listening(&self) -> Result<Vec<String>> {
        let mut names = names(&self.dump().await?, "dynamic_listeners", |one| &one["active_state"]["listener"]["name"]);
        names.retain(|name| !name.is_empty());
        Ok(names)
    }

    /// How many hosts a cluster has.
    async fn hosts(&self, cluster: &str) -> Result<usize> {
        let clusters: Value = serde_json::from_str(&self.get("/clusters?format=json").await?)?;
        let all = clusters["cluster_statuses"].as_array().context("clusters")?;
        let found = all.iter().find(|one| one["name"] == cluster).with_context(|| format!("no cluster {cluster}"))?;
        Ok(found["host_statuses"].as_array().map_or(0, Vec::len))
    }

    async fn has_cluster(&self, cluster: &str) -> Result<bool> {
        Ok(self.get("/clusters?format=json").await?.contains(cluster))
    }

    async fn assert_nothing_rejected(&self) -> Result<()> {
        let stats = self.get("/stats?filter=rejected").await?;
        ensure!(stats.contains("update_rejected: 0"), "{stats}");
        let rejected: Vec<_> =
            stats.lines().filter(|line| line.contains("rejected") && !line.ends_with(": 0")).collect();
        ensure!(rejected.is_empty(), "{rejected:?}\n{}", self.log());
        let dump = self.get("/config_dump").await?;
        ensure!(!dump.contains("error_state"), "{dump}");
        Ok(())
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // It may have ended itself.
        let _killed = (self.process.kill(), self.process.wait());
    }
}

/// Everything but where we are comes from us.
fn bootstrap(folder: &Path) -> Value {
    let ads = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"});
    let ours = |name: &str| {
        let pipe = json!({"pipe": {"path": folder.join("xds.sock")}});
        let endpoint = json!({"endpoint": {"address": pipe}});
        json!({
            "name": name,
            "connect_timeout": "1s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }},
        })
    };
    let back_off = json!({"retry_back_off": {"base_interval": "0.2s", "max_interval": "1s"}});
    json!({
        "node": {"id": "sidecar~client-1.shop", "cluster": "client.shop", "metadata": {"NAMESPACE": "shop"}},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "bootstrap_extensions": [{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
            },
        }],
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds", "retry_policy": back_off}}],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": {"clusters": [ours("xds"), ours("agent")]},
    })
}
