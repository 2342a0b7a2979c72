//! The bed itself: what a test may rely on before Eastway comes into it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::cluster::Program;
use eastway_tests::kube::{Bed, Cluster, process, wan};
use eastway_tests::lab::place::Place;
use eastway_tests::{bed_tests, eventually, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// An echo server over HTTP and UDP behind a LoadBalancer, and a shell in another namespace.
const ECHO: &str = include_str!("echo.yaml");
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the echo server and the shell in every cluster, if they do not run yet.
async fn start_echo(bed: &Bed) -> Result<()> {
    for cluster in bed.clusters() {
        cluster.apply(ECHO).await?;
    }
    for cluster in bed.clusters() {
        cluster.rollout("deploy/echo", "smoke", PATIENCE).await?;
        cluster.rollout("deploy/shell", "smoke-client", PATIENCE).await?;
    }
    Ok(())
}

/// The address of the first pod that the selector finds.
async fn pod_address(cluster: &Cluster, namespace: &str, selector: &str) -> Result<IpAddr> {
    let pods = cluster.get(&["pods", "-n", namespace, "-l", selector]).await?;
    let address = pods.pointer("/items/0/status/podIP").and_then(serde_json::Value::as_str);
    Ok(address.with_context(|| format!("no pod {selector} with an address in {namespace}"))?.parse()?)
}

/// What an echo server says its name is, over HTTP.
async fn ask_tcp(address: SocketAddr) -> Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /hostname HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(1), exchange).await.context("silence")??;
    Ok(answer.rsplit("\r\n").next().unwrap_or_default().to_owned())
}

/// The same over UDP.
async fn ask_udp(address: SocketAddr) -> Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    socket.send_to(b"hostname\n", address).await?;
    let mut answer = [0; 512];
    let size = tokio::time::timeout(Duration::from_secs(1), socket.recv(&mut answer)).await.context("silence")??;
    Ok(String::from_utf8_lossy(&answer[..size]).trim().to_owned())
}

async fn answers_from(place: &Place, balancer: Ipv4Addr) -> Result<()> {
    within(Duration::from_secs(10), format!("{balancer} answers {}", place.name()), async || {
        let tcp = place.run(ask_tcp((balancer, 80).into())).await?;
        let udp = place.run(ask_udp((balancer, 80).into())).await?;
        Ok(tcp.starts_with("echo-") && udp == tcp)
    })
    .await
    .map(drop)
}

bed_tests! {
    /// The premise of everything else: every cluster has the same range for pods, and whatever starts first has the
    /// same address in each.
    async fn first_pods_have_the_same_address(bed) {
        for cluster in bed.clusters() {
            let name = cluster.name();
            let address = pod_address(cluster, "kube-system", "k8s-app=kube-dns").await?;
            ensure!(address == IpAddr::from([10, 244, 0, 2]), "{name}: {address}");
            bed.record(&format!("premise.{name}.first_pod"), address.to_string());
            let mut bridge = cluster.on_node("ip", &["-4", "-brief", "address", "show", "dev", "cni0"])?;
            let said = process::output(&mut bridge).await?;
            let range = said.split_ascii_whitespace().nth(2).with_context(|| said.clone())?;
            ensure!(range == "10.244.0.1/16", "{name}: {range}");
            bed.record(&format!("premise.{name}.pods"), range);
        }
        Ok(())
    }

    /// Pods start, find Services of other namespaces by name, the world outside by name, and the API by its Service.
    async fn pods_find_services_and_the_world(bed) {
        start_echo(bed).await?;
        for cluster in bed.clusters() {
            let said = cluster.exec("smoke-client", "deploy/shell", &["/agnhost", "connect", "echo.smoke:80", "--timeout=5s"]);
            said.await?;
            let api = ["/agnhost", "connect", "kubernetes.default:443", "--timeout=5s"];
            cluster.exec("smoke-client", "deploy/shell", &api).await?;
            let (name, address) = wan::OUTSIDE;
            let said = cluster.exec("smoke-client", "deploy/shell", &["nslookup", "-type=a", name]).await?;
            ensure!(said.contains(&address.to_string()), "{said}");
        }
        Ok(())
    }

    /// A LoadBalancer leads in, over TCP and UDP, from the WAN, from the other cluster's node and from its pods.
    async fn load_balancers_lead_in(bed) {
        start_echo(bed).await?;
        let wan = Place::host("wan").await?;
        for (cluster, balancer) in bed.clusters().iter().zip([[198, 51, 100, 21], [198, 51, 100, 22]]) {
            let balancer = Ipv4Addr::from(balancer);
            cluster.load_balancer("smoke", "echo", balancer).await?;
            answers_from(&wan, balancer).await?;
            for other in bed.clusters() {
                answers_from(other.place(), balancer).await?;
                let target = format!("{balancer}:80");
                other.exec("smoke-client", "deploy/shell", &["/agnhost", "connect", &target, "--timeout=5s"]).await?;
            }
        }
        Ok(())
    }

    /// No packet gets from the pods of one cluster to the pods of another, nor from the WAN.
    async fn there_is_no_way_across(bed) {
        start_echo(bed).await?;
        let [a, b] = bed.clusters() else { anyhow::bail!("two clusters") };
        let target = SocketAddr::new(pod_address(b, "smoke", "app=echo").await?, 8080);
        eventually("its own node reaches the pod", async || Ok(b.place().run(ask_tcp(target)).await.is_ok())).await?;
        ensure!(ask_tcp(target).await.is_err(), "the WAN must not");
        // On the other side the address is somebody else's, or nobody's.
        let there = a.place().run(ask_tcp(target)).await;
        let name = b.place().run(ask_tcp(target)).await?;
        ensure!(there.as_ref().map_or(true, |there| *there != name), "{there:?}");
        Ok(())
    }

    /// An API server that is killed and started again is the same one, and the cluster goes on.
    async fn api_server_comes_back(bed) {
        let cluster = bed.cluster("b");
        cluster.kill_program(Program::ApiServer).await?;
        ensure!(cluster.kubectl(&["get", "nodes", "--request-timeout=2s"]).await.is_err());
        cluster.start_program(Program::ApiServer).await?;
        let took = within(PATIENCE, "it answers", async || Ok(cluster.kubectl(&["get", "--raw=/readyz"]).await.is_ok())).await?;
        bed.record("smoke.api_restart_s", eastway_tests::kube::seconds(took));
        // Kubernetes' scheduler ends itself after an outage.
        cluster.revive().await?;
        cluster.ensure_running().await?;
        cluster.kubectl(&["run", "after", "--image=busybox", "-n", "default", "--", "sleep", "60"]).await?;
        cluster.wait("condition=Ready", &["pod/after", "-n", "default"], Duration::from_secs(150)).await?;
        cluster.kubectl(&["delete", "pod", "after", "-n", "default", "--now"]).await.map(drop)
    }
}
