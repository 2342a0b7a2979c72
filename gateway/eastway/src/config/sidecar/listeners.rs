//! `listeners`: where a sidecar takes connections to one import each.

use std::net::SocketAddr;
use std::num::NonZeroU16;

use eastway_model::{PortNumber, ServiceKey};
use eastway_registry::diagnostic::Code;
use eastway_registry::yaml::{At, Context, List};
use eastway_xds::resources::AppProtocol;
use serde::Serialize;

use super::super::file::{ListenerSection, ProtocolWord};
use super::inbound::place;

/// Most of one sidecar.
const MOST: usize = 64;

/// A place that leads to a port of an import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Where.
    pub listen: SocketAddr,
    /// The service.
    pub service: ServiceKey,
    /// Its port.
    pub port: PortNumber,
    /// What is spoken: where it is HTTP, rules about requests apply.
    pub protocol: AppProtocol,
}

pub(super) fn list(list: &List<ListenerSection>, cx: &mut Context<'_>) -> Vec<Listener> {
    let mut all: Vec<Listener> = Vec::new();
    for section in list.items() {
        let Some(listener) = one(section, cx) else { continue };
        if all.iter().any(|other| other.listen == listener.listen) {
            cx.error(section.at, Code::Duplicate, format!("{} is listed twice", listener.listen));
        } else {
            all.push(listener);
        }
    }
    if let Some(at) = list.get().filter(|_| all.len() > MOST) {
        cx.error(at.at, Code::TooLarge, format!("has more than {MOST} places"));
    }
    all
}

fn one(section: &At<ListenerSection>, cx: &mut Context<'_>) -> Option<Listener> {
    let (at, listener) = (section.at, &section.value);
    let what = "address and port where Envoy listens, e.g. 127.0.0.1:9080";
    let listen = cx.required_parse(at, "listen", &listener.listen, what, place);
    let what = "a service, e.g. bookinfo/reviews";
    let service = cx.required_parse(at, "service", &listener.service, what, str::parse::<ServiceKey>);
    let port = cx.required(at, "port", &listener.port, "its port").and_then(|port| {
        let number = u16::try_from(port.value).ok().and_then(NonZeroU16::new);
        if number.is_none() {
            cx.error(port.at, Code::Value, "must be 1 to 65535");
        }
        number
    });
    let protocol = match listener.protocol.value() {
        Some(ProtocolWord::Http) => AppProtocol::Http,
        Some(ProtocolWord::Http2) => AppProtocol::Http2,
        Some(ProtocolWord::Tcp) | None => AppProtocol::Tcp,
    };
    Some(Listener { listen: listen?, service: service?, port: port?, protocol })
}
