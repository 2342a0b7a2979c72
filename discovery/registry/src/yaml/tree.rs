//! The tree of a YAML document, with the span of every node.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use serde_saphyr::granit_parser::{self, Event, Marker, Parser, ScalarStyle, ScanError};

use crate::diagnostic::{Code, Diagnostic, Diagnostics, Severity, Source, Span, quoted};

/// A node of one [`Document`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(super) u32);

impl NodeId {
    /// No node: the value did not come from a file.
    pub(super) const NONE: Self = Self(u32::MAX);
}

/// One document of a file.
#[derive(Debug)]
pub struct Document {
    source: Arc<Source>,
    nodes: Vec<Node>,
    root: NodeId,
}

#[derive(Debug)]
struct Node {
    parent: Option<(NodeId, Step)>,
    span: Span,
    value: Value,
}

#[derive(Debug)]
enum Step {
    Key(Arc<str>, Span),
    Index(usize),
}

#[derive(Debug)]
pub(super) enum Value {
    /// `plain` is unquoted: it may be a number, a boolean or null.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<NodeId>),
    Map(Vec<Entry>),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Arc<str>,
    pub(super) key_span: Span,
    pub(super) value: NodeId,
}

impl Document {
    /// The file.
    #[must_use]
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// The outermost node.
    #[must_use]
    pub fn root(&self) -> NodeId {
        self.root
    }

    /// Where `node` is.
    #[must_use]
    pub fn span(&self, node: NodeId) -> Span {
        self.node(node).map_or(Span { line: 1, column: 1, length: 1 }, |node| node.span)
    }

    /// Where the key of `node` is, or `node` itself if it has none.
    pub(super) fn key_span(&self, node: NodeId) -> Span {
        match self.node(node).and_then(|node| node.parent.as_ref()) {
            Some((_, Step::Key(_, span))) => *span,
            _ => self.span(node),
        }
    }

    /// How to get to `node`, e.g. `spec.addresses[0]`.
    #[must_use]
    pub fn path(&self, node: NodeId) -> String {
        let mut steps = Vec::new();
        let mut next = self.node(node);
        while let Some((parent, step)) = next.and_then(|node| node.parent.as_ref()) {
            steps.push(step);
            next = self.node(*parent);
        }
        let mut path = String::new();
        for step in steps.into_iter().rev() {
            // Writing to a String cannot fail.
            let _unused = match step {
                Step::Key(key, _) if path.is_empty() => write!(path, "{}", shown_key(key)),
                Step::Key(key, _) => write!(path, ".{}", shown_key(key)),
                Step::Index(index) => write!(path, "[{index}]"),
            };
        }
        path
    }

    /// The path that `key` has or would have in the mapping `node`.
    pub(super) fn path_of_key(&self, node: NodeId, key: &str) -> String {
        let path = self.path(node);
        if path.is_empty() { shown_key(key) } else { format!("{path}.{}", shown_key(key)) }
    }

    /// The text at `keys` from the root, e.g. `["kind"]`, however it is written.
    #[must_use]
    pub fn text(&self, keys: &[&str]) -> Option<&str> {
        let mut node = self.root;
        for key in keys {
            node = self.child(node, key)?;
        }
        match self.value(node)? {
            Value::Scalar { text, .. } => Some(text),
            Value::List(_) | Value::Map(_) => None,
        }
    }

    /// The node under `key` of the mapping `node`.
    #[must_use]
    pub fn child(&self, node: NodeId, key: &str) -> Option<NodeId> {
        match self.value(node)? {
            Value::Map(entries) => entries.iter().find(|entry| &*entry.key == key).map(|entry| entry.value),
            Value::Scalar { .. } | Value::List(_) => None,
        }
    }

    /// Takes out what is at `keys` from the root, as if nobody had written it.
    pub fn remove(&mut self, keys: &[&str]) {
        let Some((last, parents)) = keys.split_last() else { return };
        let parent = parents.iter().try_fold(self.root, |node, key| self.child(node, key));
        let index = parent.and_then(|parent| usize::try_from(parent.0).ok());
        if let Some(Node { value: Value::Map(entries), .. }) = index.and_then(|index| self.nodes.get_mut(index)) {
            entries.retain(|entry| &*entry.key != *last);
        }
    }

    pub(super) fn value(&self, node: NodeId) -> Option<&Value> {
        self.node(node).map(|node| &node.value)
    }

    fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(usize::try_from(id.0).ok()?)
    }
}

/// A key as part of a path: plain if it is a plain word.
fn shown_key(key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '.');
    if !key.is_empty() && key.len() <= 80 && key.chars().all(plain) { key.to_owned() } else { quoted(key) }
}

pub(super) fn build(source: &Arc<Source>, sink: &mut Diagnostics) -> Vec<Arc<Document>> {
    let options = granit_parser::options! {
        disallow_directives: true,
        emit_comments: false,
        flow_nesting_limit: super::MAX_DEPTH,
        block_nesting_limit: super::MAX_DEPTH,
    };
    let mut builder = Builder { source, sink, documents: Vec::new(), nodes: Vec::new(), open: Vec::new() };
    for event in Parser::new_from_str_with_options(source.text(), options) {
        match event {
            Ok((event, span)) => builder.event(event, span),
            Err(error) => {
                builder.syntax_error(&error);
                break;
            }
        }
    }
    builder.documents
}

struct Builder<'a> {
    source: &'a Arc<Source>,
    sink: &'a mut Diagnostics,
    documents: Vec<Arc<Document>>,
    /// Of the document being built.
    nodes: Vec<Node>,
    /// The lists and mappings around the next node.
    open: Vec<Open>,
}

struct Open {
    node: NodeId,
    /// In a mapping: the key whose value comes next.
    key: Option<Key>,
    is_map: bool,
    /// The keys so far and their lines.
    keys: HashMap<Arc<str>, u32>,
}

enum Key {
    /// As usual.
    Good(Arc<str>, Span),
    /// Already reported; its value belongs nowhere.
    Bad,
}

impl Builder<'_> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the rest are comments, and events that only options ask for")]
    fn event(&mut self, event: Event<'_>, span: granit_parser::Span) {
        let at = self.span(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse(anchor, tag.is_some(), at);
                let plain = matches!(style, ScalarStyle::Plain);
                if self.expects_key() {
                    self.key(&text, at);
                } else {
                    self.add(Value::Scalar { text: text.into_owned(), plain }, at);
                }
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.refuse(anchor, tag.is_some(), at);
                self.start(Value::List(Vec::new()), false, at);
            }
            Event::MappingStart(_, anchor, tag) => {
                self.refuse(anchor, tag.is_some(), at);
                self.start(Value::Map(Vec::new()), true, at);
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(_) => {
                self.refuse(1, false, at);
                self.unusable(at);
            }
            Event::DocumentStart(..) => {
                self.nodes.clear();
                self.open.clear();
            }
            Event::DocumentEnd => self.finish_document(),
            _ => {}
        }
    }

    fn finish_document(&mut self) {
        let nodes = std::mem::take(&mut self.nodes);
        let empty = match nodes.first().map(|node| &node.value) {
            None => true,
            Some(Value::Scalar { text, plain }) => *plain && is_null(text),
            Some(Value::List(_) | Value::Map(_)) => false,
        };
        if !empty {
            self.documents.push(Arc::new(Document { source: Arc::clone(self.source), nodes, root: NodeId(0) }));
        }
    }

    fn expects_key(&self) -> bool {
        self.open.last().is_some_and(|open| open.is_map && open.key.is_none())
    }

    fn key(&mut self, text: &str, at: Span) {
        let Some(open) = self.open.last_mut() else { return };
        let Some(earlier) = open.keys.get(text).copied() else {
            let key = Arc::<str>::from(text);
            open.keys.insert(Arc::clone(&key), at.line);
            open.key = Some(Key::Good(key, at));
            return;
        };
        open.key = Some(Key::Bad);
        let message = format!("{} is already set in line {earlier}", shown_key(text));
        self.report(Code::DuplicateKey, at, message, Some("keep one of the two"));
    }

    /// Puts a new node where the next one belongs. `None` if that is nowhere.
    fn add(&mut self, value: Value, span: Span) -> Option<NodeId> {
        let id = NodeId(u32::try_from(self.nodes.len()).ok()?);
        let mut parent = None;
        if let Some(open) = self.open.last_mut() {
            let outer = open.node;
            match (self.nodes.get_mut(index(outer)).map(|node| &mut node.value), open.key.take()) {
                (Some(Value::List(items)), _) => {
                    parent = Some((outer, Step::Index(items.len())));
                    items.push(id);
                }
                (Some(Value::Map(entries)), Some(Key::Good(key, key_span))) => {
                    parent = Some((outer, Step::Key(Arc::clone(&key), key_span)));
                    entries.push(Entry { key, key_span, value: id });
                }
                // The value of a bad key: kept out of the tree, but its inside is still read.
                (Some(Value::Map(_)), _) => parent = Some((outer, Step::Key(Arc::from("?"), span))),
                (Some(Value::Scalar { .. }) | None, _) => return None,
            }
        }
        self.nodes.push(Node { parent, span, value });
        Some(id)
    }

    fn start(&mut self, value: Value, is_map: bool, at: Span) {
        if self.expects_key() {
            self.report(Code::Syntax, at, "a key must be a word, not a list or mapping".to_owned(), None);
            if let Some(open) = self.open.last_mut() {
                open.key = Some(Key::Bad);
            }
            // Its value is added after this one has ended; both are dropped.
            let node = self.orphan(value, at);
            self.open.push(Open { node, key: None, is_map, keys: HashMap::new() });
            return;
        }
        let node = self.add(value, at).unwrap_or(NodeId::NONE);
        self.open.push(Open { node, key: None, is_map, keys: HashMap::new() });
    }

    fn orphan(&mut self, value: Value, span: Span) -> NodeId {
        let id = u32::try_from(self.nodes.len()).map_or(NodeId::NONE, NodeId);
        self.nodes.push(Node { parent: None, span, value });
        id
    }

    fn end(&mut self) {
        self.open.pop();
    }

    /// An alias in place of a key or a value.
    fn unusable(&mut self, at: Span) {
        if self.expects_key() {
            if let Some(open) = self.open.last_mut() {
                open.key = Some(Key::Bad);
            }
        } else {
            // Quoted, so that nothing takes it for a missing value.
            self.add(Value::Scalar { text: String::new(), plain: false }, at);
        }
    }

    fn refuse(&mut self, anchor: usize, tag: bool, at: Span) {
        if anchor != 0 {
            let message = "anchors and aliases (&name, *name) are not supported".to_owned();
            self.report(Code::Syntax, at, message, Some("write the value out"));
        }
        if tag {
            self.report(Code::Syntax, at, "tags (!name) are not supported".to_owned(), Some("remove the tag"));
        }
    }

    fn syntax_error(&mut self, error: &ScanError) {
        let span = self.span(granit_parser::Span::empty(*error.marker()));
        let message = format!("not valid YAML at {}:{}: {}", span.line, span.column, error.info());
        self.report(Code::Syntax, span, message, None);
    }

    fn report(&mut self, code: Code, at: Span, message: String, help: Option<&str>) {
        let mut diagnostic = Diagnostic::at(Severity::Error, code, self.source, at, message);
        diagnostic.help = help.map(str::to_owned);
        self.sink.push(diagnostic);
    }

    fn span(&self, span: granit_parser::Span) -> Span {
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let first_line = |start: Marker, end: Marker| {
            let text = start.byte_offset().zip(end.byte_offset());
            let text = text.and_then(|(start, end)| self.source.text().get(start..end)).unwrap_or_default();
            text.lines().next().unwrap_or_default().trim_end().chars().count()
        };
        Span {
            line: number(span.start.line()).max(1),
            column: number(span.start.col()).saturating_add(1),
            length: number(first_line(span.start, span.end)).max(1),
        }
    }
}

fn index(id: NodeId) -> usize {
    usize::try_from(id.0).unwrap_or(usize::MAX)
}

/// Whether YAML 1.2 (core schema, §10.3.2) takes the unquoted text for null.
pub(super) fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}
