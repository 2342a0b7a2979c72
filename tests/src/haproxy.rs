//! A real HAProxy that expects a header of the PROXY protocol, and answers with what it was told.

use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::lab::place::Place;

/// A running HAProxy. Dropping it kills it.
#[derive(Debug)]
pub struct HaProxy {
    _process: Child,
    folder: TempDir,
}

impl HaProxy {
    /// Starts one that answers each HTTP request with the client's address as it was told, port included. A connection
    /// without a header is refused.
    ///
    /// # Errors
    /// It is not installed.
    pub async fn start(place: &Place, address: SocketAddr) -> Result<Self> {
        let folder = TempDir::new()?;
        let config = format!(
            "global\n log stdout format raw local0\ndefaults\n mode http\n log global\n option httplog\n \
             timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
             frontend told\n bind {address} accept-proxy\n \
             http-request return status 200 content-type text/plain lf-string \"%[src]:%[src_port]\"\n"
        );
        let file = folder.path().join("haproxy.cfg");
        std::fs::write(&file, config)?;
        let log = std::fs::File::create(folder.path().join("log"))?;
        let process = place.run(async move {
            let started = Command::new("haproxy")
                .args(["-db", "-f"])
                .arg(file)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .kill_on_drop(true)
                .spawn();
            started.context("cannot start haproxy: make deps installs it")
        });
        Ok(Self { _process: process.await?, folder })
    }

    /// What it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}
