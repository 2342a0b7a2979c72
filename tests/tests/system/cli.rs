//! Commands against running gateways.

use std::time::Duration;

use anyhow::ensure;
use eastway_tests::mesh::MeshBuilder;
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, within};
use serde_json::json;

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
        within(Duration::from_secs(5), "its name is unknown", async || {
            Ok(mesh.resolve("a", "in-b").await.is_err_and(|error| format!("{error:#}").contains("NXDOMAIN")))
        }).await?;
        within(Duration::from_secs(5), "its address answers no more", async || Ok(mesh.ask("a", to_b).await.is_err())).await?;
        // Neither a series, nor anything in the state folder, nor a line of any command.
        let metrics = mesh.cloud("a").metrics(0).await?;
        let series: Vec<&str> = metrics.lines().filter(|line| line.contains("=\"b\"") || line.contains("in-b")).collect();
        ensure!(series.is_empty(), "series are left: {series:#?}");
        for command in ["peers", "services", "endpoints", "status"] {
            let (code, shown) = mesh.cloud("a").command(0, &[command, "-o", "json"]).await?;
            ensure!(code == Some(0) && !shown.contains("in-b") && !shown.contains("\"b\""), "{command}: {shown}");
        }
        within(Duration::from_secs(5), "no file of the state folder knows b", async || {
            let output = std::process::Command::new("grep").args(["-rlaE", "in-b|\"b\""]).arg(mesh.cloud("a").state(0)).output()?;
            let files = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(files.is_empty(), "{files}");
            Ok(true)
        }).await?;
        within(Duration::from_secs(5), "b sees a down", async || Ok(!mesh.cloud("b").is_up(0, "a").await?)).await?;
        load.stop().await?.none_failed()?;
        mesh.stop().await
    }

    /// `bench` measures a link both ways; the other side allows it for so long in an hour, or not at all.
    async fn bench_measures_a_link_that_is_up() {
        let rationed = json!({"limits": {"benchSecondsPerHour": 3}});
        let forbidden = json!({"limits": {"benchSecondsPerHour": 0}});
        let mesh = MeshBuilder::of(&["a", "b", "c"]).settings("b", &rationed).settings("c", &forbidden).start().await?;
        let bench = async |peer| mesh.cloud("a").command(0, &["bench", peer, "--seconds", "1", "-o", "json"]).await;
        let (code, output) = bench("b").await?;
        ensure!(code == Some(0), "{code:?}\n{output}");
        let measured: serde_json::Value = serde_json::from_str(&output)?;
        for way in ["up", "down"] {
            let (bytes, rate) = (&measured[way]["bytes"], &measured[way]["bitsPerSecond"]);
            ensure!(bytes.as_u64() > Some(1 << 20) && rate.as_u64() > Some(8 << 20), "{way}: {output}");
        }
        ensure!(measured["rtt"]["rttUs"].as_u64() > Some(0) && measured["rtt"]["transport"] == "quic", "{output}");
        let (code, output) = mesh.cloud("a").command(0, &["bench", "b", "--seconds", "2"]).await?;
        ensure!(code == Some(1) && output.contains("has used its seconds of the hour"), "{code:?}\n{output}");
        let (code, output) = bench("c").await?;
        ensure!(code == Some(1) && output.contains("c lets nobody measure"), "{code:?}\n{output}");
        let (code, output) = bench("d").await?;
        ensure!(code == Some(1) && output.contains("nothing is called"), "{code:?}\n{output}");
        mesh.stop().await
    }

    /// Each endpoint is named with its share or with what keeps it from one, and a caller with the rule that decides.
    async fn describe_explains_every_endpoint_and_every_caller() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("a", "web", 11, Habit::Http).await?;
        mesh.serve("a", "web", 12, Habit::Http).await?;
        mesh.serve("b", "web", 13, Habit::Http).await?;
        mesh.change_services("a", |services| services[0].endpoints[1].more = json!({"draining": true}))?;
        within(Duration::from_secs(10), "a knows all", async || {
            let (code, output) = mesh.cloud("a").command(0, &["describe", "shop/web"]).await?;
            let line = |address: &str| output.lines().find(|line| line.contains(address)).unwrap_or_default().to_owned();
            ensure!(code == Some(0) && line("10.244.1.11").contains("100.0 %"), "{output}");
            ensure!(line("10.244.1.12").contains("none") && line("10.244.1.12").contains("it drains, and others are ready"), "{output}");
            ensure!(output.contains("Connections go to") && output.contains("and not to"), "{output}");
            ensure!(!output.contains('{'), "{output}");
            Ok(true)
        }).await?;
        let answers = [
            (0, "b", "allowed: allowed by access policy shop/everyone"),
            (1, "nobody", "error: no cluster \"nobody\": this is a, its peers are b"),
        ];
        for (wanted, cluster, words) in answers {
            let arguments = ["describe", "shop/web", "--from", "shop/client", "--from-cluster", cluster];
            let (code, output) = mesh.cloud("a").command(0, &arguments).await?;
            ensure!(code == Some(wanted) && output.contains(words), "{output}");
        }
        // A request, where no rule looks at requests.
        let (_, output) = mesh.cloud("a").command(0, &["describe", "shop/web", "--header", "end-user=jason"]).await?;
        ensure!(output.contains("The request: no rule: by weights"), "{output}");
        mesh.stop().await
    }
}
