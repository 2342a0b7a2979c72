//! Zones as finished answers: one writer puts entries in, any number of readers look them up
//! without a lock.
//!
//! Entries are kept by name in shards, each an immutable table behind an atomic pointer. A service
//! and everything below its name is one entry in one shard, so a changed service copies one shard
//! of some tens of pointers, however many services there are.

mod answer;
mod build;
mod lookup;
mod store;

pub(crate) use answer::Answer;
pub(crate) use lookup::Resolution;
pub(crate) use store::Soa;
pub use store::ZoneStore;

/// Seconds a client may keep an answer (design §8): failover is seen that soon.
pub const TTL: u32 = 5;
/// Seconds a client may keep a denial. Short, for a name may be imported at any moment.
pub const NEGATIVE_TTL: u32 = 1;
/// The value of `dns-version.clusterset.local`. KEP-1645 describes schema 1.0.0; CoreDNS's
/// multicluster zones say 1.1.0, the version of the Kubernetes schema they extend, and clients
/// that look at it at all have only ever seen CoreDNS.
pub const DNS_SCHEMA_VERSION: &str = "1.1.0";
