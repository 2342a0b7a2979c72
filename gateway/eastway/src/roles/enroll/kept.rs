//! A gateway's certificate over a restart: the CA, or the API server that it asks, may be away just then.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eastway_identity::ca::LinkKeys;
use eastway_identity::{CertificateDer, Identity, IdentityStore, PrivateKey, kept};
use tokio::time::timeout;
use tonic::Code;
use tracing::{info, warn};

use super::{CaClient, EnrollError, Enrolled};
use crate::app::disk::write_secret;

/// File inside the folder.
const FILE: &str = "gateway.pem";
/// How long the CA may take before the kept certificate has to do: twice this, a start is still one of seconds.
const WAIT: Duration = Duration::from_secs(1);

/// Where it is kept.
#[derive(Debug)]
pub(super) struct Keep {
    file: PathBuf,
}

impl Keep {
    /// In this folder, which is there.
    pub(super) fn new(folder: &std::path::Path) -> Self {
        Self { file: folder.join(FILE) }
    }

    /// Replaces what was kept. If that fails a restart waits for the CA, and nothing else is lost.
    pub(super) fn save(&self, chain: &[CertificateDer<'_>], key: &PrivateKey, links: &LinkKeys) {
        let text = kept::to_pem(chain, key, links);
        if let Err(error) = write_secret(&self.file, text.as_bytes()) {
            warn!(%error, file = %self.file.display(), "the certificate is not kept: a restart waits for the CA");
        }
    }

    /// What was kept, unless it has ended.
    fn load(&self) -> Option<(Identity, LinkKeys)> {
        let bytes = match fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(%error, file = %self.file.display(), "the kept certificate cannot be read");
                return None;
            }
        };
        match kept::from_pem(&bytes) {
            Ok((identity, links)) => (identity.not_after() > SystemTime::now()).then_some((identity, links)),
            Err(error) => {
                warn!(%error, file = %self.file.display(), "the kept certificate is of no use");
                None
            }
        }
    }

    fn forget(&self) {
        if let Err(error) = fs::remove_file(&self.file) {
            warn!(%error, file = %self.file.display(), "the kept certificate cannot be removed");
        }
    }
}

/// A certificate for a gateway that had one before it was restarted: a new one if the CA answers soon, the old one if
/// it does not. `None`: there was none, or the CA says that this account gets none any more.
pub(super) async fn enroll(client: &CaClient, ttl: Duration) -> Option<(Identity, LinkKeys)> {
    let keep = client.keep.as_ref()?;
    let (identity, links) = keep.load()?;
    let store = IdentityStore::new(identity.clone());
    // The second time for a CA that was rotated and does not know the old one any more.
    for current in [Some(&store), None] {
        match timeout(WAIT, client.enroll(ttl, current)).await {
            Ok(Ok(Enrolled { identity, link_keys: Some(links), .. })) => return Some((identity, links)),
            Ok(Err(error)) if is_final(&error) => {
                warn!(%error, "the certificate from before the restart counts no more");
                keep.forget();
                return None;
            }
            Ok(_) | Err(_) => {}
        }
    }
    info!(identity = %identity.id(), "no answer of the CA: going on with the certificate from before the restart");
    Some((identity, links))
}

/// The CA knows who asks and does not want to certify it.
fn is_final(error: &EnrollError) -> bool {
    matches!(error, EnrollError::Refused(status) if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied))
}

impl CaClient {
    /// The same, keeping what a gateway gets in `folder` over a restart.
    #[must_use]
    pub fn keeping(mut self, folder: Option<PathBuf>) -> Self {
        self.keep = folder.map(|folder| Arc::new(Keep::new(&folder)));
        self
    }
}
