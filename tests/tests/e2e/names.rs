//! Resolvers as pods have them: glibc and musl, with the cluster's search path.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use eastway_tests::kube::{Bed, Cluster, eastway as installed, process, wan};
use eastway_tests::{bed_tests, within};

use crate::client::{self, lookup, resolve};

/// A resolver that lost an answer asks again after 5 s (glibc) or 2.5 s (musl).
const STALLED_MS: f64 = 2_000.0;
const RESOLVERS: [&str; 2] = ["resolve-glibc", "resolve-musl"];
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the test with a peer that never was.
const GHOST: &str = "e2e-ghost";
/// What a pod's search path has beside the cluster's own, to use imports by short names.
const SEARCHES: [&str; 3] = ["e2e-ghost.svc.clusterset.local", "svc.clusterset.local", "clusterset.local"];

/// Every resolver finds what is expected at the name, without a lost answer; returns the slowest's milliseconds.
async fn all_find(cluster: &Cluster, namespace: &str, name: &str, expected: &str) -> Result<f64> {
    let mut slowest: f64 = 0.0;
    for resolver in RESOLVERS {
        let (found, took) = resolve(cluster, namespace, resolver, name).await?;
        ensure!(found == [expected], "{resolver}: {name} is {found:?}");
        ensure!(took < STALLED_MS, "{resolver}: {name} took {took} ms");
        slowest = slowest.max(took);
    }
    Ok(slowest)
}

/// The Peer of a cluster that is never started, as `eastway peer export` prints it, with what it might own.
async fn ghost() -> Result<String> {
    let folder = tempfile::tempdir()?;
    let config = "apiVersion: eastway.dev/v1alpha1\nkind: GatewayConfig\ncluster: ghost\n\
                  trust: {domain: ghost.example}\nlisten: {advertise: ['198.51.100.99:15443']}\n";
    let file = folder.path().join("gateway.yaml");
    std::fs::write(&file, config)?;
    command(&["ca", "init", "--config"], &file).await?;
    let peer = command(&["peer", "export", "--config"], &file).await?;
    Ok(peer.replace("import: []", "import: [{namespace: 'e2e-*'}]"))
}

async fn command(arguments: &[&str], file: &Path) -> Result<String> {
    let mut command = tokio::process::Command::new(eastway_tests::binary());
    command.args(arguments).arg(file);
    // Those of the tests: it refuses what it does not know.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EASTWAY_")) {
        command.env_remove(name);
    }
    process::output(&mut command).await
}

/// Waits until the cluster's DNS says `code` of a service that nobody has and the ghost might.
async fn says(bed: &Bed, cluster: &Cluster, code: &str) -> Result<()> {
    let name = "nobody.e2e-ghost.svc.clusterset.local";
    let took = within(PATIENCE, format!("{name} is {code}"), async || {
        Ok(lookup(cluster, GHOST, "a", name).await?.code == code)
    });
    bed.record(&format!("names.ghost.{}_s", code.to_lowercase()), eastway_tests::kube::seconds(took.await?));
    Ok(())
}

bed_tests! {
    /// Names of the world outside and of the cluster, through the search path, without a lost answer.
    async fn both_c_libraries_resolve_through_the_search_path(bed) {
        let (outside, address) = wan::OUTSIDE;
        for cluster in bed.clusters() {
            client::start(cluster, "default", &[]).await?;
            let slowest = all_find(cluster, "default", outside, &address.to_string()).await?;
            bed.record(&format!("names.{}.outside_ms", cluster.name()), slowest);
            for name in ["kubernetes", "kubernetes.default.svc.cluster.local"] {
                all_find(cluster, "default", name, "10.96.0.1").await?;
            }
        }
        Ok(())
    }

    /// A Peer whose cluster was never up keeps the names it might own from being denied for half a minute (I5), and
    /// nobody who asks for anything else notices: not with `clusterset.local` first in the search path either.
    async fn a_peer_that_never_was_stalls_no_outside_name(bed) {
        installed::ready(bed).await?;
        let a = bed.cluster("a");
        client::start(a, GHOST, &SEARCHES).await?;
        let peer = ghost().await?;
        a.apply(&peer).await?;
        says(bed, a, "SERVFAIL").await?;
        let (outside, address) = wan::OUTSIDE;
        let unknown = all_find(a, GHOST, outside, &address.to_string()).await?;
        let short = all_find(a, GHOST, "kubernetes.default", "10.96.0.1").await?;
        bed.record("names.ghost.outside_ms_while_unknown", unknown.max(short));
        says(bed, a, "NXDOMAIN").await?;
        let known = all_find(a, GHOST, outside, &address.to_string()).await?;
        bed.record("names.ghost.outside_ms_after", known);
        a.delete(&peer).await?;
        client::end(a, GHOST).await
    }
}
