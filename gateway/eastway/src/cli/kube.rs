//! Which Kubernetes cluster a command is about.

use std::path::PathBuf;

use clap::Args;
use eastway_kubernetes::client::Access;

/// Flags as `kubectl` has them.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct KubeArgs {
    /// The kubeconfig file; else $KUBECONFIG, the pod's service account, or ~/.kube/config
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig; else its current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl KubeArgs {
    /// Whether a cluster was named on the command line.
    pub(super) fn is_given(&self) -> bool {
        self.context.is_some() || self.kubeconfig.is_some()
    }

    /// The way to the API server.
    pub(super) fn access(&self) -> Access {
        // A list of files is for kubectl to merge; the first is the one that it writes to.
        let named =
            || std::env::split_paths(&std::env::var_os("KUBECONFIG")?).find(|path| !path.as_os_str().is_empty());
        let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".kube/config");
        match self.kubeconfig.clone().or_else(named) {
            None if in_pod && self.context.is_none() => Access::InCluster,
            path => Access::Kubeconfig { path: path.unwrap_or_else(home), context: self.context.clone() },
        }
    }
}

/// Runs a command's requests.
pub(super) fn block_on<T>(work: impl Future<Output = T>) -> std::io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work))
}
