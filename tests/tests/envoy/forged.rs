//! Certificates that a compromised cluster can make: it has its CA's key, and may write into a certificate what it likes.
//! Nobody takes them for more than that cluster's own workloads.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_identity::{AnchorDer, Ca};
use eastway_tests::lab::cloud::Cloud;
use eastway_tests::lab::place::Place;
use eastway_tests::load;
use eastway_tests::rogue::Rogue;
use eastway_tests::{lab_test, within};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::mutual::{HBONE, INBOUND, PATIENCE, POD, World, XDS};

/// A certificate with its chain and key.
#[derive(Debug)]
pub(crate) struct Forged {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
}

/// Of the CA in a folder, with these identities.
pub(crate) fn issuer(cloud: &Cloud) -> Result<(Issuer<'static, KeyPair>, CertificateDer<'static>)> {
    let folder = cloud.folder().join("cacerts");
    let key = KeyPair::from_pem(&fs::read_to_string(folder.join("ca-key.pem"))?)?;
    let issuer = Issuer::from_ca_cert_pem(&fs::read_to_string(folder.join("ca-cert.pem"))?, key)?;
    let certificate = Ca::load(&folder)?.chain().first().context("a certificate")?.clone();
    Ok((issuer, certificate))
}

pub(crate) fn forge(cloud: &Cloud, identities: &[&str]) -> Result<Forged> {
    let (issuer, certificate) = issuer(cloud)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "forged");
    let uri = |text: &&str| Ok(SanType::URI((*text).try_into()?));
    params.subject_alt_names = identities.iter().map(uri).collect::<Result<_>>()?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&key, &issuer)?;
    Ok(Forged { chain: vec![leaf.der().clone(), certificate], key: PrivatePkcs8KeyDer::from(key.serialize_der()) })
}

/// Takes any server: what is asked is what the server takes.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What is said first, and what follows if somebody listens.
#[derive(Clone, Copy)]
pub(crate) struct Talk {
    alpn: &'static str,
    pub(crate) says: &'static [u8],
    /// What the answer of somebody who listens has in it.
    hears: &'static str,
}

const HTTP: Talk = Talk { alpn: "http/1.1", says: b"GET /x HTTP/1.1\r\nhost: any\r\n\r\n", hears: "HTTP/1.1 200" };
/// The preface of HTTP/2 and empty SETTINGS: a server answers with its own.
pub(crate) const HTTP2: Talk =
    Talk { alpn: "h2", says: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", hears: "" };
/// The server speaks first; who is somebody is found out at the client's first byte.
pub(crate) const BYTES: Talk = Talk { alpn: "eastway", says: b"hello", hears: "hello" };

/// A connection to `target` of somebody with this certificate. Whether it is taken shows with the first answer.
pub(crate) async fn connect(
    place: &Place,
    source: IpAddr,
    target: SocketAddr,
    talk: Talk,
    who: &Forged,
) -> Result<TlsStream<TcpStream>> {
    let key = PrivateKeyDer::Pkcs8(who.key.clone_key());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_auth_cert(who.chain.clone(), key)?;
    config.alpn_protocols = vec![talk.alpn.as_bytes().to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    place
        .run(async move {
            let tcp = load::connect(source, target).await?;
            Ok(connector.connect(ServerName::try_from("any.test")?, tcp).await?)
        })
        .await
}

/// Whether a server at `target` answers to somebody with this certificate.
pub(crate) async fn is_taken(
    place: &Place,
    source: IpAddr,
    target: SocketAddr,
    talk: Talk,
    who: &Forged,
) -> Result<bool> {
    let conversation = async {
        let mut tls = connect(place, source, target, talk, who).await?;
        tls.write_all(talk.says).await?;
        let mut heard = Vec::new();
        while tls.read_buf(&mut heard).await? > 0 {
            if String::from_utf8_lossy(&heard).contains(talk.hears) {
                return Ok(true);
            }
        }
        Ok::<_, anyhow::Error>(false)
    };
    let answered = tokio::time::timeout(Duration::from_secs(5), conversation).await.context("no answer")?;
    Ok(answered.unwrap_or(false))
}

async fn nobody_takes_them(version: &'static str) -> Result<()> {
    let world = World::start(version).await?;
    let (a, b) = (world.mesh.cloud("a"), world.mesh.cloud("b"));
    let place = b.net().pods().clone();
    let pod = b.net().pod(POD);
    let (mine, other) = ("spiffe://a.example/ns/shop/sa/x", "spiffe://a.example/ns/shop/sa/y");
    let theirs = "spiffe://b.example/ns/shop/sa/client";
    // What the CA of a may say, and what it may not.
    let cases: [(&[&str], bool); 7] = [
        (&[mine], true),
        (&[theirs], false),
        (&["spiffe://c.example/ns/shop/sa/client"], false),
        (&[mine, theirs], false),
        (&[theirs, mine], false),
        (&[mine, other], false),
        (&[], false),
    ];
    for (number, talk) in [(1, HTTP), (2, HTTP), (3, BYTES)] {
        let sidecar = SocketAddr::new(pod, INBOUND + number);
        for (identities, good) in cases {
            let taken = is_taken(&place, pod, sidecar, talk, &forge(a, identities)?).await?;
            ensure!(taken == good, "{version}, port {number}: the CA of a says {identities:?}: taken {taken}");
        }
        ensure!(is_taken(&place, pod, sidecar, talk, &forge(b, &[theirs])?).await?, "{number}: its own domain's");
        ensure!(!is_taken(&place, pod, sidecar, talk, &forge(b, &[theirs, mine])?).await?, "{number}: two of b's CA");
    }
    // The gateway's own ports take nobody but its own cluster's workloads.
    let gateway = b.net().gateways()[0].inside;
    for port in [HBONE, XDS] {
        let to = SocketAddr::new(gateway, port);
        ensure!(is_taken(&place, pod, to, HTTP2, &forge(b, &[theirs])?).await?, "{port}: the control");
        for (identities, _) in cases {
            ensure!(
                !is_taken(&place, pod, to, HTTP2, &forge(a, identities)?).await?,
                "{port}: {identities:?} of a's CA"
            );
        }
        for identities in [[theirs, mine], [mine, theirs], [theirs, "spiffe://b.example/ns/shop/sa/z"]] {
            ensure!(!is_taken(&place, pod, to, HTTP2, &forge(b, &identities)?).await?, "{port}: {identities:?} of b's");
        }
    }
    world.mesh.stop().await
}

/// A self-signed certificate of the CA's name and key, with or without what constrains it.
fn unconstrained(cloud: &Cloud, constraint: Option<&str>) -> Result<AnchorDer> {
    let folder = cloud.folder().join("cacerts");
    let key = KeyPair::from_pem(&fs::read_to_string(folder.join("ca-key.pem"))?)?;
    let good = Ca::load(&folder)?.anchors(&format!("{}.example", cloud.name()), std::time::SystemTime::now())?;
    let good = good.into_iter().next().context("an anchor")?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, format!("{}.example", cloud.name()));
    params.distinguished_name.push(DnType::CommonName, "Eastway issuing CA");
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    if let Some(domain) = constraint {
        params.custom_extensions = vec![name_constraint(domain)];
    }
    let certificate = params.self_signed(&key)?;
    Ok(AnchorDer { certificate: certificate.der().to_vec(), crl: good.crl })
}

fn name_constraint(domain: &str) -> rcgen::CustomExtension {
    let length = |bytes: usize| u8::try_from(bytes).expect("short");
    let mut uri = vec![0x86, length(domain.len())];
    uri.extend_from_slice(domain.as_bytes());
    let mut content = vec![0x30, length(uri.len() + 4), 0xa0, length(uri.len() + 2), 0x30, length(uri.len())];
    content.extend(uri);
    let mut extension = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 30], content);
    extension.set_criticality(true);
    extension
}

/// Anchors that b's gateway has refused.
async fn refused(world: &World) -> Result<u64> {
    let page = world.mesh.cloud("b").metrics(0).await?;
    let lines = page.lines().filter(|line| line.contains("\"anchor\"") && line.contains("\"a\""));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
}

lab_test! {
    async fn c4_what_a_compromised_ca_signs_is_taken_for_its_own_domain_only_envoy_1_40_0() {
        nobody_takes_them("1.40.0").await
    }
    async fn c4_what_a_compromised_ca_signs_is_taken_for_its_own_domain_only_envoy_1_36_2() {
        nobody_takes_them("1.36.2").await
    }

    /// A peer's gateway that tells us to know its domain by something that could speak for ours.
    async fn c4_an_anchor_that_could_speak_for_others_is_given_to_no_sidecar() {
        let world = World::start("1.40.0").await?;
        let (a, b) = (world.mesh.cloud("a"), world.mesh.cloud("b"));
        let place = b.net().pods().clone();
        let (pod, sidecar) = (b.net().pod(POD), SocketAddr::new(b.net().pod(POD), INBOUND + 2));
        let (mine, theirs) = ("spiffe://a.example/ns/shop/sa/x", "spiffe://b.example/ns/shop/sa/client");
        ensure!(is_taken(&place, pod, sidecar, HTTP, &forge(a, &[mine])?).await?, "the control");
        let good = Ca::load(&a.folder().join("cacerts"))?.anchors("a.example", std::time::SystemTime::now())?;
        let bad = [
            ("none", unconstrained(a, None)?),
            ("another's", unconstrained(a, Some("b.example"))?),
            ("no list", AnchorDer { crl: Vec::new(), ..good[0].clone() }),
            ("another key", Ca::load(&b.folder().join("cacerts"))?.anchors("a.example", std::time::SystemTime::now())?.remove(0)),
        ];
        let rogue = Rogue::join(a, b).await?;
        for (what, anchor) in bad {
            let before = refused(&world).await?;
            rogue.say_anchors(vec![anchor]);
            within(PATIENCE, what, async || Ok(refused(&world).await? > before)).await?;
            ensure!(!is_taken(&place, pod, sidecar, HTTP, &forge(a, &[theirs])?).await?, "{what}: it speaks for b");
        }
        // What is good is taken from whoever of its gateways says it.
        rogue.say_anchors(good);
        let again = async || is_taken(&place, pod, sidecar, HTTP, &forge(a, &[mine])?).await;
        within(PATIENCE, "the good one counts again", again).await?;
        drop(rogue);
        world.mesh.stop().await
    }
}
