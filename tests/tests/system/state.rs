//! State on a disk that fails: F20.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::mesh::MeshBuilder;
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, within};
use nix::mount::{MsFlags, mount};

/// Covers a folder with a file system of 64 KiB.
fn cover(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    mount(Some("small"), folder, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).context("mount a small tmpfs")
}

/// Every file under a folder.
fn files(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

lab_test! {
    /// F20: a full disk stops nothing.
    async fn f20_full_disk_costs_no_traffic() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).prepare().await?;
        let state = mesh.cloud("a").state(0);
        cover(&state)?;
        std::fs::write(state.join("ballast"), vec![0; 60 * 1024]).ok();
        while std::fs::write(state.join("more"), [0; 4096]).is_ok() && !state.join("more-2").exists() {
            std::fs::rename(state.join("more"), state.join("more-2")).ok();
        }
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.start_gateways().await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let load = mesh.load("a", target, 100);
        // What is new is still learnt.
        mesh.serve("b", "late", 12, Habit::Http).await?;
        let late = mesh.target("a", "late").await?;
        mesh.wait_answer("a", late, "b-12", Duration::from_secs(5)).await?;
        load.stop().await?.none_failed()?;
        mesh.stop().await
    }

    /// F20: neither does one that became read-only.
    async fn f20_read_only_disk_costs_no_traffic() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).prepare().await?;
        let state = mesh.cloud("a").state(0);
        cover(&state)?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.start_gateways().await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let load = mesh.load("a", target, 100);
        let nothing = None::<&str>;
        mount(nothing, &state, nothing, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, nothing).context("remount")?;
        mesh.serve("b", "late", 12, Habit::Http).await?;
        let late = mesh.target("a", "late").await?;
        mesh.wait_answer("a", late, "b-12", Duration::from_secs(5)).await?;
        load.stop().await?.none_failed()?;
        // It starts from there, too.
        mesh.cloud_mut("a").kill_gateway(0).await?;
        mesh.start_gateways().await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        mesh.stop().await
    }

    /// F20: a restart serves the last imports from disk; a torn or altered file is refused, said so and
    /// replaced by what the peer says.
    async fn f20_restart_serves_from_disk_and_refuses_torn_files() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let state = mesh.cloud("a").state(0);
        within(Duration::from_secs(10), "the imports are on disk", async || {
            Ok(files(&state)?.iter().any(|path| std::fs::metadata(path).is_ok_and(|file| file.len() > 0)))
        }).await?;
        mesh.cloud_mut("a").take_gateway(0)?.terminate(Duration::from_secs(10)).await?;
        mesh.cloud_mut("b").kill_gateway(0).await?;
        mesh.cloud_mut("a").start_gateway(0).await?;
        mesh.cloud_mut("a").wait_ready(0).await?;
        ensure!(mesh.resolve("a", "web").await? == target.ip(), "the name or its address is gone");
        ensure!(mesh.imports("a", "b").await? == ["web"]);

        // Torn: every file of the state loses its end; altered: one bit of what is left.
        mesh.cloud_mut("a").take_gateway(0)?.terminate(Duration::from_secs(10)).await?;
        for path in files(&state)? {
            let mut bytes = std::fs::read(&path)?;
            bytes.truncate(bytes.len() - bytes.len() / 3);
            if let Some(byte) = bytes.last_mut() {
                *byte ^= 1;
            }
            std::fs::write(&path, bytes)?;
        }
        mesh.start_gateways().await?;
        let log = mesh.cloud("a").gateway(0)?.log_tail(1 << 20);
        ensure!(log.contains("snapshot rejected: checksum"), "nothing is said of the torn file");
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        mesh.stop().await
    }
}
