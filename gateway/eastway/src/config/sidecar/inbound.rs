//! `inbound`: where a sidecar takes connections.

use std::net::SocketAddr;

use eastway_registry::diagnostic::Code;
use eastway_registry::yaml::{At, Context, List};
use eastway_xds::inbound::{Allowed, Inbound, MAX_ALLOWED, MAX_INBOUND, Mode};
use eastway_xds::resources::AppProtocol;

use super::super::file::{InboundSection, ModeWord, ProtocolWord};

pub(super) fn list(list: &List<InboundSection>, cx: &mut Context<'_>) -> Vec<Inbound> {
    let mut all: Vec<Inbound> = Vec::new();
    for section in list.items() {
        let Some(inbound) = one(section, cx) else { continue };
        let at = section.value.listen.get().map_or(section.at, |listen| listen.at);
        if all.iter().any(|other| other.listen == inbound.listen) {
            cx.error(at, Code::Duplicate, format!("{} is listed twice", inbound.listen));
        } else if let Some(other) = all.iter().find(|other| excludes(other.listen, inbound.listen)) {
            let (one, other) = (inbound.listen, other.listen);
            cx.error(at, Code::Conflict, format!("{one} and {other} cannot both be listened at: one is all addresses"));
        } else if excludes(inbound.listen, inbound.app) {
            cx.error(at, Code::Conflict, "the workload itself listens there, as app says");
        } else {
            all.push(inbound);
        }
    }
    if let Some(at) = list.get().filter(|_| all.len() > MAX_INBOUND) {
        cx.error(at.at, Code::TooLarge, format!("has more than {MAX_INBOUND} places"));
    }
    all
}

/// Whether who listens at one of two places keeps everybody from the other. `[::]` is IPv6 only.
fn excludes(one: SocketAddr, other: SocketAddr) -> bool {
    let same_family = one.is_ipv4() == other.is_ipv4();
    let meet = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && same_family && meet
}

fn one(section: &At<InboundSection>, cx: &mut Context<'_>) -> Option<Inbound> {
    let (at, inbound) = (section.at, &section.value);
    let what = "address and port where Envoy listens, e.g. 10.0.0.7:9443";
    let listen = cx.required_parse(at, "listen", &inbound.listen, what, place);
    let what = "address and port where the workload listens, e.g. 127.0.0.1:8080";
    let app = cx.required_parse(at, "app", &inbound.app, what, place);
    let allow: Vec<_> = cx.parse_items(&inbound.allow, Allowed::parse).into_iter().map(|at| at.value).collect();
    if let Some(list) = inbound.allow.get() {
        if list.value.is_empty() {
            cx.error(list.at, Code::Empty, "the list is empty; leave it out for everybody");
        } else if allow.len() > MAX_ALLOWED {
            cx.error(list.at, Code::TooLarge, format!("has more than {MAX_ALLOWED} identities"));
        }
    }
    let protocol = match inbound.protocol.value() {
        Some(ProtocolWord::Http) => AppProtocol::Http,
        Some(ProtocolWord::Http2) => AppProtocol::Http2,
        Some(ProtocolWord::Tcp) | None => AppProtocol::Tcp,
    };
    let mode = match inbound.mode.value() {
        Some(ModeWord::Strict) | None => Mode::Strict,
        Some(ModeWord::Permissive) => Mode::Permissive,
    };
    Some(Inbound { listen: listen?, app: app?, protocol, mode, allow })
}

pub(super) fn place(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "must be an IP address and a port".to_owned())?;
    if address.port() == 0 { Err("port 0 is none".to_owned()) } else { Ok(address) }
}
