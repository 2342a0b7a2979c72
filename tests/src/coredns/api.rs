//! As much of a Kubernetes API as CoreDNS's `kubernetes` plugin reads: lists that never change, and
//! watches in which nothing happens.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Result;
use bytes::Bytes;
use eastway_dns::{Protocol, ServiceEntry, ServiceKind};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// An API server on loopback, until it is dropped.
#[derive(Debug)]
pub struct KubeApi {
    /// Where it listens, without TLS.
    pub address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl KubeApi {
    /// Serves these services as ServiceImports with their EndpointSlices.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(services: &[ServiceEntry]) -> Result<Self> {
        let objects = Arc::new(Objects::of(services));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let objects = objects.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let response = objects.answer(&request);
                        async move { Ok::<_, Infallible>(response) }
                    });
                    // The client decides when to hang up; how it does so does not matter.
                    drop(
                        hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await,
                    );
                });
            }
        });
        Ok(Self { address, _tasks: tasks })
    }
}

/// The lists, by the last part of their path.
struct Objects {
    namespaces: Value,
    imports: Value,
    slices: Value,
}

impl Objects {
    fn of(services: &[ServiceEntry]) -> Self {
        let mut namespaces: Vec<_> = services.iter().map(|service| service.namespace.as_str()).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        let namespaces: Vec<_> =
            namespaces.into_iter().map(|name| json!({"metadata": {"name": name, "uid": name}})).collect();
        Self {
            namespaces: list("v1", "NamespaceList", &namespaces),
            imports: list(
                "multicluster.x-k8s.io/v1alpha1",
                "ServiceImportList",
                &services.iter().map(service_import).collect::<Vec<_>>(),
            ),
            slices: list(
                "discovery.k8s.io/v1",
                "EndpointSliceList",
                &services.iter().flat_map(slices).collect::<Vec<_>>(),
            ),
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Reply> {
        let query = request.uri().query().unwrap_or_default();
        if query.contains("sendInitialEvents=true") {
            // The client then lists first and watches after.
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422,
                "message": "sendInitialEvents is forbidden for watch",
            });
            return reply(StatusCode::UNPROCESSABLE_ENTITY, Reply::Whole(Some(status.to_string().into())));
        }
        if query.contains("watch=true") || query.contains("watch=1") {
            return reply(StatusCode::OK, Reply::Silence);
        }
        let value = match request.uri().path().rsplit('/').next() {
            Some("namespaces") => self.namespaces.clone(),
            Some("serviceimports") => self.imports.clone(),
            Some("endpointslices") => self.slices.clone(),
            Some("services") => list("v1", "ServiceList", &[]),
            _ => json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}),
        };
        reply(StatusCode::OK, Reply::Whole(Some(value.to_string().into())))
    }
}

fn list(version: &str, kind: &str, items: &[Value]) -> Value {
    json!({"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": "1"}, "items": items})
}

fn metadata(service: &ServiceEntry, name: &str, labels: &Value) -> Value {
    json!({
        "name": name, "namespace": service.namespace, "uid": format!("{}-{name}", service.namespace),
        "resourceVersion": "1", "labels": labels,
    })
}

fn ports(service: &ServiceEntry) -> Value {
    let protocol = |protocol| match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    };
    service
        .ports
        .iter()
        .map(|port| {
            json!({"name": port.name.clone().unwrap_or_default(), "protocol": protocol(port.protocol), "port": port.port})
        })
        .collect()
}

fn service_import(service: &ServiceEntry) -> Value {
    let (kind, ips) = match &service.kind {
        ServiceKind::ClusterSet { addresses } => ("ClusterSetIP", addresses.iter().map(ToString::to_string).collect()),
        ServiceKind::Headless { .. } => ("Headless", Vec::new()),
        ServiceKind::Pending => ("ClusterSetIP", Vec::new()),
    };
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceImport",
        "metadata": metadata(service, &service.name, &json!({})),
        "spec": {"type": kind, "ips": ips, "ports": ports(service)},
    })
}

/// One slice per endpoint and address family.
fn slices(service: &ServiceEntry) -> Vec<Value> {
    let ServiceKind::Headless { endpoints } = &service.kind else { return Vec::new() };
    let mut slices = Vec::new();
    for endpoint in endpoints {
        for address in &endpoint.addresses {
            let labels = json!({
                "multicluster.kubernetes.io/service-name": service.name,
                "multicluster.kubernetes.io/source-cluster": endpoint.cluster,
            });
            slices.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": metadata(service, &format!("{}-{}", service.name, slices.len()), &labels),
                "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
                "endpoints": [{
                    "addresses": [address.to_string()], "hostname": endpoint.hostname, "conditions": {"ready": true},
                }],
                "ports": ports(service),
            }));
        }
    }
    slices
}

fn reply(status: StatusCode, body: Reply) -> Response<Reply> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    response
}

/// A body that is there at once, or one that stays open and says nothing.
enum Reply {
    Whole(Option<Bytes>),
    Silence,
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(body) => Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
            Self::Silence => Poll::Pending,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(Some(body)) => SizeHint::with_exact(body.len() as u64),
            Self::Whole(None) | Self::Silence => SizeHint::default(),
        }
    }
}
