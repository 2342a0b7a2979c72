//! What federation costs: `cargo bench -p eastway-federation`.
//!
//! Budgets (design §11): one endpoint changed in a service of 10,000 costs both sides together at
//! most 70 µs of CPU and 300 bytes. Here that is from the exporter's new snapshot to the change
//! that the importer hands to its store, frames included; the stores are measured in eastway-model.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark that meets the unexpected has to fail, and prints what it measured"
)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use divan::{Bencher, black_box};
use eastway_federation::codec::{Decoder, encode};
use eastway_federation::{ExportAction, ExportSession, ImportAction, ImportSession, ImportTable, Limits, Now};
use eastway_model::rules::{Glob, NameFilter, NameFilterEntry, PeerRules, Rules};
use eastway_model::store::{Snapshot, Writer};
use eastway_model::{
    Change, Endpoint, EndpointCondition, EndpointId, Label, LocalChange, LocalEndpoint, LocalService, Pairs,
    ServiceKey, ServiceRecord, Subset, TlsMode, UnixMillis, WorkloadIdentity,
};
use eastway_proto::federation::v1 as wire;

fn main() {
    divan::main();
    let mut pair = Pair::new([service("shop/reviews", 0..10_000)]);
    let snapshot = Arc::clone(&pair.snapshots.1);
    println!("{} bytes on the wire for one endpoint changed in a service of 10000", pair.exchange(&snapshot));
}

/// Both sides of a change of one endpoint, in a service that is subscribed to.
#[divan::bench(args = [100, 1_000, 10_000])]
fn endpoint_changed(bencher: Bencher, endpoints: u32) {
    let mut pair = Pair::new([service("shop/reviews", 0..endpoints)]);
    let mut turn = 0;
    bencher.bench_local(|| {
        // Two snapshots, each a change of the other.
        turn += 1;
        let snapshot = Arc::clone(if turn % 2 == 0 { &pair.snapshots.0 } else { &pair.snapshots.1 });
        let bytes = pair.exchange(&snapshot);
        assert!(bytes > 0 && bytes <= 300, "{bytes} bytes");
    });
}

/// A reconnect after no change, of as many services.
#[divan::bench(args = [100, 10_000])]
fn reconnect_after_no_change(bencher: Bencher, services: u32) {
    let mut pair = Pair::new((0..services).map(|n| service(&format!("shop/s{n}"), n..n + 3)));
    bencher.bench_local(|| {
        let bytes = pair.reconnect();
        assert!(bytes < 1_000, "{bytes} bytes");
    });
}

/// A whole snapshot, of as many services.
#[divan::bench(args = [100, 10_000])]
fn whole_snapshot(bencher: Bencher, services: u32) {
    let mut pair = Pair::new((0..services).map(|n| service(&format!("shop/s{n}"), n..n + 3)));
    bencher.bench_local(|| {
        pair.table.withdraw();
        black_box(pair.reconnect());
    });
}

/// The table of as many services for a file.
#[divan::bench(args = [100, 10_000])]
fn image(bencher: Bencher, services: u32) {
    let pair = Pair::new((0..services).map(|n| service(&format!("shop/s{n}"), n..n + 3)));
    bencher.bench_local(|| black_box(pair.table.to_disk()));
}

/// Cluster `b` exports to `a`.
struct Pair {
    /// Two states that differ in one endpoint of the first service.
    snapshots: (Arc<Snapshot>, Arc<Snapshot>),
    table: ImportTable,
    rules: Arc<PeerRules>,
    export: ExportSession,
    import: ImportSession,
    now: Now,
}

impl Pair {
    fn new(services: impl IntoIterator<Item = LocalService>) -> Self {
        let (a, b) = (label("a"), label("b"));
        let (mut writer, reader) = Writer::new(b.clone());
        let entry = NameFilterEntry { namespace: Glob::parse("shop").unwrap(), services: vec![Glob::any()] };
        let filter = NameFilter::new(vec![entry]).unwrap();
        let mut offered = PeerRules::new(a.clone(), "a.example", UnixMillis(0));
        offered.export = filter.clone();
        writer
            .set_rules(Arc::new(Rules { peers: BTreeMap::from([(a.clone(), Arc::new(offered))]), ..Rules::default() }));
        let services: Vec<_> = services.into_iter().map(Arc::new).collect();
        let first = Arc::clone(services.first().unwrap());
        let registry = label("file");
        let local = |change| Change::Local { registry: registry.clone(), change };
        writer.apply([local(LocalChange::Replace(services))], UnixMillis(1));
        writer.await_registries([]);
        let before = reader.load_full();
        let mut changed = (**first.endpoints.nth(first.endpoints.len() / 2).unwrap()).clone();
        changed.endpoint.condition = EndpointCondition::DOWN;
        let change = LocalChange::Endpoints { service: first.key().clone(), upsert: vec![changed], remove: Vec::new() };
        writer.apply([local(change)], UnixMillis(1));
        let mut rules = PeerRules::new(b.clone(), "b.example", UnixMillis(0));
        rules.import = filter;
        let rules = Arc::new(rules);
        let now = Now { mono: Duration::from_secs(1), wall: UnixMillis(1_000_000) };
        let mut table = ImportTable::new(a.clone(), b.clone(), Limits::default());
        table.set_subscriptions([first.key().clone()]);
        let (import, _) = ImportSession::start(&mut table, &rules, Limits::default(), now);
        let export = ExportSession::new(b, a, 1, Limits::default());
        let mut pair = Self { snapshots: (before, reader.load_full()), table, rules, export, import, now };
        pair.reconnect();
        pair
    }

    /// A new stream, to the end of its snapshot. Returns the bytes of both directions.
    fn reconnect(&mut self) -> usize {
        self.now.mono += Duration::from_secs(60);
        let (import, actions) = ImportSession::start(&mut self.table, &self.rules, Limits::default(), self.now);
        self.import = import;
        self.export = ExportSession::new(label("b"), label("a"), 1, Limits::default());
        let snapshot = Arc::clone(&self.snapshots.0);
        let bytes = self.deliver(&snapshot, Vec::new(), frames_of(actions));
        assert!(self.import.is_live());
        bytes
    }

    /// A snapshot of the exporter's store, to the acknowledgement of what it changed.
    fn exchange(&mut self, snapshot: &Snapshot) -> usize {
        self.now.mono += Duration::from_millis(100);
        let actions = self.export.on_snapshot(snapshot, self.now);
        self.deliver(snapshot, frames(actions), Vec::new())
    }

    fn deliver(&mut self, snapshot: &Snapshot, mut to_importer: Vec<Bytes>, mut to_exporter: Vec<Bytes>) -> usize {
        let mut bytes = 0;
        while !to_importer.is_empty() || !to_exporter.is_empty() {
            let mut next = Vec::new();
            for message in received::<wire::ExporterMessage>(&to_importer, &mut bytes) {
                next.extend(frames_of(self.import.handle(&mut self.table, message, self.now)));
            }
            if self.table.has_pending() {
                self.now.mono += Duration::from_millis(60);
                next.extend(frames_of(self.import.handle_timeout(&mut self.table, self.now)));
            }
            to_importer.clear();
            for message in received::<wire::ImporterMessage>(&to_exporter, &mut bytes) {
                to_importer.extend(frames(self.export.handle(message, snapshot, self.now)));
            }
            to_exporter = next;
        }
        bytes
    }
}

fn received<M: prost::Message + Default>(frames: &[Bytes], bytes: &mut usize) -> Vec<M> {
    let mut decoder = Decoder::new();
    let mut out = Vec::new();
    for frame in frames {
        *bytes += frame.len();
        decoder.push(frame);
        out.extend(decoder.next_message().unwrap());
    }
    out
}

fn frames(actions: Vec<ExportAction>) -> Vec<Bytes> {
    let frame = |action| match action {
        ExportAction::Send(message) => encode(&message).unwrap(),
        ExportAction::Skipped { .. } | ExportAction::Close { .. } => panic!("{action:?}"),
    };
    actions.into_iter().map(frame).collect()
}

fn frames_of(actions: Vec<ImportAction>) -> Vec<Bytes> {
    let frame = |action| match action {
        ImportAction::Send(message) => Some(encode(&message).unwrap()),
        ImportAction::Apply(change) => {
            black_box(change);
            None
        }
        ImportAction::Rejected { .. } | ImportAction::Close { .. } => panic!("{action:?}"),
    };
    actions.into_iter().filter_map(frame).collect()
}

fn label(text: &str) -> Label {
    Label::parse(text).unwrap()
}

fn service(text: &str, endpoints: std::ops::Range<u32>) -> LocalService {
    let key: ServiceKey = text.parse().unwrap();
    LocalService::new(ServiceRecord::new(key, Vec::new()), true, endpoints.map(endpoint))
}

fn endpoint(number: u32) -> LocalEndpoint {
    let zone = ["zone-a", "zone-b", "zone-c"].into_iter().cycle().nth(number as usize % 3);
    LocalEndpoint {
        endpoint: Endpoint {
            id: EndpointId::parse(&format!("reviews-7d4b9c6f5-{number:05}")).unwrap(),
            hostname: None,
            subset: Subset::from([(
                "version".into(),
                if number.is_multiple_of(2) { "v1".into() } else { "v2".into() },
            )]),
            zone: zone.map(Into::into),
            condition: EndpointCondition::READY,
            weight: 100,
            identity: WorkloadIdentity::parse("spiffe://b.example/ns/shop/sa/reviews"),
            tls: TlsMode::None,
        },
        address: IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number)),
        service_account: None,
        target_ports: Pairs::new(),
    }
}
