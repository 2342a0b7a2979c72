//! A service of b with a port of TCP and one of UDP, behind which the test itself answers, and a client in a that uses it by
//! its name.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use eastway_tests::kube::pods::{self, Pod};
use eastway_tests::kube::{Bed, Cluster, eastway as installed};
use eastway_tests::servers::{Habit, Server};
use eastway_tests::talk::{self, Talk, Talked};
use eastway_tests::within;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::client;

/// Ports of the service.
const HTTP: u16 = 80;
const ECHO: u16 = 7_007;
/// Where the pod hears HTTP.
const INSIDE: u16 = 8_080;
const SERVER: &str = "served-by-the-test";
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Answering {
    namespace: &'static str,
    client: Pod,
    /// What answers runs at its place, and no longer than that is kept.
    _server: Pod,
    _http: Server,
    echo: JoinHandle<()>,
}

fn service(namespace: &str) -> Vec<Value> {
    let metadata = json!({"name": "both", "namespace": namespace});
    let ports = json!([
        {"name": "http", "port": HTTP, "targetPort": INSIDE},
        {"name": "echo", "port": ECHO, "protocol": "UDP"},
    ]);
    vec![
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": {"app": "both"}, "ports": ports}}),
        json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": metadata}),
        json!({
            "apiVersion": "eastway.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": "all", "namespace": namespace},
            "spec": {"services": ["both"], "allow": [{"cluster": "a", "namespace": namespace}]},
        }),
    ]
}

async fn pod(cluster: &Cluster, namespace: &str, name: &str, more: Vec<Value>) -> Result<Pod> {
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    cluster.apply(&space.to_string()).await?;
    let objects = [vec![pods::sleeper(namespace, name, name)], more].concat();
    // The namespace's service account follows it.
    let taken = async || Ok(cluster.apply(&pods::list(&objects)).await.is_ok());
    within(PATIENCE, "a pod is taken", taken).await?;
    cluster.pod(namespace, name).await
}

impl Answering {
    /// Starts both pods and waits until the client's cluster has the import.
    pub(crate) async fn start(bed: &Bed, namespace: &'static str) -> Result<Self> {
        let (a, b) = (bed.cluster("a"), bed.cluster("b"));
        let server = pod(b, namespace, "both", service(namespace)).await?;
        // Called as the client of other tests is, which ask names there.
        let client = pod(a, namespace, "client", Vec::new()).await?;
        let address = |port| SocketAddr::new(server.address, port);
        let http = Server::start(&server.place, address(INSIDE), SERVER, Habit::Http).await?;
        let echo = talk::echo(&server.place, address(ECHO)).await?;
        installed::imported(a, namespace, "both").await?;
        Ok(Self { namespace, client, _server: server, _http: http, echo })
    }

    /// The address that the client's resolver has for the service.
    async fn address(&self, bed: &Bed) -> Result<IpAddr> {
        let a = bed.cluster("a");
        let name = format!("both.{}.svc.clusterset.local", self.namespace);
        let import: IpAddr = installed::imported(a, self.namespace, "both").await?.parse()?;
        within(PATIENCE, format!("{name} is {import}"), async || {
            let found = client::addresses(a, self.namespace, &name).await?;
            Ok(found == BTreeSet::from([import]))
        })
        .await?;
        Ok(import)
    }

    /// Asks by HTTP until it is answered, then holds a conversation by UDP of some hundred packets.
    pub(crate) async fn ask(&self, bed: &Bed) -> Result<Talked> {
        let address = self.address(bed).await?;
        within(PATIENCE, "HTTP is answered", async || {
            let said = self.client.ask(SocketAddr::new(address, HTTP)).await?;
            ensure!(said == SERVER, "{said:?}");
            Ok(true)
        })
        .await?;
        let talk = Talk::start(&self.client.place, self.client.address, SocketAddr::new(address, ECHO));
        within(PATIENCE, "a conversation by UDP", async || Ok(talk.so_far().answered > 200)).await?;
        let talked = talk.stop().await?;
        ensure!(talked.asked - talked.answered < 50, "{talked:?}");
        Ok(talked)
    }

    /// Ends all of it.
    pub(crate) async fn end(self, bed: &Bed) -> Result<()> {
        self.echo.abort();
        for cluster in bed.clusters() {
            client::end(cluster, self.namespace).await?;
        }
        Ok(())
    }
}
