//! Names, labels and bounds of the exposition.

use super::*;

fn text(value: &str) -> Arc<str> {
    Arc::from(value)
}

fn connection(peer: &str, namespace: &str) -> ConnectionLabels {
    ConnectionLabels {
        reporter: Reporter::Destination,
        peer: Some(text(peer)),
        source: Workload { cluster: text(peer), namespace: text(namespace), name: text("productpage"), version: None },
        destination: Destination {
            namespace: text("bookinfo"),
            service: text("reviews"),
            workload: Workload {
                cluster: text("onprem"),
                namespace: text("bookinfo"),
                name: text("bookinfo-reviews"),
                version: Some(text("v2")),
            },
        },
        udp: false,
        mutual_tls: true,
    }
}

fn series(page: &str) -> usize {
    page.lines().filter(|line| !line.starts_with('#')).count()
}

#[test]
fn istio_names_with_the_labels_kiali_groups_by() {
    let metrics = Metrics::new();
    let mut open = metrics.connection_opened(&connection("gke", "bookinfo"));
    open.carried(3, 10);
    open.closed(ResponseFlag::UpstreamReset);
    let page = metrics.encode().unwrap();
    for (name, value, flags) in [
        ("istio_tcp_connections_opened_total", 1, "-"),
        ("istio_tcp_connections_closed_total", 1, "UC"),
        ("istio_tcp_sent_bytes_total", 10, "-"),
        ("istio_tcp_received_bytes_total", 3, "-"),
    ] {
        let line = page.lines().find(|line| line.starts_with(&format!("{name}{{"))).expect(name);
        assert!(line.ends_with(&format!(" {value}")), "{line}");
        // kiali graph/telemetry/istio/istio.go, tcpGroupBy, and `reporter` of its selectors.
        for label in [
            "reporter=\"destination\"",
            "source_workload_namespace=\"bookinfo\"",
            "source_workload=\"productpage\"",
            "source_canonical_service=\"productpage\"",
            "source_canonical_revision=\"latest\"",
            "source_cluster=\"gke\"",
            "destination_service_namespace=\"bookinfo\"",
            "destination_service=\"reviews.bookinfo.svc.clusterset.local\"",
            "destination_service_name=\"reviews\"",
            "destination_workload_namespace=\"bookinfo\"",
            "destination_workload=\"bookinfo-reviews\"",
            "destination_canonical_service=\"reviews\"",
            "destination_canonical_revision=\"v2\"",
            "destination_cluster=\"onprem\"",
            "connection_security_policy=\"mutual_tls\"",
            &format!("response_flags=\"{flags}\""),
        ] {
            assert!(line.contains(label), "{label} is missing in {line}");
        }
    }
}

#[test]
fn unknown_clients_are_unknown_in_all_labels() {
    // Kiali refuses sources of which only some labels are `unknown`.
    let metrics = Metrics::new();
    let mut labels = connection("gke", "bookinfo");
    labels.source = Workload::unknown(&text("onprem"));
    drop(metrics.connection_opened(&labels));
    let page = metrics.encode().unwrap();
    let line = page.lines().find(|line| line.starts_with("istio_tcp_connections_opened_total{")).unwrap();
    assert_eq!(line.matches("=\"unknown\"").count(), 5, "{line}");
}

#[test]
fn opened_minus_closed_is_open_even_if_a_handle_is_dropped() {
    let metrics = Metrics::new();
    let (first, second) = {
        let labels = connection("gke", "bookinfo");
        (metrics.connection_opened(&labels), metrics.connection_opened(&labels))
    };
    drop(first);
    let page = metrics.encode().unwrap();
    let value = |name: &str| page.lines().find(|l| l.starts_with(name)).and_then(|l| l.rsplit(' ').next()).unwrap();
    assert_eq!(value("istio_tcp_connections_opened_total{"), "2");
    assert_eq!(value("istio_tcp_connections_closed_total{"), "1");
    drop(second);
}

#[test]
fn p11_a_hostile_peer_stays_below_5000_series() {
    let metrics = Metrics::new();
    let reasons = ["a", "b", "c", "d", "e", "f", "g", "h"];
    for number in 0..20_000 {
        let hostile = format!("ns-{number}\n\"}} 1");
        for flag in ResponseFlag::ALL {
            metrics.connection_opened(&connection("gke", &hostile)).closed(flag);
        }
        let source = Workload { cluster: text("gke"), namespace: text(&hostile), name: text(&hostile), version: None };
        metrics.access_denied(&source, &text("bookinfo"), &text("ratings"), number % 2 == 0);
        for reason in reasons {
            metrics.federation_rejected(&text("gke"), reason, 1);
            metrics.handshake_refused(reason);
        }
        // As if names of peers were not checked, either.
        metrics.set_peer(&text(&hostile), &PeerSample::default());
    }
    let page = metrics.encode().unwrap();
    assert!(series(&page) <= 5_000, "{} series", series(&page));
    assert!(page.lines().all(|line| line.starts_with('#') || line.starts_with(|c: char| c.is_ascii_lowercase())));
    assert!(!page.contains("eastway_metrics_overflowed_total 0\n"));
    // An honest peer still has its own series.
    drop(metrics.connection_opened(&connection("edge", "bookinfo")));
    assert!(metrics.encode().unwrap().contains("source_cluster=\"edge\""));
}

#[test]
fn a_removed_peer_leaves_no_series() {
    let metrics = Metrics::new();
    let peer = text("gke");
    drop(metrics.connection_opened(&connection("gke", "bookinfo")));
    metrics.set_peer(&peer, &PeerSample { up: true, ..PeerSample::default() });
    metrics.federation_applied(&peer, "snapshot");
    metrics.set_certificate(&Certificate::Peer(&peer), SystemTime::now());
    assert!(metrics.encode().unwrap().contains("\"gke\""));
    metrics.forget_peer("gke");
    assert!(!metrics.encode().unwrap().contains("\"gke\""));
}

#[test]
fn openmetrics_names_end_as_the_format_asks() {
    let page = Metrics::new().encode().unwrap();
    assert!(page.ends_with("# EOF\n"));
    assert!(!page.contains("_total_total"));
    assert!(page.contains("eastway_build_info{version="));
    assert!(page.contains("process_resident_memory_bytes "));
}
