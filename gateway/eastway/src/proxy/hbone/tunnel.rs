//! One tunnel, from the answer to its end.

use std::sync::Arc;

use eastway_tunnel::{ResetCode, StreamError};
use h2::Reason;
use tokio::time::timeout;

use super::body::{Body, Incoming, Outgoing};
use crate::proxy::connection::{Connection, Outcome};
use crate::proxy::copy::{CopyError, Transferred, Watch};
use crate::proxy::outbound::{CONNECT_TIMEOUT, ConnectError, Target, Upstream, connect};
use crate::router::{Routed, Router};

/// A request that was answered with 200.
pub(super) struct Tunnel {
    pub(super) target: Target,
    pub(super) routed: Routed,
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
    pub(super) connection: Connection,
}

impl Tunnel {
    /// Finds the other end and copies until both directions have ended.
    pub(super) async fn serve(self, router: Arc<Router>) {
        let Self { target, routed, mut incoming, mut outgoing, mut connection } = self;
        let moved = Transferred::default();
        let connected = {
            let halves = (&mut incoming, &mut outgoing);
            // On the heap: it is far larger than what comes after it, and gone by then.
            Box::pin(establish(&router, (target, routed), halves, &mut connection, &moved)).await
        };
        let mut upstream = match connected {
            Ok(upstream) => upstream,
            Err(error) => {
                outgoing.reset(not_connected(&error, incoming.is_untouched()));
                connection.closed(&router.telemetry, &Outcome::NotConnected(error), &moved);
                return;
            }
        };
        connection.opened(&router.telemetry);
        let mut body = Body { incoming, outgoing };
        let watch = &mut Watch { limits: router.limits, count: &mut || connection.count(&moved), cut: upstream.cut() };
        let ended = upstream.carry(&mut body, &moved, watch).await;
        drop(upstream);
        let read_on = matches!(ended, Err(CopyError::Local(_) | CopyError::Stream(_)));
        connection.closed(&router.telemetry, &Outcome::Ended(ended), &moved);
        if read_on {
            body.read_out(router.limits.half_closed).await;
        }
    }
}

async fn establish(
    router: &Router,
    (target, routed): (Target, Routed),
    (incoming, outgoing): (&mut Incoming, &mut Outgoing),
    connection: &mut Connection,
    moved: &Transferred,
) -> Result<Upstream, ConnectError> {
    let connecting = async {
        // Nobody is dialled for a sidecar that has given up.
        tokio::select! {
            biased;
            error = outgoing.cut() => Err(ConnectError::Client(error)),
            connected = connect(router, &target, &routed, incoming, connection, moved) => connected,
        }
    };
    timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or(Err(ConnectError::Timeout))
}

/// What a sidecar is told of a tunnel that leads nowhere (RFC 9113 §7): after `REFUSED_STREAM` it may say the same
/// elsewhere, for nothing of what it said was delivered.
fn not_connected(error: &ConnectError, nothing_said: bool) -> Reason {
    let delivered = match error {
        ConnectError::Broken(..) => true,
        ConnectError::Timeout | ConnectError::Refused(_, StreamError::LinkLost | StreamError::Closed) => !nothing_said,
        ConnectError::Refused(_, StreamError::Reset(code)) => !nothing_said && after_delivery(*code),
        ConnectError::Client(_) => return Reason::CANCEL,
        ConnectError::Route(_)
        | ConnectError::Reach(_)
        | ConnectError::Header
        | ConnectError::NoLink(_)
        | ConnectError::Open(..) => false,
    };
    if delivered { Reason::INTERNAL_ERROR } else { Reason::REFUSED_STREAM }
}

/// Whether the owner says so of connections that were up, too.
fn after_delivery(code: ResetCode) -> bool {
    match code {
        ResetCode::Cancelled
        | ResetCode::UpstreamReset
        | ResetCode::Overloaded
        | ResetCode::IdleTimeout
        | ResetCode::Internal => true,
        ResetCode::BadHeader
        | ResetCode::Version
        | ResetCode::Unsupported
        | ResetCode::BadName
        | ResetCode::NotExported
        | ResetCode::NotLocal
        | ResetCode::NoEndpoints
        | ResetCode::UpstreamRefused
        | ResetCode::UpstreamTimeout
        | ResetCode::PermissionDenied
        | ResetCode::TlsRequired
        | ResetCode::Draining => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};
    use std::net::SocketAddr;

    use eastway_model::ClusterName;
    use eastway_model::routing::RouteError;

    use super::*;

    #[test]
    fn a_sidecar_is_told_to_say_it_elsewhere_only_if_nobody_heard_it() {
        let peer = || ClusterName::parse("gke").unwrap();
        let endpoint = SocketAddr::from(([10, 0, 0, 1], 80));
        let lost = || ConnectError::Refused(peer(), StreamError::LinkLost);
        let refused = |code| ConnectError::Refused(peer(), StreamError::Reset(code));
        for (error, nothing_said, reason) in [
            (ConnectError::NoLink(peer()), false, Reason::REFUSED_STREAM),
            (ConnectError::Route(RouteError::NoEndpoints), false, Reason::REFUSED_STREAM),
            (refused(ResetCode::UpstreamRefused), false, Reason::REFUSED_STREAM),
            (refused(ResetCode::PermissionDenied), false, Reason::REFUSED_STREAM),
            (lost(), true, Reason::REFUSED_STREAM),
            (lost(), false, Reason::INTERNAL_ERROR),
            (refused(ResetCode::UpstreamReset), false, Reason::INTERNAL_ERROR),
            (refused(ResetCode::UpstreamReset), true, Reason::REFUSED_STREAM),
            (ConnectError::Broken(endpoint, Error::from(ErrorKind::BrokenPipe)), false, Reason::INTERNAL_ERROR),
            (ConnectError::Timeout, false, Reason::INTERNAL_ERROR),
        ] {
            assert_eq!(not_connected(&error, nothing_said), reason, "{error}, nothing said: {nothing_said}");
        }
    }
}
