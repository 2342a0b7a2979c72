//! Links where UDP does not pass: over TLS on TCP, and back (F37, F38).

use std::time::{Duration, Instant};

use anyhow::Result;
use eastway_tests::mesh::{Mesh, MeshBuilder};
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, within};

/// A link by TCP is there soon after the first try by UDP.
const FALLBACK: Duration = Duration::from_secs(3);

/// Waits until the link of `from` to `to` is carried by `transport` alone.
async fn carried_by(mesh: &Mesh, from: &str, to: &str, transport: &str, patience: Duration) -> Result<Duration> {
    within(patience, format!("{from} reaches {to} by {transport} alone"), async || {
        let links = mesh.peer(from, to).await?.links;
        Ok(!links.is_empty() && links.iter().all(|link| link.transport == transport))
    })
    .await
}

lab_test! {
    /// UDP is dropped from the start: the link comes up by TCP soon, requests cross both ways, and status says so.
    async fn f38_where_udp_never_passes_links_are_by_tcp() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).prepare().await?;
        mesh.cloud("b").net().set_udp(false).await?;
        mesh.cloud("a").net().set_udp(false).await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.serve("a", "shop", 12, Habit::Http).await?;
        mesh.start_gateways().await?;
        let begun = Instant::now();
        mesh.wait_up("a", "b", FALLBACK).await?;
        println!("up after {:?}", begun.elapsed());
        carried_by(&mesh, "a", "b", "tcp", FALLBACK).await?;
        carried_by(&mesh, "b", "a", "tcp", FALLBACK).await?;
        let (there, back) = (mesh.target("a", "web").await?, mesh.target("b", "shop").await?);
        mesh.wait_answer("a", there, "b-11", Duration::from_secs(5)).await?;
        mesh.wait_answer("b", back, "a-12", Duration::from_secs(5)).await?;
        let loads = [mesh.load("a", there, 100), mesh.load("b", back, 100)];
        within(Duration::from_secs(10), "3 s of load", async || Ok(loads[0].elapsed() > Duration::from_secs(3))).await?;
        for load in loads {
            let record = load.stop().await?;
            println!("p99 {:?}", record.p99());
            record.none_failed()?;
        }
        mesh.stop().await
    }
}
