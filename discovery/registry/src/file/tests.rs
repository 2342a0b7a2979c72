use std::net::SocketAddr;

use eastway_model::{EndpointId, LocalService};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;

mod bad_input;

const SOON: Duration = Duration::from_secs(20);

/// A registry over a file in a folder of its own.
struct Fixture {
    folder: tempfile::TempDir,
    changes: mpsc::Receiver<Change>,
    status: watch::Receiver<RegistryStatus>,
    task: tokio::task::JoinHandle<()>,
    cancel: CancellationToken,
}

impl Fixture {
    fn start(services: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("services.yaml"), text(services)).unwrap();
        Self::start_in(folder)
    }

    fn start_in(folder: tempfile::TempDir) -> Self {
        let (registry, status) = FileRegistry::new(FileRegistryConfig {
            name: Label::parse("hosts").unwrap(),
            path: folder.path().join("services.yaml"),
            state: Some(folder.path().join("state")),
            allow_loopback: true,
            trust_domain: Arc::from("hosts.example"),
            clock: Arc::new(|| UnixMillis(42)),
        });
        let (sender, changes) = mpsc::channel(16);
        let cancel = CancellationToken::new();
        let task = tokio::spawn(registry.run(sender, cancel.clone()));
        Self { folder, changes, status, task, cancel }
    }

    fn write(&self, services: &str) {
        std::fs::write(self.folder.path().join("services.yaml"), text(services)).unwrap();
    }

    async fn next(&mut self) -> LocalChange {
        match timeout(SOON, self.changes.recv()).await.expect("no change").unwrap() {
            Change::Local { registry, change } => {
                assert_eq!(registry.as_str(), "hosts");
                change
            }
            Change::Peer { .. } => panic!("a registry knows no peers"),
        }
    }

    async fn replace(&mut self) -> Vec<Arc<LocalService>> {
        let change = self.next().await;
        let LocalChange::Replace(services) = change else { panic!("{change:?}") };
        services
    }

    async fn until_status(&mut self, wanted: impl FnMut(&RegistryStatus) -> bool) -> RegistryStatus {
        timeout(SOON, self.status.wait_for(wanted)).await.expect("status never came").unwrap().clone()
    }

    async fn stop(self) -> tempfile::TempDir {
        self.cancel.cancel();
        timeout(SOON, self.task).await.expect("does not stop").unwrap();
        self.folder
    }
}

fn text(services: &str) -> String {
    format!("apiVersion: eastway.dev/v1alpha1\nkind: ServiceList\n{services}")
}

fn reviews(endpoints: &str) -> String {
    format!(
        "services:\n- {{namespace: bookinfo, name: reviews, export: true, ports: [{{port: 9080}}], endpoints: [{endpoints}]}}\n"
    )
}

fn checked(endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|address| format!("{{address: {}, ports: {{'9080': {}}}}}", address.ip(), address.port()))
        .collect();
    format!(
        "services:\n- namespace: bookinfo\n  name: reviews\n  ports: [{{port: 9080}}]\n  \
         health: {{tcp: {{}}, interval: 100ms, timeout: 100ms}}\n  endpoints: [{}]\n",
        endpoints.join(", ")
    )
}

fn ids(service: &LocalService) -> Vec<EndpointId> {
    service.endpoints.iter().map(|endpoint| endpoint.endpoint.id.clone()).collect()
}

#[test]
fn ports_that_are_told_the_client_are_plain_tcp() {
    let parsed = |service: &str| {
        let text = text(&format!("services:\n- {{namespace: shop, name: web, {service}}}\n"));
        let source = crate::diagnostic::Source::new("services.yaml", text);
        match parse(&Arc::new(source), false) {
            Ok((contents, _)) => Ok(contents.services.into_values().next().unwrap()),
            Err(sink) => Err(sink.iter().map(|one| one.message.clone()).collect::<Vec<_>>().join("; ")),
        }
    };
    let ports = "{name: a, port: 80, targetPort: 8080, proxyProtocol: v2}, {name: b, port: 81}";
    let told = |health: &str| {
        let service = parsed(&format!("ports: [{ports}], health: {health}")).unwrap();
        assert_eq!(service.record.proxy_protocol.iter().map(|port| port.get()).collect::<Vec<_>>(), [80]);
        service.health.unwrap().proxy_protocol
    };
    for (health, expected) in [
        ("{tcp: {}}", true),
        ("{http: {port: a}}", true),
        ("{http: {port: 8080}}", true),
        ("{http: {port: b}}", false),
        ("{http: {port: 80}}", false),
    ] {
        assert_eq!(told(health), expected, "{health}");
    }
    let udp = parsed("ports: [{port: 80, protocol: UDP, proxyProtocol: v2}]").unwrap_err();
    assert!(udp.contains("is for TCP ports only"), "{udp}");
    let tls = parsed("tls: permissive, ports: [{port: 80, proxyProtocol: v2}]").unwrap_err();
    assert!(tls.contains("not together with tls"), "{tls}");
    assert!(parsed("ports: [{port: 80, proxyProtocol: v1}]").is_err());
}

#[tokio::test]
async fn everything_first_and_then_differences() {
    let mut registry = Fixture::start(&reviews("{address: 10.0.0.1, labels: {version: v1}}, {address: 10.0.0.2}"));
    let services = registry.replace().await;
    assert_eq!(services.len(), 1);
    let before = ids(&services[0]);
    assert_eq!(before.len(), 2);
    assert_eq!(services[0].record.exported_at, UnixMillis(42));
    assert!(services[0].exported);

    registry.write(&reviews("{address: 10.0.0.1, labels: {version: v2}}, {address: 10.0.0.3}"));
    let LocalChange::Endpoints { service, upsert, remove } = registry.next().await else { panic!() };
    assert_eq!(service.to_string(), "bookinfo/reviews");
    assert_eq!((upsert.len(), remove.len()), (2, 1));
    assert_eq!(upsert.iter().filter(|endpoint| before.contains(&endpoint.endpoint.id)).count(), 1);

    registry.write(&format!(
        "{}workloads: [{{address: 10.0.0.20, namespace: bookinfo, serviceAccount: productpage}}]\n",
        reviews("{address: 10.0.0.1, labels: {version: v2}}, {address: 10.0.0.3}").replace("9080", "9081")
    ));
    assert!(matches!(registry.next().await, LocalChange::Upsert(service) if service.endpoints.len() == 2));
    assert!(matches!(registry.next().await, LocalChange::Workloads(workloads) if workloads.len() == 1));

    registry.write("services: []\n");
    assert!(matches!(registry.next().await, LocalChange::Remove(key) if key.to_string() == "bookinfo/reviews"));
    assert!(matches!(registry.next().await, LocalChange::Workloads(workloads) if workloads.is_empty()));
    registry.stop().await;
}

#[tokio::test]
async fn i11_a_bad_version_changes_nothing() {
    let mut registry = Fixture::start(&reviews("{address: 10.0.0.1}"));
    let before = ids(&registry.replace().await[0]);
    registry.write(&reviews("{adress: 10.0.0.2}"));
    let status = registry.until_status(|status| !status.errors.is_empty()).await;
    assert!(status.errors[0].message.contains("did you mean address?"), "{status:?}");
    assert_eq!((status.generation, status.endpoints), (1, 1));
    std::fs::remove_file(registry.folder.path().join("services.yaml")).unwrap();
    registry.until_status(|status| status.errors[0].message.contains("cannot read")).await;
    registry.write(&reviews("{address: 10.0.0.1, weight: 50}"));
    let status = registry.until_status(|status| status.errors.is_empty()).await;
    assert_eq!(status.generation, 2);
    // The only change ever sent is the good one.
    let LocalChange::Endpoints { upsert, remove, .. } = registry.next().await else { panic!() };
    assert_eq!((upsert[0].endpoint.weight, remove.len()), (50, 0));
    assert_eq!(upsert[0].endpoint.id, before[0]);
    registry.stop().await;
}

#[tokio::test]
async fn a_bad_first_version_is_not_an_empty_one() {
    let mut registry = Fixture::start("services: 7\n");
    let status = registry.until_status(|status| !status.errors.is_empty()).await;
    assert!(!status.synced);
    registry.write(&reviews("{address: 10.0.0.1}"));
    assert_eq!(registry.replace().await.len(), 1);
    registry.stop().await;
}

#[tokio::test]
async fn ids_survive_a_restart_and_are_not_reused() {
    let mut registry = Fixture::start(&reviews("{address: 10.0.0.1}, {address: 10.0.0.2}"));
    let before = ids(&registry.replace().await[0]);
    let folder = registry.stop().await;
    let mut registry = Fixture::start_in(folder);
    assert_eq!(ids(&registry.replace().await[0]), before);
    registry.write(&reviews("{address: 10.0.0.1}"));
    assert!(matches!(registry.next().await, LocalChange::Endpoints { .. }));
    let folder = registry.stop().await;
    std::fs::write(folder.path().join("services.yaml"), text(&reviews("{address: 10.0.0.1}, {address: 10.0.0.2}")))
        .unwrap();
    let mut registry = Fixture::start_in(folder);
    let after = ids(&registry.replace().await[0]);
    assert_eq!(after.iter().filter(|id| before.contains(id)).count(), 1, "{before:?} {after:?}");
    registry.stop().await;
}

#[tokio::test]
async fn f20_without_a_place_to_keep_ids_it_runs_from_memory() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("services.yaml"), text(&reviews("{address: 10.0.0.1}"))).unwrap();
    std::fs::write(folder.path().join("state"), "a file where the folder should be").unwrap();
    let mut registry = Fixture::start_in(folder);
    assert_eq!(registry.replace().await.len(), 1);
    registry.stop().await;
}

#[tokio::test]
async fn only_endpoints_that_pass_their_check_are_ready() {
    let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = good.local_addr().unwrap();
    let bad = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut registry = Fixture::start(&checked(&[address, bad]));
    let services = registry.replace().await;
    let ready = |ready| services[0].endpoints.iter().filter(|each| each.endpoint.condition.ready == ready).count();
    assert_eq!((ready(true), ready(false)), (1, 1));
    registry.until_status(|status| status.unhealthy == 1).await;

    drop(good);
    let LocalChange::Endpoints { upsert, remove, .. } = registry.next().await else { panic!() };
    assert_eq!((upsert.len(), remove.len()), (1, 0));
    assert!(!upsert[0].endpoint.condition.ready && !upsert[0].endpoint.condition.serving);
    registry.until_status(|status| status.unhealthy == 2).await;

    let _again = TcpListener::bind(address).await.unwrap();
    let LocalChange::Endpoints { upsert, .. } = registry.next().await else { panic!() };
    assert!(upsert[0].endpoint.condition.ready);
    registry.stop().await;
}

#[tokio::test]
async fn a_check_that_hangs_delays_the_start_by_a_second_at_most() {
    // A full backlog: connections are neither accepted nor refused.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(address)).await {
        held.push(stream);
    }
    let services = checked(&[address]).replace("interval: 100ms, timeout: 100ms", "interval: 30s, timeout: 30s");
    let started = Instant::now();
    let mut registry = Fixture::start(&services);
    let services = registry.replace().await;
    assert!(started.elapsed() < Duration::from_secs(10), "waited for the check");
    assert!(services[0].endpoints.iter().all(|each| !each.endpoint.condition.ready), "unchecked is not ready");
    registry.stop().await;
}

#[tokio::test]
async fn draining_endpoints_serve_but_are_not_ready() {
    let mut registry = Fixture::start(&reviews("{address: 10.0.0.1, draining: true}"));
    let services = registry.replace().await;
    let condition = services[0].endpoints.iter().next().unwrap().endpoint.condition;
    assert_eq!(condition, eastway_model::EndpointCondition::DRAINING);
    registry.stop().await;
}
