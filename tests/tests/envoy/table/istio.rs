//! Sidecars of Istio as istiod configures them, by hand: names, protocols in the handshake, and what a permissive port takes.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use eastway_identity::{Ca, SpiffeId, certificates_to_pem, csr, key_to_pem};
use eastway_tests::lab::cloud::Cloud;
use eastway_tests::lab::files::trust_domain;
use eastway_tests::lab::place::Place as Pods;
use eastway_tests::mesh::{Mesh, NAMESPACE, PORT};
use serde_json::{Value, json};
use tokio::process::Child;

use super::{ISTIO_SERVERS, Place};
use crate::istio::{address, start, typed};

/// The gateway's port for what b serves, as that of another network.
pub(super) const NETWORK: u16 = 15444;
/// Account of the client.
pub(super) const CLIENT: &str = "istio-client";
/// What a client's Envoy listens on for the first server.
const FIRST: u16 = 9100;
/// What Istio's sidecars offer for a request of HTTP/1.1, and what a permissive port takes for Istio's own TLS.
const OFFERED: [&str; 3] = ["istio-http/1.1", "istio", "http/1.1"];
const MESH: [&str; 5] = ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];

/// Who an account of a cloud is.
pub(super) fn identity(cloud: &str, account: &str) -> String {
    format!("spiffe://{}/ns/{NAMESPACE}/sa/{account}", trust_domain(cloud))
}

/// Has an account certified by its cloud's CA, and gives the TLS of both sides for it: with whom one of these matchers says,
/// by the roots of both clouds.
fn tls(mesh: &Mesh, cloud: &Cloud, account: &str, who: &Value, alpn: &[&str]) -> Result<Value> {
    let (key, request) = csr::new_key_and_csr()?;
    let id = SpiffeId::workload(&trust_domain(cloud.name()), NAMESPACE, account)?;
    let ca = Ca::load(&cloud.folder().join("cacerts"))?;
    let chain = ca.issue(&request, &id, Duration::from_secs(3_600), SystemTime::now())?;
    let root = |cloud: &str| fs::read_to_string(mesh.cloud(cloud).folder().join("cacerts/root-cert.pem"));
    let roots = [root("a")?, root("b")?].concat();
    Ok(json!({
        // Envoy's clients stop at 1.2 by themselves; Istio's do not.
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{
            "certificate_chain": {"inline_string": certificates_to_pem(&chain)},
            "private_key": {"inline_string": &*key_to_pem(&key)},
        }],
        "validation_context": {
            "trusted_ca": {"inline_string": roots},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": who}],
        },
        "alpn_protocols": alpn,
    }))
}

/// An HTTP proxy to a cluster, which tells it who its client is.
fn http(cluster: &str) -> Value {
    let router = typed("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", json!({}));
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": cluster}});
    typed(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": cluster,
            "http_filters": [router],
            "server_header_transformation": "PASS_THROUGH",
            "forward_client_cert_details": "SANITIZE_SET",
            "set_current_client_cert_details": {"uri": true},
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        }),
    )
}

fn cluster(name: &str, endpoint: SocketAddr, more: &Value) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(endpoint)}}]}],
        },
    });
    eastway_tests::lab::files::merge(&mut cluster, more);
    cluster
}

/// Starts one Envoy for these servers of a cloud.
pub(super) async fn serve(mesh: &Mesh, version: &str, cloud: &str, pod: IpAddr, servers: &[Place]) -> Result<Child> {
    let cloud = mesh.cloud(cloud);
    let anybody = json!({"prefix": "spiffe://"});
    let context = tls(mesh, cloud, ISTIO_SERVERS, &anybody, &["h2", "http/1.1"])?;
    let kind = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    let context = typed(
        "envoy.transport_sockets.tls",
        kind,
        json!({"require_client_certificate": true, "common_tls_context": context}),
    );
    let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
    for place in servers {
        let (name, strict) = (place.service(), place.tls() == "istioStrict");
        let mut only = json!({"transport_protocol": "tls"});
        if !strict {
            only["application_protocols"] = json!(MESH);
        }
        let mut chains =
            vec![json!({"filter_chain_match": only, "transport_socket": context, "filters": [http(&name)]})];
        if !strict {
            chains.push(json!({"filter_chain_match": {"transport_protocol": "raw_buffer"}, "filters": [http(&name)]}));
        }
        let inspector = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
        listeners.push(json!({
            "name": name,
            "address": address(place.target(pod)),
            "listener_filters": [typed("envoy.filters.listener.tls_inspector", inspector, json!({}))],
            "filter_chains": chains,
        }));
        let more = if place.grpc { http2() } else { Value::Null };
        clusters.push(cluster(&name, place.app(pod), &more));
    }
    let config = json!({"static_resources": {"listeners": listeners, "clusters": clusters}});
    let file = cloud.folder().join("istio-servers.json");
    start(cloud.net().pods(), version, &file, &config).await
}

fn http2() -> Value {
    let options = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    });
    json!({"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}})
}

/// Where the client's program reaches a server, which its Envoy forwards.
pub(super) fn app(source: IpAddr, place: Place) -> SocketAddr {
    let cloud = if place.cloud == "a" { 50 } else { 0 };
    SocketAddr::new(source, FIRST + cloud + place.number())
}

/// Starts the client's Envoy. It speaks TLS to whom istiod would say has a sidecar, across clouds to the gateway's port for the
/// other network; else plain text to the service's address. Inside its own cloud it knows endpoints themselves.
pub(super) async fn client(
    mesh: &Mesh,
    version: &str,
    pods: &Pods,
    source: IpAddr,
    pod: IpAddr,
    ways: &[(Place, SocketAddr)],
) -> Result<Child> {
    let gateway = mesh.cloud("a").net().gateways()[0].inside;
    let kind = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
    for (place, virtual_address) in ways {
        let name = place.service();
        let is_plain = place.tls() == "plain";
        let endpoint = match place.cloud {
            "a" => place.target(pod),
            _ if is_plain => *virtual_address,
            _ => SocketAddr::new(gateway, NETWORK),
        };
        let mut more =
            json!({"upstream_bind_config": {"source_address": address(SocketAddr::new(source, 0))["socket_address"]}});
        if !is_plain {
            let who = json!({"exact": identity(place.cloud, place.account())});
            let context = json!({
                "sni": format!("outbound_.{PORT}_._.{name}.{NAMESPACE}.svc.cluster.local"),
                "common_tls_context": tls(mesh, mesh.cloud("a"), CLIENT, &who, &OFFERED)?,
            });
            more["transport_socket"] = typed("envoy.transport_sockets.tls", kind, context);
        }
        clusters.push(cluster(&name, endpoint, &more));
        listeners.push(json!({
            "name": name,
            "address": address(app(source, *place)),
            "filter_chains": [{"filters": [http(&name)]}],
        }));
    }
    let config = json!({"static_resources": {"listeners": listeners, "clusters": clusters}});
    start(pods, version, &mesh.cloud("a").folder().join("istio-client.json"), &config).await
}
