//! What a connection says first, and how it is answered: which kind it is, and which link it belongs to.
//!
//! Right after the handshake the dialler sends a kind byte. A control connection begins a link. The others name the link
//! by an id and prove that they belong to it: both come from keying material of the control connection, and the proof
//! covers that of the connection itself, so it is good for no other one. The acceptor answers with one status byte.

use aws_lc_rs::hmac;
use rustls::Connection;

use super::session::{Session, SessionError};
use crate::code::ResetCode;

/// Keying material of a control connection: names its link.
const LINK_LABEL: &[u8] = b"EXPORTER-eastway-tcp-link";
/// Likewise: proves that a connection belongs to it.
const KEY_LABEL: &[u8] = b"EXPORTER-eastway-tcp-key";
/// Keying material of a connection of a link.
const FLOW_LABEL: &[u8] = b"EXPORTER-eastway-tcp-flow";

const LINK: usize = 16;
const PROOF: usize = 32;
/// Longest preface: kind, link, number and proof.
const LONGEST: usize = 1 + LINK + 8 + PROOF;
const KIND_CONTROL: u8 = 1;
const KIND_FLOW: u8 = 2;
const KIND_REVERSE: u8 = 3;

/// Names a link among those of one process.
pub(super) type LinkId = [u8; LINK];

/// The two ways in which a connection of a link becomes a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlowKind {
    /// The dialler opens the stream.
    Flow,
    /// It waits until the acceptor opens the stream.
    Reverse,
}

/// What a connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Preface {
    /// A new link.
    Control,
    /// One more connection of a link.
    Flow(FlowPreface),
}

/// How a connection says which link it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FlowPreface {
    pub(super) kind: FlowKind,
    pub(super) link: LinkId,
    /// Its number in the link, never used twice.
    pub(super) number: u64,
    proof: [u8; PROOF],
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    /// It may be used.
    Accepted = 1,
    /// Too many at this time.
    Overloaded = 2,
    /// The link is not here: it has ended, or it is another replica's.
    UnknownLink = 3,
}

impl Status {
    pub(super) fn from_wire(byte: u8) -> Option<Self> {
        [Self::Accepted, Self::Overloaded, Self::UnknownLink].into_iter().find(|status| *status as u8 == byte)
    }
}

/// Why a preface was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrefaceError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("a connection of an unknown kind: {0}")]
    Kind(u8),
}

/// What the connections of a link prove themselves with.
pub(super) struct LinkSecret {
    pub(super) id: LinkId,
    key: hmac::Key,
}

impl LinkSecret {
    /// Of the link that `control` begins.
    pub(super) fn of(control: &Connection) -> Result<Self, rustls::Error> {
        let id = control.export_keying_material([0; LINK], LINK_LABEL, None)?;
        let key = control.export_keying_material([0; PROOF], KEY_LABEL, None)?;
        Ok(Self { id, key: hmac::Key::new(hmac::HMAC_SHA256, &key) })
    }

    /// What a connection with `number` says.
    pub(super) fn preface(&self, tls: &Connection, kind: FlowKind, number: u64) -> Result<FlowPreface, rustls::Error> {
        let tag = hmac::sign(&self.key, &proved(tls, kind, number)?);
        let mut proof = [0; PROOF];
        proof.iter_mut().zip(tag.as_ref()).for_each(|(byte, tag)| *byte = *tag);
        Ok(FlowPreface { kind, link: self.id, number, proof })
    }

    /// Whether `preface` came over `tls` from who knows the secret.
    pub(super) fn proves(&self, tls: &Connection, preface: &FlowPreface) -> bool {
        let FlowPreface { kind, number, proof, .. } = preface;
        proved(tls, *kind, *number).is_ok_and(|proved| hmac::verify(&self.key, &proved, proof).is_ok())
    }
}

fn proved(tls: &Connection, kind: FlowKind, number: u64) -> Result<Vec<u8>, rustls::Error> {
    let own = tls.export_keying_material([0; PROOF], FLOW_LABEL, None)?;
    Ok([own.as_slice(), &[kind.to_wire()], &number.to_be_bytes()].concat())
}

impl FlowKind {
    const fn to_wire(self) -> u8 {
        match self {
            Self::Flow => KIND_FLOW,
            Self::Reverse => KIND_REVERSE,
        }
    }
}

impl Preface {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Control => vec![KIND_CONTROL],
            Self::Flow(FlowPreface { kind, link, number, proof }) => {
                [[kind.to_wire()].as_slice(), link, &number.to_be_bytes(), proof].concat()
            }
        }
    }

    /// Reads one, and not a byte of what follows.
    pub(super) async fn read(session: &mut Session) -> Result<Self, PrefaceError> {
        let mut bytes = [0; LONGEST];
        let (kind, rest) = bytes.split_at_mut(1);
        session.read_exact(kind).await?;
        if let Some(preface) = Self::decode(kind)? {
            return Ok(preface);
        }
        session.read_exact(rest).await?;
        // Nothing is longer.
        Self::decode(&bytes)?.ok_or(PrefaceError::Session(SessionError::Truncated))
    }

    /// Reads one off the front of `bytes`. `None`: it is not complete yet.
    pub(super) fn decode(bytes: &[u8]) -> Result<Option<Self>, PrefaceError> {
        let kind = match bytes.first() {
            None => return Ok(None),
            Some(&KIND_CONTROL) => return Ok(Some(Self::Control)),
            Some(&KIND_FLOW) => FlowKind::Flow,
            Some(&KIND_REVERSE) => FlowKind::Reverse,
            Some(&other) => return Err(PrefaceError::Kind(other)),
        };
        let flow = || {
            let (link, rest) = bytes.get(1..)?.split_first_chunk()?;
            let (number, rest) = rest.split_first_chunk()?;
            let proof = rest.first_chunk()?;
            Some(FlowPreface { kind, link: *link, number: u64::from_be_bytes(*number), proof: *proof })
        };
        Ok(flow().map(Self::Flow))
    }
}

/// A reset code as one byte.
pub(super) fn code_to_wire(code: ResetCode) -> u8 {
    u8::try_from(code.to_wire()).unwrap_or(u8::MAX)
}

/// The code of a byte.
pub(super) fn code_from_wire(byte: u8) -> ResetCode {
    ResetCode::from_wire(u64::from(byte))
}
