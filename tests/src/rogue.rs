//! A gateway of a cloud that says what a test wants: a peer that is authenticated and not to be trusted.

mod churn;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use bytes::Bytes;
use eastway_identity::ca::Ca;
use eastway_identity::{AnchorDer, IdentityStore, PeerTrust, SpiffeId, SpkiPin, TrustStore};
use eastway_tunnel::header::{Label, ServiceHeader, Source, StreamHeader};
use eastway_tunnel::transport::BoxFuture;
use eastway_tunnel::{
    AcceptedStream, HostPort, Link, LinkInfo, PeerTarget, ReplicaId, ResetCode, StreamError, StreamHandler, Timing,
    Tunnel, TunnelConfig, TunnelLimits,
};

use crate::lab::cloud::Cloud;
use crate::lab::files::LINK_PORT;
use crate::until::within;

pub use self::churn::Churn;

/// Longest wait for an answer to a header.
const PATIENCE: Duration = Duration::from_secs(15);

/// One more replica of a cloud's gateway, with a certificate of that cloud's CA.
pub struct Rogue {
    tunnel: Tunnel,
    link: Link,
}

struct Refuses;

impl StreamHandler for Refuses {
    fn handle(&self, _link: LinkInfo, _header: StreamHeader, stream: AcceptedStream) -> BoxFuture<'static, ()> {
        Box::pin(async move { stream.reject(ResetCode::Draining) })
    }
}

impl Rogue {
    /// Joins as a replica of `own` and links to the first gateway of `target`.
    ///
    /// # Errors
    /// The CA cannot be used, or there is no link in time.
    pub async fn join(own: &Cloud, target: &Cloud) -> Result<Self> {
        Self::join_with(own, target, Arc::new(Refuses)).await
    }

    /// As [`Rogue::join`]; `handler` serves the streams that `target` opens.
    ///
    /// # Errors
    /// As there.
    pub async fn join_with(own: &Cloud, target: &Cloud, handler: Arc<dyn StreamHandler>) -> Result<Self> {
        let gateway = own.net().gateways().first().context("a gateway")?;
        let (cacerts, name) = (own.folder().join("cacerts"), own.name().to_owned());
        let (peer, pin) = (target.name().to_owned(), target.pin().to_owned());
        let remote = SocketAddr::new(target.net().gateways().first().context("a gateway")?.wan, LINK_PORT);
        let listen = SocketAddr::new(gateway.wan, 0);
        let tunnel = gateway.place.run(async move {
            let ca = Ca::load(&cacerts)?;
            let gateway = |cluster: &str| SpiffeId::gateway(&format!("{cluster}.example"));
            let identity = ca.issue_identity(&gateway(&name)?, Duration::from_secs(3_600), SystemTime::now())?;
            let pins = vec![SpkiPin::parse(&pin)?];
            let (crls, bundle) = (Vec::new(), Vec::new());
            let trust = PeerTrust { name: Arc::from(&*peer), gateway: gateway(&peer)?, pins, bundle, crls };
            let config = TunnelConfig {
                listen,
                cluster: Arc::from(&*name),
                replica: ReplicaId::random()?,
                predecessors: Arc::default(),
                replicas: None,
                quic_lb: None,
                keys: ca.link_keys(),
                limits: TunnelLimits::default(),
                timing: Timing::default(),
                software_version: "rogue".into(),
            };
            let trust = TrustStore::new(vec![trust])?;
            let tunnel = Tunnel::bind(config, IdentityStore::new(identity), trust, handler)?;
            tunnel.set_peers(vec![PeerTarget {
                name: Arc::from(&*peer),
                addresses: vec![HostPort::from(remote)],
                ..PeerTarget::default()
            }]);
            Ok(tunnel)
        });
        let tunnel = tunnel.await?;
        within(Duration::from_secs(10), "the rogue is linked", async || {
            Ok(!tunnel.links().to(target.name()).is_empty())
        })
        .await?;
        let link = tunnel.links().to(target.name()).first().cloned().context("a link")?;
        Ok(Self { tunnel, link })
    }

    /// Says what its trust domain is to be known by.
    pub fn say_anchors(&self, anchors: Vec<AnchorDer>) {
        self.tunnel.set_anchors(anchors.into());
    }

    /// What the far end says to `words`, until it has finished.
    ///
    /// # Errors
    /// It refuses, says nothing in time or is lost.
    pub async fn say(&self, header: &StreamHeader, words: &'static [u8]) -> Result<String> {
        let mut stream = self.link.open(header).await?;
        let talking = async {
            stream.accepted().await?;
            let (mut send, mut recv) = stream.split();
            send.write(Bytes::from_static(words)).await?;
            let mut answer = Vec::new();
            while let Some(chunk) = recv.read().await? {
                answer.extend_from_slice(&chunk);
            }
            Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        tokio::time::timeout(PATIENCE, talking).await.context("no answer")?
    }

    /// What the other side answers to a header: nothing if it reached an endpoint, or a code.
    ///
    /// # Errors
    /// No answer in time, or the link is lost.
    pub async fn answer(&self, header: &StreamHeader) -> Result<Option<ResetCode>> {
        let mut stream = self.link.open(header).await?;
        match tokio::time::timeout(PATIENCE, stream.accepted()).await.context("no answer")? {
            Ok(()) => Ok(None),
            Err(StreamError::Reset(code)) => Ok(Some(code)),
            Err(error) => Err(error.into()),
        }
    }
}

/// The header of a stream to `namespace/service:port` from somebody who calls himself `account`.
///
/// # Errors
/// A name that no header can carry.
pub fn header(namespace: &str, service: &str, port: u16, account: &str) -> Result<ServiceHeader> {
    Ok(ServiceHeader {
        namespace: Label::parse(namespace)?,
        service: Label::parse(service)?,
        port: NonZeroU16::new(port).context("port 0")?,
        subset: BTreeMap::new(),
        endpoint: None,
        source: Source {
            namespace: Some(Label::parse(namespace)?),
            service_account: Some(Label::parse(account)?),
            identity: None,
        },
        traceparent: None,
        affinity: None,
        tls: false,
        client: None,
        flow: None,
    })
}
