//! What the tests share: entries in few words, and a client without a network.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use eastway_dns::{
    Fqdn, HeadlessEndpoint, NameEntry, Outcome, PortEntry, Protocol, RateLimiter, Readiness, Responder, ServiceEntry,
    ServiceKind, Transport, ZoneStore,
};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RData, Record, RecordType};

type Port<'a> = (Option<&'a str>, Protocol, u16);

/// A store that knows everything, with these zones of its own.
pub(crate) fn store(zones: &[&str]) -> Arc<ZoneStore> {
    let store = ZoneStore::new(zones.iter().map(|zone| Fqdn::parse(zone).unwrap())).unwrap();
    store.set_readiness(Readiness::complete());
    store
}

/// A service with addresses of its own.
pub(crate) fn clusterset(namespace: &str, name: &str, addresses: &[&str], ports: &[Port<'_>]) -> ServiceEntry {
    let kind =
        ServiceKind::ClusterSet { addresses: addresses.iter().map(|address| address.parse().unwrap()).collect() };
    ServiceEntry { namespace: namespace.into(), name: name.into(), kind, ports: self::ports(ports) }
}

/// A headless service.
pub(crate) fn headless(
    namespace: &str,
    name: &str,
    endpoints: Vec<HeadlessEndpoint>,
    ports: &[Port<'_>],
) -> ServiceEntry {
    let kind = ServiceKind::Headless { endpoints };
    ServiceEntry { namespace: namespace.into(), name: name.into(), kind, ports: self::ports(ports) }
}

/// One of its endpoints.
pub(crate) fn headless_endpoint(hostname: Option<&str>, cluster: &str, addresses: &[&str]) -> HeadlessEndpoint {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    HeadlessEndpoint { hostname: hostname.map(Into::into), cluster: cluster.into(), addresses }
}

/// A name of one's own.
pub(crate) fn own_name(fqdn: &str, addresses: &[&str], ports: &[Port<'_>]) -> NameEntry {
    NameEntry {
        fqdn: Fqdn::parse(fqdn).unwrap(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ports: self::ports(ports),
        service: None,
    }
}

fn ports(ports: &[Port<'_>]) -> Vec<PortEntry> {
    ports
        .iter()
        .map(|(name, protocol, port)| PortEntry { name: name.map(Into::into), protocol: *protocol, port: *port })
        .collect()
}

/// A service of each kind and a name of one's own.
pub(crate) fn sample() -> Arc<ZoneStore> {
    let store = store(&["shop.example"]);
    let http = [(Some("http"), Protocol::Tcp, 80)];
    store.upsert_service(&clusterset("demo", "web", &["242.0.0.1", "fd65:6173:7477::1"], &http)).unwrap();
    let pods = (0..100).map(|i| headless_endpoint(Some(&format!("pod-{i}")), "c-a", &[&format!("10.0.0.{i}")]));
    store.upsert_service(&headless("demo", "big", pods.collect(), &http)).unwrap();
    store.upsert_name(&own_name("reviews.shop.example", &["242.0.0.2"], &http)).unwrap();
    store
}

/// The fuzz corpus, by file name.
pub(crate) fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/dns_query");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|file| file.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    assert!(files.len() >= 40, "the corpus is not whole");
    files
}

/// A client that hands its packets to a responder.
pub(crate) struct Ask {
    pub(crate) responder: Responder,
    pub(crate) now: Instant,
    pub(crate) source: SocketAddr,
}

impl Ask {
    pub(crate) fn new(store: Arc<ZoneStore>) -> Self {
        let now = Instant::now();
        let responder = Responder::new(store, Arc::new(RateLimiter::new(0, now)));
        Self { responder, now, source: "192.0.2.1:5353".parse().unwrap() }
    }

    /// Hands over bytes; `None` if there is no reply.
    pub(crate) fn raw(&self, query: &[u8], transport: Transport) -> Result<Vec<u8>, Outcome> {
        let mut reply = Vec::new();
        match self.responder.respond(query, self.source, transport, self.now, &mut reply) {
            Outcome::Reply => Ok(reply),
            dropped => Err(dropped),
        }
    }

    /// The reply to a query with EDNS over UDP.
    pub(crate) fn message(&self, name: &str, qtype: &str) -> Message {
        let reply = self.raw(&query(name, qtype), Transport::Udp).unwrap();
        assert!(reply.len() <= 1232);
        Message::from_vec(&reply).unwrap()
    }

    /// The reply over TCP.
    pub(crate) fn tcp(&self, name: &str, qtype: &str) -> Message {
        Message::from_vec(&self.raw(&query(name, qtype), Transport::Tcp).unwrap()).unwrap()
    }

    /// The reply in one line.
    pub(crate) fn line(&self, name: &str, qtype: &str) -> String {
        line(&self.message(name, qtype))
    }

    /// The response code for A records.
    pub(crate) fn rcode(&self, name: &str) -> String {
        let line = self.line(name, "A");
        line.split(' ').next().unwrap_or_default().to_owned()
    }
}

/// A query as a resolver sends it.
pub(crate) fn query(name: &str, qtype: &str) -> Vec<u8> {
    let mut labels = Name::from_ascii(name).unwrap();
    labels.set_fqdn(true);
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(labels, qtype.parse::<RecordType>().unwrap()));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message.to_vec().unwrap()
}

/// A reply in one line: code, answers, `+` and additional records, SOA, extended error. Sorted, so
/// that the order of records does not matter.
pub(crate) fn line(message: &Message) -> String {
    assert_eq!(message.metadata.message_type, MessageType::Response);
    let mut parts = vec![rcode(message).to_owned()];
    parts.extend(sorted(&message.answers));
    if !message.additionals.is_empty() {
        parts.push("+".into());
        parts.extend(sorted(&message.additionals));
    }
    parts.extend(sorted(&message.authorities));
    if let Some(EdnsOption::Unknown(_, data)) =
        message.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Unknown(15)))
    {
        parts.push(format!("EDE {}", u16::from_be_bytes([data[0], data[1]])));
    }
    parts.join(" ")
}

fn sorted(records: &[Record]) -> Vec<String> {
    let mut lines: Vec<_> = records.iter().map(record).collect();
    lines.sort();
    lines
}

fn record(record: &Record) -> String {
    if let RData::SOA(_) = &record.data {
        return "SOA".into();
    }
    format!("{} {}", record.record_type(), record.data)
}

/// The response code as `dig` names it.
pub(crate) fn rcode(message: &Message) -> &'static str {
    match u16::from(message.metadata.response_code) {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        16 => "BADVERS",
        _ => "?",
    }
}
