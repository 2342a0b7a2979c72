//! What one client alone is told, beside what all are.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::inbound::Inbound;
use crate::node::{Node, Outbound};
use crate::resources::{AppProtocol, Surroundings, inbound_resources};
use crate::spoken::{self, Said};
use crate::view::{Edit, Name, View};

/// The own part of one client's view, made anew only when what it is made of changes.
#[derive(Debug)]
pub(super) struct Own {
    inbound: Vec<Inbound>,
    /// Ports of the workload of which Services say what is spoken.
    left: BTreeSet<u16>,
    outbound: Outbound,
    made: Option<(Arc<Surroundings>, Arc<View>)>,
    /// `made` is of what was said before.
    is_old: bool,
}

impl Own {
    pub(super) fn new(node: &Node) -> Self {
        let (inbound, left) = (node.inbound.clone(), node.by_service.ports.clone());
        Self { inbound, left, outbound: node.outbound, made: None, is_old: false }
    }

    /// Takes over what Services say. Where none says anything any more the last word counts: a change would end connections.
    pub(super) fn hear(&mut self, said: &Said) {
        for inbound in self.inbound.iter_mut().filter(|inbound| self.left.contains(&inbound.app.port())) {
            let Some(port) = spoken::of_place(said, inbound) else { continue };
            let agreed = spoken::agreed(port);
            let now = (agreed.unwrap_or(AppProtocol::Tcp), agreed.is_none());
            if now != (inbound.protocol, inbound.mixed) {
                (inbound.protocol, inbound.mixed) = now;
                self.is_old = true;
            }
        }
    }

    /// The view of this client.
    pub(super) fn beside(&mut self, shared: Arc<View>) -> Arc<View> {
        if self.inbound.is_empty() && self.outbound == Outbound::Bound {
            return shared;
        }
        let surroundings = shared.surroundings();
        let own = match &self.made {
            Some((before, own)) if before == surroundings && !self.is_old => Arc::clone(own),
            made => {
                let before = made.as_ref().map(|(_, own)| Arc::clone(own)).unwrap_or_default();
                let own = self.make(surroundings, before);
                self.made = Some((Arc::clone(surroundings), Arc::clone(&own)));
                self.is_old = false;
                own
            }
        };
        Arc::new(shared.with_own(own, self.outbound))
    }

    fn make(&self, surroundings: &Surroundings, before: Arc<View>) -> Arc<View> {
        // Before any trust domain is known nobody could be let in, and a listener could not even be made.
        let resources = match surroundings.trust_domains.is_empty() {
            true => Vec::new(),
            false => inbound_resources(&self.inbound, surroundings),
        };
        let names: BTreeSet<Name> =
            resources.iter().map(|(kind, resource)| (*kind, Arc::clone(resource.name()))).collect();
        let gone = before.names().filter(|name| !names.contains(name)).map(|(kind, name)| Edit::Remove(kind, name));
        let put = resources.into_iter().map(|(kind, resource)| Edit::Put(kind, resource));
        before.edited(gone.chain(put)).map_or(before, Arc::new)
    }
}

#[cfg(test)]
mod tests {
    use eastway_proto::xds::discovery::Hint;

    use super::*;
    use crate::inbound::ByService;
    use crate::kind::Kind;
    use crate::resource::Resource;

    fn listener(name: &str) -> Edit {
        Edit::Put(Kind::Listener, Resource::new(Kind::Listener, name, &Hint::default()))
    }

    fn node(inbound: &str, outbound: Outbound) -> Node {
        let inbound = crate::inbound::parse((!inbound.is_empty()).then_some(inbound)).unwrap();
        let kind = crate::node::ClientKind::Envoy;
        let by_service = ByService { ports: [8080].into(), ..ByService::default() };
        Node { kind, id: String::new(), cluster: String::new(), agent: String::new(), inbound, by_service, outbound }
    }

    const INBOUND: &str =
        r#"[{"listen": "10.0.0.7:9443", "app": "127.0.0.1:8080", "protocol": "tcp", "mode": "strict"}]"#;

    fn names(view: &View) -> Vec<String> {
        view.all(Kind::Listener).map(|listener| listener.name().to_string()).collect()
    }

    #[test]
    fn a_clients_own_listeners_are_its_own_and_change_only_with_what_they_are_made_of() {
        let surrounded = |view: &View, cut: &str| {
            let surroundings = Surroundings { trust_domains: vec!["a.example".into()], cut: cut.into() };
            Arc::new(view.clone().surrounded(surroundings))
        };
        let shared = Arc::new(View::default().edited([listener("hbone"), listener("127.64.0.1:80")]).unwrap());
        let mut nobody = Own::new(&node("", Outbound::Bound));
        assert!(Arc::ptr_eq(&nobody.beside(Arc::clone(&shared)), &shared), "costs nothing");

        let mut server = Own::new(&node(INBOUND, Outbound::None));
        assert_eq!(names(&server.beside(Arc::clone(&shared))), ["hbone"], "no trust domain is known yet");
        let shared = surrounded(&shared, "1");
        let first = server.beside(Arc::clone(&shared));
        assert_eq!(names(&first), ["hbone", "inbound|10.0.0.7:9443"]);
        assert!(first.get(Kind::Listener, "127.64.0.1:80").is_none() && first.len(Kind::Listener) == 2);
        assert!(first.get(Kind::Cluster, "inbound|10.0.0.7:9443").is_some());
        // Something else changes for all.
        let shared = Arc::new(shared.edited([listener("127.64.0.2:80")]).unwrap());
        let second = server.beside(Arc::clone(&shared));
        let changed: Vec<_> = second.changes_since(&first).unwrap().into_iter().collect();
        assert_eq!(changed, [(Kind::Listener, "127.64.0.2:80".into())]);
        assert_eq!(names(&second), names(&first));
        // Somebody lost trust.
        let third = server.beside(surrounded(&shared, "2"));
        let changed: Vec<_> = third.changes_since(&second).unwrap().into_iter().collect();
        assert_eq!(changed, [(Kind::Listener, "inbound|10.0.0.7:9443".into())]);
        assert!(third.generation() > second.generation(), "versions go on");
    }

    #[test]
    fn what_services_say_makes_the_listener_anew_and_stays_when_they_say_nothing() {
        let shared = Arc::new(
            View::default().surrounded(Surroundings { trust_domains: vec!["a.example".into()], cut: Arc::default() }),
        );
        let mut own = Own::new(&node(INBOUND, Outbound::None));
        let version = |view: &View| view.get(Kind::Listener, "inbound|10.0.0.7:9443").unwrap().version().to_owned();
        let first = own.beside(Arc::clone(&shared));
        let said = |list: &[(AppProtocol, &str)]| {
            let port =
                list.iter().map(|(protocol, name)| (*protocol, format!("shop/{name}").parse().unwrap())).collect();
            Said::from([(8080, port)])
        };
        own.hear(&said(&[(AppProtocol::Tcp, "web")]));
        assert_eq!(version(&own.beside(Arc::clone(&shared))), version(&first), "it is bytes already");
        own.hear(&said(&[(AppProtocol::Http, "web")]));
        let http = own.beside(Arc::clone(&shared));
        assert_ne!(version(&http), version(&first));
        assert_eq!(http.changes_since(&first).unwrap().len(), 2, "listener and cluster");
        own.hear(&Said::new());
        assert_eq!(version(&own.beside(Arc::clone(&shared))), version(&http));
        own.hear(&said(&[(AppProtocol::Http, "web"), (AppProtocol::Http2, "api")]));
        assert!(own.inbound[0].mixed && own.inbound[0].protocol == AppProtocol::Tcp);
        // Another port is no concern of this one.
        own.left.clear();
        own.hear(&said(&[(AppProtocol::Http, "web")]));
        assert!(own.inbound[0].mixed);
    }
}
