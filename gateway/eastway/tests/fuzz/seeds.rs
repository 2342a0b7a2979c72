//! What the corpora begin with: real encodings, and inputs that a hostile hand would write.

#[path = "links.rs"]
mod links;

use std::path::Path;

use eastway_identity::certificates_from_pem;
use eastway_proto::federation::v1 as wire;
use eastway_proto::federation::v1::exporter_message::Body as FromExporter;
use eastway_proto::federation::v1::importer_message::Body as FromImporter;
use eastway_tunnel::ReplicaId;
use eastway_tunnel::replicas::envelope::{Beat, BeatState, Direction, Flow, MAX_ENVELOPE, header};
use prost::Message;

/// Target, name, bytes.
pub(crate) type Seed = (&'static str, String, Vec<u8>);

pub(crate) fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    exporters(&mut seeds);
    importers(&mut seeds);
    images(&mut seeds);
    texts(&mut seeds);
    identities(&mut seeds);
    authorities(&mut seeds);
    client_hellos(&mut seeds);
    envelopes(&mut seeds);
    xds_requests(&mut seeds);
    links::all(&mut seeds);
    seeds
}

fn envelopes(seeds: &mut Vec<Seed>) {
    let (one, two) = (ReplicaId([1; 16]), ReplicaId([2; 16]));
    let signed = |beat: Beat| [beat.encode(), vec![7; 32]].concat();
    let beat = Beat { state: BeatState::Live, sender: one, stamp: 1_000, echo: Some((two, 2_000)) };
    let flow = |client: &str, local: Option<&str>| {
        let mut bytes = Vec::new();
        Flow { client: client.parse().unwrap(), local: local.map(|ip| ip.parse().unwrap()) }.encode(2, &mut bytes);
        [bytes, b"a packet of a link".to_vec()].concat()
    };
    let sealed = |direction| [header(direction, one.short(), 9).to_vec(), vec![5; 80]].concat();
    let mut version = sealed(Direction::ToOwner);
    version[0] = 2;
    let all = [
        ("beat", signed(beat)),
        ("first_beat", signed(Beat { echo: None, ..beat })),
        ("last_beat", signed(Beat { state: BeatState::Gone, ..beat })),
        ("packet", sealed(Direction::ToOwner)),
        ("answer", sealed(Direction::ToClient)),
        ("version_2", version),
        ("oversized", vec![1; MAX_ENVELOPE + 1]),
        ("flow_v4", flow("192.0.2.1:50000", Some("10.0.0.5"))),
        ("flow_v6", flow("[2001:db8::1]:1", None)),
        ("empty", Vec::new()),
    ];
    seeds.extend(all.map(|(name, bytes)| ("replica_envelope", name.to_owned(), bytes)));
}

fn xds_requests(seeds: &mut Vec<Seed>) {
    use eastway_proto::xds::discovery as xds;
    let url = |kind: &str| format!("type.googleapis.com/envoy.config.{kind}");
    let (clusters, endpoints) = (url("cluster.v3.Cluster"), url("endpoint.v3.ClusterLoadAssignment"));
    let node = xds::Node { id: "sidecar~web-1.shop".into(), cluster: "web.shop".into(), ..xds::Node::default() };
    let node: bytes::Bytes = node.encode_to_vec().into();
    let refusal = || Some(xds::ErrorDetail { code: 13, message: "no".into() });
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let delta = |kind: &str, subscribe: &[&str], unsubscribe: &[&str], nonce: &str| xds::DeltaDiscoveryRequest {
        node: node.clone(),
        type_url: kind.to_owned(),
        resource_names_subscribe: names(subscribe),
        resource_names_unsubscribe: names(unsubscribe),
        initial_resource_versions: [("a".to_owned(), "1".to_owned()), ("z".to_owned(), String::new())].into(),
        response_nonce: nonce.to_owned(),
        error_detail: if nonce == "s.2" { refusal() } else { None },
    };
    let world = |kind: &str, wanted: &[&str], nonce: &str| xds::DiscoveryRequest {
        version_info: "1".to_owned(),
        node: node.clone(),
        resource_names: names(wanted),
        type_url: kind.to_owned(),
        response_nonce: nonce.to_owned(),
        error_detail: if nonce == "s.2" { refusal() } else { None },
    };
    let stream = |form: u8, requests: &[Vec<u8>]| [&[form][..], &requests.concat()].concat();
    let deltas = [
        delta(&clusters, &[], &[], ""),
        delta(&endpoints, &["a", "b"], &[], "s.1"),
        delta(&clusters, &["*", "a"], &["b", "*"], "s.2"),
        delta(&endpoints, &["a"], &["a"], "x.1"),
    ];
    let worlds = [
        world(&clusters, &[], ""),
        world(&endpoints, &["a"], ""),
        world(&clusters, &["*", "q"], "s.1"),
        world(&endpoints, &[], "s.2"),
    ];
    let deltas = stream(0, &deltas.map(|request| request.encode_length_delimited_to_vec()));
    let worlds = stream(1, &worlds.map(|request| request.encode_length_delimited_to_vec()));
    let unknown = stream(0, &[delta("type.googleapis.com/x", &[], &[], "").encode_length_delimited_to_vec()]);
    let stranger = xds::Node { id: "sidecar~x.bank".into(), cluster: "x.bank".into(), ..xds::Node::default() };
    let stranger = xds::DiscoveryRequest { node: stranger.encode_to_vec().into(), ..world(&clusters, &[], "") };
    let stranger = stream(1, &[stranger.encode_length_delimited_to_vec()]);
    let unreadable = xds::DeltaDiscoveryRequest { node: vec![0xff; 9].into(), ..delta(&endpoints, &["a"], &[], "") };
    let unreadable = stream(0, &[unreadable.encode_length_delimited_to_vec()]);
    let mut cut = deltas.clone();
    cut.truncate(deltas.len() / 2);
    let all = [
        ("delta", deltas),
        ("world", worlds),
        ("unknown_type", unknown),
        ("stranger", stranger),
        ("unreadable_node", unreadable),
        ("cut", cut),
        ("length_of_4_gib", vec![0, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        ("empty", Vec::new()),
    ];
    seeds.extend(all.map(|(name, bytes)| ("xds_requests", name.to_owned(), bytes)));
}

fn repository(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

fn frame(message: &impl Message) -> Vec<u8> {
    let mut out = u32::try_from(message.encoded_len()).unwrap().to_be_bytes().to_vec();
    message.encode(&mut out).unwrap();
    out
}

fn exported(bodies: impl IntoIterator<Item = FromExporter>) -> Vec<u8> {
    bodies.into_iter().flat_map(|body| frame(&wire::ExporterMessage { body: Some(body) })).collect()
}

fn imported(bodies: impl IntoIterator<Item = FromImporter>) -> Vec<u8> {
    bodies.into_iter().flat_map(|body| frame(&wire::ImporterMessage { body: Some(body) })).collect()
}

fn open() -> FromExporter {
    FromExporter::Open(wire::ExportOpen { version: 1, epoch: 7, cluster: "b".into() })
}

fn begin(sequence: u64) -> FromExporter {
    FromExporter::Begin(wire::SnapshotBegin { sequence, buckets: u64::MAX })
}

fn chunk(sequence: u64, services: Vec<wire::ServiceState>) -> FromExporter {
    FromExporter::Chunk(wire::SnapshotChunk { sequence, services })
}

fn complete(sequence: u64) -> FromExporter {
    FromExporter::Complete(wire::Complete { sequence, digest: vec![0; 32].into() })
}

fn update(sequence: u64, update: wire::Update) -> FromExporter {
    FromExporter::Update(wire::Update { sequence, ..update })
}

fn name(text: &str) -> wire::ServiceName {
    let (namespace, name) = text.split_once('/').unwrap();
    wire::ServiceName { namespace: namespace.into(), name: name.into() }
}

/// One that may come in.
fn service(text: &str) -> wire::Service {
    let wire::ServiceName { namespace, name } = name(text);
    let port = wire::Port { number: 9080, protocol: 1, ..wire::Port::default() };
    wire::Service {
        namespace,
        name,
        r#type: 1,
        ports: vec![port],
        internal_traffic_policy: 1,
        exported_at_ms: 1,
        ..wire::Service::default()
    }
}

fn state(service: &wire::Service) -> wire::ServiceState {
    wire::ServiceState { service: service.encode_to_vec().into(), counts: Vec::new() }
}

/// What `b` says to `a`.
fn exporters(seeds: &mut Vec<Seed>) {
    let mut add = |name: &str, bytes: Vec<u8>| seeds.push(("federation_import", name.to_owned(), bytes));
    add("recorded", repository("tests/compat/v0/federation-exporter.bin"));
    add("empty", Vec::new());
    add("length_beyond", vec![0xff; 8]);
    add("length_max", vec![0, 0x10, 0, 0, 1]);
    add("no_body", vec![0, 0, 0, 0]);
    add("not_protobuf", b"\0\0\0\x08GET / HT".to_vec());
    let other_cluster = wire::ExportOpen { version: 1, epoch: 7, cluster: "c".into() };
    add("open_of_another", exported([FromExporter::Open(other_cluster)]));
    add(
        "open_version_0",
        exported([FromExporter::Open(wire::ExportOpen { cluster: "b".into(), ..Default::default() })]),
    );
    add("open_twice", exported([open(), open()]));
    add("data_first", exported([begin(1), complete(2)]));
    add("update_first", exported([open(), update(1, wire::Update::default())]));
    add("complete_without_digest", exported([open(), begin(1), complete(2)]));
    add("complete_without_begin", exported([open(), complete(1)]));
    add("unchanged_without_cause", exported([open(), FromExporter::Unchanged(wire::Unchanged { sequence: 1 })]));
    add("sequence_gap", exported([open(), begin(1), chunk(3, Vec::new()), complete(4)]));
    add("sequence_end", exported([open(), begin(u64::MAX), complete(0)]));
    add("snapshots_for_ever", exported(std::iter::once(open()).chain((1..=40).map(begin))));
    let good: Vec<_> = (0..12).map(|number| state(&service(&format!("shop/s{number}")))).collect();
    // The digest is wrong: nothing of it may count.
    add("wrong_digest", exported([open(), begin(1), chunk(2, good[..3].to_vec()), complete(3)]));
    // A record that cannot be read makes the digest unknown: the others count.
    let mut mixed = good.clone();
    mixed.extend(
        [("shop/A", 1), ("kube-system/dns", 2), ("shop/0x7f", 3), ("shop/../x", 4)]
            .map(|(text, _)| state(&service(text))),
    );
    mixed.push(wire::ServiceState { service: vec![0xff; 40].into(), counts: Vec::new() });
    mixed.push(state(&service("shop/s1")));
    add("bad_among_good", exported([open(), begin(1), chunk(2, mixed), complete(3)]));
    let live = |more: Vec<FromExporter>| {
        let unreadable = wire::ServiceState { service: vec![0xff].into(), counts: Vec::new() };
        let first = [open(), begin(1), chunk(2, vec![state(&service("shop/reviews")), unreadable]), complete(3)];
        exported(first.into_iter().chain(more))
    };
    add("live", live(Vec::new()));
    let services = good.iter().take(9).cloned().collect();
    add("over_quota", live(vec![update(4, wire::Update { services, ..Default::default() })]));
    let removed = vec![name("shop/reviews"), name("shop/nobody"), name("kube-system/dns"), name("/")];
    add("removals", live(vec![update(4, wire::Update { removed, ..Default::default() })]));
    let endpoint = |id: &str| wire::Endpoint {
        id: id.into(),
        weight: 100,
        ready: true,
        serving: true,
        tls: 1,
        ..Default::default()
    };
    let ids = ["pod-0", "10.0.0.1", "UPPER", "", "pod-0", &"x".repeat(65)];
    let upserts: Vec<_> = ids.iter().map(|id| endpoint(id).encode_to_vec().into()).collect();
    let part = |begin, end, upserts| wire::EndpointsUpdate {
        service: Some(name("shop/reviews")),
        upserts,
        begin,
        end,
        digest: vec![0; 8].into(),
        ..Default::default()
    };
    let with = |part| update(4, wire::Update { endpoints: vec![part], ..Default::default() });
    add("endpoints", live(vec![with(part(true, true, upserts.clone()))]));
    add("endpoints_without_begin", live(vec![with(part(false, false, upserts))]));
    let many = (0..40).map(|number| endpoint(&format!("pod-{number}")).encode_to_vec().into()).collect();
    add("endpoints_over_quota", live(vec![with(part(true, false, many))]));
    let counts = wire::CountsUpdate {
        service: Some(name("shop/reviews")),
        changed: vec![wire::IndexedCount { group: u32::MAX, count: None }],
    };
    add("counts_of_no_group", live(vec![update(4, wire::Update { counts: vec![counts], ..Default::default() })]));
    let group =
        wire::Group { identities: vec!["spiffe://a.example/ns/shop/sa/x".into()], tls: 1, ..Default::default() };
    let foreign = wire::Service { groups: vec![group], ..service("shop/foreign") };
    let count = wire::GroupCount { ready: u64::MAX, draining: 1 << 63, weight: u64::MAX };
    let state = wire::ServiceState { counts: vec![count], ..state(&foreign) };
    add("foreign_identity", live(vec![update(4, wire::Update { services: vec![state], ..Default::default() })]));
    add("close", live(vec![FromExporter::Close(wire::Close { code: 999, reason: "\u{1b}[2J\u{202e}".repeat(40) })]));
}

/// What `a` says to `b`.
fn importers(seeds: &mut Vec<Seed>) {
    let mut add = |name: &str, bytes: Vec<u8>| seeds.push(("federation_export", name.to_owned(), bytes));
    let open = |held| {
        FromImporter::Open(wire::ImportOpen {
            min_version: 1,
            max_version: 1,
            cluster: "a".into(),
            held,
            subscriptions: Vec::new(),
        })
    };
    add("recorded", repository("tests/compat/v0/federation-importer.bin"));
    add("empty", Vec::new());
    add("ack_first", imported([FromImporter::Ack(wire::Ack { sequence: 1 })]));
    add("open_twice", imported([open(None), open(None)]));
    let acks = [u64::MAX, 0, 3, 2].map(|sequence| FromImporter::Ack(wire::Ack { sequence }));
    add("acks_of_the_future", imported(std::iter::once(open(None)).chain(acks)));
    let held = wire::Held { epoch: 7, sequence: 9, digest: vec![1; 32].into(), buckets: vec![1; 256].into() };
    add("held", imported([open(Some(held.clone()))]));
    add(
        "held_cut",
        imported([open(Some(wire::Held { buckets: vec![1; 9].into(), digest: vec![1; 3].into(), ..held }))]),
    );
    let version = wire::ImportOpen { min_version: 999, max_version: 1, cluster: "a".into(), ..Default::default() };
    add("version_999", imported([FromImporter::Open(version)]));
    let twin = wire::ImportOpen { min_version: 1, max_version: 1, cluster: "b".into(), ..Default::default() };
    add("open_as_another", imported([FromImporter::Open(twin)]));
    let services = ["shop/reviews", "shop/hidden", "ops/hidden", "shop/nobody", "/", "kube-system/dns"];
    let services: Vec<_> = services
        .iter()
        .map(|text| wire::Subscription { service: Some(name(text)), digest: vec![0; 8].into() })
        .collect();
    let subscribe = FromImporter::Subscribe(wire::Subscribe { services });
    let gone = wire::Unsubscribe { services: vec![name("shop/reviews"), name("shop/nobody")] };
    add("subscriptions", imported([open(None), subscribe.clone(), FromImporter::Unsubscribe(gone), subscribe]));
    let resyncs = (0..40).map(|_| FromImporter::Resync(wire::Resync { reason: "again\n".repeat(9) }));
    add("resyncs", imported(std::iter::once(open(None)).chain(resyncs)));
}

fn images(seeds: &mut Vec<Seed>) {
    let mut add = |name: &str, bytes: Vec<u8>| seeds.push(("import_image", name.to_owned(), bytes));
    let recorded = repository("tests/compat/v0/federation-image.bin");
    add("body", recorded[52..].to_vec());
    add("torn", recorded[..600].to_vec());
    add("recorded", recorded);
    add("empty", Vec::new());
    add("zeros", vec![0; 512]);
    let image = |services, endpoints| {
        let (peer, heard_at_ms) = ("b".to_owned(), 1_800_000_000_000);
        wire::ImportImage { peer, epoch: 1, sequence: 1, heard_at_ms, untracked: false, services, endpoints }
            .encode_to_vec()
    };
    let held = |text: &str, claimed_at_ms| wire::ServiceImage {
        name: Some(name(text)),
        static_hash: vec![7; 32].into(),
        claimed_at_ms,
        service: service(text).encode_to_vec().into(),
        ..Default::default()
    };
    add("over_quota", image((0..20).map(|number| held(&format!("shop/s{number}"), 5)).collect(), Vec::new()));
    add("future", image(vec![held("shop/s1", u64::MAX), held("kube-system/dns", 1), held("shop/s1", 2)], Vec::new()));
    let misnamed = wire::ServiceImage { name: Some(name("shop/other")), ..held("shop/s1", 5) };
    let endpoints =
        wire::EndpointsImage { service: Some(name("shop/s9")), listed: true, endpoints: vec![vec![1; 9].into()] };
    add("misnamed", image(vec![misnamed], vec![endpoints]));
    let later = wire::ImportImage { peer: "b".into(), heard_at_ms: u64::MAX, epoch: u64::MAX, ..Default::default() };
    add("heard_in_the_future", later.encode_to_vec());
    add("of_another", wire::ImportImage { peer: "c".into(), ..Default::default() }.encode_to_vec());
}

fn texts(seeds: &mut Vec<Seed>) {
    let example = |path: &str| repository(&format!("gateway/eastway/examples/config/{path}"));
    let good = [
        ("gateway_config", "example", example("gateway.yaml")),
        ("gateway_config", "sidecar", example("sidecar.yaml")),
        ("peer_file", "example", example("peers/gke.yaml")),
        ("peer_file", "private", example("peers/edge.yaml")),
        ("policy_file", "access", example("policies/access.yaml")),
        ("policy_file", "traffic", example("policies/traffic.yaml")),
        ("service_list", "example", example("services.yaml")),
    ];
    seeds.extend(good.map(|(target, name, bytes)| (target, name.to_owned(), bytes)));
    let kinds = [
        ("gateway_config", "GatewayConfig", "cluster: a\ntrust: {domain: a.example}\n"),
        (
            "peer_file",
            "Peer",
            "metadata: {name: b}\nspec:\n  addresses: ['192.0.2.1:15443']\n  trustDomain: b.example\n",
        ),
        (
            "policy_file",
            "TrafficPolicy",
            "metadata: {name: p, namespace: shop}\nspec: {service: web, split: [{weight: 1}]}\n",
        ),
        ("service_list", "ServiceList", "services: [{namespace: shop, name: web, ports: [{port: 80}]}]\n"),
    ];
    for (target, kind, body) in kinds {
        let header = format!("apiVersion: eastway.dev/v1alpha1\nkind: {kind}\n");
        let mut add = |name: &str, text: String| seeds.push((target, name.to_owned(), text.into_bytes()));
        add("small", format!("{header}{body}"));
        add("crlf", format!("{header}{body}").replace('\n', "\r\n"));
        add("bom", format!("\u{feff}{header}{body}"));
        add("two_documents", format!("{header}{body}---\n{header}{body}"));
        add(
            "anchors",
            format!("{header}{body}a: &a [x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nd: [*c, *c, *c, *d]\n"),
        );
        add("merge", format!("{header}{body}x: &x {{<<: *x, a: 1}}\n<<: [*x, *x]\n"));
        add("deep", format!("{header}spec: {}", "[".repeat(3_000)));
        add("deep_maps", format!("{header}spec: {}", "{a: ".repeat(2_000)));
        add("tags", format!("{header}{body}cluster: !!binary aGk=\nspec: !<tag:x> [!!set {{a, b}}, !!null '']\n"));
        add("escapes", format!("{header}{body}\"\\u001b[2J\\u202e\\0\": 1\n? [complex, key]\n: 1\n"));
        add(
            "numbers",
            format!("{header}{body}limits: {{a: 0x10, b: .inf, c: -0, d: 1e999, e: 99999999999999999999999999}}\n"),
        );
        add("block", format!("{header}{body}bundle: |+2\n    -----BEGIN CERTIFICATE-----\n  AA==\n -----END\n"));
        add("control", format!("{header}{body}x: a\u{0}b\u{7}c\u{85}d\u{2028}e\u{fffe}\n"));
    }
}

fn identities(seeds: &mut Vec<Seed>) {
    let fixture = |path: &str| repository(&format!("gateway/identity/tests/identity/fixtures/{path}"));
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let chain = repository("fuzz/src/pki/chain.pem");
    let certificates = certificates_from_pem(&chain).unwrap();
    let half = text(&chain).split_inclusive("-----END CERTIFICATE-----\n").map(str::to_owned).collect::<Vec<_>>();
    let (leaf, issuer) = (half[0].clone(), half[1].clone());
    let rsa = text(&fixture("istio-rsa/cert-chain.pem"));
    let shared = [
        ("chain", text(&chain)),
        ("turned", format!("{issuer}{leaf}")),
        ("leaf_alone", leaf.clone()),
        ("issuer_alone", issuer.clone()),
        ("leaf_twice", format!("{leaf}{leaf}{issuer}")),
        ("other_issuer", format!("{leaf}{rsa}")),
        ("istio", rsa.clone()),
        ("text_around", format!("Certificate:\n    Data:\n{leaf}\ntrailing {issuer} words")),
        ("bom_and_crlf", format!("\u{feff}{}", text(&chain).replace('\n', "\r\n"))),
        ("one_line", text(&chain).replace("=\n", "=").replace('\n', "")),
        ("no_end", leaf[..leaf.len() / 2].to_owned()),
        ("empty_block", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_owned()),
        ("not_der", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n".to_owned()),
        ("not_base64", "-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n".to_owned()),
        ("another_label", leaf.replace("CERTIFICATE", "TRUSTED CERTIFICATE")),
        ("a_key_in_it", format!("{leaf}{}", text(&fixture("sec1/ca-key.pem")))),
        ("empty", String::new()),
    ];
    for target in ["certificate_bundle", "certificate_chain"] {
        seeds.extend(shared.iter().map(|(name, text)| (target, (*name).to_owned(), text.clone().into_bytes())));
    }
    let folders = ["istio-rsa", "sec1", "pkcs8-p384", "rsa-1024", "encrypted-legacy", "encrypted-pkcs8", "names"];
    for (which, file) in ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"].iter().enumerate() {
        let mut add = |name: String, contents: Vec<u8>| {
            seeds.push(("ca_folder", name, [vec![u8::try_from(which).unwrap()], contents].concat()));
        };
        for folder in folders.iter().take(if which == 1 { 7 } else { 2 }) {
            add(format!("{folder}_{file}"), fixture(&format!("{folder}/{file}")));
        }
        add(format!("empty_{file}"), Vec::new());
        add(format!("der_{file}"), certificates[1].to_vec());
    }
    let list = "-----BEGIN X509 CRL-----
MIHjMIGLAgEBMAoGCCqGSM49BAMCMCsxFDASBgNVBAoMC29sZC5leGFtcGxlMRMw
EQYDVQQDDAppc3N1aW5nIENBFw0yMDAxMDEwMDAwMDBaFw0yMDAyMDEwMDAwMDBa
oC8wLTAfBgNVHSMEGDAWgBSvkY3TnW5f33Z/m6IYFTs6GZmOkTAKBgNVHRQEAwIB
ATAKBggqhkjOPQQDAgNHADBEAiAqStl+oEKGMaGR/5c7CpnqELqf6mnuFAHydZ0F
yPWJHQIgLj3drCpbjO/caCWBEhhdFDGtgIOnbhpylCeS+IDfA3s=
-----END X509 CRL-----
";
    let lists = [
        ("list", list.to_owned()),
        ("two_lists", format!("{list}{list}")),
        ("a_certificate_in_it", format!("{list}{leaf}")),
        ("cut", list[..200].to_owned()),
        ("not_der", "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n".to_owned()),
        ("empty", String::new()),
        ("blank", "\n\n".to_owned()),
    ];
    seeds.extend(lists.map(|(name, text)| ("revocation_list", name.to_owned(), text.into_bytes())));
    anchors(seeds, &certificates[0]);
    let request = repository("fuzz/src/pki/request.der");
    let requests = [
        ("request", request.clone()),
        ("cut", request[..request.len() - 3].to_vec()),
        ("trailing", [request.clone(), vec![0; 9]].concat()),
        ("certificate", certificates[0].to_vec()),
        ("indefinite", b"\x30\x80\x30\x80\x02\x01\x00\x00\x00\x00\x00".to_vec()),
        ("huge_length", b"\x30\x84\xff\xff\xff\xff\x02\x01".to_vec()),
        ("nested", vec![0x30; 600]),
        ("empty", Vec::new()),
    ];
    seeds.extend(requests.map(|(name, bytes)| ("signing_request", name.to_owned(), bytes)));
    let signed = [
        ("chain_and_zeros", [vec![0xf0], chain.clone(), vec![0; 64]].concat()),
        ("signature_alone", vec![0, 0x30, 6, 2, 1, 1, 2, 1, 1]),
        ("no_signature", [vec![0xff], chain.clone()].concat()),
        ("raw_signature", vec![0; 64]),
        ("empty", Vec::new()),
    ];
    seeds.extend(signed.map(|(name, bytes)| ("reauth", name.to_owned(), bytes)));
    let ids = [
        ("gateway", "spiffe://b.example/ns/eastway-system/sa/eastway-gateway"),
        ("workload", "spiffe://cluster.local/ns/shop/sa/web"),
        ("upper", "SPIFFE://B.example/ns/a/sa/b"),
        ("port", "spiffe://b.example:443/ns/a/sa/b"),
        ("user", "spiffe://x@b.example/ns/a/sa/b"),
        ("dots", "spiffe://b.example/ns/../sa/%2e%2e"),
        ("query", "spiffe://b.example/a?b#c"),
        ("double_slash", "spiffe://b.example//ns/a/"),
        ("control", "spiffe://b.example/a\u{0}b\u{202e}"),
        ("empty_domain", "spiffe:///ns/a/sa/b"),
    ];
    seeds.extend(ids.map(|(name, text)| ("spiffe_id", name.to_owned(), text.as_bytes().to_vec())));
}

fn anchors(seeds: &mut Vec<Seed>, unconstrained: &[u8]) {
    let (anchor, list) = (repository("fuzz/src/pki/anchor.der"), repository("fuzz/src/pki/anchor-list.der"));
    let framed = |certificate: &[u8], list: &[u8]| {
        let length = u16::try_from(certificate.len()).unwrap().to_be_bytes();
        [length.as_slice(), certificate, list].concat()
    };
    let anchors = [
        ("good", framed(&anchor, &list)),
        ("no_list", framed(&anchor, &[])),
        ("no_constraint", framed(unconstrained, &list)),
        ("list_cut", framed(&anchor, &list[..list.len() - 3])),
        ("trailing", framed(&anchor, &[list.clone(), vec![0; 9]].concat())),
        ("swapped", framed(&list, &anchor)),
        ("empty", Vec::new()),
    ];
    seeds.extend(anchors.map(|(name, bytes)| ("anchor", name.to_owned(), bytes)));
}

/// What sidecars ask for.
fn authorities(seeds: &mut Vec<Seed>) {
    let texts = [
        ("endpoint", "e-1.reviews.bookinfo.gke:9080"),
        ("service", "reviews.bookinfo.gke:9080"),
        ("address", "10.0.0.1:80"),
        ("address_as_names", "0x7f.0.0.1:80"),
        ("ipv6", "[::1]:80"),
        ("user", "me@e-1.reviews.bookinfo.gke:80"),
        ("five_parts", "a.b.c.d.e:80"),
        ("root", "reviews.bookinfo.gke.:80"),
        ("sign", "reviews.bookinfo.gke:+80"),
        ("no_port", "reviews.bookinfo.gke"),
        ("control", "re\u{0}iews.bookinfo.\u{202e}:80"),
    ];
    seeds.extend(texts.map(|(name, text)| ("hbone_authority", name.to_owned(), text.as_bytes().to_vec())));
}

/// What Istio's sidecars begin with, and others.
fn client_hellos(seeds: &mut Vec<Seed>) {
    let two = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
    let hello = |name: &str, record: usize| {
        let list = [&[0][..], &two(name.len()), name.as_bytes()].concat();
        let extensions =
            [&[0, 10, 0, 4, 0, 2, 0x11, 0xec, 0, 0][..], &two(list.len() + 2), &two(list.len()), &list].concat();
        let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &two(extensions.len()), &extensions].concat();
        let handshake = [&[1, 0][..], &two(body.len()), &body].concat();
        handshake
            .chunks(record)
            .flat_map(|part| [&[22, 3, 1][..], &two(part.len()), part].concat())
            .collect::<Vec<u8>>()
    };
    let name = "outbound_.9080_._.reviews.bookinfo.svc.cluster.local";
    let mut short = hello(name, 4_096);
    short.truncate(60);
    let all = [
        ("whole", hello(name, 4_096)),
        ("subset", hello("outbound_.80_.v2_.Reviews.bookinfo.svc.clusterset.local", 4_096)),
        ("many_records", hello(name, 20)),
        ("cut", short),
        ("another_name", hello("reviews.bookinfo", 4_096)),
        ("no_name", hello("", 4_096)),
        ("http", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("too_long", vec![22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff]),
        (
            "endless",
            [22, 3, 1, 0, 1, 1].into_iter().chain([22, 3, 1, 0, 1, 0].into_iter().cycle()).take(20_000).collect(),
        ),
    ];
    seeds.extend(all.map(|(name, bytes)| ("client_hello", name.to_owned(), bytes)));
}
