//! A small client for one question to one server: over UDP, and over TCP when the answer was cut.
//! For the command line, the demo and tests; nothing on a request's path asks DNS.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, Name, RData, Record as WireRecord, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::respond::Transport;

/// How long a datagram is waited for before it is sent again.
const RETRANSMIT: Duration = Duration::from_millis(800);
/// The largest UDP reply asked for.
const PAYLOAD: u16 = 1232;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueryType {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Ports and hosts.
    Srv,
    /// Text.
    Txt,
    /// Name servers.
    Ns,
    /// Start of authority.
    Soa,
    /// Any other, by number.
    Other(u16),
}

impl QueryType {
    fn number(self) -> u16 {
        match self {
            Self::A => 1,
            Self::Aaaa => 28,
            Self::Srv => 33,
            Self::Txt => 16,
            Self::Ns => 2,
            Self::Soa => 6,
            Self::Other(number) => number,
        }
    }
}

impl std::str::FromStr for QueryType {
    type Err = QueryError;

    /// Parses `A`, `aaaa`, `MX`, `TYPE65` and so on.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || QueryError::UnknownType(text.to_owned());
        let upper = text.to_ascii_uppercase();
        let number = match upper.strip_prefix("TYPE").and_then(|digits| digits.parse().ok()) {
            Some(number) => number,
            None => u16::from(upper.parse::<RecordType>().map_err(|_| unknown())?),
        };
        Ok([Self::A, Self::Aaaa, Self::Srv, Self::Txt, Self::Ns, Self::Soa]
            .into_iter()
            .find(|known| known.number() == number)
            .unwrap_or(Self::Other(number)))
    }
}

/// One record of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whose it is, with the final dot, in the case in which it came.
    pub name: String,
    /// Seconds it may be kept.
    pub ttl: u32,
    /// Its data.
    pub data: RecordData,
}

/// The data of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordData {
    /// A or AAAA.
    Address(IpAddr),
    /// SRV.
    Srv {
        /// Lower is asked first.
        priority: u16,
        /// Share among equals.
        weight: u16,
        /// The port.
        port: u16,
        /// The host, with the final dot.
        target: String,
    },
    /// TXT, its strings joined.
    Txt(String),
    /// SOA.
    Soa {
        /// The version of the zone.
        serial: u32,
        /// Seconds for which a denial may be kept.
        minimum: u32,
    },
    /// Any other, as `dig` would print it, the type in front.
    Other(String),
}

impl fmt::Display for RecordData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(IpAddr::V4(address)) => write!(f, "A {address}"),
            Self::Address(IpAddr::V6(address)) => write!(f, "AAAA {address}"),
            Self::Srv { priority, weight, port, target } => write!(f, "SRV {priority} {weight} {port} {target}"),
            Self::Txt(text) => write!(f, "TXT {text:?}"),
            Self::Soa { serial, minimum } => write!(f, "SOA serial {serial} minimum {minimum}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// A server's answer, whatever its response code.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The response code as `dig` names it: `NOERROR`, `NXDOMAIN`, `SERVFAIL`, …
    pub rcode: String,
    /// The server is the zone's own.
    pub is_authoritative: bool,
    /// Even over TCP, or the server refused TCP: records are missing.
    pub is_truncated: bool,
    /// The answer section.
    pub records: Vec<Record>,
    /// The authority section.
    pub authority: Vec<Record>,
    /// The additional section, the OPT record not counted.
    pub additional: Vec<Record>,
    /// Extended errors (RFC 8914); 14 is "not ready".
    pub extended_errors: Vec<u16>,
    /// How the answer came.
    pub transport: Transport,
    /// How long it took.
    pub elapsed: Duration,
}

impl Answer {
    /// The addresses in the answer section.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.records.iter().filter_map(|record| match &record.data {
            RecordData::Address(address) => Some(*address),
            RecordData::Srv { .. } | RecordData::Txt(_) | RecordData::Soa { .. } | RecordData::Other(_) => None,
        })
    }
}

/// There is no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The name cannot be asked for.
    #[error("{0:?} is not a DNS name")]
    BadName(String),
    /// Not a record type.
    #[error("{0:?} is not a record type")]
    UnknownType(String),
    /// Nothing came in time.
    #[error("{server} did not answer within {timeout:?}")]
    Timeout {
        /// Who was asked.
        server: SocketAddr,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The server cannot be reached.
    #[error("cannot reach {server}: {source}")]
    Io {
        /// Who was asked.
        server: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The reply is no DNS message or answers another question.
    #[error("{0} sent a reply that is not an answer to the question")]
    BadReply(SocketAddr),
}

/// Asks `server` for records of `name`, which is taken as fully qualified and sent in its own case.
///
/// # Errors
/// [`QueryError`]; an answer with an error code is no error.
pub async fn query(server: SocketAddr, name: &str, qtype: QueryType, timeout: Duration) -> Result<Answer, QueryError> {
    let question = question(name, qtype)?;
    let begin = Instant::now();
    let exchange = async {
        let answer = over_udp(server, &question).await?;
        let answer = if answer.is_truncated { over_tcp(server, &question).await.unwrap_or(answer) } else { answer };
        Ok(Answer { elapsed: begin.elapsed(), ..answer })
    };
    tokio::time::timeout(timeout, exchange).await.unwrap_or(Err(QueryError::Timeout { server, timeout }))
}

/// The same over TCP from the beginning.
///
/// # Errors
/// As [`query`].
pub async fn query_tcp(
    server: SocketAddr,
    name: &str,
    qtype: QueryType,
    timeout: Duration,
) -> Result<Answer, QueryError> {
    let question = question(name, qtype)?;
    let begin = Instant::now();
    let answer = tokio::time::timeout(timeout, over_tcp(server, &question)).await;
    let answer = answer.unwrap_or(Err(QueryError::Timeout { server, timeout }))?;
    Ok(Answer { elapsed: begin.elapsed(), ..answer })
}

fn question(name: &str, qtype: QueryType) -> Result<Message, QueryError> {
    let bad_name = || QueryError::BadName(name.to_owned());
    let mut name = Name::from_ascii(name).map_err(|_| bad_name())?;
    name.set_fqdn(true);
    let mut query = Query::query(name, RecordType::from(qtype.number()));
    query.set_query_class(DNSClass::IN);
    let mut message = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(query);
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD);
    message.set_edns(edns);
    Ok(message)
}

async fn over_udp(server: SocketAddr, question: &Message) -> Result<Answer, QueryError> {
    let io = |source| QueryError::Io { server, source };
    let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).await.map_err(io)?;
    socket.connect(server).await.map_err(io)?;
    let wire = question.to_vec().map_err(|_| QueryError::BadReply(server))?;
    let mut buffer = [0; PAYLOAD as usize];
    loop {
        socket.send(&wire).await.map_err(io)?;
        let received = tokio::time::timeout(RETRANSMIT, receive(&socket, server, question, &mut buffer)).await;
        if let Ok(received) = received {
            return received;
        }
    }
}

/// The first reply to the question; others are not for us (they come late, or are forged).
async fn receive(
    socket: &UdpSocket,
    server: SocketAddr,
    question: &Message,
    buffer: &mut [u8],
) -> Result<Answer, QueryError> {
    loop {
        let length = socket.recv(buffer).await.map_err(|source| QueryError::Io { server, source })?;
        let reply = buffer.get(..length).and_then(|bytes| Message::from_vec(bytes).ok());
        if let Some(reply) = reply.filter(|reply| answers(reply, question)) {
            return Ok(convert(&reply, Transport::Udp));
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &Message) -> Result<Answer, QueryError> {
    let io = |source| QueryError::Io { server, source };
    let bad_reply = || QueryError::BadReply(server);
    let mut stream = TcpStream::connect(server).await.map_err(io)?;
    let wire = question.to_vec().map_err(|_| bad_reply())?;
    let mut framed = u16::try_from(wire.len()).map_err(|_| bad_reply())?.to_be_bytes().to_vec();
    framed.extend_from_slice(&wire);
    stream.write_all(&framed).await.map_err(io)?;
    let mut reply = vec![0; usize::from(stream.read_u16().await.map_err(io)?)];
    stream.read_exact(&mut reply).await.map_err(io)?;
    let reply = Message::from_vec(&reply).map_err(|_| bad_reply())?;
    if answers(&reply, question) { Ok(convert(&reply, Transport::Tcp)) } else { Err(bad_reply()) }
}

fn answers(reply: &Message, question: &Message) -> bool {
    let is_echo = reply.queries == question.queries;
    // A server that could not read the question does not repeat it.
    let is_complaint = reply.queries.is_empty() && reply.metadata.response_code != ResponseCode::NoError;
    reply.metadata.id == question.metadata.id
        && reply.metadata.message_type == MessageType::Response
        && (is_echo || is_complaint)
}

fn convert(reply: &Message, transport: Transport) -> Answer {
    let records = |records: &[WireRecord]| records.iter().map(record).collect();
    Answer {
        rcode: rcode(reply.metadata.response_code),
        is_authoritative: reply.metadata.authoritative,
        is_truncated: reply.metadata.truncation,
        records: records(&reply.answers),
        authority: records(&reply.authorities),
        additional: records(&reply.additionals),
        extended_errors: reply.edns.as_ref().map(extended_errors).unwrap_or_default(),
        transport,
        elapsed: Duration::ZERO,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all other types are printed alike")]
fn record(record: &WireRecord) -> Record {
    let data = match &record.data {
        RData::A(a) => RecordData::Address(a.0.into()),
        RData::AAAA(aaaa) => RecordData::Address(aaaa.0.into()),
        RData::SRV(srv) => RecordData::Srv {
            priority: srv.priority,
            weight: srv.weight,
            port: srv.port,
            target: srv.target.to_ascii(),
        },
        RData::TXT(txt) => RecordData::Txt(txt.txt_data.iter().map(|text| String::from_utf8_lossy(text)).collect()),
        RData::SOA(soa) => RecordData::Soa { serial: soa.serial, minimum: soa.minimum },
        other => RecordData::Other(format!("{} {other}", record.record_type())),
    };
    Record { name: record.name.to_ascii(), ttl: record.ttl, data }
}

fn extended_errors(edns: &Edns) -> Vec<u16> {
    let code = EdnsCode::Unknown(15);
    match edns.option(code) {
        Some(EdnsOption::Unknown(_, data)) => {
            data.first_chunk().map(|code| u16::from_be_bytes(*code)).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

fn rcode(code: ResponseCode) -> String {
    match u16::from(code) {
        0 => "NOERROR".to_owned(),
        1 => "FORMERR".to_owned(),
        2 => "SERVFAIL".to_owned(),
        3 => "NXDOMAIN".to_owned(),
        4 => "NOTIMP".to_owned(),
        5 => "REFUSED".to_owned(),
        16 => "BADVERS".to_owned(),
        other => format!("RCODE{other}"),
    }
}
