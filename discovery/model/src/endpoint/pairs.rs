//! A map of a few pairs that many records have in common.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Pairs, sorted by key, each key once. A copy is the same allocation, and an empty one has none: a label that 10,000
/// endpoints carry is kept once.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pairs<K, V>(Option<Arc<[(K, V)]>>);

impl<K, V> Pairs<K, V> {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self(None)
    }

    fn all(&self) -> &[(K, V)] {
        self.0.as_deref().unwrap_or_default()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// All, in the order of their keys.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&K, &V)> {
        self.all().iter().map(|(key, value)| (key, value))
    }

    /// Their values, in the order of their keys.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &V> {
        self.all().iter().map(|(_, value)| value)
    }

    /// The value of this key.
    #[must_use]
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let all = self.all();
        let place = all.binary_search_by(|(known, _)| known.borrow().cmp(key)).ok()?;
        all.get(place).map(|(_, value)| value)
    }

    /// Whether there is a value of this key.
    #[must_use]
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }
}

impl<K, V> Default for Pairs<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for Pairs<K, V> {
    /// Of several pairs with one key the last stays.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut pairs: Vec<(K, V)> = pairs.into_iter().collect();
        pairs.reverse();
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        pairs.dedup_by(|later, earlier| later.0 == earlier.0);
        Self((!pairs.is_empty()).then(|| pairs.into()))
    }
}

impl<K, V> From<BTreeMap<K, V>> for Pairs<K, V> {
    fn from(pairs: BTreeMap<K, V>) -> Self {
        Self((!pairs.is_empty()).then(|| pairs.into_iter().collect()))
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for Pairs<K, V> {
    fn from(pairs: [(K, V); N]) -> Self {
        pairs.into_iter().collect()
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Pairs<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: serde::Serialize, V: serde::Serialize> serde::Serialize for Pairs<K, V> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_a_map() {
        let pairs: Pairs<&str, u8> = [("b", 2), ("a", 1), ("b", 3)].into();
        assert_eq!(pairs.iter().collect::<Vec<_>>(), [(&"a", &1), (&"b", &3)], "sorted, the last word counts");
        assert_eq!((pairs.get("b"), pairs.get("c"), pairs.len()), (Some(&3), None, 2));
        assert_eq!(format!("{pairs:?}"), r#"{"a": 1, "b": 3}"#);
        assert_eq!(pairs, [("a", 1), ("b", 3)].into());
        assert!(Pairs::<&str, u8>::from([]).is_empty() && !pairs.is_empty());
    }
}
