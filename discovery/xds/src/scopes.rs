//! Who sees what: the newest view for each namespace that has clients.
//!
//! A namespace without a rule sees the view that all share. One with a rule has a view of its own, a selection of the same
//! resources by the services that they belong to, for all its clients; nothing is encoded again. It becomes a new one,
//! which wakes its clients, only with a change of something in it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eastway_model::Label;
use eastway_model::rules::{Visibility, Visible};
use tokio::sync::watch;

use crate::resource::Resource;
use crate::view::{Edit, Name, View};

/// The newest view; `None`: there is none yet.
pub type Views = watch::Receiver<Option<Arc<View>>>;

/// The views of all namespaces.
#[derive(Debug, Default)]
pub struct Scopes {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    shared: Option<Arc<View>>,
    visibility: Arc<Visibility>,
    scopes: BTreeMap<Label, Scope>,
    /// Selections that were begun, ever.
    selections: u64,
}

/// One namespace.
#[derive(Debug, Default)]
struct Scope {
    views: watch::Sender<Option<Arc<View>>>,
    selection: Option<Selection>,
}

/// A view by a rule.
#[derive(Debug)]
struct Selection {
    rule: Arc<Visible>,
    /// What it was made of.
    of: Arc<View>,
    view: Arc<View>,
}

impl Scopes {
    /// Makes `shared` the newest view, of which each namespace sees what `visibility` says.
    pub fn publish(&self, shared: Arc<View>, visibility: &Arc<Visibility>) {
        let mut state = self.lock();
        // Nobody of these is left.
        state.scopes.retain(|_, scope| scope.views.receiver_count() > 0);
        state.shared = Some(shared);
        state.visibility = Arc::clone(visibility);
        let State { shared, visibility, scopes, selections } = &mut *state;
        for (namespace, scope) in scopes {
            scope.follow(shared.as_ref(), visibility.get(namespace), selections);
        }
    }

    /// The newest views of a namespace.
    #[must_use]
    pub fn of(&self, namespace: &Label) -> Views {
        let mut state = self.lock();
        let State { shared, visibility, scopes, selections } = &mut *state;
        let scope = scopes.entry(namespace.clone()).or_default();
        // The last of its clients may have gone some views ago.
        scope.follow(shared.as_ref(), visibility.get(namespace), selections);
        scope.views.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scope {
    fn follow(&mut self, shared: Option<&Arc<View>>, rule: Option<&Arc<Visible>>, selections: &mut u64) {
        let view = match (shared, rule) {
            (None, _) => return,
            (Some(shared), None) => {
                self.selection = None;
                Arc::clone(shared)
            }
            (Some(shared), Some(rule)) => {
                let selection = self.selection.take().unwrap_or_else(|| {
                    *selections += 1;
                    Selection::begin(rule, *selections)
                });
                let selection = selection.follow(shared, rule);
                let view = Arc::clone(&selection.view);
                self.selection = Some(selection);
                view
            }
        };
        self.views.send_if_modified(|current| {
            let is_new = current.as_ref().is_none_or(|current| !Arc::ptr_eq(current, &view));
            if is_new {
                *current = Some(view);
            }
            is_new
        });
    }
}

impl Selection {
    fn begin(rule: &Arc<Visible>, number: u64) -> Self {
        let empty = Arc::new(View::of_line(number));
        Self { rule: Arc::clone(rule), of: Arc::default(), view: empty }
    }

    fn follow(self, shared: &Arc<View>, rule: &Arc<Visible>) -> Self {
        let changes = shared.changes_since(&self.of).filter(|_| *rule == self.rule);
        let names: Vec<Name> = match changes {
            Some(changes) => changes.into_iter().collect(),
            None => self.view.names().chain(shared.names()).collect(),
        };
        let edit = |(kind, name): Name| match shared.get(kind, &name).filter(|resource| is_shown(resource, rule)) {
            Some(resource) => Edit::Put(kind, Arc::clone(resource)),
            None => Edit::Remove(kind, name),
        };
        let edited = self.view.edited(names.into_iter().map(edit));
        let view = View::selected(self.view, edited, shared);
        Self { rule: Arc::clone(rule), of: Arc::clone(shared), view }
    }
}

/// What belongs to no service is for everybody.
fn is_shown(resource: &Resource, rule: &Visible) -> bool {
    let owners = resource.owners();
    owners.is_empty() || owners.iter().any(|owner| rule.shows(owner))
}

#[cfg(test)]
mod tests;
