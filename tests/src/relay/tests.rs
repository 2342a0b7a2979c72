//! The relay by itself, on the host's loopback.

use super::*;

/// A target that echoes, a relay before it and a client.
struct Bench {
    relay: Relay,
    place: Place,
    client: UdpSocket,
    _echo: Owned,
    seen: Arc<Mutex<Vec<SocketAddr>>>,
}

async fn bench(seed: u64) -> Bench {
    let place = Place::host("relay").await.unwrap();
    let target = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = target.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let echo = tokio::spawn({
        let seen = Arc::clone(&seen);
        async move {
            let mut buffer = [0; 65536];
            loop {
                let (length, from) = target.recv_from(&mut buffer).await.unwrap();
                seen.lock().unwrap().push(from);
                target.send_to(&buffer[..length], from).await.unwrap();
            }
        }
    });
    let relay = Relay::start(&place, "127.0.0.1:0".parse().unwrap(), address, seed).await.unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(relay.address()).await.unwrap();
    Bench { relay, place, client, _echo: Owned(echo.abort_handle()), seen }
}

/// Sends numbered packets and collects what comes back until nothing came for `wait`. What comes is read between the
/// packets, and now and then the others get a moment: a kernel's smallest queues hold under 200 packets, and what they
/// drop is not what is asked for here.
async fn exchange(client: &UdpSocket, numbers: std::ops::Range<u32>, wait: Duration) -> Vec<u32> {
    let mut came = Vec::new();
    let mut buffer = [0; 64];
    for number in numbers {
        client.send(&number.to_be_bytes()).await.unwrap();
        match number % 32 {
            31 => tokio::time::sleep(Duration::from_millis(5)).await,
            _ => tokio::task::yield_now().await,
        }
        while let Ok(length) = client.try_recv(&mut buffer) {
            came.push(u32::from_be_bytes(buffer[..length].try_into().unwrap()));
        }
    }
    while let Ok(Ok(length)) = tokio::time::timeout(wait, client.recv(&mut buffer)).await {
        came.push(u32::from_be_bytes(buffer[..length].try_into().unwrap()));
    }
    came
}

/// How long nothing comes at the end: longer than a busy machine lets a task wait.
const SHORT: Duration = Duration::from_millis(1_000);

#[tokio::test]
async fn passes_everything_on_in_order_by_default() {
    let bench = bench(1).await;
    assert_eq!(exchange(&bench.client, 0..50, SHORT).await, (0..50).collect::<Vec<_>>());
    let traffic = bench.relay.traffic(Direction::Back);
    assert_eq!((traffic.packets, traffic.bytes, traffic.lost), (50, 200, 0));
}

#[tokio::test]
async fn loses_about_the_share_asked_for_and_doubles_and_reorders() {
    let bench = bench(2).await;
    bench.relay.set(Direction::Forth, Conditions { loss: 0.3, ..Default::default() });
    let came = exchange(&bench.client, 0..400, SHORT).await;
    assert!((220..340).contains(&came.len()), "{}", came.len());

    bench.relay.set(
        Direction::Forth,
        Conditions { reorder: 0.2, hold: Duration::from_millis(20), duplicate: 0.2, ..Default::default() },
    );
    let mut came = exchange(&bench.client, 0..200, SHORT).await;
    assert!(came.windows(2).any(|pair| pair[0] > pair[1]), "nothing was overtaken");
    assert!((210..280).contains(&came.len()), "{}", came.len());
    came.sort_unstable();
    came.dedup();
    assert_eq!(came.len(), 200);
}

#[tokio::test]
async fn alters_one_bit_of_about_the_share_asked_for() {
    let bench = bench(6).await;
    bench.relay.set(Direction::Back, Conditions { corrupt: 0.2, ..Default::default() });
    let came = exchange(&bench.client, 0..200, SHORT).await;
    let bits: Vec<u32> = came.iter().zip(0..).map(|(came, sent): (&u32, u32)| (came ^ sent).count_ones()).collect();
    let altered = bits.iter().filter(|bits| **bits == 1).count();
    assert_eq!((came.len(), bits.iter().filter(|bits| **bits > 1).count()), (200, 0));
    assert!((20..70).contains(&altered), "{altered}");
    assert_eq!(bench.relay.traffic(Direction::Back).altered, altered as u64);
}

#[tokio::test]
async fn delays_and_limits_the_rate() {
    let bench = bench(3).await;
    bench.relay.set_both(&Conditions { delay: Duration::from_millis(30), ..Default::default() });
    let started = Instant::now();
    bench.client.send(&[0; 4]).await.unwrap();
    bench.client.recv(&mut [0; 64]).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(60));

    bench.relay.set_both(&Conditions::default());
    bench.relay.set(Direction::Forth, Conditions { rate: Some(10_000), ..Default::default() });
    let started = Instant::now();
    for _ in 0..10 {
        bench.client.send(&[0; 200]).await.unwrap();
    }
    for _ in 0..10 {
        bench.client.recv(&mut [0; 512]).await.unwrap();
    }
    assert!(started.elapsed() >= Duration::from_millis(190), "{:?}", started.elapsed());

    // Of what comes at once the queue holds a tenth of a second.
    let queue = Some(Duration::from_millis(100));
    bench.relay.set(Direction::Forth, Conditions { rate: Some(1_000), queue, ..Default::default() });
    let came = exchange(&bench.client, 0..100, SHORT).await;
    assert!((25..50).contains(&came.len()), "{}", came.len());
}

#[tokio::test]
async fn cuts_by_size_by_count_and_for_good() {
    let bench = bench(4).await;
    bench.relay.set(Direction::Forth, Conditions { largest: Some(3), ..Default::default() });
    assert!(exchange(&bench.client, 0..3, SHORT).await.is_empty());
    bench.relay.set(Direction::Forth, Conditions { cut_after: Some(10), ..Default::default() });
    assert_eq!(exchange(&bench.client, 0..5, SHORT).await, [0, 1]);
    bench.relay.set(Direction::Forth, Conditions::default());
    assert_eq!(exchange(&bench.client, 0..2, SHORT).await, [0, 1]);
    bench.relay.set(Direction::Back, Conditions { cut: true, ..Default::default() });
    assert!(exchange(&bench.client, 0..2, SHORT).await.is_empty());
}

#[tokio::test]
async fn rebinds_like_a_nat_and_blackholes_single_flows() {
    let bench = bench(5).await;
    assert_eq!(exchange(&bench.client, 0..1, SHORT).await, [0]);
    assert_eq!(bench.relay.rebind(&bench.place).await.unwrap(), 1);
    assert_eq!(exchange(&bench.client, 1..2, SHORT).await, [1]);
    let ports: BTreeSet<SocketAddr> = bench.seen.lock().unwrap().iter().copied().collect();
    assert_eq!(ports.len(), 2);

    assert_eq!(bench.relay.blackhole_current_flows(), 1);
    assert!(exchange(&bench.client, 2..4, SHORT).await.is_empty());
    let fresh = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    fresh.connect(bench.relay.address()).await.unwrap();
    assert_eq!(exchange(&fresh, 4..5, SHORT).await, [4]);
    assert_eq!(bench.relay.clients().len(), 2);
}
