//! What an administrator does to a cluster: kubectl, Helm, and the part of a cloud that gives out addresses.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::sleep;

use super::cluster::Cluster;
use super::process::{fed, output};
use super::tools;

/// A controller manager whose API server just came back waits for its lease first.
const ACCOUNT: Duration = Duration::from_secs(60);
/// Longest wait for kinds that have just been defined.
const DEFINITIONS: Duration = Duration::from_secs(60);
/// Pause between two attempts to apply.
const PAUSE: Duration = Duration::from_millis(200);

impl Cluster {
    /// A tool that talks to this cluster's API as its administrator.
    fn tool(&self, name: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(tools::built(name)?);
        // Caches, plugins and repositories belong to the cluster, not to who runs the tests.
        command.env("KUBECONFIG", self.node.pki.admin()).env("HOME", &self.node.folder).args(arguments);
        Ok(command)
    }

    /// Runs kubectl and returns what it prints.
    ///
    /// # Errors
    /// It fails; the message has what it said.
    pub async fn kubectl<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Result<String> {
        output(self.tool("kubectl", &[])?.args(arguments)).await
    }

    /// As [`Cluster::kubectl`], but the command, to be run in another way.
    ///
    /// # Errors
    /// kubectl is missing.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Result<Command> {
        self.tool("kubectl", arguments)
    }

    /// One object, or a list of objects, as JSON: `get(&["svc", "web", "-n", "shop"])`.
    ///
    /// # Errors
    /// There is none.
    pub async fn get(&self, what: &[&str]) -> Result<Value> {
        let arguments: Vec<&str> = ["get", "-o", "json"].iter().chain(what).copied().collect();
        serde_json::from_str(&self.kubectl(&arguments).await?).context("kubectl prints JSON")
    }

    /// Applies manifests, on the server's side; again while pods of a new namespace are refused because the
    /// controller manager has not made its service account yet.
    ///
    /// # Errors
    /// The API server refuses one; the others may have been applied.
    pub async fn apply(&self, yaml: &str) -> Result<String> {
        let arguments = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        let started = Instant::now();
        loop {
            match fed(&mut self.tool("kubectl", &arguments)?, yaml.as_bytes()).await {
                Err(error) if lacks_account(&error) && started.elapsed() < ACCOUNT => sleep(PAUSE).await,
                done => return done,
            }
        }
    }

    /// Installs the Gateway API's definitions of this file of the tools, and waits until its kinds can be used.
    ///
    /// # Errors
    /// `make deps-e2e` has not made it, or the API server does not take it.
    pub async fn gateway_api(&self, file: &str) -> Result<()> {
        self.apply(&tools::text(file)?).await?;
        self.wait("condition=Established", &["crd", "--all"], DEFINITIONS).await
    }

    /// Deletes what manifests name, and waits until it is gone.
    ///
    /// # Errors
    /// The API server refuses, or something stays.
    pub async fn delete(&self, yaml: &str) -> Result<String> {
        let arguments = ["delete", "--ignore-not-found", "--wait", "--timeout=60s", "-f", "-"];
        fed(&mut self.tool("kubectl", &arguments)?, yaml.as_bytes()).await
    }

    /// Waits as `kubectl wait` does: `wait("condition=Ready", &["pod", "-n", "shop", "--all"], …)`.
    ///
    /// # Errors
    /// Not within `patience`.
    pub async fn wait(&self, condition: &str, what: &[&str], patience: Duration) -> Result<()> {
        let (condition, timeout) = (format!("--for={condition}"), format!("--timeout={}s", patience.as_secs()));
        let arguments: Vec<&str> = ["wait", &condition, &timeout].iter().chain(what).copied().collect();
        self.kubectl(&arguments).await.map(drop)
    }

    /// Waits until a Deployment, StatefulSet or DaemonSet is rolled out: `rollout("deploy/web", "shop", …)`.
    ///
    /// # Errors
    /// Not within `patience`.
    pub async fn rollout(&self, what: &str, namespace: &str, patience: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", patience.as_secs());
        self.kubectl(&["rollout", "status", what, "-n", namespace, &timeout]).await.map(drop)
    }

    /// Runs a command in a pod (`pod` may be `deploy/web`) and returns what it prints.
    ///
    /// # Errors
    /// It fails; the message has what it said.
    pub async fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String> {
        let arguments: Vec<&str> = ["exec", "-n", namespace, pod, "--"].iter().chain(command).copied().collect();
        self.kubectl(&arguments).await
    }

    /// Runs Helm and returns what it prints.
    ///
    /// # Errors
    /// It fails; the message has what it said.
    pub async fn helm<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Result<String> {
        output(self.tool("helm", &[])?.args(arguments)).await
    }

    /// Does what a cloud does for a Service of type LoadBalancer: an address that leads to the node, told in its status.
    ///
    /// # Errors
    /// There is no such Service.
    pub async fn load_balancer(&self, namespace: &str, service: &str, address: Ipv4Addr) -> Result<()> {
        let interface = format!("{address}/32");
        output(&mut self.on_node("ip", &["addr", "replace", &interface, "dev", "eth0"])?).await?;
        let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}}).to_string();
        let patch =
            ["patch", "service", service, "-n", namespace, "--subresource=status", "--type=merge", "-p", &status];
        self.kubectl(&patch).await.map(drop)
    }

    /// What a person looks at first when something does not work. All that Eastway's pods said is beside the programs'
    /// logs, in `pods.log`.
    pub async fn report(&self) -> String {
        let mut report = format!("=== cluster {}; logs in {}\n", self.name(), self.logs().display());
        let logs = ["logs", "-n", "eastway-system", "-l", "app.kubernetes.io/name=eastway", "--prefix"];
        let (all, last) = ([&logs[..], &["--tail=-1"]].concat(), [&logs[..], &["--tail=25"]].concat());
        let said = self.kubectl(&all).await;
        // Without it the report has the last lines.
        let _kept = std::fs::write(self.logs().join("pods.log"), said.unwrap_or_default());
        let questions: [&[&str]; 5] = [
            &["get", "pods,services,endpointslices", "-A", "-o", "wide"],
            &["get", "multicluster", "-A", "-o", "wide"],
            &["get", "events", "-A", "--field-selector=type=Warning"],
            &["get", "nodes"],
            &last,
        ];
        for question in questions {
            let answer = self.kubectl(question).await;
            report.push_str(&answer.unwrap_or_else(|error| format!("{error:#}\n")));
        }
        report
    }
}

/// Whether pods were refused only because their namespace is too young.
fn lacks_account(error: &Error) -> bool {
    error.to_string().contains("error looking up service account")
}
