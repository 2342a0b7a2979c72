//! Envoy's administration, as far as it is asked: whether it is ready, how many connections it has, and to let go of them.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::bootstrap::Files;
use crate::config::SidecarSettings;

/// Longest wait for an answer: it comes from a process on this machine.
const PATIENCE: Duration = Duration::from_secs(2);
/// Largest answer.
const MAX_ANSWER: usize = 4 << 20;

/// Where Envoy is asked.
#[derive(Clone, Debug)]
pub(super) enum Admin {
    Socket(PathBuf),
    Port(SocketAddr),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdminError {
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("no answer within {PATIENCE:?}")]
    Timeout,
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("its answer cannot be read")]
    Body,
}

impl Admin {
    pub(super) fn of(settings: &SidecarSettings, files: &Files) -> Self {
        match settings.envoy.admin {
            Some(port) => Self::Port(SocketAddr::from((Ipv4Addr::LOCALHOST, port.get()))),
            None => Self::Socket(files.admin.clone()),
        }
    }

    /// Whether Envoy has its configuration: not whether it could do what that says.
    pub(super) async fn ready(&self) -> Result<(), AdminError> {
        self.ask(Method::GET, "/ready").await.map(drop)
    }

    /// Where Envoy listens.
    pub(super) async fn listeners(&self) -> Result<BTreeSet<SocketAddr>, AdminError> {
        listeners(&self.ask(Method::GET, "/listeners?format=json").await?).ok_or(AdminError::Body)
    }

    /// Tells Envoy to take leave of its clients: HTTP ones are told to close, and no listener takes new connections after
    /// the drain time.
    pub(super) async fn drain(&self) -> Result<(), AdminError> {
        self.ask(Method::POST, "/drain_listeners?graceful").await.map(drop)
    }

    /// Connections that clients have open; not those to itself, nor the inner ends of tunnels, which are kept for reuse.
    pub(super) async fn connections(&self) -> Result<u64, AdminError> {
        let page = self.ask(Method::GET, "/stats?filter=^listener%5C..*downstream_cx_active$").await?;
        Ok(connections(&String::from_utf8_lossy(&page)))
    }

    async fn ask(&self, method: Method, path: &'static str) -> Result<Bytes, AdminError> {
        let answer = async {
            match self {
                Self::Socket(path_of) => ask(UnixStream::connect(path_of).await?, method, path).await,
                Self::Port(address) => ask(TcpStream::connect(address).await?, method, path).await,
            }
        };
        timeout(PATIENCE, answer).await.unwrap_or(Err(AdminError::Timeout))
    }
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    method: Method,
    path: &'static str,
) -> Result<Bytes, AdminError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = method;
    *request.uri_mut() = hyper::Uri::from_static(path);
    request.headers_mut().insert("host", hyper::header::HeaderValue::from_static("envoy"));
    let answer = async {
        let answer = sender.send_request(request).await?;
        if answer.status() != StatusCode::OK {
            return Err(AdminError::Status(answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|_| AdminError::Body)?;
        Ok(body.to_bytes())
    };
    tokio::pin!(answer);
    tokio::select! {
        answered = &mut answer => answered,
        // The connection carries the answer; it ends after that, or with an error.
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error.into()),
        },
    }
}

/// Envoy's list of listeners.
#[derive(Deserialize)]
struct Listeners {
    #[serde(default)]
    listener_statuses: Vec<ListenerStatus>,
}

#[derive(Deserialize)]
struct ListenerStatus {
    #[serde(default)]
    local_address: Value,
}

/// Their addresses; those inside Envoy have none.
fn listeners(list: &[u8]) -> Option<BTreeSet<SocketAddr>> {
    let list: Listeners = serde_json::from_slice(list).ok()?;
    let address = |status: ListenerStatus| {
        let socket = status.local_address.get("socket_address")?;
        let port = socket.get("port_value")?.as_u64()?;
        Some(SocketAddr::new(socket.get("address")?.as_str()?.parse().ok()?, u16::try_from(port).ok()?))
    };
    Some(list.listener_statuses.into_iter().filter_map(address).collect())
}

/// The sum over listeners with an address, from Envoy's page of statistics.
fn connections(page: &str) -> u64 {
    let is_counted = |name: &str| {
        let inner = ["listener.admin.", "listener.envoy_internal_"];
        // Workers are counted in the listener's own number.
        name.ends_with(".downstream_cx_active")
            && !name.contains(".worker_")
            && !inner.iter().any(|prefix| name.starts_with(prefix))
    };
    let values = page.lines().filter_map(|line| line.split_once(": ")).filter(|(name, _)| is_counted(name));
    values.filter_map(|(_, value)| value.trim().parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_known_by_their_addresses() {
        let list = br#"{"listener_statuses": [
            {"name": "inbound|[::1]:9443", "local_address": {"socket_address": {"address": "::1", "port_value": 9443}}},
            {"name": "a", "local_address": {"socket_address": {"address": "10.0.0.7", "port_value": 9443}}},
            {"name": "hbone", "local_address": {"envoy_internal_address": {"server_listener_name": "hbone"}}}]}"#;
        let addresses = ["10.0.0.7:9443", "[::1]:9443"].map(|address| address.parse().unwrap());
        assert_eq!(listeners(list), Some(BTreeSet::from(addresses)));
        assert_eq!((listeners(b"{}"), listeners(b"<html>")), (Some(BTreeSet::new()), None));
    }

    #[test]
    fn only_connections_of_clients_are_counted() {
        let page = "listener.127.64.0.1_9080.downstream_cx_active: 2\n\
                    listener.127.64.0.1_9080.worker_0.downstream_cx_active: 2\n\
                    listener.admin.downstream_cx_active: 1\n\
                    listener.admin.main_thread.downstream_cx_active: 1\n\
                    listener.envoy_internal_hbone.downstream_cx_active: 5\n\
                    listener.0.0.0.0_80.downstream_cx_active: 1\n";
        assert_eq!(connections(page), 3);
        assert_eq!(connections(""), 0);
    }
}
