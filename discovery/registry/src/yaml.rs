//! A strict YAML reader that reports every mistake of a file at once, each with its place.
//!
//! A text becomes a tree of nodes with spans ([`read`]); a tree becomes a struct by serde
//! ([`Document::decode`]). Wherever the struct has a [`Field`], a mistake inside it is reported and
//! the rest goes on; unknown keys are reported with the key that was probably meant. What serde
//! cannot know (grammars, ranges, two fields that exclude each other) is checked afterwards with a
//! [`Context`], which reports in the same way.
//!
//! Shapes that are large and not ours, of which a part is read, need no structs: a table of their keys is enough ([`Keys`]).
//!
//! Refused on purpose: anchors, aliases and merge keys (bombs, and values that are not where one
//! looks), tags, directives, duplicate keys, deep nesting, texts over a limit. A value that YAML
//! takes for a number or a boolean is not accepted as text, so that a file means the same here, to
//! an editor with our JSON Schema, and to the Kubernetes API.

mod context;
mod decode;
mod field;
mod tree;
mod walk;

use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

pub use context::{Context, Place};
pub use field::{At, Field, List, Text};
pub use tree::{Document, NodeId};
pub use walk::Keys;

use crate::diagnostic::{Code, Diagnostic, Diagnostics, Severity, Source, Span};

/// `apiVersion` of all our files.
pub const API_VERSION: &str = "eastway.dev/v1alpha1";

/// Largest configuration file, bytes.
pub const MAX_CONFIG_BYTES: usize = 1 << 20;

/// Deepest nesting of lists and mappings; our files need seven.
const MAX_DEPTH: usize = 32;

/// Reads a file of at most `max_bytes`.
///
/// # Errors
/// A diagnostic that says why: it cannot be read, is too large, or is not text.
pub fn read_file(path: &Path, max_bytes: usize) -> Result<Arc<Source>, Box<Diagnostic>> {
    let name = path.display().to_string();
    let bytes = read_bytes(path, max_bytes).map_err(|reason| Box::new(unreadable(&name, &reason)))?;
    from_bytes(&name, bytes, max_bytes).map(Arc::new)
}

/// Reads at most `max_bytes` and one more, which tells "full" from "too large" whatever the
/// metadata claims.
///
/// # Errors
/// Why it cannot be read, in words.
pub fn read_bytes(path: &Path, max_bytes: usize) -> Result<Vec<u8>, String> {
    let reason = |error: std::io::Error| reason(&error);
    // Before it is opened: opening a FIFO would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(reason)?;
    if metadata.is_dir() {
        return Err("it is a folder, not a file".to_owned());
    }
    if !metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let file = std::fs::File::open(path).map_err(reason)?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(reason)?;
    Ok(bytes)
}

/// A file or folder cannot be read, for a reason as [`read_bytes`] gives it.
#[must_use]
pub fn unreadable(name: &str, reason: &str) -> Diagnostic {
    Diagnostic::of_file(Severity::Error, Code::Unreadable, name, format!("cannot read: {reason}"))
}

/// A file has more than `max_bytes`.
#[must_use]
pub fn too_large(name: &str, max_bytes: usize) -> Diagnostic {
    Diagnostic::of_file(Severity::Error, Code::TooLarge, name, format!("larger than {}", size(max_bytes)))
}

/// Takes `bytes` as the contents of a file named `name`.
///
/// # Errors
/// As [`read_file`].
pub fn from_bytes(name: &str, bytes: Vec<u8>, max_bytes: usize) -> Result<Source, Box<Diagnostic>> {
    if bytes.len() > max_bytes {
        return Err(Box::new(too_large(name, max_bytes)));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Source::new(name, text)),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let line = error.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count() + 1;
            let message = format!("not UTF-8 text (first bad byte in line {line})");
            let help = "save the file as UTF-8";
            Err(Box::new(Diagnostic::of_file(Severity::Error, Code::Syntax, name, message).with_help(help)))
        }
    }
}

/// Why a read failed, in the words of the operating system without its numbers.
#[must_use]
pub fn reason(error: &std::io::Error) -> String {
    let known = [
        (ErrorKind::NotFound, "no such file or folder"),
        (ErrorKind::PermissionDenied, "permission denied"),
        (ErrorKind::IsADirectory, "it is a folder, not a file"),
        (ErrorKind::NotADirectory, "a part of the path is not a folder"),
    ];
    let words = known.into_iter().find(|(kind, _)| *kind == error.kind());
    words.map_or_else(|| error.to_string(), |(_, words)| words.to_owned())
}

fn size(bytes: usize) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{bytes} bytes") }
}

/// Parses all documents of `source`. What is wrong goes to `sink`; after an error of syntax the
/// documents before it are still returned. Empty documents are left out.
pub fn read(source: &Arc<Source>, sink: &mut Diagnostics) -> Vec<Arc<Document>> {
    tree::build(source, sink)
}

/// Parses a file that must consist of exactly one document. `what` names it for messages, e.g.
/// `Peer`.
pub fn read_one(source: &Arc<Source>, what: &str, sink: &mut Diagnostics) -> Option<Arc<Document>> {
    let had_errors = sink.error_count();
    let mut documents = read(source, sink).into_iter();
    let first = documents.next();
    if let Some(second) = documents.next() {
        let message = format!("a second document; one {what} per file");
        let span = second.span(second.root());
        let diagnostic = Diagnostic::at(Severity::Error, Code::Syntax, source, span, message);
        sink.push(diagnostic.with_help("move it to a file of its own"));
    }
    if first.is_none() && sink.error_count() == had_errors {
        let message = format!("is empty; a {what} was expected");
        let span = Span { line: 1, column: 1, length: 1 };
        sink.push(Diagnostic::at(Severity::Error, Code::Empty, source, span, message));
    }
    first
}

#[cfg(test)]
mod tests;
