//! From a query to a reply, without input or output: whom to answer, and what.
//!
//! Plain queries (one question, at most one ordinary OPT record) are read here. All others go
//! through [`slow`], which decides with hickory's parser what is wrong with them.

mod slow;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::ZoneStore;
use crate::counters::{Counters, DropReason, WorkerCounters};
use crate::limit::{RateLimiter, Verdict};
use crate::wire::{
    CLASS_IN, Counts, EDE_NOT_READY, Edns, Flags, HEADER, Header, MAX_OPT, MAX_UDP, MIN_UDP, QName, Question, Rcode,
    pointer, put_header, put_opt, read_plain_rest, rtype,
};
use crate::zone::{Answer, NEGATIVE_TTL, Resolution, Soa, TTL};

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram: replies are limited in size and rate.
    Udp,
    /// Over a connection.
    Tcp,
}

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is a reply.
    Reply,
    /// It gets none.
    Drop(DropReason),
}

/// Answers queries from a [`ZoneStore`]. Clones share everything but belong to one worker each.
#[derive(Clone, Debug)]
pub struct Responder {
    store: Arc<ZoneStore>,
    limiter: Arc<RateLimiter>,
    counters: Arc<WorkerCounters>,
}

impl Responder {
    /// A responder that counts for itself.
    #[must_use]
    pub fn new(store: Arc<ZoneStore>, limiter: Arc<RateLimiter>) -> Self {
        let counters = Counters::new(1).worker(0);
        Self { store, limiter, counters }
    }

    /// The same for a worker of a server.
    pub(crate) fn for_worker(&self, counters: Arc<WorkerCounters>) -> Self {
        Self { counters, ..self.clone() }
    }

    /// The counters it counts with.
    pub(crate) fn counters(&self) -> &WorkerCounters {
        &self.counters
    }

    /// Writes the reply to `query` from `source` into `reply`, replacing what is there.
    pub fn respond(
        &self,
        query: &[u8],
        source: SocketAddr,
        transport: Transport,
        now: Instant,
        reply: &mut Vec<u8>,
    ) -> Outcome {
        reply.clear();
        let outcome = self.decide(query, source, transport, now, reply);
        if let Outcome::Drop(reason) = outcome {
            reply.clear();
            self.counters.dropped(reason);
        }
        outcome
    }

    fn decide(
        &self,
        query: &[u8],
        source: SocketAddr,
        transport: Transport,
        now: Instant,
        reply: &mut Vec<u8>,
    ) -> Outcome {
        let Some(header) = Header::read(query) else { return Outcome::Drop(DropReason::Short) };
        if header.is_response() {
            return Outcome::Drop(DropReason::Response);
        }
        if transport == Transport::Udp && !is_host(source) {
            return Outcome::Drop(DropReason::Source);
        }
        let verdict = match transport {
            Transport::Udp => self.limiter.charge(source.ip(), now),
            Transport::Tcp => Verdict::Send,
        };
        if verdict == Verdict::Drop {
            return Outcome::Drop(DropReason::RateLimited);
        }
        let mut name = QName::new();
        let is_query = header.opcode() == 0 && header.questions == 1;
        let question = if is_query { Question::read(query, &mut name) } else { None };
        let plain = question.and_then(|(question, rest)| {
            read_plain_rest(header, rest).map(|edns| Request { header, question, name: &name, edns, transport })
        });
        let request = match plain {
            Some(request) => request,
            None => {
                self.counters.slow();
                match slow::judge(header, query, question.map(|(question, _)| question)) {
                    slow::Verdict::Query(question, edns) => Request { header, question, name: &name, edns, transport },
                    slow::Verdict::Error { rcode, edns } => {
                        put_header(reply, header, rcode, Flags::default(), self.opt_counts(edns));
                        self.finish(reply, rcode, edns, None);
                        return Outcome::Reply;
                    }
                }
            }
        };
        self.counters.query(request.question.qtype);
        if verdict == Verdict::Slip {
            self.truncate(request, reply);
        } else {
            self.answer(request, now, reply);
        }
        Outcome::Reply
    }

    fn answer(&self, request: Request<'_>, now: Instant, reply: &mut Vec<u8>) {
        let qtype = request.question.qtype;
        if request.question.qclass != CLASS_IN || (rtype::TKEY..=rtype::MAILA).contains(&qtype) {
            return self.error(request, Rcode::Refused, None, reply);
        }
        self.store.resolve(request.name, qtype, now, |resolution| match resolution {
            Resolution::Answer(answer) => self.records(request, answer, reply),
            Resolution::Soa(soa) => self.single(request, reply, |reply| put_soa(reply, request, soa, TTL)),
            Resolution::Ns(soa) => self.single(request, reply, |reply| put_ns(reply, request, soa)),
            Resolution::Any => self.single(request, reply, put_any),
            Resolution::NoData(soa) => self.negative(request, Rcode::NoError, soa, reply),
            Resolution::NxDomain(soa) => self.negative(request, Rcode::NxDomain, soa, reply),
            Resolution::NotReady => self.error(request, Rcode::ServFail, Some(EDE_NOT_READY), reply),
            Resolution::OutOfZone => self.error(request, Rcode::Refused, None, reply),
        });
    }

    /// Finished records, as many as fit.
    fn records(&self, request: Request<'_>, answer: &Answer, reply: &mut Vec<u8>) {
        let cut = answer.cut(request.room());
        let flags = Flags { authoritative: true, truncated: cut.truncated };
        let counts = Counts { questions: 1, answers: cut.answers, authorities: 0, additionals: cut.extras };
        self.begin(request, Rcode::NoError, flags, counts, reply);
        reply.extend_from_slice(cut.bytes);
        if cut.truncated {
            self.counters.truncated();
        }
        self.finish(reply, Rcode::NoError, request.edns, None);
    }

    /// One record made on the fly.
    fn single(&self, request: Request<'_>, reply: &mut Vec<u8>, put: impl FnOnce(&mut Vec<u8>)) {
        let counts = Counts { questions: 1, answers: 1, ..Counts::default() };
        self.begin(request, Rcode::NoError, Flags { authoritative: true, truncated: false }, counts, reply);
        put(reply);
        self.finish(reply, Rcode::NoError, request.edns, None);
    }

    /// No such records, or no such name, with the SOA record that says for how long (RFC 2308).
    fn negative(&self, request: Request<'_>, rcode: Rcode, soa: Soa<'_>, reply: &mut Vec<u8>) {
        let counts = Counts { questions: 1, authorities: 1, ..Counts::default() };
        self.begin(request, rcode, Flags { authoritative: true, truncated: false }, counts, reply);
        put_soa(reply, request, soa, NEGATIVE_TTL);
        self.finish(reply, rcode, request.edns, None);
    }

    /// A refusal or failure, with the question.
    fn error(&self, request: Request<'_>, rcode: Rcode, extended: Option<u16>, reply: &mut Vec<u8>) {
        let counts = Counts { questions: 1, ..Counts::default() };
        self.begin(request, rcode, Flags::default(), counts, reply);
        self.finish(reply, rcode, request.edns, extended);
    }

    /// Nothing but "ask again over TCP".
    fn truncate(&self, request: Request<'_>, reply: &mut Vec<u8>) {
        self.counters.truncated();
        let counts = Counts { questions: 1, ..Counts::default() };
        self.begin(request, Rcode::NoError, Flags { authoritative: true, truncated: true }, counts, reply);
        self.finish(reply, Rcode::NoError, request.edns, None);
    }

    fn begin(&self, request: Request<'_>, rcode: Rcode, flags: Flags, counts: Counts, reply: &mut Vec<u8>) {
        let opt = self.opt_counts(request.edns);
        let counts = Counts { additionals: counts.additionals.saturating_add(opt.additionals), ..counts };
        put_header(reply, request.header, rcode, flags, counts);
        reply.extend_from_slice(request.question.bytes);
    }

    fn opt_counts(&self, edns: Option<Edns>) -> Counts {
        Counts { additionals: u16::from(edns.is_some()), ..Counts::default() }
    }

    fn finish(&self, reply: &mut Vec<u8>, rcode: Rcode, edns: Option<Edns>, extended: Option<u16>) {
        if let Some(edns) = edns {
            put_opt(reply, edns, rcode, extended);
        }
        self.counters.answer(rcode);
    }
}

/// A query understood.
#[derive(Clone, Copy, Debug)]
struct Request<'a> {
    header: Header,
    question: Question<'a>,
    name: &'a QName,
    edns: Option<Edns>,
    transport: Transport,
}

impl Request<'_> {
    /// Bytes left for records.
    fn room(&self) -> usize {
        let limit = match (self.transport, self.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => MIN_UDP,
            (Transport::Udp, Some(edns)) => usize::from(edns.payload).clamp(MIN_UDP, MAX_UDP),
        };
        let opt = if self.edns.is_some() { MAX_OPT } else { 0 };
        limit.saturating_sub(HEADER + self.question.bytes.len() + opt)
    }
}

/// Whether a datagram may come from there. A reply to port 0 goes nowhere, one to an address of
/// many is an amplifier.
fn is_host(source: SocketAddr) -> bool {
    let is_many = match source.ip().to_canonical() {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.is_multicast() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_multicast() || v6.is_unspecified(),
    };
    source.port() != 0 && !is_many
}

/// Where the zone's name stands in the question, as a pointer.
fn zone_pointer(request: Request<'_>, soa: Soa<'_>) -> [u8; 2] {
    let skip = request.name.wire().len().saturating_sub(soa.zone.len());
    // A question is at most 259 bytes: a pointer always reaches.
    pointer(HEADER + skip).unwrap_or_default()
}

fn put_head(reply: &mut Vec<u8>, owner: [u8; 2], rtype: u16, ttl: u32, length: u16) {
    reply.extend_from_slice(&owner);
    reply.extend_from_slice(&rtype.to_be_bytes());
    reply.extend_from_slice(&CLASS_IN.to_be_bytes());
    reply.extend_from_slice(&ttl.to_be_bytes());
    reply.extend_from_slice(&length.to_be_bytes());
}

const SERVER: &[u8] = b"\x02ns\x03dns";
const MAILBOX: &[u8] = b"\x0ahostmaster";

fn put_soa(reply: &mut Vec<u8>, request: Request<'_>, soa: Soa<'_>, ttl: u32) {
    let zone = zone_pointer(request, soa);
    put_head(reply, zone, rtype::SOA, ttl, 42);
    reply.extend_from_slice(SERVER);
    reply.extend_from_slice(&zone);
    reply.extend_from_slice(MAILBOX);
    reply.extend_from_slice(&zone);
    // Refresh, retry and expire matter to secondaries only; there are none. The last is the
    // time for which a denial may be kept (RFC 2308 §4).
    for field in [soa.serial, 7200, 1800, 86400, NEGATIVE_TTL] {
        reply.extend_from_slice(&field.to_be_bytes());
    }
}

fn put_ns(reply: &mut Vec<u8>, request: Request<'_>, soa: Soa<'_>) {
    let zone = zone_pointer(request, soa);
    put_head(reply, zone, rtype::NS, TTL, 9);
    reply.extend_from_slice(SERVER);
    reply.extend_from_slice(&zone);
}

/// The minimal answer to ANY (RFC 8482 §4.2).
fn put_any(reply: &mut Vec<u8>) {
    put_head(reply, pointer(HEADER).unwrap_or_default(), rtype::HINFO, TTL, 9);
    reply.extend_from_slice(b"\x07RFC8482\x00");
}
