//! S1: what each role may do.

use anyhow::{Result, ensure};
use eastway_tests::kube::{Bed, eastway as installed};

pub(super) async fn rights(bed: &Bed) -> Result<()> {
    installed::ready(bed).await?;
    let a = bed.cluster("a");
    let can = async |role: &str, question: &[&str]| -> Result<bool> {
        let account = format!("system:serviceaccount:{}:eastway-{role}", installed::SYSTEM);
        let question = question.iter().flat_map(|words| words.split_ascii_whitespace());
        let arguments: Vec<&str> = ["auth", "can-i", "--quiet", "--as", &account].into_iter().chain(question).collect();
        // It says no by its exit code.
        Ok(a.kubectl(&arguments).await.is_ok())
    };
    let everywhere = "--all-namespaces";
    for role in ["gateway", "controller", "ca"] {
        for (verb, resource) in [
            ("get", "secrets"),
            ("list", "secrets"),
            ("create", "pods"),
            ("create", "pods --subresource=exec"),
            ("update", "configmaps"),
            ("create", "clusterrolebindings.rbac.authorization.k8s.io"),
            ("escalate", "clusterroles.rbac.authorization.k8s.io"),
            ("impersonate", "users"),
            ("create", "serviceaccounts --subresource=token"),
            ("create", "peers.eastway.dev"),
            ("update", "serviceexports.multicluster.x-k8s.io"),
            ("delete", "namespaces"),
            ("get", "nodes --subresource=proxy"),
            ("*", "*"),
        ] {
            ensure!(!can(role, &[verb, resource, everywhere]).await?, "{role} may {verb} {resource} everywhere");
        }
        ensure!(
            !can(role, &["get", "secret/cacerts", "-n", installed::SYSTEM]).await?,
            "{role} may read the CA's Secret"
        );
    }
    // The one that faces the WAN writes nothing.
    for verb in ["create", "update", "patch", "delete"] {
        for resource in [
            "services",
            "endpointslices.discovery.k8s.io",
            "serviceimports.multicluster.x-k8s.io",
            "peers.eastway.dev --subresource=status",
        ] {
            ensure!(!can("gateway", &[verb, resource, everywhere]).await?, "the gateway may {verb} {resource}");
        }
    }
    ensure!(can("gateway", &["watch", "services", everywhere]).await?, "the gateway reads services");
    ensure!(
        can("controller", &["patch", "serviceimports.multicluster.x-k8s.io", everywhere]).await?,
        "the controller writes imports"
    );
    ensure!(can("ca", &["create", "tokenreviews.authentication.k8s.io", everywhere]).await?, "the CA asks who calls");
    for role in ["gateway", "controller"] {
        ensure!(
            !can(role, &["create", "tokenreviews.authentication.k8s.io", everywhere]).await?,
            "{role} may review tokens"
        );
    }
    Ok(())
}
