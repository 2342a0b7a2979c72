//! How an API server is reached: the pod's own service account, or a kubeconfig.

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use kube::Client;
use kube::api::DynamicObject;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::ApiResource;
use kube::{Api, Config, Resource};

use crate::credentials::Credentials;

/// Longest a TCP and TLS handshake with an API server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest silence on a connection with a request in it. Watches are shorter than this, so one that
/// is exceeded means a dead connection.
const READ_TIMEOUT: Duration = Duration::from_secs(130);

/// Where the credentials for an API server come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// The service account that the kubelet mounts into the pod.
    InCluster,
    /// A kubeconfig file and one of its contexts; `None`: the current one.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The context.
        context: Option<String>,
    },
    /// A kubeconfig that was checked.
    Checked(Credentials),
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The process does not run in a pod with a service account.
    #[error("no service account of a pod: {0}; outside Kubernetes name a kubeconfig")]
    InCluster(#[from] kube::config::InClusterError),
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KubeconfigError,
    },
    /// A checked kubeconfig has contents that cannot be used, such as a certificate that is none.
    #[error("kubeconfig for {server}: {source}")]
    Checked {
        /// The API server.
        server: String,
        /// What is wrong with it.
        #[source]
        source: KubeconfigError,
    },
    /// TLS could not be set up.
    #[error("cannot talk to the API server: {0}")]
    Client(#[from] kube::Error),
}

/// A client for the API server that `access` leads to. Nothing is sent yet.
///
/// # Errors
/// [`ClientError`]
pub async fn connect(access: &Access) -> Result<Client, ClientError> {
    let mut config = match access {
        Access::InCluster => Config::incluster()?,
        Access::Kubeconfig { path, context } => from_file(path, context.clone()).await?,
        Access::Checked(credentials) => from_credentials(credentials).await?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    // Watches and the controller try again by themselves and say so; retries in here would be hidden,
    // and a server could stretch them without bound.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// Requests about objects of the kind `K` in `namespace`. Objects are JSON: whoever asks reads the few fields that
/// matter out of it, and what is written back keeps all others. The decoders of the kinds as the API has them would be a
/// large part of the binary.
pub(crate) fn objects<K: Resource<DynamicType = ()>>(client: &Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &ApiResource::erase::<K>(&()))
}

async fn from_file(path: &Path, context: Option<String>) -> Result<Config, ClientError> {
    let failed = |source| ClientError::Kubeconfig { path: path.to_owned(), source };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(failed)
}

async fn from_credentials(credentials: &Credentials) -> Result<Config, ClientError> {
    let config = Config::from_custom_kubeconfig(credentials.kubeconfig(), &KubeConfigOptions::default()).await;
    config.map_err(|source| ClientError::Checked { server: credentials.server().to_owned(), source })
}
