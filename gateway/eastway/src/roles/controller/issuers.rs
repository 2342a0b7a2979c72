//! The public half of the CA, as the chart mounts it: for the pods that get sidecars.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use eastway_identity::ca::public_issuers;
use eastway_identity::certificates_to_pem;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How often it is read: a rotation has a step that takes longer.
const LOOK: Duration = Duration::from_secs(10);

/// Tells `told` the certificates that this cluster's leaves are issued by, until `end`; those of before if they cannot be read.
pub(super) async fn follow(folder: PathBuf, told: watch::Sender<Option<Arc<str>>>, end: CancellationToken) {
    let mut failing = false;
    loop {
        let folder = folder.clone();
        match tokio::task::spawn_blocking(move || public_issuers(&folder)).await {
            Ok(Ok(issuers)) => {
                failing = false;
                let text: Arc<str> = certificates_to_pem(&issuers).into();
                told.send_if_modified(|before| {
                    let changed = before.as_ref() != Some(&text);
                    *before = Some(text);
                    changed
                });
            }
            Ok(Err(error)) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!(%error, "pods with sidecars are not told the CA's certificate");
                }
            }
            // The runtime ends.
            Err(_) => {}
        }
        if end.run_until_cancelled(sleep(LOOK)).await.is_none() {
            return;
        }
    }
}
