//! What sidecars know the trust domain by, kept for a while: whoever asks twice gets the same bytes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use eastway_identity::{AnchorDer, Ca};
use eastway_proto::ca::v1 as wire;
use tonic::Status;

/// How long anchors are given out before their lists are made anew.
const ANCHORS_LIFE: Duration = Duration::from_secs(12 * 3600);
/// The anchors given out last.
#[derive(Debug, Default)]
pub(super) struct Published(Mutex<Option<Made>>);

/// Anchors that were made.
#[derive(Debug)]
struct Made {
    of: Arc<Ca>,
    at: Instant,
    anchors: Vec<wire::Anchor>,
}

impl Published {
    /// What sidecars know this trust domain by: the same bytes until the CA changes, or for half a day.
    pub(super) fn of(&self, ca: &Arc<Ca>, trust_domain: &str) -> Result<Vec<wire::Anchor>, Status> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*made
            && Arc::ptr_eq(&made.of, ca)
            && made.at.elapsed() < ANCHORS_LIFE
        {
            return Ok(made.anchors.clone());
        }
        let anchors = ca.anchors(trust_domain, SystemTime::now());
        let anchors = anchors.map_err(|error| Status::internal(error.to_string()))?;
        let wire = |AnchorDer { certificate, crl }| wire::Anchor { certificate: certificate.into(), crl: crl.into() };
        let anchors: Vec<_> = anchors.into_iter().map(wire).collect();
        *made = Some(Made { of: Arc::clone(ca), at: Instant::now(), anchors: anchors.clone() });
        Ok(anchors)
    }
}
