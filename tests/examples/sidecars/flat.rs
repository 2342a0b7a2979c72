//! What most have: one network, with a route from everywhere to everywhere, and Envoys beside client and server that
//! somebody else configures. Nothing of ours is in it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use eastway_tests::lab::place::Place;
use eastway_tests::load;
use eastway_tests::servers::{Habit, Server};
use eastway_tests::{envoy, within};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::clouds::PATIENCE;
use crate::latency::Way;

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The server's port, and that of the Envoy before it.
const PORT: u16 = 8080;
const INBOUND: u16 = 15006;
/// Ports of the Envoy beside the client: to the server itself, and to the Envoy before it.
const TO_SERVER: u16 = 9001;
const TO_ENVOY: u16 = 9002;

/// Client and server, and their Envoys.
pub(crate) struct Network {
    client: Place,
    _places: [Place; 2],
    _envoys: [Child; 2],
}

impl Network {
    /// Lays it and starts all that is in it, with files in `folder`.
    pub(crate) async fn lay(folder: &Path, version: &str) -> Result<Self> {
        let folder = folder.join("flat");
        std::fs::create_dir(&folder)?;
        certificates(&folder)?;
        let switch = Place::namespace("flat/switch").await?;
        switch.ip_batch(&["link add flat type bridge".to_owned(), "link set flat up".to_owned()]).await?;
        let client = host(&switch, "client", CLIENT).await?;
        let server = host(&switch, "server", SERVER).await?;
        Server::start(&server, SocketAddr::from((SERVER, PORT)), "flat", Habit::Http).await?;
        let outbound = json!({"static_resources": {
            "listeners": [
                listener(Ipv4Addr::LOCALHOST, TO_SERVER, "server", None),
                listener(Ipv4Addr::LOCALHOST, TO_ENVOY, "envoy", None),
            ],
            "clusters": [
                cluster("server", PORT, None),
                cluster("envoy", INBOUND, Some(upstream(&folder))),
            ],
        }});
        let inbound = json!({"static_resources": {
            "listeners": [listener(SERVER, INBOUND, "server", Some(downstream(&folder)))],
            "clusters": [cluster("server", PORT, None)],
        }});
        let envoys = [
            start(&server, version, &folder.join("inbound.json"), &inbound).await?,
            start(&client, version, &folder.join("outbound.json"), &outbound).await?,
        ];
        let network = Self { client, _places: [switch, server], _envoys: envoys };
        for way in network.ways() {
            let answers = async || {
                let asked = way.place.run(async move { load::ask_once(way.source, way.target, 1_000).await });
                asked.await.map(|_| true)
            };
            let answered = within(PATIENCE, format!("an answer by {}", way.name), answers).await;
            answered.with_context(|| std::fs::read_to_string(folder.join("outbound.log")).unwrap_or_default())?;
        }
        Ok(network)
    }

    /// To the server itself, through the client's Envoy, and through both.
    pub(crate) fn ways(&self) -> Vec<Way> {
        let way = |name, source: Ipv4Addr, target: Ipv4Addr, port| Way {
            name,
            place: self.client.clone(),
            source: IpAddr::V4(source),
            target: SocketAddr::from((target, port)),
        };
        let own = Ipv4Addr::LOCALHOST;
        vec![
            way("direct", CLIENT, SERVER, PORT),
            way("envoy", own, own, TO_SERVER),
            way("envoy_envoy", own, own, TO_ENVOY),
        ]
    }
}

async fn host(switch: &Place, name: &str, address: Ipv4Addr) -> Result<Place> {
    let host = Place::namespace(&format!("flat/{name}")).await?;
    switch.veth(name, &host, "eth0").await?;
    switch.ip_batch(&[format!("link set {name} master flat"), format!("link set {name} up")]).await?;
    host.ip_batch(&[format!("addr add {address}/24 dev eth0"), "link set eth0 up".to_owned()]).await?;
    Ok(host)
}

async fn start(place: &Place, version: &str, file: &Path, config: &Value) -> Result<Child> {
    std::fs::write(file, config.to_string())?;
    let log = std::fs::File::create(file.with_extension("log"))?;
    let mut command = Command::new(envoy::binary(version)?);
    command.arg("-c").arg(file).args(["--disable-hot-restart", "--concurrency", "1"]);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    place.run(async move { Ok(command.spawn()?) }).await
}

fn typed(name: &str, kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/{kind}").into();
    json!({"name": name, "typed_config": config})
}

fn address(ip: Ipv4Addr, port: u16) -> Value {
    json!({"socket_address": {"address": ip.to_string(), "port_value": port}})
}

/// An HTTP proxy that sends all to one cluster.
fn listener(ip: Ipv4Addr, port: u16, cluster: &str, tls: Option<Value>) -> Value {
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": cluster}});
    let router = typed("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", json!({}));
    let proxy = typed(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": cluster,
            "server_header_transformation": "PASS_THROUGH",
            "http_filters": [router],
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        }),
    );
    let mut chain = json!({"filters": [proxy]});
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({"name": format!("to-{cluster}"), "address": address(ip, port), "filter_chains": [chain]})
}

/// One host.
fn cluster(name: &str, port: u16, tls: Option<Value>) -> Value {
    let endpoint = json!({"endpoint": {"address": address(SERVER, port)}});
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    });
    if let Some(tls) = tls {
        cluster["transport_socket"] = tls;
    }
    cluster
}

fn upstream(folder: &Path) -> Value {
    let kind = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    typed("envoy.transport_sockets.tls", kind, json!({"common_tls_context": tls(folder, "client", "server")}))
}

fn downstream(folder: &Path) -> Value {
    let kind = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    let context = json!({"require_client_certificate": true, "common_tls_context": tls(folder, "server", "client")});
    typed("envoy.transport_sockets.tls", kind, context)
}

/// TLS 1.3, as our sidecars have it.
fn tls(folder: &Path, own: &str, other: &str) -> Value {
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{
            "certificate_chain": {"filename": folder.join(format!("{own}.pem"))},
            "private_key": {"filename": folder.join(format!("{own}.key"))},
        }],
        "validation_context": {
            "trusted_ca": {"filename": folder.join("root.pem")},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": identity(other)}}],
        },
    })
}

fn identity(name: &str) -> String {
    format!("spiffe://flat.test/ns/shop/sa/{name}")
}

/// A root, and a certificate and a key of client and server, as files.
fn certificates(folder: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Unlike the name that the leaves have by default: they would count as signed by themselves.
    params.distinguished_name.push(DnType::CommonName, "root");
    std::fs::write(folder.join("root.pem"), params.self_signed(&key)?.pem())?;
    let root = Issuer::new(params, key);
    for name in ["client", "server"] {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity(name).as_str().try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        std::fs::write(folder.join(format!("{name}.pem")), params.signed_by(&key, &root)?.pem())?;
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}
