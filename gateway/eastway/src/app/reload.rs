//! What follows the configuration and has no owner of its own: log level, access log, own zones, and
//! the word on how the last reading went.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::adapters;
use crate::app::Gateway;
use crate::config::Loaded;
use crate::telemetry::{LogHandle, Refusal};

/// Follows until `end`.
pub async fn run(gateway: Arc<Gateway>, log: Option<LogHandle>, end: CancellationToken) {
    let mut loaded = gateway.configuration.loaded.clone();
    let mut status = gateway.configuration.status.clone();
    refuse(&gateway, &loaded.borrow_and_update().clone());
    // What runs was read without errors.
    gateway.telemetry.metrics.config_reloaded(true);
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            changed = loaded.changed() => {
                if changed.is_err() { return }
                let loaded = loaded.borrow_and_update().clone();
                refuse(&gateway, &loaded);
                apply(&gateway, &loaded, log.as_ref());
            }
            changed = status.changed() => {
                if changed.is_err() { return }
                let status = status.borrow_and_update().clone();
                tell(&gateway, &status);
            }
        }
    }
}

/// Objects that cannot be used; the others are.
fn refuse(gateway: &Gateway, loaded: &Loaded) {
    for reason in loaded.refused.values() {
        gateway.telemetry.refusals.refused(Refusal::Config, None, reason);
    }
}

fn apply(gateway: &Gateway, loaded: &Loaded, log: Option<&LogHandle>) {
    let settings = &loaded.settings;
    if let Some(log) = log
        && let Err(error) = log.set_level(&settings.log.level)
    {
        warn!(%error, "the log level stays");
    }
    gateway.telemetry.access.set_mode(settings.log.access);
    let zones = adapters::zones(settings).and_then(|zones| gateway.zone.set_zones(zones, &[]));
    if let Err(error) = zones {
        error!(%error, "dns.zones stay as they were");
    }
}

fn tell(gateway: &Gateway, status: &crate::config::ReloadStatus) {
    gateway.telemetry.metrics.config_reloaded(status.errors.is_empty());
    for line in &status.needs_restart {
        warn!("a restart is needed: {line}");
    }
    if status.errors.is_empty() {
        info!(generation = status.generation, "configuration taken over");
        return;
    }
    for line in &status.errors {
        gateway.telemetry.refusals.refused(Refusal::Config, None, line);
    }
    error!(mistakes = status.errors.len(), "the changed configuration is wrong: the last good one stays");
}
