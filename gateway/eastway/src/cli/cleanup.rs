//! `eastway cleanup`: takes out of a cluster's API what the controller made there.

use clap::Args;
use eastway_kubernetes::cleanup::{
    CleanupError, Left, LeftKind, find, find_told_to_istio, is_controller_installed, remove,
};
use eastway_kubernetes::client::connect;

use super::exit::Failure;
use super::kube::{KubeArgs, block_on};
use super::output::print;
use crate::config::settings::SYSTEM_NAMESPACE;
use crate::roles::CONTROLLER_LEASE;

/// Arguments of `eastway cleanup`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eastway cleanup --dry-run      what is there
  eastway cleanup                after `helm uninstall --no-hooks`, or where its job could not run
  eastway cleanup --istio        after `istio.enabled` was taken back without Helm's hooks

`helm uninstall` does this by itself, unless `cleanup` is false. ServiceImports go, and with them their derived Services
and EndpointSlices, so that no name leads nowhere; and Leases. Definitions, exports, Peers, policies and the CA stay.")]
pub(super) struct CleanupArgs {
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Only what istiod was told: WorkloadEntries and ServiceEntries
    #[arg(long)]
    istio: bool,
    /// Namespace that Eastway was installed in
    #[arg(long, value_name = "NAMESPACE", default_value = SYSTEM_NAMESPACE)]
    namespace: String,
    #[command(flatten)]
    kube: KubeArgs,
}

pub(super) fn run(args: &CleanupArgs) -> Result<(), Failure> {
    block_on(clean(args)).map_err(|error| Failure::failed(&error))?
}

async fn clean(args: &CleanupArgs) -> Result<(), Failure> {
    let client = connect(&args.kube.access()).await.map_err(|error| Failure::failed(&error))?;
    let failed = |error: CleanupError| Failure::failed(&error);
    let namespace = args.namespace.as_str();
    if !args.dry_run && !args.istio && is_controller_installed(&client, namespace).await.map_err(failed)? {
        return Err(Failure::because(format!(
            "a controller is installed in {namespace} and would make all of it again; `helm uninstall` it first, or try --dry-run"
        )));
    }
    let left =
        if args.istio { find_told_to_istio(&client).await } else { find(&client, namespace, CONTROLLER_LEASE).await };
    let left = left.map_err(failed)?;
    if left.is_empty() {
        return print("nothing to do: nothing of the controller's is there\n");
    }
    print(&left.iter().map(|left| format!("{left}\n")).collect::<String>())?;
    if args.dry_run {
        return print("\nnothing was removed: this was a dry run\n");
    }
    let errors = remove(&client, &left).await;
    if let Some(first) = errors.first() {
        let count = errors.len();
        return Err(Failure::because(format!("{count} of {} objects could not be removed; {first}", left.len())));
    }
    print(&summary(&left, args.istio))
}

fn summary(left: &[Left], istio: bool) -> String {
    let of = |kind| left.iter().filter(|left| left.kind == kind).count();
    if istio {
        let (endpoints, services) = (of(LeftKind::WorkloadEntry), of(LeftKind::ServiceEntry));
        return format!("\nremoved {endpoints} WorkloadEntries and {services} ServiceEntries\n");
    }
    format!(
        "\nremoved {} ServiceImports and {} Leases; Kubernetes removes the Services and EndpointSlices of the imports\n",
        of(LeftKind::ServiceImport),
        of(LeftKind::Lease)
    )
}
