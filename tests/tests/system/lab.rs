//! The laboratory itself: clouds with the same addresses and no way from one to the other.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway::demo::stage;
use eastway_tests::lab::Lab;
use eastway_tests::lab::net::CloudNet;
use eastway_tests::lab::place::Place;
use eastway_tests::{lab_test, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn two_clouds() -> Result<(Lab, CloudNet, CloudNet)> {
    let lab = Lab::in_namespaces(&eastway_tests::binary()).await?;
    let (a, b) = tokio::try_join!(CloudNet::lay(&lab, "a", 1, 2), CloudNet::lay(&lab, "b", 2, 1))?;
    Ok((lab, a, b))
}

/// Answers each connection with a text.
async fn serve(place: &Place, address: SocketAddr, text: &'static str) -> Result<()> {
    let listener = place.run(async move { Ok(TcpListener::bind(address).await?) }).await?;
    place.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // A client that is gone already asked for nothing.
            let _sent = stream.write_all(text.as_bytes()).await;
        }
    });
    Ok(())
}

/// What `address` says, or why it says nothing within a second.
async fn ask(place: &Place, address: SocketAddr) -> Result<String> {
    place
        .run(async move {
            let exchange = async {
                let mut text = String::new();
                TcpStream::connect(address).await?.read_to_string(&mut text).await?;
                anyhow::Ok(text)
            };
            tokio::time::timeout(Duration::from_secs(1), exchange).await.context("silence")?
        })
        .await
}

lab_test! {
    /// The premise of everything else: the same addresses on both sides, and no route across.
    async fn clouds_have_the_same_addresses_and_no_way_across() {
        let (_lab, a, b) = two_clouds().await?;
        let pod = SocketAddr::new(a.pod(11), 80);
        ensure!(a.pod(11) == b.pod(11));
        serve(a.pods(), pod, "a").await?;
        serve(b.pods(), pod, "b").await?;
        ensure!(ask(a.pods(), pod).await? == "a");
        ensure!(ask(b.pods(), pod).await? == "b");
        // Gateways reach their own pods.
        for gateway in a.gateways() {
            ensure!(ask(&gateway.place, pod).await? == "a");
        }
        // Neither the WAN nor anything behind it can be reached from pods.
        for target in [b.gateways()[0].wan, IpAddr::from([198, 51, 100, 1])] {
            let reason = a.no_route_to(target).await?;
            ensure!(reason.as_deref() == Some("Network is unreachable"), "{reason:?}");
        }
        let routes = a.routes().await?;
        ensure!(routes.len() == 2 && routes[0].starts_with("10.244.0.0/16") && routes[1].starts_with("242.0.0.0/16"), "{routes:?}");
        Ok(())
    }

    /// A gateway can listen on any virtual address, and pods reach it there.
    async fn virtual_addresses_lead_to_the_gateway() {
        let (_lab, a, _b) = two_clouds().await?;
        let vip = SocketAddr::from(([242, 0, 17, 3], 9080));
        ensure!(a.is_vip(vip.ip()));
        serve(&a.gateways()[0].place, vip, "gateway").await?;
        ensure!(ask(a.pods(), vip).await? == "gateway");
        Ok(())
    }

    /// Faults do what tests rely on: cables cut both ways, filters one way, and both heal.
    async fn cables_and_filters_cut_and_heal() {
        let (lab, a, b) = two_clouds().await?;
        let port = 7000;
        let (to_a, to_b) = (SocketAddr::new(a.gateways()[0].wan, port), SocketAddr::new(b.gateways()[0].wan, port));
        serve(&a.gateways()[0].place, to_a, "a").await?;
        serve(&b.gateways()[0].place, to_b, "b").await?;
        let (at_a, at_b) = (a.gateways()[0].place.clone(), b.gateways()[0].place.clone());
        ensure!(ask(&at_a, to_b).await? == "b");

        b.set_cable(&lab, false).await?;
        ensure!(ask(&at_a, to_b).await.is_err());
        b.set_cable(&lab, true).await?;
        within(Duration::from_secs(3), "the cable is plugged again", async || Ok(ask(&at_a, to_b).await? == "b")).await?;

        b.block_from(&a).await?;
        ensure!(ask(&at_a, to_b).await.is_err());
        b.unblock_from(&a).await?;
        ensure!(ask(&at_a, to_b).await? == "b");

        b.forbid_inbound().await?;
        ensure!(ask(&at_a, to_b).await.is_err());
        ensure!(ask(&at_b, to_a).await? == "a", "answers to what goes out must come in");
        Ok(())
    }

    /// What the WAN's DNS says can be changed under running processes.
    async fn host_names_of_the_wan_can_be_moved() {
        let (lab, a, _b) = two_clouds().await?;
        for address in ["198.51.100.21", "198.51.100.22"] {
            let address: IpAddr = address.parse()?;
            lab.set_hosts(&[("gw.b.test", address)])?;
            let found = a.pods().run(async { Ok(tokio::net::lookup_host("gw.b.test:1").await?.next()) }).await?;
            ensure!(found.map(|found| found.ip()) == Some(address), "{found:?}");
        }
        Ok(())
    }
}

/// Whatever is killed first, nothing stays.
#[test]
fn nothing_outlives_a_killed_lab() {
    let marker = format!("eastway-lab-marker-{}", std::process::id());
    let script = format!("ip link add dummy-x type bridge; exec -a {marker} sleep 300 & exec -a {marker} sleep 300");
    let mut stage =
        stage::in_namespaces(&eastway_tests::binary()).args(["/bin/bash", "-c", &script]).spawn().expect("it starts");
    let deadline = Instant::now() + Duration::from_secs(10);
    while processes(&marker) < 2 {
        assert!(Instant::now() < deadline, "the lab did not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    stage.kill().expect("it can be killed");
    stage.wait().expect("it can be waited for");
    while processes(&marker) > 0 {
        assert!(Instant::now() < deadline, "processes stayed");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How many processes carry this name.
fn processes(name: &str) -> usize {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.starts_with(name.as_bytes())).count()
}
