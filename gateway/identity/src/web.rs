//! A server that others know by one certificate and by nothing above it, as API servers know webhooks: key and
//! certificate are made where they are used, signed by themselves, and only the certificate is handed out.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::ca::{KeyKind, SERVER_AUTH};
use crate::certificate::{Template, arc};
use crate::der;
use crate::key::{CaKey, KeyError};
use crate::pem;
use crate::timestamp::Timestamp;
use crate::tls;

/// Clocks of those who check it may be this much behind.
const BACKDATE: Duration = Duration::from_secs(300);
/// Most bytes of a bundle that is read.
const MAX_BUNDLE: usize = 256 << 10;
/// Application protocol of the server.
const ALPN: &[u8] = b"http/1.1";

/// A key, and the certificate that it signed for itself.
#[derive(Clone)]
pub struct WebCertificate {
    key: Arc<CertifiedKey>,
    certificate: CertificateDer<'static>,
    not_after: SystemTime,
}

impl WebCertificate {
    /// Makes both, good for `lifetime` from `now` on for the DNS name `name`. The certificate is no CA's: nothing else can be
    /// signed with it.
    ///
    /// # Errors
    /// [`KeyError`]: the crypto provider failed.
    pub fn generate(name: &str, now: SystemTime, lifetime: Duration) -> Result<Self, KeyError> {
        let key = CaKey::generate(KeyKind::P256)?;
        let (spki, now) = (key.spki(), Timestamp::from(now));
        let subject = der::name("Eastway", Some(name));
        let not_after = now.plus(lifetime);
        let template = Template {
            issuer: &subject,
            subject: &subject,
            spki: &spki,
            not_before: now.minus(BACKDATE),
            not_after,
            extensions: extensions(name),
        };
        let certificate = template.sign(&key)?;
        let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.secret_der()));
        let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&secret).map_err(|_| KeyError::Unsupported)?;
        let key = Arc::new(CertifiedKey::new(vec![certificate.clone()], signer));
        Ok(Self { key, certificate, not_after: not_after.to_system() })
    }

    /// What others know the server by.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// When it ends.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

impl fmt::Debug for WebCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebCertificate").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

fn extensions(name: &str) -> Vec<Vec<u8>> {
    // dNSName (RFC 5280 §4.2.1.6)
    let names = der::sequence(&[der::tlv(der::CONTEXT | 2, name.as_bytes())]);
    vec![
        der::extension(arc::SUBJECT_ALT_NAME, false, &names),
        // digitalSignature
        der::extension(arc::KEY_USAGE, true, &der::named_bits(&[0])),
        der::extension(arc::EXTENDED_KEY_USAGE, false, &der::sequence(&[der::tlv(der::OID, SERVER_AUTH)])),
        // cA is FALSE by default, which DER leaves out.
        der::extension(arc::BASIC_CONSTRAINTS, true, &der::sequence::<&[u8]>(&[])),
    ]
}

/// The certificate that a running server presents, replaced while it runs.
#[derive(Debug)]
pub struct WebIdentity(ArcSwap<WebCertificate>);

impl WebIdentity {
    /// Presents this one.
    #[must_use]
    pub fn new(certificate: WebCertificate) -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(certificate)))
    }

    /// From now on presents this one. Connections that are open stay.
    pub fn replace(&self, certificate: WebCertificate) {
        self.0.store(Arc::new(certificate));
    }

    /// What it presents now.
    #[must_use]
    pub fn current(&self) -> Arc<WebCertificate> {
        self.0.load_full()
    }
}

impl ResolvesServerCert for WebIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().key))
    }
}

/// TLS 1.3 of a server that asks nobody for a certificate and speaks HTTP/1.1.
///
/// # Errors
/// The provider lacks TLS 1.3, which this build's does not.
pub fn server_config(identity: Arc<WebIdentity>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(tls::provider());
    let builder = builder.with_protocol_versions(&[&version::TLS13])?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(identity);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// What to publish so that servers of `ours` are known, given what is published: `ours`, and what is there and has not ended
/// nor is among `gone`, so that other replicas stay known. Of more than `most` those that end last stay; what is no
/// certificate goes. The text is the same whoever writes it.
#[must_use]
pub fn bundle(
    published: &[u8],
    ours: &[&CertificateDer<'_>],
    gone: &[&CertificateDer<'_>],
    now: SystemTime,
    most: usize,
) -> String {
    let readable = published.get(..MAX_BUNDLE.min(published.len())).unwrap_or_default();
    let others = pem::blocks(readable).unwrap_or_default().into_iter().filter(pem::Block::is_certificate);
    let mut kept: Vec<(Timestamp, Vec<u8>)> = others
        .filter_map(|block| {
            let end = crate::certificate::not_after(&crate::certificate::parse(&block.der).ok()?);
            let is = |list: &[&CertificateDer<'_>]| list.iter().any(|one| one.as_ref() == block.der.as_slice());
            (end > Timestamp::from(now) && !is(ours) && !is(gone)).then(|| (end, block.der.to_vec()))
        })
        .collect();
    kept.sort();
    kept.dedup();
    let surplus = (kept.len() + ours.len()).saturating_sub(most).min(kept.len());
    let others = kept.drain(surplus..).map(|(_, der)| der);
    let mut all: Vec<Vec<u8>> = others.chain(ours.iter().map(|one| one.to_vec())).collect();
    all.sort();
    all.iter().map(|der| pem::encode("CERTIFICATE", der)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "eastway-injector.eastway-system.svc";
    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn made(seconds: u64) -> WebCertificate {
        WebCertificate::generate(NAME, at(seconds), WEEK).unwrap()
    }

    /// As an API server judges: the certificate alone is what it trusts.
    fn judge(trusted: &CertificateDer<'static>, shown: &CertificateDer<'static>, name: &str, now: SystemTime) -> bool {
        use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
        let anchors = [anchor_from_trusted_cert(trusted).unwrap()];
        let time = now.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let shown = EndEntityCert::try_from(shown).unwrap();
        let verified = shown.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &[],
            rustls_pki_types::UnixTime::since_unix_epoch(time),
            KeyUsage::server_auth(),
            None,
            None,
        );
        verified.is_ok() && shown.verify_is_valid_for_subject_name(&name.try_into().unwrap()).is_ok()
    }

    #[test]
    fn it_is_taken_for_its_name_and_its_time_by_who_has_it_and_signs_for_nobody() {
        let (web, other) = (made(0), made(0));
        assert!(judge(web.certificate(), web.certificate(), NAME, at(1)));
        assert!(judge(web.certificate(), web.certificate(), NAME, at(7 * 24 * 3600 - 1)));
        assert!(!judge(web.certificate(), web.certificate(), NAME, at(7 * 24 * 3600 + 1)));
        assert!(!judge(web.certificate(), web.certificate(), "eastway-ca.eastway-system.svc", at(1)));
        assert!(!judge(web.certificate(), other.certificate(), NAME, at(1)), "of the same name, by another key");
        let parsed = crate::certificate::parse(web.certificate()).unwrap();
        assert!(crate::certificate::may_issue(&parsed).is_err());
        assert_eq!(web.not_after(), at(7 * 24 * 3600));
        assert!(!format!("{web:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_bundle_keeps_others_until_they_end_and_is_the_same_whoever_writes_it() {
        let (a, b, c) = (made(0), made(100), made(200));
        let of = |published: &str, ours: &[&WebCertificate], now| {
            let ours: Vec<_> = ours.iter().map(|one| one.certificate()).collect();
            bundle(published.as_bytes(), &ours, &[], now, 8)
        };
        let first = of("", &[&a], at(0));
        let both = of(&first, &[&b], at(100));
        assert_eq!(both, of(&of("", &[&b], at(100)), &[&a], at(100)), "whoever was first");
        assert_eq!(both, of(&both, &[&a], at(101)), "nothing to write");
        assert_eq!(crate::certificates_from_pem(both.as_bytes()).unwrap().len(), 2);
        // The old one of a rotation, told to go; and one that has ended.
        let without = bundle(both.as_bytes(), &[c.certificate()], &[b.certificate()], at(200), 8);
        assert_eq!(without, of(&first, &[&c], at(200)));
        let later = of(&both, &[&c], at(7 * 24 * 3600 + 50));
        assert_eq!(later, of(&of("", &[&b], at(100)), &[&c], at(300)));
    }

    #[test]
    fn what_others_wrote_there_does_no_harm() {
        let own = made(0);
        let ours = [own.certificate()];
        let clean = bundle(b"", &ours, &[], at(0), 4);
        let garbage = pem::encode("CERTIFICATE", b"nonsense");
        let key = pem::encode("PRIVATE KEY", b"nonsense");
        for bad in ["", "Cg==", "-----BEGIN CERTIFICATE-----\nAAAA", garbage.as_str(), key.as_str()] {
            assert_eq!(bundle(bad.as_bytes(), &ours, &[], at(0), 4), clean, "{bad}");
        }
        assert_eq!(bundle(&[0xff; 10], &ours, &[], at(0), 4), clean);
        // More than fit: the newest stay, and our own always.
        let many: String = (1..10).map(|n| pem::encode("CERTIFICATE", made(n).certificate())).collect();
        let text = bundle(many.as_bytes(), &ours, &[], at(20), 4);
        let kept = crate::certificates_from_pem(text.as_bytes()).unwrap();
        assert!(kept.len() == 4 && kept.contains(own.certificate()));
    }
}
