//! The sidecar's own conduct: its health port, its file while it runs, and its certificate over a restart.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use eastway_tests::{binary, lab_test, within};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use tokio::process::Command;

use crate::gateway::DOMAIN;
use crate::host::{Conversation, Host, PATIENCE, envoys, mode};

const WEB: &str = "spiffe://onprem.example/ns/shop/sa/web";
const HEALTH: &str = "127.0.0.1:15021";

/// The status that the health port answers a path with; 0: it does not.
async fn health(path: &str) -> Result<u16> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--max-time", "2"]);
    let output = curl.arg(format!("http://{HEALTH}{path}")).output().await?;
    Ok(String::from_utf8_lossy(&output.stdout).parse()?)
}

lab_test! {
    async fn it_is_ready_while_envoy_is_and_its_certificate_is_good() {
        let mut host = Host::start("1.40.0").await?;
        host.end_ca().await?;
        let sidecar = host.sidecar(&json!({"health": HEALTH}))?;
        within(PATIENCE, "it lives", async || Ok(health("/healthz").await? == 200)).await?;
        ensure!(health("/readyz").await? == 503, "without a certificate");
        host.start_ca()?;
        sidecar.caller().await?;
        within(PATIENCE, "it is ready", async || Ok(health("/readyz").await? == 200)).await?;
        let [envoy] = envoys()[..] else { anyhow::bail!("{:?}", envoys()) };
        kill(envoy, Signal::SIGKILL)?;
        within(PATIENCE, "without Envoy it is not", async || Ok(health("/readyz").await? == 503)).await?;
        within(PATIENCE, "it is ready again", async || Ok(health("/readyz").await? == 200)).await?;
        let open = Conversation::start().await?;
        sidecar.signal(Signal::SIGTERM)?;
        within(PATIENCE, "it drains", async || Ok(health("/readyz").await? == 503)).await?;
        ensure!(health("/healthz").await? == 200);
        drop(open);
        Ok(())
    }

    async fn i11_a_good_file_is_taken_over_while_it_runs_and_a_bad_one_changes_nothing() {
        let host = Host::start("1.40.0").await?;
        let mut sidecar = host.sidecar(&json!({"drain": "60s"}))?;
        sidecar.caller().await?;
        let file = host.path("sidecar.yaml");
        let good = fs::read_to_string(&file)?;
        fs::write(&file, good.replace("60s", "six"))?;
        let said = async |words: &str| Ok(sidecar.log().contains(words));
        within(PATIENCE, "it says what is wrong", async || said("(running with the previous configuration)").await).await?;
        ensure!(sidecar.log().contains("sidecar.yaml:1:"), "where: {}", sidecar.log());
        Conversation::start().await?.echo("as before").await?;
        let changed = good.replace("60s", "1s").replace(":1,", ":2,");
        ensure!(changed.contains("\"concurrency\":2"), "{changed}");
        fs::write(&file, changed)?;
        within(PATIENCE, "it is taken over", async || said("configuration taken over").await).await?;
        ensure!(said("envoy.concurrency takes effect at the next start").await?, "{}", sidecar.log());
        // The new drain time counts: this would go on for a minute.
        let mut open = Conversation::start().await?;
        sidecar.signal(Signal::SIGTERM)?;
        ensure!(sidecar.ended().await?.success(), "{}", sidecar.log());
        open.closed().await
    }

    async fn f16_a_restart_while_the_ca_is_away_goes_on_with_the_kept_certificate() {
        let mut host = Host::start("1.40.0").await?;
        let trust = json!({"domain": DOMAIN, "ca": "unix:./run/web.sock", "keep": "./keep"});
        let sidecar = host.sidecar(&json!({"trust": trust}))?;
        ensure!(sidecar.caller().await? == WEB);
        ensure!(mode(&host.path("keep"))? == 0o700 && mode(&host.path("keep/workload.pem"))? == 0o600);
        sidecar.stop().await?;
        host.end_ca().await?;
        let next = host.start_sidecar(Command::new(binary()))?;
        ensure!(next.caller().await? == WEB, "{}", next.log());
        ensure!(next.log().contains("going on with the certificate from before the restart"), "{}", next.log());
        next.stop().await?;
        // Another workload's is nobody's.
        let file = host.path("sidecar.yaml");
        fs::write(&file, fs::read_to_string(&file)?.replace("\"web\"", "\"cart\""))?;
        let log = next_log(&host)?;
        let other = host.start_sidecar(Command::new(binary()))?;
        within(PATIENCE, "it waits for the CA", async || Ok(next_log(&host)?[log.len()..].contains("no certificate yet"))).await?;
        ensure!(tokio::time::timeout(Duration::from_millis(500), Conversation::start()).await.is_ok_and(|it| it.is_err()));
        drop(other);
        Ok(())
    }
}

fn next_log(host: &Host) -> Result<String> {
    Ok(fs::read_to_string(host.path("sidecar.log"))?)
}
