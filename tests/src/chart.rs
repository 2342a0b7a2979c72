//! The Helm chart in `helm/eastway`: what is generated for it from Rust types, and how it is rendered.
//!
//! `values.schema.json` and the table of the chart's README are made of [`values::Values`], the custom resource
//! definitions of `eastway.dev` of the very structs that files are read into, so that an object and a file cannot
//! mean different things. `make regenerate` writes them.

pub mod crds;
pub mod values;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Version of Kubernetes that the chart is rendered for, without a cluster.
const KUBERNETES: &str = "1.37.0";

/// The chart's folder.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/eastway")
}

/// What `helm template` prints for cluster `onprem` with more arguments.
///
/// # Errors
/// Helm is not there (`make deps` builds it), or refuses the values: its words.
pub fn template(arguments: &[&str]) -> Result<String> {
    let mut helm = Command::new(helm());
    helm.args(["template", "eastway"]).arg(folder());
    helm.args(["--namespace", "eastway-system", "--kube-version", KUBERNETES]);
    helm.args(["--set", "cluster=onprem,trustDomain=onprem.example"]);
    let output = helm.args(arguments).output().context("helm cannot be run: `make deps` builds it")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The objects in what Helm printed.
///
/// # Errors
/// It is no YAML.
pub fn objects(rendered: &str) -> Result<Vec<Value>> {
    let mut objects: Vec<Value> = Vec::new();
    for document in rendered.split("\n---\n") {
        let value: Value = serde_saphyr::from_str(document).with_context(|| document.to_owned())?;
        if !value.is_null() {
            objects.push(value);
        }
    }
    Ok(objects)
}

fn helm() -> PathBuf {
    match std::env::var_os("EASTWAY_TOOLS") {
        Some(tools) => Path::new(&tools).join("helm"),
        None => "helm".into(),
    }
}
