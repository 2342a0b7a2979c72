//! Whom the CA certifies on a workload's socket, and what a sidecar says that cannot start.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_proto::ca::v1::SignRequest;
use eastway_proto::ca::v1::certificate_authority_client::CertificateAuthorityClient;
use eastway_tests::{lab_test, within};
use hyper_util::rt::TokioIo;
use nix::sys::signal::Signal;
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use serde_json::json;
use tokio::net::UnixStream;
use tonic::transport::{Endpoint, Uri};

use crate::host::{Host, PATIENCE, envoys, mode};

/// A request that asks for everything that it should not get.
fn greedy() -> Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "root");
    params.subject_alt_names = vec![
        SanType::URI("spiffe://onprem.example/ns/eastway-system/sa/eastway-gateway".try_into()?),
        SanType::DnsName("onprem.example".try_into()?),
    ];
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    Ok(params.serialize_request(&KeyPair::generate()?)?.der().to_vec())
}

/// Whether a process has this command line; the test is alone in its PID namespace.
fn runs(line: &str) -> bool {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut lines = entries.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.any(|found| found.trim_end_matches('\0') == line)
}

lab_test! {
    async fn c4_the_socket_says_who_it_is_whatever_the_request_says() {
        let host = Host::start("1.40.0").await?;
        let socket = host.path("run/cart.sock");
        let path = socket.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://ca").connect_with_connector(connector).await?;
        let mut client = CertificateAuthorityClient::new(channel);
        let request = SignRequest { csr: greedy()?.into(), ttl_seconds: 365 * 24 * 3600 };
        let answer = client.sign(request).await?.into_inner();
        ensure!(answer.link_keys.is_none());
        let leaf = answer.chain.first().context("no certificate")?;
        let text = String::from_utf8_lossy(leaf);
        ensure!(text.contains("spiffe://onprem.example/ns/shop/sa/cart"));
        ensure!(!text.contains("eastway-gateway") && !text.contains("root"), "{text}");
        ensure!(mode(&socket)? == 0o600);
        Ok(())
    }

    async fn a_sidecar_with_anothers_socket_or_no_envoy_says_so_and_ends() {
        let host = Host::start("1.40.0").await?;
        let trust = json!({"domain": "onprem.example", "ca": "unix:./run/cart.sock"});
        let mut sidecar = host.sidecar(&json!({"trust": trust}))?;
        ensure!(sidecar.ended().await?.code() == Some(1));
        let said = sidecar.log();
        ensure!(said.contains("certifies spiffe://onprem.example/ns/shop/sa/cart here"), "{said}");
        let mut sidecar = host.sidecar(&json!({"envoy": {"path": "./envoy"}}))?;
        ensure!(sidecar.ended().await?.code() == Some(1));
        ensure!(sidecar.log().contains("there is no Envoy at"), "{}", sidecar.log());
        // Envoy refuses its own arguments.
        let path = eastway_tests::envoy::binary("1.40.0")?;
        let mut sidecar = host.sidecar(&json!({"envoy": {"path": path, "args": ["--no-such-option"]}}))?;
        ensure!(sidecar.ended().await?.code() == Some(1));
        ensure!(sidecar.log().contains("Envoy ended right after its start"), "{}", sidecar.log());
        ensure!(envoys().is_empty());
        Ok(())
    }

    async fn a_ca_that_says_nothing_or_is_none_is_told_within_seconds() {
        let host = Host::start("1.40.0").await?;
        let silent = tokio::net::UnixListener::bind(host.path("run/silent.sock"))?;
        let trust = json!({"domain": "onprem.example", "ca": "unix:./run/silent.sock"});
        let sidecar = host.sidecar(&json!({"trust": trust}))?;
        let told = within(PATIENCE, "it says so", async || Ok(sidecar.log().contains("silent.sock does not answer"))).await?;
        ensure!(told < Duration::from_secs(9), "after {told:?}");
        drop((sidecar, silent));
        let trust = json!({"domain": "onprem.example", "ca": "unix:./gateway.yaml"});
        let sidecar = host.sidecar(&json!({"trust": trust}))?;
        let told = within(PATIENCE, "it says so", async || Ok(sidecar.log().contains("it is not a socket"))).await?;
        ensure!(told < Duration::from_secs(4), "after {told:?}");
        Ok(())
    }

    async fn an_envoy_that_does_not_get_ready_is_told_and_one_that_asks_no_end_is_none() {
        let host = Host::start("1.40.0").await?;
        let script = |name: &str, version: &str| {
            let path = host.path(name);
            fs::write(&path, format!("#!/bin/sh\n[ \"$1\" = --version ] && {version}\nexec sleep 600\n"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            anyhow::Ok(path)
        };
        let lazy = script("lazy", "exec echo 'envoy  version: a/1.40.0/Clean/RELEASE/x'")?;
        let sidecar = host.sidecar(&json!({"envoy": {"path": lazy}}))?;
        within(PATIENCE, "it says so", async || Ok(sidecar.log().contains("Envoy is not ready"))).await?;
        sidecar.stop().await?;
        let endless = script("endless", "while :; do echo yes; done")?;
        let mut sidecar = host.sidecar(&json!({"envoy": {"path": endless}}))?;
        ensure!(sidecar.ended().await?.code() == Some(1));
        ensure!(sidecar.log().contains("is no Envoy: `--version` says \"yes\""), "{}", sidecar.log());
        // One that hangs there goes with the sidecar, however that ends.
        let hangs = script("hangs", "exec sleep 601")?;
        let sidecar = host.sidecar(&json!({"envoy": {"path": hangs}}))?;
        within(PATIENCE, "it is asked", async || Ok(runs("sleep\x00601"))).await?;
        sidecar.signal(Signal::SIGTERM)?;
        within(PATIENCE, "it is gone", async || Ok(!runs("sleep\x00601"))).await?;
        Ok(())
    }

    async fn a_sidecar_waits_for_its_ca_and_its_gateway() {
        let host = Host::start("1.40.0").await?;
        let trust = json!({"domain": "onprem.example", "ca": "unix:./run/late.sock"});
        let sidecar = host.sidecar(&json!({"trust": trust}))?;
        within(PATIENCE, "it says what it waits for", async || Ok(sidecar.log().contains("no certificate yet"))).await?;
        ensure!(envoys().is_empty(), "there is nothing that Envoy could do");
        std::os::unix::fs::symlink(host.path("run/web.sock"), host.path("run/late.sock"))?;
        sidecar.caller().await?;
        sidecar.stop().await
    }
}
