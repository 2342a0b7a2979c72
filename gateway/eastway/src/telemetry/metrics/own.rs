//! Metrics of this process: its DNS, certificates, configuration and sidecars.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use prometheus_client::encoding::text;

use super::labels::{CertificateLabels, KindLabel, Reason};
use super::{Certificate, Metrics, count_of, raise, unix_seconds};
use crate::proxy::hbone::held::Holding;

/// DNS, certificates, configuration and the process itself.
impl Metrics {
    /// Total DNS answers with this response code since our start, as the server counts them.
    pub fn set_dns_answers(&self, rcode: &'static str, total: u64) {
        raise(&self.dns_answers.get(&Reason { reason: rcode }), total);
    }

    /// Total DNS packets dropped for this reason since our start, as the server counts them.
    pub fn set_dns_dropped(&self, reason: &'static str, total: u64) {
        raise(&self.dns_dropped.get(&Reason { reason }), total);
    }

    /// When a certificate ends.
    pub fn set_certificate(&self, certificate: &Certificate<'_>, not_after: SystemTime) {
        let (kind, peer) = match certificate {
            Certificate::Leaf => ("leaf", Arc::from("")),
            Certificate::Issuer => ("issuer", Arc::from("")),
            Certificate::Peer(peer) => ("peer", Arc::clone(peer)),
        };
        self.certificate.get(&CertificateLabels { kind, peer }).set(unix_seconds(not_after));
    }

    /// The configuration was read again.
    pub fn config_reloaded(&self, success: bool) {
        self.config_reloads.get(&Reason { reason: if success { "success" } else { "failure" } }).inc();
        self.config_success.set(i64::from(success));
        if success {
            self.config_time.set(unix_seconds(SystemTime::now()));
        }
    }

    /// What tunnels of sidecars hold now.
    pub fn set_held(&self, held: &Holding) {
        self.hbone_tunnels.set(count_of(held.tunnels));
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.hbone_buffered.set(bytes(held.bytes));
        self.hbone_buffer_limit.set(bytes(held.limit));
    }

    /// So many sidecars are connected now.
    pub fn set_sidecars(&self, connected: usize) {
        self.sidecars.set(count_of(connected));
    }

    /// A sidecar was sent resources of this kind.
    pub fn sidecar_pushed(&self, kind: &'static str) {
        self.sidecar_pushes.get(&KindLabel { kind }).inc();
    }

    /// A sidecar refused resources of this kind.
    pub fn sidecar_refused(&self, kind: &'static str) {
        self.sidecar_refusals.get(&KindLabel { kind }).inc();
    }

    /// How many imports have a virtual address.
    pub fn set_vips(&self, imports: usize) {
        self.vips.set(count_of(imports));
    }

    /// An import got no virtual address.
    pub fn vip_exhausted(&self) {
        self.vips_exhausted.inc();
    }

    /// Version of the published snapshot.
    pub fn set_snapshot_version(&self, version: u64) {
        self.snapshot_version.set(i64::try_from(version).unwrap_or(i64::MAX));
    }

    /// Whether the process is ready.
    pub fn set_ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }

    /// Total log lines dropped since our start.
    pub fn set_log_lines_dropped(&self, total: u64) {
        raise(&self.log_lines_dropped, total);
    }

    /// The exposition in OpenMetrics text format 1.0.
    ///
    /// # Errors
    /// Only if a collector fails to format, which none here does.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut page = String::with_capacity(16 * 1024);
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}
