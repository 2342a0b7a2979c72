//! One immutable set of resources. A newer one shares what did not change.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use crate::kind::Kind;
use crate::node::Outbound;
use crate::resource::Resource;
use crate::resources::{HBONE, Surroundings, is_of};

/// Views whose changes are remembered. A session is behind by one or two; one that is farther behind compares
/// everything.
const REMEMBERED: usize = 64;

/// The resources of one kind, by name.
pub type Collection = BTreeMap<Arc<str>, Arc<Resource>>;

/// What some clients see.
#[derive(Clone, Default)]
pub struct View {
    generation: u64,
    /// Views of another line are no earlier or later ones of this; 0 is that of views that are no selection.
    line: u64,
    kinds: BTreeMap<Kind, Arc<Collection>>,
    /// What each of the last generations changed; oldest first.
    history: VecDeque<(u64, Arc<[Name]>)>,
    /// What stands for a resource that is asked for and not there.
    instead: Option<Instead>,
    /// What of one client alone is made of.
    surroundings: Arc<Surroundings>,
    /// What one client alone has beside what all see; no name is in both.
    own: Option<Arc<View>>,
    /// Which listeners that lead out are for this client.
    outbound: Outbound,
}

/// Makes what stands for a resource that does not exist; `None`: nothing does.
pub type Instead = fn(Kind, &str) -> Option<Arc<Resource>>;

/// A resource's kind and name.
pub type Name = (Kind, Arc<str>);

/// One edit of a view.
#[derive(Clone, Debug)]
pub enum Edit {
    /// Added or changed.
    Put(Kind, Arc<Resource>),
    /// Gone.
    Remove(Kind, Arc<str>),
}

impl View {
    /// An empty view that answers with `instead` of what is asked for by name and not there.
    #[must_use]
    pub fn answering(instead: Instead) -> Self {
        Self { instead: Some(instead), ..Self::default() }
    }

    /// An empty view of a line of its own.
    pub(crate) fn of_line(line: u64) -> Self {
        Self { line, ..Self::default() }
    }

    /// `edited`, or `before` if there is none, with all that `shared` has beside resources.
    pub(crate) fn selected(before: Arc<Self>, edited: Option<Self>, shared: &Self) -> Arc<Self> {
        if edited.is_none() && Arc::ptr_eq(&before.surroundings, &shared.surroundings) {
            return before;
        }
        let view = edited.unwrap_or_else(|| Self::clone(&before));
        let surroundings = Arc::clone(&shared.surroundings);
        Arc::new(Self { surroundings, instead: shared.instead, ..view })
    }

    /// Counts views, from 0, which is empty.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation + self.own.as_ref().map_or(0, |own| own.generation)
    }

    /// The view with these surroundings of what belongs to one client alone.
    pub(crate) fn surrounded(self, surroundings: Surroundings) -> Self {
        Self { surroundings: Arc::new(surroundings), ..self }
    }

    pub(crate) fn surroundings(&self) -> &Arc<Surroundings> {
        &self.surroundings
    }

    /// The view of a client that has `own` beside what all see, with those of the listeners that lead out which it wants.
    pub(crate) fn with_own(&self, own: Arc<Self>, outbound: Outbound) -> Self {
        Self { own: Some(own), outbound, ..self.clone() }
    }

    fn is_hidden(&self, kind: Kind, name: &str) -> bool {
        kind == Kind::Listener && name != HBONE && !is_of(name, self.outbound)
    }

    /// A resource by kind and name.
    #[must_use]
    pub fn get(&self, kind: Kind, name: &str) -> Option<&Arc<Resource>> {
        let shared = self.kinds.get(&kind).and_then(|collection| collection.get(name));
        let shared = shared.filter(|_| !self.is_hidden(kind, name));
        shared.or_else(|| self.own.as_ref()?.get(kind, name))
    }

    /// A resource by kind and name, or what stands for it.
    #[must_use]
    pub fn find(&self, kind: Kind, name: &str) -> Option<Arc<Resource>> {
        self.get(kind, name).cloned().or_else(|| self.instead.and_then(|instead| instead(kind, name)))
    }

    /// All resources of a kind, by name.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &Arc<Resource>> {
        let own = self.own.as_ref().and_then(|own| own.kinds.get(&kind));
        let shared = self.kinds.get(&kind).into_iter().flat_map(|collection| collection.values());
        let shared = shared.filter(move |resource| !self.is_hidden(kind, resource.name()));
        shared.chain(own.into_iter().flat_map(|collection| collection.values()))
    }

    /// Kinds and names of all that is not of one client alone.
    pub(crate) fn names(&self) -> impl Iterator<Item = Name> {
        let of = |(kind, collection): (&Kind, &Arc<Collection>)| {
            let kind = *kind;
            collection.keys().map(move |name| (kind, Arc::clone(name))).collect::<Vec<_>>()
        };
        self.kinds.iter().flat_map(of)
    }

    /// How many resources of a kind there are.
    #[must_use]
    pub fn len(&self, kind: Kind) -> usize {
        self.all(kind).count()
    }

    /// What may differ from an older view of the same client; `None`: that is not known any more.
    #[must_use]
    pub fn changes_since(&self, old: &Self) -> Option<BTreeSet<Name>> {
        if self.line != old.line {
            return None;
        }
        let mut changed = self.shared_changes_since(old.generation)?;
        match (&self.own, &old.own) {
            (Some(own), Some(old)) => changed.extend(own.shared_changes_since(old.generation)?),
            (None, None) => {}
            (Some(_), None) | (None, Some(_)) => return None,
        }
        Some(changed)
    }

    fn shared_changes_since(&self, generation: u64) -> Option<BTreeSet<Name>> {
        if generation == self.generation {
            return Some(BTreeSet::new());
        }
        let (oldest, _) = self.history.front()?;
        if generation > self.generation || generation + 1 < *oldest {
            return None;
        }
        let newer = self.history.iter().filter(|(changed, _)| *changed > generation);
        Some(newer.flat_map(|(_, names)| names.iter().cloned()).collect())
    }

    /// The view after these edits; `None` if it would be equal.
    #[must_use]
    pub fn edited(&self, edits: impl IntoIterator<Item = Edit>) -> Option<Self> {
        let mut kinds = self.kinds.clone();
        let mut changed = BTreeSet::new();
        for edit in edits {
            match edit {
                Edit::Put(kind, resource) => {
                    let collection = kinds.entry(kind).or_default();
                    let known = collection.get(resource.name());
                    if known.is_some_and(|known| known.is_as(&resource)) {
                        continue;
                    }
                    changed.insert((kind, Arc::clone(resource.name())));
                    Arc::make_mut(collection).insert(Arc::clone(resource.name()), resource);
                }
                Edit::Remove(kind, name) => {
                    let Some(collection) = kinds.get_mut(&kind) else { continue };
                    if collection.contains_key(&name) {
                        Arc::make_mut(collection).remove(&name);
                        changed.insert((kind, name));
                    }
                }
            }
        }
        if changed.is_empty() {
            return None;
        }
        let generation = self.generation + 1;
        let mut history = self.history.clone();
        if history.len() == REMEMBERED {
            history.pop_front();
        }
        history.push_back((generation, changed.into_iter().collect()));
        Some(Self {
            generation,
            line: self.line,
            kinds,
            history,
            surroundings: Arc::clone(&self.surroundings),
            own: self.own.clone(),
            outbound: self.outbound,
            instead: self.instead,
        })
    }
}

/// Names and versions, and what tells it from other views.
impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { generation, kinds, .. } = self;
        f.debug_struct("View").field("generation", generation).field("kinds", kinds).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use eastway_proto::xds::discovery::Hint;

    use super::*;

    fn cluster(name: &str, content: &str) -> Edit {
        Edit::Put(Kind::Cluster, Resource::new(Kind::Cluster, name, &Hint { string_value: Some(content.to_owned()) }))
    }

    #[test]
    fn only_what_changes_makes_a_view_and_is_remembered_for_a_while() {
        let empty = View::default();
        assert_eq!(empty.changes_since(&empty), Some(BTreeSet::new()));
        let mut view = empty.edited([cluster("a", "1"), cluster("b", "1")]).unwrap();
        assert!(view.edited([cluster("a", "1"), Edit::Remove(Kind::Cluster, "z".into())]).is_none());
        assert_eq!(view.changes_since(&empty).unwrap().len(), 2);
        let first = view.clone();
        view = view.edited([Edit::Remove(Kind::Cluster, "b".into())]).unwrap();
        assert_eq!(view.changes_since(&first).unwrap(), BTreeSet::from([(Kind::Cluster, "b".into())]));
        let later = view.edited([cluster("z", "1")]).unwrap();
        assert_eq!(view.changes_since(&later), None, "of another process");
        let recent = view.clone();
        for number in 0..REMEMBERED {
            view = view.edited([cluster("a", &number.to_string())]).unwrap();
        }
        assert_eq!(view.changes_since(&first), None);
        assert_eq!(view.changes_since(&recent).unwrap(), BTreeSet::from([(Kind::Cluster, "a".into())]));
        assert_eq!(view.len(Kind::Cluster), 1);
    }
}
