//! Objects of an API server as the texts of files: Peers, policies, and routes of the Gateway API and of Istio. They are read
//! here and judged by the same strict reader as files, elsewhere.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use kube::Client;
use kube::core::ApiResource;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::{self, Access, ClientError};
use crate::types::eastway::GROUP;
use crate::watch::{Difference, ObjectName, Selection, Watch};

/// Kinds of such objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Another cluster; not in a namespace.
    Peer,
    /// Who may connect.
    AccessPolicy,
    /// How connections are shared out.
    TrafficPolicy,
    /// What workloads are told of.
    Visibility,
    /// A part of a service, for routes.
    ServiceShare,
    /// Where requests of HTTP go.
    HttpRoute,
    /// Where calls of gRPC go.
    GrpcRoute,
    /// Where connections go.
    TcpRoute,
    /// Where connections go by their server's name.
    TlsRoute,
    /// Istio's: where requests and connections go.
    VirtualService,
    /// Istio's: parts of a service, and what sidecars do to all traffic to it.
    DestinationRule,
}

/// Group of the Gateway API.
const GATEWAY_API: &str = "gateway.networking.k8s.io";
/// Group of Istio's objects.
const ISTIO: &str = "networking.istio.io";

impl Kind {
    /// Those that are always read.
    pub const OWN: [Self; 5] =
        [Self::Peer, Self::AccessPolicy, Self::TrafficPolicy, Self::Visibility, Self::ServiceShare];
    /// Those of the Gateway API.
    pub const GATEWAY_API: [Self; 4] = [Self::HttpRoute, Self::GrpcRoute, Self::TcpRoute, Self::TlsRoute];
    /// Those of Istio.
    pub const ISTIO: [Self; 2] = [Self::VirtualService, Self::DestinationRule];

    /// As objects and files say it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.names().0
    }

    /// A route of the Gateway API.
    #[must_use]
    pub fn is_route(self) -> bool {
        Self::GATEWAY_API.contains(&self)
    }

    /// Name, plural, group, and the versions that servers may have, the best one first.
    fn names(self) -> (&'static str, &'static str, &'static str, &'static [&'static str]) {
        const OURS: &[&str] = &["v1alpha1"];
        const OF_ISTIO: &[&str] = &["v1", "v1beta1", "v1alpha3"];
        match self {
            Self::Peer => ("Peer", "peers", GROUP, OURS),
            Self::AccessPolicy => ("AccessPolicy", "accesspolicies", GROUP, OURS),
            Self::TrafficPolicy => ("TrafficPolicy", "trafficpolicies", GROUP, OURS),
            Self::Visibility => ("Visibility", "visibilities", GROUP, OURS),
            Self::ServiceShare => ("ServiceShare", "serviceshares", GROUP, OURS),
            Self::HttpRoute => ("HTTPRoute", "httproutes", GATEWAY_API, &["v1", "v1beta1"]),
            Self::GrpcRoute => ("GRPCRoute", "grpcroutes", GATEWAY_API, &["v1", "v1alpha2"]),
            Self::TcpRoute => ("TCPRoute", "tcproutes", GATEWAY_API, &["v1", "v1alpha2"]),
            Self::TlsRoute => ("TLSRoute", "tlsroutes", GATEWAY_API, &["v1", "v1alpha3", "v1alpha2"]),
            Self::VirtualService => ("VirtualService", "virtualservices", ISTIO, OF_ISTIO),
            Self::DestinationRule => ("DestinationRule", "destinationrules", ISTIO, OF_ISTIO),
        }
    }

    /// The resource, under its first version.
    pub(crate) fn resource(self) -> ApiResource {
        let (kind, plural, group, versions) = self.names();
        let version = versions.first().copied().unwrap_or_default();
        ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: format!("{group}/{version}"),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        }
    }

    fn selection(self) -> Selection {
        let (_, _, _, versions) = self.names();
        let only = Selection { resources: vec![self.resource()], namespace: None, labels: None, fields: None };
        only.or_versions(versions.get(1..).unwrap_or_default())
    }

    /// Whether an object of this kind is about services. Those of the Gateway API may be about a gateway of somebody's, and so
    /// may Istio's: they are whoever runs that.
    fn is_about_services(self, object: &Value) -> bool {
        match self {
            Self::HttpRoute | Self::GrpcRoute | Self::TcpRoute | Self::TlsRoute => {
                let parents = object.pointer("/spec/parentRefs").and_then(Value::as_array);
                let mut kinds = parents.into_iter().flatten().filter_map(|parent| parent.get("kind")?.as_str());
                kinds.any(|kind| matches!(kind, "Service" | "ServiceImport"))
            }
            Self::VirtualService => match object.pointer("/spec/gateways").and_then(Value::as_array) {
                Some(gateways) => gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh"),
                None => true,
            },
            Self::Peer
            | Self::AccessPolicy
            | Self::TrafficPolicy
            | Self::Visibility
            | Self::ServiceShare
            | Self::DestinationRule => true,
        }
    }
}

/// Watches of several kinds.
pub(crate) struct Watches(Vec<(Kind, Watch<Value>)>);

impl Watches {
    /// Kinds that every version has installed.
    const ALWAYS: [Kind; 3] = [Kind::Peer, Kind::AccessPolicy, Kind::TrafficPolicy];

    pub(crate) fn new(client: &Client, kinds: &[Kind]) -> Self {
        Self(kinds.iter().map(|kind| (*kind, Watch::new(client.clone(), kind.selection()))).collect())
    }

    /// Waits until there is something about one of them. Nothing is lost if the future is dropped.
    pub(crate) async fn next(&mut self) -> (Kind, Vec<Difference<Value>>) {
        let kinds: Vec<Kind> = self.0.iter().map(|(kind, _)| *kind).collect();
        let waiting = self.0.iter_mut().map(|(_, watch)| Box::pin(watch.next()));
        let (differences, index, _) = futures_util::future::select_all(waiting).await;
        (kinds.get(index).copied().unwrap_or(Kind::Peer), differences)
    }

    /// All have been listed, or, unless `expected`, are not installed.
    pub(crate) fn are_settled(&self, expected: bool) -> bool {
        self.0.iter().all(|(kind, watch)| {
            let (status, was_always) = (watch.status(), Self::ALWAYS.contains(kind));
            if expected && was_always { status.listed } else { status.is_settled() }
        })
    }
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for a Peer.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        let kind = kind.as_str();
        if namespace.is_empty() { write!(f, "{kind}/{name}") } else { write!(f, "{kind}/{namespace}/{name}") }
    }
}

/// All of them, as texts that say `apiVersion`, `kind`, name, namespace and `spec`.
pub type Objects = BTreeMap<ObjectKey, Arc<str>>;

/// Follows objects of these kinds at the API server behind `access` until `cancel`. `latest` is untouched until all have been
/// listed once, or are known not to be installed; what was told stays while the server is away (invariant I4). With
/// `expected` there have been objects before: then kinds of ours that are not installed are waited for, because a server that
/// has just started knows none of them for a moment.
///
/// # Errors
/// There is no client.
pub async fn run(
    access: &Access,
    kinds: &[Kind],
    latest: watch::Sender<Option<Arc<Objects>>>,
    expected: bool,
    cancel: CancellationToken,
) -> Result<(), ClientError> {
    let client = client::connect(access).await?;
    let mut watches = Watches::new(&client, kinds);
    let mut objects = Objects::new();
    while let Some((kind, differences)) = cancel.run_until_cancelled(watches.next()).await {
        for difference in differences {
            apply(&mut objects, kind, difference);
        }
        if watches.are_settled(expected) {
            latest.send_if_modified(|before| {
                let changed = before.as_deref() != Some(&objects);
                if changed {
                    *before = Some(Arc::new(objects.clone()));
                }
                changed
            });
        }
    }
    Ok(())
}

fn apply(objects: &mut Objects, kind: Kind, difference: Difference<Value>) {
    let key =
        |ObjectName { namespace, name }| ObjectKey { kind, namespace: namespace.to_string(), name: name.to_string() };
    match difference {
        Difference::Set(name, object) => {
            let key = key(name);
            match text(&key, &object) {
                Some(text) => drop(objects.insert(key, text)),
                None => drop(objects.remove(&key)),
            }
        }
        Difference::Gone(name) => drop(objects.remove(&key(name))),
    }
}

/// What a file with the same contents says; status and what servers add to the metadata are left out. `None`: it is not about
/// services.
pub(crate) fn text(key: &ObjectKey, object: &Value) -> Option<Arc<str>> {
    if !key.kind.is_about_services(object) {
        return None;
    }
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), json!(key.name));
    if !key.namespace.is_empty() {
        metadata.insert("namespace".to_owned(), json!(key.namespace));
    }
    let mut file = Map::new();
    // The shape is the same under all versions that are asked for.
    file.insert("apiVersion".to_owned(), json!(key.kind.resource().api_version));
    file.insert("kind".to_owned(), json!(key.kind.as_str()));
    file.insert("metadata".to_owned(), Value::Object(metadata));
    if let Some(spec) = object.get("spec") {
        file.insert("spec".to_owned(), spec.clone());
    }
    let file = Value::Object(file);
    Some(format!("{file:#}\n").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_the_text_of_a_file_without_what_servers_add() {
        let mut objects = Objects::new();
        let object = json!({
            "apiVersion": "eastway.dev/v1alpha1", "kind": "Peer",
            "metadata": { "name": "gke", "uid": "u", "managedFields": [] },
            "spec": { "trustDomain": "gke.example" }, "status": { "conditions": [] },
        });
        apply(&mut objects, Kind::Peer, Difference::Set(ObjectName::new("", "gke"), Arc::new(object)));
        let (key, text) = objects.first_key_value().unwrap();
        assert_eq!(key.to_string(), "Peer/gke");
        let text: Value = serde_json::from_str(text).unwrap();
        let wanted = json!({
            "apiVersion": "eastway.dev/v1alpha1", "kind": "Peer", "metadata": { "name": "gke" },
            "spec": { "trustDomain": "gke.example" },
        });
        assert_eq!(text, wanted);
        apply(&mut objects, Kind::Peer, Difference::Gone(ObjectName::new("", "gke")));
        assert!(objects.is_empty());
    }

    #[test]
    fn what_is_about_somebodys_gateway_is_left_to_them() {
        let parent = |kind: &str| json!({"spec": {"parentRefs": [{"kind": "Gateway"}, {"kind": kind, "name": "web"}]}});
        let gateways = |list: Value| json!({"spec": {"hosts": ["web"], "gateways": list}});
        for (kind, object, ours) in [
            (Kind::HttpRoute, parent("Service"), true),
            (Kind::TlsRoute, parent("ServiceImport"), true),
            (Kind::HttpRoute, parent("Gateway"), false),
            (Kind::GrpcRoute, json!({"spec": {}}), false),
            (Kind::TcpRoute, json!({"spec": {"parentRefs": [7]}}), false),
            (Kind::VirtualService, json!({"spec": {"hosts": ["web"]}}), true),
            (Kind::VirtualService, gateways(json!(["front", "mesh"])), true),
            (Kind::VirtualService, gateways(json!(["front"])), false),
            (Kind::DestinationRule, json!({"spec": {}}), true),
        ] {
            let mut objects = Objects::new();
            let name = ObjectName::new("shop", "web");
            // One that was about a service, and is no more, goes.
            let before = if kind == Kind::VirtualService { gateways(json!(["mesh"])) } else { parent("Service") };
            apply(&mut objects, kind, Difference::Set(name.clone(), Arc::new(before)));
            apply(&mut objects, kind, Difference::Set(name, Arc::new(object.clone())));
            assert_eq!(objects.len(), usize::from(ours), "{kind:?}: {object}");
        }
    }

    #[test]
    fn kinds_are_told_as_files_tell_them() {
        let key = ObjectKey { kind: Kind::HttpRoute, namespace: "shop".to_owned(), name: "web".to_owned() };
        let object = json!({
            "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "HTTPRoute",
            "spec": {"parentRefs": [{"kind": "Service", "name": "web"}]}, "status": {"parents": []},
        });
        let text: Value = serde_json::from_str(&text(&key, &object).unwrap()).unwrap();
        assert_eq!((&text["kind"], &text["apiVersion"]), (&json!("HTTPRoute"), &json!("gateway.networking.k8s.io/v1")));
        assert!(text.get("status").is_none());
        assert_eq!(key.to_string(), "HTTPRoute/shop/web");
        let all: Vec<_> = [&Kind::OWN[..], &Kind::GATEWAY_API, &Kind::ISTIO].concat();
        for kind in all {
            let resource = kind.resource();
            assert_eq!(resource.kind.to_lowercase() + "s", resource.plural.replace("ies", "ys"), "{kind:?}");
        }
    }
}
