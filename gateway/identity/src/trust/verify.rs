//! The one verifier: path to a pinned key, then identity, then revocation.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use sha2::{Digest, Sha256};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, VerifiedPath};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;

use super::error::{SanProblem, VerifyError};
use super::{Peer, PeerTrust, State, VerifiedPeer};
use crate::certificate;
use crate::pin::SpkiPin;
use crate::spiffe::SpiffeId;
use crate::timestamp::Timestamp;

/// Most certificates that are read of one chain: leaf, issuing CA, and far more intermediates than anyone has.
const MAX_CHAIN: usize = 8;
/// A URI in an error message is cut to this many characters: it is the other side's text.
const MAX_QUOTED: usize = 256;

const LEAF: &str = "gateway certificate";
const CA: &str = "CA certificate";

/// Why a chain is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occasion {
    /// A handshake: an expired revocation list refuses.
    New,
    /// A link that is up: an expired revocation list still revokes what it lists, and no more.
    Live,
}

/// A certificate whose key is pinned, from the bundle or from the chain itself.
struct Candidate<'a> {
    pin: SpkiPin,
    der: &'a CertificateDer<'a>,
    not_after: Timestamp,
}

impl State {
    pub(super) fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
        expected: Option<&str>,
        occasion: Occasion,
    ) -> Result<VerifiedPeer, VerifyError> {
        let (leaf_der, others) = chain.split_first().ok_or(VerifyError::NoCertificate)?;
        if chain.len() > MAX_CHAIN {
            return Err(VerifyError::ChainTooLong { length: chain.len() });
        }
        if let Some(name) = expected.filter(|name| self.peers.iter().all(|peer| &*peer.trust.name != *name)) {
            return Err(VerifyError::UnknownPeer { name: Arc::from(name) });
        }
        let leaf = certificate::parse(leaf_der).map_err(|reason| malformed(LEAF, &reason))?;
        let now = Timestamp::from(now);

        let candidates = self.candidates(others, now)?;
        let path = Path::build(self, leaf_der, &leaf, others, &candidates, now)?;
        let pin = path.pin;
        let peer = self.by_pin.get(&pin).and_then(|index| self.peers.get(*index));
        let peer = peer.ok_or_else(|| self.not_pinned(&leaf, others))?;
        if let Some(expected) = expected.filter(|expected| **expected != *peer.trust.name) {
            let (expected, found) = (Arc::from(expected), Arc::clone(&peer.trust.name));
            return Err(VerifyError::WrongPeer { expected, found, presented: pin });
        }
        check_purpose(&leaf)?;
        let id = single_uri(&leaf)?;
        if id != peer.trust.gateway {
            let (expected, name) = (peer.trust.gateway.clone(), Arc::clone(&peer.trust.name));
            return Err(VerifyError::NotTheGateway { peer: name, expected, presented: id });
        }
        peer.check_revocation(&path, &candidates, now, occasion)?;
        Ok(VerifiedPeer {
            peer: Arc::clone(&peer.trust.name),
            id,
            not_before: certificate::not_before(&leaf).to_system(),
            not_after: path.not_after.to_system(),
            leaf_sha256: Sha256::digest(leaf_der).into(),
            pin,
        })
    }

    /// Every certificate at hand whose key is pinned. Those out of their time or without the right to issue are no
    /// anchors; if that leaves none for a key that was presented, the reason is the verdict.
    fn candidates<'a>(
        &'a self,
        presented: &'a [CertificateDer<'a>],
        now: Timestamp,
    ) -> Result<Vec<Candidate<'a>>, VerifyError> {
        let mut usable = Vec::new();
        let mut unusable = None;
        let bundled = self.peers.iter().flat_map(|peer| peer.anchors.iter().map(|(pin, der)| (*pin, der)));
        for (pin, der) in bundled {
            if let Ok(not_after) = check_anchor(der, now) {
                usable.push(Candidate { pin, der, not_after });
            }
        }
        for der in presented {
            let pin = SpkiPin::of_certificate(der).map_err(|error| malformed(CA, &error.to_string()))?;
            if !self.by_pin.contains_key(&pin) {
                continue;
            }
            match check_anchor(der, now) {
                Ok(not_after) => usable.push(Candidate { pin, der, not_after }),
                Err(error) => unusable = Some((pin, error)),
            }
        }
        match unusable {
            Some((pin, error)) if usable.iter().all(|candidate| candidate.pin != pin) => Err(error),
            _ => Ok(usable),
        }
    }

    /// The verdict for a chain that reaches no pinned key.
    fn not_pinned(&self, leaf: &X509Certificate<'_>, others: &[CertificateDer<'_>]) -> VerifyError {
        let issuer_key = others.first().and_then(|issuer| SpkiPin::of_certificate(issuer).ok());
        VerifyError::NotPinned {
            presented: issuer_key.unwrap_or_else(|| SpkiPin::of_spki(leaf.public_key().raw)),
            issuer: quoted(&leaf.issuer().to_string()),
            claims: self.claimed_in(leaf),
        }
    }

    /// The Peer whose gateway a leaf says it is, without any proof.
    pub(super) fn claimed(&self, leaf: &CertificateDer<'_>) -> Option<Arc<str>> {
        self.claimed_in(&certificate::parse(leaf).ok()?)
    }

    fn claimed_in(&self, leaf: &X509Certificate<'_>) -> Option<Arc<str>> {
        let id = single_uri(leaf).ok()?;
        self.peers.iter().find(|peer| peer.trust.gateway == id).map(|peer| Arc::clone(&peer.trust.name))
    }
}

/// Judges a chain of this cluster's own CA, whose issuing certificates are `anchors`: by the same rules as a peer's, but
/// whichever identity it names is the caller's to judge. Gives that identity and the earliest end of life.
pub(crate) fn verify_local(
    anchors: Vec<CertificateDer<'static>>,
    chain: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<(SpiffeId, SystemTime), VerifyError> {
    let leaf = certificate::parse(chain.first().ok_or(VerifyError::NoCertificate)?);
    let id = single_uri(&leaf.map_err(|reason| malformed(LEAF, &reason))?)?;
    let pin = |der| SpkiPin::of_certificate(der).map_err(|error| malformed(CA, &error.to_string()));
    let pins = anchors.iter().map(pin).collect::<Result<Vec<_>, _>>()?;
    let trust = PeerTrust {
        name: Arc::from("this cluster"),
        gateway: id,
        pins: pins.clone(),
        bundle: Vec::new(),
        crls: Vec::new(),
    };
    let by_pin = pins.iter().map(|pin| (*pin, 0)).collect();
    let peer = Peer { trust, anchors: pins.into_iter().zip(anchors).collect(), crls: Vec::new() };
    let found = State { peers: vec![peer], by_pin }.verify(chain, now, None, Occasion::New)?;
    Ok((found.id, found.not_after))
}

/// May a certificate with a pinned key end a chain at `now`? Gives the end of its life.
fn check_anchor(der: &CertificateDer<'_>, now: Timestamp) -> Result<Timestamp, VerifyError> {
    let parsed = certificate::parse(der).map_err(|reason| malformed(CA, &reason))?;
    check_time(&parsed, CA, now)?;
    certificate::may_issue(&parsed).map_err(|problem| VerifyError::Chain {
        reason: match problem {
            certificate::NotACa::BasicConstraints => "the pinned key's certificate is not a CA (basicConstraints)",
            certificate::NotACa::KeyCertSign => "the pinned key's certificate may not issue (keyUsage keyCertSign)",
        }
        .to_owned(),
    })?;
    Ok(certificate::not_after(&parsed))
}

fn check_time(certificate: &X509Certificate<'_>, what: &'static str, now: Timestamp) -> Result<(), VerifyError> {
    let (not_before, not_after) = (certificate::not_before(certificate), certificate::not_after(certificate));
    if now > not_after {
        return Err(VerifyError::Expired { what, not_after, now });
    }
    if now < not_before {
        return Err(VerifyError::NotYetValid { what, not_before, now });
    }
    Ok(())
}

/// A path from the leaf to a pinned key, with signatures, times and CA rules checked.
pub(super) struct Path<'a> {
    leaf: &'a CertificateDer<'a>,
    intermediates: Vec<CertificateDer<'a>>,
    anchors: Vec<TrustAnchor<'a>>,
    /// The pinned key it ends in.
    pub(super) pin: SpkiPin,
    /// Earliest end of life on it.
    not_after: Timestamp,
    /// DER of what lies on it, leaf first, without the anchor.
    pub(super) certificates: Vec<CertificateDer<'a>>,
}

impl<'a> Path<'a> {
    fn build(
        state: &State,
        leaf_der: &'a CertificateDer<'a>,
        leaf: &X509Certificate<'_>,
        others: &'a [CertificateDer<'a>],
        candidates: &'a [Candidate<'a>],
        now: Timestamp,
    ) -> Result<Self, VerifyError> {
        // A pinned key ends every path that reaches it: below the CA of one Peer nothing can be signed that another
        // Peer's pin, further up, would accept.
        let unpinned =
            |der: &&CertificateDer<'_>| SpkiPin::of_certificate(der).is_ok_and(|pin| !state.by_pin.contains_key(&pin));
        let intermediates: Vec<_> = others.iter().filter(unpinned).cloned().collect();
        let mut anchors = Vec::new();
        for candidate in candidates {
            let mut anchor = webpki::anchor_from_trusted_cert(candidate.der)
                .map_err(|error| malformed(CA, &format!("{error:?}")))?;
            // A pin says more than a name constraint could, and webpki refuses every constraint on URIs, which is
            // what the anchors that sidecars get carry.
            anchor.name_constraints = None;
            anchors.push(anchor);
        }
        let mut path = Self {
            leaf: leaf_der,
            intermediates,
            anchors,
            pin: SpkiPin::of_spki(&[]),
            not_after: certificate::not_after(leaf),
            certificates: Vec::new(),
        };
        let (pin, certificates) = path
            .walk(now, None, |found| {
                let mut certificates = vec![leaf_der.clone()];
                certificates.extend(found.intermediate_certificates().map(webpki::Cert::der));
                let certificates: Vec<_> = certificates.into_iter().map(CertificateDer::into_owned).collect();
                (SpkiPin::of_spki(&webpki::spki_for_anchor(found.anchor())), certificates)
            })
            .map_err(|error| state.path_error(&error, leaf, others, now))?;
        path.pin = pin;
        path.check_lengths(&certificates, candidates)?;
        path.certificates = certificates;
        Ok(path)
    }

    /// Runs webpki over this leaf, these intermediates and anchors.
    pub(super) fn walk<T>(
        &self,
        now: Timestamp,
        revocation: Option<webpki::RevocationOptions<'_>>,
        read: impl FnOnce(&VerifiedPath<'_>) -> T,
    ) -> Result<T, webpki::Error> {
        let leaf = EndEntityCert::try_from(self.leaf)?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.unix()).unwrap_or(0)));
        let found = leaf.verify_for_usage(
            algorithms(),
            &self.anchors,
            &self.intermediates,
            now,
            ClientAndServer,
            revocation,
            None,
        )?;
        Ok(read(&found))
    }

    /// What webpki leaves out: the anchor's own path length, and the earliest end of life.
    fn check_lengths(
        &mut self,
        certificates: &[CertificateDer<'_>],
        candidates: &[Candidate<'_>],
    ) -> Result<(), VerifyError> {
        for der in certificates {
            if let Ok(parsed) = certificate::parse(der) {
                self.not_after = self.not_after.min(certificate::not_after(&parsed));
            }
        }
        let below = u32::try_from(certificates.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let allows = |candidate: &&Candidate<'_>| {
            let parsed = certificate::parse(candidate.der);
            parsed.is_ok_and(|parsed| certificate::path_length(&parsed).is_none_or(|length| below <= length))
        };
        let mine = candidates.iter().filter(|candidate| candidate.pin == self.pin);
        let until = mine.filter(allows).map(|candidate| candidate.not_after).max();
        let until = until.ok_or_else(|| VerifyError::Chain {
            reason: "the pinned CA's path length allows no CA below it".to_owned(),
        })?;
        self.not_after = self.not_after.min(until);
        Ok(())
    }
}

impl State {
    /// Words webpki's verdict.
    fn path_error(
        &self,
        error: &webpki::Error,
        leaf: &X509Certificate<'_>,
        others: &[CertificateDer<'_>],
        now: Timestamp,
    ) -> VerifyError {
        use webpki::Error as E;
        let reason = quoted(&format!("{error:?}"));
        #[expect(clippy::wildcard_enum_match_arm, reason = "webpki adds variants; what is not named is a bad chain")]
        match error {
            E::UnknownIssuer => self.not_pinned(leaf, others),
            E::CertExpired { .. } | E::CertNotValidYet { .. } => match check_time(leaf, LEAF, now) {
                Err(error) => error,
                Ok(()) => others
                    .iter()
                    .filter_map(|der| certificate::parse(der).ok())
                    .find_map(|parsed| check_time(&parsed, CA, now).err())
                    .unwrap_or(VerifyError::Chain { reason }),
            },
            E::CaUsedAsEndEntity => VerifyError::CaLeaf,
            E::EndEntityUsedAsCa => {
                VerifyError::Chain { reason: "a certificate that is not a CA issued another".to_owned() }
            }
            E::PathLenConstraintViolated => {
                VerifyError::Chain { reason: "more CAs than the path length of one of them allows".to_owned() }
            }
            E::NameConstraintViolation => VerifyError::Chain {
                reason: "a CA between the pinned key and the leaf has name constraints that are not supported or not \
                         met; pin the issuing CA's key"
                    .to_owned(),
            },
            E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => {
                VerifyError::Purpose { reason: "extendedKeyUsage must hold serverAuth and clientAuth".to_owned() }
            }
            E::InvalidSignatureForPublicKey
            | E::SignatureAlgorithmMismatch
            | E::UnsupportedSignatureAlgorithmContext(_)
            | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
            | E::MaximumSignatureChecksExceeded => VerifyError::Signature { reason },
            E::BadDer | E::BadDerTime | E::TrailingData(_) | E::MalformedExtensions => malformed("chain", &reason),
            _ => VerifyError::Chain { reason },
        }
    }
}

impl Peer {
    fn check_revocation(
        &self,
        path: &Path<'_>,
        candidates: &[Candidate<'_>],
        now: Timestamp,
        occasion: Occasion,
    ) -> Result<(), VerifyError> {
        let enforce = occasion == Occasion::New;
        for (position, der) in path.certificates.iter().enumerate() {
            let what = if position == 0 { LEAF } else { CA };
            super::revocation::check(&self.crls, path, der, now, enforce)
                .map_err(|problem| problem.into_error(&self.trust.name, what, now))?;
        }
        // The anchor's signature is not checked (its key is pinned), so a list can name it only on its word; the sure
        // way to end a CA is to remove its pin.
        let anchors = candidates.iter().filter(|candidate| candidate.pin == path.pin);
        for candidate in anchors {
            if super::revocation::lists(&self.crls, candidate.der) {
                return Err(VerifyError::Revoked { what: CA, peer: Arc::clone(&self.trust.name) });
            }
        }
        Ok(())
    }
}

/// The single URI SAN of a leaf, which must be a SPIFFE id.
///
/// Counted by type before any reading, so that a name one parser skips is not a name another one takes.
pub(crate) fn single_uri(leaf: &X509Certificate<'_>) -> Result<SpiffeId, SanProblem> {
    let mut uris = Vec::new();
    let is_san = |extension: &&X509Extension<'_>| extension.oid == OID_X509_EXT_SUBJECT_ALT_NAME;
    for extension in leaf.extensions().iter().filter(is_san) {
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
            return Err(SanProblem::Malformed);
        };
        for name in &names.general_names {
            match name {
                GeneralName::URI(uri) => uris.push(*uri),
                GeneralName::Invalid(..) => return Err(SanProblem::Malformed),
                GeneralName::OtherName(..)
                | GeneralName::RFC822Name(_)
                | GeneralName::DNSName(_)
                | GeneralName::X400Address(_)
                | GeneralName::DirectoryName(_)
                | GeneralName::EDIPartyName(_)
                | GeneralName::IPAddress(_)
                | GeneralName::RegisteredID(_) => {}
            }
        }
    }
    match uris.as_slice() {
        [] => Err(SanProblem::None),
        [uri] => SpiffeId::parse(uri).map_err(|problem| SanProblem::NotSpiffe { uri: quoted(uri), problem }),
        several => Err(SanProblem::Several(several.len())),
    }
}

/// A leaf for links must be good for both ends of one, and for nothing a CA does.
fn check_purpose(leaf: &X509Certificate<'_>) -> Result<(), VerifyError> {
    let purpose = |reason: &str| Err(VerifyError::Purpose { reason: reason.to_owned() });
    match leaf.extended_key_usage() {
        Ok(Some(usage)) if usage.value.server_auth && usage.value.client_auth => {}
        Ok(_) | Err(_) => return purpose("extendedKeyUsage must hold serverAuth and clientAuth"),
    }
    match leaf.key_usage() {
        Ok(None) => Ok(()),
        Ok(Some(usage)) if usage.value.key_cert_sign() => purpose("keyUsage holds keyCertSign"),
        Ok(Some(usage)) if usage.value.digital_signature() => Ok(()),
        Ok(Some(_)) | Err(_) => purpose("keyUsage must hold digitalSignature"),
    }
}

/// webpki asks this of every certificate on a path: a CA without the extension is unlimited, one with it must allow
/// both uses. That a leaf has the extension is checked in [`check_purpose`].
struct ClientAndServer;

impl ExtendedKeyUsageValidator for ClientAndServer {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let (mut any, mut server, mut client) = (false, false, false);
        for purpose in purposes {
            let oid = purpose?.to_decoded_oid();
            any = true;
            server |= oid == webpki::KeyUsage::SERVER_AUTH_REPR;
            client |= oid == webpki::KeyUsage::CLIENT_AUTH_REPR;
        }
        // The error's detail is not used: it can only be built by webpki.
        if !any || (server && client) { Ok(()) } else { Err(webpki::Error::EmptyEkuExtension) }
    }
}

/// Signature algorithms accepted in chains: what the provider has, which is SHA-256 and up.
pub(crate) fn algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    webpki::ALL_VERIFICATION_ALGS
}

fn malformed(what: &'static str, reason: &str) -> VerifyError {
    VerifyError::Malformed { what, reason: quoted(reason) }
}

/// Text that the other side has a hand in, cut, and without characters that could forge a log line or turn its
/// reading direction (threat P11).
pub(super) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_graphic() || c == ' ' || c.is_alphanumeric();
    text.chars().take(MAX_QUOTED).map(|c| if plain(c) { c } else { '\u{fffd}' }).collect()
}
