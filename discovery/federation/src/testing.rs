//! An exporter with a store of its own and an importer with a table, joined by a stream that the
//! test holds in its hands. Every message goes through the codec, so byte counts are real.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use eastway_model::rules::{Glob, NameFilter, NameFilterEntry, PeerRules, Rules};
use eastway_model::store::{Reader, Writer};
use eastway_model::{
    Change, ClusterName, Endpoint, EndpointCondition, EndpointId, Label, LocalChange, LocalEndpoint, LocalService,
    Pairs, PeerChange, Protocol, ServiceKey, ServicePort, ServiceRecord, Subset, TlsMode, UnixMillis, WorkloadIdentity,
};
use eastway_proto::federation::v1 as wire;

use crate::codec::{Decoder, encode};
use crate::{
    CloseReason, ExportAction, ExportSession, ImportAction, ImportSession, ImportTable, Limits, Now, RejectReason,
};

pub(crate) fn name(text: &str) -> ClusterName {
    Label::parse(text).unwrap()
}

pub(crate) fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

pub(crate) fn filter(namespaces: &[&str]) -> NameFilter {
    let entry = |text: &&str| NameFilterEntry { namespace: Glob::parse(text).unwrap(), services: vec![Glob::any()] };
    NameFilter::new(namespaces.iter().map(entry).collect()).unwrap()
}

pub(crate) fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: Some(eastway_model::PortName::parse(name).unwrap()),
        number: NonZeroU16::new(number).unwrap(),
        protocol: Protocol::Tcp,
        app_protocol: Some("http".into()),
    }
}

pub(crate) fn endpoint(number: usize, version: &str) -> LocalEndpoint {
    let octets = u32::try_from(number).unwrap().to_be_bytes();
    LocalEndpoint {
        endpoint: Endpoint {
            id: EndpointId::parse(&format!("pod-{number:05}-x7k2p")).unwrap(),
            hostname: None,
            subset: Subset::from([("version".into(), version.into())]),
            zone: Some(["zone-a", "zone-b", "zone-c"][number % 3].into()),
            condition: EndpointCondition::READY,
            weight: 100,
            identity: WorkloadIdentity::parse("spiffe://b.example/ns/shop/sa/reviews"),
            tls: TlsMode::None,
        },
        address: IpAddr::V4(Ipv4Addr::new(10, octets[1], octets[2], octets[3])),
        service_account: None,
        target_ports: Pairs::new(),
    }
}

pub(crate) fn service(text: &str, endpoints: impl IntoIterator<Item = LocalEndpoint>) -> LocalService {
    let mut record = ServiceRecord::new(key(text), vec![port("http", 9080)]);
    record.exported_at = UnixMillis(5_000);
    LocalService::new(record, true, endpoints)
}

/// Cluster `b` exports, cluster `a` imports namespace `shop` of it.
pub(crate) struct Pair {
    pub(crate) now: Now,
    pub(crate) writer: Writer,
    pub(crate) reader: Reader,
    pub(crate) table: ImportTable,
    pub(crate) rules: Arc<PeerRules>,
    pub(crate) limits: Limits,
    pub(crate) export: ExportSession,
    pub(crate) import: ImportSession,
    pub(crate) to_importer: VecDeque<wire::ExporterMessage>,
    pub(crate) to_exporter: VecDeque<wire::ImporterMessage>,
    /// Bytes in both directions since the stream began.
    pub(crate) bytes: usize,
    /// What the importer told its store.
    pub(crate) applied: Vec<PeerChange>,
    pub(crate) rejected: Vec<(Option<ServiceKey>, RejectReason, usize)>,
    pub(crate) closed: Vec<CloseReason>,
    epoch: u64,
}

impl Pair {
    pub(crate) fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    pub(crate) fn with_limits(limits: Limits) -> Self {
        let (mut writer, reader) = Writer::new(name("b"));
        let mut offered = PeerRules::new(name("a"), "a.example", UnixMillis(0));
        offered.export = filter(&["shop", "ops"]);
        let rules = Rules { peers: BTreeMap::from([(name("a"), Arc::new(offered))]), ..Rules::default() };
        writer.set_rules(Arc::new(rules));
        let mut rules = PeerRules::new(name("b"), "b.example", UnixMillis(1_000));
        rules.import = filter(&["shop"]);
        let rules = Arc::new(rules);
        let now = Now { mono: Duration::from_secs(1_000), wall: UnixMillis(1_000_000) };
        let mut table = ImportTable::new(name("a"), name("b"), limits.clone());
        let (import, _) = ImportSession::start(&mut table, &rules, limits.clone(), now);
        let export = ExportSession::new(name("b"), name("a"), 1, limits.clone());
        let mut pair = Self {
            now,
            writer,
            reader,
            table,
            rules,
            limits,
            export,
            import,
            to_importer: VecDeque::new(),
            to_exporter: VecDeque::new(),
            bytes: 0,
            applied: Vec::new(),
            rejected: Vec::new(),
            closed: Vec::new(),
            epoch: 1,
        };
        pair.reconnect();
        pair
    }

    /// A new stream between new sessions; the table and the store stay.
    pub(crate) fn reconnect(&mut self) {
        self.epoch += 1;
        self.to_importer.clear();
        self.to_exporter.clear();
        self.bytes = 0;
        self.export = ExportSession::new(name("b"), name("a"), self.epoch, self.limits.clone());
        let (import, actions) = ImportSession::start(&mut self.table, &self.rules, self.limits.clone(), self.now);
        self.import = import;
        self.import_actions(actions);
    }

    /// Registries are synced with these services.
    pub(crate) fn sync(&mut self, services: impl IntoIterator<Item = LocalService>) {
        self.local(LocalChange::Replace(services.into_iter().map(Arc::new).collect()));
        self.writer.await_registries([]);
        self.store_changed();
    }

    pub(crate) fn local(&mut self, change: LocalChange) {
        self.writer.apply([Change::Local { registry: name("file"), change }], self.now.wall);
        self.store_changed();
    }

    pub(crate) fn upsert(&mut self, service: LocalService) {
        self.local(LocalChange::Upsert(Arc::new(service)));
    }

    pub(crate) fn store_changed(&mut self) {
        let snapshot = self.reader.load_full();
        let actions = self.export.on_snapshot(&snapshot, self.now);
        self.export_actions(actions);
    }

    /// Delivers until nothing is under way; time stands still.
    pub(crate) fn deliver(&mut self) {
        while self.deliver_one() {}
    }

    pub(crate) fn deliver_one(&mut self) -> bool {
        if let Some(message) = self.to_exporter.pop_front() {
            let snapshot = self.reader.load_full();
            let actions = self.export.handle(message, &snapshot, self.now);
            self.export_actions(actions);
            return true;
        }
        if let Some(message) = self.to_importer.pop_front() {
            let actions = self.import.handle(&mut self.table, message, self.now);
            self.import_actions(actions);
            return true;
        }
        false
    }

    /// Delivers and lets time pass from timer to timer, for at most `span`.
    pub(crate) fn run(&mut self, span: Duration) {
        let until = self.now.mono + span;
        loop {
            self.deliver();
            let next = [self.import.next_timeout(&self.table, self.now), self.export.next_timeout()];
            let Some(next) = next.into_iter().flatten().min().filter(|at| *at <= until) else { break };
            self.pass(next.saturating_sub(self.now.mono));
            self.timers();
        }
        self.pass(until.saturating_sub(self.now.mono));
    }

    pub(crate) fn timers(&mut self) {
        let actions = self.import.handle_timeout(&mut self.table, self.now);
        self.import_actions(actions);
        let snapshot = self.reader.load_full();
        let actions = self.export.handle_timeout(&snapshot, self.now);
        self.export_actions(actions);
    }

    pub(crate) fn pass(&mut self, span: Duration) {
        self.now.mono += span;
        self.now.wall = self.now.wall.plus(span);
    }

    pub(crate) fn import_actions(&mut self, actions: Vec<ImportAction>) {
        for action in actions {
            match action {
                ImportAction::Send(message) => {
                    let message = self.through_codec(&message);
                    self.to_exporter.push_back(message);
                }
                ImportAction::Apply(change) => self.applied.push(change),
                ImportAction::Rejected { service, reason, count } => self.rejected.push((service, reason, count)),
                ImportAction::Close { reason } => self.closed.push(reason),
            }
        }
    }

    pub(crate) fn export_actions(&mut self, actions: Vec<ExportAction>) {
        for action in actions {
            match action {
                ExportAction::Send(message) => {
                    let message = self.through_codec(&message);
                    self.to_importer.push_back(message);
                }
                ExportAction::Skipped { .. } => {}
                ExportAction::Close { reason } => self.closed.push(reason),
            }
        }
    }

    fn through_codec<M: prost::Message + Default>(&mut self, message: &M) -> M {
        let bytes = encode(message).unwrap();
        self.bytes += bytes.len();
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        decoder.next_message().unwrap().unwrap()
    }

    /// Hands the importer a message that no exporter of ours would send.
    pub(crate) fn forge(&mut self, body: wire::exporter_message::Body) {
        let actions = self.import.handle(&mut self.table, wire::ExporterMessage { body: Some(body) }, self.now);
        self.import_actions(actions);
    }

    /// Names in use.
    pub(crate) fn imported(&self) -> Vec<String> {
        self.table.services().map(|record| record.key.to_string()).collect()
    }
}
