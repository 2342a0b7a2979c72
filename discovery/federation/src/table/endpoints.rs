//! Endpoint records of subscribed services.

use std::collections::{BTreeMap, BTreeSet};

use eastway_model::endpoint::{EndpointRef, RemoteEndpoints, Shapes};
use eastway_model::{Endpoint, EndpointId, Label};
use prost::Message;

use crate::convert::{Texts, endpoint_from_wire, endpoint_to_wire};
use crate::digest::{EndpointHash, endpoint_hash};
use crate::reject::RejectReason;

/// What is held of one subscribed service.
#[derive(Debug, Default)]
pub(crate) struct Subscribed {
    pub(crate) endpoints: RemoteEndpoints,
    /// Hashes of records that are not what our own encoder would make of them: with fields we do
    /// not know, or refused. All others are encoded again when their hash is needed, which costs
    /// less than 16 bytes for each of them.
    pub(crate) odd: BTreeMap<EndpointId, EndpointHash>,
    /// Sum of all hashes.
    pub(crate) digest: EndpointHash,
    /// A listing was complete: changes may follow.
    pub(crate) listed: bool,
    /// Something was refused that is not in the digest.
    pub(crate) untracked: bool,
    pub(crate) shapes: Shapes,
}

/// A record as the peer sent it.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) id: EndpointId,
    pub(crate) hash: EndpointHash,
    /// Our own encoder would give other bytes, or the record is refused.
    odd: bool,
    pub(crate) endpoint: Result<Endpoint, RejectReason>,
}

impl Received {
    /// Reads one encoded endpoint. The error is for records whose id is not known.
    pub(crate) fn read(encoded: &[u8], trust_domain: &str, texts: &mut Texts) -> Result<Self, RejectReason> {
        let hash = endpoint_hash(encoded);
        match endpoint_from_wire(encoded, trust_domain, texts) {
            Ok(endpoint) => {
                let odd = endpoint_to_wire(&endpoint).encode_to_vec() != encoded;
                Ok(Self { id: endpoint.id.clone(), hash, odd, endpoint: Ok(endpoint) })
            }
            Err(reason) => match id_of(encoded) {
                Some(id) => Ok(Self { id, hash, odd: true, endpoint: Err(reason) }),
                None => Err(reason),
            },
        }
    }
}

fn id_of(encoded: &[u8]) -> Option<EndpointId> {
    let endpoint = eastway_proto::federation::v1::Endpoint::decode(encoded).ok()?;
    EndpointId::parse(&endpoint.id)
}

impl Subscribed {
    /// Back to nothing held.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// The digest to ask with; none if it would not say what the peer sent.
    pub(crate) fn digest_held(&self) -> Option<EndpointHash> {
        (self.listed && !self.untracked).then_some(self.digest)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = EndpointId> {
        self.endpoints.iter().filter_map(|endpoint| EndpointId::parse(endpoint.id))
    }

    /// Whether an id is held, if only for its digest.
    pub(crate) fn knows(&self, id: &EndpointId) -> bool {
        self.endpoints.get(id.as_str()).is_some() || self.odd.contains_key(id)
    }

    /// Applies changes and returns the ids whose record in use changed.
    pub(crate) fn apply(&mut self, changed: Vec<Received>, removed: &[EndpointId]) -> BTreeSet<EndpointId> {
        let mut ids = BTreeSet::new();
        for id in removed {
            self.forget_hash(id);
            self.odd.remove(id);
            if self.endpoints.get(id.as_str()).is_some() {
                ids.insert(id.clone());
            }
        }
        let mut upserts = Vec::with_capacity(changed.len());
        for Received { id, hash, odd, endpoint } in changed {
            self.forget_hash(&id);
            self.digest = self.digest.wrapping_add(hash);
            if odd {
                self.odd.insert(id.clone(), hash);
            } else {
                self.odd.remove(&id);
            }
            if let Ok(endpoint) = endpoint {
                ids.insert(id);
                upserts.push(endpoint);
            }
        }
        if let Some(edited) = self.endpoints.edited(&upserts, removed, &mut self.shapes) {
            self.endpoints = edited;
        }
        ids
    }

    fn forget_hash(&mut self, id: &EndpointId) {
        let odd = self.odd.get(id).copied();
        let hash = odd.or_else(|| {
            let endpoint = self.endpoints.get(id.as_str()).and_then(owned)?;
            Some(endpoint_hash(&endpoint_to_wire(&endpoint).encode_to_vec()))
        });
        self.digest = self.digest.wrapping_sub(hash.unwrap_or_default());
    }
}

/// A listing on its way in: like a snapshot, nothing of it counts before its end.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    received: Vec<Received>,
    seen: BTreeSet<EndpointId>,
    newcomers: usize,
    digest: EndpointHash,
    untracked: bool,
}

impl Listing {
    /// Takes a record. `quota` is how many new ones may be in use.
    pub(crate) fn take(
        &mut self,
        received: Result<Received, RejectReason>,
        held: &Subscribed,
        quota: usize,
        max: usize,
    ) -> Result<(), RejectReason> {
        let received = received.inspect_err(|_| self.untracked = true)?;
        let new = !held.knows(&received.id);
        if new && self.newcomers >= quota {
            self.untracked = true;
            return Err(RejectReason::Quota { what: "endpoints", max });
        }
        if !self.seen.insert(received.id.clone()) {
            self.untracked = true;
            return Err(RejectReason::Duplicate);
        }
        self.newcomers += usize::from(new);
        self.digest = self.digest.wrapping_add(received.hash);
        let refused = received.endpoint.as_ref().err().cloned();
        self.received.push(received);
        refused.map_or(Ok(()), Err)
    }

    /// Refuses a record unread.
    pub(crate) fn refuse(&mut self, max: usize) -> Result<(), RejectReason> {
        self.untracked = true;
        Err(RejectReason::Quota { what: "endpoints", max })
    }

    pub(crate) fn len(&self) -> usize {
        self.received.len()
    }

    /// Puts the listing in place of what was held, if the digest is right; `None` if it is not.
    /// `room` is how many records the service may have: existing ones keep their place, the last
    /// new ones are refused.
    pub(crate) fn end(mut self, held: &mut Subscribed, digest: &[u8], room: usize) -> Option<Ended> {
        if !self.untracked && self.digest.to_be_bytes() != digest {
            return None;
        }
        let mut left = room.saturating_sub(self.received.len() - self.newcomers);
        let before = self.received.len();
        let mut sum = self.digest;
        self.received.retain(|received| {
            let stays = held.knows(&received.id) || left > 0;
            if !stays {
                sum = sum.wrapping_sub(received.hash);
            } else if !held.knows(&received.id) {
                left -= 1;
            }
            stays
        });
        let refused = before - self.received.len();
        self.untracked |= refused > 0;
        let removed: Vec<EndpointId> = held.ids().filter(|id| !self.seen.contains(id)).collect();
        held.odd.retain(|id, _| self.seen.contains(id));
        let changed = held.apply(self.received, &removed);
        // What was held and is in no digest any more is gone; the sum is that of the listing.
        held.digest = sum;
        held.listed = true;
        held.untracked = self.untracked;
        Some(Ended { changed, refused })
    }
}

/// What became of a listing.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Ids whose record in use changed or is gone.
    pub(crate) changed: BTreeSet<EndpointId>,
    /// New records that the quota refused.
    pub(crate) refused: usize,
}

/// The record with its own texts.
pub(crate) fn owned(endpoint: EndpointRef<'_>) -> Option<Endpoint> {
    let EndpointRef { id, hostname, condition, weight, shape } = endpoint;
    Some(Endpoint {
        id: EndpointId::parse(id)?,
        hostname: hostname.and_then(|hostname| Label::parse(hostname).ok()),
        subset: shape.subset.clone(),
        zone: shape.zone.clone(),
        condition,
        weight,
        identity: shape.identity.clone(),
        tls: shape.tls,
    })
}
