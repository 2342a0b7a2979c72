//! Endpoint records of one subscribed service, on their way to the importer.

use bytes::Bytes;
use eastway_model::endpoint::LocalEndpoints;
use eastway_model::{Endpoint, ServiceKey};
use eastway_proto::federation::v1 as wire;
use prost::Message;

use crate::convert::{endpoint_to_wire, key_to_wire};
use crate::digest::{EndpointHash, endpoint_hash};

/// One subscription.
#[derive(Debug)]
pub(super) struct Subscription {
    /// Digest of what the importer said it holds.
    held: Option<EndpointHash>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Nothing sent yet.
    Unsent,
    /// A listing of `target` is under way.
    Listing { target: LocalEndpoints, next: usize, digest: EndpointHash },
    /// All of these are sent.
    Sent(LocalEndpoints),
}

impl Subscription {
    /// `digest` as the importer sent it.
    pub(super) fn new(digest: &Bytes) -> Self {
        let held = digest.as_ref().try_into().ok().map(EndpointHash::from_be_bytes);
        Self { held, state: State::Unsent }
    }

    /// The listing has to be sent again; what the importer says it holds counts only if it may
    /// still have it.
    pub(super) fn restart(&mut self, resumed: bool) {
        self.state = State::Unsent;
        if !resumed {
            self.held = None;
        }
    }

    /// Whether the importer has these, or will have once it has read everything.
    pub(super) fn is_sent(&self, current: &LocalEndpoints) -> bool {
        matches!(&self.state, State::Sent(sent) if sent.same(current))
    }

    /// The next part of at most about `room` bytes; none if nothing that crosses has changed.
    pub(super) fn next_part(
        &mut self,
        key: &ServiceKey,
        current: &LocalEndpoints,
        room: usize,
    ) -> Option<wire::EndpointsUpdate> {
        let mut part = wire::EndpointsUpdate { service: Some(key_to_wire(key)), ..Default::default() };
        match &mut self.state {
            State::Unsent => {
                if let Some(held) = self.held.take()
                    && held == digest_of(current)
                {
                    self.state = State::Sent(current.clone());
                    part.unchanged = true;
                    return Some(part);
                }
                part.begin = true;
                self.state = State::Listing { target: current.clone(), next: 0, digest: 0 };
                self.list(&mut part, room);
                Some(part)
            }
            State::Listing { .. } => {
                self.list(&mut part, room);
                Some(part)
            }
            State::Sent(sent) => {
                let sent = compare(sent, current, &mut part, room);
                self.state = State::Sent(sent);
                (!part.upserts.is_empty() || !part.removed.is_empty()).then_some(part)
            }
        }
    }

    fn list(&mut self, part: &mut wire::EndpointsUpdate, room: usize) {
        let State::Listing { target, next, digest } = &mut self.state else { return };
        let mut bytes = 0;
        while let Some(endpoint) = target.nth(*next) {
            if bytes >= room {
                return;
            }
            let encoded: Bytes = endpoint_to_wire(&endpoint.endpoint).encode_to_vec().into();
            *digest = digest.wrapping_add(endpoint_hash(&encoded));
            bytes += encoded.len();
            part.upserts.push(encoded);
            *next += 1;
        }
        part.end = true;
        part.digest = digest.to_be_bytes().to_vec().into();
        self.state = State::Sent(target.clone());
    }
}

/// Adds what turns `sent` into `current`, and returns what is sent afterwards: `current`, unless
/// `room` ends before.
fn compare(
    sent: &LocalEndpoints,
    current: &LocalEndpoints,
    part: &mut wire::EndpointsUpdate,
    room: usize,
) -> LocalEndpoints {
    let mut bytes = 0;
    let mut edits = Vec::new();
    for (id, endpoint) in current.changes_from(sent) {
        if bytes >= room {
            return sent.edited(&edits);
        }
        match &endpoint {
            Some(new) => {
                // An address that changes stays here (I1).
                let same = sent.get(&id).is_some_and(|old| old.endpoint == new.endpoint);
                if !same {
                    let encoded: Bytes = endpoint_to_wire(&new.endpoint).encode_to_vec().into();
                    bytes += encoded.len();
                    part.upserts.push(encoded);
                }
            }
            None => {
                bytes += id.as_str().len();
                part.removed.push(id.to_string());
            }
        }
        edits.push((id, endpoint));
    }
    current.clone()
}

fn digest_of(endpoints: &LocalEndpoints) -> EndpointHash {
    let hash = |endpoint: &Endpoint| endpoint_hash(&endpoint_to_wire(endpoint).encode_to_vec());
    endpoints.iter().map(|local| hash(&local.endpoint)).fold(0, EndpointHash::wrapping_add)
}
