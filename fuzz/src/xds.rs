//! What proxies send for their configuration.

use std::sync::Arc;

use eastway_model::Label;
use eastway_proto::xds::discovery as wire;
use eastway_xds::node::{Node, Workload};
use eastway_xds::session::{DeltaSession, Session, WorldSession};
use eastway_xds::view::Edit;
use eastway_xds::{Kind, Resource, View};
use prost::Message;

/// Answers to one request beside those it asked for by name.
const MOST: usize = 64;

/// The requests of one stream, each with its length before it; the first byte says which form of the protocol. Between
/// them the view changes.
pub fn requests(bytes: &[u8]) {
    let Some((form, rest)) = bytes.split_first() else { return };
    if form.is_multiple_of(2) {
        stream::<DeltaSession, wire::DeltaDiscoveryRequest>(rest);
    } else {
        stream::<WorldSession, wire::DiscoveryRequest>(rest);
    }
}

fn stream<S, R>(mut bytes: &[u8])
where
    S: Session<Request = R>,
    R: Message + Default,
{
    let (Ok(namespace), Ok(service_account)) = (Label::parse("shop"), Label::parse("web")) else { return };
    let workload = Workload { namespace, service_account };
    let mut session = S::new("s".to_owned());
    let mut view = Arc::new(View::default());
    let mut number = 0_u32;
    while !bytes.is_empty() {
        let Ok(request) = R::decode_length_delimited(&mut bytes) else { return };
        if let Ok(node) = Node::parse(S::node(&request), &workload) {
            assert!(node.id.ends_with(".shop") && node.cluster == "web.shop");
            assert!(node.check_again(S::node(&request), &workload).is_ok());
        }
        let Ok(answer) = session.handle(request) else { return };
        assert!(answer.responses.len() <= MOST);
        number += 1;
        let content = wire::Hint { string_value: Some(number.to_string()) };
        let name = if number.is_multiple_of(2) { "a" } else { "b" };
        let edits = [Kind::Cluster, Kind::Endpoints, Kind::Listener]
            .map(|kind| Edit::Put(kind, Resource::new(kind, name, &content)));
        if let Some(next) = view.edited(edits) {
            view = Arc::new(next);
        }
        assert!(session.update(Arc::clone(&view)).len() <= MOST);
        assert!(session.update(Arc::clone(&view)).is_empty(), "nothing is sent twice");
    }
}
