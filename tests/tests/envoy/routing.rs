//! Rules between versions in two clouds that cannot reach each other, obeyed by a real Envoy: cloud a has version v1 of
//! `web`, cloud b v1, v2 and v3. The rules are files in a's policies folder.

mod bed;
mod server;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use eastway_tests::{lab_test, within};
use serde_json::{Value, json};

use bed::{Bed, PATIENCE, http_route, share};

/// Requests of one look.
const LOOK: usize = 300;

lab_test! {
    async fn rules_choose_between_clouds_and_versions_with_envoy_1_40_0() { rules("1.40.0").await }
    async fn rules_choose_between_clouds_and_versions_with_envoy_1_36_2() { rules("1.36.2").await }
}

async fn rules(version: &str) -> Result<()> {
    let bed = Bed::start(version).await?;
    all_to_one(&bed).await?;
    by_weight(&bed).await?;
    by_header(&bed).await?;
    bed.stop().await
}

async fn all_to_one(bed: &Bed) -> Result<()> {
    bed.route("web", &http_route(&[json!({"backendRefs": [share("v1", 1)]})]))?;
    bed.until(&[], "all go to v1", |version| version == "v1").await?;
    let seen = bed.look(LOOK, &[]).await?;
    ensure!(seen.keys().eq(["v1"]), "{seen:?}");
    Ok(())
}

async fn by_weight(bed: &Bed) -> Result<()> {
    bed.route("web", &http_route(&[json!({"backendRefs": [share("v1", 80), share("v3", 20)]})]))?;
    bed.until(&[], "some go to v3", |version| version == "v3").await?;
    let seen = bed.look(1_000, &[]).await?;
    let third = seen.get("v3").copied().unwrap_or_default();
    // Three standard deviations of 1,000 draws are 38.
    ensure!(seen.len() == 2 && (150..=250).contains(&third), "{seen:?}");
    println!("80/20 of 1000 requests: {seen:?}");
    Ok(())
}

async fn by_header(bed: &Bed) -> Result<()> {
    let jason = json!({"headers": [{"name": "end-user", "value": "jason"}]});
    let rules =
        [json!({"matches": [jason], "backendRefs": [share("v2", 1)]}), json!({"backendRefs": [share("v1", 1)]})];
    bed.route("web", &http_route(&rules))?;
    let jason = [("end-user", "jason")];
    bed.until(&jason, "jason gets v2", |version| version == "v2").await?;
    let (his, others) = (bed.look(LOOK, &jason).await?, bed.look(LOOK, &[("end-user", "mary")]).await?);
    ensure!(his.keys().eq(["v2"]) && others.keys().eq(["v1"]), "jason {his:?}, others {others:?}");
    Ok(())
}
