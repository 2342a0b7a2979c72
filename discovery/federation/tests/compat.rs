//! What earlier releases said and wrote is still understood, and what this one says is on record:
//! see `tests/compat/README.md`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code: a panic is a verdict")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use eastway_federation::codec::{Decoder, encode};
use eastway_federation::{
    CloseReason, ExportAction, ExportSession, ImportAction, ImportSession, ImportTable, Limits, Now,
};
use eastway_model::rules::{Glob, NameFilter, NameFilterEntry, PeerRules, Rules};
use eastway_model::store::{Reader, Writer};
use eastway_model::{
    Change, Endpoint, EndpointCondition, EndpointId, IpFamily, Label, LocalChange, LocalEndpoint, LocalService, Pairs,
    PortName, Protocol, ServiceKey, ServiceKind, ServicePort, ServiceRecord, SessionAffinity, Subset, TlsMode,
    UnixMillis, WorkloadIdentity,
};
use eastway_proto::federation::v1 as wire;
use eastway_proto::federation::v1::exporter_message::Body as FromExporter;

const EXPORTER: &str = "federation-exporter.bin";
const IMPORTER: &str = "federation-importer.bin";
const IMAGE: &str = "federation-image.bin";
const IMPORTS: &str = "federation-imports.json";

const NOW: Now = Now { mono: Duration::from_secs(1_000), wall: UnixMillis(1_800_000_000_000) };

#[test]
fn f29_what_is_said_today_is_what_is_recorded() {
    let recording = record();
    let folder = compat().join("v0");
    for (name, bytes) in &recording {
        let file = folder.join(name);
        if std::env::var_os("EASTWAY_REGENERATE").is_some() {
            std::fs::write(&file, bytes).unwrap();
        }
        let recorded = std::fs::read(&file).unwrap();
        assert!(recorded == *bytes, "{} differs from what the code says: see tests/compat/README.md", file.display());
    }
}

#[test]
fn f29_every_recorded_exporter_is_understood() {
    for folder in folders() {
        let mut table = ImportTable::new(label("a"), label("b"), Limits::default());
        table.set_subscriptions([key("shop/reviews")]);
        let (mut session, _) = ImportSession::start(&mut table, &import_rules(), Limits::default(), NOW);
        let mut decoder = Decoder::<wire::ExporterMessage>::new();
        decoder.push(&std::fs::read(folder.join(EXPORTER)).unwrap());
        let mut live = false;
        while let Some(message) = decoder.next_message().unwrap() {
            for action in session.handle(&mut table, message, NOW) {
                let refused = matches!(action, ImportAction::Rejected { .. });
                assert!(!refused, "{}: {action:?}", folder.display());
            }
            live |= session.is_live();
        }
        assert!(live && decoder.buffered() == 0, "{}", folder.display());
        let expected = std::fs::read_to_string(folder.join(IMPORTS)).unwrap();
        assert_eq!(imports(&table), expected, "{}", folder.display());
    }
}

#[test]
fn f29_every_recorded_importer_is_served() {
    for folder in folders() {
        let (_writer, reader) = exporter_store();
        let mut session = ExportSession::new(label("b"), label("a"), 7, Limits::default());
        let mut decoder = Decoder::<wire::ImporterMessage>::new();
        decoder.push(&std::fs::read(folder.join(IMPORTER)).unwrap());
        let (mut completed, mut messages) = (false, 0);
        while let Some(message) = decoder.next_message().unwrap() {
            messages += 1;
            for action in session.handle(message, &reader.load_full(), NOW) {
                match action {
                    ExportAction::Send(message) => completed |= matches!(message.body, Some(FromExporter::Complete(_))),
                    // The recording ends with the importer's close.
                    ExportAction::Close { reason: CloseReason::ByPeer { .. } } => {}
                    ExportAction::Close { .. } | ExportAction::Skipped { .. } => panic!("{action:?}"),
                }
            }
        }
        assert!(completed && messages > 3 && decoder.buffered() == 0, "{}", folder.display());
    }
}

#[test]
fn f29_every_recorded_image_is_read_or_refused_by_its_version() {
    for folder in folders() {
        let image = std::fs::read(folder.join(IMAGE)).unwrap();
        let rules = import_rules();
        match ImportTable::from_disk(&image, label("a"), label("b"), &rules, Limits::default(), NOW) {
            Ok(table) => assert_eq!(imports(&table), std::fs::read_to_string(folder.join(IMPORTS)).unwrap()),
            Err(error) => assert!(error.to_string().starts_with("snapshot rejected: version"), "{error}"),
        }
    }
}

/// What the files of today are.
fn record() -> Vec<(&'static str, Vec<u8>)> {
    let (mut writer, reader) = exporter_store();
    let mut table = ImportTable::new(label("a"), label("b"), Limits::default());
    let mut stream = Stream::default();
    let mut export = ExportSession::new(label("b"), label("a"), 7, Limits::default());
    let (mut import, actions) = ImportSession::start(&mut table, &import_rules(), Limits::default(), NOW);
    stream.import(actions);
    stream.run(&mut import, &mut table, &mut export, &reader);
    let actions = import.subscribe(&mut table, [key("shop/reviews"), key("shop/other")]);
    stream.import(actions);
    stream.run(&mut import, &mut table, &mut export, &reader);
    let actions = import.subscribe(&mut table, [key("shop/reviews")]);
    stream.import(actions);
    let change = |change| [Change::Local { registry: label("file"), change }];
    let mut flapped = endpoint(3);
    flapped.endpoint.condition = EndpointCondition::DRAINING;
    let upsert = vec![flapped, endpoint(9)];
    let remove = vec![endpoint(1).endpoint.id];
    writer.apply(change(LocalChange::Endpoints { service: key("shop/reviews"), upsert, remove }), NOW.wall);
    writer.apply(change(LocalChange::Remove(key("shop/gone"))), NOW.wall);
    writer.apply(change(LocalChange::Upsert(Arc::new(service("shop/new", 0)))), NOW.wall);
    stream.export(export.on_snapshot(&reader.load_full(), NOW));
    stream.run(&mut import, &mut table, &mut export, &reader);
    let image = table.to_disk();
    let contents = imports(&table);
    let actions = import.end(&mut table, CloseReason::Draining);
    stream.import(actions);
    stream.export(export.end(CloseReason::Draining));
    vec![
        (EXPORTER, stream.from_exporter),
        (IMPORTER, stream.from_importer),
        (IMAGE, image),
        (IMPORTS, contents.into_bytes()),
    ]
}

/// Both directions of one stream, and what has not been read of them.
#[derive(Default)]
struct Stream {
    from_exporter: Vec<u8>,
    from_importer: Vec<u8>,
    to_importer: Vec<wire::ExporterMessage>,
    to_exporter: Vec<wire::ImporterMessage>,
}

impl Stream {
    fn import(&mut self, actions: Vec<ImportAction>) {
        for action in actions {
            if let ImportAction::Send(message) = action {
                self.from_importer.extend_from_slice(&encode(&message).unwrap());
                self.to_exporter.push(message);
            }
        }
    }

    fn export(&mut self, actions: Vec<ExportAction>) {
        for action in actions {
            if let ExportAction::Send(message) = action {
                self.from_exporter.extend_from_slice(&encode(&message).unwrap());
                self.to_importer.push(message);
            }
        }
    }

    fn run(
        &mut self,
        import: &mut ImportSession,
        table: &mut ImportTable,
        export: &mut ExportSession,
        reader: &Reader,
    ) {
        while !self.to_importer.is_empty() || !self.to_exporter.is_empty() {
            for message in std::mem::take(&mut self.to_exporter) {
                self.export(export.handle(message, &reader.load_full(), NOW));
            }
            for message in std::mem::take(&mut self.to_importer) {
                self.import(import.handle(table, message, NOW));
            }
            let later = Now { mono: NOW.mono + Duration::from_secs(1), ..NOW };
            self.import(import.handle_timeout(table, later));
        }
    }
}

fn imports(table: &ImportTable) -> String {
    let services: Vec<_> = table.services().collect();
    let endpoints = table.endpoints(&key("shop/reviews"));
    serde_json::to_string_pretty(&serde_json::json!({ "services": services, "endpoints": endpoints })).unwrap() + "\n"
}

fn exporter_store() -> (Writer, Reader) {
    let (mut writer, reader) = Writer::new(label("b"));
    let mut offered = PeerRules::new(label("a"), "a.example", UnixMillis(0));
    offered.export = filter();
    let rules = Rules { peers: BTreeMap::from([(label("a"), Arc::new(offered))]), ..Rules::default() };
    writer.set_rules(Arc::new(rules));
    let services = vec![Arc::new(full_service()), Arc::new(service("shop/gone", 2)), Arc::new(service("shop/kept", 1))];
    let change = LocalChange::Replace(services);
    writer.apply([Change::Local { registry: label("file"), change }], NOW.wall);
    writer.await_registries([]);
    (writer, reader)
}

/// A service with every field in use.
fn full_service() -> LocalService {
    let mut record = (*service("shop/reviews", 0).record).clone();
    record.kind = ServiceKind::Headless;
    record.ports.push(ServicePort { name: Some(PortName::parse("dns").unwrap()), protocol: Protocol::Udp, ..port(53) });
    record.ip_families = vec![IpFamily::Ipv4, IpFamily::Ipv6];
    record.session_affinity = SessionAffinity::ClientIp { timeout: Duration::from_secs(600) };
    record.internal_traffic_policy = eastway_model::InternalTrafficPolicy::Local;
    record.traffic_distribution = Some("PreferClose".into());
    record.labels = BTreeMap::from([("app.kubernetes.io/part-of".into(), "shop".into())]);
    record.annotations = BTreeMap::from([("note".into(), "any text".into())]);
    LocalService::new(record, true, (0..6).map(endpoint))
}

fn service(text: &str, endpoints: u8) -> LocalService {
    let mut record = ServiceRecord::new(key(text), vec![port(9080)]);
    record.exported_at = UnixMillis(1_700_000_000_000);
    LocalService::new(record, true, (0..endpoints).map(endpoint))
}

fn port(number: u16) -> ServicePort {
    ServicePort {
        name: Some(PortName::parse("http").unwrap()),
        number: NonZeroU16::new(number).unwrap(),
        protocol: Protocol::Tcp,
        app_protocol: Some("kubernetes.io/h2c".into()),
    }
}

fn endpoint(number: u8) -> LocalEndpoint {
    let mesh = number > 3;
    LocalEndpoint {
        endpoint: Endpoint {
            id: EndpointId::parse(&format!("reviews-{number}")).unwrap(),
            hostname: Some(label(&format!("reviews-{number}"))),
            subset: Subset::from([("version".into(), if mesh { "v2".into() } else { "v1".into() })]),
            zone: (number != 5).then(|| "zone-a".into()),
            condition: EndpointCondition::READY,
            weight: 100 + u32::from(number),
            identity: if mesh { WorkloadIdentity::parse("spiffe://b.example/ns/shop/sa/reviews") } else { None },
            tls: if mesh { TlsMode::Mesh } else { TlsMode::None },
        },
        address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, number)),
        service_account: None,
        target_ports: Pairs::new(),
    }
}

fn import_rules() -> Arc<PeerRules> {
    let mut rules = PeerRules::new(label("b"), "b.example", UnixMillis(1_600_000_000_000));
    rules.import = filter();
    Arc::new(rules)
}

fn filter() -> NameFilter {
    let entry = NameFilterEntry { namespace: Glob::parse("shop").unwrap(), services: vec![Glob::any()] };
    NameFilter::new(vec![entry]).unwrap()
}

fn label(text: &str) -> Label {
    Label::parse(text).unwrap()
}

fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

fn compat() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/compat")
}

fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<_> = std::fs::read_dir(compat()).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.join(EXPORTER).is_file());
    assert!(!folders.is_empty(), "no recordings in {}", compat().display());
    folders
}
