//! What a peer may say on a federation stream, and what a disk may hold of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use eastway_federation::codec::{Decoder, MAX_MESSAGE, encode};
use eastway_federation::{ExportAction, ExportSession, ImportAction, ImportSession, ImportTable, Limits, Now};
use eastway_model::rules::{Glob, NameFilter, NameFilterEntry, PeerRules, Rules};
use eastway_model::store::{Reader, Writer};
use eastway_model::{
    Change, ClusterName, Endpoint, EndpointCondition, EndpointId, Import, ImportPart, Label, LocalChange,
    LocalEndpoint, LocalService, Pairs, PeerChange, PeerState, Protocol, ServiceKey, ServicePort, ServiceRecord,
    Subset, TlsMode, UnixMillis,
};
use eastway_proto::federation::v1 as wire;
use prost::Message;
use sha2::{Digest, Sha256};

const NOW: Now = Now { mono: Duration::from_secs(1_000), wall: UnixMillis(1_800_000_000_000) };
/// Time between two messages.
const STEP: Duration = Duration::from_millis(300);
/// Quotas that a few bytes can reach.
const SERVICES: usize = 8;
const ENDPOINTS: usize = 16;

fn limits() -> Limits {
    Limits { services: SERVICES, endpoints: ENDPOINTS, subscriptions: 4, record_burst: 1_000, ..Limits::default() }
}

/// Cluster `b` says this to cluster `a`, which has a service of its own and another peer, `c`.
pub fn import(bytes: &[u8]) {
    imported(bytes);
}

/// The services of `b` that `a` holds when all is said.
pub fn imported(bytes: &[u8]) -> Vec<String> {
    let (mut writer, reader) = importing_store();
    let others = of_others(&reader);
    let rules = rules_for("b");
    let mut table = ImportTable::new(label("a"), label("b"), limits());
    table.set_subscriptions([key("shop/reviews")]);
    let mut now = NOW;
    let (mut session, actions) = ImportSession::start(&mut table, &rules, limits(), now);
    obey(&mut writer, actions);
    let mut decoder = Decoder::<wire::ExporterMessage>::new();
    decoder.push(bytes);
    while let Ok(Some(message)) = decoder.next_message() {
        let actions = session.handle(&mut table, message, now);
        assert!(actions.len() <= 64, "{} actions for one message", actions.len());
        obey(&mut writer, actions);
        now.mono += STEP;
        obey(&mut writer, session.handle_timeout(&mut table, now));
        within_quotas(&table, &rules);
        if session.is_closed() {
            break;
        }
    }
    let pending = table.take_pending();
    obey(&mut writer, pending.into_iter().map(ImportAction::Apply).collect());
    assert_eq!(of_others(&reader), others, "a peer changed what is not its own");
    let mut held: Vec<_> = table.services().map(|record| record.key.clone()).collect();
    held.sort();
    assert_eq!(of_peer(&reader, "b").into_keys().collect::<Vec<_>>(), held, "the store holds something else");
    // Nothing is written down before something complete was said.
    if table.source().is_some() {
        let image = table.to_disk();
        let read = ImportTable::from_disk(&image, label("a"), label("b"), &rules, limits(), now).unwrap();
        assert!(read.services().eq(table.services()), "a restart would change what is held");
    }
    held.iter().map(ToString::to_string).collect()
}

/// Cluster `a` says this to cluster `b`, which offers it some of its services.
pub fn export(bytes: &[u8]) {
    let (_writer, reader) = exporting_store();
    let snapshot = reader.load_full();
    let mut session = ExportSession::new(label("b"), label("a"), 7, limits());
    let mut decoder = Decoder::<wire::ImporterMessage>::new();
    decoder.push(bytes);
    let mut now = NOW;
    while let Ok(Some(message)) = decoder.next_message() {
        said(&session.handle(message, &snapshot, now));
        now.mono += STEP;
        said(&session.handle_timeout(&snapshot, now));
        said(&session.on_snapshot(&snapshot, now));
    }
}

/// A file in the place of the copy of what `b` exports: as it is, and as the body of a whole image.
pub fn image(bytes: &[u8]) {
    let rules = rules_for("b");
    let mut whole = b"EWIMPORT".to_vec();
    whole.extend(1_u32.to_be_bytes());
    whole.extend((bytes.len() as u64).to_be_bytes());
    let sum = Sha256::new_with_prefix(1_u32.to_be_bytes());
    whole.extend(sum.chain_update((bytes.len() as u64).to_be_bytes()).chain_update(bytes).finalize());
    whole.extend(bytes);
    for image in [bytes, &whole] {
        let Ok(table) = ImportTable::from_disk(image, label("a"), label("b"), &rules, limits(), NOW) else { continue };
        within_quotas(&table, &rules);
        let (mut writer, reader) = importing_store();
        let others = of_others(&reader);
        obey(&mut writer, table.restore(NOW.wall).into_iter().map(ImportAction::Apply).collect());
        assert_eq!(of_others(&reader), others, "a file changed what is not its peer's");
        let again = ImportTable::from_disk(&table.to_disk(), label("a"), label("b"), &rules, limits(), NOW).unwrap();
        assert!(again.services().eq(table.services()));
    }
}

fn within_quotas(table: &ImportTable, rules: &PeerRules) {
    assert!(table.services().count() <= SERVICES && table.endpoint_count() <= ENDPOINTS);
    assert!(table.refused().count() <= 2 * SERVICES);
    for record in table.services() {
        assert!(rules.import.allows(&record.key), "{} is not allowed", record.key);
        assert!(
            record.exported_at <= NOW.wall.plus(Duration::from_secs(3_600)) && record.exported_at >= rules.accepted_at
        );
        let mut identities = record.groups.iter().flat_map(|group| &group.identities);
        assert!(identities.all(|identity| *identity.trust_domain == *rules.trust_domain));
    }
}

fn obey(writer: &mut Writer, actions: Vec<ImportAction>) {
    let mut changes = Vec::new();
    for action in actions {
        match action {
            ImportAction::Apply(change) => changes.push(Change::Peer { cluster: label("b"), change }),
            ImportAction::Send(message) => assert!(encode(&message).is_ok()),
            ImportAction::Rejected { reason, count, .. } => {
                assert!(count > 0 && !reason.to_string().chars().any(char::is_control), "{reason:?}");
            }
            ImportAction::Close { reason } => assert!(reason.to_string().len() < 1_000),
        }
    }
    writer.apply(changes, NOW.wall);
}

/// Nothing is told that is not offered, and no message is too large.
fn said(actions: &[ExportAction]) {
    for action in actions {
        if let ExportAction::Send(message) = action {
            let bytes = message.encode_to_vec();
            assert!(bytes.len() <= MAX_MESSAGE);
            assert!(!bytes.windows(6).any(|window| window == b"hidden"), "told what is not offered");
        }
    }
}

/// What the store of `a` holds of everybody but `b`.
fn of_others(reader: &Reader) -> (Vec<Arc<LocalService>>, BTreeMap<ServiceKey, ImportPart>) {
    let snapshot = reader.load_full();
    assert!(snapshot.locals().count() == 1 && snapshot.peer("a").is_none());
    (snapshot.locals().cloned().collect(), of_peer(reader, "c"))
}

fn of_peer(reader: &Reader, peer: &str) -> BTreeMap<ServiceKey, ImportPart> {
    let part = |import: &Arc<Import>| Some((import.key.clone(), import.part(Some(&label(peer)))?.clone()));
    reader.load_full().imports().filter_map(part).collect()
}

fn importing_store() -> (Writer, Reader) {
    let (mut writer, reader) = Writer::new(label("a"));
    let peers = ["b", "c"].map(|name| (label(name), rules_for(name)));
    writer.set_rules(Arc::new(Rules { peers: peers.into(), ..Rules::default() }));
    let own = LocalChange::Replace(vec![Arc::new(service("shop/reviews", 2))]);
    let of_c = |change| Change::Peer { cluster: label("c"), change };
    let records = ["shop/cart", "shop/reviews"].map(|name| service(name, 3).record);
    writer.apply([Change::Local { registry: label("file"), change: own }], NOW.wall);
    writer.apply([of_c(PeerChange::State(PeerState::Up)), of_c(PeerChange::Replace(records.into()))], NOW.wall);
    (writer, reader)
}

fn exporting_store() -> (Writer, Reader) {
    let (mut writer, reader) = Writer::new(label("b"));
    let rules = PeerRules { export: filter(), ..PeerRules::clone(&rules_for("a")) };
    writer.set_rules(Arc::new(Rules { peers: [(label("a"), Arc::new(rules))].into(), ..Rules::default() }));
    let mut hidden = service("shop/hidden", 3);
    hidden.exported = false;
    let services = [service("shop/reviews", 9), service("shop/kept", 1), service("ops/hidden", 2), hidden];
    let change = LocalChange::Replace(services.map(Arc::new).into());
    writer.apply([Change::Local { registry: label("file"), change }], NOW.wall);
    writer.await_registries([]);
    (writer, reader)
}

fn rules_for(peer: &str) -> Arc<PeerRules> {
    let rules = PeerRules::new(label(peer), &format!("{peer}.example"), UnixMillis(1_600_000_000_000));
    Arc::new(PeerRules { import: filter(), ..rules })
}

fn filter() -> NameFilter {
    let entry = NameFilterEntry { namespace: Glob::parse("shop").unwrap(), services: vec![Glob::any()] };
    NameFilter::new(vec![entry]).unwrap()
}

fn service(name: &str, endpoints: u8) -> LocalService {
    let port =
        ServicePort { name: None, number: NonZeroU16::new(9080).unwrap(), protocol: Protocol::Tcp, app_protocol: None };
    let mut record = ServiceRecord::new(key(name), vec![port]);
    record.exported_at = UnixMillis(1_700_000_000_000);
    LocalService::new(record, true, (0..endpoints).map(endpoint))
}

fn endpoint(number: u8) -> LocalEndpoint {
    LocalEndpoint {
        endpoint: Endpoint {
            id: EndpointId::parse(&format!("pod-{number}")).unwrap(),
            hostname: None,
            subset: Subset::from([("version".into(), "v1".into())]),
            zone: None,
            condition: EndpointCondition::READY,
            weight: 100,
            identity: None,
            tls: TlsMode::None,
        },
        address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, number)),
        service_account: None,
        target_ports: Pairs::new(),
    }
}

fn label(text: &str) -> ClusterName {
    Label::parse(text).unwrap()
}

fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}
