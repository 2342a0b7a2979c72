//! Reports mistakes that show only after decoding, at the place of the value.

use std::fmt;
use std::sync::Arc;

use super::field::{At, Field};
use super::tree::{Document, NodeId};
use crate::diagnostic::{Code, Diagnostic, Diagnostics, Severity};

/// One document while its values are checked.
pub struct Context<'a> {
    pub(super) document: &'a Arc<Document>,
    pub(super) sink: &'a mut Diagnostics,
}

impl<'a> Context<'a> {
    /// Reports about `document` to `sink`.
    pub fn new(document: &'a Arc<Document>, sink: &'a mut Diagnostics) -> Self {
        Self { document, sink }
    }

    /// The outermost node.
    #[must_use]
    pub fn root(&self) -> NodeId {
        self.document.root()
    }

    /// A place to come back to when all files are known.
    #[must_use]
    pub fn place(&self, at: NodeId) -> Place {
        Place { document: Arc::clone(self.document), at }
    }

    /// An error at `at`.
    pub fn error(&mut self, at: NodeId, code: Code, message: impl Into<String>) {
        self.sink.push(diagnostic(self.document, at, Severity::Error, code, message.into()));
    }

    /// An error with advice.
    pub fn error_help(&mut self, at: NodeId, code: Code, message: impl Into<String>, help: impl Into<String>) {
        self.sink.push(diagnostic(self.document, at, Severity::Error, code, message.into()).with_help(help));
    }

    /// A warning.
    pub fn warn(&mut self, at: NodeId, code: Code, message: impl Into<String>) {
        self.sink.push(diagnostic(self.document, at, Severity::Warning, code, message.into()));
    }

    /// The value of `field`, or a report that `key` is missing in `parent`; `what` says what
    /// belongs there.
    pub fn required<'f, T>(&mut self, parent: NodeId, key: &str, field: &'f Field<T>, what: &str) -> Option<&'f At<T>> {
        if matches!(field, Field::Absent) {
            let source = self.document.source();
            if !self.sink.is_misspelt(source.name(), &self.document.path_of_key(parent, key)) {
                let (span, message) = (self.document.key_span(parent), format!("{key} is required ({what})"));
                let report = Diagnostic::at(Severity::Error, Code::Missing, source, span, message);
                self.sink.push(report.with_path(self.document.path(parent)));
            }
        }
        field.get()
    }

    /// `text` by the grammar `parse`, or a report.
    pub fn parse<S: AsRef<str>, T, E: fmt::Display>(
        &mut self,
        text: &At<S>,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        match parse(text.value.as_ref()) {
            Ok(value) => Some(value),
            Err(error) => {
                self.error(text.at, Code::Value, error.to_string());
                None
            }
        }
    }

    /// What `check` makes of a value, or a report.
    pub fn checked<V, T, E: fmt::Display>(
        &mut self,
        value: &At<V>,
        check: impl FnOnce(&V) -> Result<T, E>,
    ) -> Option<T> {
        match check(&value.value) {
            Ok(checked) => Some(checked),
            Err(error) => {
                self.error(value.at, Code::Value, error.to_string());
                None
            }
        }
    }

    /// Checks `apiVersion` and `kind` of a file of kind `wanted`.
    pub fn header(&mut self, root: NodeId, api_version: &Field<String>, kind: &Field<String>, wanted: &str) {
        for (key, field, wanted) in [("apiVersion", api_version, super::API_VERSION), ("kind", kind, wanted)] {
            let Some(text) = self.required(root, key, field, wanted) else { continue };
            if text.value != wanted {
                let found = crate::diagnostic::quoted(&text.value);
                self.error(text.at, Code::Kind, format!("must be {wanted}, not {found}"));
            }
        }
    }

    /// [`Self::required`] and [`Self::parse`].
    pub fn required_parse<S: AsRef<str>, T, E: fmt::Display>(
        &mut self,
        parent: NodeId,
        key: &str,
        field: &Field<S>,
        what: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.required(parent, key, field, what)?;
        self.parse(text, parse)
    }

    /// The good items of `list` by the grammar `parse`, each with its place.
    pub fn parse_items<S: AsRef<str>, T, E: fmt::Display>(
        &mut self,
        list: &Field<Vec<Field<S>>>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<At<T>> {
        list.items().filter_map(|item| Some(At { value: self.parse(item, &parse)?, at: item.at })).collect()
    }
}

/// A node of some document, kept for checks over several files.
#[derive(Clone, Debug)]
pub struct Place {
    document: Arc<Document>,
    at: NodeId,
}

impl Place {
    /// An error here.
    #[must_use]
    pub fn error(&self, code: Code, message: impl Into<String>) -> Diagnostic {
        diagnostic(&self.document, self.at, Severity::Error, code, message.into())
    }

    /// A warning here.
    #[must_use]
    pub fn warning(&self, code: Code, message: impl Into<String>) -> Diagnostic {
        diagnostic(&self.document, self.at, Severity::Warning, code, message.into())
    }
}

/// `file:line`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.document.source().name(), self.document.span(self.at).line)
    }
}

fn diagnostic(document: &Document, at: NodeId, severity: Severity, code: Code, message: String) -> Diagnostic {
    Diagnostic::at(severity, code, document.source(), document.span(at), message).with_path(document.path(at))
}
