//! Three networks: a cloud without the service, and two that have a version of it each.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use eastway_tests::kube::istio::joined;
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};

use crate::parts::{Elsewhere, object, remove, to, versions};

const NAMESPACE: &str = "e2e-networks";
const HOST: &str = "echo.e2e-networks.svc.clusterset.local";
const PATIENCE: Duration = Duration::from_secs(90);

/// 80 of a hundred to b, and 20 to c, by the versions that they have.
fn rules() -> Vec<Value> {
    let routes = json!({"hosts": [HOST], "http": [{"route": [to(HOST, "v1", 80), to(HOST, "v2", 20)]}]});
    let routes = object(NAMESPACE, "networking.istio.io/v1", "VirtualService", "echo", &routes);
    vec![versions(NAMESPACE, HOST, &["v1", "v2"]), routes]
}

bed_tests! {
    /// The name in TLS does not say which cloud was chosen: the port does.
    async fn weights_are_those_of_two_remote_clouds(bed) limit 400 {
        joined::ready(bed).await?;
        let clouds = Elsewhere::set(bed, NAMESPACE, HOST, rules()).await?;
        for version in ["echo-v1", "echo-v2"] {
            within(PATIENCE, format!("{version} answers"), async || Ok(clouds.ask().await? == version)).await?;
        }
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..300 {
            let server = clouds.ask().await?;
            *counts.entry(server).or_default() += 1;
        }
        let fifth = counts.get("echo-v2").copied().unwrap_or_default();
        // 60 are due; chance is this far off less than once in 1,000,000 runs.
        ensure!((27..97).contains(&fifth) && counts.get("echo-v1") == Some(&(300 - fifth)), "{counts:?}");
        bed.record("networks.by_weight", json!(counts));
        remove(bed, NAMESPACE).await
    }
}
