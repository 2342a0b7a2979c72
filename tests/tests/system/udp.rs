//! UDP across clouds, with programs that know nothing of it: resolvers, QUIC, and floods of packets.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::lab::files::{self, ServiceSpec};
use eastway_tests::lab::place::Place;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE};
use eastway_tests::{coredns, lab_test, within};
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Longest wait for what must come soon: a busy machine needs some.
const SOON: Duration = Duration::from_secs(10);

/// An exported service whose ports are `(name, number, protocol)`.
pub(super) fn service(name: &str, ports: &[(&str, u16, &str)], endpoints: &[IpAddr]) -> ServiceSpec {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, number, protocol)| json!({"name": name, "port": number, "protocol": protocol}))
        .collect();
    let spec = ServiceSpec { more: json!({ "ports": ports }), ..ServiceSpec::new(NAMESPACE, name, 1) };
    endpoints.iter().fold(spec, |spec, endpoint| spec.endpoint(*endpoint, "v1"))
}

/// A program in a place, killed when dropped.
async fn start(place: &Place, program: PathBuf, arguments: &[&str], folder: &Path) -> Result<Child> {
    let log = std::fs::File::create(folder.join("log"))?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.kill_on_drop(true);
    place.run(async move { command.spawn().context("start a program") }).await
}

/// What a program in a place prints; it must end well.
async fn output(place: &Place, program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = place.run(async move { Ok(command.output().await?) }).await.with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{program}: {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

/// A CoreDNS in a cloud that knows `names` as addresses, on a pod's port 53, and is a service there, called `dns`.
struct Resolver {
    _process: Child,
    _folder: tempfile::TempDir,
}

impl Resolver {
    async fn start(mesh: &mut Mesh, cloud: &str, pod: u8, answer: &str) -> Result<Self> {
        let (place, address) = {
            let net = mesh.cloud(cloud).net();
            (net.pods().clone(), net.pod(pod))
        };
        let folder = tempfile::tempdir()?;
        let large = "x".repeat(240);
        let texts: String = (0..15).map(|number| format!("large IN TXT \"{number} {large}\"\n")).collect();
        let zone = format!("$ORIGIN example.\n@ IN SOA ns mail 1 2 3 4 5\n@ IN NS ns\n* IN A {answer}\n{texts}");
        std::fs::write(folder.path().join("zone"), zone)?;
        let corefile = format!("example. {{\n  bind {address}\n  bufsize 4096\n  file zone\n}}\n");
        std::fs::write(folder.path().join("Corefile"), corefile)?;
        let process = start(&place, coredns::binary()?, &[], folder.path()).await?;
        mesh.change_services(cloud, |services| {
            services.retain(|spec| spec.name != "dns");
            services.push(service("dns", &[("dns", 53, "UDP"), ("dns-tcp", 53, "TCP")], &[address]));
        })?;
        Ok(Self { _process: process, _folder: folder })
    }
}

/// What `dig` prints, asked from a cloud's client.
async fn dig(mesh: &Mesh, cloud: &str, server: IpAddr, arguments: &[&str]) -> Result<String> {
    let (place, client) = mesh.client(cloud);
    let (server, client) = (format!("@{server}"), client.to_string());
    let all: Vec<&str> = [&server, "-b", &client, "+tries=1", "+time=2"].iter().chain(arguments).copied().collect();
    output(&place, "dig", &all).await
}

async fn answers(mesh: &Mesh, cloud: &str, server: IpAddr, answer: &str) -> Result<()> {
    within(SOON, format!("{cloud} gets {answer} from {server}"), async || {
        let said = dig(mesh, cloud, server, &["+short", "+notcp", "a.example", "A"]).await?;
        ensure!(said.trim() == answer, "{said}");
        Ok(true)
    })
    .await
    .map(drop)
}

lab_test! {
    /// The main job: names of another cloud's own resolver, and its answers, by UDP.
    async fn dns_over_udp_crosses_clouds() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        let _resolver = Resolver::start(&mut mesh, "b", 11, "192.0.2.7").await?;
        let server = mesh.target("a", "dns").await?.ip();
        answers(&mesh, "a", server, "192.0.2.7").await?;
        // In its own cloud, too, and with the same port over TCP.
        let local = mesh.target("b", "dns").await?.ip();
        answers(&mesh, "b", local, "192.0.2.7").await?;
        let tcp = dig(&mesh, "a", server, &["+short", "+tcp", "a.example", "A"]).await?;
        ensure!(tcp.trim() == "192.0.2.7", "{tcp}");
        // An answer of 4 kB fits no datagram of a link.
        let large = dig(&mesh, "a", server, &["+notcp", "+bufsize=4096", "+ignore", "large.example", "TXT"]).await?;
        ensure!(large.matches("xxx\"").count() == 15, "{large}");
        // Its port has a name.
        let dns = mesh.cloud("a").dns(0)?;
        let port = dns.port().to_string();
        let name = format!("_dns._udp.dns.{NAMESPACE}.svc.clusterset.local");
        let srv = dig(&mesh, "a", dns.ip(), &["-p", &port, "+short", &name, "SRV"]).await?;
        ensure!(srv.contains(" 53 dns.shop.svc.clusterset.local."), "{srv}");
        mesh.stop().await
    }
}

/// A resolver's client that keeps its port: asks until `patience` is over or the answer is `wanted`.
async fn asks_until(place: &Place, from: IpAddr, server: IpAddr, wanted: [u8; 4], patience: Duration) -> Result<()> {
    place
        .run(async move {
            let socket = UdpSocket::bind((from, 40_053)).await?;
            socket.connect((server, 53)).await?;
            // Recursion desired, one question: a.example, A.
            let question = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x07example\x00\x00\x01\x00\x01";
            let asking = async {
                let mut answer = [0; 512];
                loop {
                    // That nobody is there is an answer, too.
                    socket.send(question).await.ok();
                    let received = timeout(Duration::from_millis(300), socket.recv(&mut answer)).await;
                    if let Ok(Ok(length)) = received
                        && answer[..length].windows(6).any(|data| data == [&[0, 4][..], &wanted].concat())
                    {
                        return;
                    }
                }
            };
            timeout(patience, asking).await.with_context(|| format!("no answer {wanted:?}"))
        })
        .await
}

/// What a metric says of a cloud's gateway, all its series together.
async fn total(mesh: &Mesh, cloud: &str, name: &str, label: &str) -> Result<u64> {
    let metrics = mesh.cloud(cloud).metrics(0).await?;
    let lines = metrics.lines().filter(|line| line.starts_with(name) && line.contains(label));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
}

/// How many flows a gateway has.
async fn flows(mesh: &Mesh, cloud: &str) -> Result<u64> {
    let udp = "request_protocol=\"udp\"";
    let opened = total(mesh, cloud, "istio_tcp_connections_opened_total", udp).await?;
    Ok(opened - total(mesh, cloud, "istio_tcp_connections_closed_total", udp).await?)
}

/// An iperf3 server in cloud b, exported with its control connection and its packets on one port.
async fn iperf(mesh: &mut Mesh) -> Result<(Child, tempfile::TempDir, IpAddr)> {
    let (place, address) = {
        let net = mesh.cloud("b").net();
        (net.pods().clone(), net.pod(12))
    };
    let folder = tempfile::tempdir()?;
    let server =
        start(&place, "iperf3".into(), &["-s", "-p", "5201", "-B", &address.to_string()], folder.path()).await?;
    mesh.change_services("b", |services| {
        services.push(service("iperf", &[("tcp", 5201, "TCP"), ("udp", 5201, "UDP")], &[address]));
    })?;
    let target = mesh.target("a", "iperf").await?.ip();
    Ok((server, folder, target))
}

/// Runs iperf3 in cloud a; what it says of what arrived.
async fn measure(mesh: &Mesh, target: IpAddr, arguments: &[&str]) -> Result<Value> {
    let (place, client) = mesh.client("a");
    let (target, client) = (target.to_string(), client.to_string());
    let fixed = ["-c", &target, "-B", &client, "-p", "5201", "-t", "2", "-J"];
    let all: Vec<&str> = fixed.iter().chain(arguments).copied().collect();
    let report: Value = serde_json::from_str(&output(&place, "iperf3", &all).await?)?;
    Ok(report["end"].clone())
}

lab_test! {
    /// One port of both transports, packets in a stream, both ways, and packets that no datagram of a link holds.
    async fn iperf_measures_udp_across_clouds() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        let (_server, _folder, target) = iperf(&mut mesh).await?;
        for (arguments, size) in [
            (&["-u", "-b", "20M", "-l", "1200"][..], 1_200),
            (&["-u", "-b", "20M", "-l", "1200", "-R"], 1_200),
            (&["-u", "-b", "10M", "-l", "8192"], 8_192),
        ] {
            let end = measure(&mesh, target, arguments).await?;
            let sum = &end["sum"];
            let (packets, lost) = (sum["packets"].as_u64().unwrap_or(0), sum["lost_packets"].as_u64().unwrap_or(u64::MAX));
            println!("{arguments:?}: {packets} packets of {size} bytes, {lost} lost, jitter {} ms", sum["jitter_ms"]);
            ensure!(packets > 200 && lost * 50 < packets, "{end}");
        }
        // TCP on the same port goes on as ever.
        let tcp = measure(&mesh, target, &["-b", "20M"]).await?;
        ensure!(tcp["sum_received"]["bytes"].as_u64().unwrap_or(0) > 1_000_000, "{tcp}");
        mesh.stop().await
    }

    /// Many questions at once, each from a flow that begins with it, and none is lost.
    async fn a_thousand_questions_get_their_answers() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        let _resolver = Resolver::start(&mut mesh, "b", 11, "192.0.2.7").await?;
        let server = mesh.target("a", "dns").await?.ip();
        answers(&mesh, "a", server, "192.0.2.7").await?;
        let folder = tempfile::tempdir()?;
        let questions: String = (0..1_000).map(|number| format!("n{number}.example A\n")).collect();
        let file = folder.path().join("questions");
        std::fs::write(&file, questions)?;
        let (place, client) = mesh.client("a");
        let (server, client, file) = (server.to_string(), client.to_string(), file.display().to_string());
        // 200 clients with a port each.
        let arguments = ["-s", &server, "-a", &client, "-d", &file, "-c", "200", "-Q", "1000", "-n", "2", "-t", "5"];
        let said = output(&place, "dnsperf", &arguments).await?;
        ensure!(said.contains("Queries completed:    2000 (100.00%)"), "{said}");
        mesh.stop().await
    }

    /// Who may not use a service gets nothing by UDP either, and gets it at once when he may.
    async fn access_is_denied_to_flows_until_the_owner_allows_it() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        let _resolver = Resolver::start(&mut mesh, "b", 11, "192.0.2.7").await?;
        let server = mesh.target("a", "dns").await?.ip();
        answers(&mesh, "a", server, "192.0.2.7").await?;
        let policy = |account| files::access_policy(NAMESPACE, "everyone", &["*"], &[("a", account)]);
        mesh.cloud("b").write_policy("everyone", &policy("somebody-else"))?;
        let denied = async || {
            let closed = total(&mesh, "b", "istio_tcp_connections_closed_total", "DENY").await?;
            Ok::<_, anyhow::Error>(closed + total(&mesh, "b", "eastway_access_denied_total", "").await?)
        };
        within(2 * SOON, "a is denied, and that is counted", async || {
            Ok(dig(&mesh, "a", server, &["a.example"]).await.is_err() && denied().await? > 0)
        }).await?;
        mesh.cloud("b").write_policy("everyone", &policy("client"))?;
        answers(&mesh, "a", server, "192.0.2.7").await?;
        // What is not offered any more: its flows end at the owner, and its name goes.
        mesh.change_services("b", |services| services.iter_mut().for_each(|spec| spec.export = false))?;
        within(SOON, "nobody answers", async || Ok(dig(&mesh, "a", server, &["a.example"]).await.is_err())).await?;
        mesh.stop().await
    }

    /// A client that keeps its port is served by another cloud when the one that served it is cut off.
    async fn a_flow_goes_on_in_another_cloud() {
        let mut mesh = MeshBuilder::of(&["a", "b", "c"]).start().await?;
        let _b = Resolver::start(&mut mesh, "b", 11, "192.0.2.11").await?;
        let (place, client) = mesh.client("a");
        let server = mesh.target("a", "dns").await?.ip();
        asks_until(&place, client, server, [192, 0, 2, 11], SOON).await?;
        let _c = Resolver::start(&mut mesh, "c", 12, "192.0.2.12").await?;
        within(SOON, "a knows c's", async || Ok(mesh.imports("a", "c").await? == ["dns"])).await?;
        for (from, to) in [("a", "b"), ("b", "a")] {
            mesh.cloud(to).net().block_from(mesh.cloud(from).net()).await?;
        }
        asks_until(&place, client, server, [192, 0, 2, 12], SOON).await?;
        mesh.stop().await
    }

    /// Nothing is kept of clients that have gone, at either end; and an endpoint that is gone ends its flows.
    async fn flows_end_when_nothing_passes_and_when_nobody_is_there() {
        let short = json!({"limits": {"udpIdle": "2s"}});
        let mut mesh = MeshBuilder::of(&["a", "b"]).settings("a", &short).start().await?;
        let resolver = Resolver::start(&mut mesh, "b", 11, "192.0.2.7").await?;
        let server = mesh.target("a", "dns").await?.ip();
        answers(&mesh, "a", server, "192.0.2.7").await?;
        ensure!(flows(&mesh, "a").await? > 0 && flows(&mesh, "b").await? > 0);
        let both = async || Ok(flows(&mesh, "a").await? == 0 && flows(&mesh, "b").await? == 0);
        within(SOON, "they are over at both ends", both).await?;
        drop(resolver);
        // b would keep them for a minute, but for what the endpoint's host says.
        ensure!(dig(&mesh, "a", server, &["a.example"]).await.is_err());
        within(SOON, "nobody is there", async || {
            Ok(flows(&mesh, "b").await? == 0 && mesh.cloud("b").logs().contains("Connection refused"))
        })
        .await?;
        mesh.stop().await
    }
}

/// Configuration of an Envoy with one listener and one cluster, or none.
fn envoy_config(listener: &Value, clusters: &[Value]) -> String {
    json!({"static_resources": {"listeners": [listener], "clusters": clusters}}).to_string()
}

/// A filter that serves HTTP by one route.
fn http(codec: &str, route: &Value) -> Value {
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "codec_type": codec,
            "stat_prefix": "http",
            "route_config": {
                "max_direct_response_body_size_bytes": 4 << 20,
                "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}],
            },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }],
        },
    })
}

/// A certificate for `web.test` and the CA that made it, into a folder.
fn certificate(folder: &Path) -> Result<()> {
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let (ca_key, key) = (rcgen::KeyPair::generate()?, rcgen::KeyPair::generate()?);
    std::fs::write(folder.join("ca.pem"), ca.self_signed(&ca_key)?.pem())?;
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let mut leaf = rcgen::CertificateParams::new(vec!["web.test".to_owned()])?;
    // Else both have one name, and it would look as if it had signed itself.
    leaf.distinguished_name.push(rcgen::DnType::CommonName, "web.test");
    let leaf = leaf.signed_by(&key, &issuer)?;
    std::fs::write(folder.join("cert.pem"), leaf.pem())?;
    std::fs::write(folder.join("key.pem"), key.serialize_pem())?;
    Ok(())
}

/// Envoy's HTTP/3 at an address: every answer is the file `body`.
fn http3_server(address: &str) -> String {
    let quic = "type.googleapis.com/envoy.extensions.transport_sockets.quic.v3.QuicDownstreamTransport";
    let pair = json!([{"certificate_chain": {"filename": "cert.pem"}, "private_key": {"filename": "key.pem"}}]);
    let listener = json!({
        "name": "http3",
        "address": {"socket_address": {"protocol": "UDP", "address": address, "port_value": 8443}},
        "udp_listener_config": {"quic_options": {}},
        "filter_chains": [{
            "transport_socket": {
                "name": "envoy.transport_sockets.quic",
                "typed_config": {
                    "@type": quic,
                    "downstream_tls_context": {"common_tls_context": {"tls_certificates": pair}},
                },
            },
            "filters": [http("HTTP3", &json!({
                "match": {"prefix": "/"},
                "direct_response": {"status": 200, "body": {"filename": "body"}},
            }))],
        }],
    });
    envoy_config(&listener, &[])
}

/// An Envoy at an address that asks `server` by HTTP/3 whatever it is asked by HTTP/1.
fn http3_client(address: &str, server: &str) -> String {
    let quic = "type.googleapis.com/envoy.extensions.transport_sockets.quic.v3.QuicUpstreamTransport";
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let listener = json!({
        "name": "http",
        "address": {"socket_address": {"address": address, "port_value": 8080}},
        "filter_chains": [{
            "filters": [http("HTTP1", &json!({"match": {"prefix": "/"}, "route": {"cluster": "http3", "timeout": "20s"}}))],
        }],
    });
    let endpoint = json!({"endpoint": {"address": {"socket_address": {"address": server, "port_value": 8443}}}});
    let cluster = json!({
        "name": "http3",
        "connect_timeout": "5s",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "http3", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "upstream_bind_config": {"source_address": {"address": address, "port_value": 0}},
        "typed_extension_protocol_options": {options: {
            "@type": format!("type.googleapis.com/{options}"),
            "explicit_http_config": {"http3_protocol_options": {}},
        }},
        "transport_socket": {
            "name": "envoy.transport_sockets.quic",
            "typed_config": {
                "@type": quic,
                "upstream_tls_context": {
                    "sni": "web.test",
                    "common_tls_context": {"validation_context": {"trusted_ca": {"filename": "ca.pem"}}},
                },
            },
        },
    });
    envoy_config(&listener, &[cluster])
}

lab_test! {
    /// QUIC inside of QUIC: Envoy's HTTP/3 on both sides.
    async fn http3_crosses_clouds() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        let (pods, address) = (mesh.cloud("b").net().pods().clone(), mesh.cloud("b").net().pod(13));
        let (place, client) = mesh.client("a");
        mesh.change_services("b", |services| {
            services.push(service("web", &[("http3", 8443, "UDP")], &[address]));
        })?;
        let target = mesh.target("a", "web").await?.ip();
        let (there, here) = (tempfile::tempdir()?, tempfile::tempdir()?);
        certificate(there.path())?;
        std::fs::copy(there.path().join("ca.pem"), here.path().join("ca.pem"))?;
        let body: String = (0..100_000).map(|number| format!("line {number}\n")).collect();
        std::fs::write(there.path().join("body"), &body)?;
        std::fs::write(there.path().join("envoy.json"), http3_server(&address.to_string()))?;
        std::fs::write(here.path().join("envoy.json"), http3_client(&client.to_string(), &target.to_string()))?;
        let program = eastway_tests::envoy::binary("1.40.0")?;
        let arguments = ["-c", "envoy.json", "--use-dynamic-base-id", "--concurrency", "1"];
        let _server = start(&pods, program.clone(), &arguments, there.path()).await?;
        let _client = start(&place, program, &arguments, here.path()).await?;
        let url = format!("http://{client}:8080/");
        let got = within(Duration::from_secs(30), "an answer by HTTP/3", async || {
            let got = output(&place, "curl", &["-sS", "--fail", "--max-time", "20", &url]).await;
            let got = got.with_context(|| std::fs::read_to_string(here.path().join("log")).unwrap_or_default())?;
            ensure!(got == body, "{} of {} bytes", got.len(), body.len());
            Ok(true)
        });
        println!("1.2 MB by HTTP/3 after {:?}", got.await?);
        mesh.stop().await
    }
}
