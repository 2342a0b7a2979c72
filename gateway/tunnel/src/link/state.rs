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
