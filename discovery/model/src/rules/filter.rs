//! Which services may cross the border to or from one peer.

use std::fmt;
use std::sync::Arc;

use crate::name::ServiceKey;

/// Namespaces that neither leave nor enter a cluster, whatever a filter says; and so does every
/// namespace that begins with `kube-`.
pub const NEVER_SHARED: [&str; 5] = ["kube-system", "kube-public", "kube-node-lease", "istio-system", "eastway-system"];

/// Whether services of `namespace` never cross a border.
#[must_use]
pub fn never_shared(namespace: &str) -> bool {
    namespace.starts_with("kube-") || NEVER_SHARED.contains(&namespace)
}

/// A pattern for names: letters, digits and `-` stand for themselves, `*` for any run of characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Glob(Arc<str>);

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// No characters, or more than 63.
    #[error("must have 1 to 63 characters")]
    Length,
    /// A character that no name has.
    #[error("must consist of lower-case letters, digits, '-' and '*'")]
    Character,
}

impl Glob {
    /// Checks length and alphabet.
    ///
    /// # Errors
    /// [`GlobError`] says which of the two is wrong.
    pub fn parse(text: &str) -> Result<Self, GlobError> {
        if text.is_empty() || text.len() > crate::name::MAX_LABEL {
            return Err(GlobError::Length);
        }
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'*');
        if !text.bytes().all(good) {
            return Err(GlobError::Character);
        }
        Ok(Self(Arc::from(text)))
    }

    /// The pattern that matches every name.
    #[must_use]
    pub fn any() -> Self {
        Self(Arc::from("*"))
    }

    /// The text of the pattern.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the whole of `name` matches. Time is linear in the length of pattern times name.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some((_, after)) = rest.split_once(part) else { return false };
            rest = after;
        }
        rest.ends_with(last)
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl serde::Serialize for Glob {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// A set of services by name; the default has none. Services of [`never_shared`] namespaces are in
/// no filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(transparent)]
pub struct NameFilter(Vec<NameFilterEntry>);

/// Services whose namespace matches, and whose name matches one of `services`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NameFilterEntry {
    /// Pattern for the namespace.
    pub namespace: Glob,
    /// Patterns for the name, at least one.
    pub services: Vec<Glob>,
}

/// Why a filter is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The pattern names, or would take in, a namespace that never crosses a border.
    #[error("{0} can never be imported or exported")]
    NeverShared(&'static str),
    /// The namespace begins with `kube-`.
    #[error("{0} can never be imported or exported: namespaces that begin with kube- belong to Kubernetes")]
    Kubernetes(Glob),
    /// An entry without a pattern for services selects nothing.
    #[error("namespace {0}: the list of services is empty; leave it out for all services")]
    NoServices(Glob),
}

impl NameFilter {
    /// A filter that has what any of `entries` has.
    ///
    /// # Errors
    /// [`FilterError`] for the first entry that could be meant to match what must never cross.
    pub fn new(entries: Vec<NameFilterEntry>) -> Result<Self, FilterError> {
        entries.iter().try_for_each(NameFilterEntry::check)?;
        Ok(Self(entries))
    }

    /// All services of exactly this namespace.
    ///
    /// # Errors
    /// [`FilterError`] if the namespace must never cross.
    pub fn of_namespace(namespace: &crate::name::Label) -> Result<Self, FilterError> {
        Self::new(vec![NameFilterEntry { namespace: Glob(Arc::from(namespace.as_str())), services: vec![Glob::any()] }])
    }

    /// Whether the filter has this service.
    #[must_use]
    pub fn allows(&self, key: &ServiceKey) -> bool {
        !never_shared(key.namespace.as_str()) && self.0.iter().any(|entry| entry.matches(key))
    }

    /// All that may cross at all: for who is given what another process has filtered already.
    #[must_use]
    pub fn everything() -> Self {
        Self(vec![NameFilterEntry { namespace: Glob::any(), services: vec![Glob::any()] }])
    }

    /// The entries.
    #[must_use]
    pub fn entries(&self) -> &[NameFilterEntry] {
        &self.0
    }

    /// Whether it has nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl NameFilterEntry {
    /// Whether this entry alone has the service; says nothing about [`never_shared`] namespaces.
    #[must_use]
    pub fn matches(&self, key: &ServiceKey) -> bool {
        self.namespace.matches(key.namespace.as_str())
            && self.services.iter().any(|service| service.matches(key.name.as_str()))
    }

    /// Whether the entry may be part of a filter.
    ///
    /// # Errors
    /// [`FilterError`] says what stands against it.
    pub fn check(&self) -> Result<(), FilterError> {
        if let Some(never) = NEVER_SHARED.into_iter().find(|never| self.namespace.matches(never)) {
            return Err(FilterError::NeverShared(never));
        }
        if self.namespace.as_str().starts_with("kube-") {
            return Err(FilterError::Kubernetes(self.namespace.clone()));
        }
        if self.services.is_empty() {
            return Err(FilterError::NoServices(self.namespace.clone()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(entries: &[(&str, &[&str])]) -> Result<NameFilter, FilterError> {
        let glob = |text: &str| Glob::parse(text).unwrap();
        let entry = |(namespace, services): &(&str, &[&str])| NameFilterEntry {
            namespace: glob(namespace),
            services: services.iter().map(|text| glob(text)).collect(),
        };
        NameFilter::new(entries.iter().map(entry).collect())
    }

    #[test]
    fn globs_match_whole_names() {
        let cases = [
            ("reviews", "reviews", true),
            ("reviews", "reviews2", false),
            ("*", "", true),
            ("rev*", "reviews", true),
            ("*ews", "reviews", true),
            ("r*v*s", "reviews", true),
            ("r*v*x", "reviews", false),
            ("a*a", "a", false),
            ("a**b", "ab", true),
            ("*-*-*", "a-b-c", true),
            ("*-*-*", "a-b", false),
            ("*ab*ab", "abab", true),
            ("*ab*ab", "ab", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(Glob::parse(pattern).unwrap().matches(name), expected, "{pattern} {name}");
        }
        for bad in ["", "a.b", "A*", "a?", "[ab]", "a b", &"a".repeat(64)] {
            assert!(Glob::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn p1_nothing_is_shared_by_default() {
        assert!(!NameFilter::default().allows(&"bookinfo/reviews".parse().unwrap()));
    }

    #[test]
    fn p1_system_namespaces_are_refused_in_a_filter_and_never_match() {
        assert_eq!(filter(&[("*", &["*"])]), Err(FilterError::NeverShared("kube-system")));
        assert_eq!(filter(&[("kube-system", &["dns"])]), Err(FilterError::NeverShared("kube-system")));
        assert_eq!(filter(&[("i*", &["*"])]), Err(FilterError::NeverShared("istio-system")));
        assert_eq!(filter(&[("eastway-system", &["*"])]), Err(FilterError::NeverShared("eastway-system")));
        assert!(matches!(filter(&[("kube-flannel", &["*"])]), Err(FilterError::Kubernetes(_))));
        assert!(matches!(filter(&[("shop", &[])]), Err(FilterError::NoServices(_))));
        // Past the check, the match itself still holds the line.
        let sly = NameFilter(vec![NameFilterEntry { namespace: Glob::any(), services: vec![Glob::any()] }]);
        for never in ["kube-system/x", "kube-anything/x", "istio-system/x", "eastway-system/x"] {
            assert!(!sly.allows(&never.parse().unwrap()), "{never}");
        }
        assert!(sly.allows(&"shop/cart".parse().unwrap()));
    }

    #[test]
    fn an_entry_needs_namespace_and_service() {
        let filter = filter(&[("book*", &["reviews", "rat*"]), ("shop", &["*"])]).unwrap();
        for (key, expected) in [
            ("bookinfo/reviews", true),
            ("bookinfo/ratings", true),
            ("bookinfo/details", false),
            ("shop/anything", true),
            ("shop2/anything", false),
        ] {
            assert_eq!(filter.allows(&key.parse().unwrap()), expected, "{key}");
        }
    }

    /// The definition of a pattern, without regard to time.
    fn matches_by_definition(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern, name) {
            ([], rest) => rest.is_empty(),
            ([b'*', after @ ..], rest) => {
                (0..=rest.len()).any(|skipped| matches_by_definition(after, &rest[skipped..]))
            }
            ([wanted, after @ ..], [first, rest @ ..]) => wanted == first && matches_by_definition(after, rest),
            (_, []) => false,
        }
    }

    proptest::proptest! {
        #[test]
        fn globs_match_by_their_definition(pattern in "[ab*]{1,8}", name in "[ab]{0,10}") {
            let expected = matches_by_definition(pattern.as_bytes(), name.as_bytes());
            proptest::prop_assert_eq!(Glob::parse(&pattern).unwrap().matches(&name), expected);
        }
    }
}
