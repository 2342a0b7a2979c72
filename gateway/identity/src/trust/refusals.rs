//! Recent refusals of handshakes: bounded, and found again by an opaque number in the handshake's error text.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::error::{VerifyError, VerifyReason};

/// How many refusals are kept. A flood of bad handshakes costs this much memory and no more.
const KEPT: usize = 256;
pub(super) const MARK: &str = "refusal ";

/// One refused handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// When, by the clock of the verifier.
    pub at: SystemTime,
    /// Why.
    pub error: VerifyError,
    /// The Peer it concerns: who was dialled, or whose key or identity the other side showed or claimed.
    pub peer: Option<Arc<str>>,
    id: u64,
}

#[derive(Default)]
pub(crate) struct RefusalLog {
    recent: Mutex<VecDeque<Refusal>>,
    counts: [AtomicU64; VerifyReason::ALL.len()],
}

impl RefusalLog {
    /// Records a refusal and gives the error for rustls.
    pub(crate) fn record(&self, error: VerifyError, at: SystemTime, peer: Option<Arc<str>>) -> rustls::Error {
        if let Some(count) = self.counts.get(error.reason() as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let mut id = [0_u8; 8];
        // Random, so that the other side does not learn how many handshakes were refused. Should the generator fail,
        // zero is only a number that is found less surely.
        let id = aws_lc_rs::rand::fill(&mut id).map_or(0, |()| u64::from_be_bytes(id));
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= KEPT {
            recent.pop_front();
        }
        recent.push_back(Refusal { at, error: error.clone(), peer, id });
        drop(recent);
        RefusedHandshake { error, id }.into()
    }

    pub(crate) fn find(&self, text: &str) -> Option<Refusal> {
        let (_, after) = text.split_once(MARK)?;
        let id = u64::from_str_radix(after.get(..16)?, 16).ok()?;
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().rev().find(|refusal| refusal.id == id).cloned()
    }

    pub(crate) fn last_of(&self, peer: &str) -> Option<Refusal> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().rev().find(|refusal| refusal.peer.as_deref() == Some(peer)).cloned()
    }

    pub(crate) fn counts(&self) -> Vec<(VerifyReason, u64)> {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        VerifyReason::ALL.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
    }
}

/// What rustls carries. Its text goes to the other side, which has proved nothing yet: a class and a number. rustls
/// builds that text with `Debug`, so both forms are the same.
pub(crate) struct RefusedHandshake {
    pub(crate) error: VerifyError,
    id: u64,
}

impl fmt::Display for RefusedHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({MARK}{:016x})", self.error.reason().public(), self.id)
    }
}

impl fmt::Debug for RefusedHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for RefusedHandshake {}

impl From<RefusedHandshake> for rustls::Error {
    fn from(refused: RefusedHandshake) -> Self {
        Self::InvalidCertificate(rustls::CertificateError::Other(rustls::OtherError(Arc::new(refused))))
    }
}

impl VerifyError {
    /// The verdict inside a rustls error, for transports that keep it (TLS over TCP).
    #[must_use]
    pub fn in_tls_error(error: &rustls::Error) -> Option<&Self> {
        let rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) = error else {
            return None;
        };
        other.0.downcast_ref::<RefusedHandshake>().map(|refused| &refused.error)
    }
}
