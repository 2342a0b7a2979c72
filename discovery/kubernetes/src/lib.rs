//! All that talks to a Kubernetes API server. Nothing else in the project knows `kube`.
//!
//! Two halves share the client, the types and the watches: the *registry* half turns Services,
//! EndpointSlices and export marks into changes of local truth and only reads; the *controller*
//! half writes what the Multi-Cluster Services API (KEP-1645) asks for.

pub mod allocations;
pub mod cleanup;
pub mod client;
pub mod cluster_objects;
pub mod controller;
pub mod credentials;
pub mod dns_config;
pub mod injection;
pub mod install;
pub mod istio;
pub mod lease;
pub mod objects;
pub mod secrets;
pub mod siblings;
pub mod source;
pub mod subsets;
#[cfg(test)]
mod testing;
pub mod tokens;
pub mod types;
pub mod watch;
