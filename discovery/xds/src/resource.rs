//! One resource, encoded once.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use eastway_model::ServiceKey;
use eastway_proto::xds::discovery as wire;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::kind::Kind;

/// Bytes of the digest that make a version. Versions are compared with others of the same name only.
const VERSION_BYTES: usize = 8;

/// One resource as it goes to every client that sees it: name, version and encoded bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Resource {
    name: Arc<str>,
    version: Arc<str>,
    /// As a delta response holds it: a `Resource`.
    delta: Bytes,
    /// As a state-of-the-world response holds it: an `Any`, a part of the same bytes.
    world: Bytes,
    /// The services that it belongs to; none: it is for everybody.
    owners: Arc<[ServiceKey]>,
}

impl Resource {
    /// Encodes `message`, which is of this kind. Equal messages have to have equal bytes, or they count as changed:
    /// no map of more than one entry that has no order.
    #[must_use]
    pub fn new(kind: Kind, name: &str, message: &impl Message) -> Arc<Self> {
        let value = Bytes::from(message.encode_to_vec());
        let digest = Sha256::digest(&value);
        let version: String = digest.iter().take(VERSION_BYTES).map(|byte| format!("{byte:02x}")).collect();
        let any = wire::Any { type_url: kind.url().to_owned(), value };
        let any_len = any.encoded_len();
        let whole = wire::Resource { version: version.clone(), resource: Some(any), name: name.to_owned() };
        let delta = Bytes::from(whole.encode_to_vec());
        // Fields are written in the order of their numbers: the name follows the Any and is the last.
        let name_len = if name.is_empty() { 0 } else { 1 + prost::length_delimiter_len(name.len()) + name.len() };
        let end = delta.len().saturating_sub(name_len);
        let world = delta.slice(end.saturating_sub(any_len)..end);
        Arc::new(Self { name: Arc::from(name), version: Arc::from(version), delta, world, owners: Arc::default() })
    }

    /// It, belonging to these services: who is told of none of them is not told of it.
    #[must_use]
    pub(crate) fn owned_by(self: Arc<Self>, owners: &Arc<[ServiceKey]>) -> Arc<Self> {
        Arc::new(Self { owners: Arc::clone(owners), ..Arc::unwrap_or_clone(self) })
    }

    pub(crate) fn owners(&self) -> &Arc<[ServiceKey]> {
        &self.owners
    }

    /// Whether clients have the same, and the same clients.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        self.version == other.version && self.owners == other.owners
    }

    /// Its name, unique among those of its kind.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// A digest of its content: the same in every process.
    #[must_use]
    pub fn version(&self) -> &Arc<str> {
        &self.version
    }

    /// A `Resource` message.
    #[must_use]
    pub fn delta(&self) -> &Bytes {
        &self.delta
    }

    /// An `Any` message.
    #[must_use]
    pub fn world(&self) -> &Bytes {
        &self.world
    }
}

/// Without the bytes, which say nothing to people.
impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_encodings_are_read_back() {
        for length in [1, 127, 128, 300] {
            let message = wire::Hint { string_value: Some("x".repeat(length)) };
            let name = "n".repeat(length);
            let resource = Resource::new(Kind::Cluster, &name, &message);
            let whole = wire::Resource::decode(resource.delta().clone()).unwrap();
            let any = wire::Any::decode(resource.world().clone()).unwrap();
            assert_eq!(whole.resource.as_ref(), Some(&any));
            assert_eq!((whole.name.as_str(), whole.version.as_str()), (name.as_str(), &**resource.version()));
            assert_eq!(any.type_url, Kind::Cluster.url());
            assert_eq!(wire::Hint::decode(any.value).unwrap(), message);
        }
    }

    #[test]
    fn the_version_follows_the_content_alone() {
        let message = |text: &str| wire::Hint { string_value: Some(text.to_owned()) };
        let first = Resource::new(Kind::Cluster, "a", &message("x"));
        assert_eq!(first.version(), Resource::new(Kind::Cluster, "b", &message("x")).version());
        assert_ne!(first.version(), Resource::new(Kind::Cluster, "a", &message("y")).version());
    }
}
