//! What is behind an API server: for what no client of it can do.

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Cluster;
use super::process::output;

impl Cluster {
    /// One call of etcd's gateway for JSON.
    async fn etcd(&self, path: &str, body: &Value) -> Result<Value> {
        let (url, body) = (format!("http://127.0.0.1:2379/v3/kv/{path}"), body.to_string());
        let mut curl = self.on_node("curl", &["--silent", "--fail", "-X", "POST", "-d", &body, &url])?;
        serde_json::from_str(&output(&mut curl).await?).context("etcd answers in JSON")
    }

    /// Forgets all revisions but the last: no watch that falls off can go on where it was (`410 Gone`).
    ///
    /// # Errors
    /// etcd refuses.
    pub async fn compact_etcd(&self) -> Result<()> {
        // The header of any answer has the revision.
        let now = self.etcd("range", &json!({"key": STANDARD.encode("/")})).await?;
        let revision = now.pointer("/header/revision").and_then(Value::as_str).context("a revision")?;
        self.etcd("compaction", &json!({"revision": revision, "physical": true})).await.map(drop)
    }

    /// Changes a custom resource past all checks of the API server, as an older definition might have let it in.
    ///
    /// # Errors
    /// There is no such key, or its value is not JSON.
    pub async fn rewrite_in_etcd(&self, key: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        let key = STANDARD.encode(key);
        let found = self.etcd("range", &json!({"key": key})).await?;
        let value = found.pointer("/kvs/0/value").and_then(Value::as_str).context("no such key")?;
        let mut object: Value = serde_json::from_slice(&STANDARD.decode(value)?)?;
        change(&mut object);
        self.etcd("put", &json!({"key": key, "value": STANDARD.encode(object.to_string())})).await.map(drop)
    }
}
