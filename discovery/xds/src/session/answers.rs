//! What a client said of the responses of one kind.

use std::collections::VecDeque;
use std::sync::Arc;

use eastway_proto::xds::discovery::ErrorDetail;

/// Responses whose answer is awaited; of more the oldest are forgotten. The parts of 32 MiB, which are more services than
/// one gateway has.
const MAX_OUTSTANDING: usize = 1_024;
/// Names of a refused response that are kept for people.
const MAX_REFUSED_NAMES: usize = 16;
/// Longest reason that is kept, characters.
const MAX_REASON: usize = 1_024;

/// One kind of one client, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether it wants all.
    pub wildcard: bool,
    /// How many it names.
    pub names: usize,
    /// Generation of the view of the last response; `None`: none was sent.
    pub sent: Option<u64>,
    /// Generation of the view of the last response that it took.
    pub accepted: Option<u64>,
    /// Responses that it has not answered.
    pub outstanding: usize,
    /// Responses refused, ever.
    pub refusals: u64,
    /// The last refusal, until what was refused is replaced by something that it takes.
    pub refused: Option<Refused>,
}

/// Where a client stands with one kind, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It asked, and there was nothing to send yet.
    NotSent,
    /// It has taken the last response.
    Synced,
    /// It has not answered the last response yet.
    Stale,
    /// It has refused something that was not replaced since.
    Refused,
}

impl Status {
    /// The state in a word.
    #[must_use]
    pub fn state(&self) -> State {
        if self.refused.is_some() {
            State::Refused
        } else if self.sent.is_none() {
            State::NotSent
        } else if self.outstanding > 0 {
            State::Stale
        } else {
            State::Synced
        }
    }
}

/// A refused response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Generation of its view.
    pub generation: u64,
    /// What the client says.
    pub reason: Arc<str>,
    /// What the response held, at most 16 names.
    pub names: Vec<Arc<str>>,
}

/// A response under way.
#[derive(Debug)]
struct Outstanding {
    nonce: u64,
    generation: u64,
    names: Vec<Arc<str>>,
}

/// The state behind a [`Status`].
#[derive(Debug, Default)]
pub(super) struct Answers {
    outstanding: VecDeque<Outstanding>,
    sent: Option<u64>,
    accepted: Option<u64>,
    refusals: u64,
    refused: Option<Refused>,
}

impl Answers {
    /// A response was made, with these resources or removals.
    pub(super) fn sent(&mut self, nonce: u64, generation: u64, names: Vec<Arc<str>>) {
        if self.outstanding.len() == MAX_OUTSTANDING {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back(Outstanding { nonce, generation, names });
        self.sent = Some(generation);
    }

    /// The client took a response. False: that was none that is under way.
    pub(super) fn accept(&mut self, nonce: u64) -> bool {
        let Some(answered) = self.take(nonce) else { return false };
        self.accepted = Some(answered.generation);
        let replaced = |refused: &Refused| refused.names.iter().any(|name| answered.names.contains(name));
        if self.refused.as_ref().is_some_and(replaced) {
            self.refused = None;
        }
        true
    }

    /// The client refused a response; its reason, cut to something printable. `None`: that was none that is under way.
    pub(super) fn refuse(&mut self, nonce: u64, error: &ErrorDetail) -> Option<Arc<str>> {
        let answered = self.take(nonce)?;
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        let reason: String = error.message.chars().take(MAX_REASON).map(printable).collect();
        let reason: Arc<str> = Arc::from(reason);
        let names = answered.names.into_iter().take(MAX_REFUSED_NAMES).collect();
        self.refused = Some(Refused { generation: answered.generation, reason: Arc::clone(&reason), names });
        self.refusals += 1;
        Some(reason)
    }

    /// Those before it are answered too: a client may answer the last of several only.
    fn take(&mut self, nonce: u64) -> Option<Outstanding> {
        let place = self.outstanding.iter().position(|response| response.nonce == nonce)?;
        self.outstanding.drain(..=place).next_back()
    }

    pub(super) fn status(&self, wildcard: bool, names: usize) -> Status {
        Status {
            wildcard,
            names,
            sent: self.sent,
            accepted: self.accepted,
            outstanding: self.outstanding.len(),
            refusals: self.refusals,
            refused: self.refused.clone(),
        }
    }
}
