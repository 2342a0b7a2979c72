//! What an importer keeps, and for how long, in virtual time.

mod rig;

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use eastway_model::{PeerState, UnixMillis};
use eastway_tunnel::transport::memory::MemoryNetwork;
use tokio::time::sleep;

use self::rig::{Cloud, Gateway, eventually};
use crate::app::clock::Clock;

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);
/// For how long services are kept in these tests.
const WITHDRAW: Duration = HOUR;
/// Noon of some day.
const NOON: u64 = 1_800_000_000_000;

/// A wall clock that stands still unless the test moves it: milliseconds.
macro_rules! wall_clock {
    ($name:ident) => {
        static $name: AtomicI64 = AtomicI64::new(0);
    };
}

fn read(offset: &AtomicI64) -> UnixMillis {
    UnixMillis(NOON.saturating_add_signed(offset.load(Ordering::SeqCst)))
}

fn moved(offset: &AtomicI64, by: Duration) {
    offset.fetch_add(i64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
}

fn jumped(offset: &AtomicI64, hours: i64) {
    offset.fetch_add(hours * 3_600_000, Ordering::SeqCst);
}

fn clouds() -> (Cloud, Cloud, MemoryNetwork) {
    let network = MemoryNetwork::new(Duration::from_millis(20), Duration::from_secs(4));
    (Cloud::new("a", 1), Cloud::new("b", 2), network)
}

async fn in_sync(importer: &Gateway) {
    eventually("the import", || importer.imports("b") == ["cart", "pay"]).await;
}

#[tokio::test(start_paused = true)]
async fn f25_a_wall_clock_that_jumps_withdraws_nothing_and_prolongs_nothing() {
    wall_clock!(WALL);
    let clock = Clock::with_wall(|| read(&WALL));
    let (a, b, network) = clouds();
    let importer = a.start(&network, &b, &[], WITHDRAW, clock);
    let exporter = b.start(&network, &a, &["cart", "pay"], WITHDRAW, Clock::start());
    in_sync(&importer).await;
    for hours in [1, -1, 24 * 3650, -24 * 7300] {
        jumped(&WALL, hours);
        sleep(MINUTE).await;
        assert_eq!(importer.state("b"), PeerState::Up, "{hours} h");
        assert_eq!(importer.imports("b"), ["cart", "pay"], "{hours} h");
    }

    for (jumps, what) in [([1, 1, 24 * 3650], "ahead"), ([-1, -1, -24 * 3650], "back")] {
        network.cut(a.address(), b.address());
        eventually("down", || matches!(importer.state("b"), PeerState::Down { .. })).await;
        let copy = a.copy_of("b");
        for hours in jumps {
            jumped(&WALL, hours);
            sleep(19 * MINUTE).await;
            assert_eq!(importer.imports("b"), ["cart", "pay"], "the clock went {what} by {hours} h");
            assert!(copy.exists());
        }
        // 57 of 60 minutes are over.
        sleep(4 * MINUTE).await;
        assert!(importer.imports("b").is_empty(), "the clock went {what}: kept for longer than withdrawAfter");
        assert!(!copy.exists(), "withdrawn, and a restart would bring it back");
        network.heal(a.address(), b.address());
        in_sync(&importer).await;
    }
    importer.stop().await;
    exporter.stop().await;
}

#[tokio::test(start_paused = true)]
async fn f25_what_the_store_withdrew_the_importer_holds_no_more() {
    wall_clock!(WALL);
    let clock = Clock::with_wall(|| read(&WALL));
    let (a, b, network) = clouds();
    let importer = a.start(&network, &b, &[], WITHDRAW, clock);
    let exporter = b.start(&network, &a, &["cart", "pay"], WITHDRAW, Clock::start());
    in_sync(&importer).await;
    network.cut(a.address(), b.address());
    sleep(WITHDRAW + MINUTE).await;
    assert!(importer.imports("b").is_empty());
    // What an importer holds it writes down when it stops, and the next process serves it.
    importer.stop().await;
    assert!(!a.copy_of("b").exists());
    let importer = a.start(&network, &b, &[], WITHDRAW, clock);
    sleep(MINUTE).await;
    assert!(importer.imports("b").is_empty());
    assert_eq!(importer.state("b"), PeerState::Unknown);
    importer.stop().await;
    exporter.stop().await;
}

#[tokio::test(start_paused = true)]
async fn f17_a_restart_does_not_begin_withdraw_after_anew() {
    wall_clock!(WALL);
    let clock = Clock::with_wall(|| read(&WALL));
    let (a, b, network) = clouds();
    let withdraw = 20 * MINUTE;
    let importer = a.start(&network, &b, &[], withdraw, clock);
    let exporter = b.start(&network, &a, &["cart", "pay"], withdraw, Clock::start());
    in_sync(&importer).await;
    // A peer that has nothing to say for an hour is as current as one that talks.
    for _ in 0..60 {
        moved(&WALL, MINUTE);
        sleep(MINUTE).await;
    }
    let killed = std::fs::read(a.copy_of("b")).unwrap();
    importer.stop().await;
    exporter.stop().await;

    moved(&WALL, 15 * MINUTE);
    let importer = a.start(&network, &b, &[], withdraw, Clock::with_wall(|| read(&WALL)));
    in_sync(&importer).await;
    let PeerState::Down { since } = importer.state("b") else { panic!("{:?}", importer.state("b")) };
    let stopped = UnixMillis(NOON).plus(HOUR);
    assert!(since <= stopped && stopped.since(since) < 2 * SECOND, "last heard when the process before stopped");
    sleep(4 * MINUTE).await;
    assert_eq!(importer.imports("b"), ["cart", "pay"]);
    let age = importer.freshness.restored_age().unwrap();
    assert!(age >= 19 * MINUTE && age < 19 * MINUTE + 2 * SECOND, "{age:?}");
    assert_eq!(importer.freshness.age("b"), Some(age));
    sleep(2 * MINUTE).await;
    assert!(importer.imports("b").is_empty(), "21 minutes after it was heard");
    assert_eq!((importer.freshness.restored_age(), importer.freshness.age("b")), (None, None), "nothing is held");
    importer.stop().await;

    // A process that was killed left a copy that says nearly the same.
    std::fs::write(a.copy_of("b"), killed).unwrap();
    let importer = a.start(&network, &b, &[], withdraw, Clock::with_wall(|| read(&WALL)));
    in_sync(&importer).await;
    importer.stop().await;
}

#[tokio::test(start_paused = true)]
async fn i13_what_is_held_is_as_old_as_the_last_acknowledgement() {
    wall_clock!(WALL);
    let clock = Clock::with_wall(|| read(&WALL));
    let (a, b, network) = clouds();
    let importer = a.start(&network, &b, &[], WITHDRAW, clock);
    let age = || importer.freshness.age("b");
    sleep(MINUTE).await;
    assert_eq!(age(), None, "a peer never heard is not current");
    let exporter = b.start(&network, &a, &["cart", "pay"], WITHDRAW, Clock::start());
    in_sync(&importer).await;
    for _ in 0..60 {
        jumped(&WALL, 1);
        sleep(SECOND).await;
        assert!(age().unwrap() < 5 * SECOND, "{:?}", age());
        assert_eq!(importer.freshness.restored_age(), None);
    }
    network.cut(a.address(), b.address());
    sleep(10 * MINUTE).await;
    let during = age().unwrap();
    assert!(during >= 10 * MINUTE && during < 10 * MINUTE + 2 * SECOND, "{during:?}");
    network.heal(a.address(), b.address());
    let current = || age().unwrap() < 5 * SECOND;
    eventually("current again", current).await;
    importer.stop().await;
    exporter.stop().await;
}
