//! One client's stream as a state machine without I/O: requests and new views go in, responses come out.
//!
//! Both forms of the protocol follow `xds_protocol` of Envoy's documentation. What it leaves open, or Envoy does not do:
//! - A changed cluster is always followed by its endpoints, even if those are the same: Envoy warms the new cluster
//!   until they come, for 15 s, and does not ask again.
//! - What a client refuses is remembered and not sent again until it changes.
//! - A response is not held back until the one before is acknowledged: Envoy acknowledges clusters only when they are
//!   warm, for which it needs endpoints.
//! - But routes and listeners that come with new clusters wait until those are acknowledged, and what is gone with them:
//!   Envoy uses a route at once, and answers with errors until its cluster is warm.
//! - Before there is a view nothing is answered: an empty answer would mean that there is nothing.

mod answers;
mod delta;
mod world;

pub use answers::{Refused, State, Status};
pub use delta::DeltaSession;
pub use world::WorldSession;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::kind::{Kind, UnknownKind};
use crate::resource::Resource;
use crate::view::View;

/// Most resources of one kind that a client may name.
const MAX_NAMES: usize = 20_000;
/// Longest name of a resource.
const MAX_NAME: usize = 1_024;
/// All resources of a kind.
const WILDCARD: &str = "*";

/// What a client is to be told of one kind.
#[derive(Debug, Default)]
struct Changes {
    put: Vec<Arc<Resource>>,
    gone: Vec<Arc<str>>,
}

/// Why a stream has to end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// A type that is not served.
    #[error(transparent)]
    Kind(#[from] UnknownKind),
    /// More than 20,000 names in one subscription.
    #[error("more than 20000 names of type {0} are subscribed to")]
    TooManyNames(Kind),
    /// A name that is empty or longer than 1 KiB.
    #[error("a name of type {0} is empty or longer than 1024 bytes")]
    Name(Kind),
}

/// What became of a request.
#[derive(Debug)]
pub struct Answer<R> {
    /// To be sent, in this order.
    pub responses: Vec<R>,
    /// What the client thinks of an earlier response.
    pub verdict: Verdict,
}

/// What a client says of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    None,
    /// It took it.
    Accepted(Kind),
    /// It refused it, or a part of it, with this reason.
    Refused(Kind, Arc<str>),
}

/// A stream of one form of the protocol.
pub trait Session: fmt::Debug + Send + 'static {
    /// What the client sends.
    type Request: Send + 'static;
    /// What it is sent.
    type Response: Send + 'static;

    /// A stream that has just begun. `stream` tells it from all other streams, of other processes too: nonces begin
    /// with it, so that those of another stream are recognised.
    fn new(stream: String) -> Self;

    /// The encoded node in a request; empty if there is none.
    fn node(request: &Self::Request) -> &Bytes;

    /// Takes a request.
    ///
    /// # Errors
    /// [`SessionError`]: the stream has to end.
    fn handle(&mut self, request: Self::Request) -> Result<Answer<Self::Response>, SessionError>;

    /// Takes a newer view.
    fn update(&mut self, view: Arc<View>) -> Vec<Self::Response>;

    /// Whether something waits for an acknowledgement. Who does not give one is not waited for forever.
    fn is_holding(&self) -> bool {
        false
    }

    /// Waits no longer.
    fn release(&mut self) -> Vec<Self::Response> {
        Vec::new()
    }

    /// What was sent, acknowledged and refused, by kind.
    fn status(&self) -> BTreeMap<Kind, Status>;

    /// The resources of one kind that the client has been told, by name; also those that it refused.
    fn told(&self, kind: Kind) -> Vec<Arc<Resource>>;
}

/// Numbers of responses.
#[derive(Debug)]
struct Nonces {
    stream: String,
    last: u64,
}

impl Nonces {
    fn new(stream: String) -> Self {
        Self { stream, last: 0 }
    }

    fn next(&mut self) -> (u64, String) {
        self.last += 1;
        (self.last, format!("{}.{}", self.stream, self.last))
    }

    /// The number of a nonce of this stream.
    fn number(&self, nonce: &str) -> Option<u64> {
        let number = nonce.strip_prefix(self.stream.as_str())?.strip_prefix('.')?;
        number.parse().ok().filter(|number| *number <= self.last)
    }
}

fn check_names<'a>(kind: Kind, mut names: impl Iterator<Item = &'a String>) -> Result<(), SessionError> {
    let bad = names.any(|name| name.is_empty() || name.len() > MAX_NAME);
    if bad { Err(SessionError::Name(kind)) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
