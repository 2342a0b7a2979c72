//! Names that cannot be wrong: parsed once where they enter, then trusted.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// Longest label of a DNS name (RFC 1035 §2.3.4).
pub const MAX_LABEL: usize = 63;

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text has no characters.
    #[error("is empty")]
    Empty,
    /// More than [`MAX_LABEL`] bytes (or 15 for a port name).
    #[error("is {0} bytes long; at most {1} are allowed")]
    TooLong(usize, usize),
    /// A byte other than a lower-case letter, a digit or `-`, or a `-` at either end.
    #[error("must consist of lower-case letters, digits and '-', and begin and end with a letter or digit")]
    NotALabel,
    /// A service's name that `inet_aton` reads as an IPv4 address: a decimal, octal or `0x` number.
    #[error("is a number, and numbers are read as addresses; give it a letter that is not hexadecimal")]
    Number,
    /// Not of the form `namespace/name`.
    #[error("must have the form namespace/name")]
    NotAKey,
}

/// A DNS-1123 label: 1 to 63 bytes of `a-z`, `0-9` and `-`, with a letter or digit at both ends.
/// Namespaces, services, service accounts and clusters are all named by one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(Arc<str>);

impl Label {
    /// Checks the grammar.
    ///
    /// # Errors
    /// [`NameError`] says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check_label(text, MAX_LABEL)?;
        Ok(Self(Arc::from(text)))
    }

    /// Checks the grammar of a service's name: no address can be one, since connections name what they
    /// want (invariant I1).
    ///
    /// # Errors
    /// [`NameError`] says which rule the text breaks.
    pub fn parse_service(text: &str) -> Result<Self, NameError> {
        let label = Self::parse(text)?;
        let hex = text.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if hex || text.bytes().all(|byte| byte.is_ascii_digit()) { Err(NameError::Number) } else { Ok(label) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_label(text: &str, max: usize) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > max {
        return Err(NameError::TooLong(text.len(), max));
    }
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !text.bytes().all(inner) || text.starts_with('-') || text.ends_with('-') {
        return Err(NameError::NotALabel);
    }
    Ok(())
}

/// The same text, not a copy of it.
impl From<&Label> for Arc<str> {
    fn from(label: &Label) -> Self {
        Self::clone(&label.0)
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

impl Borrow<str> for Label {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Label {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl serde::Serialize for Label {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// The name of a cluster, unique in its clusterset (KEP-2149: one RFC 1123 label).
pub type ClusterName = Label;

/// An IANA service name as Kubernetes uses it for ports: a [`Label`] of at most 15 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct PortName(Label);

impl PortName {
    /// Checks the grammar.
    ///
    /// # Errors
    /// [`NameError`] says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check_label(text, 15)?;
        Ok(Self(Label(Arc::from(text))))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which service: the same key in two clusters is the same service (namespace sameness, KEP-1645).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The namespace.
    pub namespace: Label,
    /// The service's name in it.
    pub name: Label,
}

impl ServiceKey {
    /// Parses `namespace` and `name`.
    ///
    /// # Errors
    /// [`NameError`] of the first part that breaks a rule.
    pub fn parse(namespace: &str, name: &str) -> Result<Self, NameError> {
        Ok(Self { namespace: Label::parse(namespace)?, name: Label::parse_service(name)? })
    }
}

impl std::str::FromStr for ServiceKey {
    type Err = NameError;

    /// Parses `namespace/name`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = text.split_once('/').ok_or(NameError::NotAKey)?;
        Self::parse(namespace, name)
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for ServiceKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a pair is no Kubernetes label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelPairError {
    /// The key.
    #[error(
        "a label's key must be letters, digits, '-', '_' and '.' with a letter or digit at both ends, at most 63 of them, and may have the prefix of a DNS name and '/'"
    )]
    Key,
    /// The value.
    #[error(
        "a label's value must be empty or letters, digits, '-', '_' and '.' with a letter or digit at both ends, at most 63 of them"
    )]
    Value,
}

/// Checks a label such as `version: v2`: what Kubernetes accepts, registries, policies and peers may say.
///
/// # Errors
/// [`LabelPairError`].
pub fn check_label_pair(key: &str, value: &str) -> Result<(), LabelPairError> {
    check_label_key(key)?;
    check_label_value(value)
}

/// Checks the key of a label or annotation: an optional DNS name of at most 253 bytes and `/`, then a name.
///
/// # Errors
/// [`LabelPairError::Key`].
pub fn check_label_key(key: &str) -> Result<(), LabelPairError> {
    let name = match key.split_once('/') {
        Some((prefix, name)) => {
            let good = prefix.len() <= 253 && prefix.split('.').all(|label| check_label(label, MAX_LABEL).is_ok());
            good.then_some(name).ok_or(LabelPairError::Key)?
        }
        None => key,
    };
    is_qualified(name).then_some(()).ok_or(LabelPairError::Key)
}

/// Checks the value of a label; empty is one.
///
/// # Errors
/// [`LabelPairError::Value`].
pub fn check_label_value(value: &str) -> Result<(), LabelPairError> {
    (value.is_empty() || is_qualified(value)).then_some(()).ok_or(LabelPairError::Value)
}

fn is_qualified(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.len() <= MAX_LABEL && text.bytes().all(good) && end(text.bytes().next()) && end(text.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i1_a_number_is_no_service() {
        for bad in ["1", "123", "0x7f", "0x", "2130706433", "017700000001"] {
            assert_eq!(ServiceKey::parse("shop", bad), Err(NameError::Number), "{bad}");
            assert!(format!("shop/{bad}").parse::<ServiceKey>().is_err());
        }
        for good in ["1a", "0x7g", "x", "1-1", "cafe"] {
            assert!(ServiceKey::parse("1", good).is_ok(), "{good}");
        }
    }

    #[test]
    fn label_pairs_are_those_of_kubernetes() {
        let long = "a".repeat(63);
        for (key, value) in [("version", "v2"), ("a", ""), ("app.kubernetes.io/part-of", "A_b.c-1"), (&long, &long)] {
            assert_eq!(check_label_pair(key, value), Ok(()), "{key}: {value}");
        }
        let longer = "a".repeat(64);
        for key in ["", "/a", "a/", "a/b/c", "a!b", ".a", "a-", "A.b/c", "-a.b/c", "a..b/c", "ä", "a b", &longer] {
            assert_eq!(check_label_pair(key, "v"), Err(LabelPairError::Key), "{key}");
        }
        for value in ["v2+x", "-", "a.", "a b", "ü", "a\n", &longer] {
            assert_eq!(check_label_pair("a", value), Err(LabelPairError::Value), "{value}");
        }
    }

    #[test]
    fn labels_follow_dns_1123() {
        for good in ["a", "0", "reviews", "a-b", "x1", &"a".repeat(63)] {
            assert!(Label::parse(good).is_ok(), "{good}");
        }
        let bad = ["", "-a", "a-", "A", "a.b", "a_b", "a\n", "a\0", "é", "../x", "0x7f.1", &"a".repeat(64)];
        for bad in bad {
            assert!(Label::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn keys_are_namespace_slash_name() {
        let key: ServiceKey = "bookinfo/reviews".parse().unwrap();
        assert_eq!(key.to_string(), "bookinfo/reviews");
        assert_eq!("reviews".parse::<ServiceKey>(), Err(NameError::NotAKey));
    }
}
