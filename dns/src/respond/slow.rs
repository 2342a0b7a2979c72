//! Queries that are not of the plain shape: hickory's parser tells the merely unusual from the
//! malformed. It is called only with counts that the message has room for.

use hickory_proto::op::Message;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::wire::{Edns, HEADER, Header, Question, Rcode};

/// Smallest record: root name, type, class, TTL and length.
const MIN_RECORD: usize = 11;

/// What is to be done with an unusual query.
#[derive(Debug)]
pub(super) enum Verdict<'a> {
    /// Answer it.
    Query(Question<'a>, Option<Edns>),
    /// Say what is wrong with it, without a question.
    Error { rcode: Rcode, edns: Option<Edns> },
}

/// Judges a message that is no response. `question` is its question, if it has exactly one that
/// could be read.
pub(super) fn judge<'a>(header: Header, message: &'a [u8], question: Option<Question<'a>>) -> Verdict<'a> {
    let error = |rcode| Verdict::Error { rcode, edns: None };
    if header.opcode() != 0 {
        // Updates, notifications and all the others: not served, whatever they say.
        return error(Rcode::NotImp);
    }
    let Some(question) = question else { return error(Rcode::FormErr) };
    let records = usize::from(header.answers) + usize::from(header.authorities) + usize::from(header.additionals);
    if message.len() < HEADER + question.bytes.len() + records * MIN_RECORD {
        return error(Rcode::FormErr);
    }
    let mut decoder = BinDecoder::new(message);
    let Ok(parsed) = Message::read(&mut decoder) else { return error(Rcode::FormErr) };
    if !decoder.is_empty() {
        return error(Rcode::FormErr);
    }
    let Some(opt) = parsed.edns else { return Verdict::Query(question, None) };
    let edns = Edns { payload: opt.max_payload(), dnssec_ok: opt.flags().dnssec_ok };
    if opt.version() != 0 {
        return Verdict::Error { rcode: Rcode::BadVers, edns: Some(edns) };
    }
    Verdict::Query(question, Some(edns))
}
