//! The CA role on the network, against an API server that is a fake: it answers TokenReviews from a table. That a real
//! one answers alike is for the tests with a real cluster.

use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use bytes::Bytes;
use eastway_identity::ca::InitOptions;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

mod forged;

use super::*;
use crate::config::value::HostPort;
use crate::roles::enroll::{CaClient, EnrollError, NetworkCa, keep_fresh, until_certified, until_enrolled};
use crate::telemetry::AccessMode;

const DAY: Duration = Duration::from_secs(24 * 3600);
const GATEWAY: &str = "system:serviceaccount:eastway-system:eastway-gateway";

/// What a token is, by the fake's table.
#[derive(Clone, Copy)]
struct Token {
    text: &'static str,
    user: &'static str,
    audience: &'static str,
}

const TOKENS: [Token; 5] = [
    Token { text: "gateway.token.good", user: GATEWAY, audience: AUDIENCE },
    Token { text: "web.token.good", user: "system:serviceaccount:shop:web", audience: AUDIENCE },
    // A server that knows no audiences.
    Token { text: "gateway.token.api", user: GATEWAY, audience: "https://kubernetes.default.svc" },
    Token { text: "admin.token.good", user: "admin", audience: AUDIENCE },
    Token { text: "path.token.good", user: "system:serviceaccount:a/ns/b:c", audience: AUDIENCE },
];

struct ApiServer {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<serde_json::Value>>>,
    task: JoinHandle<()>,
}

impl ApiServer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<serde_json::Value>>> = Arc::default();
        let seen = asked.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let seen = seen.clone();
                let service = service_fn(move |request| answer(request, seen.clone()));
                let http = hyper::server::conn::http1::Builder::new();
                connections.spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, asked, task }
    }

    fn kubeconfig(&self, folder: &Path) -> Access {
        let path = folder.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{{name: a, cluster: {{server: \"http://{}\"}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\nusers: [{{name: a, user: {{}}}}]\n",
            self.address
        );
        fs::write(&path, text).unwrap();
        Access::Kubeconfig { path, context: None }
    }
}

async fn answer(
    request: hyper::Request<hyper::body::Incoming>,
    seen: Arc<Mutex<Vec<serde_json::Value>>>,
) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.uri().path(), "/apis/authentication.k8s.io/v1/tokenreviews");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut review: serde_json::Value = serde_json::from_slice(&body).unwrap();
    seen.lock().unwrap().push(review["spec"].clone());
    let token = TOKENS.iter().find(|token| review["spec"]["token"] == token.text);
    review["status"] = match token {
        Some(token) => serde_json::json!({
            "authenticated": true, "audiences": [token.audience], "user": {"username": token.user}
        }),
        None => serde_json::json!({"authenticated": false, "error": "[invalid bearer token, token lookup failed]"}),
    };
    let answer = hyper::Response::builder().status(201).header("content-type", "application/json");
    Ok(answer.body(Full::from(review.to_string())).unwrap())
}

/// A cluster with a CA role on the network.
struct Cluster {
    folder: tempfile::TempDir,
    api: ApiServer,
    address: HostPort,
    telemetry: Telemetry,
    stop: CancellationToken,
    role: JoinHandle<()>,
}

impl Cluster {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let api = ApiServer::start().await;
        let cacerts = folder.path().join("cacerts");
        Ca::init(&cacerts, &InitOptions::new("a.example")).unwrap();
        // What a pod other than the CA's is given.
        let public = folder.path().join("public");
        fs::create_dir(&public).unwrap();
        for file in ["cert-chain.pem", "root-cert.pem"] {
            fs::copy(cacerts.join(file), public.join(file)).unwrap();
        }
        let network = NetworkSettings {
            address: "127.0.0.1:0".parse().unwrap(),
            identity: id("eastway-ca"),
            access: api.kubeconfig(folder.path()),
        };
        let settings = CaSettings {
            folder: cacerts,
            socket: None,
            network: Some(network),
            gateway: id("eastway-gateway"),
            workloads: Vec::new(),
            file: None,
            leaf_ttl: DAY,
        };
        let telemetry = Telemetry::new(AccessMode::Off);
        let ca = bind(settings, telemetry.clone()).await.unwrap();
        let address = HostPort::parse(&ca.local_addr().unwrap().to_string()).unwrap();
        let stop = CancellationToken::new();
        let role = tokio::spawn({
            let stop = stop.clone();
            async move { ca.run(stop).await.unwrap() }
        });
        Self { folder, api, address, telemetry, stop, role }
    }

    /// A pod with this token.
    fn pod(&self, token: &str) -> CaClient {
        let file = self.folder.path().join(format!("token-{}", token.len()));
        fs::write(&file, format!("{token}\n")).unwrap();
        self.pod_with(file)
    }

    fn pod_with(&self, token: PathBuf) -> CaClient {
        CaClient::network(NetworkCa {
            address: self.address.clone(),
            identity: id("eastway-ca"),
            anchors: self.folder.path().join("public"),
            token,
        })
    }

    fn refusals(&self, reason: &str) -> bool {
        self.refused(reason) > 0
    }

    /// How often something was refused for this reason.
    fn refused(&self, reason: &str) -> u64 {
        let page = self.telemetry.metrics.encode().unwrap();
        let lines = page.lines().filter(|line| line.contains(&format!("reason=\"{reason}\"")));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
        self.role.abort();
        self.api.task.abort();
    }
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::workload("a.example", "eastway-system", account).unwrap()
}

#[tokio::test]
async fn c4_identity_comes_from_the_token_review_and_link_keys_are_for_gateways() {
    let cluster = Cluster::start().await;
    let (gateway, _keys) = until_enrolled(&cluster.pod("gateway.token.good"), DAY).await;
    assert_eq!(*gateway.id(), id("eastway-gateway"));
    let web = cluster.pod("web.token.good").enroll(DAY, None).await.unwrap();
    assert_eq!(web.identity.id().as_str(), "spiffe://a.example/ns/shop/sa/web");
    assert!(web.link_keys.is_none(), "replicas of the gateway share them, and nobody else");
    let asked = cluster.api.asked.lock().unwrap().clone();
    assert!(asked.iter().all(|spec| spec["audiences"] == serde_json::json!([AUDIENCE])), "{asked:?}");
}

#[tokio::test]
async fn c4_tokens_that_are_not_for_us_get_nothing() {
    let cluster = Cluster::start().await;
    let told = [
        ("gateway.token.api", "is not for the audience"),
        ("gateway.token.expired", "does not accept the token"),
        ("admin.token.good", "not of a service account"),
        ("path.token.good", "makes no identity"),
        ("not a token", "no service-account token"),
    ];
    for (token, words) in told {
        let error = cluster.pod(token).enroll(DAY, None).await.unwrap_err();
        assert!(error.to_string().contains(words), "{token}: {error}");
        assert!(matches!(error, EnrollError::Refused(_)), "{error}");
    }
    assert!(cluster.refusals("signing"));
    let none = cluster.pod_with(cluster.folder.path().join("none")).enroll(DAY, None).await.unwrap_err();
    assert!(none.to_string().contains("projected with the audience eastway-ca"), "{none}");
    // Asked by hand, without anything.
    let trust = LocalTrust::new(
        Arc::new({
            let issuers = eastway_identity::ca::public_issuers(&cluster.folder.path().join("public")).unwrap();
            move || issuers.clone()
        }),
        Wanted::Identity(id("eastway-ca")),
    );
    let tls = eastway_identity::local::client_config(None, trust, system_clock()).unwrap();
    let channel = crate::local::dial::dial(&cluster.address, tls).await.unwrap();
    let mut client = wire::certificate_authority_client::CertificateAuthorityClient::new(channel);
    let (_key, csr) = eastway_identity::csr::new_key_and_csr().unwrap();
    let refused = client.sign(wire::SignRequest { csr: csr.into(), ttl_seconds: 0 }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    assert!(client.trust(wire::TrustRequest {}).await.is_ok(), "what is public is for all");
}

#[tokio::test]
async fn a_live_certificate_renews_while_the_api_server_is_away_and_no_longer_than_it_lives() {
    let cluster = Cluster::start().await;
    let pod = cluster.pod("web.token.good");
    let store = IdentityStore::new(until_certified(&pod, DAY).await.identity);
    let before = store.current().leaf_sha256();

    // Another's token beside our certificate.
    let confused = cluster.pod("gateway.token.good").enroll(DAY, Some(&store)).await.unwrap_err();
    assert!(confused.to_string().contains("the certificate of spiffe://a.example/ns/shop/sa/web"), "{confused}");
    let deleted = cluster.pod("web.token.gone-").enroll(DAY, Some(&store)).await.unwrap_err();
    assert!(deleted.to_string().contains("does not accept"), "an account that is gone gets nothing new: {deleted}");

    cluster.api.task.abort();
    let fresh = cluster.pod("web.token.fresh").enroll(DAY, None).await.unwrap_err();
    assert!(fresh.to_string().contains("cannot be asked"), "{fresh}");
    let renewed = pod.enroll(DAY, Some(&store)).await.unwrap();
    assert_eq!(renewed.identity.id(), store.current().id());
    assert_ne!(renewed.identity.leaf_sha256(), before);
    // Without any token.
    let none = cluster.pod_with(cluster.folder.path().join("none"));
    none.enroll(DAY, Some(&store)).await.unwrap();

    let short = IdentityStore::new(pod.enroll(Duration::from_secs(1), Some(&store)).await.unwrap().identity);
    let ended = async {
        while short.current().not_after() > SystemTime::now() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap();
    assert!(none.enroll(DAY, Some(&short)).await.is_err());
}

#[tokio::test]
async fn f27_who_missed_a_whole_rotation_is_certified_by_its_token() {
    let cluster = Cluster::start().await;
    let pod = cluster.pod("web.token.good");
    // Its key was replaced and forgotten since.
    let before = Ca::init(&cluster.folder.path().join("before"), &InitOptions::new("a.example")).unwrap();
    let web = SpiffeId::workload("a.example", "shop", "web").unwrap();
    let store = IdentityStore::new(before.issue_identity(&web, DAY, SystemTime::now()).unwrap());
    let renewed = pod.enroll(DAY, Some(&store)).await.unwrap();
    assert_eq!(renewed.identity.id(), &web);
    assert!(pod.next_ca(Some(&store)).await.unwrap().is_none(), "it is told of rotations again");
    // The certificate is worth nothing by itself.
    let none = cluster.pod_with(cluster.folder.path().join("none"));
    none.enroll(DAY, Some(&store)).await.unwrap_err();
}

#[tokio::test]
async fn c6_a_certificate_that_another_ca_forged_or_that_is_revoked_renews_nothing() {
    let cluster = Cluster::start().await;
    let web = IdentityStore::new(until_certified(&cluster.pod("web.token.good"), DAY).await.identity);
    let none = cluster.pod_with(cluster.folder.path().join("none"));
    none.enroll(DAY, Some(&web)).await.unwrap();
    // The CA of another cluster may write our names into what it signs.
    let other = cluster.folder.path().join("other");
    let other = Ca::init(&other, &InitOptions::new("b.example")).unwrap();
    for id in [web.current().id().clone(), id("eastway-gateway")] {
        let forged = IdentityStore::new(other.issue_identity(&id, DAY, SystemTime::now()).unwrap());
        none.enroll(DAY, Some(&forged)).await.unwrap_err();
    }
    assert!(cluster.refusals("handshake"));
    let serial = crl::serial(&web.current().chain()[0]).unwrap();
    eastway_identity::ca::revoke(&cluster.folder.path().join("cacerts"), &[&serial], SystemTime::now()).unwrap();
    // From the first request on, whether or not the role has looked at its folder meanwhile.
    none.enroll(DAY, Some(&web)).await.unwrap_err();
}

#[tokio::test]
async fn f16_a_restarted_gateway_has_its_certificate_while_nobody_can_be_asked() {
    let cluster = Cluster::start().await;
    let folder = cluster.folder.path().to_owned();
    let pod = |token: &str| cluster.pod(token).keeping(Some(folder.clone()));
    let (first, links) = until_enrolled(&pod("gateway.token.good"), DAY).await;
    // Restarted while all is well: a new one.
    let (second, _) = until_enrolled(&pod("gateway.token.good"), DAY).await;
    assert_ne!(first.leaf_sha256(), second.leaf_sha256());

    // The API server is away: the kept certificate counts, and a new one is given for it.
    cluster.api.task.abort();
    let (third, same) = until_enrolled(&pod("gateway.token.good"), DAY).await;
    assert_ne!(second.leaf_sha256(), third.leaf_sha256());
    assert_eq!(links, same);
    // The CA too.
    cluster.stop.cancel();
    cluster.role.abort();
    let (fourth, same) = until_enrolled(&pod("gateway.token.good"), DAY).await;
    assert_eq!((third.leaf_sha256(), links), (fourth.leaf_sha256(), same));
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(folder.join("gateway.pem")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "for nobody else");
}

#[tokio::test]
async fn an_account_that_gets_no_certificate_any_more_has_none_over_a_restart() {
    let cluster = Cluster::start().await;
    let folder = cluster.folder.path().to_owned();
    let _first = until_enrolled(&cluster.pod("gateway.token.good").keeping(Some(folder.clone())), DAY).await;
    let gone = cluster.pod("gateway.token.gone-").keeping(Some(folder.clone()));
    let asking = tokio::time::timeout(Duration::from_secs(3), until_enrolled(&gone, DAY)).await;
    assert!(asking.is_err() && !folder.join("gateway.pem").exists());
}

#[tokio::test]
async fn a_certificate_is_renewed_over_the_network_before_it_ends() {
    let cluster = Cluster::start().await;
    let pod = cluster.pod("web.token.good");
    let ttl = Duration::from_secs(3);
    let store = IdentityStore::new(pod.enroll(ttl, None).await.unwrap().identity);
    // Its life counts from a minute ago: it is due at once.
    let mut renewed = store.subscribe();
    let stop = cluster.stop.clone();
    let keeper = tokio::spawn(keep_fresh(pod, ttl, store.clone(), stop));
    tokio::time::timeout(Duration::from_secs(10), renewed.changed()).await.unwrap().unwrap();
    keeper.abort();
}

#[tokio::test]
async fn a_ca_of_another_cluster_gets_no_token() {
    let (cluster, other) = (Cluster::start().await, Cluster::start().await);
    let file = cluster.folder.path().join("token");
    fs::write(&file, "gateway.token.good").unwrap();
    let misled = CaClient::network(NetworkCa {
        address: other.address.clone(),
        identity: id("eastway-ca"),
        anchors: cluster.folder.path().join("public"),
        token: file,
    });
    let error = misled.enroll(DAY, None).await.unwrap_err();
    assert!(error.to_string().contains("of another CA"), "{error}");
    assert!(other.api.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn i8_who_asks_too_often_is_refused_before_the_api_server_is_asked() {
    let cluster = Cluster::start().await;
    let pod = cluster.pod("gateway.token.bad");
    let mut refused = 0;
    for _ in 0..60 {
        let error = pod.enroll(DAY, None).await.unwrap_err();
        refused += usize::from(error.to_string().contains("too many requests"));
    }
    assert!(refused > 0 && cluster.refusals("overload"));
    assert!(cluster.api.asked.lock().unwrap().len() <= 60 - refused);
}

#[tokio::test]
async fn a_ca_on_the_network_needs_a_place_to_listen() {
    let settings = CaSettings {
        folder: PathBuf::from("none"),
        socket: None,
        network: None,
        gateway: id("eastway-gateway"),
        workloads: Vec::new(),
        file: None,
        leaf_ttl: DAY,
    };
    let error = bind(settings, Telemetry::new(AccessMode::Off)).await.unwrap_err();
    assert!(error.to_string().contains("listen.ca"), "{error}");
}
