//! What the controller leaves in the API when it is gone: ServiceImports, whose derived Services and EndpointSlices
//! Kubernetes removes with them, since it owns them, and Leases.
//!
//! Without the gateways behind them they would lead nowhere, and DNS servers that read them would go on to answer.

use std::fmt;

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use tokio::time::timeout;

use crate::client::objects;
use crate::controller::object::Kind;
use crate::controller::{api, names};
use crate::lease::REQUEST;

/// The Deployment that makes all this.
const CONTROLLER: &str = "eastway-controller";
/// Objects of one answer of the API server.
const PAGE: u32 = 500;
/// Objects that are removed at once.
const AT_ONCE: usize = 16;

/// Why it cannot be found out, or removed.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct CleanupError {
    what: String,
    reason: String,
}

/// Kinds of what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftKind {
    /// A ServiceImport, with all that it owns.
    ServiceImport,
    /// A Lease: of a cluster, or of the controllers among themselves.
    Lease,
    /// What istiod was told of endpoints of peers.
    WorkloadEntry,
    /// What istiod was told of services of peers.
    ServiceEntry,
}

/// One object that is left.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Left {
    /// Its kind.
    pub kind: LeftKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// It and no other of this name.
    uid: Option<String>,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name, .. } = self;
        write!(f, "{kind:?} {namespace}/{name}")
    }
}

/// Whether a controller is installed in `namespace`: it would make all of it again.
///
/// # Errors
/// [`CleanupError`]
pub async fn is_controller_installed(client: &Client, namespace: &str) -> Result<bool, CleanupError> {
    let deployments = objects::<Deployment>(client, namespace);
    let found =
        request(&format!("Deployment {namespace}/{CONTROLLER}"), deployments.get_metadata_opt(CONTROLLER)).await?;
    Ok(found.is_some_and(|deployment| deployment.metadata.deletion_timestamp.is_none()))
}

/// What is left, in the order in which it should go. `election` is the Lease of the controllers among themselves, in
/// their `namespace`.
///
/// # Errors
/// [`CleanupError`]
pub async fn find(client: &Client, namespace: &str, election: &str) -> Result<Vec<Left>, CleanupError> {
    let imports = Api::all_with(client.clone(), &api::resource(Kind::ServiceImport));
    let is_ours = |object: &Meta| object.labels().get(names::MANAGED_BY).is_some_and(|by| by == names::EASTWAY);
    let mut left = list(&imports, LeftKind::ServiceImport, is_ours).await?;
    let leases = objects::<Lease>(client, namespace);
    left.extend(list(&leases, LeftKind::Lease, |lease| is_ours(lease) || lease.name_any() == election).await?);
    left.sort();
    Ok(left)
}

/// What istiod was told, which stays with the imports when it is told no more.
///
/// # Errors
/// [`CleanupError`]
pub async fn find_told_to_istio(client: &Client) -> Result<Vec<Left>, CleanupError> {
    let mut left = Vec::new();
    for (of, kind) in [(Kind::WorkloadEntry, LeftKind::WorkloadEntry), (Kind::ServiceEntry, LeftKind::ServiceEntry)] {
        let objects = Api::all_with(client.clone(), &api::resource(of));
        let is_ours = |object: &Meta| {
            let manages = |entry: &ManagedFieldsEntry| entry.manager.as_deref() == Some(names::MANAGER);
            object.labels().get(names::MANAGED_BY).is_some_and(|by| by == names::EASTWAY)
                && object.managed_fields().iter().any(manages)
        };
        left.extend(list(&objects, kind, is_ours).await?);
    }
    Ok(left)
}

/// Removes it, unless it went by itself. All is tried; the errors tell what is still there.
pub async fn remove(client: &Client, left: &[Left]) -> Vec<CleanupError> {
    let removals = left.iter().map(|left| async move {
        let resource = match left.kind {
            LeftKind::ServiceImport => api::resource(Kind::ServiceImport),
            LeftKind::WorkloadEntry => api::resource(Kind::WorkloadEntry),
            LeftKind::ServiceEntry => api::resource(Kind::ServiceEntry),
            LeftKind::Lease => ApiResource::erase::<Lease>(&()),
        };
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &left.namespace, &resource);
        let preconditions = Preconditions { uid: left.uid.clone(), resource_version: None };
        let params = DeleteParams::background().preconditions(preconditions);
        let deleted = async {
            match api.delete(&left.name, &params).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                result => result.map(drop),
            }
        };
        request(&left.to_string(), deleted).await.err()
    });
    stream::iter(removals).buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await
}

type Meta = kube::core::PartialObjectMeta<DynamicObject>;

/// All pages; none if the API server does not know the kind.
async fn list(
    api: &Api<DynamicObject>,
    kind: LeftKind,
    counts: impl Fn(&Meta) -> bool,
) -> Result<Vec<Left>, CleanupError> {
    let mut left = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = async {
            match api.list_metadata(&params).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
                result => result.map(Some),
            }
        };
        let Some(page) = request(&format!("the list of {kind:?}s"), page).await? else { return Ok(left) };
        left.extend(page.items.iter().filter(|object| counts(object)).map(|object| Left {
            kind,
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            uid: object.uid(),
        }));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(left),
        }
    }
}

async fn request<T>(what: &str, work: impl Future<Output = kube::Result<T>>) -> Result<T, CleanupError> {
    let failed = |reason| CleanupError { what: what.to_owned(), reason };
    match timeout(REQUEST, work).await {
        Ok(result) => result.map_err(|error| failed(error.to_string())),
        Err(_) => Err(failed("no answer in time".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{Reply, client};

    fn object(namespace: &str, name: &str, by: &str) -> Value {
        let labels = json!({ names::MANAGED_BY: by });
        json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": { "namespace": namespace, "name": name, "uid": name, "labels": labels } })
    }

    fn page(items: &[Value], next: &str) -> Reply {
        Reply::Whole(
            200,
            json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
                    "metadata": { "continue": next }, "items": items }),
        )
    }

    #[tokio::test]
    async fn what_is_ours_is_found_on_all_pages_and_removed() {
        let (client, requests) = client(|request| match (request.method().as_str(), request.uri().path()) {
            ("GET", "/apis/multicluster.x-k8s.io/v1beta1/serviceimports") => {
                if request.uri().query().unwrap().contains("continue=more") {
                    page(&[object("shop", "web", "eastway")], "")
                } else {
                    page(&[object("shop", "cart", "eastway"), object("shop", "theirs", "submariner")], "more")
                }
            }
            ("GET", "/apis/coordination.k8s.io/v1/namespaces/eastway-system/leases") => {
                page(&[object("eastway-system", "eastway-gke", "eastway"), object("eastway-system", "leader", "")], "")
            }
            ("DELETE", path) if path.ends_with("/serviceimports/cart") => {
                let body: Value = serde_json::from_slice(request.body()).unwrap();
                assert_eq!(body["preconditions"]["uid"], "cart");
                Reply::status(404, "NotFound", "it went by itself")
            }
            ("DELETE", path) if path.ends_with("/leases/leader") => Reply::status(403, "Forbidden", "told so"),
            ("DELETE", _) => Reply::Whole(200, json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" })),
            (method, path) => panic!("{method} {path}"),
        });
        let left = find(&client, "eastway-system", "leader").await.unwrap();
        let names: Vec<_> = left.iter().map(ToString::to_string).collect();
        let leases = ["Lease eastway-system/eastway-gke", "Lease eastway-system/leader"];
        assert_eq!(names, [&["ServiceImport shop/cart", "ServiceImport shop/web"], &leases[..]].concat());
        requests.lock().unwrap().clear();
        let errors: Vec<_> = remove(&client, &left).await.iter().map(ToString::to_string).collect();
        assert_eq!(requests.lock().unwrap().len(), 4);
        assert!(errors.len() == 1 && errors[0].starts_with("Lease eastway-system/leader: "), "{errors:?}");
    }

    #[tokio::test]
    async fn a_cluster_without_the_definitions_has_nothing_left() {
        let (client, _) = client(|_| Reply::status(404, "NotFound", "no such thing"));
        assert!(find(&client, "eastway-system", "leader").await.unwrap().is_empty());
        assert!(!is_controller_installed(&client, "eastway-system").await.unwrap());
    }
}
