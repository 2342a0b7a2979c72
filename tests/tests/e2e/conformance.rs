//! The conformance suite of the Multi-Cluster Services API, unchanged.

use anyhow::ensure;
use eastway_tests::bed_tests;
use eastway_tests::kube::{conformance, suite};
use serde_json::json;

/// Specs an implementation may do and this one does not, each with its reason in docs/conformance.md.
const NOT_DONE: [&str; 0] = [];

bed_tests! {
    /// Everything required is done, and of what is optional all but what is named.
    async fn mcs_suite_passes(bed) limit 900 ignored "wants Eastway in both clusters" {
        let specs = conformance::run(bed, &suite::results().join("conformance"), &[]).await?;
        let passed = specs.iter().filter(|spec| spec.passed).count();
        bed.record("conformance", json!({"specs": specs.len(), "passed": passed, "report": specs}));
        let failed: Vec<String> = specs
            .iter()
            .filter(|spec| !spec.passed && (spec.required || !NOT_DONE.contains(&spec.name.as_str())))
            .map(|spec| format!("{}: {}", spec.name, spec.message))
            .collect();
        ensure!(specs.len() >= 18, "the suite ran {} specs only", specs.len());
        ensure!(failed.is_empty(), "{} of {} specs failed:\n{}", failed.len(), specs.len(), failed.join("\n"));
        Ok(())
    }
}
