//! Rules of the exporting side.

use std::sync::Arc;
use std::time::Duration;

use eastway_model::rules::{PeerRules, Rules};
use eastway_model::{Change, Label, LocalChange, PeerChange, PeerState, ServiceRecord, UnixMillis};
use eastway_proto::federation::v1 as wire;
use eastway_proto::federation::v1::exporter_message::Body as ToImporter;
use eastway_proto::federation::v1::importer_message::Body as FromImporter;
use prost::Message;

use crate::testing::{Pair, endpoint, filter, key, name, service};
use crate::{CloseReason, ExportAction, ExportSession, Limits};

/// An exporter whose importer is the test.
struct Exporter {
    pair: Pair,
    sent: Vec<ToImporter>,
    closed: Option<CloseReason>,
}

impl Exporter {
    fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    fn with_limits(limits: Limits) -> Self {
        let mut pair = Pair::with_limits(limits);
        pair.export = ExportSession::new(name("b"), name("a"), 9, pair.limits.clone());
        Self { pair, sent: Vec::new(), closed: None }
    }

    fn synced(names: &[&str]) -> Self {
        let mut exporter = Self::new();
        exporter.pair.sync(names.iter().map(|name| service(name, [])));
        exporter
    }

    fn handle(&mut self, body: FromImporter) {
        let snapshot = self.pair.reader.load_full();
        let message = wire::ImporterMessage { body: Some(body) };
        let actions = self.pair.export.handle(message, &snapshot, self.pair.now);
        self.take(actions);
    }

    fn open(&mut self) {
        self.handle(FromImporter::Open(open("a")));
    }

    fn store_changed(&mut self) {
        let snapshot = self.pair.reader.load_full();
        let actions = self.pair.export.on_snapshot(&snapshot, self.pair.now);
        self.take(actions);
    }

    fn pass(&mut self, seconds: u64) {
        self.pair.pass(Duration::from_secs(seconds));
        let snapshot = self.pair.reader.load_full();
        let actions = self.pair.export.handle_timeout(&snapshot, self.pair.now);
        self.take(actions);
    }

    /// A change of local truth that the session hears of.
    fn local(&mut self, change: LocalChange) {
        let registry = Label::parse("file").unwrap();
        self.pair.writer.apply([Change::Local { registry, change }], self.pair.now.wall);
        self.store_changed();
    }

    fn take(&mut self, actions: Vec<ExportAction>) {
        for action in actions {
            match action {
                ExportAction::Send(message) => self.sent.extend(message.body),
                ExportAction::Skipped { .. } => {}
                ExportAction::Close { reason } => self.closed = Some(reason),
            }
        }
    }

    /// Names sent as upserts or in snapshots, in order.
    fn names_sent(&self) -> Vec<String> {
        let states = self.sent.iter().flat_map(|body| match body {
            ToImporter::Chunk(chunk) => chunk.services.clone(),
            ToImporter::Update(update) => update.services.clone(),
            ToImporter::Open(_)
            | ToImporter::Unchanged(_)
            | ToImporter::Begin(_)
            | ToImporter::Complete(_)
            | ToImporter::Close(_) => Vec::new(),
        });
        states.map(|state| wire::Service::decode(state.service).unwrap().name).collect()
    }
}

fn open(cluster: &str) -> wire::ImportOpen {
    wire::ImportOpen { min_version: 1, max_version: 1, cluster: cluster.to_owned(), ..Default::default() }
}

#[test]
fn i5_nothing_is_sent_before_local_sync() {
    let mut exporter = Exporter::new();
    exporter.pair.writer.await_registries([name("file")]);
    exporter.open();
    exporter.local(LocalChange::Upsert(Arc::new(service("shop/a", []))));
    exporter.pass(600);
    assert!(exporter.sent.is_empty(), "{:?}", exporter.sent);
    exporter.local(LocalChange::Replace(vec![Arc::new(service("shop/a", []))]));
    assert!(matches!(exporter.sent[0], ToImporter::Open(_)));
    assert_eq!(exporter.names_sent(), ["a"]);
}

#[test]
fn an_empty_cluster_sends_an_empty_snapshot_once_it_is_synced() {
    let mut exporter = Exporter::synced(&[]);
    exporter.open();
    let kinds: Vec<_> = exporter.sent.iter().map(std::mem::discriminant).collect();
    let expected = [
        ToImporter::Open(wire::ExportOpen::default()),
        ToImporter::Begin(wire::SnapshotBegin::default()),
        ToImporter::Complete(wire::Complete::default()),
    ];
    assert_eq!(kinds, expected.iter().map(std::mem::discriminant).collect::<Vec<_>>());
}

#[test]
fn i3_p13_an_import_is_not_exported_again() {
    let mut exporter = Exporter::synced(&["shop/own"]);
    // `b` imports shop/theirs of `c`, and may offer namespace shop to `a`.
    let mut rules = Rules::default();
    let mut to_a = PeerRules::new(name("a"), "a.example", UnixMillis(0));
    to_a.export = filter(&["shop"]);
    let mut from_c = PeerRules::new(name("c"), "c.example", UnixMillis(0));
    from_c.import = filter(&["shop"]);
    rules.peers.insert(name("a"), Arc::new(to_a));
    rules.peers.insert(name("c"), Arc::new(from_c));
    exporter.pair.writer.set_rules(Arc::new(rules));
    let theirs = Arc::new(ServiceRecord::new(key("shop/theirs"), Vec::new()));
    let changes = [PeerChange::Replace(vec![theirs]), PeerChange::State(PeerState::Up)];
    let changes = changes.map(|change| Change::Peer { cluster: name("c"), change });
    exporter.pair.writer.apply(changes, exporter.pair.now.wall);
    assert!(exporter.pair.reader.load().import(&key("shop/theirs")).is_some(), "it is an import");
    exporter.open();
    exporter.handle(FromImporter::Subscribe(wire::Subscribe {
        services: vec![wire::Subscription {
            service: Some(crate::convert::key_to_wire(&key("shop/theirs"))),
            ..Default::default()
        }],
    }));
    exporter.store_changed();
    assert_eq!(exporter.names_sent(), ["own"]);
    let mentions = exporter.sent.iter().any(|body| format!("{body:?}").contains("theirs"));
    assert!(!mentions, "{:?}", exporter.sent);
}

#[test]
fn p5_what_the_rules_do_not_offer_is_never_named() {
    let mut exporter = Exporter::new();
    let mut private = service("shop/private", []);
    private.exported = false;
    exporter.pair.sync([service("shop/a", []), service("secret/b", []), private]);
    exporter.open();
    assert_eq!(exporter.names_sent(), ["a"]);
    // Its changes and its removal are not said either.
    exporter.local(LocalChange::Remove(key("secret/b")));
    exporter.local(LocalChange::Remove(key("shop/private")));
    let said = format!("{:?}", exporter.sent);
    assert!(!said.contains("private") && !said.contains("secret"), "{said}");
    // No longer offered: an explicit removal.
    let mut rules = Rules::default();
    rules.peers.insert(name("a"), Arc::new(PeerRules::new(name("a"), "a.example", UnixMillis(0))));
    exporter.pair.writer.set_rules(Arc::new(rules));
    exporter.store_changed();
    let Some(ToImporter::Update(update)) = exporter.sent.last() else { panic!("{:?}", exporter.sent) };
    assert_eq!(update.removed, [crate::convert::key_to_wire(&key("shop/a"))]);
}

#[test]
fn the_first_message_is_an_open_message_and_no_other_is() {
    let mut exporter = Exporter::synced(&["shop/a"]);
    exporter.handle(FromImporter::Ack(wire::Ack { sequence: 1 }));
    let text = exporter.closed.take().unwrap().to_string();
    assert_eq!(text, "FAILED_PRECONDITION PROTOCOL (the first message is not an open message)");
    assert!(exporter.names_sent().is_empty());
    exporter.open();
    assert!(exporter.names_sent().is_empty(), "a closed session stays closed");

    let mut exporter = Exporter::synced(&["shop/a"]);
    exporter.open();
    exporter.open();
    let text = exporter.closed.unwrap().to_string();
    assert_eq!(text, "FAILED_PRECONDITION PROTOCOL (a second open message)");
    let Some(ToImporter::Close(close)) = exporter.sent.last() else { panic!("the importer is told") };
    assert_eq!((close.code(), close.reason.as_str()), (wire::CloseCode::Protocol, text.as_str()));
}

#[test]
fn versions_without_overlap_are_refused() {
    for (min_version, max_version) in [(0, 0), (999, 999), (2, 5), (2, 1)] {
        let mut exporter = Exporter::synced(&["shop/a"]);
        exporter.handle(FromImporter::Open(wire::ImportOpen { min_version, max_version, ..open("a") }));
        let text = exporter.closed.unwrap().to_string();
        assert!(text.starts_with("FAILED_PRECONDITION VERSION_UNSUPPORTED (we speak 1-1"), "{text}");
    }
    let mut exporter = Exporter::synced(&["shop/a"]);
    exporter.handle(FromImporter::Open(wire::ImportOpen { min_version: 0, max_version: 7, ..open("a") }));
    assert!(exporter.closed.is_none());
}

#[test]
fn i2_p3_an_importer_of_another_name_gets_nothing() {
    let mut exporter = Exporter::synced(&["shop/a"]);
    exporter.handle(FromImporter::Open(open("c\n")));
    let text = exporter.closed.unwrap().to_string();
    assert_eq!(text, r#"PERMISSION_DENIED CLUSTER_MISMATCH (the stream is of a, the message says "c\\u{a}")"#);
    assert!(
        exporter.pair.to_importer.is_empty() && exporter.sent.iter().all(|body| matches!(body, ToImporter::Close(_)))
    );
}

#[test]
fn i8_an_importer_that_never_acknowledges_is_closed_after_30_s() {
    let mut exporter = Exporter::synced(&["shop/a"]);
    exporter.open();
    exporter.pass(29);
    assert!(exporter.closed.is_none());
    exporter.pass(1);
    let text = exporter.closed.unwrap().to_string();
    assert_eq!(text, "DEADLINE_EXCEEDED ACK_TIMEOUT (sequence 1 is not acknowledged after 30 s)");
}

#[test]
fn i8_acknowledgements_for_the_future_do_not_help() {
    let mut exporter = Exporter::synced(&["shop/a"]);
    exporter.open();
    exporter.handle(FromImporter::Ack(wire::Ack { sequence: u64::MAX }));
    exporter.handle(FromImporter::Ack(wire::Ack { sequence: 4 }));
    exporter.pass(30);
    assert!(exporter.closed.unwrap().to_string().contains("ACK_TIMEOUT"));
}

#[test]
fn i8_while_the_importer_is_slow_only_the_newest_state_waits() {
    let mut exporter = Exporter::synced(&["shop/a"]);
    exporter.open();
    for number in 0..10_000_u32 {
        let mut record = (*service("shop/a", []).record).clone();
        record.exported_at = UnixMillis(number.into());
        let service = eastway_model::LocalService::new(record, true, []);
        exporter.local(LocalChange::Upsert(Arc::new(service)));
    }
    let under_way = exporter.sent.len();
    assert!(under_way <= 40, "{under_way} messages wait for a reader");
    exporter.handle(FromImporter::Ack(wire::Ack { sequence: 32 }));
    let Some(ToImporter::Update(update)) = exporter.sent.last() else { panic!() };
    let newest = wire::Service::decode(update.services[0].service.clone()).unwrap();
    assert_eq!(newest.exported_at_ms, 9_999);
    assert_eq!(exporter.sent.len(), under_way + 1);
}

#[test]
fn i8_large_snapshots_go_in_chunks_as_they_are_acknowledged() {
    let mut exporter = Exporter::new();
    let mut large = service("shop/a", []);
    let mut record = (*large.record).clone();
    record.annotations = (0..8).map(|n| (format!("k{n}").into(), "x".repeat(4096).into())).collect();
    exporter.pair.sync((0..200).map(|n| {
        record.key = key(&format!("shop/s{n}"));
        large.record = Arc::new(record.clone());
        large.clone()
    }));
    exporter.open();
    let largest = exporter.sent.iter().map(ToImporter::encoded_len).max().unwrap();
    assert!(largest < 256 << 10, "{largest}");
    let waiting: usize = exporter.sent.iter().map(ToImporter::encoded_len).sum();
    assert!(waiting < (2 << 20) + (256 << 10), "{waiting} bytes wait for a reader");
    assert!(exporter.names_sent().len() < 200);
    for sequence in 1..200 {
        exporter.handle(FromImporter::Ack(wire::Ack { sequence }));
    }
    assert_eq!(exporter.names_sent().len(), 200);
    assert!(matches!(exporter.sent.last(), Some(ToImporter::Complete(_))));
}

#[test]
fn p7_a_record_too_large_for_the_wire_is_skipped() {
    let mut exporter = Exporter::new();
    let mut record = (*service("shop/huge", []).record).clone();
    record.annotations = (0..64).map(|n| (format!("k{n}").into(), "x".repeat(4096).into())).collect();
    exporter.pair.sync([eastway_model::LocalService::new(record, true, []), service("shop/z", [])]);
    let snapshot = exporter.pair.reader.load_full();
    let message = wire::ImporterMessage { body: Some(FromImporter::Open(open("a"))) };
    let actions = exporter.pair.export.handle(message, &snapshot, exporter.pair.now);
    let skipped = actions
        .iter()
        .any(|action| matches!(action, ExportAction::Skipped { service, .. } if *service == key("shop/huge")));
    assert!(skipped);
    exporter.take(actions);
    assert_eq!(exporter.names_sent(), ["z"]);
}

#[test]
fn i8_resyncs_are_obeyed_once_per_5_s() {
    let mut exporter = Exporter::synced(&["shop/a"]);
    exporter.open();
    for _ in 0..100 {
        exporter.handle(FromImporter::Resync(wire::Resync::default()));
    }
    assert_eq!(exporter.names_sent().len(), 1, "the first snapshot");
    exporter.handle(FromImporter::Ack(wire::Ack { sequence: 3 }));
    exporter.pass(5);
    assert_eq!(exporter.names_sent().len(), 2);
    exporter.handle(FromImporter::Resync(wire::Resync::default()));
    exporter.pass(4);
    assert_eq!(exporter.names_sent().len(), 2);
    exporter.pass(1);
    assert_eq!(exporter.names_sent().len(), 3);
}

#[test]
fn i8_subscriptions_are_bounded() {
    let limits = Limits { subscriptions: 10, ..Limits::default() };
    let mut exporter = Exporter::with_limits(limits);
    exporter.pair.sync([]);
    exporter.open();
    let subscribe = |n: usize| {
        let service = Some(crate::convert::key_to_wire(&key(&format!("shop/s{n}"))));
        FromImporter::Subscribe(wire::Subscribe {
            services: vec![wire::Subscription { service, ..Default::default() }],
        })
    };
    (0..10).for_each(|n| exporter.handle(subscribe(n)));
    exporter.handle(subscribe(3));
    assert!(exporter.closed.is_none());
    exporter.handle(subscribe(10));
    assert!(exporter.closed.unwrap().to_string().starts_with("RESOURCE_EXHAUSTED TOO_MUCH"));
}

#[test]
fn i1_an_address_that_changes_sends_nothing() {
    let mut exporter = Exporter::new();
    exporter.pair.sync([service("shop/a", [endpoint(1, "v1")])]);
    let mut message = open("a");
    let service_name = Some(crate::convert::key_to_wire(&key("shop/a")));
    message.subscriptions = vec![wire::Subscription { service: service_name, ..Default::default() }];
    exporter.handle(FromImporter::Open(message));
    let before = exporter.sent.len();
    let mut moved = endpoint(1, "v1");
    moved.address = "192.0.2.7".parse().unwrap();
    exporter.local(LocalChange::Upsert(Arc::new(service("shop/a", [moved]))));
    assert_eq!(exporter.sent.len(), before);
    for body in &exporter.sent {
        let bytes = body.encoded_len();
        let mut out = Vec::with_capacity(bytes);
        body.encode(&mut out);
        assert!(!out.windows(4).any(|window| window == [192, 0, 2, 7] || window == [10, 0, 0, 1]));
    }
}

proptest::proptest! {
    /// The difference of two lists, applied to the older, is the newer, whatever they share.
    #[test]
    fn endpoint_differences_lead_from_the_older_to_the_newer(
        edits in proptest::collection::vec((0_usize..400, proptest::bool::ANY), 0..60),
        size in 0_usize..350,
    ) {
        let older: eastway_model::endpoint::LocalEndpoints = (0..size).map(|n| endpoint(n, "v1")).collect();
        let edits: std::collections::BTreeMap<_, _> = edits
            .into_iter()
            .map(|(n, stays)| (endpoint(n, "v2").endpoint.id.clone(), stays.then(|| Arc::new(endpoint(n, "v2")))))
            .collect();
        let newer = older.edited(&edits.into_iter().collect::<Vec<_>>());
        let changes = newer.changes_from(&older);
        proptest::prop_assert!(changes.len() <= 60);
        proptest::prop_assert_eq!(older.edited(&changes), newer);
    }
}
