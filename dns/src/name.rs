//! Names in zones we answer for: parsed once, kept as lower-case wire format.

use std::fmt;

/// Longest name on the wire, root label included (RFC 1035 §3.1).
pub(crate) const MAX_WIRE: usize = 255;
/// Longest label (RFC 1035 §2.3.4).
pub(crate) const MAX_LABEL: usize = 63;
/// The zone of the Multi-Cluster Services API; its name is fixed by the specification.
pub(crate) const CLUSTERSET: &str = "clusterset.local";

/// Why a text is not a name, or not one we may answer for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No label at all, or an empty one between two dots.
    #[error("{0:?} has an empty label")]
    Empty(String),
    /// A label of more than 63 bytes.
    #[error("{0:?} has a label longer than 63 bytes")]
    LabelTooLong(String),
    /// More than 253 characters.
    #[error("{0:?} is longer than 253 characters")]
    TooLong(String),
    /// A byte that is no letter, digit, `-` or `_`, or a `-` at either end of a label.
    #[error("{0:?} must consist of letters, digits and '-', and each label begin and end with a letter or digit")]
    NotAName(String),
    /// A part of a service's name is not a DNS label.
    #[error("{0:?} is not a DNS label")]
    NotALabel(String),
    /// The name lies in none of the zones of our own.
    #[error("{0} lies in no zone of our own")]
    NotInZone(Fqdn),
    /// The name belongs to a zone or a record this server makes itself.
    #[error("{0} is reserved")]
    Reserved(Fqdn),
}

/// A fully qualified name of ordinary host labels, in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fqdn(Box<[u8]>);

impl Fqdn {
    /// Parses `reviews.shop.example`; a final dot and capital letters are accepted.
    ///
    /// # Errors
    /// [`NameError`] says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.len() > MAX_WIRE - 2 {
            return Err(NameError::TooLong(text.to_owned()));
        }
        let mut wire = Vec::with_capacity(name.len() + 2);
        for label in name.split('.') {
            if label.is_empty() {
                return Err(NameError::Empty(text.to_owned()));
            }
            if label.len() > MAX_LABEL {
                return Err(NameError::LabelTooLong(text.to_owned()));
            }
            if !is_label(label.as_bytes()) {
                return Err(NameError::NotAName(text.to_owned()));
            }
            push_label(&mut wire, label);
        }
        wire.push(0);
        Ok(Self(wire.into_boxed_slice()))
    }

    /// The name in wire format: lower-case labels with their lengths, and the root.
    pub(crate) fn wire(&self) -> &[u8] {
        &self.0
    }

    /// How many labels the name has, the root not counted.
    pub(crate) fn labels(&self) -> usize {
        labels_of(&self.0).count()
    }

    /// Whether the name is `zone` or lies below it.
    #[must_use]
    pub fn is_within(&self, zone: &Self) -> bool {
        ancestors(&self.0).any(|suffix| suffix == zone.wire()) || zone.wire().len() == 1
    }
}

impl fmt::Display for Fqdn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut dot = "";
        for label in labels_of(&self.0) {
            write!(f, "{dot}{}", String::from_utf8_lossy(label))?;
            dot = ".";
        }
        Ok(())
    }
}

impl fmt::Debug for Fqdn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for Fqdn {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// Whether the bytes are a host label (RFC 1123): letters, digits and `-`, with a letter or digit
/// at both ends. Capital letters count.
pub(crate) fn is_label(label: &[u8]) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    label.len() <= MAX_LABEL
        && edge(label.first())
        && edge(label.last())
        && label.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}

/// Appends one label in lower case. The caller has checked its length.
pub(crate) fn push_label(wire: &mut Vec<u8>, label: &str) {
    debug_assert!(label.len() <= MAX_LABEL, "labels are checked before they are written");
    wire.push(u8::try_from(label.len()).unwrap_or(0));
    wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
}

/// The labels of an uncompressed wire name, without the root.
pub(crate) fn labels_of(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = wire;
    std::iter::from_fn(move || {
        let (length, tail) = rest.split_first()?;
        if *length == 0 {
            return None;
        }
        let (label, tail) = tail.split_at_checked(usize::from(*length))?;
        rest = tail;
        Some(label)
    })
}

/// The name itself and every name above it, the root excluded, longest first.
pub(crate) fn ancestors(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = wire;
    std::iter::from_fn(move || {
        let here = rest;
        let (length, tail) = rest.split_first()?;
        if *length == 0 {
            return None;
        }
        rest = tail.get(usize::from(*length)..)?;
        Some(here)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_wire_format() {
        let name = Fqdn::parse("Reviews.Shop.example.").unwrap();
        assert_eq!(name.wire(), b"\x07reviews\x04shop\x07example\x00");
        assert_eq!(name.to_string(), "reviews.shop.example");
        assert_eq!(name.labels(), 3);
        assert!(name.is_within(&Fqdn::parse("shop.example").unwrap()));
        assert!(name.is_within(&name));
        assert!(!name.is_within(&Fqdn::parse("hop.example").unwrap()));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(64);
        let deep = vec!["a"; 128].join(".");
        for text in ["", ".", "a..b", "-a.b", "a-.b", "a b", "_http.a", "ä.b", &long, &deep] {
            assert!(Fqdn::parse(text).is_err(), "{text:?}");
        }
    }
}
