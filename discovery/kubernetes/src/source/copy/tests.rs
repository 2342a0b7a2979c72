use std::time::Duration;

use eastway_model::{
    Endpoint, EndpointCondition, EndpointId, InternalTrafficPolicy, IpFamily, Label, LocalEndpoint, PortKey, PortName,
    PortNumber, Protocol, ServiceKey, ServiceKind, ServicePort, ServiceRecord, SessionAffinity, TlsMode, UnixMillis,
    WorkloadIdentity,
};

use super::*;

fn endpoint(last: u8) -> LocalEndpoint {
    LocalEndpoint {
        endpoint: Endpoint {
            id: EndpointId::parse(&format!("id-{last}")).unwrap(),
            hostname: Some(Label::parse("web-0").unwrap()),
            subset: [("version".into(), "v2".into())].into(),
            zone: Some("zone-a".into()),
            condition: EndpointCondition::DRAINING,
            weight: 7,
            identity: WorkloadIdentity::parse("spiffe://a.example/ns/shop/sa/web").filter(|_| last == 2),
            tls: if last == 2 { TlsMode::Istio } else { TlsMode::None },
        },
        address: [10, 244, 0, last].into(),
        service_account: Some(Label::parse("web").unwrap()),
        target_ports: [
            (PortNumber::new(80).unwrap().into(), 8080),
            (PortKey { number: PortNumber::new(53).unwrap(), protocol: Protocol::Udp }, 5353),
        ]
        .into(),
    }
}

fn contents() -> Contents {
    let port = |number, protocol, name: Option<&str>| ServicePort {
        name: name.map(|name| PortName::parse(name).unwrap()),
        number: PortNumber::new(number).unwrap(),
        protocol,
        app_protocol: name.map(Arc::from),
    };
    let ports = vec![port(80, Protocol::Tcp, Some("http")), port(53, Protocol::Udp, None)];
    let full = ServiceRecord {
        kind: ServiceKind::Headless,
        ip_families: vec![IpFamily::Ipv6, IpFamily::Ipv4],
        session_affinity: SessionAffinity::ClientIp { timeout: Duration::from_secs(9) },
        internal_traffic_policy: InternalTrafficPolicy::Local,
        traffic_distribution: Some("PreferClose".into()),
        labels: [("a".into(), "b".into())].into(),
        annotations: [("c".into(), "d\n".into())].into(),
        exported_at: UnixMillis(12),
        proxy_protocol: [PortNumber::new(80).unwrap()].into(),
        ..ServiceRecord::new(ServiceKey::parse("shop", "web").unwrap(), ports)
    };
    let bare = ServiceRecord::new(ServiceKey::parse("shop", "mail").unwrap(), Vec::new());
    let services = [LocalService::new(full, true, [endpoint(1), endpoint(2)]), LocalService::new(bare, false, [])];
    let account = |account: Option<&str>| account.map(|account| Label::parse(account).unwrap());
    let workload = |last, name| Workload {
        address: [10, 244, 0, last].into(),
        namespace: Label::parse("shop").unwrap(),
        service_account: account(name),
    };
    Contents { services: services.map(Arc::new).to_vec(), workloads: vec![workload(1, Some("web")), workload(9, None)] }
}

fn written(file: &Path, contents: &Contents) {
    let services = contents.services.iter().map(|service| LocalService::clone(service));
    write(file, &Access::InCluster, contents.workloads.iter().cloned(), services).unwrap();
}

#[test]
fn f16_what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("registries/cluster.copy");
    assert!(read(&file, &Access::InCluster).unwrap().is_none());
    written(&file, &contents());
    assert_eq!(read(&file, &Access::InCluster).unwrap(), Some(contents()));
    let other = Access::Kubeconfig { path: "other".into(), context: None };
    assert!(matches!(read(&file, &other), Err(CopyError::Header)), "of another server");
    written(&file, &Contents::default());
    assert_eq!(
        read(&file, &Access::InCluster).unwrap(),
        Some(Contents::default()),
        "a cluster without anything is one too"
    );
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn f20_a_torn_copy_is_refused_at_every_length() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cluster.copy");
    written(&file, &contents());
    let text = fs::read_to_string(&file).unwrap();
    for length in 0..text.len() {
        assert!(parse(&text[..length], &Access::InCluster).is_err(), "{length}");
    }
    assert!(matches!(parse(&text.replace("10.244.0.1", "10.244.0.7"), &Access::InCluster), Err(CopyError::Checksum)));
    let body = format!("{}{{\"service\": 7}}\n", header(&Access::InCluster));
    let forged = format!("{body}{CHECKSUM}{}\n", hex(&Sha256::digest(&body)));
    assert!(matches!(parse(&forged, &Access::InCluster), Err(CopyError::Line(2))));
}
