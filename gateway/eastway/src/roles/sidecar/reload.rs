//! Follows the file while the sidecar runs: what can change does, what cannot is told, and a file with mistakes changes nothing
//! (invariant I11).

use std::collections::BTreeSet;
use std::path::PathBuf;

use eastway_registry::diagnostic::Diagnostic;
use eastway_registry::watch::Watch;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::health::Health;
use crate::config::{ConfigErrors, SidecarSettings, load_sidecar};
use crate::telemetry::LogHandle;

/// What is followed, and who is told.
pub(super) struct Follow {
    pub(super) file: PathBuf,
    /// `None`: the log level was given at the start.
    pub(super) log: Option<LogHandle>,
}

impl Follow {
    /// Runs until `end`.
    pub(super) async fn run(self, running: SidecarSettings, health: Health, end: CancellationToken) {
        let mut watch = Watch::new();
        // What was said last, so that a look without news says nothing.
        let mut last = Ok(running.clone());
        let follow = async {
            watch.set([self.file.as_path()]);
            loop {
                watch.changed().await;
                // Before it is read, so that nothing is missed in between.
                watch.set([self.file.as_path()]);
                let file = self.file.clone();
                let Ok(read) = tokio::task::spawn_blocking(move || load_sidecar(&file)).await else { continue };
                let read = read.map_err(|errors| lines(&errors));
                watch.hurry(read.is_err());
                if read == last {
                    continue;
                }
                match &read {
                    Ok(new) => self.take(&running, new, &health),
                    Err(lines) => {
                        for line in lines {
                            error!("{line} (running with the previous configuration)");
                        }
                    }
                }
                last = read;
            }
        };
        let _ended: Option<()> = end.run_until_cancelled(follow).await;
    }

    fn take(&self, running: &SidecarSettings, new: &SidecarSettings, health: &Health) {
        health.set_drain(new.drain);
        if let Some(log) = &self.log
            && let Err(error) = log.set_level(&new.log_level)
        {
            warn!(%error, "the log level stays");
        }
        for key in waiting(running, new) {
            warn!("{key} takes effect at the next start; the running value stays until then");
        }
        info!("configuration taken over");
    }
}

fn lines(ConfigErrors(errors): &ConfigErrors) -> Vec<String> {
    errors.iter().filter(|each| each.is_error()).map(Diagnostic::headline).collect()
}

/// Keys of the file that differ and wait for a start.
fn waiting(running: &SidecarSettings, new: &SidecarSettings) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    // Settings without keys of text cannot be.
    let (Ok(Value::Object(running)), Ok(Value::Object(new))) =
        (serde_json::to_value(running), serde_json::to_value(new))
    else {
        return keys;
    };
    for (key, value) in &new {
        let before = running.get(key).unwrap_or(&Value::Null);
        match (key.as_str(), before, value) {
            ("drain" | "logLevel", ..) => {}
            ("logFormat", ..) if before != value => drop(keys.insert("log.format".to_owned())),
            ("namespace" | "serviceAccount" | "name", ..) if before != value => {
                keys.insert(format!("workload.{key}"));
            }
            (_, Value::Object(before), Value::Object(value)) => {
                let differ = value.iter().filter(|(inner, value)| before.get(*inner) != Some(*value));
                keys.extend(differ.map(|(inner, _)| format!("{key}.{inner}")));
            }
            _ if before != value => drop(keys.insert(key.clone())),
            _ => {}
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn i11_what_waits_for_a_start_is_told_by_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sidecar.yaml");
        let text = "apiVersion: eastway.dev/v1alpha1\nkind: SidecarConfig\n\
            workload: {namespace: shop, serviceAccount: web, name: web-1}\n\
            trust: {domain: a.example, ca: \"unix:./web.sock\"}\ngateway: 10.0.0.5:15012\n";
        let read = |text: &str| {
            fs::write(&file, text).unwrap();
            load_sidecar(&file).unwrap_or_else(|errors| panic!("{errors}"))
        };
        let running = read(text);
        let changed = |more: &str| waiting(&running, &read(&format!("{text}{more}")));
        assert!(changed("drain: 3s\nlog: {level: debug}\n").is_empty());
        let all = changed(
            "log: {format: json}\nenvoy: {concurrency: 3}\noutbound: false\n\
             inbound: [{listen: \"10.0.0.7:9443\", app: \"127.0.0.1:8080\"}]\nhealth: \"127.0.0.1:15021\"\n",
        );
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        assert_eq!(all, ["envoy.concurrency", "health", "inbound", "log.format", "outbound"]);
        let moved = waiting(&running, &read(&text.replace("web-1", "web-2").replace("a.example", "b.example")));
        assert_eq!(moved.iter().map(String::as_str).collect::<Vec<_>>(), ["trust.domain", "workload.name"]);
    }
}
