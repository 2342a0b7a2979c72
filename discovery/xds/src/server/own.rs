//! What one client alone is told, beside what all are.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::inbound::Inbound;
use crate::node::{Node, Outbound};
use crate::resources::{Surroundings, inbound_resources};
use crate::view::{Edit, Name, View};

/// The own part of one client's view, made anew only when what it is made of changes.
#[derive(Debug)]
pub(super) struct Own {
    inbound: Vec<Inbound>,
    outbound: Outbound,
    made: Option<(Arc<Surroundings>, Arc<View>)>,
}

impl Own {
    pub(super) fn new(node: &Node) -> Self {
        Self { inbound: node.inbound.clone(), outbound: node.outbound, made: None }
    }

    /// The view of this client.
    pub(super) fn beside(&mut self, shared: Arc<View>) -> Arc<View> {
        if self.inbound.is_empty() && self.outbound == Outbound::Bound {
            return shared;
        }
        let surroundings = shared.surroundings();
        let own = match &self.made {
            Some((before, own)) if before == surroundings => Arc::clone(own),
            made => {
                let before = made.as_ref().map(|(_, own)| Arc::clone(own)).unwrap_or_default();
                let own = self.make(surroundings, before);
                self.made = Some((Arc::clone(surroundings), Arc::clone(&own)));
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
    use crate::kind::Kind;
    use crate::resource::Resource;

    fn listener(name: &str) -> Edit {
        Edit::Put(Kind::Listener, Resource::new(Kind::Listener, name, &Hint::default()))
    }

    fn node(inbound: &str, outbound: Outbound) -> Node {
        let inbound = crate::inbound::parse((!inbound.is_empty()).then_some(inbound)).unwrap();
        let kind = crate::node::ClientKind::Envoy;
        Node { kind, id: String::new(), cluster: String::new(), agent: String::new(), inbound, outbound }
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
}
