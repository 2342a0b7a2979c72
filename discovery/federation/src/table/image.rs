//! The table as bytes for a file, so that a restart serves what the peer exported last.
//!
//! `EWIMPORT`, u32 version, u64 length of the body, SHA-256 of version, length and body, then the
//! body: an [`wire::ImportImage`]. Writing the file atomically is the caller's; whatever a crash, a full disk
//! or an old backup leaves there, reading it gives a whole table or an error (fault F20). Every
//! record is checked again like one from the peer: rules may have changed meanwhile.

use std::time::Duration;

use eastway_model::rules::PeerRules;
use eastway_model::{ClusterName, ServiceKey, UnixMillis};
use eastway_proto::federation::v1 as wire;
use prost::Message;
use sha2::{Digest, Sha256};

use super::endpoints::{Received, owned};
use super::services::HeldService;
use super::{ImportTable, Source, Subscribed};
use crate::convert::{
    EncodedService, endpoint_to_wire, key_from_wire, key_to_wire, record_from_wire, service_from_wire,
};
use crate::limits::{Limits, Now};
use crate::reject::RejectReason;

const MAGIC: &[u8; 8] = b"EWIMPORT";

/// Grows when the body changes its meaning, and when this crate begins to understand more fields
/// of a record: an older image does not have them, and its digest must not say that it does.
const VERSION: u32 = 1;

const HEADER: usize = 8 + 4 + 8 + 32;

/// Why an image is not used. The peer's next snapshot brings everything back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Torn, cut, altered, or no image at all.
    #[error("snapshot rejected: checksum")]
    Checksum,
    /// Written by another version of this program.
    #[error("snapshot rejected: version {0}, this program reads {VERSION}")]
    Version(u32),
    /// Whole, but not of this peer.
    #[error("snapshot rejected: it is of another peer")]
    OtherPeer,
    /// The peer was last heard longer ago than its `withdrawAfter`.
    #[error("snapshot rejected: the peer was last heard {0:?} ago")]
    Withdrawn(Duration),
}

impl ImportTable {
    /// The table for a file.
    #[must_use]
    pub fn to_disk(&self) -> Vec<u8> {
        let body = wire::ImportImage {
            peer: self.peer.to_string(),
            epoch: self.source.map_or(0, |source| source.epoch),
            sequence: self.source.map_or(0, |source| source.sequence),
            heard_at_ms: self.heard_at.0,
            untracked: self.services.untracked() || self.services.iter().any(|(_, held)| lost_on_disk(held)),
            services: self.services.iter().map(|(key, held)| service_image(key, held)).collect(),
            endpoints: self.subscriptions.iter().map(|(key, held)| endpoints_image(key, held)).collect(),
        }
        .encode_to_vec();
        let mut out = Vec::with_capacity(HEADER + body.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_be_bytes());
        out.extend_from_slice(&(body.len() as u64).to_be_bytes());
        let checksum = checksum(VERSION, &body);
        out.extend_from_slice(&checksum);
        out.extend_from_slice(&body);
        out
    }

    /// The table of an image. `cluster` is our own name.
    ///
    /// # Errors
    /// [`ImageError`]; its text is what belongs into the log.
    pub fn from_disk(
        image: &[u8],
        cluster: ClusterName,
        peer: ClusterName,
        rules: &PeerRules,
        limits: Limits,
        now: Now,
    ) -> Result<Self, ImageError> {
        let body = body_of(image)?;
        let body = wire::ImportImage::decode(body).map_err(|_| ImageError::Checksum)?;
        let wire::ImportImage { peer: of, epoch, sequence, heard_at_ms, untracked, services, endpoints } = body;
        if of != peer.as_str() {
            return Err(ImageError::OtherPeer);
        }
        let away = now.wall.since(UnixMillis(heard_at_ms));
        if away > rules.withdraw_after {
            return Err(ImageError::Withdrawn(away));
        }
        let mut table = Self::new(cluster, peer, limits);
        table.heard_at = UnixMillis(heard_at_ms);
        table.source = (epoch != 0).then_some(Source { epoch, sequence });
        if untracked {
            table.services.set_untracked();
        }
        for image in services {
            if table.restore_service(image, rules).is_none() {
                table.services.set_untracked();
            }
        }
        for image in endpoints {
            table.restore_endpoints(image, rules);
        }
        Ok(table)
    }

    fn restore_service(&mut self, image: wire::ServiceImage, rules: &PeerRules) -> Option<()> {
        let wire::ServiceImage { name, static_hash, counts, claimed_at_ms, service, record_counts, not_allowed } =
            image;
        let key = key_from_wire(&name?).ok()?;
        let allowed = rules.import.allows(&key) && !not_allowed;
        let record = if allowed {
            let (of, service) = service_from_wire(&service).ok()?;
            let exported_at = UnixMillis(service.exported_at_ms).max(rules.accepted_at);
            let domain = &rules.trust_domain;
            (of == key).then_some(())?;
            Some(record_from_wire(of, service, &record_counts, exported_at, domain, &mut self.texts).ok()?.into())
        } else {
            None
        };
        let held = HeldService {
            static_hash: static_hash.as_ref().try_into().ok()?,
            counts,
            claimed_at: UnixMillis(claimed_at_ms),
            refused: record.is_none().then_some(RejectReason::NotAllowed),
            record,
        };
        self.services.insert(key, held, self.limits.services).ok()
    }

    fn restore_endpoints(&mut self, image: wire::EndpointsImage, rules: &PeerRules) {
        let wire::EndpointsImage { service, listed, endpoints } = image;
        let Ok(key) = key_from_wire(&service.unwrap_or_default()) else { return };
        let room = self.limits.endpoints.saturating_sub(self.endpoint_count());
        let mut subscribed = Subscribed::default();
        if self.services.record(&key).is_some() {
            let all = endpoints.len();
            let read = |encoded| Received::read(encoded, &rules.trust_domain, &mut self.texts);
            let received = endpoints.iter().map(AsRef::as_ref).map(read).take(room);
            let good: Vec<Received> = received.flatten().filter(|received| received.endpoint.is_ok()).collect();
            subscribed.listed = listed;
            subscribed.untracked = good.len() < all;
            subscribed.apply(good, &[]);
        }
        self.subscriptions.insert(key, subscribed);
    }
}

/// What was refused for another reason than the rules is not in the image: it may be good for the
/// program that reads it.
fn lost_on_disk(held: &HeldService) -> bool {
    held.refused.as_ref().is_some_and(|reason| *reason != RejectReason::NotAllowed)
}

fn service_image(key: &ServiceKey, held: &HeldService) -> wire::ServiceImage {
    let HeldService { static_hash, counts, claimed_at, record, refused: _ } = held;
    let record = record.as_deref().map(EncodedService::new);
    wire::ServiceImage {
        name: Some(key_to_wire(key)),
        static_hash: static_hash.to_vec().into(),
        counts: counts.clone(),
        claimed_at_ms: claimed_at.0,
        not_allowed: record.is_none(),
        service: record.as_ref().map(|record| record.service.clone()).unwrap_or_default(),
        record_counts: record.map(|record| record.counts).unwrap_or_default(),
    }
}

fn endpoints_image(key: &ServiceKey, held: &Subscribed) -> wire::EndpointsImage {
    let encoded = |endpoint| owned(endpoint).map(|endpoint| endpoint_to_wire(&endpoint).encode_to_vec().into());
    wire::EndpointsImage {
        service: Some(key_to_wire(key)),
        // Odd ones are not here as the peer sent them.
        listed: held.digest_held().is_some() && held.odd.is_empty(),
        endpoints: held.endpoints.iter().filter_map(encoded).collect(),
    }
}

/// The body of a whole image.
fn body_of(image: &[u8]) -> Result<&[u8], ImageError> {
    let (magic, rest) = image.split_first_chunk::<8>().ok_or(ImageError::Checksum)?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or(ImageError::Checksum)?;
    let (length, rest) = rest.split_first_chunk::<8>().ok_or(ImageError::Checksum)?;
    let (sum, body) = rest.split_first_chunk::<32>().ok_or(ImageError::Checksum)?;
    let version = u32::from_be_bytes(*version);
    let whole = u64::from_be_bytes(*length) == body.len() as u64;
    if magic != MAGIC || !whole || *sum != checksum(version, body) {
        return Err(ImageError::Checksum);
    }
    if version != VERSION {
        return Err(ImageError::Version(version));
    }
    Ok(body)
}

fn checksum(version: u32, body: &[u8]) -> [u8; 32] {
    let mut hasher = Sha256::new_with_prefix(version.to_be_bytes());
    hasher.update((body.len() as u64).to_be_bytes());
    hasher.update(body);
    hasher.finalize().into()
}
