//! What all tunnels of a gateway may hold in memory.

use super::*;

async fn held(mesh: &Mesh) -> Result<u64> {
    let status: Value = mesh.cloud("a").admin(0, "/status").await?;
    ensure!(status["tunnels"]["bufferLimitBytes"] == 16 << 20, "{status}");
    status["tunnels"]["bufferedBytes"].as_u64().context("no count")
}

lab_test! {
    /// Sidecars that do not read: beyond the limit nobody gets a further tunnel, and those that are there go on.
    async fn p9_stalled_readers_hold_no_more_than_the_limit() {
        let mut mesh = MeshBuilder::of(&["a", "b"])
            .settings("a", &json!({
                "listen": {"hbone": format!("0.0.0.0:{HBONE_PORT}")},
                "limits": {"hboneBufferBytes": "16MiB"},
            }))
            .start()
            .await?;
        // Of this cluster: no link cuts its readers before.
        mesh.serve("a", "flood", 11, Habit::Flood).await?;
        mesh.serve("b", "echo", 12, Habit::Echo).await?;
        let echo = only_endpoint(&mesh, "echo").await?;
        mesh.target("a", "flood").await?;
        let flood = format!("flood.{NAMESPACE}.a:{PORT}");
        let credentials = Credentials::of(mesh.cloud("a"), NAMESPACE, "client")?;
        let first = sidecar_with(&mesh, &credentials).await?;
        let mut before = first.open(&echo).await?;
        let reader = sidecar_with(&mesh, &credentials).await?;
        let stalled = try_join_all((0..STREAMS).map(|_| reader.open(&flood))).await?;
        within(PATIENCE, "nobody gets a further tunnel", async || Ok(status(&first, &echo).await? == 503)).await?;
        let held_then = held(&mesh).await?;
        println!("{} stalled readers hold {held_then} bytes", stalled.len());
        ensure!(held_then > 16 << 20, "{held_then}");
        let page = mesh.cloud("a").metrics(0).await?;
        let counted = |what: &str| page.lines().any(|line| line.starts_with(what) && !line.ends_with(" 0"));
        ensure!(counted("eastway_hbone_requests_total{reason=\"memory\"}") && counted("eastway_hbone_buffered_bytes "), "{page}");
        before.write(Bytes::from_static(b"still here")).await?;
        ensure!(timeout(SOON, before.read_exact(10)).await?? == b"still here");
        // Who reads gets one again as soon as there is room.
        drop((stalled, reader));
        within(PATIENCE, "there is room again", async || Ok(status(&first, &echo).await? == 200)).await?;
        drop((before, first));
        mesh.stop().await
    }
}
