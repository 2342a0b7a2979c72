//! What local proxies are told: Envoy's discovery protocol (xDS v3), served as one aggregated stream (ADS) per proxy.
//!
//! - [`resources`]: clusters, endpoints, listeners and routes, generated from a store's snapshot.
//! - [`view`]: one immutable set of resources, encoded once and shared by all who see it.
//! - [`mod@inbound`]: where one sidecar takes connections, which is in a view of its own.
//! - [`scopes`]: what of it the clients of each namespace see.
//! - [`session`]: one client's stream as a state machine without I/O, in both forms of the protocol: state of the
//!   world, and delta.
//! - [`server`]: the gRPC service around it, and the list of who is connected.
//! - [`explain`]: resources as people read them.
//!
//! Not here: who may connect (the caller admits), where virtual addresses come from, and TLS.

pub mod explain;
pub mod inbound;
pub mod kind;
pub mod node;
pub mod resource;
pub mod resources;
pub mod scopes;
pub mod server;
pub mod session;
pub mod spoken;
pub mod view;

pub use kind::Kind;
pub use resource::Resource;
pub use scopes::Scopes;
pub use view::View;
