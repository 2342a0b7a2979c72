//! The webhook over TLS, as an API server asks it, and as others do.

use std::net::SocketAddr;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use eastway_identity::web::{self, WebCertificate, WebIdentity};
use eastway_identity::{CertificateDer, tls};
use eastway_model::Label;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::telemetry::AccessMode;

const NAME: &str = "eastway-injector.eastway-system.svc";

struct Webhook {
    address: SocketAddr,
    identity: Arc<WebIdentity>,
    telemetry: Telemetry,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn made() -> WebCertificate {
    WebCertificate::generate(NAME, SystemTime::now(), Duration::from_secs(3600)).unwrap()
}

impl Webhook {
    async fn start() -> Self {
        let settings = injection::Settings {
            image: "sidecar:1".to_owned(),
            pull_policy: "IfNotPresent".to_owned(),
            system_namespace: Label::parse("eastway-system").unwrap(),
            trust_domain: "a.example".to_owned(),
            ca: "https://ca:15012".to_owned(),
            gateway: "gateway:15012".to_owned(),
            ranges: Vec::new(),
            resources: json!({}),
            ipv6: false,
        };
        let telemetry = Telemetry::new(AccessMode::Off);
        let (identity, stop) = (WebIdentity::new(made()), CancellationToken::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = web::server_config(Arc::clone(&identity)).unwrap();
        let server = Server::new(settings, telemetry.clone());
        let task = tokio::spawn(server.serve(listener, config, stop.clone()));
        Self { address, identity, telemetry, stop, task }
    }

    /// Connects as an API server that trusts this certificate.
    async fn connect(&self, trusted: &CertificateDer<'static>) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions();
        let config = config.unwrap().with_root_certificates(roots).with_no_client_auth();
        let stream = TcpStream::connect(self.address).await?;
        TlsConnector::from(Arc::new(config)).connect(NAME.try_into().unwrap(), stream).await
    }

    async fn trusted(&self) -> TlsStream<TcpStream> {
        self.connect(self.identity.current().certificate()).await.unwrap()
    }

    /// What is answered to bytes that are sent by a connection of their own.
    async fn say(&self, bytes: &[u8]) -> String {
        let mut stream = self.trusted().await;
        // It may have heard enough.
        let _sent = stream.write_all(bytes).await;
        response(&mut stream).await.unwrap_or_default()
    }

    fn count(&self, line: &str) -> bool {
        self.telemetry.metrics.encode().unwrap().lines().any(|one| one.starts_with(line))
    }
}

/// Reads one answer: its head and as much of a body as that says.
async fn response(stream: &mut TlsStream<TcpStream>) -> Option<String> {
    let read = async {
        let mut text = Vec::new();
        loop {
            let mut buffer = [0; 4096];
            let size = stream.read(&mut buffer).await.ok()?;
            text.extend_from_slice(&buffer[..size]);
            let said = String::from_utf8_lossy(&text).into_owned();
            let whole = said.split_once("\r\n\r\n").is_some_and(|(head, body)| {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                body.len() >= length.and_then(|length| length.parse().ok()).unwrap_or(0)
            });
            if whole || size == 0 {
                return Some(said);
            }
        }
    };
    timeout(Duration::from_secs(20), read).await.expect("an answer in time")
}

fn question() -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "namespace": "shop",
            "operation": "CREATE", "object": {"metadata": {"name": "web"}, "spec": {"containers": [{"name": "web"}]}},
        },
    })
    .to_string()
}

fn post(body: &str) -> String {
    format!(
        "POST /inject?timeout=5s HTTP/1.1\r\nHost: {NAME}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn an_api_server_asks_on_one_connection_and_gets_patches() {
    let webhook = Webhook::start().await;
    let mut stream = webhook.trusted().await;
    for _ in 0..3 {
        stream.write_all(post(&question()).as_bytes()).await.unwrap();
        let said = response(&mut stream).await.unwrap();
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        let body: Value = serde_json::from_str(said.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!(body["response"]["uid"], "u-1");
        let patch = STANDARD.decode(body["response"]["patch"].as_str().unwrap()).unwrap();
        let patch: Value = serde_json::from_slice(&patch).unwrap();
        assert_eq!(patch[0]["path"], "/spec/initContainers");
    }
    assert!(webhook.count("eastway_injection_requests_total{reason=\"injected\"} 3"));
    // At the end open connections are closed, and nothing waits for them.
    webhook.stop.cancel();
    timeout(Duration::from_secs(10), webhook.task).await.unwrap().unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

/// What the one half writes into a pod the other half reads there, when the kubelet has filled it in.
#[tokio::test]
async fn a_sidecar_understands_what_is_put_into_its_pod() {
    let webhook = Webhook::start().await;
    let said = webhook.say(post(&question()).as_bytes()).await;
    let body: Value = serde_json::from_str(said.split_once("\r\n\r\n").unwrap().1).unwrap();
    let patch = STANDARD.decode(body["response"]["patch"].as_str().unwrap()).unwrap();
    let patch: Value = serde_json::from_slice(&patch).unwrap();
    for container in patch[0]["value"].as_array().unwrap() {
        let mut text = String::new();
        for variable in container["env"].as_array().unwrap() {
            let Some(value) = variable["value"].as_str() else { continue };
            assert_eq!(variable["name"], crate::roles::sidecar::program::CONFIG_VARIABLE);
            text = value.replace("$(POD_NAME)", "web-6b7c-x").replace("$(POD_NAMESPACE)", "shop");
            text = text.replace("$(SERVICE_ACCOUNT)", "web");
        }
        assert!(!text.contains("$("), "{text}");
        let settings = crate::config::read_sidecar("variable", &text).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(settings.identity().unwrap().as_str(), "spiffe://a.example/ns/shop/sa/web");
        assert_eq!(settings.capture, crate::config::file::CaptureWord::Prepared);
        assert!(settings.vips.is_empty(), "everything");
        assert_eq!(settings.health.unwrap().port(), 15021);
    }
}

#[tokio::test]
async fn who_does_not_know_the_certificate_gets_none_and_a_new_one_is_shown_at_once() {
    let webhook = Webhook::start().await;
    let first = webhook.identity.current();
    assert!(webhook.connect(made().certificate()).await.is_err(), "of the same name, by another key");
    let next = made();
    webhook.identity.replace(next.clone());
    assert!(webhook.connect(first.certificate()).await.is_err());
    assert!(webhook.connect(next.certificate()).await.is_ok());
}

#[tokio::test]
async fn hostile_requests_get_an_error_each_and_the_next_one_is_served() {
    let webhook = Webhook::start().await;
    let good = post(&question());
    let size = MAX_REVIEW + 1;
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, "x".repeat(1 << 20));
    let head = "Transfer-Encoding: chunked\r\n\r\n";
    let chunked =
        format!("POST /inject HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{head}{}", chunk.repeat(5));
    let table = [
        ("GET", good.replacen("POST", "GET", 1), "405"),
        ("another path", good.replacen("/inject", "/", 1), "404"),
        ("another kind of body", good.replacen("application/json", "text/plain", 1), "415"),
        ("no JSON", post("{"), "400"),
        ("JSON that is deep", post(&"[".repeat(100_000)), "400"),
        ("another version", post(&question().replacen("k8s.io/v1", "k8s.io/v1beta1", 1)), "400"),
        (
            "a length above the bound",
            good.replacen(&format!("Length: {}", question().len()), &format!("Length: {size}"), 1),
            "413",
        ),
        ("chunks above the bound", chunked, "413"),
        ("no HTTP", "hello\r\n\r\n".to_owned(), "400"),
        ("a head of 64 KiB", good.replacen("Host:", &format!("X: {}\r\nHost:", "x".repeat(64 << 10)), 1), "431"),
        ("two lengths", good.replacen("Content-Length", "Content-Length: 1\r\nContent-Length", 1), "400"),
    ];
    for (name, request, code) in &table {
        let said = webhook.say(request.as_bytes()).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {code}")), "{name}: {said}");
    }
    assert!(webhook.count("eastway_injection_requests_total{reason=\"invalid\"} 8"), "HTTP's own errors are hyper's");
    // A body that ends early, and bytes that are no TLS.
    let mut stream = webhook.trusted().await;
    stream.write_all(&good.as_bytes()[..good.len() - 5]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut plain = TcpStream::connect(webhook.address).await.unwrap();
    plain.write_all(good.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    let _closed = timeout(Duration::from_secs(10), plain.read_to_end(&mut said)).await.unwrap();
    assert!(!String::from_utf8_lossy(&said).contains("HTTP"), "nothing is said without TLS");
    assert!(webhook.say(good.as_bytes()).await.starts_with("HTTP/1.1 200"));
}
