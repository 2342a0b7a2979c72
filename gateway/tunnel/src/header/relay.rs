//! Pipes by way of a third cluster.

use eastway_proto::tunnel::v1 as proto;

use super::{HeaderError, Label};

/// A pipe from one cluster to another by way of a third.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayHeader {
    /// To the relay.
    To {
        /// The cluster to reach.
        cluster: Label,
        /// Pipes of one number lead to one replica.
        path: u64,
    },
    /// From the relay.
    From {
        /// The cluster that asks.
        cluster: Label,
    },
}

impl RelayHeader {
    pub(super) fn to_proto(&self) -> proto::RelayStream {
        let (to, from, path) = match self {
            Self::To { cluster, path } => (cluster.as_str(), "", *path),
            Self::From { cluster } => ("", cluster.as_str(), 0),
        };
        proto::RelayStream { to: to.to_owned(), from: from.to_owned(), path }
    }

    pub(super) fn from_proto(wire: &proto::RelayStream) -> Result<Self, HeaderError> {
        let cluster = |field, text: &str| Label::parse(text).map_err(|source| HeaderError::Name { field, source });
        match (wire.to.as_str(), wire.from.as_str(), wire.path) {
            (to, "", path) => Ok(Self::To { cluster: cluster("relay.to", to)?, path }),
            ("", from, 0) => Ok(Self::From { cluster: cluster("relay.from", from)? }),
            _ => Err(HeaderError::Malformed),
        }
    }
}
