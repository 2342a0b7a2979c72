//! Further API servers of this cluster, as objects: `Cluster` of the cluster registry (clusterregistry.k8s.io/v1alpha1)
//! and `ClusterProfile` of the cluster inventory (multicluster.x-k8s.io/v1alpha1, KEP-4322), with their credentials in
//! Secrets. All are read in one namespace, which has nothing else in it: who may write there decides what this cluster's
//! services are.
//!
//! A Cluster names its Secret in `spec.authInfo.controller`. A ClusterProfile's has its name, as the inventory's own
//! plugin "secretreader" has it; plugins are never started. The Secret has a `kubeconfig`, or a `token` for the server
//! that the object names.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kube::core::ApiResource;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::{self, Access, Client, ClientError};
use crate::credentials::{Credentials, Origin};
use crate::watch::{Difference, Selection, Watch, WatchStatus};

/// Key of a Secret that holds a kubeconfig.
const KUBECONFIG: &str = "kubeconfig";
/// Key of a Secret that holds a bearer token.
const TOKEN: &str = "token";

/// What the objects say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The API servers, by the name of their cluster. One whose object has become wrong is as it was. `None`: the lists
    /// are not complete yet.
    pub clusters: Option<BTreeMap<Arc<str>, Credentials>>,
    /// What is wrong, and what to do.
    pub errors: Vec<String>,
}

/// Follows the objects of `namespace` behind `access` until `cancel`. What was told stays while the server is away
/// (invariant I4).
///
/// # Errors
/// There is no client.
pub async fn run(
    access: &Access,
    namespace: &str,
    latest: watch::Sender<Option<Arc<Listed>>>,
    cancel: CancellationToken,
) -> Result<(), ClientError> {
    let client = client::connect(access).await?;
    follow(client, namespace, latest, cancel).await;
    Ok(())
}

async fn follow(
    client: Client,
    namespace: &str,
    latest: watch::Sender<Option<Arc<Listed>>>,
    cancel: CancellationToken,
) {
    let mut clusters = Watch::<Cluster>::new(client.clone(), selection("clusterregistry.k8s.io", "Cluster", namespace));
    let profiles = selection("multicluster.x-k8s.io", "ClusterProfile", namespace);
    let mut profiles = Watch::<ClusterProfile>::new(client.clone(), profiles);
    let mut secrets = Watch::<Secret>::new(client, selection("", "Secret", namespace));
    let mut objects = Objects { namespace: namespace.to_owned(), ..Objects::default() };
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            differences = clusters.next() => take(&mut objects.clusters, differences),
            differences = profiles.next() => take(&mut objects.profiles, differences),
            differences = secrets.next() => take(&mut objects.secrets, differences),
        }
        let watches = [clusters.status(), profiles.status(), secrets.status()];
        let mut listed =
            if watches.iter().all(|watch| watch.is_settled()) { objects.resolve() } else { Listed::default() };
        listed.errors.extend(watch_errors(watches));
        latest.send_if_modified(|before| {
            let news = listed.clusters.is_some() || !listed.errors.is_empty() || before.is_some();
            let changed = news && before.as_deref() != Some(&listed);
            if changed {
                *before = Some(Arc::new(listed));
            }
            changed
        });
    }
}

fn selection(group: &str, kind: &str, namespace: &str) -> Selection {
    let version = if group.is_empty() { "v1" } else { "v1alpha1" };
    let resource = ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") },
        kind: kind.to_owned(),
        plural: format!("{}s", kind.to_lowercase()),
    };
    Selection { resources: vec![resource], namespace: Some(namespace.to_owned()), labels: None, fields: None }
}

fn watch_errors([clusters, profiles, secrets]: [&WatchStatus; 3]) -> Vec<String> {
    let mut errors = Vec::new();
    // Either is enough.
    if clusters.not_installed && profiles.not_installed {
        errors.push(format!(
            "neither {} nor {} is installed: apply one of the definitions",
            clusters.kind, profiles.kind
        ));
    }
    for watch in [clusters, profiles, secrets] {
        errors.extend(watch.problem.iter().map(|problem| format!("{}: {problem}", watch.kind)));
        errors.extend(watch.bad.iter().map(|bad| format!("{} {}: {}", watch.kind, bad.object, bad.error)));
    }
    errors
}

type Table<K> = BTreeMap<Arc<str>, Arc<K>>;

fn take<K>(table: &mut Table<K>, differences: Vec<Difference<K>>) {
    for difference in differences {
        match difference {
            Difference::Set(name, object) => drop(table.insert(name.name, object)),
            Difference::Gone(name) => drop(table.remove(&name.name)),
        }
    }
}

/// A Cluster, as far as it is read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cluster {
    spec: ClusterSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClusterSpec {
    kubernetes_api_endpoints: Endpoints,
    auth_info: AuthInfo,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Endpoints {
    server_endpoints: Vec<ServerEndpoint>,
    /// PEM, base64.
    ca_bundle: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServerEndpoint {
    /// `host`, `host:port`, an IP address or one with a port.
    server_address: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AuthInfo {
    controller: Option<Reference>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reference {
    kind: String,
    name: String,
    namespace: String,
}

/// A ClusterProfile, as far as it is read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClusterProfile {
    status: ProfileStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProfileStatus {
    access_providers: Vec<Provider>,
    /// The older name of the same.
    credential_providers: Vec<Provider>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Provider {
    cluster: ProviderCluster,
}

/// `Cluster` of a kubeconfig; no file that it names is read.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct ProviderCluster {
    server: String,
    /// PEM, base64.
    certificate_authority_data: Option<String>,
}

/// A Secret, as far as it is read. It has no `Debug`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Secret {
    /// Base64.
    data: BTreeMap<String, String>,
}

impl Secret {
    fn text(&self, key: &str) -> Option<Result<String, String>> {
        let bytes = BASE64.decode(self.data.get(key)?).map_err(|_| format!("its key {key} is no base64"));
        Some(bytes.and_then(|bytes| String::from_utf8(bytes).map_err(|_| format!("its key {key} is no text"))))
    }
}

#[derive(Default)]
struct Objects {
    namespace: String,
    clusters: Table<Cluster>,
    profiles: Table<ClusterProfile>,
    secrets: Table<Secret>,
    /// The last good word about each, by name.
    good: BTreeMap<Arc<str>, Credentials>,
}

impl Objects {
    fn resolve(&mut self) -> Listed {
        let (mut found, mut errors) = (BTreeMap::new(), Vec::new());
        let clusters = self.clusters.iter().map(|(name, cluster)| (name, "Cluster", self.cluster(cluster)));
        let new = self.profiles.iter().filter(|(name, _)| !self.clusters.contains_key(*name));
        let profiles = new.map(|(name, profile)| (name, "ClusterProfile", self.profile(name, profile)));
        for (name, kind, read) in clusters.chain(profiles) {
            match read {
                Ok(credentials) => drop(found.insert(Arc::clone(name), credentials)),
                Err(why) => {
                    errors.push(format!("{kind} {}/{name}: {why}", self.namespace));
                    found.extend(self.good.get(name).map(|last| (Arc::clone(name), last.clone())));
                }
            }
        }
        self.good.clone_from(&found);
        Listed { clusters: Some(found), errors }
    }

    fn cluster(&self, cluster: &Cluster) -> Result<Credentials, String> {
        let help = "write {kind: Secret, name: …}";
        let reference = cluster.spec.auth_info.controller.as_ref();
        let reference = reference.ok_or_else(|| format!("spec.authInfo.controller is missing: {help}"))?;
        if reference.kind != "Secret" {
            return Err(format!("spec.authInfo.controller.kind {:?} is none that is read: {help}", reference.kind));
        }
        if !reference.namespace.is_empty() && reference.namespace != self.namespace {
            return Err(format!(
                "spec.authInfo.controller.namespace must be {}: no other Secrets are read",
                self.namespace
            ));
        }
        let endpoints = &cluster.spec.kubernetes_api_endpoints;
        let server = endpoints.server_endpoints.first().map(|endpoint| server_url(&endpoint.server_address));
        let token_for = server.map(|server| (server, endpoints.ca_bundle.as_deref()));
        self.credentials(&reference.name, token_for, "spec.kubernetesApiEndpoints.serverEndpoints")
    }

    fn profile(&self, name: &str, profile: &ClusterProfile) -> Result<Credentials, String> {
        let ProfileStatus { access_providers, credential_providers } = &profile.status;
        let provider =
            access_providers.iter().chain(credential_providers).find(|provider| !provider.cluster.server.is_empty());
        let token_for = provider.map(|provider| {
            let cluster = &provider.cluster;
            (cluster.server.clone(), cluster.certificate_authority_data.as_deref())
        });
        self.credentials(name, token_for, "status.accessProviders[].cluster.server")
    }

    /// What a Secret says; `token_for`: the server of a token and its authority, which `field` has.
    fn credentials(
        &self,
        secret: &str,
        token_for: Option<(String, Option<&str>)>,
        field: &str,
    ) -> Result<Credentials, String> {
        let place = format!("Secret {}/{secret}", self.namespace);
        let found = self.secrets.get(secret);
        let found = found.ok_or_else(|| format!("there is no {place}: make it, with a key kubeconfig or token"))?;
        if let Some(kubeconfig) = found.text(KUBECONFIG) {
            let kubeconfig = kubeconfig.map_err(|why| format!("{place}: {why}"))?;
            let credentials = Credentials::parse(&kubeconfig, None, Origin::Object);
            return credentials.map_err(|why| format!("{place}: {KUBECONFIG}: {why}"));
        }
        let token = found.text(TOKEN).ok_or_else(|| format!("{place} has neither a key kubeconfig nor token"))?;
        let token = token.map_err(|why| format!("{place}: {why}"))?;
        let (server, authority) =
            token_for.ok_or_else(|| format!("{place} has a token, but {field} does not say which server it is for"))?;
        Credentials::with_token(&server, authority, &token).map_err(|why| why.to_string())
    }
}

/// The registry's addresses have no scheme.
fn server_url(address: &str) -> String {
    if address.contains("://") { address.to_owned() } else { format!("https://{address}") }
}

#[cfg(test)]
mod tests;
