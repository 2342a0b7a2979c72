//! Our DNS behind a real CoreDNS that forwards its stub domains to it, and beside one that answers
//! for the same services itself.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a panic is a verdict")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use eastway_dns::client::{self, Answer, RecordData};
use eastway_dns::{
    DnsConfig, Fqdn, HeadlessEndpoint, Limits, NameEntry, PendingPeer, PortEntry, Protocol, Readiness, Server,
    ServiceEntry, ServiceKind, Transport, ZoneStore,
};
use eastway_tests::coredns::CoreDns;
use eastway_tests::coredns::api::KubeApi;
use eastway_tests::within;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Ours, serving on loopback until it is dropped.
struct Ours {
    address: SocketAddr,
    store: Arc<ZoneStore>,
    _stop: DropGuard,
}

impl Ours {
    fn start() -> Result<Self> {
        let store = ZoneStore::new([Fqdn::parse("shop.example")?])?;
        for service in services() {
            store.upsert_service(&service)?;
        }
        store.upsert_name(&NameEntry {
            fqdn: Fqdn::parse("reviews.shop.example")?,
            addresses: vec!["242.0.0.9".parse()?],
            ports: vec![port(Some("http"), Protocol::Tcp, 9080)],
            service: None,
        })?;
        store.set_readiness(Readiness::complete());
        let config = DnsConfig { listen: vec!["127.0.0.1:0".parse()?], limits: Limits::default() };
        let server = Server::bind(&config, store.clone())?;
        let (address, stop) = (server.local_addrs()[0], CancellationToken::new());
        tokio::spawn(server.run(stop.clone()));
        Ok(Self { address, store, _stop: stop.drop_guard() })
    }

    async fn ask(&self, name: &str, qtype: &str) -> Result<Answer> {
        Ok(client::query(self.address, name, qtype.parse()?, Duration::from_secs(5)).await?)
    }

    /// A CoreDNS with stub domains as a cluster's would have them.
    async fn behind_coredns(&self, more: &str) -> Result<CoreDns> {
        let ours = self.address;
        CoreDns::start(|port| {
            format!(
                "clusterset.local:{port} shop.example:{port} {{\n bind 127.0.0.1\n errors\n {more}\n forward . {ours}\n}}\n\
                 .:{port} {{\n bind 127.0.0.1\n template ANY ANY {{\n  rcode NXDOMAIN\n }}\n}}\n"
            )
        })
        .await
    }
}

fn port(name: Option<&str>, protocol: Protocol, port: u16) -> PortEntry {
    PortEntry { name: name.map(Into::into), protocol, port }
}

fn service(name: &str, addresses: &[&str], ports: Vec<PortEntry>) -> ServiceEntry {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    ServiceEntry { namespace: "demo".into(), name: name.into(), kind: ServiceKind::ClusterSet { addresses }, ports }
}

fn headless(name: &str, endpoints: Vec<(Option<String>, &str, Vec<String>)>) -> ServiceEntry {
    let endpoints = endpoints
        .into_iter()
        .map(|(hostname, cluster, addresses)| HeadlessEndpoint {
            hostname,
            cluster: cluster.into(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        })
        .collect();
    let ports = vec![port(Some("sql"), Protocol::Tcp, 5432)];
    ServiceEntry { namespace: "demo".into(), name: name.into(), kind: ServiceKind::Headless { endpoints }, ports }
}

fn services() -> Vec<ServiceEntry> {
    let http = || port(Some("http"), Protocol::Tcp, 80);
    let pod = |i: u8| (Some(format!("pod-{i}")), "c-a", vec![format!("10.0.1.{i}")]);
    vec![
        service("web", &["242.0.0.1"], vec![http(), port(Some("http3"), Protocol::Udp, 80)]),
        service("dual", &["242.0.0.2", "fd65:6173:7477::2"], vec![http()]),
        service(
            "three",
            &["242.0.0.3"],
            vec![http(), port(Some("a"), Protocol::Tcp, 81), port(Some("b"), Protocol::Udp, 82)],
        ),
        service("unnamed", &["242.0.0.4"], vec![port(None, Protocol::Tcp, 80)]),
        service("pending", &[], vec![http()]),
        headless(
            "db",
            vec![
                (Some("web-0".into()), "c-a", vec!["10.0.0.1".into()]),
                (Some("web-0".into()), "c-b", vec!["10.0.0.2".into(), "fd00::2".into()]),
                (None, "c-b", vec!["10.0.0.3".into()]),
                (None, "c-b", vec!["fd00::4".into()]),
            ],
        ),
        headless("big", (0..200).map(pod).collect()),
        headless("nobody", Vec::new()),
    ]
}

/// An answer in one line, its records sorted.
fn line(answer: &Answer) -> String {
    let mut parts = vec![answer.rcode.clone()];
    for (mark, section) in [("", &answer.records), ("+", &answer.additional)] {
        let mut lines: Vec<_> = section.iter().map(|record| format!("{mark}{} {}", record.name, record.data)).collect();
        lines.sort();
        parts.extend(lines);
    }
    if answer.authority.iter().any(|record| matches!(record.data, RecordData::Soa { .. })) {
        parts.push("SOA".into());
    }
    parts.join("; ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stub_domains_forwarded_by_coredns_are_answered() -> Result<()> {
    let ours = Ours::start()?;
    let coredns = ours.behind_coredns("").await?;
    for (name, qtype, expected) in [
        ("web.demo.svc.clusterset.local", "A", "NOERROR; web.demo.svc.clusterset.local. A 242.0.0.1"),
        ("wEb.DEMO.svc.clusterset.local", "A", "NOERROR; wEb.DEMO.svc.clusterset.local. A 242.0.0.1"),
        ("web.demo.svc.clusterset.local", "AAAA", "NOERROR; SOA"),
        ("web.demo.svc.clusterset.local", "MX", "NOERROR; SOA"),
        ("dual.demo.svc.clusterset.local", "AAAA", "NOERROR; dual.demo.svc.clusterset.local. AAAA fd65:6173:7477::2"),
        (
            "_http._tcp.web.demo.svc.clusterset.local",
            "SRV",
            "NOERROR; _http._tcp.web.demo.svc.clusterset.local. SRV 0 100 80 web.demo.svc.clusterset.local.; \
             +web.demo.svc.clusterset.local. A 242.0.0.1",
        ),
        ("dns-version.clusterset.local", "TXT", "NOERROR; dns-version.clusterset.local. TXT \"1.1.0\""),
        ("none.demo.svc.clusterset.local", "A", "NXDOMAIN; SOA"),
        ("www.example.com.clusterset.local", "A", "NXDOMAIN; SOA"),
        ("reviews.shop.example", "A", "NOERROR; reviews.shop.example. A 242.0.0.9"),
        ("none.shop.example", "A", "NXDOMAIN; SOA"),
        ("clusterset.local", "AXFR", "REFUSED"),
    ] {
        let begin = Instant::now();
        assert_eq!(line(&coredns.ask(name, qtype).await?), expected, "{name} {qtype}");
        assert!(begin.elapsed() < Duration::from_secs(1), "{name} {qtype} stalled");
    }
    let large = coredns.ask("big.demo.svc.clusterset.local", "A").await?;
    assert_eq!((large.transport, large.records.len()), (Transport::Tcp, 200), "cut over UDP, whole over TCP");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_coredns_passes_on_that_we_are_not_ready_and_nothing_stalls() -> Result<()> {
    let ours = Ours::start()?;
    let coredns = ours.behind_coredns("").await?;
    ours.store.set_readiness(Readiness::default());
    assert_eq!(coredns.ask("web.demo.svc.clusterset.local", "A").await?.rcode, "SERVFAIL");
    assert_eq!(coredns.ask("www.example.com.clusterset.local", "A").await?.rcode, "NXDOMAIN");
    ours.store.set_readiness(Readiness {
        local_synced: true,
        pending: vec![PendingPeer {
            peer: Arc::from("gke"),
            since: Instant::now(),
            owns: Arc::new(|namespace, _| namespace == "books"),
        }],
    });
    for (name, rcode) in [
        ("any.books.svc.clusterset.local", "SERVFAIL"),
        ("web.demo.svc.clusterset.local", "NOERROR"),
        ("none.demo.svc.clusterset.local", "NXDOMAIN"),
        ("reviews.shop.example", "NOERROR"),
    ] {
        let begin = Instant::now();
        assert_eq!(coredns.ask(name, "A").await?.rcode, rcode, "{name}");
        assert!(begin.elapsed() < Duration::from_secs(1), "{name} stalled behind a dead peer");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_the_cache_of_coredns_changes_are_seen_in_our_time_to_live() -> Result<()> {
    let ours = Ours::start()?;
    let coredns = ours.behind_coredns("cache {\n  success 9984 30\n  denial 9984 30 1\n }").await?;
    // CoreDNS keeps denials for at least 5 s unless it is told not to, as here.
    let addresses = |answer: Answer| answer.addresses().map(|address| address.to_string()).collect::<Vec<_>>();
    assert_eq!(addresses(coredns.ask("web.demo.svc.clusterset.local", "A").await?), ["242.0.0.1"]);
    assert_eq!(coredns.ask("new.demo.svc.clusterset.local", "A").await?.rcode, "NXDOMAIN");
    ours.store.upsert_service(&service("web", &["242.0.0.77"], Vec::new()))?;
    ours.store.upsert_service(&service("new", &["242.0.0.78"], Vec::new()))?;
    let coredns = &coredns;
    let denied = within(Duration::from_secs(4), "the denial is forgotten", || async move {
        Ok(addresses(coredns.ask("new.demo.svc.clusterset.local", "A").await?) == ["242.0.0.78"])
    });
    denied.await?;
    let kept = within(Duration::from_secs(8), "the old address is forgotten", || async move {
        Ok(addresses(coredns.ask("web.demo.svc.clusterset.local", "A").await?) == ["242.0.0.77"])
    });
    kept.await?;
    Ok(())
}

/// Why we do not say what CoreDNS says, where that is on purpose.
fn reason(name: &str, qtype: &str, theirs: &str, ours: &str) -> Option<&'static str> {
    let is_empty_name = ["_tcp.", "_udp.", "dns.", "dns-version."].iter().any(|prefix| name.starts_with(prefix));
    let is_port = name.starts_with('_') && name.split('.').nth(1).is_some_and(|label| label.starts_with('_'));
    match (theirs, ours) {
        ("NXDOMAIN; SOA", "NOERROR; SOA") if is_empty_name || qtype == "TXT" => {
            Some("a name that exists is not denied, whatever type is asked for (RFC 2308, RFC 8020)")
        }
        (_, "NOERROR; SOA") if is_port && matches!(qtype, "A" | "AAAA") => {
            Some("a port's name has SRV records only (specification 2.3.2, 2.4.2)")
        }
        (_, "NOERROR; SOA") if name.starts_with("unnamed.") && qtype == "SRV" => {
            Some("an unnamed port has no SRV record (specification 2.3.2)")
        }
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_services_are_answered_as_coredns_answers_them() -> Result<()> {
    let ours = Ours::start()?;
    let api = KubeApi::start(&services()).await?;
    let coredns = CoreDns::start(|port| {
        format!(
            ".:{port} {{\n bind 127.0.0.1\n errors\n kubernetes cluster.local clusterset.local {{\n  \
             endpoint http://{}\n  multicluster clusterset.local\n }}\n}}\n",
            api.address
        )
    })
    .await?;
    within(Duration::from_secs(10), "CoreDNS has read the services", || async {
        Ok(coredns.ask("web.demo.svc.clusterset.local", "A").await?.rcode == "NOERROR")
    })
    .await?;

    let below = |names: &[&str]| names.iter().map(|name| format!("{name}.clusterset.local")).collect::<Vec<_>>();
    let mut names = below(&["dns-version", "svc", "demo.svc", "other.svc", "dns", "www.example.com", "x.dns-version"]);
    names.push("clusterset.local".into());
    for service in ["web", "dual", "three", "unnamed", "pending", "db", "nobody", "none"] {
        for prefix in [
            "",
            "_http._tcp.",
            "_http._udp.",
            "_http3._udp.",
            "_a._tcp.",
            "_sql._tcp.",
            "_none._tcp.",
            "c-a.",
            "c-b.",
            "web-0.c-a.",
            "web-0.c-b.",
            "web-0.c-c.",
            "10-0-0-3.c-b.",
            "fd00--4.c-b.",
            "a.b.c.",
            "_tcp.",
        ] {
            names.push(format!("{prefix}{service}.demo.svc.clusterset.local"));
        }
    }
    let mut wrong = String::new();
    let (mut asked, mut on_purpose) = (0, 0);
    for name in &names {
        for qtype in ["A", "AAAA", "SRV", "TXT", "MX"] {
            let (theirs, own) = (coredns.ask(name, qtype).await?, ours.ask(name, qtype).await?);
            asked += 1;
            let (theirs, own) = (line(&theirs), line(&own));
            if theirs == own {
                continue;
            }
            if reason(name, qtype, &theirs, &own).is_some() {
                on_purpose += 1;
            } else {
                wrong += &format!("{name} {qtype}\n  CoreDNS {theirs}\n  ours    {own}\n");
            }
        }
    }
    assert!(asked > 600 && on_purpose < asked / 10, "{asked} asked, {on_purpose} different on purpose");
    assert!(wrong.is_empty(), "{wrong}");
    Ok(())
}
