//! `inbound`: where a sidecar takes connections.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use eastway_registry::diagnostic::Code;
use eastway_registry::yaml::{At, Context, List};
use eastway_xds::inbound::{Allowed, ByService, Inbound, MAX_ADDRESSES, MAX_ALLOWED, MAX_INBOUND, Mode};
use eastway_xds::resources::AppProtocol;

use super::super::file::{InboundProtocolWord, InboundSection, ModeWord, WorkloadNameSection};

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

/// Of which places services say what is spoken, and where those lead to the workload.
pub(super) fn by_service(
    list: &List<InboundSection>,
    workload: Option<&WorkloadNameSection>,
    cx: &mut Context<'_>,
) -> ByService {
    let addresses = workload.and_then(|workload| workload.addresses.get());
    let is_said = addresses.is_some();
    let addresses = addresses.and_then(|text| cx.parse(text, addresses_of)).unwrap_or_default();
    let mut ports = BTreeSet::new();
    for section in list.items() {
        let protocol = section.value.protocol.get().filter(|word| word.value == InboundProtocolWord::Service);
        let Some(word) = protocol else { continue };
        if !is_said {
            cx.error(word.at, Code::Missing, "service wants `workload.addresses`, where services lead to the workload");
        }
        // What cannot be read is said where it is.
        ports.extend(section.value.app.value().and_then(|app| place(app.as_ref()).ok()).map(|app| app.port()));
    }
    ByService { addresses, ports }
}

/// The kubelet knows the addresses of a pod as one text, empty if it has none.
fn addresses_of(text: &str) -> Result<BTreeSet<IpAddr>, String> {
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    let all: Result<BTreeSet<IpAddr>, _> = words.map(str::parse).collect();
    match all {
        Ok(all) if all.len() <= MAX_ADDRESSES => Ok(all),
        Ok(_) => Err(format!("has more than {MAX_ADDRESSES} addresses")),
        Err(_) => Err("must be IP addresses with commas between them".to_owned()),
    }
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
        Some(InboundProtocolWord::Http) => AppProtocol::Http,
        Some(InboundProtocolWord::Http2) => AppProtocol::Http2,
        Some(InboundProtocolWord::Tcp | InboundProtocolWord::Service) | None => AppProtocol::Tcp,
    };
    let mode = match inbound.mode.value() {
        Some(ModeWord::Strict) | None => Mode::Strict,
        Some(ModeWord::Permissive) => Mode::Permissive,
    };
    Some(Inbound { listen: listen?, app: app?, protocol, mixed: false, mode, allow })
}

pub(super) fn place(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "must be an IP address and a port".to_owned())?;
    if address.port() == 0 { Err("port 0 is none".to_owned()) } else { Ok(address) }
}
