//! TCP metrics under Istio's names and labels (<https://istio.io/latest/docs/reference/config/metrics/>), so
//! that its dashboards and Kiali's graph show connections between clusters without knowing Eastway.
//!
//! Kiali groups by source and destination workload, canonical service and revision, service and
//! `response_flags` (kiali `graph/telemetry/istio/istio.go`), and skips series where one of them is missing.
//! The gateway knows a workload by its service account and a revision by its label `version`.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, LabelSetEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};

use super::family::{Family, Labels, OTHER};

/// Value of a label that is not known.
pub const UNKNOWN: &str = "unknown";

/// Which end of a connection reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The gateway where the connection came in from a local client.
    Source,
    /// The gateway that owns the service.
    Destination,
}

/// One end of a connection that runs in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Its cluster.
    pub cluster: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its service account: the gateway knows workloads by what they can prove.
    pub name: Arc<str>,
    /// Its label `version`, if known.
    pub version: Option<Arc<str>>,
}

impl Workload {
    /// A client in `cluster` that nobody knows.
    #[must_use]
    pub fn unknown(cluster: &Arc<str>) -> Self {
        let unknown: Arc<str> = Arc::from(UNKNOWN);
        Self { cluster: Arc::clone(cluster), namespace: Arc::clone(&unknown), name: unknown, version: None }
    }
}

/// The service a connection goes to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Namespace of the service.
    pub namespace: Arc<str>,
    /// Its name.
    pub service: Arc<str>,
    /// The workload that serves it; on the source side its cluster and version are known once routed,
    /// and its name is that of the service.
    pub workload: Workload,
}

/// What tells the series of connections apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionLabels {
    /// Who reports.
    pub reporter: Reporter,
    /// The peer at the other end of the link; `None`: both ends are in this cluster.
    pub peer: Option<Arc<str>>,
    /// The client.
    pub source: Workload,
    /// The server.
    pub destination: Destination,
    /// Flows of UDP, not connections of TCP.
    pub udp: bool,
    /// Whether the bytes cross inside a link or a sidecar's TLS (`mutual_tls`), or in plain text.
    pub mutual_tls: bool,
}

/// How a connection ended: Envoy's `%RESPONSE_FLAGS%` where it has one for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// It ended as its ends wished.
    #[default]
    None,
    /// The endpoint refused the connection.
    UpstreamFailure,
    /// The endpoint did not answer in time.
    UpstreamTimeout,
    /// The endpoint reset the connection, or the link under it was lost.
    UpstreamReset,
    /// The client reset the connection.
    DownstreamReset,
    /// No endpoint is left, or the peer is down.
    NoEndpoints,
    /// No route: not an import, or not exported to the caller.
    NoRoute,
    /// A limit was reached.
    Overflow,
    /// No access rule allows the source.
    Denied,
    /// The server asks for TLS that the client does not speak.
    TlsRequired,
    /// Nothing moved for too long.
    IdleTimeout,
    /// This process drained and the connection did not finish in time.
    Draining,
    /// The other gateway broke the protocol.
    Protocol,
}

impl ResponseFlag {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::None,
        Self::UpstreamFailure,
        Self::UpstreamTimeout,
        Self::UpstreamReset,
        Self::DownstreamReset,
        Self::NoEndpoints,
        Self::NoRoute,
        Self::Overflow,
        Self::Denied,
        Self::TlsRequired,
        Self::IdleTimeout,
        Self::Draining,
        Self::Protocol,
    ];

    /// Envoy's abbreviation, or ztunnel's where Envoy has none.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::UpstreamFailure => "UF",
            Self::UpstreamTimeout => "UT",
            Self::UpstreamReset => "UC",
            Self::DownstreamReset => "DC",
            Self::NoEndpoints => "UH",
            Self::NoRoute => "NR",
            Self::Overflow => "UO",
            Self::Denied => "DENY",
            Self::TlsRequired => "TLS_REQUIRED",
            Self::IdleTimeout => "SI",
            Self::Draining => "DRAINING",
            Self::Protocol => "UPE",
        }
    }
}

/// The counters of one set of labels.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    opened: Counter,
    sent: Counter,
    received: Counter,
    closed: Arc<[Counter; ResponseFlag::ALL.len()]>,
}

impl Series {
    fn closed(&self, flag: ResponseFlag) -> Option<&Counter> {
        ResponseFlag::ALL.iter().zip(self.closed.iter()).find(|(one, _)| **one == flag).map(|(_, counter)| counter)
    }
}

/// The counters of one open connection. Dropping it without [`ConnectionMetrics::closed`] counts it as closed
/// without a flag, so that opened minus closed is always the number of open connections.
#[derive(Debug)]
pub struct ConnectionMetrics {
    series: Series,
    flag: ResponseFlag,
    received: u64,
    sent: u64,
}

impl ConnectionMetrics {
    pub(super) fn open(series: Series) -> Self {
        series.opened.inc();
        Self { series, flag: ResponseFlag::None, received: 0, sent: 0 }
    }

    /// So many bytes came from the client, and went to it, since it was opened.
    pub fn carried(&mut self, received: u64, sent: u64) {
        self.series.received.inc_by(received.saturating_sub(self.received));
        self.series.sent.inc_by(sent.saturating_sub(self.sent));
        (self.received, self.sent) = (self.received.max(received), self.sent.max(sent));
    }

    /// The connection ended.
    pub fn closed(mut self, flag: ResponseFlag) {
        self.flag = flag;
    }
}

impl Drop for ConnectionMetrics {
    fn drop(&mut self) {
        if let Some(counter) = self.series.closed(self.flag) {
            counter.inc();
        }
    }
}

impl Labels for ConnectionLabels {
    fn owner(&self) -> Option<&Arc<str>> {
        self.peer.as_ref()
    }

    fn overflow(&self) -> Self {
        let other: Arc<str> = Arc::from(OTHER);
        let workload = |of: &Workload| Workload {
            cluster: Arc::clone(&of.cluster),
            namespace: Arc::clone(&other),
            name: Arc::clone(&other),
            version: None,
        };
        Self {
            reporter: self.reporter,
            peer: self.peer.clone(),
            source: workload(&self.source),
            destination: Destination {
                namespace: Arc::clone(&other),
                service: Arc::clone(&other),
                workload: workload(&self.destination.workload),
            },
            udp: self.udp,
            mutual_tls: self.mutual_tls,
        }
    }
}

impl EncodeLabelSet for ConnectionLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        WithFlag { labels: self, flag: ResponseFlag::None }.encode(encoder)
    }
}

/// Labels plus how the connection ended.
struct WithFlag<'a> {
    labels: &'a ConnectionLabels,
    flag: ResponseFlag,
}

impl EncodeLabelSet for WithFlag<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let ConnectionLabels { reporter, peer, source, destination, udp, mutual_tls } = self.labels;
        let Destination { namespace, service, workload } = destination;
        let host =
            if **service == *OTHER { OTHER.to_owned() } else { format!("{service}.{namespace}.svc.clusterset.local") };
        let pairs: [(&str, &str); 21] = [
            ("reporter", if *reporter == Reporter::Source { "source" } else { "destination" }),
            ("source_cluster", &source.cluster),
            ("source_workload_namespace", &source.namespace),
            ("source_workload", &source.name),
            ("source_app", &source.name),
            ("source_canonical_service", &source.name),
            ("source_canonical_revision", revision(source)),
            ("destination_cluster", &workload.cluster),
            ("destination_service", &host),
            ("destination_service_name", service),
            ("destination_service_namespace", namespace),
            ("destination_workload_namespace", &workload.namespace),
            ("destination_workload", &workload.name),
            ("destination_app", service),
            ("destination_version", revision(workload)),
            ("destination_canonical_service", service),
            ("destination_canonical_revision", revision(workload)),
            ("request_protocol", if *udp { "udp" } else { "tcp" }),
            ("response_flags", self.flag.as_str()),
            ("connection_security_policy", if *mutual_tls { "mutual_tls" } else { "none" }),
            ("peer", peer.as_deref().unwrap_or("")),
        ];
        pairs.iter().try_for_each(|pair| prometheus_client::encoding::EncodeLabel::encode(pair, encoder.encode_label()))
    }
}

/// Istio calls the revision of a workload without the label `latest`.
fn revision(workload: &Workload) -> &str {
    match &workload.version {
        Some(version) => version,
        None if *workload.name == *UNKNOWN => UNKNOWN,
        None => "latest",
    }
}

/// Shows the connection series under their four names.
#[derive(Debug)]
pub(super) struct Connections(pub(super) Family<ConnectionLabels, Series>);

impl Collector for Connections {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        type Pick = fn(&Series) -> &Counter;
        let plain: [(&str, &str, Pick); 3] = [
            ("istio_tcp_connections_opened", "Connections opened", |series| &series.opened),
            ("istio_tcp_sent_bytes", "Bytes sent to clients", |series| &series.sent),
            ("istio_tcp_received_bytes", "Bytes received from clients", |series| &series.received),
        ];
        for (name, help, pick) in plain {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            self.0.for_each(|labels, series| pick(series).encode(metric.encode_family(labels)?))?;
        }
        let help = "Connections closed";
        let mut metric = encoder.encode_descriptor("istio_tcp_connections_closed", help, None, MetricType::Counter)?;
        self.0.for_each(|labels, series| {
            for (flag, counter) in ResponseFlag::ALL.into_iter().zip(series.closed.iter()) {
                let count = counter.get();
                if count > 0 {
                    let labels = WithFlag { labels, flag };
                    ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_unique() {
        let texts: std::collections::BTreeSet<_> = ResponseFlag::ALL.iter().map(|flag| flag.as_str()).collect();
        assert_eq!(texts.len(), ResponseFlag::ALL.len());
    }
}
