//! Writes that did not bring an object nearer to what is wanted: without a memory of them it would be written for ever.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use eastway_model::ServiceKey;
use serde_json::Value;
use tracing::debug;

use crate::controller::difference::{Action, differs, status_differs};
use crate::controller::object::{Kind, Object, Observed, Seen};

/// The object, and whether it is about its status.
type Place = (ServiceKey, Kind, String, bool);

/// Objects that stay different whatever is written: what was wanted, and the version that came of it.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    futile: HashMap<Place, (u64, String)>,
}

impl Attempts {
    /// Whether the object is what came of the same action before.
    pub(super) fn is_futile(&self, key: &ServiceKey, action: &Action, seen: &Seen) -> bool {
        let (Some((place, hash)), (kind, name)) = (attempt(key, action), action.target()) else { return false };
        let version = seen.get(kind, name).map(|observed| observed.text("/metadata/resourceVersion"));
        self.futile.get(&place).is_some_and(|(futile, at)| *futile == hash && version == Some(at.as_str()))
    }

    /// Remembers what came of an action.
    pub(super) fn remember(&mut self, key: &ServiceKey, action: &Action, written: &Value) {
        let Some((place, hash)) = attempt(key, action) else { return };
        let observed = Observed::new(written.clone());
        let still = match action {
            Action::Create(object) | Action::Apply(object) => differs(&observed, object),
            Action::Status(object) => status_differs(&observed, object),
            Action::Delete { .. } => false,
        };
        if still {
            let version = observed.text("/metadata/resourceVersion").to_owned();
            if self.futile.insert(place, (hash, version)).is_none() {
                let (kind, name) = action.target();
                debug!(service = %key, ?kind, name, "the API server has something else than what was written");
            }
        } else {
            self.futile.remove(&place);
        }
    }

    /// Forgets all: another replica does the work.
    pub(super) fn clear(&mut self) {
        self.futile.clear();
    }
}

/// What an action tries, with a hash of what is wanted.
fn attempt(key: &ServiceKey, action: &Action) -> Option<(Place, u64)> {
    let hash = |object: &Object| {
        let mut hasher = DefaultHasher::new();
        object.body.to_string().hash(&mut hasher);
        hasher.finish()
    };
    let place = |object: &Object, is_status| (key.clone(), object.kind, object.name.clone(), is_status);
    match action {
        Action::Create(object) | Action::Apply(object) => Some((place(object, false), hash(object))),
        Action::Status(object) => Some((place(object, true), hash(object))),
        Action::Delete { .. } => None,
    }
}
