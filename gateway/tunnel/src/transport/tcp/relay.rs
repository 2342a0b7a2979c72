//! Links whose TLS connections go by way of a third cluster: each is a pipe through a link with that one.

mod pipe;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};

use eastway_identity::{Clock, IdentityStore, TrustStore};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use self::pipe::RelayPipe;
use super::pipe::{ConnectError, Connector, Pipe, Via};
use super::{Gate, Shared, accept, dial};
use crate::code::ResetCode;
use crate::config::TunnelConfig;
use crate::events::Observer;
use crate::header::{Label, RelayHeader, StreamHeader};
use crate::link::{Link, OpenError};
use crate::manager::Board;
use crate::stream::{StreamError, TunnelStream};
use crate::transport::{BoxFuture, DialError, Established, Transport, TransportKind};

/// Takes and dials links by way of other clusters.
pub(crate) struct RelayTransport {
    gate: Gate,
    sender: mpsc::Sender<Established>,
    /// Set once, by the tunnel that owns both.
    board: OnceLock<Weak<Board>>,
}

impl RelayTransport {
    pub(crate) fn new(
        config: Arc<TunnelConfig>,
        identity: Arc<IdentityStore>,
        trust: Arc<TrustStore>,
        clock: Clock,
        observer: Arc<dyn Observer>,
    ) -> Arc<Self> {
        let (gate, sender) = Gate::new(Shared::new(config, identity, trust, clock, observer));
        Arc::new(Self { gate, sender, board: OnceLock::new() })
    }

    pub(crate) fn set_board(&self, board: &Arc<Board>) {
        self.board.set(Arc::downgrade(board)).ok();
    }

    /// Room for one more handshake.
    pub(crate) fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.gate.shared.handshakes).try_acquire_owned().ok()
    }

    /// Takes what `via` brings from `from`: nobody else may be at its other end.
    pub(crate) fn take(
        &self,
        stream: TunnelStream,
        from: Arc<str>,
        via: Arc<str>,
        remote: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) {
        let (task, sender) = (Arc::clone(&self.gate.shared), self.sender.clone());
        self.gate.shared.spawn(async move {
            let pipe = Box::new(RelayPipe::new(stream));
            let brought = Some(accept::Brought { from, via: Some(via) });
            if let Err(failure) = accept::take(&task, pipe, brought, remote, permit, sender).await {
                task.refuse(&failure, remote);
            }
        });
    }

    /// The link to `via` that all pipes of one link to a replica of `to` take.
    fn connector(&self, to: &str, via: &Arc<str>) -> Result<RelayConnector, RelayFailure> {
        let cluster = Label::parse(to).map_err(|_| RelayFailure::new(via, to, None))?;
        let board = self.board.get().and_then(Weak::upgrade);
        let table = board.as_ref().map(|board| board.table.load());
        let links = table.iter().flat_map(|table| table.to(via));
        let link = links.into_iter().find(|link| link.0.connection.kind() != TransportKind::Relay).cloned();
        let link = link.ok_or_else(|| RelayFailure::new(via, to, None))?;
        let header = StreamHeader::Relay(RelayHeader::To { cluster, path: fastrand::u64(..) });
        Ok(RelayConnector { link, header, via: Arc::clone(via), to: Arc::from(to) })
    }
}

impl Transport for RelayTransport {
    fn kind(&self) -> TransportKind {
        TransportKind::Relay
    }

    fn local_addr(&self) -> SocketAddr {
        self.gate.shared.config.listen
    }

    fn dial(&self, _peer: Arc<str>, remote: SocketAddr) -> BoxFuture<'static, Result<Established, DialError>> {
        let reason = "a relay has no address".to_owned();
        Box::pin(std::future::ready(Err(DialError::Local { remote, reason })))
    }

    fn dial_via(&self, peer: Arc<str>, via: Arc<str>) -> BoxFuture<'static, Result<Established, DialError>> {
        match self.connector(&peer, &via) {
            Ok(connector) => Box::pin(dial::dial(Arc::clone(&self.gate.shared), peer, Arc::new(connector))),
            Err(failure) => Box::pin(std::future::ready(Err(failure.into()))),
        }
    }

    fn accept(&self) -> BoxFuture<'_, Option<Established>> {
        Box::pin(self.gate.accept())
    }

    fn handshake_failures(&self) -> Vec<(&'static str, u64)> {
        self.gate.handshake_failures()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.gate.close())
    }
}

/// Makes pipes by way of one link.
struct RelayConnector {
    link: Link,
    header: StreamHeader,
    via: Arc<str>,
    to: Arc<str>,
}

impl Connector for RelayConnector {
    fn remote(&self) -> SocketAddr {
        self.link.remote_addr()
    }

    fn via(&self) -> Option<Via> {
        Some(Via { cluster: Arc::clone(&self.via), carrier: Some(self.link.clone()) })
    }

    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Pipe>, ConnectError>> {
        let failed = |code| RelayFailure::new(&self.via, &self.to, code);
        Box::pin(async move {
            let opened = self.link.open(&self.header).await;
            let mut stream = opened.map_err(|error| match error {
                OpenError::Refused(code) => failed(Some(code)),
                OpenError::Overloaded => failed(Some(ResetCode::Overloaded)),
                OpenError::Header(_) | OpenError::LinkLost | OpenError::Starting => failed(None),
            })?;
            stream.accepted().await.map_err(|error| match error {
                StreamError::Reset(code) => failed(Some(code)),
                StreamError::LinkLost | StreamError::Closed => failed(None),
            })?;
            Ok(Box::new(RelayPipe::new(stream)) as Box<dyn Pipe>)
        })
    }
}

/// Why a relay made no pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RelayFailure {
    via: Arc<str>,
    to: Arc<str>,
    /// What the relay said; none if there is no link to it.
    code: Option<ResetCode>,
}

impl RelayFailure {
    fn new(via: &Arc<str>, to: &str, code: Option<ResetCode>) -> Self {
        Self { via: Arc::clone(via), to: Arc::from(to), code }
    }

    /// Somebody has to change a file.
    fn is_refusal(&self) -> bool {
        matches!(self.code, Some(ResetCode::PermissionDenied | ResetCode::UpstreamRefused | ResetCode::Unsupported))
    }
}

impl std::fmt::Display for RelayFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { via, to, code } = self;
        match code {
            None => write!(f, "no direct link to {via}, by way of which {to} is to be reached"),
            Some(ResetCode::PermissionDenied) => {
                write!(f, "{via} does not relay to {to}: its relay.allow does not name this pair")
            }
            Some(ResetCode::Unsupported) => write!(f, "{via} does not relay to {to}: its version cannot"),
            Some(ResetCode::UpstreamRefused) => {
                write!(f, "{to} takes no links by way of {via}: its Peer file for this cluster needs `via: {via}`")
            }
            Some(ResetCode::NoEndpoints) => write!(f, "{via} has no direct link to {to} now"),
            Some(ResetCode::UpstreamTimeout) => write!(f, "{via} got no answer from {to}"),
            Some(ResetCode::Overloaded) => {
                write!(f, "{via} relays no more to {to} for now: a limit of its relay.allow is reached")
            }
            Some(code) => write!(f, "{via} relays nothing to {to}: {code}"),
        }
    }
}

impl From<RelayFailure> for DialError {
    fn from(failure: RelayFailure) -> Self {
        Self::Relay { refused: failure.is_refusal(), reason: failure.to_string() }
    }
}
