//! Tunnels that are older than a certificate lives.

use super::*;

/// A round through the tunnel, and a moment's rest.
async fn echoed(stream: &mut Stream) -> Result<()> {
    stream.write(Bytes::from_static(b"ping")).await?;
    ensure!(timeout(SOON, stream.read_exact(4)).await?? == b"ping");
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}

lab_test! {
    /// I9: who has renewed its certificate, and shows it, keeps what runs on the old one.
    async fn i9_a_renewed_certificate_keeps_what_runs_on_the_old_one() {
        let mut mesh = mesh().await?;
        mesh.serve("b", "echo", 11, Habit::Echo).await?;
        let authority = only_endpoint(&mesh, "echo").await?;
        let life = Duration::from_secs(8);
        let living = |life| Credentials::living(mesh.cloud("a"), NAMESPACE, "client", life);
        let old = sidecar_with(&mesh, &living(life)?).await?;
        let begun = Instant::now();
        let mut stream = old.open(&authority).await?;
        // Another workload of that host helps nobody.
        let other = Credentials::of(mesh.cloud("a"), NAMESPACE, "other")?;
        let _other = sidecar_with(&mesh, &other).await?;
        let newer = sidecar_with(&mesh, &living(life * 2)?).await?;
        while begun.elapsed() < life + Duration::from_secs(2) {
            echoed(&mut stream).await.with_context(|| format!("after {:?}", begun.elapsed()))?;
        }
        // It ends with the newest.
        while begun.elapsed() < life * 3 && echoed(&mut stream).await.is_ok() {}
        let lasted = begun.elapsed();
        ensure!(lasted > life * 2 - Duration::from_secs(2) && lasted < life * 2 + Duration::from_secs(3), "{lasted:?}");
        drop(newer);
        mesh.stop().await
    }
}
