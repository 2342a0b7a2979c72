//! The conformance suite of the Multi-Cluster Services API, run against the clusters of a bed.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tokio::process::Command;

use super::{Bed, image, process, tools};

/// What the suite calls what every implementation must do.
const REQUIRED: &str = "Required";
/// States of a spec that was not asked for.
const UNASKED: [&str; 2] = ["skipped", "pending"];

/// One spec of the suite and what came of it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Spec {
    /// The whole sentence.
    pub name: String,
    /// Whether an implementation must do it; else it may.
    pub required: bool,
    /// Whether this one does.
    pub passed: bool,
    /// Why not.
    pub message: String,
    /// How long it took to find out.
    pub seconds: f64,
}

/// Runs the suite; the first cluster exports. Its reports (`report.html`, `report.json`) and output go to `folder`.
///
/// The suite tells clusters apart by the addresses of their pods, so for as long as it runs new pods get
/// addresses that no pod of another cluster has.
///
/// # Errors
/// The suite is missing or cannot run at all; a spec that fails is none.
pub async fn run(bed: &Bed, folder: &Path, arguments: &[&str]) -> Result<Vec<Spec>> {
    let images = image::conformance_images(folder).await?;
    let folder = std::path::absolute(folder)?;
    let mut contexts = Vec::new();
    for (cluster, number) in bed.clusters().iter().zip(1..) {
        cluster.load_images(&images).await?;
        cluster.set_first_pod(Some(Ipv4Addr::new(10, 244, number, 2)))?;
        contexts.push(cluster.name());
    }
    let kubeconfig = folder.join("kubeconfig");
    std::fs::write(&kubeconfig, bed.kubeconfig()?)?;
    let output = std::fs::File::create(folder.join("output.txt"))?;
    let mut command = Command::new(tools::built("mcs-conformance")?);
    command.current_dir(&folder).arg("-kubeconfig").arg(&kubeconfig).arg("-contexts").arg(contexts.join(","));
    command.args(["-ginkgo.v", "-ginkgo.no-color", "-ginkgo.json-report=report.json"]).args(arguments);
    let report = folder.join("report.json");
    if report.exists() {
        std::fs::remove_file(&report)?;
    }
    command.stdout(output.try_clone()?).stderr(output).kill_on_drop(true);
    // Its verdict is in the report: it fails when any spec does.
    command.status().await.context("run the conformance suite")?;
    for cluster in bed.clusters() {
        cluster.set_first_pod(None)?;
    }
    for tar in images {
        std::fs::remove_file(tar)?;
    }
    let text = std::fs::read_to_string(&report);
    let text = text.with_context(|| format!("no report; {}", process::tail(&folder.join("output.txt"))))?;
    parse(&text)
}

/// What a report in ginkgo's JSON says of the specs that were run.
///
/// # Errors
/// It is no such report, or the suite could not begin.
pub fn parse(report: &str) -> Result<Vec<Spec>> {
    let suites: Vec<Suite> = serde_json::from_str(report).context("ginkgo writes its report as JSON")?;
    let mut specs = Vec::new();
    for entry in suites.into_iter().flat_map(|suite| suite.spec_reports) {
        if entry.kind != "It" {
            ensure!(entry.state == "passed", "the suite's {} failed: {}", entry.kind, entry.failure.message);
            continue;
        }
        if UNASKED.contains(&entry.state.as_str()) {
            continue;
        }
        let mut labels = entry.labels.iter().chain(entry.outer_labels.iter().flatten().flatten().flatten());
        let required = labels.any(|label| label == REQUIRED);
        let texts = entry.outer_texts.iter().flatten().chain(std::iter::once(&entry.text));
        specs.push(Spec {
            name: texts.filter(|text| !text.is_empty()).cloned().collect::<Vec<_>>().join(" "),
            required,
            passed: entry.state == "passed",
            message: entry.failure.message.lines().next().unwrap_or_default().to_owned(),
            seconds: super::seconds(Duration::from_nanos(entry.nanoseconds)),
        });
    }
    Ok(specs)
}

#[derive(Debug, Deserialize)]
struct Suite {
    #[serde(rename = "SpecReports")]
    spec_reports: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "LeafNodeType")]
    kind: String,
    #[serde(rename = "LeafNodeText")]
    text: String,
    #[serde(rename = "LeafNodeLabels", default, deserialize_with = "nullable")]
    labels: Vec<String>,
    #[serde(rename = "ContainerHierarchyTexts")]
    outer_texts: Option<Vec<String>>,
    #[serde(rename = "ContainerHierarchyLabels")]
    outer_labels: Option<Vec<Option<Vec<String>>>>,
    #[serde(rename = "State")]
    state: String,
    #[serde(rename = "RunTime")]
    nanoseconds: u64,
    #[serde(rename = "Failure", default)]
    failure: Failure,
}

#[derive(Debug, Default, Deserialize)]
struct Failure {
    #[serde(rename = "Message", default)]
    message: String,
}

/// Go writes an empty list as `null`.
fn nullable<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reports_tell_required_from_optional_and_passed_from_failed() {
        let report = r#"[{"SpecReports": [
            {"LeafNodeType": "BeforeSuite", "LeafNodeText": "", "LeafNodeLabels": null, "ContainerHierarchyTexts": null,
             "ContainerHierarchyLabels": null, "State": "passed", "RunTime": 5},
            {"LeafNodeType": "It", "LeafNodeText": "is imported", "LeafNodeLabels": ["Required"],
             "ContainerHierarchyTexts": ["", "A service"], "ContainerHierarchyLabels": [null, []],
             "State": "passed", "RunTime": 1500000000},
            {"LeafNodeType": "It", "LeafNodeText": "resolves", "LeafNodeLabels": null, "ContainerHierarchyTexts": [""],
             "ContainerHierarchyLabels": [["Optional", "DNS"]], "State": "failed", "RunTime": 1,
             "Failure": {"Message": "no answer\nmore"}},
            {"LeafNodeType": "It", "LeafNodeText": "unasked", "LeafNodeLabels": null, "ContainerHierarchyTexts": null,
             "ContainerHierarchyLabels": null, "State": "skipped", "RunTime": 0}
        ]}]"#;
        let specs = parse(report).unwrap();
        let seen: Vec<_> = specs.iter().map(|spec| (spec.name.as_str(), spec.required, spec.passed)).collect();
        assert_eq!(seen, [("A service is imported", true, true), ("resolves", false, false)]);
        assert_eq!((specs[0].seconds, specs[1].message.as_str()), (1.5, "no answer"));
        let broken = report.replacen("\"passed\"", "\"failed\"", 1);
        assert!(parse(&broken).unwrap_err().to_string().contains("BeforeSuite"));
    }
}
