//! What a sidecar does to a gateway: HTTP/2 CONNECT over mutual TLS, one stream for each connection of its workload.
//!
//! It keeps the rules that our sidecars' Envoy is configured by: as many streams and as large windows as a connection
//! window holds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use eastway_identity::ca::Ca;
use eastway_identity::local::{Anchors, LocalTrust, Wanted, client_config};
use eastway_identity::{IdentityStore, SpiffeId, system_clock};
use futures_util::future::poll_fn;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use hyper::{Method, Request, StatusCode};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::lab::cloud::Cloud;
use crate::lab::files::trust_domain;
use crate::lab::place::Place;

/// Streams of one connection.
pub const STREAMS: usize = 64;
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Life of its certificate.
const LIFE: Duration = Duration::from_secs(3_600);

/// Who it is, and whom it takes for its gateway.
#[derive(Clone)]
pub struct Credentials {
    /// Its certificate; `None`: it shows none.
    pub identity: Option<Arc<IdentityStore>>,
    anchors: Anchors,
    gateway: SpiffeId,
}

impl Credentials {
    /// Of the workload `ns/account` of a cloud, signed by the cloud's own CA.
    ///
    /// # Errors
    /// The CA cannot be read, or signs no such name.
    pub fn of(cloud: &Cloud, namespace: &str, account: &str) -> Result<Self> {
        Self::living(cloud, namespace, account, LIFE)
    }

    /// As [`Self::of`], with another life of the certificate.
    ///
    /// # Errors
    /// As there.
    pub fn living(cloud: &Cloud, namespace: &str, account: &str, life: Duration) -> Result<Self> {
        let ca = Ca::load(&cloud.folder().join("cacerts"))?;
        let domain = trust_domain(cloud.name());
        let identity = ca.issue_identity(&SpiffeId::workload(&domain, namespace, account)?, life, SystemTime::now())?;
        let issuers = ca.issuers();
        Ok(Self {
            identity: Some(IdentityStore::new(identity)),
            anchors: Arc::new(move || issuers.clone()),
            gateway: SpiffeId::gateway(&domain)?,
        })
    }

    /// The certificate of somebody else, for the same gateway.
    #[must_use]
    pub fn showing(self, other: Option<Arc<IdentityStore>>) -> Self {
        Self { identity: other, ..self }
    }
}

/// A sidecar's connection to its gateway.
#[derive(Debug)]
pub struct Sidecar {
    requests: SendRequest<Bytes>,
    /// Ends when the connection does.
    driver: JoinHandle<Result<(), h2::Error>>,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Sidecar {
    /// Connects from `place` to the gateway's HBONE port. One that is refused for its certificate learns of it with its
    /// first request: so does TLS 1.3.
    ///
    /// # Errors
    /// There is no such port, or it is not the gateway's.
    pub async fn connect(place: &Place, gateway: SocketAddr, credentials: &Credentials) -> Result<Self> {
        let Credentials { identity, anchors, gateway: wanted } = credentials.clone();
        place
            .run(async move {
                let trust = LocalTrust::new(anchors, Wanted::Identity(wanted));
                let tls = TlsConnector::from(client_config(identity, trust, system_clock())?);
                let tcp = TcpStream::connect(gateway).await?;
                tcp.set_nodelay(true)?;
                let name = ServerName::try_from("gateway.invalid")?;
                let stream = tls.connect(name, tcp).await?;
                let mut builder = h2::client::Builder::new();
                builder
                    .initial_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .max_send_buffer_size(STREAM_WINDOW as usize);
                let (requests, connection) = builder.handshake(stream).await?;
                let driver = tokio::spawn(connection);
                Ok(Self { requests, driver })
            })
            .await
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.driver.is_finished()
    }

    /// The answer to one request, and the stream if it is 200.
    ///
    /// # Errors
    /// The request is no request, or the stream or connection was cut.
    pub async fn ask(&self, method: Method, authority: &str) -> Result<(StatusCode, Stream)> {
        let request = Request::builder().method(method).uri(authority).body(())?;
        let mut requests = self.requests.clone().ready().await?;
        let (answer, send) = requests.send_request(request, false)?;
        let answer = answer.await?;
        let status = answer.status();
        Ok((status, Stream { send, recv: answer.into_body() }))
    }

    /// A stream to an endpoint or a service.
    ///
    /// # Errors
    /// It is not granted.
    pub async fn open(&self, authority: &str) -> Result<Stream> {
        let (status, stream) = self.ask(Method::CONNECT, authority).await?;
        ensure!(status == StatusCode::OK, "CONNECT {authority}: {status}");
        Ok(stream)
    }
}

/// One connection of the workload.
#[derive(Debug)]
pub struct Stream {
    send: SendStream<Bytes>,
    recv: RecvStream,
}

impl Stream {
    /// Sends all of it.
    ///
    /// # Errors
    /// The stream was cut.
    pub async fn write(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        write(&mut self.send, bytes.into()).await
    }

    /// Nothing more is sent.
    ///
    /// # Errors
    /// The stream was cut.
    pub fn finish(&mut self) -> Result<()> {
        Ok(self.send.send_data(Bytes::new(), true)?)
    }

    /// The next bytes; `None` at their end.
    ///
    /// # Errors
    /// The stream was cut.
    pub async fn read(&mut self) -> Result<Option<Bytes>> {
        read(&mut self.recv).await
    }

    /// Exactly so many bytes.
    ///
    /// # Errors
    /// The stream was cut, or ended before.
    pub async fn read_exact(&mut self, bytes: usize) -> Result<Vec<u8>> {
        let mut all = Vec::with_capacity(bytes);
        while all.len() < bytes {
            all.extend_from_slice(&self.read().await?.context("it ended")?);
        }
        ensure!(all.len() == bytes, "{} bytes, not {bytes}", all.len());
        Ok(all)
    }

    /// Both directions, to be used at the same time.
    #[must_use]
    pub fn split(self) -> (Sending, Receiving) {
        (Sending(self.send), Receiving(self.recv))
    }

    /// Waits until it is reset, reading on meanwhile, and says with which code.
    ///
    /// # Errors
    /// It ended in order, or with its connection.
    pub async fn until_reset(&mut self) -> Result<Reason> {
        loop {
            match self.recv.data().await {
                Some(Ok(chunk)) => self.recv.flow_control().release_capacity(chunk.len())?,
                Some(Err(error)) if error.is_reset() => return error.reason().context("no code"),
                Some(Err(error)) => bail!("the connection ended: {error}"),
                None => bail!("it ended in order"),
            }
        }
    }
}

/// The direction towards the gateway.
#[derive(Debug)]
pub struct Sending(SendStream<Bytes>);

impl Sending {
    /// As [`Stream::write`].
    ///
    /// # Errors
    /// As there.
    pub async fn write(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        write(&mut self.0, bytes.into()).await
    }

    /// As [`Stream::finish`].
    ///
    /// # Errors
    /// As there.
    pub fn finish(&mut self) -> Result<()> {
        Ok(self.0.send_data(Bytes::new(), true)?)
    }
}

/// The direction from the gateway.
#[derive(Debug)]
pub struct Receiving(RecvStream);

impl Receiving {
    /// As [`Stream::read`].
    ///
    /// # Errors
    /// As there.
    pub async fn read(&mut self) -> Result<Option<Bytes>> {
        read(&mut self.0).await
    }
}

async fn write(send: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<()> {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        let mut room = send.capacity();
        if room == 0 {
            room = poll_fn(|cx| send.poll_capacity(cx)).await.context("the stream was cut")??;
        }
        send.send_data(bytes.split_to(room.min(bytes.len())), false)?;
    }
    Ok(())
}

async fn read(recv: &mut RecvStream) -> Result<Option<Bytes>> {
    let Some(chunk) = recv.data().await.transpose()? else { return Ok(None) };
    recv.flow_control().release_capacity(chunk.len())?;
    Ok(Some(chunk))
}
