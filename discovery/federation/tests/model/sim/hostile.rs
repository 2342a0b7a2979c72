//! A peer whose gateways have been taken over: its certificate is good, its messages are not.

use bytes::Bytes;
use eastway_federation::codec::encode;
use eastway_federation::convert::{EncodedService, key_to_wire};
use eastway_model::{EndpointGroup, ServiceKey, ServiceRecord, TlsMode, WorkloadIdentity};
use eastway_proto::federation::v1 as wire;
use eastway_proto::federation::v1::exporter_message::Body as FromExporter;
use eastway_proto::federation::v1::importer_message::Body as FromImporter;

use super::conn::Direction;
use super::hits::Kind;
use super::truth::port;
use super::world::{Check, World};

impl World {
    /// Something hostile on one of the hostile cluster's streams.
    pub(super) fn hostile_event(&mut self) -> Check {
        let Some(hostile) = self.hostile else { return Ok(()) };
        if self.rng.u8(..4) == 0 {
            self.hostile_importer(hostile);
            return Ok(());
        }
        let streams = self.conns_where(|conn| conn.exporter.0 == hostile && !conn.superseded);
        let Some(id) = self.rng.choice(&streams).copied() else { return Ok(()) };
        let frames = match self.rng.u8(..5) {
            0 => self.garbage(),
            1 => self.forbidden(id),
            2 => self.replay(id),
            3 => self.wrong_name(),
            _ => self.flood(id),
        };
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.tampered = true;
        }
        for frame in frames {
            self.transmit(id, Direction::ToImporter, frame);
        }
        Ok(())
    }

    fn garbage(&mut self) -> Vec<Bytes> {
        self.hits.hit(Kind::HostileGarbage);
        let mut frame = vec![0_u8; self.rng.usize(1..200)];
        self.rng.fill(&mut frame);
        if self.rng.bool() {
            let length = u32::try_from(frame.len()).unwrap();
            frame.splice(0..0, length.to_be_bytes());
        }
        vec![frame.into()]
    }

    fn forbidden(&mut self, id: u64) -> Vec<Bytes> {
        self.hits.hit(Kind::HostileForbidden);
        let Some(conn) = self.conns.get(&id) else { return Vec::new() };
        let sequence = conn.sequence + 1;
        let victim = format!("c{}", conn.importer.0);
        let mut services = Vec::new();
        for (namespace, name) in [("kube-system", "x"), ("istio-system", "y"), ("other", "z"), ("shop", "s1")] {
            let mut record = ServiceRecord::new(ServiceKey::parse(namespace, name).unwrap(), vec![port("http", 80)]);
            // An identity of the victim's own trust domain.
            record.groups.push(EndpointGroup {
                zone: None,
                subset: eastway_model::Subset::new(),
                ready: 1,
                draining: 0,
                weight: 100,
                identities: WorkloadIdentity::parse(&format!("spiffe://{victim}.example/ns/a/sa/b"))
                    .into_iter()
                    .collect(),
                tls: TlsMode::Mesh,
            });
            services.push(EncodedService::new(&record).into_wire());
        }
        services.push(wire::ServiceState { service: Bytes::from_static(&[0xff; 20]), counts: Vec::new() });
        let name = Some(key_to_wire(&ServiceKey::parse("shop", "s2").unwrap()));
        let count = wire::GroupCount { ready: 1 << 63, draining: 0, weight: u64::MAX };
        let update = wire::Update {
            sequence,
            services,
            removed: vec![wire::ServiceName { namespace: "../..".to_owned(), name: "\u{1b}[2J".to_owned() }],
            counts: vec![wire::CountsUpdate {
                service: name.clone(),
                changed: vec![wire::IndexedCount { group: self.rng.u32(..3), count: Some(count) }],
            }],
            endpoints: vec![wire::EndpointsUpdate {
                service: name,
                upserts: vec![Bytes::from_static(b"\x0a\x0810.0.0.1")],
                ..Default::default()
            }],
        };
        vec![frame(FromExporter::Update(update))]
    }

    fn replay(&mut self, id: u64) -> Vec<Bytes> {
        self.hits.hit(Kind::HostileReplay);
        let recorded = self.conns.get(&id).map(|conn| conn.recorded.clone()).unwrap_or_default();
        self.rng.choice(recorded).into_iter().collect()
    }

    fn wrong_name(&mut self) -> Vec<Bytes> {
        self.hits.hit(Kind::HostileName);
        let cluster = format!("c{}", self.rng.usize(..self.clusters.len()));
        vec![frame(FromExporter::Open(wire::ExportOpen { version: 1, epoch: self.rng.u64(..), cluster }))]
    }

    /// Out of sequence, half snapshots, more than the window.
    fn flood(&mut self, id: u64) -> Vec<Bytes> {
        self.hits.hit(Kind::HostileFlood);
        let Some(conn) = self.conns.get(&id) else { return Vec::new() };
        let mut sequence = conn.sequence;
        match self.rng.u8(..3) {
            0 => {
                let update = wire::Update { sequence: self.rng.u64(..), ..Default::default() };
                vec![frame(FromExporter::Update(update))]
            }
            1 => {
                let begin = wire::SnapshotBegin { sequence: sequence + 1, buckets: u64::MAX };
                vec![frame(FromExporter::Begin(begin))]
            }
            _ => {
                let mut next = || {
                    sequence += 1;
                    frame(FromExporter::Update(wire::Update { sequence, ..Default::default() }))
                };
                (0..40).map(|_| next()).collect()
            }
        }
    }

    /// The hostile cluster as an importer: it wants what is not for it, and the exporter's time.
    fn hostile_importer(&mut self, hostile: usize) {
        let streams = self.conns_where(|conn| conn.importer.0 == hostile && !conn.superseded);
        let Some(id) = self.rng.choice(&streams).copied() else { return };
        self.hits.hit(Kind::HostileImporter);
        let service = |namespace, name| Some(key_to_wire(&ServiceKey::parse(namespace, name).unwrap()));
        let subscription = |service| wire::Subscription { service, ..Default::default() };
        let wanted =
            vec![subscription(service("kube-system", "api")), subscription(service("lab", "s0")), subscription(None)];
        let bodies = match self.rng.u8(..5) {
            0 => vec![FromImporter::Ack(wire::Ack { sequence: self.rng.u64(..) })],
            1 => vec![FromImporter::Resync(wire::Resync::default()); 20],
            2 => vec![FromImporter::Subscribe(wire::Subscribe { services: wanted })],
            3 => vec![FromImporter::Unsubscribe(wire::Unsubscribe {
                services: service("shop", "s0").into_iter().collect(),
            })],
            _ => vec![FromImporter::Open(wire::ImportOpen::default())],
        };
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.tampered = true;
        }
        for body in bodies {
            let bytes = encode(&wire::ImporterMessage { body: Some(body) }).unwrap();
            self.transmit(id, Direction::ToExporter, bytes);
        }
        self.log(|| format!("conn {id}: hostile importer"));
    }
}

fn frame(body: FromExporter) -> Bytes {
    encode(&wire::ExporterMessage { body: Some(body) }).unwrap()
}
