//! `kind: GatewayConfig` with mistakes.

use eastway_kubernetes::source::ExportMark;

use super::{Folder, MINIMAL};
use crate::config::load_settings;
use crate::config::settings::{ApiServerSettings, ReadSettings, RegistrySource};

fn errors(more: &str) -> String {
    Folder::new(&[("gateway.yaml", &format!("{MINIMAL}{more}"))]).errors()
}

macro_rules! refused {
    ($($name:ident: $more:expr;)*) => {$(
        #[test]
        fn $name() {
            insta::assert_snapshot!(errors($more));
        }
    )*};
}

refused! {
    idle_below_3_x_keep_alive: "link: {keepAlive: 2s, idleTimeout: 5s}\n";
    idle_that_no_peer_accepts: "link: {keepAlive: 100ms, idleTimeout: 1s}\n";
    idle_longer_than_a_link_may_be_silent: "link: {idleTimeout: 5m}\n";
    listeners_that_collide: "listen: {admin: '127.0.0.1:7', metrics: '127.0.0.1:7', health: '127.0.0.1:7', dns: ['0.0.0.0:15443']}\n";
    replicas_that_are_none: "replicas: {listen: '0.0.0.0:15443', siblings: ['10.0.0.5:15442', '10.0.0.5:15442', 'gw:15442', '0.0.0.0:15442', '10.0.0.6:0', 10.0.0.7], sibling: []}\n";
    replicas_beside_names: "listen: {dns: ['10.0.0.5:15442']}\nreplicas: {listen: '10.0.0.5:15442'}\n";
    admin_for_everybody: "listen: {admin: '0.0.0.0:15000'}\n";
    a_name_to_listen_at: "listen: {link: 'gw.onprem.example:15443'}\n";
    registries_that_collide: "registries: [{name: a, file: a.yaml}, {name: a, file: b.yaml}, {name: b, file: ./a.yaml}, {}]\n";
    api_servers_that_collide: "registries: [{name: a, kubernetes: {}}, {name: b, kubernetes: {exportMarks: [istio]}}, {name: c, file: a.yaml, kubernetes: {}}]\n";
    cluster_registries_with_mistakes: "registries: [{name: a, clusterRegistry: {folder: c, namespace: d}}, {name: b, clusterRegistry: {}}, {name: c, clusterRegistry: {namespace: eastway-system}}, {name: d, clusterRegistry: {folder: ./c}}, {name: d-eu, file: x.yaml}, {name: e, file: y.yaml, clusterRegistry: {folder: z}}, {name: f, clusterRegistry: {folder: c}}]\n";
    api_servers_with_mistakes: "registries: [{name: a, kubernetes: {context: prod, exportMarks: [istoi], subsetLabels: ['-'], kubeConfig: x}}, {name: b, kubernetes: {kubeconfig: ''}}]\n";
    zones_of_others: "dns: {zones: [clusterset.local, a.cluster.local, shop.example, eu.shop.example, 'a b']}\n";
    names_without_a_zone: "dns: {zones: [shop.example], names: [{name: reviews.other.example, service: bookinfo/reviews}, {name: a.shop.example, service: reviews}, {service: a/b}]}\n";
    a_name_twice: "dns: {zones: [shop.example], names: [{name: a.shop.example, service: a/b}, {name: A.shop.example., service: a/b}]}\n";
    ranges_that_are_none: "vip: {ranges: [242.0.0.1/16, 242.0.0.0/16, 242.0.1.0/24, 10.0.0.0, 0.0.0.0/8, 224.0.0.0/4, fd00::/200]}\n";
    a_context_of_no_kubeconfig: "kubernetes: {context: kind, namespace: A_b}\n";
    a_ca_at_no_port: "listen: {ca: '0.0.0.0', local: 'gateway:1'}\n";
    sidecars_without_a_port_to_ask_at: "sidecars: {gateway: '10.0.0.5:15008'}\n";
    sidecars_that_lead_nowhere: "listen: {local: '0.0.0.0:15012'}\nsidecars: {gatway: '10.0.0.5'}\n";
    names_to_listen_for_with_mistakes: "listen: {hbone: '0.0.0.0:15444', sni: [{cluster: b, address: '0.0.0.0:15444'}, {cluster: B, address: '0.0.0.0'}, {adress: '0.0.0.0:1'}]}\n";
    unknown_words: "log: {format: jsn, access: al, level: inof}\nauthorization: dry_run\n";
    connection_times_out_of_bounds: "limits: {connectionIdle: 0s, connectionHalfClosed: 169h}\n";
    numbers_out_of_bounds: "limits: {servicesPerPeer: 0, endpointsPerPeer: -1, streamsPerPeer: 1.5, dnsConnections: many, bufferBytes: 1MB}\n";
    a_small_buffer: "limits: {bufferBytes: 1KiB}\n";
    paths_that_are_none: "state: ''\npeers: [a]\npolicies: \"a\\0b\"\n";
    relays_with_mistakes: "relay: {allow: [{between: [a]}, {between: [onprem, b]}, {between: [c, c]}, {between: [c, d], streams: 0, bytesPerSecond: fast, bytesPerDay: 1B}, {between: [d, c]}, {betwen: [a, b]}]}\n";
    load_balancers_with_mistakes: "link: {quicLb: {serverId: xyz, configuration: 7, nonceLength: 3, keyFile: ''}}\n";
    a_load_balancer_that_reads_too_much: "link: {quicLb: {serverId: '0x0102030405060708', nonceLength: 12}}\n";
    nothing_at_all: "trust:\n";
    a_misspelt_section: "regestries: []\npolicy: ./policies\n";
}

#[test]
fn trust_with_mistakes() {
    let text = "trust: {domain: '', ca: 'tcp:1.2.3.4', leafTtl: 48h, crl: '', cacert: ./ca}";
    let config = MINIMAL.replace("trust: {domain: onprem.example}", text);
    insta::assert_snapshot!(Folder::new(&[("gateway.yaml", &config)]).errors());
}

#[test]
fn an_empty_mapping() {
    insta::assert_snapshot!(Folder::new(&[("gateway.yaml", "{}")]).errors());
}

#[test]
fn a_list_instead_of_a_mapping() {
    insta::assert_snapshot!(Folder::new(&[("gateway.yaml", "- a\n- b\n")]).errors());
}

#[test]
fn several_api_servers() {
    let text = format!(
        "{MINIMAL}registries: [{{name: cluster, kubernetes: {{}}}}, {{name: edge, kubernetes: {{kubeconfig: ./edge.yaml, \
         context: edge, exportMarks: [linkerd, istio, istio], subsetLabels: [track]}}}}]\n"
    );
    let folder = Folder::new(&[("gateway.yaml", &text)]);
    let loaded = super::load(&folder.path("gateway.yaml")).unwrap();
    let sources: Vec<_> = loaded.settings.registries.iter().map(|registry| registry.source.clone()).collect();
    let in_pod = ApiServerSettings {
        kubeconfig: None,
        context: None,
        read: ReadSettings {
            export_marks: Vec::new(),
            subset_labels: vec!["version".into(), "app.kubernetes.io/version".into()],
        },
    };
    let edge = ApiServerSettings {
        kubeconfig: Some(folder.path("edge.yaml")),
        context: Some("edge".to_owned()),
        read: ReadSettings {
            export_marks: vec![ExportMark::Istio, ExportMark::Linkerd],
            subset_labels: vec!["track".into()],
        },
    };
    assert_eq!(sources, [RegistrySource::Kubernetes(in_pod), RegistrySource::Kubernetes(edge)]);
}

#[test]
fn sidecars_find_the_port_where_it_is() {
    let at = |listen: &str| {
        let folder = Folder::new(&[("gateway.yaml", &format!("{MINIMAL}listen: {{{listen}}}\nsidecars: {{}}\n"))]);
        let loaded = load_settings(&folder.path("gateway.yaml"));
        loaded.map(|settings| settings.sidecars.unwrap().gateway.to_string())
    };
    let local = "local: '10.0.0.5:15012'";
    assert_eq!(at(&format!("{local}, hbone: '10.0.0.6:15008'")).unwrap(), "10.0.0.6:15008");
    assert_eq!(at(&format!("{local}, hbone: '0.0.0.0:15008'")).unwrap(), "10.0.0.5:15008");
    assert!(at(local).is_err() && at("local: '0.0.0.0:15012', hbone: '[::]:15008'").is_err());
}

#[test]
fn paths_begin_at_the_folder_of_the_file() {
    let text = format!(
        "{MINIMAL}state: ../state\nregistries: [{{name: a, file: ./a.yaml}}, {{name: b, file: /etc/b.yaml}}]\n"
    );
    let folder = Folder::new(&[("gateway.yaml", &text)]);
    let loaded = super::load(&folder.path("gateway.yaml")).unwrap();
    assert_eq!(loaded.settings.state, folder.path("../state"));
    let source = |index: usize| loaded.settings.registries[index].source.clone();
    assert_eq!(source(0), RegistrySource::File(folder.path("a.yaml")));
    assert_eq!(source(1), RegistrySource::File("/etc/b.yaml".into()));
    assert_eq!(loaded.settings.folder(), folder.path(""));
}

#[test]
fn workloads_with_mistakes() {
    let text = "trust:
  domain: onprem.example
  workloads:
  - {namespace: bookinfo, serviceAccount: reviews, socket: ./run/ca.sock}
  - {namespace: bookinfo, serviceAccount: details, socket: run/details.sock}
  - {namespace: bookinfo, serviceAccount: ratings, socket: ./run/details.sock, uid: -1}
  - {namespace: bookinfo, serviceAccount: ratings, socket: ./run/details.sock, uid: 4294967295}
  - {namespace: bookinfo, serviceAccount: ratings, socket: ./run/details.sock}
  - {namespace: eastway-system, serviceAccount: eastway-gateway, socket: a.sock}
  - {namespace: A/b, serviceAcount: reviews}
  - {namespace: bookinfo, serviceAccount: reviews, socket: 'LONG'}
";
    let text = text.replace("LONG", &format!("/{}", "a".repeat(107)));
    let config = MINIMAL.replace("trust: {domain: onprem.example}\n", &text);
    insta::assert_snapshot!(Folder::new(&[("gateway.yaml", &config)]).errors());
}

#[test]
fn workloads_have_identities_of_this_trust_domain() {
    let text = "trust:
  domain: onprem.example
  workloads: [{namespace: shop, serviceAccount: web, socket: ./run/web.sock, uid: 1000}]
";
    let folder = Folder::new(&[("gateway.yaml", &MINIMAL.replace("trust: {domain: onprem.example}\n", text))]);
    let settings = load_settings(&folder.path("gateway.yaml")).unwrap();
    let [workload] = settings.trust.workloads.as_slice() else { panic!("{:?}", settings.trust) };
    assert_eq!(workload.identity.as_str(), "spiffe://onprem.example/ns/shop/sa/web");
    assert_eq!((&workload.socket, workload.uid), (&folder.path("run/web.sock"), Some(1000)));
}
