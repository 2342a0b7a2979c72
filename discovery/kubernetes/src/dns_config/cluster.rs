//! Which resolvers a cluster has, and their configuration in its API.

use std::net::IpAddr;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
pub use kube::Client;
use kube::api::{DeleteParams, DynamicObject, ObjectMeta, PostParams, Preconditions};
use kube::core::TypeMeta;
use serde_json::{Map, Value, json};

use crate::client::objects;

use super::{PlanError, State, Wanted, corefile, stub_domains};

/// Where resolvers live.
const NAMESPACE: &str = "kube-system";
/// What `kubectl` shows as the writer.
const MANAGER: &str = "eastway-dns";
/// The key of ours in a ConfigMap for additions.
const CUSTOM_KEY: &str = "eastway.server";

/// How a resolver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Corefile.
    Corefile,
    /// A file that a Corefile imports (AKS, k3s): all of it is ours.
    Custom,
    /// kube-dns.
    StubDomains,
}

/// One text that tells a resolver what to do.
#[derive(Clone, Debug)]
pub struct Target {
    /// What the text is.
    pub kind: Kind,
    /// Name of its ConfigMap in `kube-system`.
    pub config_map: &'static str,
    /// Key in it.
    pub key: &'static str,
    /// The text; `None`: it is not there.
    pub text: Option<String>,
    /// What else a person has to know of this platform.
    pub advice: Option<&'static str>,
    found: Option<DynamicObject>,
}

/// Why a cluster's resolvers cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server refuses, or does not answer.
    #[error("{what}: {source}")]
    Api {
        /// What was wanted.
        what: String,
        /// What it says.
        #[source]
        source: Box<kube::Error>,
    },
    /// There is no resolver that we know.
    #[error(
        "kube-system has neither a CoreDNS with a ConfigMap `coredns` nor kube-dns; if the provider resolves names itself (GKE Autopilot: Cloud DNS), forward the zones there to the gateways"
    )]
    NoResolver,
    /// Our Service is not there, or has no address.
    #[error("Service {0} has no address: install the chart first, or name the address with --server")]
    NoService(String),
    /// Somebody else wrote at the same time.
    #[error("ConfigMap kube-system/{0} was changed meanwhile; try again")]
    Conflict(&'static str),
}

impl Target {
    /// Its name for people.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{NAMESPACE}/{} {}", self.config_map, self.key)
    }

    /// What it tells the resolver now.
    ///
    /// # Errors
    /// [`PlanError`]
    pub fn state(&self, wanted: &Wanted) -> Result<State, PlanError> {
        match self.kind {
            Kind::Corefile | Kind::Custom => corefile::state(self.text.as_deref().unwrap_or_default(), wanted),
            Kind::StubDomains => stub_domains::state(self.text.as_deref(), wanted),
        }
    }

    /// The text to write so that it tells what is wanted; `None`: it does.
    ///
    /// # Errors
    /// [`PlanError`]
    pub fn install(&self, wanted: &Wanted) -> Result<Option<String>, PlanError> {
        match self.kind {
            Kind::Corefile | Kind::Custom => corefile::install(self.text.as_deref().unwrap_or_default(), wanted),
            Kind::StubDomains => stub_domains::install(self.text.as_deref(), wanted),
        }
    }

    /// The text to write so that nothing of ours is left, `Some(None)` to take out the key; `None`: nothing is.
    ///
    /// # Errors
    /// [`PlanError`]
    pub fn uninstall(&self, wanted: &Wanted) -> Result<Option<Option<String>>, PlanError> {
        match self.kind {
            Kind::Corefile => Ok(corefile::uninstall(self.text.as_deref().unwrap_or_default())?.map(Some)),
            Kind::Custom => {
                let left = corefile::uninstall(self.text.as_deref().unwrap_or_default())?;
                Ok(left.map(|text| Some(text).filter(|text| !text.is_empty())))
            }
            Kind::StubDomains => stub_domains::uninstall(self.text.as_deref(), wanted),
        }
    }

    /// Whether the resolver takes a new text by itself.
    #[must_use]
    pub fn reloads(&self) -> bool {
        let text = self.text.as_deref().unwrap_or_default();
        self.kind != Kind::Corefile || text.lines().any(|line| line.split_whitespace().next() == Some("reload"))
    }

    /// Writes the text, if nobody else has written since it was read; `None` takes the key out.
    ///
    /// # Errors
    /// [`ClusterError::Api`] and [`ClusterError::Conflict`]
    pub async fn write(&self, client: &Client, text: Option<String>) -> Result<(), ClusterError> {
        let maps = objects::<ConfigMap>(client, NAMESPACE);
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let mut map = self.found.clone().unwrap_or_else(|| ours(self.config_map));
        let is_empty = set(&mut map, self.key, text);
        let result = match &self.found {
            // It was made for this alone.
            Some(found) if is_empty && is_ours(&map) => {
                let unchanged = Preconditions { resource_version: found.metadata.resource_version.clone(), uid: None };
                let params = DeleteParams { preconditions: Some(unchanged), ..DeleteParams::default() };
                maps.delete(self.config_map, &params).await.map(drop)
            }
            Some(_) => maps.replace(self.config_map, &params, &map).await.map(drop),
            None => maps.create(&params, &map).await.map(drop),
        };
        result.map_err(|error| {
            let is_conflict = matches!(&error, kube::Error::Api(status) if status.code == 409);
            if is_conflict {
                return ClusterError::Conflict(self.config_map);
            }
            failed(&format!("ConfigMap {NAMESPACE}/{}", self.config_map))(error)
        })
    }
}

fn failed(what: &str) -> impl Fn(kube::Error) -> ClusterError {
    move |source| ClusterError::Api { what: what.to_owned(), source: Box::new(source) }
}

/// Sets the text of a key of a ConfigMap, or takes it out, and leaves all else as it is. Returns whether nothing is left
/// in it.
fn set(map: &mut DynamicObject, key: &str, text: Option<String>) -> bool {
    let mut all = std::mem::take(&mut map.data).as_object().cloned().unwrap_or_default();
    let mut data = all.remove("data").and_then(|data| data.as_object().cloned()).unwrap_or_default();
    match text {
        Some(text) => data.insert(key.to_owned(), text.into()),
        None => data.remove(key),
    };
    let is_empty = data.is_empty() && all.get("binaryData").and_then(Value::as_object).is_none_or(Map::is_empty);
    all.insert("data".to_owned(), data.into());
    map.data = all.into();
    is_empty
}

fn ours(name: &str) -> DynamicObject {
    let labels = [("app.kubernetes.io/managed-by".to_owned(), "eastway".to_owned())];
    DynamicObject {
        types: Some(TypeMeta::resource::<ConfigMap>()),
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            labels: Some(labels.into()),
            ..ObjectMeta::default()
        },
        data: json!({}),
    }
}

fn is_ours(map: &DynamicObject) -> bool {
    map.metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get("app.kubernetes.io/managed-by"))
        .is_some_and(|by| by == "eastway")
}

/// Every text of the cluster's resolvers that has to know our zones.
///
/// # Errors
/// [`ClusterError`]
pub async fn targets(client: &Client) -> Result<Vec<Target>, ClusterError> {
    let maps = objects::<ConfigMap>(client, NAMESPACE);
    let read =
        async |name: &'static str| maps.get_opt(name).await.map_err(failed(&format!("ConfigMap {NAMESPACE}/{name}")));
    let target = |kind, config_map, key, found: Option<DynamicObject>| Target {
        kind,
        config_map,
        key,
        text: found.as_ref().and_then(|map| map.data.get("data")?.get(key)?.as_str()).map(ToOwned::to_owned),
        advice: None,
        found,
    };
    let mut targets = Vec::new();
    let coredns = target(Kind::Corefile, "coredns", "Corefile", read("coredns").await?);
    if let Some(text) = &coredns.text {
        let mut main = if imports_additions(text) {
            target(Kind::Custom, "coredns-custom", CUSTOM_KEY, read("coredns-custom").await?)
        } else {
            coredns
        };
        main.advice = advice(client, main.kind).await?;
        targets.push(main);
    } else if deployment(client, "kube-dns").await?.is_some() {
        targets.push(target(Kind::StubDomains, "kube-dns", "stubDomains", read("kube-dns").await?));
    }
    let node_local = target(Kind::Corefile, "node-local-dns", "Corefile", read("node-local-dns").await?);
    if node_local.text.is_some() {
        targets.push(node_local);
    }
    if targets.is_empty() { Err(ClusterError::NoResolver) } else { Ok(targets) }
}

/// Whether the platform keeps the Corefile for itself and imports servers of users (`import custom/*.server`).
fn imports_additions(text: &str) -> bool {
    text.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("import") && words.next().is_some_and(|path| path.ends_with("custom/*.server"))
    })
}

async fn deployment(client: &Client, name: &str) -> Result<Option<DynamicObject>, ClusterError> {
    let deployments = objects::<Deployment>(client, NAMESPACE);
    deployments.get_opt(name).await.map_err(failed(&format!("Deployment {NAMESPACE}/{name}")))
}

async fn advice(client: &Client, kind: Kind) -> Result<Option<&'static str>, ClusterError> {
    if kind != Kind::Corefile {
        return Ok(None);
    }
    let labels = deployment(client, "coredns").await?.and_then(|deployment| deployment.metadata.labels);
    let is_eks = labels.is_some_and(|labels| labels.contains_key("eks.amazonaws.com/component"));
    Ok(is_eks.then_some(
        "if EKS manages CoreDNS as an add-on, it writes the Corefile anew at its next update: put the same lines into the add-on's configuration value `corefile`",
    ))
}

/// The address of a Service.
///
/// # Errors
/// [`ClusterError::Api`] and [`ClusterError::NoService`]
pub async fn service_address(client: &Client, namespace: &str, name: &str) -> Result<IpAddr, ClusterError> {
    let services = objects::<Service>(client, namespace);
    let full = format!("{namespace}/{name}");
    let service = services.get_opt(name).await.map_err(failed(&format!("Service {full}")))?;
    let address = service.as_ref().and_then(|service| service.data.pointer("/spec/clusterIP")?.as_str());
    let address = address.and_then(|address| address.parse().ok());
    address.ok_or(ClusterError::NoService(full))
}

/// The address that pods ask for names.
///
/// # Errors
/// As [`service_address`].
pub async fn resolver(client: &Client) -> Result<IpAddr, ClusterError> {
    service_address(client, NAMESPACE, "kube-dns").await
}

#[cfg(test)]
mod tests;
