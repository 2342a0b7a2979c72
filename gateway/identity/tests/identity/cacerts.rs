//! CA folders: those that people have are read as they come, those that would fail at every peer are refused here,
//! with the file, the reason and the remedy.

use std::path::{Path, PathBuf};

use eastway_identity::ca::{Ca, CaError, CaWarning, Layout};
use eastway_identity::{SpiffeId, TrustStore};
use rcgen::{BasicConstraints, IsCa, KeyPair, KeyUsagePurpose};

use crate::pki::{Authority, Change, uri_constraint, write_cacerts, write_key};
use crate::support::{DAY, noon};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/identity/fixtures").join(name)
}

/// What an error says, with the names of files instead of their whole paths.
fn told(dir: &Path, error: &CaError) -> String {
    error.to_string().replace(&format!("{}/", dir.display()), "")
}

type Spoil = fn(&Folder);

/// A healthy folder that tests spoil: issuing CA, one intermediate, root.
struct Folder {
    dir: tempfile::TempDir,
    root: Authority,
    middle: Authority,
    issuing: Authority,
}

impl Folder {
    fn new() -> Self {
        let root = Authority::root("root", |_| {});
        let middle = root.child("middle", |_| {});
        let issuing = middle.child("issuing", |_| {});
        Self::of(root, middle, issuing)
    }

    fn of(root: Authority, middle: Authority, issuing: Authority) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_cacerts(dir.path(), &issuing, &[&middle], &root);
        Self { dir, root, middle, issuing }
    }

    /// The issuing CA under a root directly, spoilt by `change`.
    fn issuing(change: impl FnOnce(&mut rcgen::CertificateParams)) -> Self {
        let root = Authority::root("root", |_| {});
        let issuing = root.child("issuing", change);
        let dir = tempfile::tempdir().unwrap();
        write_cacerts(dir.path(), &issuing, &[], &root);
        Self { dir, middle: root.child("unused", |_| {}), root, issuing }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn write(&self, file: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(file), bytes).unwrap();
    }

    fn remove(&self, file: &str) {
        std::fs::remove_file(self.path(file)).unwrap();
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.path(file)).unwrap()
    }

    fn load(&self) -> Result<Ca, CaError> {
        Ca::load_at(self.dir.path(), noon())
    }

    fn error(&self) -> String {
        told(self.dir.path(), &self.load().unwrap_err())
    }
}

/// A leaf of this CA is accepted by whoever pins its key.
fn assert_issues(ca: &Ca) {
    let gateway = SpiffeId::gateway("any.example").unwrap();
    let identity = ca.issue_identity(&gateway, DAY, noon()).unwrap();
    let peer = eastway_identity::PeerTrust {
        name: "any".into(),
        gateway,
        pins: ca.pins(),
        bundle: Vec::new(),
        crls: Vec::new(),
    };
    let trust = TrustStore::new(vec![peer]).unwrap();
    trust.verify(identity.chain(), noon(), Some("any")).unwrap();
}

#[test]
fn folders_of_every_kind_of_key_are_read_as_they_come() {
    for (name, layout) in [
        ("istio-rsa", Layout::IstioCacerts),
        ("sec1", Layout::IstioCacerts),
        ("pkcs8-p384", Layout::IstioCacerts),
        ("names", Layout::IstioCacerts),
    ] {
        let ca = Ca::load_at(&fixture(name), noon()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(ca.layout(), layout, "{name}");
        assert_issues(&ca);
    }
}

#[test]
fn a_leaf_repeats_the_ca_name_byte_by_byte() {
    // DC=example, DC=corp, OU=Platform, OU=Mesh, O=Corp + CN=Issuing CA
    let ca = Ca::load_at(&fixture("names"), noon()).unwrap();
    let (_, request) = eastway_identity::csr::new_key_and_csr().unwrap();
    let chain = ca.issue(&request, &SpiffeId::gateway("corp.example").unwrap(), DAY, noon()).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    let (_, issuing) = x509_parser::parse_x509_certificate(&chain[1]).unwrap();
    assert_eq!(leaf.issuer().as_raw(), issuing.subject().as_raw());
}

#[test]
fn a_chain_of_three_presents_its_intermediates_and_not_its_root() {
    let folder = Folder::new();
    let ca = folder.load().unwrap();
    assert_eq!(ca.chain(), [folder.issuing.der(), folder.middle.der()]);
    assert_eq!(ca.roots(), [folder.root.der()]);
    assert_eq!(ca.pin(), folder.issuing.pin());
    assert!(ca.warnings().is_empty(), "{:?}", ca.warnings());
    assert_issues(&ca);
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let folder = Folder::new();
    let pipe = |name: &str| {
        let path = folder.path(name);
        std::fs::remove_file(&path).ok();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    };
    let list = pipe("crl.pem");
    let error = eastway_identity::crl::load(&list).unwrap_err().to_string();
    assert!(error.contains("it is not a regular file"), "{error}");
    for name in ["root-cert.pem", "cert-chain.pem", "ca-key.pem", "ca-cert.pem"] {
        let path = pipe(name);
        let error = folder.load().unwrap_err().to_string();
        assert_eq!(error, format!("{}: cannot read: it is not a regular file", path.display()));
    }
}

#[test]
fn kubernetes_tls_layout_is_accepted_and_reported() {
    let folder = Folder::new();
    let dir = tempfile::tempdir().unwrap();
    let chain = folder.issuing.pem() + &folder.middle.pem();
    std::fs::write(dir.path().join("tls.crt"), chain).unwrap();
    write_key(&dir.path().join("tls.key"), &folder.issuing.key_pem());
    std::fs::write(dir.path().join("ca.crt"), folder.root.pem()).unwrap();
    let ca = Ca::load_at(dir.path(), noon()).unwrap();
    assert_eq!(ca.layout(), Layout::KubernetesTls);
    assert_eq!(ca.chain().len(), 2);
    assert_issues(&ca);

    std::fs::write(dir.path().join("ca.crt"), "").unwrap();
    let error = Ca::load_at(dir.path(), noon()).unwrap_err().to_string();
    let file = dir.path().join("ca.crt");
    let expected = "is missing; the CA is an intermediate, so its root must be there too";
    assert_eq!(error, format!("{} {expected}", file.display()), "the whole path");
}

#[test]
fn istio_ca_secret_of_a_self_signed_ca_is_accepted_and_reported() {
    let ca = Authority::root("istio", |_| {});
    let dir = tempfile::tempdir().unwrap();
    write_cacerts(dir.path(), &ca, &[], &ca);
    std::fs::write(dir.path().join("root-cert.pem"), "").unwrap();
    std::fs::write(dir.path().join("cert-chain.pem"), "").unwrap();
    let loaded = Ca::load_at(dir.path(), noon()).unwrap();
    assert_eq!(loaded.layout(), Layout::IstioCaSecret);
    assert_eq!(loaded.roots(), [ca.der()]);
    assert_issues(&loaded);
}

#[test]
fn harmless_oddities_of_pem_are_read_through() {
    let folder = Folder::new();
    for file in ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"] {
        let text = folder.read(file).replace('\n', "\r\n");
        folder.write(file, format!("\u{feff}Bag Attributes\r\n  friendlyName: mesh\r\n{text}\r\n  "));
    }
    assert_issues(&folder.load().unwrap());
}

#[test]
fn doubtful_folders_are_used_with_a_warning() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::issuing(|params| params.not_after = (noon() + 6 * DAY).into());
    folder.write("root-cert.pem", folder.root.pem().repeat(3));
    std::fs::set_permissions(folder.path("ca-key.pem"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let ca = folder.load().unwrap();
    let not_after = (noon() + 6 * DAY).into();
    let path = |file: &str| folder.path(file).display().to_string();
    assert_eq!(
        ca.warnings(),
        [
            CaWarning::KeyReadable { file: path("ca-key.pem"), mode: 0o644 },
            CaWarning::DuplicateRoots { file: path("root-cert.pem"), count: 2 },
            CaWarning::ExpiresSoon { file: path("ca-cert.pem"), not_after },
        ]
    );
    assert_eq!(ca.roots().len(), 1);
}

#[test]
fn broken_files_are_named() {
    let cases: &[(&str, Spoil, &str)] = &[
        ("empty certificate", |f| f.write("ca-cert.pem", " \r\n"), "ca-cert.pem is empty; it must hold PEM"),
        ("empty key", |f| f.write("ca-key.pem", ""), "ca-key.pem is empty; it must hold PEM"),
        (
            "DER certificate",
            |f| f.write("ca-cert.pem", f.issuing.der()),
            "ca-cert.pem is DER, not PEM; convert it: openssl x509 -inform der -in ca-cert.pem -out ca-cert.pem.new",
        ),
        (
            "DER key",
            |f| f.write("ca-key.pem", f.issuing.key().serialize_der()),
            "ca-key.pem is DER, not PEM; convert it: openssl pkey -inform der -in ca-key.pem -out ca-key.pem.new",
        ),
        ("text", |f| f.write("ca-cert.pem", "hello"), "ca-cert.pem holds no certificate"),
        ("binary", |f| f.write("ca-cert.pem", [0xff, 0xfe, 0x00]), "ca-cert.pem: not valid PEM: is not text"),
        (
            "cut off",
            |f| f.write("ca-cert.pem", &f.read("ca-cert.pem")[..200]),
            "ca-cert.pem: not valid PEM: block CERTIFICATE has no END line",
        ),
        (
            "not base64",
            |f| f.write("ca-cert.pem", f.read("ca-cert.pem").replace("MII", "!!!").replace("MIB", "!!!")),
            "ca-cert.pem: not valid PEM: block CERTIFICATE is not base64",
        ),
        (
            "garbage in PEM",
            |f| f.write("ca-cert.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "ca-cert.pem: certificate 1 cannot be read: ",
        ),
        (
            "key in the certificate file",
            |f| f.write("ca-cert.pem", f.issuing.key_pem() + &f.issuing.pem()),
            "ca-cert.pem holds a private key; certificate files are handed out, so move the key to ca-key.pem and remove \
             it here",
        ),
        (
            "key in the root file",
            |f| f.write("root-cert.pem", f.root.pem() + &f.root.key_pem()),
            "root-cert.pem holds a private key; ",
        ),
        ("certificate as key", |f| f.write("ca-key.pem", f.issuing.pem()), "ca-key.pem holds no private key"),
        (
            "two keys",
            |f| f.write("ca-key.pem", f.issuing.key_pem() + &f.root.key_pem()),
            "ca-key.pem holds 2 private keys; it must hold the CA's alone",
        ),
        (
            "garbage key",
            |f| f.write("ca-key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
            "ca-key.pem: not a private key of a supported kind (ECDSA P-256 or P-384, RSA of 2048 to 8192 bits)",
        ),
        (
            "no key",
            |f| f.remove("ca-key.pem"),
            "ca-key.pem is missing; the CA's private key belongs there; a gateway needs none, only the ca role does",
        ),
        ("no certificate", |f| f.remove("ca-cert.pem"), "ca-cert.pem is missing; the CA's certificates belong there"),
        (
            "no root",
            |f| f.remove("root-cert.pem"),
            "root-cert.pem is missing; the CA is an intermediate, so its root must be there too",
        ),
        (
            "two layouts",
            |f| f.write("tls.crt", f.issuing.pem()),
            ": two CA sources: it holds ca-cert.pem or ca-key.pem as well as tls.crt or tls.key; remove the files of one of \
             the two",
        ),
        (
            "directory",
            |f| {
                f.remove("ca-cert.pem");
                std::fs::create_dir(f.path("ca-cert.pem")).unwrap();
            },
            "ca-cert.pem: cannot read: ",
        ),
        (
            "huge",
            |f| f.write("root-cert.pem", f.root.pem().repeat(5 * 1024 * 1024 / f.root.pem().len())),
            "root-cert.pem: larger than 1 MiB; is it the right file?",
        ),
        (
            "thousand roots",
            |f| f.write("root-cert.pem", f.root.pem().repeat(1000)),
            "root-cert.pem holds 1000 certificates; at most 100 are allowed",
        ),
    ];
    assert_refused(cases);
}

#[test]
fn files_of_different_cas_are_told_apart() {
    let cases: &[(&str, Spoil, &str)] = &[
        (
            "another key",
            |f| write_key(&f.path("ca-key.pem"), &KeyPair::generate().unwrap().serialize_pem()),
            "ca-key.pem does not belong to ca-cert.pem: the key's public half is sha256:",
        ),
        (
            "another root",
            |f| f.write("root-cert.pem", Authority::root("root", |_| {}).pem()),
            "cert-chain.pem does not lead to root-cert.pem (issuer \"O=Test, CN=root\" not found); a certificate of that \
             name is there, but with another key: the files are of different CAs",
        ),
        (
            "missing intermediate",
            |f| f.write("cert-chain.pem", f.issuing.pem()),
            "cert-chain.pem does not lead to root-cert.pem (issuer \"O=Test, CN=middle\" not found); add the missing \
             intermediate, or the right root",
        ),
        (
            "wrong order",
            |f| f.write("cert-chain.pem", f.root.pem() + &f.middle.pem() + &f.issuing.pem()),
            "cert-chain.pem does not lead to root-cert.pem (issuer \"O=Test, CN=middle\" not found); it is there, but each \
             certificate must come right before its issuer's",
        ),
        (
            "intermediate as root",
            |f| f.write("root-cert.pem", f.middle.pem()),
            "root-cert.pem: \"O=Test, CN=middle\" is not self-signed (its issuer is \"O=Test, CN=root\"); put the root there \
             and intermediates into the chain file",
        ),
    ];
    assert_refused(cases);
}

fn assert_refused(cases: &[(&str, Spoil, &str)]) {
    for (name, spoil, expected) in cases {
        let folder = Folder::new();
        spoil(&folder);
        let error = folder.error();
        assert!(error.contains(expected), "{name}\n expected: {expected}\n got:      {error}");
    }
}

#[test]
fn unreadable_and_missing_folders_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Ca::load(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("no CA here: neither ca-cert.pem nor tls.crt found; make one with `eastway ca init`"),
        "{error}"
    );
    let error = Ca::load(&dir.path().join("absent")).unwrap_err().to_string();
    assert!(error.contains("no CA here"), "{error}");
}

#[test]
fn unusable_issuing_cas_are_refused() {
    let cases: &[(&str, Change, &str)] = &[
        (
            "leaf",
            |p| p.is_ca = IsCa::NoCa,
            "ca-cert.pem is not a CA (basicConstraints); the mesh needs a CA that may issue certificates, such as an \
             intermediate of your root",
        ),
        ("explicit leaf", |p| p.is_ca = IsCa::ExplicitNoCa, "ca-cert.pem is not a CA (basicConstraints)"),
        (
            "no keyCertSign",
            |p| p.key_usages = vec![KeyUsagePurpose::CrlSign],
            "ca-cert.pem may not issue certificates (keyUsage lacks keyCertSign)",
        ),
        (
            "URI name constraint",
            |p| p.custom_extensions.push(uri_constraint("onprem.example")),
            "ca-cert.pem: URI name constraints are not supported by this verifier; peers would reject every leaf",
        ),
        (
            "expired",
            |p| p.not_after = (noon() - DAY).into(),
            "ca-cert.pem expired 2030-03-16T17:46:40Z (clock says 2030-03-17T17:46:40Z); renew the CA certificate, or set \
             the clock",
        ),
        (
            "not yet valid",
            |p| p.not_before = (noon() + DAY).into(),
            "ca-cert.pem is not valid before 2030-03-18T17:46:40Z (clock says 2030-03-17T17:46:40Z); wait, or set the clock",
        ),
        (
            "for servers only",
            |p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth],
            "ca-cert.pem: a leaf signed on trial is refused: ",
        ),
        (
            "unknown critical extension",
            |p| {
                let mut unknown = rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
                unknown.set_criticality(true);
                p.custom_extensions.push(unknown);
            },
            "ca-cert.pem: a leaf signed on trial is refused: UnsupportedCriticalExtension",
        ),
    ];
    for (name, spoil, expected) in cases {
        let error = Folder::issuing(spoil).error();
        assert!(error.contains(expected), "{name}\n expected: {expected}\n got:      {error}");
    }
}

#[test]
fn cas_above_the_issuing_one_are_checked_too() {
    let cases: &[(&str, Change, Change, &str)] = &[
        (
            "pathlen of the root",
            |root| root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
            |_| {},
            "root-cert.pem: \"O=Test, CN=root\" has pathlen:0 but 2 CAs stand below it",
        ),
        (
            "pathlen of the intermediate",
            |_| {},
            |middle| middle.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
            "cert-chain.pem: \"O=Test, CN=middle\" has pathlen:0 but 1 CAs stand below it",
        ),
        ("root expired", |root| root.not_after = (noon() - DAY).into(), |_| {}, "root-cert.pem expired 2030-03-16"),
        (
            "intermediate expired",
            |_| {},
            |middle| middle.not_after = (noon() - DAY).into(),
            "cert-chain.pem expired 2030-",
        ),
        (
            "root is no CA",
            |root| root.is_ca = IsCa::ExplicitNoCa,
            |_| {},
            "root-cert.pem is not a CA (basicConstraints)",
        ),
        (
            "intermediate constrained",
            |_| {},
            |middle| middle.custom_extensions.push(uri_constraint("x")),
            "cert-chain.pem: URI name constraints are not supported by this verifier; peers would reject every leaf",
        ),
    ];
    for (name, spoil_root, spoil_middle, expected) in cases {
        let root = Authority::root("root", spoil_root);
        let middle = root.child("middle", spoil_middle);
        let issuing = middle.child("issuing", |_| {});
        let error = Folder::of(root, middle, issuing).error();
        assert!(error.contains(expected), "{name}\n expected: {expected}\n got:      {error}");
    }
}

#[test]
fn kinds_of_keys_that_others_refuse_are_refused_here() {
    for (name, expected) in [
        (
            "encrypted-pkcs8",
            "ca-key.pem: encrypted private keys are not supported; decrypt it: openssl pkey -in ca-key.pem -out ca-key.pem.new",
        ),
        ("encrypted-legacy", "ca-key.pem: encrypted private keys are not supported; "),
        (
            "rsa-1024",
            "ca-key.pem: not a private key of a supported kind (ECDSA P-256 or P-384, RSA of 2048 to 8192 bits)",
        ),
        (
            "sha1",
            "ca-cert.pem: \"O=old.example, CN=issuing\": it is signed with SHA-1; have it issued again with SHA-256",
        ),
        (
            "weak-root",
            "root-cert.pem: \"O=weak.example, CN=issuing\": its key is RSA of 1024 bits; use ECDSA P-256 or P-384, or RSA of \
             2048 to 8192 bits",
        ),
    ] {
        let error = told(&fixture(name), &Ca::load_at(&fixture(name), noon()).unwrap_err());
        assert!(error.contains(expected), "{name}\n expected: {expected}\n got:      {error}");
    }
    for (algorithm, expected) in [
        (&rcgen::PKCS_ED25519, "ca-cert.pem: \"O=Test, CN=ca\": its key is Ed25519; use ECDSA P-256 or P-384"),
        (&rcgen::PKCS_ECDSA_P521_SHA512, "ca-cert.pem: \"O=Test, CN=ca\": its key is ECDSA on P-521; use ECDSA P-256"),
    ] {
        let ca = Authority::root_with("ca", algorithm, |_| {});
        let dir = tempfile::tempdir().unwrap();
        write_cacerts(dir.path(), &ca, &[], &ca);
        let error = told(dir.path(), &Ca::load_at(dir.path(), noon()).unwrap_err());
        assert!(error.contains(expected), "expected: {expected}\n got:      {error}");
    }
}
