//! Answers DNS for remote services: `clusterset.local` as the Multi-Cluster Services API asks
//! (KEP-1645), and names of one's own in zones of one's own.
//!
//! The crate knows nothing of Kubernetes, peers or snapshots. Whoever knows them puts entries into
//! a [`ZoneStore`]; every answer is made then, in wire format, so that a query costs one hash
//! lookup and one copy. [`Responder`] turns a query into a reply without any input or output;
//! [`Server`] carries packets to and from it. Nothing here recurses, forwards or transfers zones.

pub mod client;
mod counters;
mod entry;
mod limit;
mod name;
mod readiness;
mod respond;
mod server;
mod wire;
mod zone;

pub use counters::{Counters, CountersSnapshot, DropReason};
pub use entry::{HeadlessEndpoint, NameEntry, PortEntry, Protocol, ServiceEntry, ServiceKind, ServiceName};
pub use limit::RateLimiter;
pub use name::{Fqdn, NameError};
pub use readiness::{OwnsService, PENDING_FOR, PendingPeer, Readiness};
pub use respond::{Outcome, Responder, Transport};
pub use server::{BindError, DnsConfig, Limits, Server};
pub use zone::{DNS_SCHEMA_VERSION, NEGATIVE_TTL, TTL, ZoneStore};
