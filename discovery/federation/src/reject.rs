//! Why one record of a peer is refused. The rest of its message is applied (invariant I8).

use eastway_model::NameError;

/// Why a record is quarantined, refused or ignored. Texts of the peer are escaped and cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RejectReason {
    /// The bytes are no record.
    #[error("record cannot be read: {0}")]
    Unreadable(String),
    /// The record is larger than [`crate::convert::MAX_RECORD`].
    #[error("record of {0} bytes; at most {max} are allowed", max = crate::convert::MAX_RECORD)]
    TooLarge(usize),
    /// A name that breaks its grammar.
    #[error("{field} \"{text}\" {source}")]
    BadName {
        /// Which field.
        field: &'static str,
        /// Its beginning.
        text: String,
        /// Which rule it breaks.
        source: NameError,
    },
    /// A text that is too long or has characters it must not have.
    #[error("{field} \"{text}\" is too long or has characters that are not allowed")]
    BadText {
        /// Which field.
        field: &'static str,
        /// Its beginning.
        text: String,
    },
    /// Not 1 to 65535.
    #[error("port {0}: must be 1-65535")]
    BadPort(u32),
    /// A value of an enumeration that this version does not know, or none.
    #[error("{field} {value} is not known")]
    UnknownValue {
        /// Which field.
        field: &'static str,
        /// Its number.
        value: i32,
    },
    /// A number outside its range.
    #[error("{field} {value} is out of range")]
    OutOfRange {
        /// Which field.
        field: &'static str,
        /// The number.
        value: u64,
    },
    /// More of something than a record may have.
    #[error("{count} {what}; at most {max} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many are allowed.
        max: usize,
    },
    /// Something twice, or not in its order.
    #[error("{0} are not unique and in order")]
    NotInOrder(&'static str),
    /// Not of the form of an identity.
    #[error("identity \"{0}\" is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    BadIdentity(String),
    /// An identity outside the peer's trust domain.
    #[error("identity \"{identity}\" is not in the peer's trust domain {trust_domain}")]
    ForeignIdentity {
        /// The identity.
        identity: String,
        /// The peer's trust domain.
        trust_domain: String,
    },
    /// The Peer's import rules do not allow the namespace and name (threat P1).
    #[error("not allowed by the import rules of the Peer")]
    NotAllowed,
    /// The same service twice in one snapshot or update.
    #[error("the service is in the message twice")]
    Duplicate,
    /// A quota is used up: newest refused, existing kept.
    #[error("QUOTA {what} {max}")]
    Quota {
        /// Of what.
        what: &'static str,
        /// The quota.
        max: usize,
    },
    /// Counts or endpoints of a service that is not held.
    #[error("the service is not known")]
    UnknownService,
    /// A message kind that this version does not know.
    #[error("the kind of message is not known")]
    UnknownMessage,
}

impl RejectReason {
    /// A short name out of a fixed set: a metric's label.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::TooLarge(_) => "too_large",
            Self::BadName { .. } => "bad_name",
            Self::BadText { .. } => "bad_text",
            Self::BadPort(_) => "bad_port",
            Self::UnknownValue { .. } => "unknown_value",
            Self::OutOfRange { .. } => "out_of_range",
            Self::TooMany { .. } => "too_many",
            Self::NotInOrder(_) => "not_in_order",
            Self::BadIdentity(_) => "bad_identity",
            Self::ForeignIdentity { .. } => "foreign_identity",
            Self::NotAllowed => "not_allowed",
            Self::Duplicate => "duplicate",
            Self::Quota { .. } => "quota",
            Self::UnknownService => "unknown_service",
            Self::UnknownMessage => "unknown_message",
        }
    }
}
