//! The owner's side of a flow: from a link to an endpoint of this cluster.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eastway_model::EndpointId;
use eastway_tunnel::flow::{FlowSink, Scratch};
use eastway_tunnel::{AcceptedStream, ResetCode};
use tokio::time::{Instant, sleep_until};

use super::activity::Activity;
use super::socket::PacketSocket;
use crate::proxy::connection::{Connection, Outcome};
use crate::proxy::copy::{CopyError, Transferred};
use crate::proxy::dial::InFlightGuard;
use crate::router::Router;

/// How often metrics learn what passed.
const COUNTED: Duration = Duration::from_secs(10);

thread_local! {
    /// For sending on links, once for all flows of a thread.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// An endpoint that a flow goes to.
pub(in crate::proxy) struct Served {
    to_endpoint: Arc<ToEndpoint>,
    endpoint: EndpointId,
    _in_flight: InFlightGuard,
}

/// Hands packets to the endpoint.
struct ToEndpoint {
    socket: Arc<PacketSocket>,
    activity: Activity,
}

impl FlowSink for ToEndpoint {
    fn deliver(&self, packets: &[Bytes]) {
        self.activity.asked(packets.len(), packets.iter().map(Bytes::len).sum());
        // What the endpoint says to it, its own task hears.
        let _lost = self.socket.send(None, None, packets);
    }
}

impl Served {
    pub(in crate::proxy) fn new(socket: PacketSocket, endpoint: EndpointId, in_flight: InFlightGuard) -> Self {
        let activity = Activity::new(Instant::now());
        Self {
            to_endpoint: Arc::new(ToEndpoint { socket: Arc::new(socket), activity }),
            endpoint,
            _in_flight: in_flight,
        }
    }

    /// Accepts the flow and carries it until it is over.
    pub(in crate::proxy) async fn serve(&self, router: &Router, stream: AcceptedStream, connection: &mut Connection) {
        let Self { to_endpoint, endpoint, .. } = self;
        connection.opened(&router.telemetry);
        let ended = match stream.accept_flow(Arc::clone(to_endpoint) as Arc<dyn FlowSink>).await {
            Ok(mut flow) => {
                let sender = flow.sender();
                let ended = tokio::select! {
                    ended = flow.run() => Ok(ended),
                    error = self.answers(|packets| SCRATCH.with_borrow_mut(|scratch| sender.send(packets, scratch))) => {
                        router.failing.note(endpoint);
                        Err(Some(error))
                    }
                    () = self.quiet(router, connection) => Err(None),
                };
                match ended {
                    // It was quiet for as long there, or its client has gone.
                    Ok(Ok(()) | Err(eastway_tunnel::StreamError::Reset(ResetCode::IdleTimeout))) => Ok(()),
                    Ok(Err(error)) => Err(error.into()),
                    Err(None) => {
                        flow.end(ResetCode::IdleTimeout);
                        Ok(())
                    }
                    // Nobody is at its port: the client's next packet may go to another.
                    Err(Some(error)) => {
                        flow.end(ResetCode::UpstreamRefused);
                        Err(CopyError::Local(error))
                    }
                }
            }
            Err(error) => Err(error.into()),
        };
        connection.closed(&router.telemetry, &Outcome::Ended(ended), &self.moved());
    }

    /// What the endpoint sends; ends with an error of its socket.
    async fn answers(&self, mut send: impl FnMut(&mut dyn Iterator<Item = &[u8]>)) -> std::io::Error {
        let ToEndpoint { socket, activity } = &*self.to_endpoint;
        let socket = match socket.receiver() {
            Ok(socket) => socket,
            Err(error) => return error,
        };
        loop {
            let received = socket.receive(|messages| {
                let (mut count, mut bytes) = (0, 0);
                let packets = messages.iter().flat_map(|message| message.packets());
                send(&mut packets.inspect(|packet| (count, bytes) = (count + 1, bytes + packet.len())));
                activity.answered(count, bytes);
            });
            if let Err(error) = received.await {
                return error;
            }
        }
    }

    /// Waits until nothing has passed for long enough.
    async fn quiet(&self, router: &Router, connection: &mut Connection) {
        loop {
            let over = self.to_endpoint.activity.over_at(router.udp_idle, false);
            let now = Instant::now();
            if over <= now {
                return;
            }
            sleep_until(over.min(now + COUNTED)).await;
            connection.count(&self.moved());
        }
    }

    fn moved(&self) -> Transferred {
        let (asked, answered) = self.to_endpoint.activity.bytes();
        let moved = Transferred::default();
        moved.to_local.passed(asked);
        moved.from_local.passed(answered);
        moved
    }
}
