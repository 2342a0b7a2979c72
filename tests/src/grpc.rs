//! gRPC: a server for any of its methods, and real clients with their libraries' own xDS, as `make deps` installed them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};

use anyhow::{Context, Result, ensure};
use bytes::{Buf as _, BufMut as _, Bytes};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::lab::place::Place;

/// Starts a server at a place, which it ends with, that answers every call with `name`.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve(place: &Place, address: SocketAddr, name: &str) -> Result<()> {
    let bound = place.run(async move { Ok(TcpListener::bind(address).await?) }).await;
    let listener = bound.with_context(|| format!("server on {address}"))?;
    let echo = Echo { name: Bytes::from(name.to_owned()) };
    place.spawn(async move {
        // It ends with the place.
        let _ended = Server::builder().add_service(echo).serve_with_incoming(TcpListenerStream::new(listener)).await;
    });
    Ok(())
}

/// The service `eastway.test.Echo`.
#[derive(Clone, Debug)]
struct Echo {
    name: Bytes,
}

impl NamedService for Echo {
    const NAME: &'static str = "eastway.test.Echo";
}

impl UnaryService<Bytes> for Echo {
    type Response = Bytes;
    type Future = std::future::Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, _: Request<Bytes>) -> Self::Future {
        std::future::ready(Ok(Response::new(self.name.clone())))
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).unary(echo, request).await) })
    }
}

/// Messages as the bytes they are.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// A library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// `grpcio`, which is the C core.
    Python,
    /// `google.golang.org/grpc`.
    Go,
    /// `@grpc/grpc-js` with `@grpc/grpc-js-xds`.
    Node,
}

impl Library {
    /// All.
    pub const ALL: [Self; 3] = [Self::Python, Self::Go, Self::Node];

    /// The client with this library, of `target`, a call with this metadata every `pause` milliseconds.
    fn command(self, target: &str, pause: u64, metadata: &[&str]) -> Result<Command> {
        let tools = installed()?;
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/grpc");
        let mut command = match self {
            Self::Python => {
                let mut command = Command::new("python3");
                command.arg(sources.join("client.py")).env("PYTHONPATH", tools.join("python"));
                command
            }
            Self::Go => Command::new(tools.join("client-go")),
            Self::Node => {
                let mut command = Command::new("node");
                command.arg(sources.join("client.js")).env("NODE_PATH", tools.join("node_modules"));
                command
            }
        };
        command.arg(target).arg(pause.to_string()).args(metadata);
        Ok(command)
    }
}

/// Where `make deps` put them.
fn installed() -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin");
    let bin = std::env::var_os("EASTWAY_TOOLS").map_or(workspace, PathBuf::from);
    let folder = bin.join("../grpc");
    for what in ["python", "client-go", "node_modules"] {
        ensure!(folder.join(what).exists(), "gRPC's clients are missing ({what}): run `make deps`");
    }
    Ok(folder.canonicalize()?)
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Call {
    /// Who answered.
    #[serde(default)]
    pub ok: String,
    /// The code, if nobody did.
    #[serde(default)]
    pub error: String,
    /// What the library says.
    #[serde(default)]
    pub detail: String,
    /// How long it took.
    pub millis: u64,
}

/// A running client. Dropping it ends it.
#[derive(Debug)]
pub struct Client {
    /// Its library.
    pub library: Library,
    calls: Arc<Mutex<Vec<Call>>>,
    reader: JoinHandle<()>,
    _child: Child,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Client {
    /// Starts one at a place, with the bootstrap file that the agent wrote.
    ///
    /// # Errors
    /// It is not installed.
    pub async fn start(place: &Place, library: Library, bootstrap: &Path, target: &str) -> Result<Self> {
        Self::with(place, library, bootstrap, target, &[]).await
    }

    /// As [`Self::start`], each call with this metadata, `name=value`.
    ///
    /// # Errors
    /// As there.
    pub async fn with(
        place: &Place,
        library: Library,
        bootstrap: &Path,
        target: &str,
        metadata: &[&str],
    ) -> Result<Self> {
        let mut command = library.command(target, 10, metadata)?;
        command.env("GRPC_XDS_BOOTSTRAP", bootstrap).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = place.run(async move { Ok(command.spawn()?) }).await?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
        let into = Arc::clone(&calls);
        let reader = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let call = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
                into.lock().unwrap_or_else(PoisonError::into_inner).push(call);
            }
        });
        Ok(Self { library, calls, reader, _child: child })
    }

    /// All calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last so many of them; none if there were fewer.
    #[must_use]
    pub fn last(&self, wanted: usize) -> Vec<Call> {
        let mut calls = self.calls();
        if calls.len() < wanted { Vec::new() } else { calls.split_off(calls.len() - wanted) }
    }
}
