//! As much of a gateway as a sidecar sees: a stream of configuration over mutual TLS, with one cluster and one
//! listener, and the workload behind that cluster, which asks for a certificate.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use eastway::local::listener::{Caller, LocalListener};
use eastway::roles::enroll::{CaClient, keep_fresh, until_certified};
use eastway::telemetry::{AccessMode, Telemetry};
use eastway_identity::local::{ClientAuth, LocalTrust, Wanted, anchors_of, server_config};
use eastway_identity::{IdentityStore, system_clock};
use eastway_proto::envoy::config::cluster::v3::{Cluster, cluster};
use eastway_proto::envoy::config::core::v3 as core;
use eastway_proto::envoy::config::endpoint::v3 as endpoint;
use eastway_proto::envoy::config::listener::v3 as listener;
use eastway_proto::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use eastway_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use eastway_proto::envoy::google::protobuf::{Any, Duration as ProtoDuration};
use eastway_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use eastway_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use eastway_proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher};
use futures_util::{Stream, StreamExt as _};
use prost::Name;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected as _;
use tonic::{Request, Response, Status, Streaming};

/// Trust domain of everybody here.
pub(crate) const DOMAIN: &str = "onprem.example";
/// Where the gateway serves configuration.
pub(crate) const LOCAL: &str = "127.0.0.1:15012";
/// Where the workload behind the cluster is.
const BACKEND: &str = "127.0.0.1:15008";
/// Where Envoy takes connections for it.
pub(crate) const IMPORT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(127, 64, 0, 1)), 9080);
/// Life of the gateway's certificate.
const TTL: Duration = Duration::from_secs(3600);

/// What the gateway has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Identity and node of each stream of configuration.
    pub(crate) streams: Vec<(String, core::Node)>,
    /// What Envoy refused.
    pub(crate) refused: Vec<String>,
}

/// A running one. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Gateway {
    seen: Arc<Mutex<Seen>>,
    stop: CancellationToken,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Gateway {
    /// Starts with a certificate of the CA that listens on `ca`.
    pub(crate) async fn start(ca: &Path) -> Result<Self> {
        let client = CaClient::new(ca.to_owned());
        let identity = IdentityStore::new(until_certified(&client, TTL).await.identity);
        let stop = CancellationToken::new();
        tokio::spawn(keep_fresh(client, TTL, Arc::clone(&identity), stop.clone()));
        let seen: Arc<Mutex<Seen>> = Arc::default();

        let (connections, accept) = accept(LOCAL, &identity, &stop).await?;
        tokio::spawn(accept);
        let service = AggregatedDiscoveryServiceServer::new(Ads { seen: Arc::clone(&seen) });
        let server = Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming_shutdown(connections, stop.clone().cancelled_owned()));

        let (connections, accept) = accept_all(&identity, &stop).await?;
        tokio::spawn(accept);
        tokio::spawn(connections);
        Ok(Self { seen, stop })
    }

    /// What it has seen so far.
    pub(crate) fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().unwrap())
    }
}

type Incoming = tokio_stream::wrappers::ReceiverStream<std::io::Result<eastway::local::listener::Connection>>;

async fn accept(
    address: &str,
    identity: &Arc<IdentityStore>,
    stop: &CancellationToken,
) -> Result<(Incoming, impl Future<Output = ()> + Send + 'static)> {
    let listener = LocalListener::bind("test", address.parse()?).await?;
    let trust = LocalTrust::new(anchors_of(Arc::clone(identity)), Wanted::TrustDomain(DOMAIN.into()));
    let tls = server_config(Arc::clone(identity), trust.clone(), ClientAuth::Required, system_clock())?;
    Ok(listener.accept(tls, trust, Telemetry::new(AccessMode::Off).refusals, stop.clone()))
}

/// The workload: says who is calling, in a line, and then what it is told.
async fn accept_all(
    identity: &Arc<IdentityStore>,
    stop: &CancellationToken,
) -> Result<(impl Future<Output = ()> + Send + 'static, impl Future<Output = ()> + Send + 'static)> {
    let (mut connections, accept) = accept(BACKEND, identity, stop).await?;
    let serve = async move {
        while let Some(Ok(mut connection)) = connections.next().await {
            let Caller { identity, .. } = connection.connect_info();
            let id = identity.map_or_else(String::new, |caller| caller.id.to_string());
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                let mut sent = connection.write_all(format!("{id}\n").as_bytes()).await;
                while sent.is_ok() {
                    sent = match connection.read(&mut buffer).await {
                        Ok(0) | Err(_) => return,
                        Ok(length) => connection.write_all(&buffer[..length]).await,
                    };
                }
            });
        }
    };
    Ok((serve, accept))
}

struct Ads {
    seen: Arc<Mutex<Seen>>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("differences only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let caller = request.extensions().get::<Caller>().and_then(|caller| caller.identity.clone());
        let caller = caller.ok_or_else(|| Status::unauthenticated("no certificate"))?.id.to_string();
        let (sender, answers) = tokio::sync::mpsc::unbounded_channel();
        let (seen, mut requests) = (Arc::clone(&self.seen), request.into_inner());
        tokio::spawn(async move {
            let mut first = true;
            while let Ok(Some(request)) = requests.message().await {
                if let (true, Some(node)) = (first, &request.node) {
                    seen.lock().unwrap().streams.push((caller.clone(), node.clone()));
                }
                first = false;
                if let Some(error) = &request.error_detail {
                    seen.lock().unwrap().refused.push(error.message.clone());
                }
                // An answer to us asks for nothing.
                if request.response_nonce.is_empty()
                    && let Some(answer) = resources(&request.type_url)
                {
                    let _gone = sender.send(Ok(answer));
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(answers))))
    }
}

fn resources(type_url: &str) -> Option<DeltaDiscoveryResponse> {
    let (name, resource) = match type_url {
        url if url == Cluster::type_url() => ("backend", pack(&backend())),
        url if url == listener::Listener::type_url() => ("import", pack(&import())),
        _ => return None,
    };
    let resource =
        Resource { name: name.to_owned(), version: "1".to_owned(), resource: Some(resource), ..Resource::default() };
    Some(DeltaDiscoveryResponse {
        resources: vec![resource],
        type_url: type_url.to_owned(),
        nonce: "1".to_owned(),
        ..DeltaDiscoveryResponse::default()
    })
}

fn pack<M: prost::Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn address(address: SocketAddr) -> core::Address {
    let socket = core::SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(u32::from(address.port()))),
        ..core::SocketAddress::default()
    };
    core::Address { address: Some(core::address::Address::SocketAddress(socket)) }
}

/// As the gateway's own cluster will be: TLS, both secrets from the agent.
fn backend() -> Cluster {
    let endpoint = endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(address(BACKEND.parse().unwrap())),
            ..endpoint::Endpoint::default()
        })),
        ..endpoint::LbEndpoint::default()
    };
    let locality = endpoint::LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() };
    Cluster {
        name: "backend".to_owned(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Static.into())),
        connect_timeout: Some(ProtoDuration { seconds: 5, nanos: 0 }),
        load_assignment: Some(endpoint::ClusterLoadAssignment {
            cluster_name: "backend".to_owned(),
            endpoints: vec![locality],
            ..Default::default()
        }),
        transport_socket: Some(core::TransportSocket {
            name: "envoy.transport_sockets.tls".to_owned(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(&tls_context()))),
        }),
        ..Cluster::default()
    }
}

fn tls_context() -> tls::UpstreamTlsContext {
    let gateway = format!("spiffe://{DOMAIN}/ns/eastway-system/sa/eastway-gateway");
    let matcher = tls::SubjectAltNameMatcher {
        san_type: tls::subject_alt_name_matcher::SanType::Uri.into(),
        matcher: Some(StringMatcher {
            match_pattern: Some(string_matcher::MatchPattern::Exact(gateway)),
            ..StringMatcher::default()
        }),
        ..Default::default()
    };
    let validation = tls::common_tls_context::CombinedCertificateValidationContext {
        default_validation_context: Some(tls::CertificateValidationContext {
            match_typed_subject_alt_names: vec![matcher],
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(from_agent(&format!("bundle:{DOMAIN}"))),
        ..Default::default()
    };
    let version = tls::tls_parameters::TlsProtocol::TlSv13.into();
    let common = tls::CommonTlsContext {
        tls_params: Some(tls::TlsParameters {
            tls_minimum_protocol_version: version,
            tls_maximum_protocol_version: version,
            ..Default::default()
        }),
        alpn_protocols: vec!["h2".to_owned()],
        tls_certificate_sds_secret_configs: vec![from_agent("workload")],
        validation_context_type: Some(tls::common_tls_context::ValidationContextType::CombinedValidationContext(
            validation,
        )),
        ..Default::default()
    };
    tls::UpstreamTlsContext { common_tls_context: Some(common), ..Default::default() }
}

/// A secret from the agent's socket, as differences.
fn from_agent(name: &str) -> tls::SdsSecretConfig {
    let grpc = core::GrpcService {
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(core::grpc_service::EnvoyGrpc {
            cluster_name: "agent".to_owned(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let source = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::DeltaGrpc.into(),
        transport_api_version: core::ApiVersion::V3.into(),
        grpc_services: vec![grpc],
        ..Default::default()
    };
    let source = core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        initial_fetch_timeout: Some(ProtoDuration::default()),
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::ApiConfigSource(source)),
        ..Default::default()
    };
    tls::SdsSecretConfig { name: name.to_owned(), sds_config: Some(source) }
}

fn import() -> listener::Listener {
    let proxy = TcpProxy {
        stat_prefix: "import".to_owned(),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster("backend".to_owned())),
        ..TcpProxy::default()
    };
    let filter = listener::Filter {
        name: "envoy.filters.network.tcp_proxy".to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(pack(&proxy))),
    };
    listener::Listener {
        name: "import".to_owned(),
        address: Some(address(IMPORT)),
        filter_chains: vec![listener::FilterChain { filters: vec![filter], ..Default::default() }],
        ..Default::default()
    }
}
