//! The grammar of names in a header: parsed once, then trusted.

use std::fmt;
use std::sync::Arc;

/// Longest DNS-1123 label.
const MAX_LABEL: usize = 63;
/// Longest endpoint id and longest subset value.
const MAX_ID: usize = 64;
/// Longest subset key: an optional DNS prefix of 253, a slash and 63 (Kubernetes label keys).
const MAX_KEY: usize = 253 + 1 + MAX_LABEL;

/// Which rule a name breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No characters.
    #[error("is empty")]
    Empty,
    /// Longer than its kind of name may be.
    #[error("is too long")]
    TooLong,
    /// A character that its kind of name may not have, or has at an end.
    #[error("has a character that is not allowed in it")]
    Alphabet,
    /// An address in place of a name: a number reads as an IPv4 address (`inet_aton`).
    #[error("is an address, not a name")]
    Address,
    /// Not `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    #[error("is not the identity of a workload")]
    Identity,
}

/// A DNS-1123 label: 1 to 63 bytes of `a-z`, `0-9` and `-`, with a letter or digit at both ends.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(Arc<str>);

impl Label {
    /// Checks the grammar.
    ///
    /// # Errors
    /// [`NameError`] says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check_label(text)?;
        Ok(Self(Arc::from(text)))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Refuses labels that `inet_aton` reads as an IPv4 address: decimal, octal or `0x` numbers.
    /// Other spellings of addresses have dots or colons and are no labels.
    pub(super) fn no_address(self) -> Result<Self, NameError> {
        let hex = self.0.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if hex || self.0.bytes().all(|byte| byte.is_ascii_digit()) { Err(NameError::Address) } else { Ok(self) }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// An endpoint by the opaque name that its owner gave it: 1 to 64 bytes of `a-z`, `0-9` and `-`.
/// Only the owner can turn it into an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointRef(Arc<str>);

impl EndpointRef {
    /// Checks length and alphabet.
    ///
    /// # Errors
    /// [`NameError`] says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check_length(text, MAX_ID)?;
        if !text.bytes().all(|byte| is_inner(byte) || byte == b'-') {
            return Err(NameError::Alphabet);
        }
        Ok(Self(Arc::from(text)))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A W3C `traceparent`: version, trace id, span id and flags, in lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traceparent(Arc<str>);

impl Traceparent {
    /// Accepts version 00 only, whose length is fixed (W3C Trace Context §3.2.2).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let mut hex = |length: usize| {
            parts.next().filter(|part| {
                part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            })
        };
        let (version, trace, span) = (hex(2)?, hex(32)?, hex(16)?);
        hex(2)?;
        let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
        (version == "00" && !zero(trace) && !zero(span) && parts.next().is_none()).then(|| Self(Arc::from(text)))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A key and a value of a subset, as Kubernetes labels are written.
pub(super) fn check_label_pair(key: &str, value: &str) -> Result<(), NameError> {
    check_length(key, MAX_KEY)?;
    let name = match key.split_once('/') {
        Some((prefix, name)) => {
            check_length(prefix, 253)?;
            prefix.split('.').try_for_each(check_label)?;
            name
        }
        None => key,
    };
    check_qualified(name)?;
    if value.is_empty() { Ok(()) } else { check_qualified(value) }
}

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>` and no other form.
pub(super) fn check_workload_uri(uri: &str) -> Result<(), NameError> {
    let mut parts = uri.strip_prefix("spiffe://").ok_or(NameError::Identity)?.split('/');
    let domain = parts.next().filter(|domain| (1..=255).contains(&domain.len()));
    let domain =
        domain.is_some_and(|text| text.bytes().all(|byte| is_inner(byte) || matches!(byte, b'-' | b'.' | b'_')));
    let path = [parts.next(), parts.next(), parts.next(), parts.next(), parts.next()];
    match path {
        [Some("ns"), Some(namespace), Some("sa"), Some(account), None] if domain => {
            check_label(namespace).and_then(|()| check_label(account)).map_err(|_| NameError::Identity)
        }
        _ => Err(NameError::Identity),
    }
}

fn check_label(text: &str) -> Result<(), NameError> {
    check_length(text, MAX_LABEL)?;
    let good = text.bytes().all(|byte| is_inner(byte) || byte == b'-');
    if good && !text.starts_with('-') && !text.ends_with('-') { Ok(()) } else { Err(NameError::Alphabet) }
}

/// The name part of a Kubernetes label key, and a label value.
fn check_qualified(text: &str) -> Result<(), NameError> {
    check_length(text, MAX_LABEL)?;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    if text.bytes().all(good) && end(text.bytes().next()) && end(text.bytes().last()) {
        Ok(())
    } else {
        Err(NameError::Alphabet)
    }
}

fn check_length(text: &str, max: usize) -> Result<(), NameError> {
    match text.len() {
        0 => Err(NameError::Empty),
        length if length > max => Err(NameError::TooLong),
        _ => Ok(()),
    }
}

fn is_inner(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}
