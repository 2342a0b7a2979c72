//! Reads mappings by tables of their keys instead of structs: objects of others, of which a part is carried out.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::context::Context;
use super::field::{At, Field};
use super::tree::{Document, Entry, NodeId, Value, is_null};
use crate::diagnostic::{Code, Diagnostic, Diagnostics, Severity};

/// The keys that a mapping may have. Beside one that is refused stands what to do instead, beside others nothing.
pub type Keys = &'static [(&'static str, &'static str)];

impl Context<'_> {
    /// Checks the keys of a mapping: unknown and refused ones are reported, each with its place. False: it is none.
    pub fn keys(&mut self, node: NodeId, keys: Keys) -> bool {
        let document = Arc::clone(self.document);
        let Some(entries) = document.entries(node, self.sink) else { return false };
        for entry in entries {
            match keys.iter().find(|(key, _)| *key == &*entry.key) {
                None => {
                    let known: Vec<&str> =
                        keys.iter().filter(|(_, instead)| instead.is_empty()).map(|(key, _)| *key).collect();
                    document.with(node, self.sink, |decoder| decoder.unknown_key(entry, &known));
                }
                Some((_, "")) => {}
                Some(_) if self.is_null(entry.value) => {}
                Some((_, instead)) => {
                    let message = format!("is not done here: {instead}");
                    let (source, span) = (document.source(), entry.key_span);
                    let report = Diagnostic::at(Severity::Error, Code::Value, source, span, message);
                    self.sink.push(report.with_path(document.path(entry.value)));
                }
            }
        }
        true
    }

    /// The node under a key; `None`: it is not there, or null.
    #[must_use]
    pub fn child(&self, node: NodeId, key: &str) -> Option<NodeId> {
        self.document.child(node, key).filter(|child| !self.is_null(*child))
    }

    /// The value under a key. A mistake in it is reported.
    pub fn field<T: DeserializeOwned>(&mut self, node: NodeId, key: &str) -> Field<T> {
        match self.child(node, key) {
            None => Field::Absent,
            Some(at) => match self.document.decode_at(at, self.sink) {
                Some(value) => Field::Set(At { value, at }),
                None => Field::Invalid,
            },
        }
    }

    /// The items of the list under a key, at most `most`. Absent: none.
    pub fn items(&mut self, node: NodeId, key: &str, most: usize) -> Vec<NodeId> {
        let Some(at) = self.child(node, key) else { return Vec::new() };
        let document = Arc::clone(self.document);
        let items = document.items(at, self.sink).unwrap_or_default();
        if items.len() > most {
            self.error(at, Code::TooLarge, format!("has {} items; at most {most} are allowed", items.len()));
        }
        items.iter().take(most).copied().collect()
    }

    /// Keys and values of the mapping under a key, whose keys are free, at most `most`. Absent: none.
    pub fn entries(&mut self, node: NodeId, key: &str, most: usize) -> Vec<(Arc<str>, NodeId)> {
        let Some(at) = self.child(node, key) else { return Vec::new() };
        let document = Arc::clone(self.document);
        let entries = document.entries(at, self.sink).unwrap_or_default();
        if entries.len() > most {
            self.error(at, Code::TooLarge, format!("has {} entries; at most {most} are allowed", entries.len()));
        }
        entries.iter().take(most).map(|entry| (Arc::clone(&entry.key), entry.value)).collect()
    }

    /// The value of a node. A mistake in it is reported.
    pub fn value<T: DeserializeOwned>(&mut self, at: NodeId) -> Option<At<T>> {
        Some(At { value: self.document.decode_at(at, self.sink)?, at })
    }

    /// Whether a node is a mapping or a list with nothing in it, or null.
    #[must_use]
    pub fn is_empty(&self, node: NodeId) -> bool {
        match self.document.value(node) {
            Some(Value::Map(entries)) => entries.is_empty(),
            Some(Value::List(items)) => items.is_empty(),
            Some(Value::Scalar { .. }) => self.is_null(node),
            None => true,
        }
    }

    fn is_null(&self, node: NodeId) -> bool {
        matches!(self.document.value(node), Some(Value::Scalar { text, plain: true }) if is_null(text))
    }
}

impl Document {
    /// The entries of a mapping, or a report that it is none.
    fn entries(&self, node: NodeId, sink: &mut Diagnostics) -> Option<&[Entry]> {
        self.with(node, sink, |decoder| decoder.entries().map_err(|error| decoder.report(error)).ok())
    }

    /// The items of a list, or a report that it is none.
    fn items(&self, node: NodeId, sink: &mut Diagnostics) -> Option<&[NodeId]> {
        self.with(node, sink, |decoder| decoder.items().map_err(|error| decoder.report(error)).ok())
    }
}
