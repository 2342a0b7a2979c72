//! Texts that a peer chose: their grammar, and one copy of those that many records share.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use eastway_model::WorkloadIdentity;
use eastway_model::name::{check_label_key, check_label_value};
use eastway_proto::federation::v1 as wire;

use crate::close::excerpt;
use crate::reject::RejectReason;

/// One copy of each text that many records share. It forgets all when it is full, which costs
/// memory only.
#[derive(Debug, Default)]
pub struct Texts {
    texts: HashSet<Arc<str>>,
    identities: HashMap<Box<str>, WorkloadIdentity>,
}

/// Texts kept before all are forgotten.
const MAX_TEXTS: usize = 4096;

impl Texts {
    /// A shared copy.
    pub fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        if self.texts.len() >= MAX_TEXTS {
            self.texts.clear();
        }
        let shared: Arc<str> = Arc::from(text);
        self.texts.insert(Arc::clone(&shared));
        shared
    }

    /// The identity of this URI, if it is one.
    pub fn identity(&mut self, uri: &str) -> Option<WorkloadIdentity> {
        if let Some(known) = self.identities.get(uri) {
            return Some(known.clone());
        }
        let identity = WorkloadIdentity::parse(uri)?;
        if self.identities.len() >= MAX_TEXTS {
            self.identities.clear();
        }
        self.identities.insert(Box::from(uri), identity.clone());
        Some(identity)
    }
}

/// How keys and values of pairs may look.
#[derive(Clone, Copy)]
pub(super) enum PairKind {
    /// Kubernetes labels: values of at most 63 bytes of letters, digits, `-`, `_`, `.`.
    Label,
    /// Kubernetes annotations: values of at most 4 KiB without control characters other than tab
    /// and newline, and without those that turn the direction of writing.
    Annotation,
}

/// Checks pairs that must be sorted by key and unique.
pub(super) fn pairs_from_wire(
    pairs: &[wire::Pair],
    field: &'static str,
    kind: PairKind,
    max: usize,
    texts: &mut Texts,
) -> Result<BTreeMap<Arc<str>, Arc<str>>, RejectReason> {
    if pairs.len() > max {
        return Err(RejectReason::TooMany { what: field, count: pairs.len(), max });
    }
    if !pairs.is_sorted_by(|a, b| a.key < b.key) {
        return Err(RejectReason::NotInOrder(field));
    }
    let mut out = BTreeMap::new();
    for wire::Pair { key, value } in pairs {
        if check_label_key(key).is_err() {
            return Err(RejectReason::BadText { field, text: excerpt(key, 64) });
        }
        let good = match kind {
            PairKind::Label => check_label_value(value).is_ok(),
            PairKind::Annotation => value.len() <= 4096 && !value.chars().any(is_dangerous),
        };
        if !good {
            return Err(RejectReason::BadText { field, text: excerpt(value, 64) });
        }
        let value = match kind {
            PairKind::Label => texts.share(value),
            PairKind::Annotation => Arc::from(value.as_str()),
        };
        out.insert(texts.share(key), value);
    }
    Ok(out)
}

pub(super) fn pairs_to_wire<'a>(pairs: impl Iterator<Item = (&'a Arc<str>, &'a Arc<str>)>) -> Vec<wire::Pair> {
    pairs.map(|(key, value)| wire::Pair { key: key.to_string(), value: value.to_string() }).collect()
}

/// A text of at most 63 bytes of printable ASCII without spaces; empty is none.
pub(super) fn token_from_wire(
    text: &str,
    field: &'static str,
    texts: &mut Texts,
) -> Result<Option<Arc<str>>, RejectReason> {
    if text.is_empty() {
        return Ok(None);
    }
    if text.len() > 63 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(RejectReason::BadText { field, text: excerpt(text, 64) });
    }
    Ok(Some(texts.share(text)))
}

fn is_dangerous(c: char) -> bool {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || (c.is_control() && c != '\n' && c != '\t')
}
