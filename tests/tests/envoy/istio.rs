//! Sidecars of Istio, which take our gateway for that of another network: Envoys configured by hand as istiod would, a
//! client in one cloud and a server in the other, with TLS between them that no gateway ends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use eastway_tests::lab::files::ServiceSpec;
use eastway_tests::lab::place::Place;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE, PORT};
use eastway_tests::{envoy, lab_test, within};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::whole_path::PATIENCE;

/// The port for what b serves.
const NETWORK: u16 = 15444;
/// What Istio calls b's service.
const NAME: &str = "outbound_.8080_._.web.shop.svc.cluster.local";
const CLIENT: &str = "spiffe://mesh.test/ns/shop/sa/client";
const SERVER: &str = "spiffe://mesh.test/ns/shop/sa/web";
/// Where the client's Envoy listens.
const APP: &str = "127.0.0.1:9000";

/// A root, and a certificate and a key of each of two workloads, as files.
fn certificates(folder: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Unlike the name that the leaves have by default: they would count as signed by themselves.
    params.distinguished_name.push(DnType::CommonName, "root");
    std::fs::write(folder.join("root.pem"), params.self_signed(&key)?.pem())?;
    let root = Issuer::new(params, key);
    for (name, id) in [("client", CLIENT), ("server", SERVER)] {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        std::fs::write(folder.join(format!("{name}.pem")), params.signed_by(&key, &root)?.pem())?;
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

fn tls(folder: &Path, own: &str, other: &str) -> Value {
    json!({
        "tls_certificates": [{
            "certificate_chain": {"filename": folder.join(format!("{own}.pem"))},
            "private_key": {"filename": folder.join(format!("{own}.key"))},
        }],
        "validation_context": {
            "trusted_ca": {"filename": folder.join("root.pem")},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": other}}],
        },
        "alpn_protocols": ["istio-http/1.1", "istio", "http/1.1"],
    })
}

pub(crate) fn typed(name: &str, kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/{kind}").into();
    json!({"name": name, "typed_config": config})
}

/// An HTTP proxy with this one route.
fn http(route: Value) -> Value {
    let mut route = route;
    route["match"] = json!({"prefix": "/"});
    let router = typed("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", json!({}));
    typed(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "http",
            "http_filters": [router],
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        }),
    )
}

pub(crate) fn address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

/// The server: it says who called it, and by which name. Only who offers Istio's protocol gets in.
fn server(folder: &Path, at: SocketAddr) -> Value {
    let header = |key: &str, value: &str| json!({"header": {"key": key, "value": value}});
    let route = json!({
        "direct_response": {"status": 200, "body": {"inline_string": "hello from b"}},
        "response_headers_to_add": [
            header("x-caller", "%DOWNSTREAM_PEER_URI_SAN%"),
            header("x-name", "%REQUESTED_SERVER_NAME%"),
        ],
    });
    let inspector = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
    let context = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    json!({"static_resources": {"listeners": [{
        "name": "inbound",
        "address": address(at),
        "listener_filters": [typed("envoy.filters.listener.tls_inspector", inspector, json!({}))],
        "filter_chains": [{
            "filter_chain_match": {"transport_protocol": "tls", "application_protocols": ["istio-http/1.1"]},
            "transport_socket": typed("envoy.transport_sockets.tls", context, json!({
                "require_client_certificate": true,
                "common_tls_context": tls(folder, "server", CLIENT),
            })),
            "filters": [http(route)],
        }],
    }]}})
}

/// The client: its one endpoint is the gateway's port for the other network.
fn client(folder: &Path, gateway: SocketAddr, source: SocketAddr) -> Result<Value> {
    let context = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    let endpoint = json!({"endpoint": {"address": address(gateway)}});
    Ok(json!({"static_resources": {
        "listeners": [{
            "name": "outbound",
            "address": address(APP.parse()?),
            "filter_chains": [{"filters": [http(json!({"route": {"cluster": "web"}}))]}],
        }],
        "clusters": [{
            "name": "web",
            "type": "STATIC",
            "connect_timeout": "10s",
            "upstream_bind_config": {"source_address": address(source)["socket_address"]},
            "load_assignment": {"cluster_name": "web", "endpoints": [{"lb_endpoints": [endpoint]}]},
            "transport_socket": typed("envoy.transport_sockets.tls", context, json!({
                "sni": NAME,
                "common_tls_context": tls(folder, "client", SERVER),
            })),
        }],
    }}))
}

struct Stage {
    mesh: Mesh,
    folder: PathBuf,
    _server: Child,
}

impl Stage {
    /// Clouds a and b, a port of a for b, and a server at b.
    async fn set(version: &str) -> Result<Self> {
        let settings = json!({"listen": {"sni": [{"cluster": "b", "address": format!("0.0.0.0:{NETWORK}")}]}});
        let mut mesh = MeshBuilder::of(&["a", "b"]).settings("a", &settings).prepare().await?;
        mesh.start_gateways().await?;
        mesh.wait_up("a", "b", PATIENCE).await?;
        let folder = mesh.cloud("a").folder().to_owned();
        certificates(&folder)?;
        let net = mesh.cloud("b").net();
        let at = SocketAddr::new(net.pod(11), PORT);
        let server = start(net.pods(), version, &folder.join("server.json"), &server(&folder, at)).await?;
        mesh.change_services("b", |services| {
            let service = |name: &str, export| {
                let spec = ServiceSpec::new(NAMESPACE, name, PORT).endpoint(at.ip(), "v1");
                ServiceSpec { export, ..spec }
            };
            services.extend([service("web", true), service("secret", false)]);
        })?;
        mesh.change_services("a", |_| {})?;
        mesh.target("a", "web").await?;
        Ok(Self { mesh, folder, _server: server })
    }

    fn port(&self) -> SocketAddr {
        SocketAddr::new(self.mesh.cloud("a").net().gateways()[0].inside, NETWORK)
    }

    async fn connect(&self) -> Result<TcpStream> {
        let ((place, source), port) = (self.mesh.client("a"), self.port());
        place
            .run(async move {
                let socket = TcpSocket::new_v4()?;
                socket.bind(SocketAddr::new(source, 0))?;
                let stream = socket.connect(port).await?;
                stream.set_nodelay(true)?;
                Ok(stream)
            })
            .await
    }

    /// Says something in pieces of this size, and gives the first byte of the answer.
    async fn say(&self, bytes: &[u8], size: usize) -> Result<u8> {
        let mut stream = self.connect().await?;
        for piece in bytes.chunks(size) {
            stream.write_all(piece).await?;
            // Each piece is read alone.
            tokio::task::yield_now().await;
        }
        Ok(timeout(PATIENCE, stream.read_u8()).await.context("no answer")??)
    }

    /// Says a byte a second, until the connection is reset; how long that took.
    async fn dribble(&self, bytes: &[u8]) -> Result<Duration> {
        let (begun, stream) = (Instant::now(), self.connect().await?);
        let (mut read, mut write) = stream.into_split();
        let saying = async {
            for byte in bytes {
                if write.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            std::future::pending::<()>().await;
        };
        let answer = tokio::select! {
            answer = timeout(PATIENCE, read.read_u8()) => answer.context("no answer")?,
            () = saying => bail!("it was heard to the end"),
        };
        is_reset(answer.map_err(Into::into))?;
        Ok(begun.elapsed())
    }

    /// Connections refused by name so far.
    async fn refused(&self) -> Result<u64> {
        let page = self.mesh.cloud("a").metrics(0).await?;
        let counts = page.lines().filter(|line| line.starts_with("eastway_refused_total{") && line.contains("\"sni\""));
        Ok(counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    }
}

/// Starts an Envoy with this configuration, which it writes to `file`.
pub(crate) async fn start(place: &Place, version: &str, file: &Path, config: &Value) -> Result<Child> {
    std::fs::write(file, config.to_string())?;
    let log = std::fs::File::create(file.with_extension("log"))?;
    let mut command = Command::new(envoy::binary(version)?);
    command.arg("-c").arg(file).args(["--disable-hot-restart", "--concurrency", "1"]);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    place.run(async move { Ok(command.spawn()?) }).await
}

/// A ClientHello for this name.
fn hello(name: &str) -> Result<Vec<u8>> {
    let config = rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty());
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"istio-http/1.1".to_vec()];
    let mut connection = rustls::ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned())?)?;
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes)?;
    Ok(bytes)
}

fn is_reset(answer: Result<u8>) -> Result<()> {
    match answer {
        Ok(byte) => bail!("it was answered: {byte}"),
        Err(error) => {
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            ensure!(kind == Some(std::io::ErrorKind::ConnectionReset), "{error:#}");
            Ok(())
        }
    }
}

async fn reaches_its_peer(version: &str) -> Result<()> {
    let stage = Stage::set(version).await?;
    let (place, source) = stage.mesh.client("a");
    let config = client(&stage.folder, stage.port(), SocketAddr::new(source, 0))?;
    let mut client = start(&place, version, &stage.folder.join("client.json"), &config).await?;
    let ask = async || {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--include", "--max-time", "5", &format!("http://{APP}/")]);
        let output = place.run(async move { Ok(curl.output().await?) }).await?;
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let answered = within(PATIENCE, "an answer of b", async || Ok(ask().await?.starts_with("HTTP/1.1 200"))).await;
    answered.with_context(|| {
        let log = |name: &str| std::fs::read_to_string(stage.folder.join(name)).unwrap_or_default();
        format!("client:\n{}\nserver:\n{}", log("client.log"), log("server.log"))
    })?;
    let answer = ask().await?;
    for line in [format!("x-caller: {CLIENT}"), format!("x-name: {NAME}"), "hello from b".to_owned()] {
        ensure!(answer.lines().any(|said| said == line), "{line:?} is missing:\n{answer}");
    }
    for _ in 0..50 {
        ensure!(ask().await?.starts_with("HTTP/1.1 200"), "one failed");
    }
    ensure!(stage.refused().await? == 0, "something was refused");
    // A gateway that ends waits for the connections that its pool keeps.
    client.kill().await?;
    stage.mesh.stop().await
}

lab_test! {
    /// The identities are those of the two workloads, end to end, and Istio's own ALPN gets through.
    async fn an_istio_sidecar_reaches_its_peer_envoy_1_40_0() { reaches_its_peer("1.40.0").await }
    async fn an_istio_sidecar_reaches_its_peer_envoy_1_36_2() { reaches_its_peer("1.36.2").await }

    async fn a_name_is_read_however_it_comes_and_what_is_wrong_is_refused_alike() {
        let stage = Stage::set("1.40.0").await?;
        // The server's first record: all that came before went through.
        within(PATIENCE, "the server is there", async || Ok(stage.say(&hello(NAME)?, 4_096).await.is_ok())).await?;
        for size in [1, 100] {
            let first = stage.say(&hello(NAME)?, size).await?;
            ensure!(first == 21 || first == 22, "in pieces of {size}: {first}");
        }
        let before = stage.refused().await?;
        let (_, said) = stage.mesh.cloud("b").command(0, &["describe", "shop/secret"]).await?;
        ensure!(said.contains("it exists in this cluster, but is not exported"), "{said}");
        let names = [
            "outbound_.8080_._.secret.shop.svc.cluster.local",
            "outbound_.8080_._.nobody.shop.svc.cluster.local",
            "outbound_.8081_._.web.shop.svc.cluster.local",
            "outbound_.8080_.v9_.web.shop.svc.cluster.local",
            "outbound_.8080_._.web.shop.example",
            "web.shop.svc.cluster.local",
        ];
        for name in names {
            is_reset(stage.say(&hello(name)?, 4_096).await).with_context(|| name.to_owned())?;
        }
        is_reset(stage.say(b"GET / HTTP/1.1\r\nhost: web.shop\r\n\r\n", 4_096).await)?;
        is_reset(stage.say(&[22, 3, 1, 0, 9, 1, 0xff, 0, 0, 0, 0, 0, 0, 0], 4_096).await)?;
        // Records of one byte each, which never hold all of it.
        let endless = [22, 3, 1, 0, 1, 1, 22, 3, 1, 0, 1, 0].iter().chain([22, 3, 1, 0, 1, 0xff].iter().cycle());
        let endless: Vec<u8> = endless.copied().take(20 << 10).collect();
        is_reset(stage.say(&endless, endless.len()).await)?;
        let whole = hello(NAME)?;
        let half = async {
            let begun = Instant::now();
            is_reset(stage.say(&whole[..whole.len() - 1], 4_096).await)?;
            Ok::<_, anyhow::Error>(begun.elapsed())
        };
        for waited in <[Duration; 2]>::from(tokio::try_join!(half, stage.dribble(&whole))?) {
            let bound = Duration::from_secs(4)..Duration::from_secs(8);
            ensure!(bound.contains(&waited), "what never came to an end had {waited:?}");
        }
        let counted = stage.refused().await? - before;
        ensure!(counted == 11, "{counted} were counted");
        stage.mesh.stop().await
    }
}
