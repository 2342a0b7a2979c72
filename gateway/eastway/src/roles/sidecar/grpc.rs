//! What gRPC libraries that speak xDS themselves are started with: where to ask, and who they are.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::bootstrap::Files;
use crate::config::SidecarSettings;

/// The variable that names the file to them.
pub(super) const VARIABLE: &str = "GRPC_XDS_BOOTSTRAP";

/// The file in the state folder.
pub(super) fn file(state: &Path) -> PathBuf {
    state.join("grpc.json")
}

/// The contents of that file (gRFC A27).
pub(super) fn bootstrap(settings: &SidecarSettings, files: &Files) -> Value {
    let (namespace, account) = (settings.namespace.as_str(), settings.service_account.as_str());
    json!({
        "xds_servers": [{
            "server_uri": format!("unix://{}", files.agent.display()),
            // The permissions of the socket are what protects it.
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }],
        "node": {
            "id": format!("proxyless~{}.{namespace}", settings.name),
            "cluster": format!("{account}.{namespace}"),
            // That of Node refuses a node without one.
            "locality": {},
            // Hints: what counts is the certificate.
            "metadata": {"NAMESPACE": namespace, "SERVICE_ACCOUNT": account},
        },
    })
}
