//! Commands against running gateways.

use std::time::Duration;

use anyhow::ensure;
use eastway_tests::mesh::MeshBuilder;
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, within};

lab_test! {
    /// `peer remove` leaves nothing of the peer: no name, no import, no link, no file.
    async fn peer_remove_leaves_nothing() {
        let mut mesh = MeshBuilder::of(&["a", "b", "c"]).start().await?;
        mesh.serve("b", "in-b", 11, Habit::Http).await?;
        mesh.serve("c", "in-c", 11, Habit::Http).await?;
        let (to_b, to_c) = (mesh.target("a", "in-b").await?, mesh.target("a", "in-c").await?);
        mesh.wait_answer("a", to_b, "b-11", Duration::from_secs(5)).await?;
        mesh.wait_answer("a", to_c, "c-11", Duration::from_secs(5)).await?;
        let load = mesh.load("a", to_c, 100);
        let (code, output) = mesh.cloud("a").command(0, &["peer", "remove", "b"]).await?;
        ensure!(code == Some(0), "peer remove: {code:?}\n{output}");
        ensure!(!mesh.cloud("a").peer_file("b").exists(), "the file is still there");
        let left: serde_json::Value = mesh.cloud("a").admin(0, "/leftovers?peer=b").await?;
        ensure!(left["links"] == 0 && left["imports"] == 0 && left["files"] == 0 && left["configured"] == false, "{left}");
        let error = mesh.resolve("a", "in-b").await.err().map(|error| format!("{error:#}"));
        ensure!(error.as_ref().is_some_and(|error| error.contains("NXDOMAIN")), "{error:?}");
        ensure!(mesh.ask("a", to_b).await.is_err(), "its address still answers");
        within(Duration::from_secs(5), "b sees a down", async || Ok(!mesh.cloud("b").is_up(0, "a").await?)).await?;
        load.stop().await?.none_failed()?;
        mesh.stop().await
    }
}
