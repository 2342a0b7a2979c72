//! A cloud whose service is elsewhere, in two places: the nearer one as long as it is there.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use eastway_tests::kube::Cluster;
use eastway_tests::kube::istio::joined;
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};

use crate::parts::{Elsewhere, object, remove};

const NAMESPACE: &str = "e2e-failover";
const HOST: &str = "echo.e2e-failover.svc.clusterset.local";
const PATIENCE: Duration = Duration::from_secs(90);
/// Requests that have to be answered alike.
const REQUESTS: usize = 100;

/// From a to b, and to others only if b is not there.
fn rules() -> Value {
    let spec = json!({"host": HOST, "trafficPolicy": {
        "loadBalancer": {"simple": "ROUND_ROBIN", "localityLbSetting": {
            "enabled": true, "failover": [{"from": "a", "to": "b"}],
        }},
        "outlierDetection": {"consecutive5xxErrors": 3, "interval": "1s", "baseEjectionTime": "5s"},
    }});
    object(NAMESPACE, "networking.istio.io/v1", "DestinationRule", "echo", &spec)
}

/// Clients are where their node is.
async fn label(cluster: &Cluster) -> Result<()> {
    let region = format!("topology.kubernetes.io/region={}", cluster.name());
    cluster.kubectl(&["label", "node", "--all", "--overwrite", &region]).await.map(drop)
}

/// Asks until so many requests in a row were answered by `server`; how long it took, and who answered before, or how often
/// nobody did.
async fn until_all(clouds: &Elsewhere, server: &str) -> Result<(Duration, BTreeMap<String, usize>)> {
    let (begun, before) = (Instant::now(), RefCell::new(BTreeMap::<String, usize>::new()));
    let since = RefCell::new(begun);
    within(PATIENCE, format!("{REQUESTS} answers of {server}"), async || {
        for _ in 0..REQUESTS {
            let who = clouds.ask().await.unwrap_or_else(|_| "nobody".to_owned());
            if who != server {
                *before.borrow_mut().entry(who).or_default() += 1;
                *since.borrow_mut() = Instant::now();
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await?;
    let took = since.borrow().duration_since(begun);
    Ok((took, before.into_inner()))
}

bed_tests! {
    /// By stock rules of locality: all to b, to c when b's link is cut, and to b again.
    async fn another_cloud_serves_while_the_nearer_one_is_away(bed) limit 500 {
        joined::ready(bed).await?;
        label(bed.cluster("a")).await?;
        let clouds = Elsewhere::set(bed, NAMESPACE, HOST, vec![rules()]).await?;
        for (step, server, plugged) in [("first", "echo-v1", true), ("cut", "echo-v2", false), ("back", "echo-v1", true)] {
            bed.wan().set_cable("b", plugged).await?;
            let answered = until_all(&clouds, server).await.with_context(|| step.to_owned());
            if answered.is_err() {
                // Other tests want it.
                bed.wan().set_cable("b", true).await?;
            }
            let (took, others) = answered?;
            println!("  {step}: all by {server} after {:.1} s; before that {others:?}", took.as_secs_f64());
            bed.record(&format!("failover.{step}_s"), took.as_secs_f64());
            bed.record(&format!("failover.{step}_others"), json!(others));
        }
        remove(bed, NAMESPACE).await
    }
}
