//! After any history both forms of the protocol leave their clients with the same.

use eastway_model::rules::{Visibility, Visible};
use eastway_model::{Label, ServiceKey};
use proptest::prelude::*;

use super::*;
use crate::scopes::Scopes;

/// What can happen to a server and two clients.
#[derive(Clone, Debug)]
enum Event {
    /// A cluster and its endpoints get this content; 0: they go.
    Set(u8, u8),
    /// The endpoints alone.
    Endpoints(u8, u8),
    Listener(u8, u8),
    /// The clients' namespace is told of services with these bits alone; `None`: of all.
    Visible(Option<u8>),
    /// The delta client loses its stream and comes back with what it holds.
    Reconnect,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..6_u8, 0..4_u8).prop_map(|(name, content)| Event::Set(name, content)),
        4 => (0..6_u8, 1..4_u8).prop_map(|(name, content)| Event::Endpoints(name, content)),
        2 => (0..4_u8, 0..4_u8).prop_map(|(name, content)| Event::Listener(name, content)),
        1 => proptest::option::of(any::<u8>()).prop_map(Event::Visible),
        1 => Just(Event::Reconnect),
    ]
}

/// What is told of the service of this number.
fn owned(kind: Kind, name: &str, content: &str, number: u8) -> Edit {
    let Edit::Put(kind, resource) = put(kind, name, content) else { unreachable!() };
    Edit::Put(kind, resource.owned_by(&[service(number)].into()))
}

fn service(number: u8) -> ServiceKey {
    format!("other/s{number}").parse().unwrap()
}

/// What this set of services comes to.
fn visibility(bits: Option<u8>) -> Arc<Visibility> {
    let namespace = Label::parse("shop").unwrap();
    let Some(bits) = bits else { return Arc::default() };
    let services = (0..8).filter(|number| bits & 1 << number != 0);
    let services = services.map(|number| service(number).to_string().parse().unwrap()).collect();
    Arc::new([(namespace.clone(), Arc::new(Visible { namespace, services }))].into())
}

fn apply(view: &View, event: &Event) -> View {
    let text = |content: &u8| content.to_string();
    let edits = match event {
        Event::Set(name, 0) => vec![gone(C, &format!("c{name}")), gone(E, &format!("c{name}"))],
        Event::Set(number, content) => {
            let name = format!("c{number}");
            let mut edits = vec![owned(C, &name, &format!("{name}={content}"), *number)];
            if view.get(E, &name).is_none() {
                edits.push(owned(E, &name, &format!("{name}=1"), *number));
            }
            edits
        }
        Event::Endpoints(number, content) => {
            let name = format!("c{number}");
            let there = view.get(C, &name).is_some();
            if there { vec![owned(E, &name, &format!("{name}={}", text(content)), *number)] } else { Vec::new() }
        }
        Event::Listener(name, 0) => vec![gone(L, &format!("l{name}"))],
        // One of them is for everybody.
        Event::Listener(0, content) => vec![put(L, "l0", &format!("l0={content}"))],
        Event::Listener(number, content) => {
            let name = format!("l{number}");
            vec![owned(L, &name, &format!("{name}={content}"), *number)]
        }
        Event::Visible(_) | Event::Reconnect => Vec::new(),
    };
    view.edited(edits).unwrap_or_else(|| view.clone())
}

/// A proxy: it subscribes to all clusters and listeners, and to the endpoints of the clusters it has.
#[derive(Default)]
struct Proxy {
    held: BTreeMap<(Kind, String), String>,
    versions: BTreeMap<(Kind, String), String>,
    /// Clusters that were changed and whose endpoints did not follow.
    warming: std::collections::BTreeSet<String>,
}

impl Proxy {
    fn names(&self, kind: Kind) -> Vec<String> {
        self.held.keys().filter(|(of, _)| *of == kind).map(|(_, name)| name.clone()).collect()
    }

    fn take(&mut self, kind: Kind, name: String, content: String) {
        if kind == C {
            self.warming.insert(name.clone());
        }
        if kind == E {
            self.warming.remove(&name);
        }
        self.held.insert((kind, name), content);
    }

    fn drop_cluster(&mut self, name: &str) {
        self.warming.remove(name);
        self.held.remove(&(E, name.to_owned()));
        self.versions.remove(&(E, name.to_owned()));
    }
}

#[derive(Default)]
struct DeltaProxy {
    proxy: Proxy,
    subscribed: std::collections::BTreeSet<String>,
}

impl DeltaProxy {
    fn connect(&mut self, session: &mut DeltaSession) {
        self.subscribed.clear();
        for kind in [C, L] {
            let request = wire::DeltaDiscoveryRequest { ..self.claims(kind) };
            let answers = session.handle(request).unwrap().responses;
            self.read(session, answers);
        }
    }

    fn claims(&self, kind: Kind) -> wire::DeltaDiscoveryRequest {
        let versions = self.proxy.versions.iter().filter(|((of, _), _)| *of == kind);
        wire::DeltaDiscoveryRequest {
            type_url: kind.url().into(),
            initial_resource_versions: versions.map(|((_, name), version)| (name.clone(), version.clone())).collect(),
            ..wire::DeltaDiscoveryRequest::default()
        }
    }

    fn read(&mut self, session: &mut DeltaSession, responses: Vec<wire::DeltaDiscoveryResponse>) {
        let mut responses: std::collections::VecDeque<_> = responses.into();
        while let Some(response) = responses.pop_front() {
            let kind = Kind::parse(&response.type_url).unwrap();
            for resource in &response.resources {
                let resource = wire::Resource::decode(resource.clone()).unwrap();
                let content = wire::Hint::decode(resource.resource.unwrap().value).unwrap().string_value.unwrap();
                self.proxy.versions.insert((kind, resource.name.clone()), resource.version);
                self.proxy.take(kind, resource.name, content);
            }
            for name in &response.removed_resources {
                self.proxy.held.remove(&(kind, name.clone()));
                self.proxy.versions.remove(&(kind, name.clone()));
                if kind == C {
                    self.proxy.drop_cluster(name);
                }
            }
            let ack = wire::DeltaDiscoveryRequest { type_url: kind.url().into(), ..answer(&response.nonce, None) };
            let answered = session.handle(ack).unwrap();
            assert_eq!(answered.verdict, Verdict::Accepted(kind));
            assert!(kind == C || answered.responses.is_empty(), "an acknowledgement asks for nothing");
            // But for what waited until its clusters are there.
            responses.extend(answered.responses);
        }
        self.subscribe(session);
    }

    fn subscribe(&mut self, session: &mut DeltaSession) {
        let wanted: std::collections::BTreeSet<String> = self.proxy.names(C).into_iter().collect();
        if wanted == self.subscribed {
            return;
        }
        let request = wire::DeltaDiscoveryRequest {
            resource_names_subscribe: wanted.difference(&self.subscribed).cloned().collect(),
            resource_names_unsubscribe: self.subscribed.difference(&wanted).cloned().collect(),
            ..self.claims(E)
        };
        self.subscribed = wanted;
        let answers = session.handle(request).unwrap().responses;
        self.read(session, answers);
    }
}

#[derive(Default)]
struct WorldProxy {
    proxy: Proxy,
    subscribed: Vec<String>,
    nonces: BTreeMap<Kind, String>,
}

impl WorldProxy {
    fn connect(&mut self, session: &mut WorldSession) {
        for kind in [C, L] {
            self.send(session, kind, Vec::new());
        }
    }

    fn send(&mut self, session: &mut WorldSession, kind: Kind, names: Vec<String>) {
        let request = wire::DiscoveryRequest {
            type_url: kind.url().into(),
            response_nonce: self.nonces.get(&kind).cloned().unwrap_or_default(),
            resource_names: names,
            ..wire::DiscoveryRequest::default()
        };
        let answers = session.handle(request).unwrap().responses;
        self.read(session, answers);
    }

    fn read(&mut self, session: &mut WorldSession, responses: Vec<wire::DiscoveryResponse>) {
        for response in responses {
            let kind = Kind::parse(&response.type_url).unwrap();
            self.nonces.insert(kind, response.nonce);
            let mut seen = Vec::new();
            for resource in &response.resources {
                let any = wire::Any::decode(resource.clone()).unwrap();
                let content = wire::Hint::decode(any.value).unwrap().string_value.unwrap();
                let name = content.split('=').next().unwrap().to_owned();
                seen.push(name.clone());
                if self.proxy.held.get(&(kind, name.clone())) != Some(&content) || kind == E {
                    self.proxy.take(kind, name, content);
                }
            }
            if kind.has_wildcard() {
                for name in self.proxy.names(kind).into_iter().filter(|name| !seen.contains(name)) {
                    self.proxy.held.remove(&(kind, name.clone()));
                    if kind == C {
                        self.proxy.drop_cluster(&name);
                    }
                }
            }
            let names = if kind == E { self.subscribed.clone() } else { Vec::new() };
            self.send(session, kind, names);
        }
        let wanted = self.proxy.names(C);
        if wanted != self.subscribed {
            self.subscribed.clone_from(&wanted);
            self.send(session, E, wanted);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Both forms of the protocol lead to what the server has for their namespace, at every step, whatever happened
    /// before, and no cluster is left waiting for endpoints.
    #[test]
    fn both_forms_end_in_the_same_state(
        history in proptest::collection::vec(proptest::collection::vec(event(), 1..5), 1..40)
    ) {
        let (scopes, mut bits) = (Scopes::default(), None);
        let mut view = Arc::new(View::default());
        scopes.publish(Arc::clone(&view), &visibility(bits));
        let views = scopes.of(&Label::parse("shop").unwrap());
        let seen = || views.borrow().clone().unwrap();
        let (mut delta, mut world) = (new(), WorldSession::new("w".to_owned()));
        let (mut a, mut b) = (DeltaProxy::default(), WorldProxy::default());
        delta.update(seen());
        world.update(seen());
        a.connect(&mut delta);
        b.connect(&mut world);
        for (step, events) in history.iter().enumerate() {
            for event in events {
                view = Arc::new(apply(&view, event));
                if let Event::Visible(now) = event {
                    bits = *now;
                }
                scopes.publish(Arc::clone(&view), &visibility(bits));
                if matches!(event, Event::Reconnect) {
                    delta = DeltaSession::new(format!("s{step}"));
                    delta.update(seen());
                    a.connect(&mut delta);
                }
            }
            let pushed = delta.update(seen());
            a.read(&mut delta, pushed);
            let pushed = world.update(seen());
            b.read(&mut world, pushed);
            let mut truth = BTreeMap::new();
            for kind in [C, E, L] {
                let shown = |name: &str| {
                    let number: u8 = name[1..].parse().unwrap();
                    name == "l0" || bits.is_none_or(|bits| bits & 1 << number != 0)
                };
                for resource in view.all(kind).filter(|resource| shown(resource.name())) {
                    let any = wire::Any::decode(resource.world().clone()).unwrap();
                    let content = wire::Hint::decode(any.value).unwrap().string_value.unwrap();
                    truth.insert((kind, resource.name().to_string()), content);
                }
            }
            prop_assert_eq!(&a.proxy.held, &truth, "delta, step {}", step);
            prop_assert_eq!(&b.proxy.held, &truth, "state of the world, step {}", step);
            prop_assert!(a.proxy.warming.is_empty(), "delta, step {}: {:?}", step, a.proxy.warming);
            prop_assert!(b.proxy.warming.is_empty(), "state of the world, step {}: {:?}", step, b.proxy.warming);
        }
    }
}
