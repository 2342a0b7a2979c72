//! A peer with a good certificate and bad manners: QUIC by hand.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use eastway_identity::{IdentityStore, TrustStore, system_clock, tls};
use eastway_proto::control::v1::{ControlMessage, HeartbeatAck, Hello, control_message::Body};
use eastway_tunnel::ReplicaId;
use eastway_tunnel::control::codec;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, TransportConfig};
use quinn_proto::crypto::rustls::QuicClientConfig;

use crate::support::{Cloud, any_port};

pub(crate) struct RawPeer {
    pub(crate) connection: Connection,
    /// Tests that speak for themselves take it.
    pub(crate) control: Option<(quinn::SendStream, quinn::RecvStream)>,
    _endpoint: Endpoint,
}

pub(crate) fn tls_of(cloud: &Cloud, peer: &str) -> rustls::ClientConfig {
    let identity = IdentityStore::new(cloud.identity());
    tls_with(identity, Arc::clone(&cloud.trust), peer)
}

fn tls_with(identity: Arc<IdentityStore>, trust: Arc<TrustStore>, peer: &str) -> rustls::ClientConfig {
    let config = tls::client_config(identity, trust, system_clock(), peer.into()).unwrap();
    rustls::ClientConfig::clone(&config)
}

pub(crate) async fn connect(
    to: SocketAddr,
    tls: rustls::ClientConfig,
    transport: TransportConfig,
) -> Result<(Endpoint, Connection), ConnectionError> {
    let endpoint = Endpoint::client(any_port()).unwrap();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    config.transport_config(Arc::new(transport));
    let connection = endpoint.connect_with(config, to, tls::SERVER_NAME).unwrap().await?;
    Ok((endpoint, connection))
}

/// Transport parameters as a polite peer has them.
pub(crate) fn polite() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(Duration::from_secs(30).try_into().unwrap()));
    transport
}

impl RawPeer {
    /// Authenticated, and nothing said yet.
    pub(crate) async fn silent(cloud: &Cloud, peer: &str, to: SocketAddr) -> Self {
        Self::silent_by(tls_of(cloud, peer), to).await
    }

    async fn silent_by(tls: rustls::ClientConfig, to: SocketAddr) -> Self {
        let (endpoint, connection) = connect(to, tls, polite()).await.unwrap();
        let control = connection.open_bi().await.unwrap();
        Self { connection, control: Some(control), _endpoint: endpoint }
    }

    /// After Hello, with a task that answers heartbeats.
    pub(crate) async fn polite(cloud: &Cloud, peer: &str, to: SocketAddr) -> Self {
        Self::polite_by(cloud, tls_of(cloud, peer), to).await
    }

    /// The same, with a TLS configuration of its own.
    pub(crate) async fn polite_by(cloud: &Cloud, tls: rustls::ClientConfig, to: SocketAddr) -> Self {
        let mut raw = Self::silent_by(tls, to).await;
        let (mut send, recv) = raw.control.take().unwrap();
        send_message(&mut send, hello(&cloud.name)).await;
        tokio::spawn(answer(send, recv));
        raw
    }

    /// What the gateway closed the connection with.
    pub(crate) async fn close_code(&self) -> u64 {
        let error = self.connection.closed().await;
        let ConnectionError::ApplicationClosed(close) = &error else { panic!("{error}") };
        close.error_code.into_inner()
    }
}

pub(crate) fn hello(cluster: &str) -> Body {
    Body::Hello(Hello {
        min_version: 1,
        max_version: 1,
        cluster: cluster.to_owned(),
        replica_id: ReplicaId::random().unwrap().0.to_vec().into(),
        ..Hello::default()
    })
}

pub(crate) async fn send_message(send: &mut quinn::SendStream, body: Body) {
    send.write_chunk(codec::encode(&ControlMessage { body: Some(body) })).await.unwrap();
}

async fn answer(mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
    let mut buffer = BytesMut::new();
    while let Ok(Some(chunk)) = recv.read_chunk(usize::MAX, true).await {
        buffer.extend_from_slice(&chunk.bytes);
        while let Some(message) = codec::decode(&mut buffer).unwrap() {
            if let Some(Body::Heartbeat(heartbeat)) = message.body {
                let ack = HeartbeatAck { sequence: heartbeat.sequence, wall_clock_ms: 0 };
                let ack = ControlMessage { body: Some(Body::HeartbeatAck(ack)) };
                if send.write_chunk(codec::encode(&ack)).await.is_err() {
                    return;
                }
            }
        }
    }
}
