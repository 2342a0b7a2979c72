//! Pipes between two clusters that cannot reach each other, by way of a third that both have a link with.
//!
//! Who relays carries ciphertext: it learns which two clusters talk and how much, and nothing else. It does so for pairs
//! that its own configuration names, within limits of each ([`table`]), and only between links of its own: what arrived
//! through a relay is carried no further. At the two ends a pipe is one more way to make TLS connections (the `relay`
//! transport), for peers whose configuration names the relay.

mod splice;
mod table;

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tokio::time::timeout;

use self::table::{Refused, Table, Ticket};
pub use self::table::{RelayLimits, RelayRule, RelayStatus};
use crate::code::ResetCode;
use crate::events::{Event, Observer};
use crate::header::{Label, RelayHeader, StreamHeader};
use crate::link::Link;
use crate::manager::Board;
use crate::stream::{AcceptedStream, LinkInfo, StreamError, StreamHandler, TunnelStream};
use crate::transport::tcp::relay::RelayTransport;
use crate::transport::{BoxFuture, TransportKind};

/// How long the cluster at the far end may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Both sides of relaying: what is carried for others, and what others carry for us.
pub(crate) struct Relay {
    table: Table,
    observer: Arc<dyn Observer>,
    transport: Arc<RelayTransport>,
    /// Set once, by the tunnel that owns both.
    board: OnceLock<Weak<Board>>,
}

impl Relay {
    pub(crate) fn new(observer: Arc<dyn Observer>, transport: Arc<RelayTransport>) -> Arc<Self> {
        Arc::new(Self { table: Table::default(), observer, transport, board: OnceLock::new() })
    }

    pub(crate) fn set_board(&self, board: &Arc<Board>) {
        self.board.set(Arc::downgrade(board)).ok();
    }

    /// Replaces the pairs that are relayed for.
    pub(crate) fn set_rules(&self, rules: Vec<RelayRule>) {
        self.table.set_rules(rules);
    }

    pub(crate) fn status(&self) -> Vec<RelayStatus> {
        self.table.status()
    }

    /// Serves what `handler` does, and pipes beside.
    pub(crate) fn beside(self: &Arc<Self>, handler: Arc<dyn StreamHandler>) -> Arc<dyn StreamHandler> {
        Arc::new(WithRelay { relay: Arc::clone(self), handler })
    }

    async fn serve(self: Arc<Self>, link: LinkInfo, header: RelayHeader, stream: AcceptedStream) {
        let refused = match header {
            _ if link.transport == TransportKind::Relay => Err(Refusal::new(
                ResetCode::PermissionDenied,
                "hop",
                "a pipe that came through a relay goes no further",
            ))
            .map_err(|refusal| (refusal, stream)),
            RelayHeader::To { cluster, path } => self.carry(&link, &cluster, path, stream).await,
            RelayHeader::From { cluster } => self.take(&link, &cluster, stream).await,
        };
        if let Err((refusal, stream)) = refused {
            let Refusal { code, reason, text } = refusal;
            self.observer.happened(&Event::RelayRefused { peer: &link.peer, reason, text: &text });
            stream.reject(code);
        }
    }

    /// Carries a pipe of `link`'s cluster to another one, until it ends.
    async fn carry(
        &self,
        link: &LinkInfo,
        to: &Label,
        path: u64,
        mut stream: AcceptedStream,
    ) -> Result<(), (Refusal, AcceptedStream)> {
        let ticket = match self.table.admit(&link.peer, to.as_str(), path) {
            Ok(ticket) => ticket,
            Err(error) => return Err((Refusal::of(error, link, to), stream)),
        };
        let reached = tokio::select! {
            biased;
            _ = stream.aborted() => return Ok(()),
            reached = timeout(ANSWER, self.reach(&ticket, &link.peer, to)) => reached,
        };
        let far = match reached.unwrap_or(Err(Refused::Silent)) {
            Ok(far) => far,
            Err(error) => {
                ticket.refused();
                return Err((Refusal::of(error, link, to), stream));
            }
        };
        if let Ok(near) = stream.accept().await {
            splice::splice(near, far, &ticket).await;
        }
        Ok(())
    }

    /// Opens the pipe's other half.
    async fn reach(&self, ticket: &Ticket, from: &str, to: &Label) -> Result<TunnelStream, Refused> {
        let from = Label::parse(from).map_err(|_| Refused::Denied)?;
        let link = ticket.link(self.direct_links(to.as_str())).ok_or(Refused::NoLink)?;
        let header = StreamHeader::Relay(RelayHeader::From { cluster: from });
        let mut far = link.open(&header).await.map_err(|_| Refused::NoLink)?;
        match far.accepted().await {
            Ok(()) => Ok(far),
            Err(StreamError::LinkLost | StreamError::Closed) => Err(Refused::NoLink),
            Err(StreamError::Reset(ResetCode::Draining)) => Err(Refused::NoLink),
            Err(StreamError::Reset(_)) => Err(Refused::ByFarEnd),
        }
    }

    /// Links to `peer` that no other cluster carries.
    fn direct_links(&self, peer: &str) -> Vec<Link> {
        let Some(board) = self.board.get().and_then(Weak::upgrade) else { return Vec::new() };
        let table = board.table.load();
        let direct = table.to(peer).iter().filter(|link| link.0.connection.kind() != TransportKind::Relay);
        direct.cloned().collect()
    }

    /// Takes a pipe that `link`'s cluster brings from another one.
    async fn take(
        &self,
        link: &LinkInfo,
        from: &Label,
        stream: AcceptedStream,
    ) -> Result<(), (Refusal, AcceptedStream)> {
        let (via, from) = (Arc::clone(&link.peer), from.as_str());
        let board = self.board.get().and_then(Weak::upgrade);
        if !board.as_ref().is_some_and(|board| board.peers().is_via(from, &via)) {
            let text = format!("{via} brings a link of {from}, whose Peer file here does not say `via: {via}`");
            board.iter().for_each(|board| board.peers().relay_refused(from, &text));
            return Err((Refusal { code: ResetCode::PermissionDenied, reason: "via", text }, stream));
        }
        let Some(permit) = self.transport.room() else {
            let text = format!("{via} brings a link of {from}, and too many handshakes are under way");
            return Err((Refusal { code: ResetCode::Overloaded, reason: "handshakes", text }, stream));
        };
        if let Ok(stream) = stream.accept().await {
            self.transport.take(stream, Arc::from(from), via, link.remote, permit);
        }
        Ok(())
    }
}

/// Why a pipe is not carried or taken: what the other side is told, how it is counted, and in words.
struct Refusal {
    code: ResetCode,
    reason: &'static str,
    text: String,
}

impl Refusal {
    fn new(code: ResetCode, reason: &'static str, text: &str) -> Self {
        Self { code, reason, text: text.to_owned() }
    }

    fn of(refused: Refused, link: &LinkInfo, to: &Label) -> Self {
        let pair = format!("from {} to {}", link.peer, to.as_str());
        let (code, reason, text) = match refused {
            // Whether there is such a cluster is not told.
            Refused::Denied => (ResetCode::PermissionDenied, "denied", "relay.allow does not name both"),
            Refused::Streams => (ResetCode::Overloaded, "streams", "as many pipes as relay.allow admits are open"),
            Refused::Spent => (ResetCode::Overloaded, "spent", "the bytes of the day are used up"),
            Refused::NoLink => (ResetCode::NoEndpoints, "no_link", "there is no direct link to that cluster"),
            Refused::Silent => (ResetCode::UpstreamTimeout, "silent", "that cluster does not answer"),
            Refused::ByFarEnd => (ResetCode::UpstreamRefused, "far_end", "that cluster takes none by way of this one"),
        };
        Self { code, reason, text: format!("{pair}: {text}") }
    }
}

/// A handler, and pipes.
struct WithRelay {
    relay: Arc<Relay>,
    handler: Arc<dyn StreamHandler>,
}

impl StreamHandler for WithRelay {
    fn handle(&self, link: LinkInfo, header: StreamHeader, stream: AcceptedStream) -> BoxFuture<'static, ()> {
        match header {
            StreamHeader::Relay(header) => Box::pin(Arc::clone(&self.relay).serve(link, header, stream)),
            header @ (StreamHeader::Service(_)
            | StreamHeader::Federation(_)
            | StreamHeader::Probe
            | StreamHeader::Bench(_)) => self.handler.handle(link, header, stream),
        }
    }
}
