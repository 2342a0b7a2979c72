//! Three networks: a cloud without the service, and two that have a version of it each.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use eastway_tests::kube::istio::joined;
use eastway_tests::kube::pods::Pod;
use eastway_tests::kube::{Bed, eastway as installed, pods};
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};

use crate::parts::{PORT, client, object, server, service, space, to, versions};

const NAMESPACE: &str = "e2e-networks";
const HOST: &str = "echo.e2e-networks.svc.clusterset.local";
const PATIENCE: Duration = Duration::from_secs(90);

/// 80 of a hundred to b, and 20 to c, by the versions that they have.
fn rules() -> Vec<Value> {
    let routes = json!({"hosts": [HOST], "http": [{"route": [to(HOST, "v1", 80), to(HOST, "v2", 20)]}]});
    let routes = object(NAMESPACE, "networking.istio.io/v1", "VirtualService", "echo", &routes);
    vec![versions(NAMESPACE, HOST, &["v1", "v2"]), routes]
}

async fn set(bed: &Bed) -> Result<(Pod, SocketAddr)> {
    for cluster in bed.clusters() {
        cluster.apply(&pods::list(&space(bed, NAMESPACE, &["client", "echo"]))).await?;
    }
    let a = bed.cluster("a");
    a.apply(&pods::list(&[rules(), vec![client(a, NAMESPACE, "client")]].concat())).await?;
    for (name, version) in [("b", "v1"), ("c", "v2")] {
        let cluster = bed.cluster(name);
        let there = [service(NAMESPACE, "echo"), vec![server(cluster, NAMESPACE, "echo", version)]];
        cluster.apply(&pods::list(&there.concat())).await?;
    }
    for cluster in bed.clusters() {
        cluster.wait("condition=Ready", &["pod", "-n", NAMESPACE, "--all"], PATIENCE).await?;
    }
    let address: IpAddr = installed::imported(a, NAMESPACE, "echo").await?.parse()?;
    Ok((a.pod(NAMESPACE, "client").await?, SocketAddr::new(address, PORT)))
}

async fn ask(client: &Pod, target: SocketAddr) -> Result<String> {
    let answer = client.get(target, HOST, "/hostname", &[]).await?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(answer.body.trim().to_owned())
}

bed_tests! {
    /// The name in TLS does not say which cloud was chosen: the port does.
    async fn weights_are_those_of_two_remote_clouds(bed) limit 400 {
        joined::ready(bed).await?;
        let (client, target) = set(bed).await?;
        for version in ["echo-v1", "echo-v2"] {
            let answers = within(PATIENCE, format!("{version} answers"), async || {
                Ok(ask(&client, target).await? == version)
            });
            answers.await?;
        }
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..300 {
            let server = ask(&client, target).await?;
            *counts.entry(server).or_default() += 1;
        }
        let fifth = counts.get("echo-v2").copied().unwrap_or_default();
        // 60 are due; chance is this far off once in 10,000 runs.
        ensure!((33..90).contains(&fifth) && counts.get("echo-v1") == Some(&(300 - fifth)), "{counts:?}");
        bed.record("networks.by_weight", json!(counts));
        for cluster in bed.clusters() {
            cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]).await?;
        }
        Ok(())
    }
}
