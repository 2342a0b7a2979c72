//! Sidecars at the gateway: CONNECT over mutual TLS to single endpoints of other clouds.

mod budget;
mod renewal;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use eastway_tests::lab::files::ServiceSpec;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE, PORT};
use eastway_tests::servers::{Habit, body};
use eastway_tests::sidecar::{Credentials, STREAMS, Sidecar, Stream};
use eastway_tests::{lab_test, load, within};
use futures_util::future::try_join_all;
use h2::Reason;
use hyper::{Method, StatusCode};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

/// Longest wait for what takes no time.
const SOON: Duration = Duration::from_secs(5);
/// Longest wait for what shares the machine with much else.
const PATIENCE: Duration = Duration::from_secs(20);
/// The gateway's port for sidecars.
const HBONE_PORT: u16 = 15008;

/// Clouds of which the first, `a`, serves sidecars.
async fn mesh() -> Result<Mesh> {
    MeshBuilder::of(&["a", "b"])
        .settings("a", &json!({"listen": {"hbone": format!("0.0.0.0:{HBONE_PORT}")}}))
        .start()
        .await
}

fn port(mesh: &Mesh) -> SocketAddr {
    SocketAddr::new(mesh.cloud("a").net().gateways()[0].inside, HBONE_PORT)
}

async fn sidecar(mesh: &Mesh) -> Result<Sidecar> {
    sidecar_with(mesh, &Credentials::of(mesh.cloud("a"), NAMESPACE, "client")?).await
}

async fn sidecar_with(mesh: &Mesh, credentials: &Credentials) -> Result<Sidecar> {
    Sidecar::connect(mesh.cloud("a").net().pods(), port(mesh), credentials).await
}

/// Ids of a service's endpoints in `cloud`, by their address there.
async fn endpoints(mesh: &Mesh, cloud: &str, service: &str) -> Result<BTreeMap<String, String>> {
    let answer: Value = mesh.cloud(cloud).admin(0, "/endpoints").await?;
    let items = answer["items"].as_array().context("no items")?;
    let ours = items.iter().filter(|item| item["service"] == service && item["cluster"] == cloud);
    let pair = |item: &Value| Some((item["address"].as_str()?.to_owned(), item["id"].as_str()?.to_owned()));
    Ok(ours.filter_map(pair).collect())
}

/// The authority of the one endpoint of a service of `b`, once `a` knows the service.
async fn only_endpoint(mesh: &Mesh, service: &str) -> Result<String> {
    mesh.target("a", service).await?;
    let ids = endpoints(mesh, "b", service).await?;
    let id = ids.values().next().context("no endpoint")?;
    Ok(format!("{id}.{service}.{NAMESPACE}.b:{PORT}"))
}

/// The line that a server begins with.
async fn greeting(stream: &mut Stream) -> Result<String> {
    let line = timeout(SOON, stream.read()).await.context("no greeting")??.context("it ended")?;
    Ok(String::from_utf8(line.to_vec())?.trim().to_owned())
}

async fn status(sidecar: &Sidecar, authority: &str) -> Result<u16> {
    let (status, _) = timeout(SOON, sidecar.ask(Method::CONNECT, authority)).await.context(authority.to_owned())??;
    Ok(status.as_u16())
}

async fn reset(stream: &mut Stream) -> Result<Reason> {
    timeout(Duration::from_secs(10), stream.until_reset()).await.context("not reset within 10 s")?
}

/// Ends a connection in order: what is still to come and END_STREAM.
async fn hang_up(mut stream: Stream) -> Result<()> {
    stream.finish()?;
    while timeout(PATIENCE, stream.read()).await.context("no end")??.is_some() {}
    Ok(())
}

lab_test! {
    /// The main job: of three endpoints of another cloud the one that is named, and nobody else in its place.
    async fn a_sidecar_reaches_each_remote_endpoint_by_its_id() {
        let mut mesh = mesh().await?;
        for pod in [11, 12, 13] {
            mesh.serve("b", "web", pod, Habit::Greeter).await?;
        }
        mesh.serve("a", "home", 14, Habit::Greeter).await?;
        mesh.target("a", "web").await?;
        mesh.target("b", "home").await?;
        within(SOON, "b has three endpoints", async || Ok(endpoints(&mesh, "b", "web").await?.len() == 3)).await?;
        let ids = endpoints(&mesh, "b", "web").await?;
        let sidecar = sidecar(&mesh).await?;
        for (address, id) in &ids {
            for _ in 0..5 {
                let mut stream = sidecar.open(&format!("{id}.web.{NAMESPACE}.b:{PORT}")).await?;
                let name = greeting(&mut stream).await?;
                ensure!(address.ends_with(&name.replace("b-", ".")), "{id} is {address}, and {name} answers");
                stream.write(Bytes::from_static(b"ping")).await?;
                ensure!(timeout(SOON, stream.read_exact(4)).await?? == b"ping");
                hang_up(stream).await?;
            }
        }
        // Any of the service; and one of this cluster.
        let mut stream = sidecar.open(&format!("web.{NAMESPACE}.b:{PORT}")).await?;
        ensure!(greeting(&mut stream).await?.starts_with("b-1"));
        hang_up(stream).await?;
        let home = endpoints(&mesh, "a", "home").await?;
        let id = home.values().next().context("no endpoint")?;
        let mut stream = sidecar.open(&format!("{id}.home.{NAMESPACE}.a:{PORT}")).await?;
        ensure!(greeting(&mut stream).await? == "a-14");
        hang_up(stream).await?;

        let listeners = serde_json::to_value(mesh.cloud("a").status(0).await?)?;
        ensure!(listeners["listeners"]["hbone"] == json!([format!("0.0.0.0:{HBONE_PORT}")]), "{listeners}");
        within(SOON, "connections are counted", async || {
            let metrics = mesh.cloud("a").metrics(0).await?;
            let counted = |line: &&str| {
                line.starts_with("istio_tcp_connections_closed_total") && line.contains(r#"source_workload="client""#)
                    && line.contains(r#"destination_service_name="web""#) && line.contains(r#"response_flags="-""#)
            };
            let closed: u64 = metrics.lines().filter(counted).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum();
            ensure!(metrics.contains("eastway_hbone_requests_total{reason=\"tunnel\"} 17"), "{metrics}");
            Ok(closed == 16)
        }).await?;
        mesh.stop().await
    }

    /// I1, I7: what is malformed, unknown and hidden, and what each is told. What is hidden looks like what is not there.
    async fn i7_requests_that_lead_nowhere() {
        let mut mesh = mesh().await?;
        mesh.serve("b", "web", 11, Habit::Greeter).await?;
        mesh.serve("b", "secret", 12, Habit::Greeter).await?;
        mesh.serve("a", "own", 13, Habit::Greeter).await?;
        mesh.target("a", "web").await?;
        let secret = only_endpoint(&mesh, "secret").await?;
        let own = endpoints(&mesh, "a", "own").await?;
        let own = own.values().next().context("no endpoint")?;
        for cloud in ["a", "b"] {
            mesh.change_services(cloud, |services| {
                services.iter_mut().filter(|spec| spec.name != "web").for_each(|spec| spec.export = false);
            })?;
        }
        within(SOON, "a forgets secret", async || Ok(!mesh.imports("a", "b").await?.contains(&"secret".to_owned()))).await?;
        let sidecar = sidecar(&mesh).await?;
        for authority in [
            "web.shop.b", "web.shop.b:0", "web.shop.b:080", "web.shop:80", "x.y.web.shop.b:80", "E.web.shop.b:80",
            "web.shop.B:80", "10.244.1.11:8080", "[::1]:80", "-",
        ] {
            ensure!(status(&sidecar, authority).await? == 400, "{authority}: {}", status(&sidecar, authority).await?);
        }
        for authority in [
            format!("no-such.{NAMESPACE}.b:{PORT}"),
            format!("web.no-such.b:{PORT}"),
            format!("web.{NAMESPACE}.no-such:{PORT}"),
            format!("web.{NAMESPACE}.b:81"),
            format!("secret.{NAMESPACE}.b:{PORT}"),
            secret,
            format!("{own}.own.{NAMESPACE}.a:{PORT}"),
            format!("web.{NAMESPACE}.a:{PORT}"),
        ] {
            ensure!(status(&sidecar, &authority).await? == 404, "{authority}: {}", status(&sidecar, &authority).await?);
        }
        let (status, _) = sidecar.ask(Method::GET, &format!("https://web.{NAMESPACE}.b:{PORT}/")).await?;
        ensure!(status == StatusCode::METHOD_NOT_ALLOWED, "{status}");
        // An endpoint that the owner does not have: it alone can tell, after the answer.
        let mut stream = sidecar.open(&format!("e-none.web.{NAMESPACE}.b:{PORT}")).await?;
        ensure!(reset(&mut stream).await? == Reason::REFUSED_STREAM);

        let metrics = mesh.cloud("a").metrics(0).await?;
        for (reason, count) in [("malformed", 10), ("unknown", 8), ("method", 1), ("tunnel", 1)] {
            ensure!(metrics.contains(&format!("eastway_hbone_requests_total{{reason=\"{reason}\"}} {count}\n")), "{metrics}");
        }
        ensure!(metrics.contains("eastway_refused_total{peer=\"\",reason=\"hbone\"} 19\n"), "{metrics}");
        let log = mesh.cloud("a").logs();
        let line = log.lines().find(|line| line.contains("NR") && line.contains("no such import"));
        ensure!(line.is_some_and(|line| line.contains("a/shop/client")), "{log}");
        mesh.stop().await
    }

    /// X1: who has no certificate of this cluster's CA, or is of Eastway itself, gets no answer.
    async fn x1_only_workloads_of_this_cluster_are_served() {
        let mut mesh = mesh().await?;
        mesh.serve("b", "web", 11, Habit::Greeter).await?;
        mesh.target("a", "web").await?;
        let authority = format!("web.{NAMESPACE}.b:{PORT}");
        let good = Credentials::of(mesh.cloud("a"), NAMESPACE, "client")?;
        let of_peer = Credentials::of(mesh.cloud("b"), NAMESPACE, "client")?.identity;
        let gateway = Credentials::of(mesh.cloud("a"), "eastway-system", "eastway-gateway")?.identity;
        let controller = Credentials::of(mesh.cloud("a"), "eastway-system", "eastway-controller")?.identity;
        for (who, shown) in [("nobody", None), ("the peer's", of_peer), ("a gateway", gateway), ("a controller", controller)] {
            let answer = async {
                let sidecar = sidecar_with(&mesh, &good.clone().showing(shown.clone())).await?;
                sidecar.ask(Method::CONNECT, &authority).await
            };
            ensure!(timeout(SOON, answer).await.context(who)?.is_err(), "{who} is served");
        }
        ensure!(status(&sidecar_with(&mesh, &good).await?, &authority).await? == 200);
        let metrics = mesh.cloud("a").metrics(0).await?;
        ensure!(metrics.contains("eastway_refused_total{peer=\"\",reason=\"handshake\"} 4\n"), "{metrics}");
        mesh.stop().await
    }

    /// I9: a sidecar whose certificate is about to end is told to come with another one, and what it still carries ends
    /// with the certificate.
    async fn i9_a_connection_ends_with_its_certificate() {
        let mut mesh = mesh().await?;
        mesh.serve("b", "echo", 11, Habit::Echo).await?;
        let authority = only_endpoint(&mesh, "echo").await?;
        let begun = Instant::now();
        let life = Duration::from_secs(9);
        let sidecar = sidecar_with(&mesh, &Credentials::living(mesh.cloud("a"), NAMESPACE, "client", life)?).await?;
        let mut stream = sidecar.open(&authority).await?;
        within(life, "it is to go", async || Ok(sidecar.open(&authority).await.is_err())).await?;
        stream.write(Bytes::from_static(b"ping")).await?;
        ensure!(timeout(SOON, stream.read_exact(4)).await?? == b"ping", "what it carries goes on");
        ensure!(timeout(SOON, stream.read()).await.context("it goes on for ever")?.is_err());
        let lasted = begun.elapsed();
        ensure!(lasted > life - Duration::from_secs(2) && lasted < life + Duration::from_secs(2), "{lasted:?}");
        mesh.stop().await
    }

    /// Nothing is cut short: the client ends first and all comes back, eight times at once.
    async fn half_closed_transfers_come_whole_in_both_directions() {
        let mut mesh = mesh().await?;
        mesh.serve("b", "collector", 11, Habit::HalfClose).await?;
        mesh.serve("b", "echo", 12, Habit::Echo).await?;
        let (collector, echo) = (only_endpoint(&mesh, "collector").await?, only_endpoint(&mesh, "echo").await?);
        let sidecar = sidecar(&mesh).await?;
        let size = 60_000_000;
        let sent: Bytes = body(7, size).into();
        for authority in [&collector, &echo] {
            let begun = Instant::now();
            let transfer = async || {
                let (mut sending, mut receiving) = sidecar.open(authority).await?.split();
                let upload = async {
                    sending.write(sent.clone()).await?;
                    sending.finish()
                };
                let download = async {
                    let mut came = 0;
                    while let Some(chunk) = receiving.read().await? {
                        ensure!(sent.get(came..came + chunk.len()) == Some(&chunk[..]), "altered at {came}");
                        came += chunk.len();
                    }
                    ensure!(came == size, "{came} of {size} bytes came back");
                    Ok(())
                };
                tokio::try_join!(upload, download).map(drop)
            };
            // Two at a time: all at once take two cores for so long that heartbeats of the link are late.
            for _ in 0..4 {
                tokio::try_join!(transfer(), transfer()).context(authority.clone())?;
            }
            println!("8 x {size} bytes there and back: {:?}", begun.elapsed());
        }
        mesh.stop().await
    }

    /// The server ends first, and breaks the connection later: what it said has arrived and stays whole, and what the
    /// client still says is taken to its end. Envoy loses bytes of a stream that is reset after it has ended.
    async fn a_server_that_has_said_all_may_break() {
        let mut mesh = mesh().await?;
        let address = SocketAddr::new(mesh.cloud("b").net().pod(11), PORT);
        let said: Bytes = body(9, 5_000_000).into();
        let pods = mesh.cloud("b").net().pods().clone();
        let (listener, all) = (pods.run(async move { Ok(TcpListener::bind(address).await?) }).await?, said.clone());
        pods.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let all = all.clone();
                tokio::spawn(async move {
                    stream.write_all(&all).await?;
                    stream.shutdown().await?;
                    stream.read_u8().await?;
                    SockRef::from(&stream).set_linger(Some(Duration::ZERO))
                });
            }
        });
        mesh.change_services("b", |services| {
            services.push(ServiceSpec::new(NAMESPACE, "curt", PORT).endpoint(address.ip(), "v1"));
        })?;
        let authority = only_endpoint(&mesh, "curt").await?;
        let sidecar = sidecar(&mesh).await?;
        let converse = async || {
            let (mut sending, mut receiving) = sidecar.open(&authority).await?.split();
            let mut came = Vec::new();
            while let Some(chunk) = timeout(SOON, receiving.read()).await.context("no byte")?? {
                came.extend_from_slice(&chunk);
            }
            ensure!(came == said, "{} of {} bytes came", came.len(), said.len());
            // More than all windows hold: somebody takes it, though nobody hears it.
            for _ in 0..300 {
                timeout(SOON, sending.write(Bytes::from_static(&[7; 16_384]))).await.context("not taken")??;
            }
            sending.finish()
        };
        try_join_all((0..8).map(|_| converse())).await?;
        within(SOON, "the end is told", async || {
            let metrics = mesh.cloud("a").metrics(0).await?;
            let broken = |line: &&str| line.starts_with("istio_tcp_connections_closed_total") && line.contains(r#"response_flags="UC""#);
            Ok(metrics.lines().filter(broken).any(|line| line.ends_with(" 8")))
        }).await?;
        mesh.stop().await
    }

    /// What a flow through a sidecar's tunnel carries beside one through a virtual address: printed, for it depends on
    /// the machine. The client of the tunnel encrypts, that of the virtual address does not.
    async fn flows_through_tunnels_and_through_virtual_addresses() {
        let mut mesh = mesh().await?;
        mesh.serve("b", "flood", 11, Habit::Flood).await?;
        let (authority, target) = (only_endpoint(&mesh, "flood").await?, mesh.target("a", "flood").await?);
        let sidecar = sidecar(&mesh).await?;
        let (place, source) = mesh.client("a");
        // 800 Mbit.
        let size = 100_000_000;
        for flows in [1, 8] {
            let begun = Instant::now();
            let tunnel = async || {
                let mut stream = sidecar.open(&authority).await?;
                let mut came = 0;
                while came < size / flows {
                    came += stream.read().await?.context("it ended")?.len();
                }
                anyhow::Ok(())
            };
            try_join_all((0..flows).map(|_| tunnel())).await?;
            let by_tunnel = begun.elapsed();
            let begun = Instant::now();
            let direct = move || async move {
                let mut stream = load::connect(source, target).await?;
                let (mut came, mut buffer) = (0, vec![0; 64 << 10]);
                while came < size / flows {
                    came += stream.read(&mut buffer).await?;
                }
                anyhow::Ok(())
            };
            place.run(async move { try_join_all((0..flows).map(|_| direct())).await }).await?;
            let by_address = begun.elapsed();
            let rate = |took: Duration| 800.0 / took.as_secs_f64();
            println!("{flows} flows: {:.0} Mbit/s by tunnel, {:.0} by virtual address", rate(by_tunnel), rate(by_address));
        }
        mesh.stop().await
    }

    /// Tunnels whose bytes nobody takes slow the others of their connection down, and never stop them.
    async fn a_hundred_stalled_readers_do_not_block_others() {
        let mut mesh = mesh().await?;
        mesh.serve("b", "flood", 11, Habit::Flood).await?;
        mesh.serve("b", "web", 12, Habit::Echo).await?;
        let (flood, web) = (only_endpoint(&mesh, "flood").await?, only_endpoint(&mesh, "web").await?);
        let sidecars = [sidecar(&mesh).await?, sidecar(&mesh).await?];
        let mut stalled = Vec::new();
        for sidecar in &sidecars {
            for _ in 0..50 {
                stalled.push(sidecar.open(&flood).await?);
            }
        }
        let mut slowest = Duration::ZERO;
        for round in 0..100 {
            let begun = Instant::now();
            let mut stream = sidecars[round % 2].open(&web).await?;
            stream.write(body(1, 5_000)).await?;
            let came = timeout(PATIENCE, stream.read_exact(5_000)).await.with_context(|| format!("round {round}"))??;
            ensure!(came == body(1, 5_000));
            hang_up(stream).await?;
            slowest = slowest.max(begun.elapsed());
        }
        println!("100 tunnels beside 100 stalled ones, slowest {slowest:?}");
        drop(stalled);
        mesh.stop().await
    }

    /// One client, more tunnels than Envoy's defaults allow, all open at the same time.
    async fn eleven_hundred_tunnels_at_once() {
        let mut mesh = mesh().await?;
        let server = mesh.serve("b", "echo", 11, Habit::Echo).await?;
        let authority = only_endpoint(&mesh, "echo").await?;
        let credentials = Credentials::of(mesh.cloud("a"), NAMESPACE, "client")?;
        let mut sidecars = Vec::new();
        while sidecars.len() * STREAMS < 1_100 {
            sidecars.push(sidecar_with(&mesh, &credentials).await?);
        }
        let open = async |number: usize| {
            let mut stream = sidecars[number / STREAMS].open(&authority).await?;
            stream.write(number.to_string()).await?;
            let came = timeout(PATIENCE, stream.read_exact(number.to_string().len())).await.context("no echo")??;
            ensure!(came == number.to_string().as_bytes());
            Ok(stream)
        };
        // One connection after the other: a link takes a burst of so many for streams that nobody reads.
        let mut streams = Vec::new();
        for first in (0..1_100).step_by(STREAMS) {
            streams.extend(try_join_all((first..(first + STREAMS).min(1_100)).map(&open)).await?);
        }
        ensure!(server.open() == 1_100, "{} are open", server.open());
        try_join_all(streams.into_iter().map(hang_up)).await?;
        within(SOON, "none is left", async || Ok(server.open() == 0)).await?;
        mesh.stop().await
    }

    /// What becomes of tunnels whose far end fails: the client learns it, and by which code.
    async fn tunnels_that_break_are_reset() {
        let mut mesh = mesh().await?;
        mesh.serve("b", "rude", 11, Habit::Resets).await?;
        let echo = mesh.serve("b", "echo", 12, Habit::Echo).await?;
        mesh.change_services("b", |services| {
            let nobody = "10.244.1.19".parse().expect("an address");
            services.push(ServiceSpec::new(NAMESPACE, "gone", PORT).endpoint(nobody, "v1"));
        })?;
        let (rude, gone) = (only_endpoint(&mesh, "rude").await?, only_endpoint(&mesh, "gone").await?);
        let echo_authority = only_endpoint(&mesh, "echo").await?;
        let sidecar = sidecar(&mesh).await?;
        // An endpoint that resets.
        let mut stream = sidecar.open(&rude).await?;
        greeting(&mut stream).await?;
        stream.write(Bytes::from_static(b"x")).await?;
        let code = reset(&mut stream).await?;
        ensure!(code == Reason::CONNECT_ERROR, "{code:?}");
        // One that is not there: nothing was delivered, though something was said.
        let mut stream = sidecar.open(&gone).await?;
        stream.write(Bytes::from_static(b"x")).await?;
        let code = reset(&mut stream).await?;
        ensure!(code == Reason::REFUSED_STREAM, "{code:?}");
        // A client that gives up is told to the endpoint.
        let stream = sidecar.open(&echo_authority).await?;
        within(SOON, "it is connected", async || Ok(echo.open() == 1)).await?;
        drop(stream);
        within(SOON, "the endpoint is told", async || Ok(echo.reset() == 1)).await?;
        // The owner's gateway dies with an open tunnel, and there is no other.
        let mut stream = sidecar.open(&echo_authority).await?;
        stream.write(Bytes::from_static(b"ping")).await?;
        stream.read_exact(4).await?;
        mesh.cloud_mut("b").kill_gateway(0).await?;
        let code = reset(&mut stream).await?;
        ensure!(code == Reason::INTERNAL_ERROR, "{code:?}");
        mesh.wait_down("a", "b", Duration::from_secs(10)).await?;
        ensure!(status(&sidecar, &echo_authority).await? == 503, "what has no link is known at once");
        mesh.start_gateways().await?;
        mesh.wait_up("a", "b", Duration::from_secs(10)).await?;
        let authority = only_endpoint(&mesh, "echo").await?;
        within(SOON, "it works again", async || Ok(status(&sidecar, &authority).await? == 200)).await?;
        let metrics = mesh.cloud("a").metrics(0).await?;
        ensure!(metrics.contains("eastway_hbone_requests_total{reason=\"no_link\"} 1\n"), "{metrics}");
        mesh.stop().await
    }

    /// An orderly stop asks for other connections and lets tunnels finish; a crash costs what was open, and no more.
    async fn a_gateway_that_leaves_and_comes_again() {
        let mut mesh = mesh().await?;
        mesh.serve("b", "echo", 11, Habit::Echo).await?;
        let authority = only_endpoint(&mesh, "echo").await?;
        let old = sidecar(&mesh).await?;
        let mut stream = old.open(&authority).await?;
        let mut gateway = mesh.cloud_mut("a").take_gateway(0)?;
        gateway.signal(Signal::SIGTERM)?;
        within(SOON, "no new tunnels", async || Ok(old.open(&authority).await.is_err())).await?;
        for round in 0..20_u64 {
            stream.write(body(round, 10_000)).await?;
            ensure!(timeout(SOON, stream.read_exact(10_000)).await?? == body(round, 10_000), "round {round}");
        }
        hang_up(stream).await?;
        let status = timeout(SOON, gateway.wait()).await.context("the last tunnel is gone, and it does not end")??;
        ensure!(status.code() == Some(0), "{status}: {}", gateway.log_tail(2000));
        within(SOON, "the connection ends", async || Ok(old.has_ended())).await?;

        mesh.start_gateways().await?;
        mesh.wait_up("a", "b", Duration::from_secs(10)).await?;
        only_endpoint(&mesh, "echo").await?;
        let sidecar = sidecar(&mesh).await?;
        let mut stream = sidecar.open(&authority).await?;
        stream.write(Bytes::from_static(b"ping")).await?;
        ensure!(timeout(SOON, stream.read_exact(4)).await?? == b"ping");
        mesh.cloud_mut("a").kill_gateway(0).await?;
        ensure!(timeout(SOON, stream.read()).await.context("nobody says that it is gone")?.is_err());
        mesh.start_gateways().await?;
        mesh.wait_up("a", "b", Duration::from_secs(10)).await?;
        only_endpoint(&mesh, "echo").await?;
        let again = self::sidecar(&mesh).await?;
        let mut stream = again.open(&authority).await?;
        stream.write(Bytes::from_static(b"ping")).await?;
        ensure!(timeout(SOON, stream.read_exact(4)).await?? == b"ping");
        hang_up(stream).await?;
        mesh.stop().await
    }
}
