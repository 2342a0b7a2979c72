//! From services and names to finished answers: the DNS schema of the Multi-Cluster Services API
//! (KEP-1645, `specification.md`), with the details it leaves open as CoreDNS 1.15 has them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::entry::{HeadlessEndpoint, NameEntry, PortEntry, Protocol, ServiceEntry, ServiceKind, ServiceName};
use crate::name::{CLUSTERSET, Fqdn, MAX_WIRE, NameError, is_label, push_label};
use crate::wire::rtype;
use crate::zone::DNS_SCHEMA_VERSION;
use crate::zone::answer::{Answer, Builder, Owner};

/// How many endpoints the name of a headless service answers with: "a subset is allowed" by the
/// specification, and 512 AAAA records still fit a TCP message. Each endpoint's own name exists.
const MAX_ENDPOINTS: usize = 512;

/// The records of one name, by type. A name without any still exists: an empty non-terminal.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Node(SmallVec<[(u16, Answer); 2]>);

impl Node {
    /// The answer for a type.
    pub(crate) fn get(&self, qtype: u16) -> Option<&Answer> {
        self.0.iter().find(|(rtype, _)| *rtype == qtype).map(|(_, answer)| answer)
    }

    fn set(&mut self, rtype: u16, answer: Option<Answer>) {
        if let Some(answer) = answer {
            self.0.push((rtype, answer));
        }
    }
}

/// A name with everything below it that comes and goes with it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The name on the wire, most of them in the entry itself.
    pub(crate) name: SmallVec<[u8; 56]>,
    /// Its records; `None` if the name is known but does not exist (no ready endpoints).
    pub(crate) node: Option<Node>,
    /// Names below it, by the labels in front.
    pub(crate) below: HashMap<Box<[u8]>, Node>,
    /// Part of the zone itself: served before any registry has been read.
    pub(crate) always: bool,
    /// There only for the sake of names below it.
    pub(crate) is_filler: bool,
    /// It exists, and cannot be answered yet.
    pub(crate) is_pending: bool,
    /// The service a name of one's own stands for.
    pub(crate) service: Option<ServiceName>,
}

impl Entry {
    /// A name without records.
    pub(crate) fn new(name: &[u8]) -> Self {
        Self {
            name: SmallVec::from_slice(name),
            node: Some(Node::default()),
            below: HashMap::new(),
            always: false,
            is_filler: false,
            is_pending: false,
            service: None,
        }
    }

    /// The name, to be kept elsewhere.
    pub(crate) fn key(&self) -> Box<[u8]> {
        self.name.as_slice().into()
    }

    /// A name that exists because others lie below it (RFC 8020 §2).
    pub(crate) fn filler(name: &[u8]) -> Self {
        Self { is_filler: true, ..Self::new(name) }
    }
}

/// The name of a service on the wire.
///
/// # Errors
/// [`NameError::NotALabel`] names the part that is not a DNS label.
pub(crate) fn service_name(namespace: &str, name: &str) -> Result<Box<[u8]>, NameError> {
    let mut wire = Vec::new();
    for label in [name, namespace] {
        if !is_label(label.as_bytes()) {
            return Err(NameError::NotALabel(label.to_owned()));
        }
        push_label(&mut wire, label);
    }
    push_label(&mut wire, "svc");
    wire.extend_from_slice(Fqdn::parse(CLUSTERSET)?.wire());
    Ok(wire.into_boxed_slice())
}

/// The entry of a service.
///
/// # Errors
/// [`NameError`] if a part of it is no DNS label.
pub(crate) fn service(service: &ServiceEntry) -> Result<Entry, NameError> {
    let mut entry = Entry::new(&service_name(&service.namespace, &service.name)?);
    match &service.kind {
        ServiceKind::ClusterSet { addresses } => fill(&mut entry, addresses, &service.ports),
        ServiceKind::Headless { endpoints } => fill_headless(&mut entry, endpoints, &service.ports)?,
        ServiceKind::Pending => entry.is_pending = true,
    }
    Ok(entry)
}

/// The entry of a name of one's own.
pub(crate) fn own_name(name: &NameEntry) -> Entry {
    let mut entry = Entry::new(name.fqdn.wire());
    entry.service.clone_from(&name.service);
    if name.addresses.is_empty() {
        entry.node = None;
    } else {
        fill(&mut entry, &name.addresses, &name.ports);
    }
    entry
}

/// The names a zone has by itself: its own (SOA and NS are made on the fly), its name server's,
/// and in `clusterset.local` the schema version and `svc`.
pub(crate) fn zone_names(zone: &Fqdn, servers: &[IpAddr]) -> Vec<Entry> {
    let below = |labels: &[&str]| {
        let mut wire = Vec::new();
        labels.iter().for_each(|label| push_label(&mut wire, label));
        wire.extend_from_slice(zone.wire());
        Entry { always: true, ..Entry::new(&wire) }
    };
    let mut server = below(&["ns", "dns"]);
    set_addresses(&mut server, servers);
    let mut entries = vec![below(&[]), below(&["dns"]), server];
    if zone.to_string() == CLUSTERSET {
        let mut version = below(&["dns-version"]);
        let mut answer = Builder::new(version.name.len());
        let mut text = Vec::new();
        push_label(&mut text, DNS_SCHEMA_VERSION);
        answer.answer(rtype::TXT, &text);
        if let Some(node) = &mut version.node {
            node.set(rtype::TXT, answer.finish());
        }
        entries.extend([below(&["svc"]), version]);
    }
    entries
}

/// Addresses and SRV records of a name that stands for a whole service.
fn fill(entry: &mut Entry, addresses: &[IpAddr], ports: &[PortEntry]) {
    let addresses = distinct(addresses);
    set_addresses(entry, &addresses);
    let named: Vec<_> = ports.iter().filter_map(Named::of).collect();
    let bare = srv_to_self(&entry.name, 0, &addresses, &named);
    if let Some(node) = &mut entry.node {
        node.set(rtype::SRV, bare);
    }
    for (prefix, ports) in by_prefix(&named) {
        // The name of a port exists with its service, records or not.
        let answer = srv_to_self(&entry.name, prefix.len(), &addresses, &ports);
        add_below(entry, prefix, answer);
    }
}

/// Addresses and SRV records of a headless service, and the names of its endpoints.
fn fill_headless(entry: &mut Entry, endpoints: &[HeadlessEndpoint], ports: &[PortEntry]) -> Result<(), NameError> {
    let targets = targets(entry, endpoints)?;
    if targets.is_empty() {
        entry.node = None;
        return Ok(());
    }
    let shown = targets.get(..targets.len().min(MAX_ENDPOINTS)).unwrap_or(&targets);
    let all: Vec<_> = shown.iter().flat_map(|target| target.addresses.iter().copied()).collect();
    set_addresses(entry, &distinct(&all));
    let named: Vec<_> = ports.iter().filter_map(Named::of).collect();
    let bare = srv_to_endpoints(entry.name.len(), shown, &named);
    if let Some(node) = &mut entry.node {
        node.set(rtype::SRV, bare);
    }
    for (prefix, ports) in by_prefix(&named) {
        let answer = srv_to_endpoints(prefix.len() + entry.name.len(), shown, &ports);
        add_below(entry, prefix, answer);
    }
    for target in &targets {
        let mut node = Node::default();
        put_addresses(&mut node, target.wire.len(), &target.addresses);
        node.set(rtype::SRV, srv_to_self(&target.wire, 0, &target.addresses, &named));
        let prefix = target.wire.get(..target.wire.len() - entry.name.len()).unwrap_or_default();
        // `<cluster>.<service>` alone stays NXDOMAIN: the specification forbids it to exist.
        entry.below.insert(prefix.into(), node);
    }
    Ok(())
}

/// A named port.
#[derive(Clone, Copy)]
struct Named<'a> {
    name: &'a str,
    protocol: Protocol,
    port: u16,
}

impl<'a> Named<'a> {
    fn of(port: &'a PortEntry) -> Option<Self> {
        let name = port.name.as_deref().filter(|name| is_label(name.as_bytes()))?;
        Some(Self { name, protocol: port.protocol, port: port.port })
    }
}

/// The ports behind each `_port._protocol`.
fn by_prefix<'a>(named: &[Named<'a>]) -> BTreeMap<Vec<u8>, Vec<Named<'a>>> {
    let mut prefixes: BTreeMap<Vec<u8>, Vec<Named<'a>>> = BTreeMap::new();
    for port in named {
        let mut prefix = Vec::new();
        let label = format!("_{}", port.name);
        if label.len() > crate::name::MAX_LABEL {
            continue;
        }
        push_label(&mut prefix, &label);
        push_label(&mut prefix, port.protocol.label());
        prefixes.entry(prefix).or_default().push(*port);
    }
    prefixes
}

/// One endpoint of a headless service under its full name.
struct Target {
    wire: Vec<u8>,
    addresses: Vec<IpAddr>,
}

/// The endpoints by name: those of one hostname in one cluster are one name with several addresses.
/// Names longer than a name can be are left out.
fn targets(entry: &Entry, endpoints: &[HeadlessEndpoint]) -> Result<Vec<Target>, NameError> {
    let mut targets: BTreeMap<Vec<u8>, Vec<IpAddr>> = BTreeMap::new();
    for endpoint in endpoints {
        let Some(first) = endpoint.addresses.first() else { continue };
        let hostname = endpoint.hostname.clone().unwrap_or_else(|| dashed(first));
        let mut wire = Vec::new();
        for label in [hostname.as_str(), endpoint.cluster.as_str()] {
            if !is_label(label.as_bytes()) {
                return Err(NameError::NotALabel(label.to_owned()));
            }
            push_label(&mut wire, label);
        }
        wire.extend_from_slice(&entry.name);
        if wire.len() <= MAX_WIRE {
            targets.entry(wire).or_default().extend_from_slice(&endpoint.addresses);
        }
    }
    Ok(targets.into_iter().map(|(wire, addresses)| Target { wire, addresses: distinct(&addresses) }).collect())
}

/// The hostname of an endpoint that has none, as CoreDNS makes it: `10.0.0.1` is `10-0-0-1`,
/// `fd00::` is `fd00--0`. One that begins with a dash gets a zero in front, to be a label.
fn dashed(address: &IpAddr) -> String {
    let text = address.to_string().replace(['.', ':'], "-");
    let front = if text.starts_with('-') { "0" } else { "" };
    let back = if text.ends_with('-') { "0" } else { "" };
    format!("{front}{text}{back}")
}

fn set_addresses(entry: &mut Entry, addresses: &[IpAddr]) {
    let length = entry.name.len();
    if let Some(node) = &mut entry.node {
        put_addresses(node, length, addresses);
    }
}

fn put_addresses(node: &mut Node, question: usize, addresses: &[IpAddr]) {
    for (rtype, wanted_v4) in [(rtype::A, true), (rtype::AAAA, false)] {
        let mut builder = Builder::new(question);
        addresses.iter().filter(|address| address.is_ipv4() == wanted_v4).for_each(|address| builder.address(*address));
        node.set(rtype, builder.finish());
    }
}

/// SRV records that point at the name itself. `prefix` bytes of labels stand in front of it in the
/// question.
fn srv_to_self(name: &[u8], prefix: usize, addresses: &[IpAddr], ports: &[Named<'_>]) -> Option<Answer> {
    if prefix + name.len() > MAX_WIRE {
        return None;
    }
    let weight = weight(addresses.len() * ports.len())?;
    let mut builder = Builder::new(prefix + name.len());
    for port in distinct(&ports.iter().map(|port| port.port).collect::<Vec<_>>()) {
        builder.answer(rtype::SRV, &srv(weight, port, name));
    }
    addresses.iter().for_each(|address| builder.extra_address(Owner::Question(prefix), *address));
    builder.finish()
}

/// SRV records that point at endpoints, to questions whose name is `question` bytes long.
fn srv_to_endpoints(question: usize, targets: &[Target], ports: &[Named<'_>]) -> Option<Answer> {
    if question > MAX_WIRE {
        return None;
    }
    let weight = weight(targets.iter().map(|target| target.addresses.len()).sum::<usize>() * ports.len())?;
    let mut builder = Builder::new(question);
    let ports = distinct(&ports.iter().map(|port| port.port).collect::<Vec<_>>());
    for target in targets {
        let mut at = None;
        for port in &ports {
            let data = builder.answer(rtype::SRV, &srv(weight, *port, &target.wire));
            at = at.or(data.map(|data| data + SRV_FIXED));
        }
        if let Some(at) = at {
            target.addresses.iter().for_each(|address| builder.extra_address(Owner::At(at), *address));
        }
    }
    builder.finish()
}

/// Bytes of an SRV record's data before its target.
const SRV_FIXED: usize = 6;

fn srv(weight: u16, port: u16, target: &[u8]) -> Vec<u8> {
    // The target is not compressed (RFC 2782).
    let mut data = Vec::with_capacity(SRV_FIXED + target.len());
    data.extend_from_slice(&0_u16.to_be_bytes());
    data.extend_from_slice(&weight.to_be_bytes());
    data.extend_from_slice(&port.to_be_bytes());
    data.extend_from_slice(target);
    data
}

/// An equal share of 100 among `count`, at least 1, as CoreDNS computes it: over addresses times
/// ports, before records that turn out equal are dropped. Nothing to share has no records.
fn weight(count: usize) -> Option<u16> {
    let share = 100_usize.checked_div(count)?;
    Some(u16::try_from(share).unwrap_or(1).max(1))
}

/// Adds the name of a port below the entry, and the empty name between the two (`_tcp`).
fn add_below(entry: &mut Entry, prefix: Vec<u8>, answer: Option<Answer>) {
    let first = prefix.first().map_or(0, |length| 1 + usize::from(*length));
    if let Some(protocol) = prefix.get(first..) {
        entry.below.entry(protocol.into()).or_default();
    }
    entry.below.entry(prefix.into_boxed_slice()).or_default().set(rtype::SRV, answer);
}

/// The elements in their order, each once.
fn distinct<T: Copy + Eq + std::hash::Hash>(elements: &[T]) -> Vec<T> {
    let mut seen = hashbrown::HashSet::with_capacity(elements.len());
    elements.iter().copied().filter(|element| seen.insert(*element)).collect()
}
