//! What the two sides tell each other of whom they trust.

use std::collections::BTreeMap;
use std::sync::Arc;

use eastway_identity::AnchorDer;

use super::{Driver, Environment, Stop};

/// What peers said that their trust domains are known by: the last word of any of their replicas, not checked.
pub type HeardAnchors = BTreeMap<Arc<str>, Arc<[AnchorDer]>>;

impl Environment {
    pub(super) fn hear(&self, peer: &Arc<str>, anchors: Vec<AnchorDer>) {
        self.heard.send_if_modified(|heard| {
            if heard.get(peer).is_some_and(|known| **known == *anchors) {
                return false;
            }
            Arc::make_mut(heard).insert(Arc::clone(peer), anchors.into());
            true
        });
    }
}

impl Driver {
    /// Says which keys of the other side's CA are accepted here, if it was not said yet.
    pub(super) fn tell_accepts(&mut self) -> Stop {
        let pins = self.environment.trust.pins_of(self.shared.peer());
        if pins == self.told_accepts {
            return Ok(());
        }
        let actions = self.session.accepts(&pins);
        self.told_accepts = pins;
        self.send(actions)
    }

    /// Says what this trust domain is known by, if it was not said yet.
    pub(super) fn tell_anchors(&mut self) -> Stop {
        let anchors = Arc::clone(&self.environment.anchors.borrow());
        if anchors == self.told_anchors {
            return Ok(());
        }
        let actions = self.session.anchors(&anchors);
        self.told_anchors = anchors;
        self.send(actions)
    }
}
