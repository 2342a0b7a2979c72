//! Links between gateways, and the streams inside them.
//!
//! - [`Tunnel`]: binds, dials, accepts, drains; publishes a [`LinkTable`] and the state of peers.
//! - [`Link::open`]: one stream per TCP connection, begun by a [`StreamHeader`](header::StreamHeader) that can
//!   name services and no addresses (invariant I1).
//! - [`flow`]: UDP, as datagrams of a link.
//! - [`StreamHandler`]: serves the streams that peers open.
//! - [`transport`]: what carries a link, QUIC or TLS over TCP. quinn-proto is known to its `quic` module only.
//! - [`replicas`]: several gateways of one cluster, and packets that reach the wrong one.
//! - [`RelayRule`]: for whom pipes are carried between two others.
//! - [`control`]: the session that says who is there and whether it still answers, without I/O.
//!
//! What is not here: which endpoint a stream is for, who may use it, and TCP (the gateway binary);
//! certificates (`eastway-identity`); what federation streams carry (`eastway-federation`).

mod code;
mod config;
pub mod control;
mod events;
pub mod flow;
pub mod header;
mod link;
mod loads;
mod manager;
mod metrics;
mod peers;
mod relay;
pub mod replicas;
mod status;
mod stream;
pub mod transport;
mod tunnel;
mod world;

pub use code::{CloseCode, ResetCode};
pub use config::{
    HostPort, HostPortError, LinkKeys, MAX_SHARED, NoRandomness, PeerTarget, Proxy, ProxyCredentials, QuicLb,
    QuicLbError, ReplicaId, TcpWay, Timing, TransportPolicy, TunnelConfig, TunnelLimits,
};
pub use events::{Event, FailureCause, LinkFailure, Observer};
pub use link::driver::HeardAnchors;
pub use link::{Link, LinkRole, LinkState, LinkTable, OpenError};
pub use metrics::TunnelCounters;
pub use relay::{RelayLimits, RelayRule, RelayStatus};
pub use replicas::{ForwardingCounters, ReplicaNetwork, SiblingStatus};
pub use status::{AddressStatus, BulkStatus, FallbackStatus, LinkStatus, PeerState, PeerStates, PeerStatus};
pub use stream::{AcceptedStream, LinkInfo, RecvHalf, SendHalf, StreamError, StreamHandler, TunnelStream};
pub use transport::TransportKind;
pub use transport::quic::QuicError;
pub use tunnel::{BindError, Tunnel};
pub use world::{Resolver, World};
