//! What a cloud's operator does: commands, and questions to the gateways' own ports.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;

use super::super::place::Place;
use super::super::process::LOG_TAIL;
use super::super::{Isolation, files, http};
use super::Cloud;
use crate::admin::views::{Items, PeerCondition, PeerView, StatusView, View};

/// Longest wait for a gateway to become ready.
const READY: Duration = Duration::from_secs(10);

impl Cloud {
    /// Runs a command of the `eastway` binary beside a replica, as its operator would; gives its exit code
    /// and all that it printed.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn command(&self, replica: usize, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        let output = self.output(replica, arguments).await?;
        let printed = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&printed).into_owned()))
    }

    /// This cluster's Peer file, as `eastway peer export` prints it.
    pub(super) async fn export_peer(&self) -> Result<String> {
        let output = self.output(0, &["peer", "export"]).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: eastway peer export: {said}", self.spec.name);
        String::from_utf8(output.stdout).context("eastway peer export prints text")
    }

    async fn output(&self, replica: usize, arguments: &[&str]) -> Result<std::process::Output> {
        let (place, address) = self.operator(replica)?;
        let mut command = tokio::process::Command::new(&self.binary);
        command
            .args(arguments)
            .env("EASTWAY_CONFIG", self.main_file(replica))
            .env("EASTWAY_ADMIN", SocketAddr::new(address, files::ADMIN_PORT).to_string())
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        let output = place.run(async move { Ok(command.output().await?) }).await;
        output.with_context(|| format!("run eastway {arguments:?}"))
    }

    /// Fetches a path of a replica's admin port.
    ///
    /// # Errors
    /// It does not answer, or not with `T`.
    pub async fn admin<T: DeserializeOwned + Send + 'static>(&self, replica: usize, path: &str) -> Result<T> {
        let (place, address) = self.operator(replica)?;
        let text = http::get(&place, SocketAddr::new(address, files::ADMIN_PORT), path).await;
        let text = text.with_context(|| format!("{}/gateway-{replica}: admin {path}", self.spec.name))?;
        ensure!(
            text.status == 200,
            "{}/gateway-{replica}: admin {path}: {} {}",
            self.spec.name,
            text.status,
            text.body
        );
        serde_json::from_str(&text.body).with_context(|| format!("admin {path} answers {}", text.body))
    }

    /// A replica's status.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn status(&self, replica: usize) -> Result<StatusView> {
        Ok(self.admin::<View<StatusView>>(replica, "/status").await?.contents)
    }

    /// A replica's peers.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn peers(&self, replica: usize) -> Result<Vec<PeerView>> {
        Ok(self.admin::<View<Items<PeerView>>>(replica, "/peers").await?.contents.items)
    }

    /// What a replica says about one peer.
    ///
    /// # Errors
    /// It does not answer, or does not know the peer.
    pub async fn peer(&self, replica: usize, name: &str) -> Result<PeerView> {
        let peers = self.peers(replica).await?;
        peers
            .into_iter()
            .find(|peer| peer.name == name)
            .with_context(|| format!("{} has no peer {name}", self.spec.name))
    }

    /// Whether a replica has a live link to the peer.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn is_up(&self, replica: usize, peer: &str) -> Result<bool> {
        Ok(self.peer(replica, peer).await?.state == PeerCondition::Up)
    }

    /// The text of a replica's metrics.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn metrics(&self, replica: usize) -> Result<String> {
        let (place, address) = self.operator(replica)?;
        Ok(http::get(&place, SocketAddr::new(address, files::METRICS_PORT), "/metrics").await?.body)
    }

    /// Whether a replica's health port says that it is ready.
    pub async fn is_ready(&self, replica: usize) -> bool {
        let Ok((place, address)) = self.operator(replica) else { return false };
        let answer = http::get(&place, SocketAddr::new(address, files::HEALTH_PORT), "/healthz/ready").await;
        answer.is_ok_and(|answer| answer.status == 200)
    }

    /// Waits until a replica is ready and returns how long it took.
    ///
    /// # Errors
    /// It ended, or took too long; the message quotes its log.
    pub async fn wait_ready(&mut self, replica: usize) -> Result<Duration> {
        let started = Instant::now();
        while !self.is_ready(replica).await {
            let gateway = self.gateways.get_mut(replica).and_then(Option::as_mut).context("does not run")?;
            if !gateway.is_running()? {
                bail!("{} ended:\n{}", gateway.name(), gateway.log_tail(LOG_TAIL));
            }
            if started.elapsed() > READY {
                bail!("{} is not ready after {READY:?}:\n{}", gateway.name(), gateway.log_tail(LOG_TAIL));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(started.elapsed())
    }

    /// Where the admin, metrics and health ports of a replica are.
    pub(super) fn operator(&self, replica: usize) -> Result<(Place, IpAddr)> {
        let gateway = self.gateway_net(replica)?;
        let address = match self.isolation {
            Isolation::Namespaces => IpAddr::from([127, 0, 0, 1]),
            Isolation::Loopback => gateway.inside,
        };
        Ok((gateway.place.clone(), address))
    }
}
