//! The form of the protocol that sends the state of the world: of clusters and listeners always all, of other kinds
//! what is new.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use eastway_proto::xds::discovery::{DiscoveryRequest, DiscoveryResponse};

use super::answers::{Answers, Status};
use super::{Answer, Changes, MAX_NAMES, Nonces, Session, SessionError, Verdict, WILDCARD, check_names};
use crate::kind::Kind;
use crate::resource::Resource;
use crate::view::View;

/// A state-of-the-world stream.
#[derive(Debug)]
pub struct WorldSession {
    nonces: Nonces,
    view: Option<Arc<View>>,
    kinds: BTreeMap<Kind, Subscription>,
}

/// What the client wants of one kind, and what it has.
#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    /// It has named something once: from then on no name means nothing, and not all.
    explicit: bool,
    names: BTreeSet<Arc<str>>,
    known: BTreeMap<Arc<str>, Arc<Resource>>,
    /// Number of the last response.
    last: Option<u64>,
    answers: Answers,
}

impl Session for WorldSession {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn new(stream: String) -> Self {
        Self { nonces: Nonces::new(stream), view: None, kinds: BTreeMap::new() }
    }

    fn node(request: &Self::Request) -> &Bytes {
        &request.node
    }

    fn handle(&mut self, request: Self::Request) -> Result<Answer<Self::Response>, SessionError> {
        let kind = Kind::parse(&request.type_url)?;
        check_names(kind, request.resource_names.iter())?;
        if request.resource_names.len() > MAX_NAMES {
            return Err(SessionError::TooManyNames(kind));
        }
        let last = self.kinds.get(&kind).and_then(|subscription| subscription.last);
        let nonce = &request.response_nonce;
        // Of another stream, or made before the client saw the last response: it will speak again.
        let is_current = match last {
            None => nonce.is_empty(),
            Some(last) => self.nonces.number(nonce) == Some(last),
        };
        if !is_current {
            return Ok(Answer { responses: Vec::new(), verdict: Verdict::None });
        }
        let is_first = last.is_none();
        let subscription = self.kinds.entry(kind).or_default();
        let verdict = match (last, &request.error_detail) {
            (None, _) => Verdict::None,
            (Some(last), None) if subscription.answers.accept(last) => Verdict::Accepted(kind),
            (Some(_), None) => Verdict::None,
            (Some(last), Some(error)) => match subscription.answers.refuse(last, error) {
                Some(reason) => Verdict::Refused(kind, reason),
                None => Verdict::None,
            },
        };
        let added = subscription.set(kind, request.resource_names);
        let responses = if is_first || added { self.answer(kind) } else { Vec::new() };
        Ok(Answer { responses, verdict })
    }

    fn update(&mut self, view: Arc<View>) -> Vec<Self::Response> {
        let changed = self.view.as_ref().and_then(|old| view.changes_since(old));
        self.view = Some(Arc::clone(&view));
        let mut changes: BTreeMap<Kind, Changes> = BTreeMap::new();
        for (kind, subscription) in &self.kinds {
            let candidates = match &changed {
                Some(changed) if subscription.last.is_some() => {
                    changed.iter().filter(|(of, _)| of == kind).map(|(_, name)| Arc::clone(name)).collect()
                }
                Some(_) | None => subscription.candidates(&view, *kind),
            };
            changes.insert(*kind, subscription.changes(&view, *kind, candidates));
        }
        self.respond(&view, changes)
    }

    fn status(&self) -> BTreeMap<Kind, Status> {
        let status = |one: &Subscription| one.answers.status(one.wildcard, one.names.len());
        self.kinds.iter().map(|(kind, subscription)| (*kind, status(subscription))).collect()
    }

    fn told(&self, kind: Kind) -> Vec<Arc<Resource>> {
        self.kinds.get(&kind).into_iter().flat_map(|subscription| subscription.known.values().cloned()).collect()
    }
}

impl WorldSession {
    fn answer(&mut self, kind: Kind) -> Vec<DiscoveryResponse> {
        let Some(view) = self.view.clone() else { return Vec::new() };
        let Some(subscription) = self.kinds.get(&kind) else { return Vec::new() };
        if !subscription.wants_something() {
            return Vec::new();
        }
        let changes = subscription.changes(&view, kind, subscription.candidates(&view, kind));
        if changes.put.is_empty() && changes.gone.is_empty() {
            // The client waits for an answer.
            return self.response(kind, &view, &[], true).into_iter().collect();
        }
        self.respond(&view, BTreeMap::from([(kind, changes)]))
    }

    /// What is new first, what is gone last: until then a client keeps what it refers to.
    fn respond(&mut self, view: &View, mut changes: BTreeMap<Kind, Changes>) -> Vec<DiscoveryResponse> {
        self.add_endpoints(view, &mut changes);
        let mut responses = Vec::new();
        for kind in Kind::ALL {
            let Some(subscription) = self.kinds.get(&kind) else { continue };
            let Some(changes) = changes.get(&kind) else { continue };
            let unanswered = subscription.last.is_none() && subscription.wants_something();
            if !changes.put.is_empty() || unanswered && changes.gone.is_empty() {
                responses.extend(self.response(kind, view, &changes.put, changes.gone.is_empty()));
            }
        }
        for kind in Kind::REMOVAL {
            let Some(Changes { gone, .. }) = changes.remove(&kind) else { continue };
            if gone.is_empty() {
                continue;
            }
            let Some(subscription) = self.kinds.get_mut(&kind) else { continue };
            subscription.known.retain(|name, _| !gone.contains(name));
            if kind.has_wildcard() {
                responses.extend(self.response(kind, view, &[], true));
            }
        }
        responses
    }

    /// Endpoints of clusters that are new to the client, if it has asked for them.
    fn add_endpoints(&self, view: &View, changes: &mut BTreeMap<Kind, Changes>) {
        let Some(endpoints) = self.kinds.get(&Kind::Endpoints) else { return };
        let clusters = changes.get(&Kind::Cluster).into_iter().flat_map(|changes| &changes.put);
        let follow = clusters.filter(|cluster| endpoints.names.contains(cluster.name()));
        let follow: Vec<_> = follow.filter_map(|cluster| view.get(Kind::Endpoints, cluster.name())).cloned().collect();
        if follow.is_empty() {
            return;
        }
        let put = &mut changes.entry(Kind::Endpoints).or_default().put;
        let known: BTreeSet<Arc<str>> = put.iter().map(|resource| Arc::clone(resource.name())).collect();
        put.extend(follow.into_iter().filter(|resource| !known.contains(resource.name())));
    }

    /// A response with `put`; where one holds all, with what the client has besides. `is_exact`: that is all there is.
    fn response(
        &mut self,
        kind: Kind,
        view: &View,
        put: &[Arc<Resource>],
        is_exact: bool,
    ) -> Option<DiscoveryResponse> {
        let subscription = self.kinds.get_mut(&kind)?;
        let (number, nonce) = self.nonces.next();
        for resource in put {
            subscription.known.insert(Arc::clone(resource.name()), Arc::clone(resource));
        }
        let all = || subscription.known.values();
        let resources: Vec<&Arc<Resource>> = if kind.has_wildcard() { all().collect() } else { put.iter().collect() };
        let names = resources.iter().map(|resource| Arc::clone(resource.name())).collect();
        let resources = resources.into_iter().map(|resource| resource.world().clone()).collect();
        subscription.answers.sent(number, view.generation(), names);
        subscription.last = Some(number);
        let step = if is_exact { "" } else { "+" };
        Some(DiscoveryResponse {
            version_info: format!("{}{step}", view.generation()),
            resources,
            type_url: kind.url().to_owned(),
            nonce,
        })
    }
}

impl Subscription {
    /// Replaces the names. True: the client wants something that it did not want before.
    fn set(&mut self, kind: Kind, names: Vec<String>) -> bool {
        let before = self.wildcard;
        self.explicit |= !names.is_empty();
        let star = names.iter().any(|name| name == WILDCARD);
        self.wildcard = kind.has_wildcard() && (star || !self.explicit);
        let is_name = |name: &String| !(name == WILDCARD && kind.has_wildcard());
        let names: BTreeSet<Arc<str>> = names.into_iter().filter(is_name).map(Arc::from).collect();
        let added = names.iter().any(|name| !self.names.contains(name));
        self.names = names;
        let (wildcard, names) = (self.wildcard, &self.names);
        self.known.retain(|name, _| wildcard || names.contains(name));
        added || self.wildcard && !before
    }

    fn wants_something(&self) -> bool {
        self.wildcard || !self.names.is_empty()
    }

    /// Everything that could have to be told.
    fn candidates(&self, view: &View, kind: Kind) -> BTreeSet<Arc<str>> {
        let mut candidates: BTreeSet<Arc<str>> = self.names.iter().chain(self.known.keys()).cloned().collect();
        if self.wildcard {
            candidates.extend(view.all(kind).map(|resource| Arc::clone(resource.name())));
        }
        candidates
    }

    fn changes(&self, view: &View, kind: Kind, candidates: BTreeSet<Arc<str>>) -> Changes {
        let mut changes = Changes::default();
        for name in candidates {
            if !self.wildcard && !self.names.contains(&name) {
                continue;
            }
            let known = self.known.get(&name);
            match view.find(kind, &name) {
                Some(resource) if known.is_none_or(|known| known.version() != resource.version()) => {
                    changes.put.push(resource);
                }
                Some(_) => {}
                None if known.is_some() => changes.gone.push(name),
                None => {}
            }
        }
        changes
    }
}
