//! Records of one name and type in wire format, to be copied behind a question.

use std::net::IpAddr;

use smallvec::SmallVec;

use crate::wire::{CLASS_IN, HEADER, pointer};
use crate::zone::TTL;

/// Longest answer section kept: with question and OPT it fits a TCP message.
const MAX_ANSWER: usize = 65_000;

/// An answer section and, if it fits, an additional section. Both assume that the question stands
/// between them and the header, and point back into it.
///
/// Two address records lie in the answer itself and not behind a pointer: a lookup waits for memory
/// more than for anything else.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    bytes: SmallVec<[u8; 32]>,
    /// Where each record of the answer section ends.
    ends: SmallVec<[u16; 4]>,
    extras: u16,
}

/// As much of an answer as fits a reply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) answers: u16,
    pub(crate) extras: u16,
    /// Records of the answer section are missing. Additional ones may be missing without it.
    pub(crate) truncated: bool,
}

impl Answer {
    /// The whole records that fit into `room` bytes.
    pub(crate) fn cut(&self, room: usize) -> Cut<'_> {
        let all = u16::try_from(self.ends.len()).unwrap_or(u16::MAX);
        if self.bytes.len() <= room {
            return Cut { bytes: &self.bytes, answers: all, extras: self.extras, truncated: false };
        }
        let fitting = self.ends.partition_point(|end| usize::from(*end) <= room);
        let end = fitting.checked_sub(1).and_then(|last| self.ends.get(last)).copied().map_or(0, usize::from);
        Cut {
            bytes: self.bytes.get(..end).unwrap_or_default(),
            answers: u16::try_from(fitting).unwrap_or(u16::MAX),
            extras: 0,
            truncated: fitting < self.ends.len(),
        }
    }
}

/// Writes an [`Answer`] to questions whose name is `question` bytes long on the wire.
#[derive(Debug)]
pub(crate) struct Builder {
    /// Where the answer section begins in the message.
    base: usize,
    bytes: Vec<u8>,
    ends: Vec<u16>,
    extra: Vec<u8>,
    extras: u16,
}

/// Whose record it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Owner {
    /// The name that stands `0` bytes after the beginning of the question's name.
    Question(usize),
    /// The name that stands at this offset of the message.
    At(usize),
}

impl Owner {
    fn pointer(self) -> Option<[u8; 2]> {
        match self {
            Self::Question(skip) => pointer(HEADER + skip),
            Self::At(offset) => pointer(offset),
        }
    }
}

impl Builder {
    pub(crate) fn new(question: usize) -> Self {
        Self { base: HEADER + question + 4, bytes: Vec::new(), ends: Vec::new(), extra: Vec::new(), extras: 0 }
    }

    /// Adds a record of the question's name to the answer section. Records beyond the largest
    /// message are left out, as the specification allows (a subset of the ready endpoints).
    /// Gives the offset of the record's data in the message.
    pub(crate) fn answer(&mut self, rtype: u16, data: &[u8]) -> Option<usize> {
        let start = self.bytes.len();
        put_record(&mut self.bytes, pointer(HEADER)?, rtype, data)?;
        match u16::try_from(self.bytes.len()) {
            Ok(end) if self.bytes.len() <= MAX_ANSWER => {
                self.ends.push(end);
                Some(self.base + self.bytes.len() - data.len())
            }
            _ => {
                self.bytes.truncate(start);
                None
            }
        }
    }

    /// Adds an address to the answer section.
    pub(crate) fn address(&mut self, address: IpAddr) {
        let (rtype, data) = address_data(&address);
        self.answer(rtype, data.as_slice());
    }

    /// Adds an address to the additional section.
    pub(crate) fn extra_address(&mut self, owner: Owner, address: IpAddr) {
        let Some(owner) = owner.pointer() else { return };
        let (rtype, data) = address_data(&address);
        if put_record(&mut self.extra, owner, rtype, data.as_slice()).is_some() {
            self.extras = self.extras.saturating_add(1);
        }
    }

    /// The answer, or `None` if it holds no record.
    pub(crate) fn finish(mut self) -> Option<Answer> {
        if self.ends.is_empty() {
            return None;
        }
        let extras = if self.bytes.len() + self.extra.len() <= MAX_ANSWER {
            self.bytes.append(&mut self.extra);
            self.extras
        } else {
            0
        };
        Some(Answer { bytes: SmallVec::from_slice(&self.bytes), ends: SmallVec::from_slice(&self.ends), extras })
    }
}

/// The type of an address's record and its data.
fn address_data(address: &IpAddr) -> (u16, AddressData) {
    use crate::wire::rtype;
    match address {
        IpAddr::V4(v4) => (rtype::A, AddressData::V4(v4.octets())),
        IpAddr::V6(v6) => (rtype::AAAA, AddressData::V6(v6.octets())),
    }
}

enum AddressData {
    V4([u8; 4]),
    V6([u8; 16]),
}

impl AddressData {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::V4(octets) => octets,
            Self::V6(octets) => octets,
        }
    }
}

fn put_record(out: &mut Vec<u8>, owner: [u8; 2], rtype: u16, data: &[u8]) -> Option<()> {
    let length = u16::try_from(data.len()).ok()?;
    out.extend_from_slice(&owner);
    out.extend_from_slice(&rtype.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    out.extend_from_slice(&TTL.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(data);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_cut_at_whole_records_and_extras_go_first() {
        let mut builder = Builder::new(10);
        for last in 0..10 {
            builder.address(IpAddr::from([192, 0, 2, last]));
        }
        builder.extra_address(Owner::Question(0), IpAddr::from([192, 0, 2, 99]));
        let answer = builder.finish().unwrap();
        let whole = answer.cut(176);
        assert_eq!((whole.bytes.len(), whole.answers, whole.extras, whole.truncated), (176, 10, 1, false));
        let no_extras = answer.cut(175);
        assert_eq!(
            (no_extras.bytes.len(), no_extras.answers, no_extras.extras, no_extras.truncated),
            (160, 10, 0, false)
        );
        let less = answer.cut(159);
        assert_eq!((less.bytes.len(), less.answers, less.extras, less.truncated), (144, 9, 0, true));
        let nothing = answer.cut(15);
        assert_eq!((nothing.bytes.len(), nothing.answers, nothing.truncated), (0, 0, true));
    }

    #[test]
    fn an_answer_never_outgrows_a_tcp_message() {
        let mut builder = Builder::new(10);
        for i in 0..10_000_u32 {
            builder.address(IpAddr::from(i.to_be_bytes()));
        }
        let whole = builder.finish().unwrap();
        let whole = whole.cut(usize::MAX);
        assert_eq!(usize::from(whole.answers), MAX_ANSWER / 16);
        assert!(!whole.truncated);
    }
}
