//! How a cluster's own resolver is told to forward our zones: CoreDNS, its copy on each node, and kube-dns.
//!
//! What would change is a pure function of the text that is there ([`corefile`], [`stub_domains`]); it is shown before
//! it is written, and taken out again to the byte. [`cluster`] finds the texts and writes them; [`ask`] sees what came of it.

pub mod ask;
pub mod cluster;
pub mod corefile;
pub mod diff;
pub mod stub_domains;
mod syntax;

use std::net::IpAddr;

/// What the resolver is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Zones to forward, lower case, without a dot at the end; at least one.
    pub zones: Vec<String>,
    /// Where to: the address of our DNS Service.
    pub server: IpAddr,
}

/// What a resolver does now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It forwards what is wanted, as we wrote it.
    Installed,
    /// It forwards something else, as we wrote it.
    Outdated,
    /// It answers by itself, by CoreDNS's option `multicluster`, all that is wanted.
    BuiltIn,
    /// It knows nothing of it.
    Absent,
}

/// Why nothing can be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Somebody changed what we wrote.
    #[error(
        "line {line}: what was written between the markers was changed by hand; put it back, or take it out together with both markers"
    )]
    Edited {
        /// Line of the first marker, from 1.
        line: usize,
    },
    /// A marker without the other one, or twice.
    #[error("line {line}: this marker of ours has no partner, or stands twice; take out what does not belong there")]
    Markers {
        /// Its line, from 1.
        line: usize,
    },
    /// Another server block has the zone.
    #[error("line {line}: {zone} is already served here; take it out first, or leave it if it leads to the gateways")]
    Taken {
        /// The zone.
        zone: String,
        /// Line of the block, from 1.
        line: usize,
    },
    /// An entry of `stubDomains` has the zone.
    #[error("{zone} already has a stub domain ({servers}); take it out first")]
    StubTaken {
        /// The zone.
        zone: String,
        /// Where it leads.
        servers: String,
    },
    /// The text is not what it should be.
    #[error("line {line}: {what}; nothing is changed in a file that is not understood")]
    Syntax {
        /// Where, from 1.
        line: usize,
        /// What.
        what: &'static str,
    },
    /// `stubDomains` is not JSON of the right shape.
    #[error("stubDomains is no map of zones to lists of addresses: {0}")]
    Json(String),
}
