//! The conformance suite of the Multi-Cluster Services API, unchanged.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use eastway_tests::bed_tests;
use eastway_tests::kube::{Bed, conformance, eastway as installed, suite};
use serde_json::json;

/// The specs that an implementation may do and this one does not, and why.
const DOCUMENT: &str = include_str!("../../../docs/conformance.md");
const NOT_DONE: [&str; 3] = [
    "Only labels and annotations specified as exported in the ServiceExport should be propagated to the ServiceImport",
    "A service exported on two clusters with conflicting annotations and labels should apply the conflict resolution \
     policy and report a Conflict condition on each ServiceExport",
    "A DNS lookup of the <service>.<ns>.svc.clusterset.local domain for a ClusterIP service should resolve to the \
     clusterset IP",
];

/// The suite makes a namespace with a name of its own for each spec, and nobody may connect by default.
fn policy() -> String {
    json!({
        "apiVersion": "eastway.dev/v1alpha1", "kind": "AccessPolicy",
        "metadata": {"name": "mcs-conformance", "namespace": installed::SYSTEM},
        "spec": {"namespaces": ["*"], "services": ["*"], "allow": [{"cluster": "*"}]},
    })
    .to_string()
}

async fn allow(bed: &Bed) -> Result<()> {
    for cluster in bed.clusters() {
        cluster.apply(&policy()).await?;
    }
    Ok(())
}

bed_tests! {
    /// Everything required is done, and of what is optional all but what the document names.
    async fn mcs_suite_passes(bed) limit 420 {
        installed::ready(bed).await?;
        allow(bed).await?;
        let specs = conformance::run(bed, &suite::results().join("conformance"), &[]).await?;
        for cluster in bed.clusters() {
            cluster.delete(&policy()).await?;
        }
        let passed = |required: bool| specs.iter().filter(|spec| spec.passed && spec.required == required).count();
        let seconds: f64 = specs.iter().map(|spec| spec.seconds).sum();
        bed.record("conformance", json!({
            "specs": specs.len(), "required_passed": passed(true), "optional_passed": passed(false),
            "seconds": seconds.round(), "report": specs,
        }));
        ensure!(specs.len() == 18, "the suite ran {} specs", specs.len());
        let failed: Vec<String> = specs
            .iter()
            .filter(|spec| !spec.passed && (spec.required || !NOT_DONE.contains(&spec.name.as_str())))
            .map(|spec| format!("{}: {}", spec.name, spec.message))
            .collect();
        ensure!(failed.is_empty(), "{} of {} specs failed:\n{}", failed.len(), specs.len(), failed.join("\n"));
        let done: BTreeSet<&str> = specs.iter().filter(|spec| spec.passed).map(|spec| spec.name.as_str()).collect();
        for name in NOT_DONE {
            ensure!(!done.contains(name), "it passes, though docs/conformance.md says that it does not: {name}");
            ensure!(DOCUMENT.contains(name), "docs/conformance.md says nothing of: {name}");
        }
        Ok(())
    }
}
