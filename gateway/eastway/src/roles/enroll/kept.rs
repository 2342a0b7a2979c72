//! A certificate over a restart: the CA, or the API server that it asks, may be away just then.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eastway_identity::{IdentityStore, SpiffeId, kept};
use tokio::time::timeout;
use tonic::Code;
use tracing::{info, warn};

use super::{CaClient, EnrollError, Enrolled};
use crate::app::disk::write_secret;

/// File of a gateway inside the folder, and that of a workload.
const GATEWAY: &str = "gateway.pem";
const WORKLOAD: &str = "workload.pem";
/// How long the CA may take before the kept certificate has to do: twice this, a start is still one of seconds.
const WAIT: Duration = Duration::from_secs(1);

/// Where it is kept.
#[derive(Debug)]
pub(super) struct Keep {
    file: PathBuf,
    /// Whose certificate counts; `None`: that of the gateway, with the keys that replicas share.
    workload: Option<SpiffeId>,
}

impl Keep {
    /// Replaces what was kept. If that fails a restart waits for the CA, and nothing else is lost.
    pub(super) fn save(&self, enrolled: &Enrolled) {
        let Enrolled { identity, key, link_keys } = enrolled;
        let text = kept::to_pem(identity.chain(), key, link_keys.as_ref());
        if let Err(error) = write_secret(&self.file, text.as_bytes()) {
            warn!(%error, file = %self.file.display(), "the certificate is not kept: a restart waits for the CA");
        }
    }

    /// What was kept, unless it has ended or is somebody else's.
    fn load(&self) -> Option<Enrolled> {
        let bytes = match fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(%error, file = %self.file.display(), "the kept certificate cannot be read");
                return None;
            }
        };
        match kept::from_pem(&bytes) {
            Ok((identity, key, link_keys)) => {
                let good = match &self.workload {
                    Some(wanted) => identity.id() == wanted,
                    None => link_keys.is_some(),
                };
                (good && identity.not_after() > SystemTime::now()).then_some(Enrolled { identity, key, link_keys })
            }
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

/// A certificate for who had one before it was restarted: a new one if the CA answers soon, the old one if it does not.
/// `None`: there was none, or the CA says that this account gets none any more.
pub(super) async fn enroll(client: &CaClient, ttl: Duration) -> Option<Enrolled> {
    let keep = client.keep.as_ref()?;
    let old = keep.load()?;
    let store = IdentityStore::new(old.identity.clone());
    // The second time for a CA that was rotated and does not know the old one any more.
    for current in [Some(&store), None] {
        match timeout(WAIT, client.enroll(ttl, current)).await {
            Ok(Ok(new)) if new.link_keys.is_some() || keep.workload.is_some() => return Some(new),
            Ok(Err(error)) if is_final(&error) => {
                warn!(%error, "the certificate from before the restart counts no more");
                keep.forget();
                return None;
            }
            Ok(_) | Err(_) => {}
        }
    }
    info!(identity = %old.identity.id(), "no answer of the CA: going on with the certificate from before the restart");
    Some(old)
}

/// The CA knows who asks and does not want to certify it.
fn is_final(error: &EnrollError) -> bool {
    matches!(error, EnrollError::Refused(status) if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied))
}

impl CaClient {
    /// The same, keeping what a gateway gets in `folder` over a restart.
    #[must_use]
    pub fn keeping(mut self, folder: Option<PathBuf>) -> Self {
        self.keep = folder.map(|folder| Arc::new(Keep { file: folder.join(GATEWAY), workload: None }));
        self
    }

    /// The same, keeping what the workload `id` gets in `folder` over a restart.
    #[must_use]
    pub fn keeping_of(mut self, id: SpiffeId, folder: &Path) -> Self {
        self.keep = Some(Arc::new(Keep { file: folder.join(WORKLOAD), workload: Some(id) }));
        self
    }
}
