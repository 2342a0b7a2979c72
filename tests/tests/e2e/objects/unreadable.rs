//! F19: objects that cannot be read.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::pods::list;
use eastway_tests::kube::{Bed, eastway as installed, seconds};
use eastway_tests::within;
use serde_json::json;

use super::{SPACE, UNDISTURBED, by_hand, clear, export, namespace, told};

pub(super) async fn unreadable(bed: &Bed) -> Result<()> {
    installed::ready(bed).await?;
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    a.apply(&namespace(SPACE).to_string()).await?;
    let names = ["good", "bad"];
    let mut items = vec![namespace(SPACE)];
    items.extend(names.iter().flat_map(|name| [by_hand(name), export(name)]));
    b.apply(&list(&items)).await?;
    for name in names {
        installed::imported(a, SPACE, name).await?;
    }
    let key = format!("/registry/multicluster.x-k8s.io/serviceexports/{SPACE}/bad");
    b.rewrite_in_etcd(&key, |object| object["spec"] = json!({"exportedLabels": 7})).await?;
    let bad = ["serviceexport", "bad", "-n", SPACE];
    let began = Instant::now();
    told(b, &bad, "Ready=True/Exported", "cannot be read: invalid type: integer `7`").await?;
    bed.record("objects.unreadable_told_s", seconds(began.elapsed()));
    // Others go on as if nothing were.
    b.apply(&list(&[by_hand("next"), export("next")])).await?;
    let seen = within(UNDISTURBED, "a sees the next export", async || {
        a.get(&["serviceimport", "next", "-n", SPACE]).await.map(|_| true)
    });
    bed.record("objects.next_export_s", seconds(seen.await?));
    a.get(&["serviceimport", "bad", "-n", SPACE]).await.context("its last good version counts")?;
    let said =
        b.kubectl(&["logs", "-n", installed::SYSTEM, "-l", "app.kubernetes.io/component=gateway", "--tail=-1"]).await?;
    let lines =
        said.lines().filter(|line| line.contains("cannot be read") && line.contains(&format!("{SPACE}/bad"))).count();
    let gateways = b.containers(installed::SYSTEM, "gateway").await?.len();
    ensure!(lines == gateways, "{lines} lines in the logs of {gateways} gateways");
    // Mended, it counts again. As it got there: the server itself can make no change to what it cannot read.
    b.rewrite_in_etcd(&key, |object| object["spec"] = json!({})).await?;
    told(b, &bad, "Ready=True/Exported", "offered to all peers whose export rules allow it").await?;
    clear(bed, &[SPACE]).await
}
