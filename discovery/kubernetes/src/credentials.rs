//! Credentials for other API servers: kubeconfigs that are checked before anything is done with them.
//!
//! A kubeconfig can start programs and read files. One that the administrator put beside the gateway's own files may
//! read files, and start programs where its Cluster file says so; one that came out of an API server may do neither:
//! whoever can write an object there has no business in this process.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kube::config::{
    AuthInfo, Cluster, Context, Kubeconfig, KubeconfigError, NamedAuthInfo, NamedCluster, NamedContext,
};
use sha2::{Digest as _, Sha256};

/// Whose word a kubeconfig is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin<'a> {
    /// A file of the administrator.
    File {
        /// Where its relative paths start.
        folder: &'a Path,
        /// Its `exec` section may be carried out.
        allow_exec: bool,
    },
    /// An object of an API server.
    Object,
}

/// Why a kubeconfig is refused. No message has a value of a secret field in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Not a kubeconfig.
    #[error("is no kubeconfig{0}")]
    Syntax(String),
    /// It has no such context, cluster or user.
    #[error("has no {what} {name:?}")]
    Missing {
        /// `context`, `cluster` or `user`.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// The server is not reached by TLS.
    #[error("the server must be https://…, not {0:?}: a token would cross the network in clear")]
    NotTls(String),
    /// The server's certificate would not be checked.
    #[error("insecure-skip-tls-verify: whoever answers would be believed; give certificate-authority-data instead")]
    Unverified,
    /// It starts a program, and must not.
    #[error(
        "exec: would start the program {0:?}; only a Cluster file can allow that, by the annotation \
         eastway.dev/allow-exec: \"true\"; or use a token of a service account"
    )]
    Program(String),
    /// It starts a program in a way that Kubernetes has given up.
    #[error("auth-provider: Kubernetes has given it up; use a token of a service account")]
    AuthProvider,
    /// It reads a file, and must not.
    #[error("{0}: an object cannot name files of the gateway; write the contents into the kubeconfig")]
    NamesFile(&'static str),
    /// A file that it names cannot be read.
    #[error("{field}: {path}: {reason}")]
    Unreadable {
        /// Its field.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// A checked kubeconfig, reduced to one context. It is compared by its contents; no output shows them.
#[derive(Clone)]
pub struct Credentials {
    kubeconfig: Arc<Kubeconfig>,
    digest: [u8; 32],
    server: Arc<str>,
    files: Vec<PathBuf>,
}

impl Credentials {
    /// Checks a kubeconfig; `context`: instead of its current one.
    ///
    /// # Errors
    /// [`CredentialsError`]
    pub fn parse(text: &str, context: Option<&str>, origin: Origin<'_>) -> Result<Self, CredentialsError> {
        let kubeconfig = Kubeconfig::from_yaml(text).map_err(|error| CredentialsError::Syntax(place(&error)))?;
        let missing = |what, name: &str| CredentialsError::Missing { what, name: name.to_owned() };
        let context = context.or(kubeconfig.current_context.as_deref()).unwrap_or_default();
        let found = kubeconfig.contexts.iter().find(|named| named.name == context);
        let found = found.and_then(|named| named.context.as_ref()).ok_or_else(|| missing("context", context))?;
        let cluster = kubeconfig.clusters.iter().find(|named| named.name == found.cluster);
        let cluster = cluster.and_then(|named| named.cluster.clone());
        let cluster = cluster.ok_or_else(|| missing("cluster", &found.cluster))?;
        let user = match found.user.as_deref() {
            Some(name) => {
                let named = kubeconfig.auth_infos.iter().find(|named| named.name == name);
                named.and_then(|named| named.auth_info.clone()).ok_or_else(|| missing("user", name))?
            }
            None => AuthInfo::default(),
        };
        Self::checked(cluster, user, origin)
    }

    /// Credentials of a server whose address and authority (PEM, base64) are known, and a bearer token.
    ///
    /// # Errors
    /// [`CredentialsError`]
    pub fn with_token(server: &str, authority: Option<&str>, token: &str) -> Result<Self, CredentialsError> {
        let cluster = Cluster {
            server: Some(server.to_owned()),
            certificate_authority_data: authority.map(str::to_owned),
            ..Cluster::default()
        };
        let user = AuthInfo { token: Some(token.trim().to_owned().into()), ..AuthInfo::default() };
        Self::checked(cluster, user, Origin::Object)
    }

    fn checked(mut cluster: Cluster, mut user: AuthInfo, origin: Origin<'_>) -> Result<Self, CredentialsError> {
        let server: Arc<str> = cluster.server.as_deref().unwrap_or_default().into();
        if !server.starts_with("https://") {
            return Err(CredentialsError::NotTls(server.chars().take(100).collect()));
        }
        if cluster.insecure_skip_tls_verify == Some(true) {
            return Err(CredentialsError::Unverified);
        }
        if let Some(exec) = &user.exec
            && !matches!(origin, Origin::File { allow_exec: true, .. })
        {
            return Err(CredentialsError::Program(exec.command.clone().unwrap_or_default()));
        }
        if user.auth_provider.is_some() {
            return Err(CredentialsError::AuthProvider);
        }
        let mut files = Vec::new();
        let mut inline = |field, path: &mut Option<String>, data: &mut Option<String>| {
            // Written contents come before named files, as everywhere.
            let Some(path) = path.take().filter(|_| data.is_none()) else { return Ok(()) };
            let path = resolve(field, &path, origin)?;
            *data = Some(BASE64.encode(read(field, &path)?));
            files.push(path);
            Ok(())
        };
        let Cluster { certificate_authority, certificate_authority_data, .. } = &mut cluster;
        inline("certificate-authority", certificate_authority, certificate_authority_data)?;
        let AuthInfo { client_certificate, client_certificate_data, client_key, client_key_data, .. } = &mut user;
        inline("client-certificate", client_certificate, client_certificate_data)?;
        // The type that hides a key is no text: one that is written wins, as above.
        let mut key = None;
        let mut named = client_key.take().filter(|_| client_key_data.is_none());
        inline("client-key", &mut named, &mut key)?;
        if let Some(key) = key {
            *client_key_data = Some(key.into());
        }
        // Read again as it changes: tokens of pods live an hour.
        if let Some(path) = user.token_file.take() {
            let path = resolve("tokenFile", &path, origin)?;
            read("tokenFile", &path)?;
            user.token_file = Some(path.display().to_string());
        }
        let kubeconfig = one_context(cluster, user);
        // As a value: its maps are sorted.
        let contents = serde_json::to_value(&kubeconfig).unwrap_or_default().to_string();
        Ok(Self { kubeconfig: Arc::new(kubeconfig), digest: Sha256::digest(contents).into(), server, files })
    }

    /// The API server.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Files whose contents were taken over: when one changes, the kubeconfig is to be read again.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    pub(crate) fn kubeconfig(&self) -> Kubeconfig {
        Kubeconfig::clone(&self.kubeconfig)
    }
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Credentials {}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Where the mistake is; its own message may quote a secret.
fn place(error: &KubeconfigError) -> String {
    let KubeconfigError::Parse(error) = error else { return String::new() };
    error.location().map_or_else(String::new, |at| format!(": line {}, column {}", at.line(), at.column()))
}

fn resolve(field: &'static str, path: &str, origin: Origin<'_>) -> Result<PathBuf, CredentialsError> {
    match origin {
        Origin::File { folder, .. } => Ok(folder.join(path)),
        Origin::Object => Err(CredentialsError::NamesFile(field)),
    }
}

fn read(field: &'static str, path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let failed = |error: std::io::Error| CredentialsError::Unreadable {
        field,
        path: path.to_owned(),
        reason: error.kind().to_string(),
    };
    std::fs::read(path).map_err(failed)
}

fn one_context(cluster: Cluster, user: AuthInfo) -> Kubeconfig {
    let name = "eastway";
    let context = Context { cluster: name.to_owned(), user: Some(name.to_owned()), ..Context::default() };
    Kubeconfig {
        current_context: Some(name.to_owned()),
        clusters: vec![NamedCluster { name: name.to_owned(), cluster: Some(cluster), ..NamedCluster::default() }],
        auth_infos: vec![NamedAuthInfo { name: name.to_owned(), auth_info: Some(user), ..NamedAuthInfo::default() }],
        contexts: vec![NamedContext { name: name.to_owned(), context: Some(context), ..NamedContext::default() }],
        ..Kubeconfig::default()
    }
}

#[cfg(test)]
mod tests;
