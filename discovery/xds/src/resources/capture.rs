//! Listeners for who has connections to virtual addresses led to one listener of its own: Envoy gives each to the listener for
//! its original destination, which has no socket.

use eastway_proto::envoy::config::listener::v3 as listener;
use eastway_proto::envoy::google::protobuf;

use super::Generated;
use crate::kind::Kind;
use crate::node::Outbound;
use crate::resource::Resource;

/// What their names begin with.
const PREFIX: &str = "captured|";

/// The same without a socket.
pub(super) fn captured(bound: listener::Listener) -> Generated {
    let name = format!("{PREFIX}{}", bound.name);
    let listener = listener::Listener { name, bind_to_port: Some(protobuf::BoolValue { value: false }), ..bound };
    (Kind::Listener, Resource::new(Kind::Listener, &listener.name, &listener))
}

/// Whether a listener that leads out is for who takes connections like this.
pub(crate) fn is_of(name: &str, outbound: Outbound) -> bool {
    match outbound {
        Outbound::Bound => !name.starts_with(PREFIX),
        Outbound::Captured => name.starts_with(PREFIX),
        Outbound::None => false,
    }
}
