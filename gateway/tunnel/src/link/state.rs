//! The life of a link.

/// What a link may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum LinkState {
    /// Authenticated, and nothing was acknowledged yet.
    Starting = 0,
    /// Acknowledged within the last two heartbeats.
    Fresh = 1,
    /// Acknowledged, but not lately: used when no fresh link is there.
    Stale = 2,
    /// Gone.
    Closed = 3,
}

impl LinkState {
    pub(super) fn from_u8(number: u8) -> Self {
        match number {
            0 => Self::Starting,
            1 => Self::Fresh,
            2 => Self::Stale,
            _ => Self::Closed,
        }
    }
}

/// Which streams a link takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum LinkRole {
    /// All.
    Whole = 0,
    /// It is kept by TCP beside one by QUIC, and takes those that are expected to move much.
    Bulk = 1,
    /// Likewise, and takes none now.
    Standby = 2,
}

impl LinkRole {
    pub(super) fn from_u8(number: u8) -> Self {
        match number {
            1 => Self::Bulk,
            2 => Self::Standby,
            _ => Self::Whole,
        }
    }
}
