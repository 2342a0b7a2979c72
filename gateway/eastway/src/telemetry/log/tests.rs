//! What lines look like, and that strangers cannot forge one.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tracing::subscriber::with_default;

use super::*;
use crate::telemetry::{AccessMode, AccessRecord, Direction, Path, Refusal, ResponseFlag, Telemetry};

/// Collects what is written.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `work` logs.
fn logged(settings: &LogSettings, work: impl FnOnce(&LogHandle)) -> String {
    let page = Page::default();
    let (subscriber, handle) = logger(settings, page.clone()).unwrap();
    with_default(subscriber, || work(&handle));
    handle.flush();
    String::from_utf8(page.0.lock().unwrap().clone()).unwrap()
}

fn record(details: &str) -> AccessRecord {
    AccessRecord {
        direction: Direction::Outbound,
        start_time: SystemTime::UNIX_EPOCH,
        duration: Duration::from_millis(12),
        service: Some(Arc::from("bookinfo/reviews")),
        port: 9_080,
        peer: Some(Arc::from("gke")),
        path: Path::Quic,
        source: Some(Arc::from("onprem/bookinfo/productpage")),
        downstream_remote_address: Some(SocketAddr::from(([10, 0, 0, 1], 4_000))),
        downstream_local_address: None,
        upstream_host: None,
        bytes_received: 1,
        bytes_sent: 2,
        response_flags: ResponseFlag::UpstreamReset,
        details: Some(Arc::from(details)),
        traceparent: None,
    }
}

const HOSTILE: &str = "x\n2026-01-01 ERROR all is lost\u{1b}[2J\"}\r\0\u{202e}";

#[test]
fn p11_hostile_text_stays_on_its_line_in_both_formats() {
    for format in [LogFormat::Text, LogFormat::Json] {
        let settings = LogSettings { format, ..LogSettings::default() };
        let telemetry = Telemetry::new(AccessMode::All);
        let text = logged(&settings, |_| {
            telemetry.refusals.refused(Refusal::Record, Some(&Arc::from(HOSTILE)), HOSTILE);
            telemetry.access.record(&record(HOSTILE));
        });
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(!text.contains('\u{202e}'), "{text:?}");
        if format == LogFormat::Json {
            for line in text.lines() {
                let _: serde_json::Value = serde_json::from_str(line).expect(line);
            }
        }
    }
}

#[test]
fn access_lines_have_envoys_names_and_pass_any_level() {
    let settings = LogSettings { format: LogFormat::Json, level: "error".to_owned() };
    let telemetry = Telemetry::new(AccessMode::Errors);
    let text = logged(&settings, |_| {
        tracing::info!("not shown");
        telemetry.access.record(&record("UPSTREAM_RESET"));
        telemetry.access.record(&AccessRecord { response_flags: ResponseFlag::None, ..record("fine") });
    });
    let line: serde_json::Value = serde_json::from_str(text.trim_end()).expect(&text);
    for (field, value) in [
        ("target", "access"),
        ("start_time", "1970-01-01T00:00:00.000Z"),
        ("upstream_cluster", "outbound|9080||reviews.bookinfo.svc.clusterset.local"),
        ("peer", "gke"),
        ("path", "quic"),
        ("response_flags", "UC"),
        ("connection_termination_details", "UPSTREAM_RESET"),
        ("downstream_remote_address", "10.0.0.1:4000"),
        ("upstream_host", "-"),
    ] {
        assert_eq!(line.get(field).and_then(|v| v.as_str()), Some(value), "{field} in {text}");
    }
    assert_eq!(line.get("bytes_sent").and_then(serde_json::Value::as_u64), Some(2), "{text}");
}

#[test]
fn the_level_changes_while_running() {
    let text = logged(&LogSettings::default(), |handle| {
        tracing::debug!("one");
        handle.set_level("debug").unwrap();
        tracing::debug!("two");
        assert!(handle.set_level("loud").is_err());
        assert_eq!(handle.level().as_str(), "debug");
        tracing::debug!("three");
    });
    assert!(!text.contains("one") && text.contains("two") && text.contains("three"), "{text}");
}

#[test]
fn levels_and_directives_are_checked() {
    for good in ["info", "WARN", "off", "info,eastway_tunnel=debug", "eastway=trace"] {
        assert!(check_level(good).is_ok(), "{good}");
    }
    for bad in ["", "loud", "info,loud", "eastway=loud", "5", "info;debug"] {
        assert!(check_level(bad).is_err(), "{bad}");
    }
}
