//! A gRPC channel to another process of this cluster.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use eastway_identity::local::{ALPN, LocalError, verdict};
use eastway_identity::tls::SERVER_NAME;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::config::value::HostPort;

/// Longest wait for name, connection and handshake together.
const CONNECT: Duration = Duration::from_secs(5);
/// How often a connection without traffic has to prove that it lives, and within which time.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5));

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Name, route or port.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// What was dialled.
        address: HostPort,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Nobody answered in time.
    #[error("{0} does not answer")]
    Timeout(HostPort),
    /// Who answered is not who was wanted.
    #[error("{address} {source}")]
    Refused {
        /// What was dialled.
        address: HostPort,
        /// Why it is refused.
        #[source]
        source: LocalError,
    },
    /// The handshake failed.
    #[error("no TLS with {address}: {source}")]
    Tls {
        /// What was dialled.
        address: HostPort,
        /// What rustls says.
        #[source]
        source: io::Error,
    },
    /// HTTP/2 could not be begun.
    #[error("no gRPC with {address}: {source}")]
    Grpc {
        /// What was dialled.
        address: HostPort,
        /// What tonic says.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Dials once; a channel that breaks stays broken, so that whoever dials again looks the name up again.
///
/// # Errors
/// [`DialError`]
pub async fn dial(address: &HostPort, tls: Arc<ClientConfig>) -> Result<Channel, DialError> {
    match timeout(CONNECT, connect(address, tls)).await {
        Ok(result) => result,
        Err(_) => Err(DialError::Timeout(address.clone())),
    }
}

async fn connect(address: &HostPort, tls: Arc<ClientConfig>) -> Result<Channel, DialError> {
    let failed = |source| DialError::Connect { address: address.clone(), source };
    let tcp = TcpStream::connect((&*address.host, address.port)).await.map_err(failed)?;
    tcp.set_nodelay(true).map_err(failed)?;
    let name = ServerName::try_from(SERVER_NAME).map_err(|error| failed(io::Error::other(error)))?;
    let stream = TlsConnector::from(tls).connect(name, tcp).await.map_err(|source| handshake_error(address, source))?;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        let source = io::Error::other("it does not speak HTTP/2");
        return Err(DialError::Tls { address: address.clone(), source });
    }
    let stream = Mutex::new(Some(TokioIo::new(stream)));
    let connector = service_fn(move |_: Uri| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
    });
    // The name is not looked at: the connector has the connection already.
    let endpoint = Endpoint::from_static("http://eastway.local")
        .http2_keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1)
        .keep_alive_while_idle(true);
    let channel = endpoint.connect_with_connector(connector).await;
    channel.map_err(|source| DialError::Grpc { address: address.clone(), source })
}

fn handshake_error(address: &HostPort, source: io::Error) -> DialError {
    let tls = source.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    match tls.and_then(verdict).cloned() {
        Some(verdict) => DialError::Refused { address: address.clone(), source: verdict },
        None => DialError::Tls { address: address.clone(), source },
    }
}
