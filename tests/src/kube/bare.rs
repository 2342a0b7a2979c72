//! As much of a cluster as an API server is, with any number of objects in it: they are put into its store before it
//! starts, since thousands of writes through it take minutes.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::process::Command;

use super::cluster::{Cluster, Options, Program};
use super::process::Daemon;
use super::{Bed, stage};
use crate::within;

/// etcd's port for clients.
const ETCD: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 2379);
/// Objects of one transaction. etcd is told to take this many.
pub(super) const AT_ONCE: usize = 512;
/// Bytes of a request that etcd is told to take.
pub(super) const REQUEST_BYTES: usize = 16 << 20;

/// An object as the API server keeps it.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its key: `/registry/pods/shop/cart-0`.
    pub key: String,
    /// JSON of the version that is stored.
    pub value: String,
}

impl Bed {
    /// Brings up etcd with these objects, and an API server that has them; no pod runs there, and nothing looks after
    /// objects. It ends when it is dropped.
    ///
    /// # Errors
    /// A tool is missing, or a part does not come up; the message has its log.
    pub async fn bare_cluster(&self, options: Options, objects: impl Iterator<Item = Stored>) -> Result<Cluster> {
        let cluster = Cluster::prepare_in(self.wan(), &stage::folder()?, options).await?;
        cluster.start_program(Program::Etcd).await?;
        cluster.put(objects).await.context("put objects into etcd")?;
        cluster.start_program(Program::ApiServer).await?;
        cluster.wait_api().await?;
        Ok(cluster)
    }
}

impl Cluster {
    /// Puts objects into its store, behind the API server's back.
    async fn put(&self, objects: impl Iterator<Item = Stored>) -> Result<()> {
        within(super::cluster::PATIENCE, "etcd listens", async || {
            Ok(self.place().run(async { Ok(TcpStream::connect(ETCD).await?) }).await.is_ok())
        })
        .await?;
        let mut objects = objects.peekable();
        // Several at once: this side writes text while etcd reads it.
        let mut running = VecDeque::new();
        while objects.peek().is_some() {
            let body = transaction(objects.by_ref().take(AT_ONCE));
            running.push_back(self.place().spawn(async move {
                let answer = request(ETCD, Method::POST, "/v3/kv/txn", "application/json", body).await?;
                ensure!(answer.contains("\"succeeded\":true"), "etcd says {answer}");
                Ok(())
            }));
            if running.len() >= 2
                && let Some(first) = running.pop_front()
            {
                first.await??;
            }
        }
        for left in running {
            left.await??;
        }
        Ok(())
    }

    /// Starts a program on its node that runs until it is killed or dropped; its log is beside those of the cluster.
    ///
    /// # Errors
    /// The cluster has ended, or there is no such program.
    pub fn daemon(&self, name: &str, program: &str, arguments: &[&str]) -> Result<Daemon> {
        Daemon::start(name, self.command(program, arguments)?, self.logs())
    }

    /// As [`Cluster::on_node`], without the settings of the tests: the binary under test refuses what it does not know.
    ///
    /// # Errors
    /// The cluster has ended.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = self.on_node(program, arguments)?;
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EASTWAY_")) {
            command.env_remove(name);
        }
        Ok(command)
    }

    /// Its folder on the stage, for files of one's own.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.node.folder.clone()
    }
}

fn transaction(objects: impl Iterator<Item = Stored>) -> String {
    let mut body = String::from("{\"success\":[");
    for (number, Stored { key, value }) in objects.enumerate() {
        if number > 0 {
            body.push(',');
        }
        body.push_str("{\"requestPut\":{\"key\":\"");
        STANDARD.encode_string(key, &mut body);
        body.push_str("\",\"value\":\"");
        STANDARD.encode_string(value, &mut body);
        body.push_str("\"}}");
    }
    body.push_str("]}");
    body
}

/// One HTTP request in plain text on a connection of its own; the answer's body, whatever its status.
///
/// # Errors
/// No connection, or no answer.
pub async fn request(to: SocketAddr, method: Method, path: &str, kind: &str, body: String) -> Result<String> {
    let stream = TcpStream::connect(to).await.with_context(|| format!("connect to {to}"))?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", to.to_string());
    let request = request.header("content-type", kind).body(Full::new(Bytes::from(body)))?;
    let answer = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
