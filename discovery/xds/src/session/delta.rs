//! The form of the protocol that sends changes only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use eastway_proto::xds::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::answers::{Answers, Status};
use super::{Answer, Changes, MAX_NAMES, Nonces, Session, SessionError, Verdict, WILDCARD, check_names};
use crate::kind::Kind;
use crate::resource::Resource;
use crate::view::View;

/// What a response may hold unless one resource is larger. A connection keeps a buffer of the size of its largest
/// response for as long as it lives: a thousand clients of a thousand services would hold gigabytes. What belongs
/// together is on the stream together: no request is handled in between.
pub(super) const MAX_RESPONSE: usize = 32 << 10;

/// A delta stream.
#[derive(Debug)]
pub struct DeltaSession {
    nonces: Nonces,
    view: Option<Arc<View>>,
    kinds: BTreeMap<Kind, Subscription>,
    /// The response with new clusters whose acknowledgement routes, listeners and removals wait for.
    held: Option<u64>,
}

/// What the client wants of one kind, and what it has.
#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    known: BTreeMap<Arc<str>, Known>,
    /// The first request was answered.
    answered: bool,
    answers: Answers,
}

/// What the client has under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    /// This version, as it says it has from an earlier stream.
    Claimed(Arc<str>),
    /// This version, sent on this stream.
    Sent(Arc<str>),
    /// It was told that there is none.
    Absent,
}

impl Session for DeltaSession {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn new(stream: String) -> Self {
        Self { nonces: Nonces::new(stream), view: None, kinds: BTreeMap::new(), held: None }
    }

    fn node(request: &Self::Request) -> &Bytes {
        &request.node
    }

    fn handle(&mut self, request: Self::Request) -> Result<Answer<Self::Response>, SessionError> {
        let kind = Kind::parse(&request.type_url)?;
        let subscribed = request.resource_names_subscribe.iter();
        check_names(kind, subscribed.chain(&request.resource_names_unsubscribe))?;
        let is_first = !self.kinds.contains_key(&kind);
        let verdict = self.verdict(kind, &request);
        let number = self.nonces.number(&request.response_nonce).filter(|_| kind == Kind::Cluster);
        let is_awaited = self.held.is_some_and(|held| number.is_some_and(|number| number >= held));
        let mut again = BTreeSet::new();
        let subscription = self.kinds.entry(kind).or_default();
        let before = subscription.wildcard;
        if is_first && request.resource_names_subscribe.is_empty() && kind.has_wildcard() {
            subscription.wildcard = true;
        }
        for name in &request.resource_names_unsubscribe {
            subscription.unsubscribe(kind, name, &mut again);
        }
        for name in &request.resource_names_subscribe {
            subscription.subscribe(kind, name, &mut again);
        }
        if subscription.names.len() > MAX_NAMES {
            return Err(SessionError::TooManyNames(kind));
        }
        let compare_all = is_first || subscription.wildcard && !before;
        if is_first {
            self.claim(kind, &request.initial_resource_versions, &mut again);
        }
        let runs = is_first && kind == Kind::Cluster && !request.initial_resource_versions.is_empty();
        let mut responses = self.answer(kind, &again, compare_all, runs);
        if is_awaited {
            responses.extend(self.release());
        }
        Ok(Answer { responses, verdict })
    }

    fn update(&mut self, view: Arc<View>) -> Vec<Self::Response> {
        let changed = self.view.as_ref().and_then(|old| view.changes_since(old));
        self.view = Some(Arc::clone(&view));
        let mut changes: BTreeMap<Kind, Changes> = BTreeMap::new();
        for (kind, subscription) in &mut self.kinds {
            let candidates = match &changed {
                Some(changed) if subscription.answered => {
                    changed.iter().filter(|(of, _)| of == kind).map(|(_, name)| Arc::clone(name)).collect()
                }
                Some(_) | None => subscription.candidates(&view, *kind),
            };
            changes.insert(*kind, subscription.changes(&view, *kind, candidates, &BTreeSet::new()));
        }
        self.add_endpoints(&view, &mut changes);
        self.hold_back(&mut changes, false);
        self.respond(&view, changes)
    }

    fn is_holding(&self) -> bool {
        self.held.is_some()
    }

    fn release(&mut self) -> Vec<Self::Response> {
        let (Some(_), Some(view)) = (self.held.take(), self.view.clone()) else { return Vec::new() };
        let none = BTreeSet::new();
        let changes = self.kinds.iter().map(|(kind, subscription)| {
            let candidates = subscription.candidates(&view, *kind);
            (*kind, subscription.changes(&view, *kind, candidates, &none))
        });
        let mut changes = changes.collect();
        self.add_endpoints(&view, &mut changes);
        self.respond(&view, changes)
    }

    fn status(&self) -> BTreeMap<Kind, Status> {
        let status = |one: &Subscription| one.answers.status(one.wildcard, one.names.len());
        self.kinds.iter().map(|(kind, subscription)| (*kind, status(subscription))).collect()
    }

    fn told(&self, kind: Kind) -> Vec<Arc<Resource>> {
        let (Some(view), Some(subscription)) = (&self.view, self.kinds.get(&kind)) else { return Vec::new() };
        let known = subscription.known.iter();
        let told = known.filter_map(|(name, known)| view.get(kind, name).filter(|resource| known.is(resource)));
        told.cloned().collect()
    }
}

impl DeltaSession {
    fn verdict(&mut self, kind: Kind, request: &DeltaDiscoveryRequest) -> Verdict {
        // Changes of the subscription count even if the nonce does not: they are changes, and nobody repeats them.
        let Some(nonce) = self.nonces.number(&request.response_nonce) else { return Verdict::None };
        let Some(subscription) = self.kinds.get_mut(&kind) else { return Verdict::None };
        match &request.error_detail {
            None if subscription.answers.accept(nonce) => Verdict::Accepted(kind),
            None => Verdict::None,
            Some(error) => match subscription.answers.refuse(nonce, error) {
                Some(reason) => Verdict::Refused(kind, reason),
                None => Verdict::None,
            },
        }
    }

    /// Takes over what the client holds from an earlier stream, as far as it still wants it.
    fn claim(&mut self, kind: Kind, versions: &BTreeMap<String, String>, again: &mut BTreeSet<Arc<str>>) {
        // The cluster of these endpoints was sent on this stream: they have to follow it.
        let follows = |name: &str| {
            let clusters = self.kinds.get(&Kind::Cluster).filter(|_| kind == Kind::Endpoints);
            clusters.is_some_and(|clusters| matches!(clusters.known.get(name), Some(Known::Sent(_))))
        };
        let claims = versions.iter().filter(|(name, _)| !follows(name));
        let claims: HashMap<Arc<str>, Arc<str>> =
            claims.map(|(name, version)| (Arc::from(name.as_str()), Arc::from(version.as_str()))).collect();
        let Some(subscription) = self.kinds.get_mut(&kind) else { return };
        for (name, version) in claims {
            if subscription.wildcard || subscription.names.contains(&name) {
                again.remove(&name);
                subscription.known.insert(name, Known::Claimed(version));
            }
        }
    }

    /// The answer to a request: what was asked for `again`, and what is new to the client, which `runs` if it has clusters
    /// from an earlier stream.
    fn answer(
        &mut self,
        kind: Kind,
        again: &BTreeSet<Arc<str>>,
        compare_all: bool,
        runs: bool,
    ) -> Vec<DeltaDiscoveryResponse> {
        let Some(view) = self.view.clone() else { return Vec::new() };
        let Some(subscription) = self.kinds.get_mut(&kind) else { return Vec::new() };
        let candidates = if compare_all { subscription.candidates(&view, kind) } else { again.clone() };
        let mut changes = BTreeMap::from([(kind, subscription.changes(&view, kind, candidates, again))]);
        self.add_endpoints(&view, &mut changes);
        if runs || self.held.is_some() {
            self.hold_back(&mut changes, true);
        }
        self.respond(&view, changes)
    }

    /// Takes out what has to wait, if there are new clusters or some are still awaited.
    fn hold_back(&mut self, changes: &mut BTreeMap<Kind, Changes>, is_answer: bool) {
        let clusters = self.kinds.get(&Kind::Cluster);
        let is_known = |name: &Arc<str>| clusters.is_some_and(|clusters| clusters.known.contains_key(name));
        let put = changes.get(&Kind::Cluster).map(|changes| changes.put.as_slice()).unwrap_or_default();
        let has_some = clusters.is_some_and(|clusters| !clusters.known.is_empty());
        if has_some && put.iter().any(|cluster| !is_known(cluster.name())) {
            // Its number follows when it is made.
            self.held = Some(u64::MAX);
        }
        if self.held.is_none() {
            return;
        }
        changes.retain(|kind, _| !matches!(kind, Kind::Listener | Kind::Route));
        // Who asks for something that is not there is told so: it may wait for that with the clusters.
        for (_, changes) in changes.iter_mut().filter(|(kind, _)| !is_answer || **kind == Kind::Cluster) {
            changes.gone.clear();
        }
    }

    /// Endpoints of clusters that are sent, if the client has asked for them.
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

    /// What is new first, what is gone last.
    fn respond(&mut self, view: &View, mut changes: BTreeMap<Kind, Changes>) -> Vec<DeltaDiscoveryResponse> {
        let mut responses = Vec::new();
        let waits = self.held == Some(u64::MAX);
        for kind in Kind::ALL {
            let Some(Changes { put, gone }) = changes.get_mut(&kind) else { continue };
            let put = std::mem::take(put);
            let unanswered = self.kinds.get(&kind).is_some_and(|one| !one.answered && one.wants_something());
            for part in parts(&put, |resource| resource.delta().len()) {
                responses.extend(self.response(kind, view, part, &[]));
                if waits && kind == Kind::Cluster {
                    self.held = Some(self.nonces.last);
                }
            }
            // A request for what nobody has, or has already, is answered as well.
            if put.is_empty() && unanswered && gone.is_empty() {
                responses.extend(self.response(kind, view, &[], &[]));
            }
        }
        for kind in Kind::REMOVAL {
            let Some(Changes { gone, .. }) = changes.remove(&kind) else { continue };
            for part in parts(&gone, |name| name.len()) {
                responses.extend(self.response(kind, view, &[], part));
            }
        }
        responses
    }

    fn response(
        &mut self,
        kind: Kind,
        view: &View,
        put: &[Arc<Resource>],
        gone: &[Arc<str>],
    ) -> Option<DeltaDiscoveryResponse> {
        let subscription = self.kinds.get_mut(&kind)?;
        let (number, nonce) = self.nonces.next();
        let names = put.iter().map(|resource| Arc::clone(resource.name())).chain(gone.iter().cloned()).collect();
        subscription.answers.sent(number, view.generation(), names);
        subscription.answered = true;
        for resource in put {
            let version = Known::Sent(Arc::clone(resource.version()));
            subscription.known.insert(Arc::clone(resource.name()), version);
        }
        for name in gone {
            if subscription.names.contains(name) {
                subscription.known.insert(Arc::clone(name), Known::Absent);
            } else {
                subscription.known.remove(name);
            }
        }
        Some(DeltaDiscoveryResponse {
            system_version_info: view.generation().to_string(),
            resources: put.iter().map(|resource| resource.delta().clone()).collect(),
            type_url: kind.url().to_owned(),
            nonce,
            removed_resources: gone.iter().map(ToString::to_string).collect(),
        })
    }
}

/// The items in their order, in parts of at most [`MAX_RESPONSE`] bytes or one item.
fn parts<T>(items: &[T], size: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |item: &&T| {
            bytes += size(item);
            bytes <= MAX_RESPONSE
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (part, others) = rest.split_at_checked(count)?;
        rest = others;
        Some(part)
    })
}

impl Subscription {
    fn subscribe(&mut self, kind: Kind, name: &str, again: &mut BTreeSet<Arc<str>>) {
        if name == WILDCARD && kind.has_wildcard() {
            self.wildcard = true;
            return;
        }
        let name: Arc<str> = Arc::from(name);
        self.names.insert(Arc::clone(&name));
        // Asked for once more is answered once more: the client may have dropped it.
        again.insert(name);
    }

    fn unsubscribe(&mut self, kind: Kind, name: &str, again: &mut BTreeSet<Arc<str>>) {
        if name == WILDCARD && kind.has_wildcard() {
            self.wildcard = false;
            let names = &self.names;
            self.known.retain(|name, _| names.contains(name));
            return;
        }
        if !self.names.remove(name) {
            return;
        }
        self.known.remove(name);
        if self.wildcard {
            // It drops what it named, and wants it again as one of all.
            again.insert(Arc::from(name));
        }
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

    /// What of the candidates the client has to be told; of those in `again` in any case.
    fn changes(&self, view: &View, kind: Kind, candidates: BTreeSet<Arc<str>>, again: &BTreeSet<Arc<str>>) -> Changes {
        let mut changes = Changes::default();
        for name in candidates {
            let named = self.names.contains(&name);
            if !named && !self.wildcard {
                continue;
            }
            let known = self.known.get(&name);
            match view.get(kind, &name) {
                Some(resource) => {
                    let has = known.is_some_and(|known| known.is(resource));
                    if !has || again.contains(&name) {
                        changes.put.push(Arc::clone(resource));
                    }
                }
                None => {
                    let held = matches!(known, Some(Known::Claimed(_) | Known::Sent(_)));
                    if held || again.contains(&name) || named && known.is_none() {
                        changes.gone.push(name);
                    }
                }
            }
        }
        changes
    }
}

impl Known {
    fn is(&self, resource: &Resource) -> bool {
        match self {
            Self::Claimed(version) | Self::Sent(version) => version == resource.version(),
            Self::Absent => false,
        }
    }
}
