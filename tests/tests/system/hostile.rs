//! What a gateway answers to a peer that asks for more than it may have (P5, P13, I3, I7).

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use eastway_tests::lab::files;
use eastway_tests::mesh::{MeshBuilder, NAMESPACE, PORT};
use eastway_tests::rogue::{Rogue, header};
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, within};
use eastway_tunnel::ResetCode;
use eastway_tunnel::header::{EndpointRef, ServiceHeader, StreamHeader, Traceparent};

const SOON: Duration = Duration::from_secs(5);
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Median time until the answer to `header`.
async fn median(rogue: &Rogue, header: &StreamHeader) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..41 {
        let begun = Instant::now();
        rogue.answer(header).await?;
        times.push(begun.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}

lab_test! {
    /// The owner decides by its own exports and rules, whatever a header says.
    async fn p5_p13_i7_headers_get_what_is_exported_and_no_hint_of_the_rest() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        let web = mesh.serve("b", "web", 11, Habit::Greeter).await?;
        mesh.serve("b", "secret", 12, Habit::Greeter).await?;
        mesh.serve("a", "in-a", 11, Habit::Greeter).await?;
        // Nobody listens there.
        let closed = mesh.cloud("b").net().pod(13);
        mesh.change_services("b", |services| {
            services.iter_mut().filter(|spec| spec.name == "secret").for_each(|spec| spec.export = false);
            let mut idle = files::ServiceSpec::new(NAMESPACE, "idle", PORT);
            idle.export = true;
            services.push(idle);
            services.push(files::ServiceSpec::new(NAMESPACE, "closed", PORT).endpoint(closed, "v1"));
        })?;
        let guarded = files::access_policy(NAMESPACE, "everyone", &["*"], &[("a", "client")]);
        mesh.cloud("b").write_policy("everyone", &guarded)?;
        mesh.target("a", "web").await?;
        mesh.target("a", "closed").await?;
        mesh.target("b", "in-a").await?;
        let rogue = Rogue::join(mesh.cloud("a"), mesh.cloud("b")).await?;

        let to = |namespace: &str, service: &str, port: u16| header(namespace, service, port, "client");
        let web_header = to(NAMESPACE, "web", PORT)?;
        within(SOON, "what is exported is reached", async || {
            Ok(rogue.answer(&StreamHeader::Service(web_header.clone())).await?.is_none())
        }).await?;
        let nobody = ServiceHeader { endpoint: EndpointRef::parse("no-such-id").ok(), ..web_header.clone() };
        let mut anonymous = web_header.clone();
        (anonymous.source.namespace, anonymous.source.service_account) = (None, None);
        let mut versioned = web_header.clone();
        versioned.subset.insert("version".into(), "v9".into());
        let mut denied = header(NAMESPACE, "web", PORT, "somebody")?;
        denied.traceparent = Traceparent::parse(TRACE);
        let table = [
            ("a service that is not exported", to(NAMESPACE, "secret", PORT)?, ResetCode::NotExported),
            ("one that does not exist", to(NAMESPACE, "none", PORT)?, ResetCode::NotExported),
            ("another port of an exported one", to(NAMESPACE, "web", 22)?, ResetCode::NotExported),
            ("the link port", to(NAMESPACE, "web", files::LINK_PORT)?, ResetCode::NotExported),
            ("the admin port", to(NAMESPACE, "web", files::ADMIN_PORT)?, ResetCode::NotExported),
            ("the API server", to("default", "kubernetes", 443)?, ResetCode::NotExported),
            ("a system namespace", to("kube-system", "kube-dns", 53)?, ResetCode::NotExported),
            ("a service of the peer itself", to(NAMESPACE, "in-a", PORT)?, ResetCode::NotLocal),
            ("an endpoint that is not there", nobody, ResetCode::NoEndpoints),
            ("a version that is not there", versioned, ResetCode::NoEndpoints),
            ("a service without endpoints", to(NAMESPACE, "idle", PORT)?, ResetCode::NoEndpoints),
            ("an endpoint that refuses", to(NAMESPACE, "closed", PORT)?, ResetCode::UpstreamRefused),
            ("a source that no rule allows", denied, ResetCode::PermissionDenied),
            ("a source without a name", anonymous, ResetCode::PermissionDenied),
            ("a forbidden source of what is hidden", header(NAMESPACE, "secret", PORT, "x")?, ResetCode::NotExported),
        ];
        let reached = web.accepted();
        let mut wrong = Vec::new();
        for (what, header, code) in table {
            let answer = rogue.answer(&StreamHeader::Service(header)).await?;
            if answer != Some(code) {
                wrong.push(format!("{what}: {answer:?} instead of {code}"));
            }
        }
        ensure!(wrong.is_empty(), "{wrong:#?}");
        ensure!(web.accepted() == reached, "an endpoint was dialled");

        // Each is counted and written, soon after it was answered, and the gateway goes on.
        let line = format!("traceparent={TRACE}");
        within(SOON, "the denial has its line", async || Ok(mesh.cloud("b").logs().contains(&line))).await?;
        for series in [
            "eastway_stream_requests_total{peer=\"a\",reason=\"NOT_EXPORTED\"}",
            "eastway_stream_requests_total{peer=\"a\",reason=\"PERMISSION_DENIED\"}",
            "eastway_refused_total{peer=\"a\",reason=\"not_exported\"}",
            "eastway_refused_total{peer=\"a\",reason=\"denied\"}",
        ] {
            within(SOON, format!("{series} is there"), async || {
                Ok(mesh.cloud("b").metrics(0).await?.contains(series))
            })
            .await?;
        }

        // What is hidden takes as long as what is not there.
        let hidden = median(&rogue, &StreamHeader::Service(to(NAMESPACE, "secret", PORT)?)).await?;
        let absent = median(&rogue, &StreamHeader::Service(to(NAMESPACE, "none", PORT)?)).await?;
        println!("hidden {hidden:?}, absent {absent:?}");
        let (less, more) = (hidden.min(absent), hidden.max(absent));
        ensure!(more < less * 3 + Duration::from_millis(1), "they can be told apart: {hidden:?}, {absent:?}");
        mesh.stop().await
    }
}
