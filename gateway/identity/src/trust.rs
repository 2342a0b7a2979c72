//! Whom this gateway accepts: the Peers, each by its pinned CA keys and its gateway identity.
//!
//! A chain is accepted only if it ends in a key pinned for exactly one Peer **and** the single URI SAN of its leaf
//! is that Peer's gateway identity (invariant I2). There is no other way in, and no way to switch it off (I10).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use tokio::sync::watch;

use crate::crl;
use crate::pin::SpkiPin;
use crate::spiffe::SpiffeId;
use crate::timestamp::Timestamp;

mod error;
mod refusals;
mod revocation;
mod verify;

pub use error::{SanProblem, VerifyError, VerifyReason};
pub use refusals::Refusal;
pub(crate) use refusals::RefusalLog;
pub(crate) use verify::{algorithms, single_uri, verify_local};

/// Most certificates that the bundle of one Peer may hold.
const MAX_BUNDLE: usize = 64;

/// One Peer as the verifier needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerTrust {
    /// Name of the Peer, which is the name of its cluster.
    pub name: Arc<str>,
    /// The identity its gateways have; no other leaf of its CA opens a link.
    pub gateway: SpiffeId,
    /// Hashes of its issuing CA's keys, or of its root's; several while it rotates. At least one.
    pub pins: Vec<SpkiPin>,
    /// CA certificates of the peer. Only needed when a pin names a root, which handshakes do not carry.
    /// Certificates whose key is not pinned are ignored.
    pub bundle: Vec<CertificateDer<'static>>,
    /// Revocation lists that apply to this Peer; those of other issuers do no harm.
    pub crls: Vec<CertificateRevocationListDer<'static>>,
}

/// A peer whose chain was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedPeer {
    /// Name of the Peer, and so of the cluster.
    pub peer: Arc<str>,
    /// Its gateway identity.
    pub id: SpiffeId,
    /// Begin of the leaf's life.
    pub not_before: SystemTime,
    /// Earliest end of life in the accepted chain: the deadline of a link.
    pub not_after: SystemTime,
    /// SHA-256 of the leaf.
    pub leaf_sha256: [u8; 32],
    /// The pinned key that the chain ended in.
    pub pin: SpkiPin,
}

/// All that is wrong with a list of Peers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct TrustError(pub Vec<TrustProblem>);

/// One thing that is wrong with a list of Peers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustProblem {
    /// Two Peers of one name.
    #[error("peer {name}: the name is used twice; cluster names must differ")]
    DuplicateName {
        /// The name.
        name: Arc<str>,
    },
    /// A Peer without pins: nothing could authenticate it (threat C5).
    #[error(
        "peer {name}: pins is required (sha256 of the key of the peer's issuing CA, as `eastway peer export` prints it there)"
    )]
    NoPins {
        /// The Peer.
        name: Arc<str>,
    },
    /// One key would speak for two clusters.
    #[error("peer {second}: pin {pin} is already used by peer {first}; each cluster needs an issuing CA of its own")]
    SharedPin {
        /// The Peer that has it.
        first: Arc<str>,
        /// The Peer that wants it too.
        second: Arc<str>,
        /// The pin.
        pin: SpkiPin,
    },
    /// A certificate of the bundle cannot be read.
    #[error("peer {name}: bundle: certificate {index}: {reason}")]
    Bundle {
        /// The Peer.
        name: Arc<str>,
        /// Position in the bundle, from 1.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Too many certificates.
    #[error("peer {name}: bundle holds {count} certificates; at most 64 are allowed")]
    BundleTooLarge {
        /// The Peer.
        name: Arc<str>,
        /// How many there are.
        count: usize,
    },
    /// A revocation list cannot be read.
    #[error("peer {name}: crl: list {index} cannot be read: {reason}")]
    Crl {
        /// The Peer.
        name: Arc<str>,
        /// Position, from 1.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// Holds the Peers and judges chains. Readers never wait; a replacement is atomic.
pub struct TrustStore {
    state: ArcSwap<State>,
    generation: watch::Sender<u64>,
    refusals: RefusalLog,
}

impl TrustStore {
    /// Builds a store; an empty list accepts nobody.
    ///
    /// # Errors
    /// [`TrustError`] lists everything that is wrong.
    pub fn new(peers: Vec<PeerTrust>) -> Result<Arc<Self>, TrustError> {
        Ok(Arc::new(Self {
            state: ArcSwap::from_pointee(State::build(peers)?),
            generation: watch::Sender::new(0),
            refusals: RefusalLog::default(),
        }))
    }

    /// Replaces all Peers at once. On an error the old ones stay (invariant I11); without a difference nobody is
    /// woken.
    ///
    /// # Errors
    /// [`TrustError`] lists everything that is wrong.
    pub fn replace(&self, peers: Vec<PeerTrust>) -> Result<(), TrustError> {
        if self.state.load().peers.iter().map(|peer| &peer.trust).eq(peers.iter()) {
            return Ok(());
        }
        self.state.store(Arc::new(State::build(peers)?));
        self.generation.send_modify(|generation| *generation += 1);
        Ok(())
    }

    /// A counter that changes with every replacement; live links are judged again then, with
    /// [`TrustStore::verify_live`] (threat C1).
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Judges a chain (leaf first) for a new link at `now`. With `expected` only that Peer is accepted.
    ///
    /// # Errors
    /// [`VerifyError`] says why the chain is refused.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
        expected: Option<&str>,
    ) -> Result<VerifiedPeer, VerifyError> {
        self.state.load().verify(chain, now, expected, verify::Occasion::New)
    }

    /// Judges the chain of a link that is up, after the Peers or their revocation lists changed, or a renewed one.
    ///
    /// Differs from [`TrustStore::verify`] in one point: a revocation list past its `nextUpdate` still revokes what
    /// it lists but does not cut links that were accepted under it.
    ///
    /// # Errors
    /// [`VerifyError`] says why the link must be cut.
    pub fn verify_live(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
        peer: &str,
    ) -> Result<VerifiedPeer, VerifyError> {
        self.state.load().verify(chain, now, Some(peer), verify::Occasion::Live)
    }

    /// The keys that are accepted of `peer`; none if there is no such Peer.
    #[must_use]
    pub fn pins_of(&self, peer: &str) -> Vec<SpkiPin> {
        let state = self.state.load();
        let peer = state.peers.iter().find(|known| *known.trust.name == *peer);
        peer.map(|known| known.trust.pins.clone()).unwrap_or_default()
    }

    /// The refusal that a handshake error text belongs to.
    ///
    /// QUIC reports a failed handshake as text only; each refusal puts an opaque number into that text by which it
    /// is found again here, as long as it is among the last 256.
    #[must_use]
    pub fn refusal_in(&self, text: &str) -> Option<Refusal> {
        self.refusals.find(text)
    }

    /// The latest refusal, among the last 256, that concerns the Peer called `peer`. Who presents a chain that leads
    /// nowhere can claim any identity: this is for people who look for the reason why a Peer has no link.
    #[must_use]
    pub fn last_refusal_of(&self, peer: &str) -> Option<Refusal> {
        self.refusals.last_of(peer)
    }

    /// When the first CA's revocation list in force ends: of several lists of one CA the youngest counts. `None`
    /// without lists.
    #[must_use]
    pub fn crl_next_update(&self) -> Option<SystemTime> {
        let state = self.state.load();
        let mut by_issuer = HashMap::new();
        for info in state.peers.iter().flat_map(|peer| &peer.trust.crls).filter_map(|list| crl::describe(list).ok()) {
            let end = by_issuer.entry(info.issuer).or_insert(info.next_update);
            *end = info.next_update.max(*end);
        }
        by_issuer.into_values().min().map(Timestamp::to_system)
    }

    /// Records why a chain was refused, for whom it was meant (`expected`) or who it says it is.
    pub(crate) fn refuse(
        &self,
        error: VerifyError,
        now: SystemTime,
        leaf: Option<&CertificateDer<'_>>,
        expected: Option<&Arc<str>>,
    ) -> rustls::Error {
        let peer = expected.or_else(|| error.peer()).cloned();
        let peer = peer.or_else(|| self.state.load().claimed(leaf?));
        self.refusals.record(error, now, peer)
    }

    /// Handshakes refused since the start, by reason; reasons that never occurred are left out.
    #[must_use]
    pub fn refused(&self) -> Vec<(VerifyReason, u64)> {
        self.refusals.counts()
    }
}

impl fmt::Debug for TrustStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.load();
        f.debug_list().entries(state.peers.iter().map(|peer| &peer.trust.name)).finish()
    }
}

/// One immutable set of Peers, prepared for lookups.
pub(crate) struct State {
    peers: Vec<Peer>,
    /// Position in `peers` by pinned key.
    by_pin: HashMap<SpkiPin, usize>,
}

struct Peer {
    trust: PeerTrust,
    /// Certificates of the bundle whose key is pinned for this Peer.
    anchors: Vec<(SpkiPin, CertificateDer<'static>)>,
    crls: Vec<Arc<revocation::Crl>>,
}

/// Lists by their DER: one file usually serves all Peers, and may be large.
type ParsedCrls = HashMap<Vec<u8>, Arc<revocation::Crl>>;

impl State {
    fn build(peers: Vec<PeerTrust>) -> Result<Self, TrustError> {
        let mut problems = Vec::new();
        let mut by_name: HashMap<Arc<str>, usize> = HashMap::new();
        let mut by_pin: HashMap<SpkiPin, usize> = HashMap::new();
        let mut names: Vec<Arc<str>> = Vec::new();
        let mut built = Vec::new();
        let mut parsed_crls = HashMap::new();
        for (index, trust) in peers.into_iter().enumerate() {
            let name = Arc::clone(&trust.name);
            if by_name.insert(Arc::clone(&name), index).is_some() {
                problems.push(TrustProblem::DuplicateName { name: Arc::clone(&name) });
            }
            if trust.pins.is_empty() {
                problems.push(TrustProblem::NoPins { name: Arc::clone(&name) });
            }
            for pin in &trust.pins {
                let owner = *by_pin.entry(*pin).or_insert(index);
                if let (true, Some(first)) = (owner != index, names.get(owner)) {
                    let (first, second) = (Arc::clone(first), Arc::clone(&name));
                    problems.push(TrustProblem::SharedPin { first, second, pin: *pin });
                }
            }
            names.push(name);
            built.push(Peer::build(trust, &mut parsed_crls, &mut problems));
        }
        if problems.is_empty() { Ok(Self { peers: built, by_pin }) } else { Err(TrustError(problems)) }
    }
}

impl Peer {
    fn build(trust: PeerTrust, parsed: &mut ParsedCrls, problems: &mut Vec<TrustProblem>) -> Self {
        let name = || Arc::clone(&trust.name);
        if trust.bundle.len() > MAX_BUNDLE {
            problems.push(TrustProblem::BundleTooLarge { name: name(), count: trust.bundle.len() });
        }
        let mut anchors = Vec::new();
        for (index, certificate) in trust.bundle.iter().enumerate().take(MAX_BUNDLE) {
            match SpkiPin::of_certificate(certificate) {
                Ok(pin) if trust.pins.contains(&pin) => anchors.push((pin, certificate.clone())),
                Ok(_) => {}
                Err(error) => {
                    problems.push(TrustProblem::Bundle { name: name(), index: index + 1, reason: error.to_string() });
                }
            }
        }
        let mut crls = Vec::new();
        for (index, der) in trust.crls.iter().enumerate() {
            let known = parsed.get(der.as_ref()).map(|crl| Ok(Arc::clone(crl)));
            match known.unwrap_or_else(|| revocation::Crl::parse(der).map(Arc::new)) {
                Ok(crl) => {
                    parsed.insert(der.to_vec(), Arc::clone(&crl));
                    crls.push(crl);
                }
                Err(reason) => problems.push(TrustProblem::Crl { name: name(), index: index + 1, reason }),
            }
        }
        Self { trust, anchors, crls }
    }
}

/// Can a revocation list be parsed as the verifier will parse it?
pub(crate) fn check_crl(der: &CertificateRevocationListDer<'_>) -> Result<(), String> {
    revocation::Crl::parse(der).map(|_| ())
}
