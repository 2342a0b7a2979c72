//! A real Envoy that knows nothing but where the server is.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::tools;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A running Envoy; it ends with this.
pub(crate) struct Envoy {
    process: Child,
    folder: PathBuf,
}

impl Envoy {
    pub(crate) fn start(program: &str, folder: &Path) -> Result<Self> {
        let binary = tools::built(program)?;
        let bootstrap = folder.join("bootstrap.json");
        std::fs::write(&bootstrap, serde_json::to_vec_pretty(&self::bootstrap(folder))?)?;
        let log = std::fs::File::create(folder.join("envoy.log"))?;
        let process = Command::new(binary)
            .args(["--disable-hot-restart", "--concurrency", "1", "--drain-time-s", "1", "--log-level", "warning"])
            .arg("-c")
            .arg(&bootstrap)
            .arg("--admin-address-path")
            .arg(folder.join("admin"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Self { process, folder: folder.to_owned() })
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("envoy.log")).unwrap_or_default()
    }

    async fn get(&self, path: &str) -> Result<String> {
        let address = std::fs::read_to_string(self.folder.join("admin"))?;
        let mut stream = TcpStream::connect(address.trim()).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
        if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            return Ok(body.to_owned());
        }
        // Chunks: a line with the length in hexadecimal, then so many bytes and a line end.
        let (mut rest, mut text) = (body, String::new());
        while let Some((length, after)) = rest.split_once("\r\n") {
            let length = usize::from_str_radix(length.trim(), 16)?;
            text.push_str(after.get(..length).context("a whole chunk")?);
            rest = after.get(length + 2..).unwrap_or_default();
        }
        Ok(text)
    }

    pub(crate) async fn dump(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.get("/config_dump").await?)?)
    }

    /// Listeners but for those that drain.
    pub(crate) async fn listening(&self) -> Result<Vec<String>> {
        let mut names = names(&self.dump().await?, "dynamic_listeners", |one| &one["active_state"]["listener"]["name"]);
        names.retain(|name| !name.is_empty());
        Ok(names)
    }

    /// How many hosts a cluster has.
    pub(crate) async fn hosts(&self, cluster: &str) -> Result<usize> {
        let clusters: Value = serde_json::from_str(&self.get("/clusters?format=json").await?)?;
        let all = clusters["cluster_statuses"].as_array().context("clusters")?;
        let found = all.iter().find(|one| one["name"] == cluster).with_context(|| format!("no cluster {cluster}"))?;
        Ok(found["host_statuses"].as_array().map_or(0, Vec::len))
    }

    pub(crate) async fn has_cluster(&self, cluster: &str) -> Result<bool> {
        Ok(self.get("/clusters?format=json").await?.contains(cluster))
    }

    pub(crate) async fn assert_nothing_rejected(&self) -> Result<()> {
        let stats = self.get("/stats?filter=rejected").await?;
        ensure!(stats.contains("update_rejected: 0"), "{stats}");
        let rejected: Vec<_> =
            stats.lines().filter(|line| line.contains("rejected") && !line.ends_with(": 0")).collect();
        ensure!(rejected.is_empty(), "{rejected:?}\n{}", self.log());
        let dump = self.get("/config_dump").await?;
        ensure!(!dump.contains("error_state"), "{dump}");
        Ok(())
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // It may have ended itself.
        let _killed = (self.process.kill(), self.process.wait());
    }
}

/// Everything but where we are comes from us.
fn bootstrap(folder: &Path) -> Value {
    let ads = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"});
    let ours = |name: &str| {
        let pipe = json!({"pipe": {"path": folder.join("xds.sock")}});
        let endpoint = json!({"endpoint": {"address": pipe}});
        json!({
            "name": name,
            "connect_timeout": "1s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }},
        })
    };
    let back_off = json!({"retry_back_off": {"base_interval": "0.2s", "max_interval": "1s"}});
    json!({
        "node": {"id": "sidecar~client-1.shop", "cluster": "client.shop", "metadata": {"NAMESPACE": "shop"}},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "bootstrap_extensions": [{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
            },
        }],
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds", "retry_policy": back_off}}],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": {"clusters": [ours("xds"), ours("agent")]},
    })
}

/// Names in one list of a configuration dump, sorted.
pub(crate) fn names(dump: &Value, list: &str, name: impl Fn(&Value) -> &Value) -> Vec<String> {
    let configs = dump["configs"].as_array().unwrap();
    let entries = configs.iter().filter_map(|config| config[list].as_array()).flatten();
    let mut names: Vec<String> = entries.map(|entry| name(entry).as_str().unwrap_or_default().to_owned()).collect();
    names.sort();
    names
}
