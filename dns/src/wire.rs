//! The wire format (RFC 1035, RFC 6891): what of a query the fast path reads, and how replies are
//! written. Whatever is not the plain shape of a query is left to [`crate::respond::slow`].

use crate::name::{MAX_LABEL, MAX_WIRE, ancestors};

/// Length of the fixed header.
pub(crate) const HEADER: usize = 12;

/// Record and query types named in this crate.
pub(crate) mod rtype {
    pub(crate) const A: u16 = 1;
    pub(crate) const NS: u16 = 2;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const HINFO: u16 = 13;
    pub(crate) const TXT: u16 = 16;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const SRV: u16 = 33;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const HTTPS: u16 = 65;
    /// From here to [`MAILA`] lie types that ask for something other than records of a name:
    /// TKEY, TSIG, IXFR, AXFR, MAILB, MAILA.
    pub(crate) const TKEY: u16 = 249;
    pub(crate) const MAILA: u16 = 254;
    pub(crate) const ANY: u16 = 255;
}

/// Class IN.
pub(crate) const CLASS_IN: u16 = 1;

/// Response codes (IANA), the extended one included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rcode {
    NoError,
    FormErr,
    ServFail,
    NxDomain,
    NotImp,
    Refused,
    BadVers,
}

impl Rcode {
    pub(crate) const ALL: [Self; 7] =
        [Self::NoError, Self::FormErr, Self::ServFail, Self::NxDomain, Self::NotImp, Self::Refused, Self::BadVers];

    /// The low four bits, which travel in the header.
    fn low(self) -> u8 {
        match self {
            Self::NoError | Self::BadVers => 0,
            Self::FormErr => 1,
            Self::ServFail => 2,
            Self::NxDomain => 3,
            Self::NotImp => 4,
            Self::Refused => 5,
        }
    }

    /// The high eight bits, which travel in the OPT record.
    fn high(self) -> u8 {
        u8::from(self == Self::BadVers)
    }

    /// As `dig` prints it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoError => "NOERROR",
            Self::FormErr => "FORMERR",
            Self::ServFail => "SERVFAIL",
            Self::NxDomain => "NXDOMAIN",
            Self::NotImp => "NOTIMP",
            Self::Refused => "REFUSED",
            Self::BadVers => "BADVERS",
        }
    }
}

/// The fixed header of a query.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) id: [u8; 2],
    flags: [u8; 2],
    pub(crate) questions: u16,
    pub(crate) answers: u16,
    pub(crate) authorities: u16,
    pub(crate) additionals: u16,
}

impl Header {
    /// Reads it; `None` if the message is shorter than a header.
    pub(crate) fn read(message: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER] = message.first_chunk()?;
        let [i0, i1, f0, f1, q0, q1, a0, a1, n0, n1, r0, r1] = *header;
        Some(Self {
            id: [i0, i1],
            flags: [f0, f1],
            questions: u16::from_be_bytes([q0, q1]),
            answers: u16::from_be_bytes([a0, a1]),
            authorities: u16::from_be_bytes([n0, n1]),
            additionals: u16::from_be_bytes([r0, r1]),
        })
    }

    /// QR: the message claims to be a response.
    pub(crate) fn is_response(self) -> bool {
        self.flags[0] & 0x80 != 0
    }

    pub(crate) fn opcode(self) -> u8 {
        self.flags[0] >> 3 & 0x0f
    }
}

/// A query name, uncompressed and in lower case, with the places where its labels begin.
#[derive(Debug)]
pub(crate) struct QName {
    bytes: [u8; MAX_WIRE],
    length: usize,
    starts: [u8; MAX_WIRE / 2 + 1],
    labels: usize,
}

impl QName {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; MAX_WIRE], length: 0, starts: [0; MAX_WIRE / 2 + 1], labels: 0 }
    }

    /// Reads the name at the beginning of `wire` and gives what follows it. `None`: a compression
    /// pointer (a question has nothing to point back to), a reserved label type, a name of more
    /// than 255 bytes, or one cut short.
    fn read<'a>(&mut self, wire: &'a [u8]) -> Option<&'a [u8]> {
        let mut at = 0;
        self.labels = 0;
        loop {
            let length = usize::from(*wire.get(at)?);
            if length == 0 {
                break;
            }
            if length > MAX_LABEL || at + 1 + length >= MAX_WIRE {
                return None;
            }
            *self.starts.get_mut(self.labels)? = u8::try_from(at).ok()?;
            self.labels += 1;
            at += 1 + length;
        }
        let (name, rest) = wire.split_at_checked(at + 1)?;
        let bytes = self.bytes.get_mut(..name.len())?;
        bytes.copy_from_slice(name);
        // Lengths are at most 63, below every capital letter: lowering the whole leaves them alone.
        bytes.make_ascii_lowercase();
        self.length = name.len();
        Some(rest)
    }

    /// The whole name.
    pub(crate) fn wire(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// How many labels it has, the root not counted.
    pub(crate) fn labels(&self) -> usize {
        self.labels
    }

    /// The label `index` places from the left.
    pub(crate) fn label(&self, index: usize) -> &[u8] {
        let Some((length, rest)) = self.from(index).split_first() else { return &[] };
        rest.get(..usize::from(*length)).unwrap_or_default()
    }

    /// The name without its first `skip` labels.
    pub(crate) fn from(&self, skip: usize) -> &[u8] {
        self.wire().get(self.start(skip)..).unwrap_or_default()
    }

    /// The first `count` labels, without a root.
    pub(crate) fn prefix(&self, count: usize) -> &[u8] {
        self.wire().get(..self.start(count)).unwrap_or_default()
    }

    fn start(&self, index: usize) -> usize {
        if index >= self.labels {
            return self.length.saturating_sub(1);
        }
        self.starts.get(index).copied().map_or(0, usize::from)
    }

    /// Whether the name ends in `suffix`, a name of `labels` labels in lower case.
    pub(crate) fn ends_with(&self, suffix: &[u8], labels: usize) -> bool {
        self.labels.checked_sub(labels).is_some_and(|skip| self.from(skip) == suffix)
    }
}

/// What a client said by its OPT record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edns {
    /// The largest UDP reply it takes, as it said.
    pub(crate) payload: u16,
    /// DO, which is echoed (RFC 3225 §3).
    pub(crate) dnssec_ok: bool,
}

/// A question, as it stood in the query: the reply repeats its bytes, so letters keep their case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    /// Name, type and class.
    pub(crate) bytes: &'a [u8],
    pub(crate) qtype: u16,
    pub(crate) qclass: u16,
}

impl<'a> Question<'a> {
    /// Reads the question after the header into `name`, and gives it and what follows it.
    pub(crate) fn read(message: &'a [u8], name: &mut QName) -> Option<(Self, &'a [u8])> {
        let body = message.get(HEADER..)?;
        let rest = name.read(body)?;
        let ([t0, t1, c0, c1], rest) = rest.split_first_chunk()?;
        let bytes = body.get(..body.len() - rest.len())?;
        let question = Self { bytes, qtype: u16::from_be_bytes([*t0, *t1]), qclass: u16::from_be_bytes([*c0, *c1]) };
        Some((question, rest))
    }
}

/// Reads what follows the question of a plain query: nothing, or one OPT record of version 0 whose
/// options are well formed. `None`: something else, for the slow path to judge.
pub(crate) fn read_plain_rest(header: Header, rest: &[u8]) -> Option<Option<Edns>> {
    if header.questions != 1 || header.answers != 0 || header.authorities != 0 {
        return None;
    }
    if header.additionals == 0 {
        return rest.is_empty().then_some(None);
    }
    let (fixed, mut options) = rest.split_first_chunk::<11>()?;
    let [root, t0, t1, p0, p1, _extended, version, flags, _, l0, l1] = *fixed;
    let is_opt = root == 0 && u16::from_be_bytes([t0, t1]) == rtype::OPT && version == 0;
    if header.additionals != 1 || !is_opt || options.len() != usize::from(u16::from_be_bytes([l0, l1])) {
        return None;
    }
    while !options.is_empty() {
        let ([_, _, l0, l1], tail) = options.split_first_chunk()?;
        options = tail.get(usize::from(u16::from_be_bytes([*l0, *l1]))..)?;
    }
    Some(Some(Edns { payload: u16::from_be_bytes([p0, p1]), dnssec_ok: flags & 0x80 != 0 }))
}

/// What goes into the header of a reply beside the query's own bits.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flags {
    pub(crate) authoritative: bool,
    pub(crate) truncated: bool,
}

/// How many records a reply holds, the OPT record not counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) questions: u16,
    pub(crate) answers: u16,
    pub(crate) authorities: u16,
    pub(crate) additionals: u16,
}

/// Writes the header of a reply: the query's id, opcode, RD and CD; RA, AD and Z clear.
pub(crate) fn put_header(out: &mut Vec<u8>, query: Header, rcode: Rcode, flags: Flags, counts: Counts) {
    let [f0, f1] = query.flags;
    let high = 0x80 | f0 & 0x79 | u8::from(flags.authoritative) << 2 | u8::from(flags.truncated) << 1;
    let low = f1 & 0x10 | rcode.low();
    out.extend_from_slice(&query.id);
    out.extend_from_slice(&[high, low]);
    for count in [counts.questions, counts.answers, counts.authorities, counts.additionals] {
        out.extend_from_slice(&count.to_be_bytes());
    }
}

/// Largest UDP reply, ours and what we announce: what fits every path (DNS flag day 2020).
pub(crate) const MAX_UDP: usize = 1232;
/// Largest UDP reply to a client without EDNS.
pub(crate) const MIN_UDP: usize = 512;

/// Extended DNS error "Not Ready" (RFC 8914 §4.15).
pub(crate) const EDE_NOT_READY: u16 = 14;
const OPTION_EDE: u16 = 15;

/// Length of an OPT record with at most one extended error.
pub(crate) const MAX_OPT: usize = 17;

/// Writes the OPT record of a reply.
pub(crate) fn put_opt(out: &mut Vec<u8>, edns: Edns, rcode: Rcode, error: Option<u16>) {
    out.push(0);
    out.extend_from_slice(&rtype::OPT.to_be_bytes());
    out.extend_from_slice(&1232_u16.to_be_bytes());
    out.extend_from_slice(&[rcode.high(), 0, u8::from(edns.dnssec_ok) << 7, 0]);
    match error {
        None => out.extend_from_slice(&[0, 0]),
        Some(code) => {
            out.extend_from_slice(&[0, 6]);
            out.extend_from_slice(&OPTION_EDE.to_be_bytes());
            out.extend_from_slice(&[0, 2]);
            out.extend_from_slice(&code.to_be_bytes());
        }
    }
}

/// A compression pointer to `offset` from the beginning of the message, if it can reach.
pub(crate) fn pointer(offset: usize) -> Option<[u8; 2]> {
    let offset = u16::try_from(offset).ok().filter(|offset| *offset < 0x4000)?;
    Some((0xc000 | offset).to_be_bytes())
}

/// Whether `name` lies in `zone` or is it; both uncompressed and in lower case.
pub(crate) fn is_within(name: &[u8], zone: &[u8]) -> bool {
    ancestors(name).any(|suffix| suffix == zone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(counts: [u16; 4], body: &[u8]) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 1, 0];
        message.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
        message.extend_from_slice(body);
        message
    }

    #[test]
    fn a_question_keeps_its_case_and_its_name_is_lowered() {
        let message = message([1, 0, 0, 0], b"\x03WwW\x05a-B_1\x00\x00\x1c\x00\x01");
        let mut name = QName::new();
        let (question, rest) = Question::read(&message, &mut name).unwrap();
        assert_eq!(question.bytes, b"\x03WwW\x05a-B_1\x00\x00\x1c\x00\x01");
        assert_eq!((question.qtype, question.qclass), (28, 1));
        assert_eq!(name.wire(), b"\x03www\x05a-b_1\x00");
        assert_eq!((name.label(0), name.label(1), name.label(2)), (&b"www"[..], &b"a-b_1"[..], &b""[..]));
        assert_eq!((name.from(1), name.from(2)), (&b"\x05a-b_1\x00"[..], &b"\x00"[..]));
        assert_eq!(
            (name.prefix(0), name.prefix(1), name.prefix(2)),
            (&b""[..], &b"\x03www"[..], &b"\x03www\x05a-b_1"[..])
        );
        assert!(name.ends_with(b"\x05a-b_1\x00", 1) && !name.ends_with(b"\x05a-b_1\x00", 2));
        assert_eq!(read_plain_rest(Header::read(&message).unwrap(), rest), Some(None));
    }

    #[test]
    fn d1_names_that_are_none_are_refused() {
        let label64 = [&[64][..], &[b'a'; 64], &[0, 0, 1, 0, 1]].concat();
        let long: Vec<u8> = [3, b'a', b'b', b'c'].repeat(64).into_iter().chain([0, 0, 1, 0, 1]).collect();
        let cases: [&[u8]; 7] = [
            b"\xc0\x0c\x00\x01\x00\x01",
            b"\x01a\xc0\x0c\x00\x01\x00\x01",
            b"\x41a\x00\x00\x01\x00\x01",
            b"\x05abc",
            b"\x01a\x00\x00\x01",
            &label64,
            &long,
        ];
        for body in cases {
            assert!(Question::read(&message([1, 0, 0, 0], body), &mut QName::new()).is_none(), "{body:?}");
        }
    }

    #[test]
    fn the_longest_name_is_read() {
        let longest: Vec<u8> = [1, b'A'].repeat(127).into_iter().chain([0, 0, 1, 0, 1]).collect();
        let mut name = QName::new();
        assert!(Question::read(&message([1, 0, 0, 0], &longest), &mut name).is_some());
        assert_eq!((name.labels(), name.wire().len()), (127, 255));
        assert_eq!(name.label(126), b"a");
    }

    #[test]
    fn only_plain_opt_records_are_read_here() {
        let opt = |payload: u16, version: u8, flags: u8, options: &[u8]| {
            let mut opt = vec![0, 0, 41];
            opt.extend_from_slice(&payload.to_be_bytes());
            opt.extend_from_slice(&[0, version, flags, 0]);
            opt.extend_from_slice(&u16::try_from(options.len()).unwrap().to_be_bytes());
            opt.extend_from_slice(options);
            opt
        };
        let header = |additionals| Header::read(&message([1, 0, 0, additionals], b"")).unwrap();
        let read = |bytes: &[u8]| read_plain_rest(header(1), bytes);
        assert_eq!(read(&opt(0, 0, 0x80, b"")), Some(Some(Edns { payload: 0, dnssec_ok: true })));
        assert_eq!(
            read(&opt(65535, 0, 0, b"\x00\x0a\x00\x02ab")),
            Some(Some(Edns { payload: 65535, dnssec_ok: false }))
        );
        assert_eq!(read(&opt(1232, 1, 0, b"")), None, "another version");
        assert_eq!(read(&opt(1232, 0, 0, b"\x00\x0a\x00\x09ab")), None, "an option longer than the record");
        assert_eq!(read(&[opt(1232, 0, 0, b""), vec![0]].concat()), None, "trailing bytes");
        assert_eq!(read(b""), None);
        assert_eq!(read_plain_rest(header(0), b"x"), None);
    }
}
