//! Serves made-up services, for measurements: `serve 127.0.0.1:15053 10000` answers for
//! `svc-<i>.ns-<i mod 100>.svc.clusterset.local` with `242.<i / 65536>.<i / 256 mod 256>.<i mod 256>`.
#![allow(clippy::print_stdout, reason = "it says where it serves")]

use std::error::Error;
use std::net::{IpAddr, SocketAddr};

use eastway_dns::{DnsConfig, Limits, PortEntry, Protocol, Readiness, Server, ServiceEntry, ServiceKind, ZoneStore};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let listen: SocketAddr = arguments.next().ok_or("where to listen?")?.parse()?;
    let count: u32 = arguments.next().ok_or("how many services?")?.parse()?;

    let store = ZoneStore::new([])?;
    let services: Vec<_> = (0..count).map(service).collect();
    store.replace_all(&services, &[])?;
    store.set_readiness(Readiness::complete());
    let server = Server::bind(&DnsConfig { listen: vec![listen], limits: Limits::default() }, store)?;
    println!("{}", server.local_addrs().first().ok_or("nowhere to listen")?);

    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.run(stop.clone()));
    tokio::signal::ctrl_c().await?;
    stop.cancel();
    Ok(serving.await?)
}

fn service(index: u32) -> ServiceEntry {
    let [_, b, c, d] = index.to_be_bytes();
    ServiceEntry {
        namespace: format!("ns-{}", index % 100),
        name: format!("svc-{index}"),
        kind: ServiceKind::ClusterSet { addresses: vec![IpAddr::from([242, b, c, d])] },
        ports: vec![PortEntry { name: Some("http".into()), protocol: Protocol::Tcp, port: 80 }],
    }
}
