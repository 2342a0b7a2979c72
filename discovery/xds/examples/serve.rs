//! Serves the sidecars of a made-up cluster, for measurements (`bench/xds/run`).
//!
//! `serve LISTEN SERVICES ENDPOINTS` prints `ready` and, for each line that it reads, lets one endpoint of one service
//! change. `serve dump FILE STEPS SERVICES ENDPOINTS` writes what a client is told at first, and after each change, as
//! `Resource` messages that are preceded by their length; a message without a name ends the first part.
#![allow(clippy::print_stdout, reason = "it says that it serves")]

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eastway_model::rules::{NameFilter, PeerRules, Rules};
use eastway_model::store::Writer;
use eastway_model::{
    Change, Endpoint, EndpointCondition, EndpointId, Label, PeerChange, PeerState, PortName, Protocol, ServiceKey,
    ServicePort, ServiceRecord, TlsMode, UnixMillis,
};
use eastway_proto::xds::discovery as wire;
use eastway_xds::node::Workload;
use eastway_xds::resources::{Addresses, GatewayAddress, Generator, Settings};
use eastway_xds::server::{Caller, Cut, Limits, Observer, Server};
use eastway_xds::{Kind, View};
use prost::Message as _;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

type Outcome<T> = Result<T, Box<dyn Error>>;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const PORT: u16 = 9080;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| -> Outcome<u32> { Ok(arguments.get(at).ok_or("too few arguments")?.parse()?) };
    if arguments.first().is_some_and(|first| first == "dump") {
        let file = arguments.get(1).ok_or("which file?")?;
        return dump(file, number(2)?, World::new(number(3)?, number(4)?)?);
    }
    let listen = arguments.first().ok_or("where to listen?")?.clone();
    let world = World::new(number(1)?, number(2)?)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(&listen, world))
}

async fn serve(listen: &str, mut world: World) -> Outcome<()> {
    let listener = TcpListener::bind(listen).await?;
    let (views, latest) = watch::channel(Some(world.view()));
    let workload = Workload { namespace: Label::parse("bench")?, service_account: Label::parse("client")? };
    let admit = move |_: &tonic::Extensions| {
        Ok(Caller {
            address: "a client".to_owned(),
            identity: "spiffe://a.example/ns/bench/sa/client".into(),
            workload: workload.clone(),
            serial: "1".into(),
            not_after: SystemTime::now() + Duration::from_secs(86_400),
        })
    };
    let server = Server::new(latest, Arc::new(admit), Arc::new(Silent), Limits::default(), 1, CancellationToken::new());
    let router = tonic::transport::Server::builder().add_service(server.into_service());
    let serving = tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    println!("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while lines.next_line().await?.is_some() {
        world.step()?;
        views.send_replace(Some(world.view()));
    }
    serving.abort();
    Ok(())
}

fn dump(file: &str, steps: u32, mut world: World) -> Outcome<()> {
    let mut out = std::io::BufWriter::new(std::fs::File::create(file)?);
    let mut put = |bytes: &[u8]| -> Outcome<()> {
        let mut length = Vec::new();
        prost::encode_length_delimiter(bytes.len(), &mut length)?;
        out.write_all(&length)?;
        Ok(out.write_all(bytes)?)
    };
    let first = world.view();
    for kind in Kind::ALL {
        for resource in first.all(kind) {
            put(resource.delta())?;
        }
    }
    put(&wire::Resource::default().encode_to_vec())?;
    let mut seen = first;
    for _ in 0..steps {
        world.step()?;
        let view = world.view();
        for (kind, name) in view.changes_since(&seen).ok_or("a step is too large")? {
            put(view.get(kind, &name).ok_or("nothing goes")?.delta())?;
        }
        seen = view;
    }
    Ok(out.flush()?)
}

/// A store with the exports of one peer.
struct World {
    writer: Writer,
    generator: Generator,
    addresses: Addresses,
    services: u32,
    endpoints: u32,
    turn: u32,
}

impl World {
    fn new(services: u32, endpoints: u32) -> Outcome<Self> {
        let (mut writer, _) = Writer::new(Label::parse("a")?);
        let peer = PeerRules::new(Label::parse("b")?, "b.example", NOW);
        let peer = PeerRules { import: NameFilter::everything(), ..peer };
        writer.set_rules(Arc::new(Rules { peers: [(Label::parse("b")?, Arc::new(peer))].into(), ..Rules::default() }));
        let settings = Settings {
            gateway: GatewayAddress { host: "10.0.0.5".to_owned(), port: 15008 },
            gateway_identity: "spiffe://a.example/ns/eastway-system/sa/eastway-gateway".to_owned(),
            trust_domain: "a.example".to_owned(),
            endpoints_per_service: usize::MAX,
        };
        let generator = Generator::new(&settings);
        let mut world = Self { writer, generator, addresses: BTreeMap::new(), services, endpoints, turn: 0 };
        world.apply(PeerChange::State(PeerState::Up))?;
        for number in 0..services {
            let key = key(number)?;
            let port = ServicePort {
                name: PortName::parse("http").ok(),
                number: NonZeroU16::new(PORT).ok_or("no port")?,
                protocol: Protocol::Tcp,
                app_protocol: None,
            };
            world.apply(PeerChange::Upsert(Arc::new(ServiceRecord::new(key.clone(), vec![port]))))?;
            let upsert = (0..endpoints).map(|number| endpoint(number, true)).collect::<Outcome<_>>()?;
            world.apply(PeerChange::Endpoints { service: key.clone(), upsert, remove: Vec::new() })?;
            world.addresses.insert(key, vec![IpAddr::V4(Ipv4Addr::from_bits(0xf200_0000 + number))]);
        }
        Ok(world)
    }

    fn apply(&mut self, change: PeerChange) -> Outcome<()> {
        self.writer.apply([Change::Peer { cluster: Label::parse("b")?, change }], NOW);
        Ok(())
    }

    /// One endpoint of the next service goes, and comes again when it is its turn once more.
    fn step(&mut self) -> Outcome<()> {
        let (number, round) = (self.turn % self.services, self.turn / self.services);
        self.turn += 1;
        let upsert = vec![endpoint(round / 2 % self.endpoints, round % 2 == 1)?];
        self.apply(PeerChange::Endpoints { service: key(number)?, upsert, remove: Vec::new() })
    }

    fn view(&mut self) -> Arc<View> {
        self.generator.update(self.writer.snapshot(), &self.addresses)
    }
}

fn key(number: u32) -> Outcome<ServiceKey> {
    Ok(format!("ns-{}/svc-{number}", number % 20).parse()?)
}

fn endpoint(number: u32, ready: bool) -> Outcome<Endpoint> {
    Ok(Endpoint {
        id: EndpointId::parse(&format!("svc-v1-7f8b6c9d5-{number:05}")).ok_or("no id")?,
        hostname: None,
        subset: [(Arc::from("version"), Arc::from("v1"))].into_iter().collect(),
        zone: Some(Arc::from(if number.is_multiple_of(2) { "a" } else { "b" })),
        condition: if ready { EndpointCondition::READY } else { EndpointCondition::DOWN },
        weight: 100,
        identity: None,
        tls: TlsMode::None,
    })
}

/// Counts nothing.
struct Silent;

impl Observer for Silent {
    fn connected(&self, _clients: usize) {}
    fn pushed(&self, _kind: Kind) {}
    fn refused(&self, _client: &str, _kind: Kind, _reason: &str) {}
    fn cut(&self, _client: &str, _why: &Cut) {}
}
