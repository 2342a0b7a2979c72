//! What can be wrong with a CA folder or a request: which file, what, why, and what to do.

use std::path::PathBuf;

use crate::key::KeyError;
use crate::timestamp::Timestamp;

/// Why a CA folder cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read.
    #[error("{}: cannot read: {reason}", .file.display())]
    Read {
        /// Its path.
        file: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// Neither layout is there.
    #[error("{}: no CA here: neither ca-cert.pem nor tls.crt found; make one with `eastway ca init`, or point trust.cacerts at the right folder", .dir.display())]
    NoSource {
        /// The folder.
        dir: PathBuf,
    },
    /// Both layouts are there.
    #[error("{}: two CA sources: it holds ca-cert.pem or ca-key.pem as well as tls.crt or tls.key; remove the files of one of the two", .dir.display())]
    TwoSources {
        /// The folder.
        dir: PathBuf,
    },
    /// A file of the layout is missing.
    #[error("{file} is missing; {hint}")]
    Missing {
        /// Its path.
        file: String,
        /// What to do.
        hint: &'static str,
    },
    /// Larger than 1 MiB.
    #[error("{file}: larger than 1 MiB; is it the right file?")]
    TooLarge {
        /// Its path.
        file: String,
    },
    /// No bytes, or nothing but white space.
    #[error("{file} is empty; it must hold PEM")]
    Empty {
        /// Its path.
        file: String,
    },
    /// Binary DER instead of PEM.
    #[error("{file} is DER, not PEM; convert it: openssl {command} -inform der -in {file} -out {file}.new")]
    Der {
        /// Its path.
        file: String,
        /// `x509` or `pkey`.
        command: &'static str,
    },
    /// PEM that cannot be read.
    #[error("{file}: not valid PEM: {reason}")]
    Pem {
        /// Its path.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// PEM, but nothing of the kind that belongs there.
    #[error("{file} holds no {wanted}")]
    Nothing {
        /// Its path.
        file: String,
        /// `certificate` or `private key`.
        wanted: &'static str,
    },
    /// More than one of what there must be one of.
    #[error("{file} holds {count} private keys; it must hold the CA's alone")]
    SeveralKeys {
        /// Its path.
        file: String,
        /// How many.
        count: usize,
    },
    /// A certificate file is handed out; it must never hold a key.
    #[error(
        "{file} holds a private key; certificate files are handed out, so move the key to {key_file} and remove it here"
    )]
    KeyInCertificateFile {
        /// Its path.
        file: String,
        /// Where keys belong.
        key_file: String,
    },
    /// The key needs a passphrase.
    #[error("{file}: encrypted private keys are not supported; decrypt it: openssl pkey -in {file} -out {file}.new")]
    EncryptedKey {
        /// Its path.
        file: String,
    },
    /// The keys of links that a rotation kept cannot be read.
    #[error("{file} cannot be read; a rotation wrote it: restore it, or remove it and restart all gateways")]
    LinkKeys {
        /// Its path.
        file: String,
    },
    /// The list of revoked certificates cannot be read.
    #[error(
        "{file} line {line}: each line is a serial number in hexadecimal and a time; `eastway ca revoke` writes it"
    )]
    Revoked {
        /// Its path.
        file: String,
        /// The line, from 1.
        line: usize,
    },
    /// The key is of a kind that cannot be used.
    #[error("{file}: {reason}")]
    Key {
        /// Its path.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate cannot be parsed.
    #[error("{file}: certificate {index} cannot be read: {reason}")]
    Certificate {
        /// Its path.
        file: String,
        /// Position in the file, from 1.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Too many certificates.
    #[error("{file} holds {count} certificates; at most 100 are allowed")]
    TooMany {
        /// Its path.
        file: String,
        /// How many.
        count: usize,
    },
    /// The key belongs to another certificate.
    #[error(
        "{key_file} does not belong to {cert_file}: the key's public half is {key_pin}, the certificate's is {cert_pin}"
    )]
    KeyMismatch {
        /// Path of the key file.
        key_file: String,
        /// Path of the certificate file.
        cert_file: String,
        /// Pin of the key.
        key_pin: crate::SpkiPin,
        /// Pin of the certificate.
        cert_pin: crate::SpkiPin,
    },
    /// A leaf where a CA belongs.
    #[error(
        "{file} is not a CA (basicConstraints); the mesh needs a CA that may issue certificates, such as an intermediate of your root"
    )]
    NotACa {
        /// Its path.
        file: String,
    },
    /// A CA that may not sign certificates.
    #[error("{file} may not issue certificates (keyUsage lacks keyCertSign)")]
    NoKeyCertSign {
        /// Its path.
        file: String,
    },
    /// Too many CAs below one.
    #[error(
        "{file}: \"{subject}\" has pathlen:{allowed} but {below} CAs stand below it; ask for a longer path length or a shorter chain"
    )]
    PathLength {
        /// Its path.
        file: String,
        /// Whose limit it is.
        subject: String,
        /// The limit.
        allowed: u32,
        /// How many CAs stand below it.
        below: usize,
    },
    /// webpki refuses all that is below such a CA.
    #[error("{file}: URI name constraints are not supported by this verifier; peers would reject every leaf")]
    UriNameConstraints {
        /// Its path.
        file: String,
    },
    /// A signature or key that is too weak, or that verifiers do not know.
    #[error("{file}: \"{subject}\": {reason}")]
    Weak {
        /// Its path.
        file: String,
        /// Which certificate.
        subject: String,
        /// What is weak.
        reason: String,
    },
    /// Past the end of life.
    #[error("{file} expired {not_after} (clock says {now}); renew the CA certificate, or set the clock")]
    Expired {
        /// Its path.
        file: String,
        /// End of life.
        not_after: Timestamp,
        /// Our clock.
        now: Timestamp,
    },
    /// Before the begin of life.
    #[error("{file} is not valid before {not_before} (clock says {now}); wait, or set the clock")]
    NotYetValid {
        /// Its path.
        file: String,
        /// Begin of life.
        not_before: Timestamp,
        /// Our clock.
        now: Timestamp,
    },
    /// A link of the chain is missing or out of order.
    #[error("{chain_file} does not lead to {root_file} (issuer \"{issuer}\" not found); {hint}")]
    BrokenChain {
        /// Path of the chain file.
        chain_file: String,
        /// Path of the root file.
        root_file: String,
        /// Who is missing.
        issuer: String,
        /// What seems to have happened.
        hint: ChainHint,
    },
    /// An intermediate in the root file.
    #[error(
        "{file}: \"{subject}\" is not self-signed (its issuer is \"{issuer}\"); put the root there and intermediates into the chain file"
    )]
    RootNotSelfSigned {
        /// Its path.
        file: String,
        /// Its subject.
        subject: String,
        /// Its issuer.
        issuer: String,
    },
    /// A leaf signed on trial is refused by the verifier, for a reason that no check above names.
    #[error("{file}: a leaf signed on trial is refused: {reason}; peers would reject every leaf")]
    Trial {
        /// Path of the certificate file.
        file: String,
        /// What the verifier says.
        reason: String,
    },
}

/// What seems to be wrong with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainHint {
    /// No certificate of the issuer's name is there.
    Missing,
    /// The issuer is in the chain file, at another place.
    OutOfOrder,
    /// A certificate of the issuer's name is there, but its key did not sign.
    OtherKey,
}

impl std::fmt::Display for ChainHint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Missing => "add the missing intermediate, or the right root",
            Self::OutOfOrder => "it is there, but each certificate must come right before its issuer's",
            Self::OtherKey => {
                "a certificate of that name is there, but with another key: the files are of different CAs"
            }
        })
    }
}

/// What is doubtful about a CA folder, but stops nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaWarning {
    /// Less than a week to live.
    #[error("{file} expires soon, on {not_after}; leaves cannot outlive it: renew it or run `eastway ca rotate`")]
    ExpiresSoon {
        /// Its path.
        file: String,
        /// End of life.
        not_after: Timestamp,
    },
    /// The same root twice.
    #[error("{file} holds {count} duplicate certificates; they are read once")]
    DuplicateRoots {
        /// Its path.
        file: String,
        /// How many are superfluous.
        count: usize,
    },
    /// The key file can be read by others than its owner and group.
    #[error(
        "{file} can be read by every user of this machine (mode {mode:03o}); chmod 600 it, or set defaultMode: 0400 on the secret volume"
    )]
    KeyReadable {
        /// Its path.
        file: String,
        /// Its permission bits.
        mode: u32,
    },
}

/// Why no leaf was issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// Not a PKCS#10 request.
    #[error("the certificate request cannot be read: {reason}")]
    BadRequest {
        /// What is wrong with it.
        reason: String,
    },
    /// The request's signature is not by its key.
    #[error("the certificate request is not signed by its own key")]
    NotProved,
    /// A key that verifiers or Envoy would refuse.
    #[error("the request's key is not allowed: {reason}")]
    KeyNotAllowed {
        /// What it is and what to use.
        reason: String,
    },
    /// A life of zero seconds.
    #[error("a certificate must live for a second at least")]
    NoLife,
    /// The CA is past its end.
    #[error("the CA expired {not_after} (clock says {now})")]
    CaExpired {
        /// End of its life.
        not_after: Timestamp,
        /// Our clock.
        now: Timestamp,
    },
    /// The CA is before its begin.
    #[error("the CA is not valid before {not_before} (clock says {now})")]
    CaNotYetValid {
        /// Begin of its life.
        not_before: Timestamp,
        /// Our clock.
        now: Timestamp,
    },
    /// The crypto provider failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A leaf for this process itself does not fit its key.
    #[error("the leaf just issued cannot be used: {reason}")]
    OwnLeaf {
        /// What is wrong with it.
        reason: String,
    },
}
