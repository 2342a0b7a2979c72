use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MB: u64 = 1_000_000;
/// A clean short path.
const RTT: Duration = Duration::from_micros(300);

/// A path, and a user whose streams go where the chooser says.
struct Path {
    chooser: Chooser,
    now: Duration,
    choice: Choice,
    /// Bytes a second that each transport reaches.
    quic: u64,
    tcp: u64,
    rtt: Duration,
    /// Of a million packets.
    lost: u64,
    tcp_reachable: bool,
}

impl Path {
    fn new(quic: u64, tcp: u64) -> Self {
        let chooser = Chooser::default();
        let mut path = Self {
            chooser,
            now: Duration::ZERO,
            choice: Choice::default(),
            quic,
            tcp,
            rtt: RTT,
            lost: 0,
            tcp_reachable: true,
        };
        path.idle(1);
        path
    }

    fn second(&mut self, by_quic: u64, by_tcp: u64) {
        self.now += SECOND;
        let seen = |bytes: u64| {
            let packets = bytes / 1_400 + 10;
            let lost = packets * self.lost / 1_000_000;
            Seen { bytes, rtt: self.rtt, sent: packets, lost, received: 0, disordered: 0 }
        };
        let tcp = (self.tcp_reachable && self.choice.wanted).then(|| seen(by_tcp));
        self.choice = self.chooser.look(self.now, &seen(by_quic), tcp.as_ref());
    }

    fn idle(&mut self, seconds: u32) {
        (0..seconds).for_each(|_| self.second(1_000, 1_000));
    }

    /// Streams that begin now and move all they can for so long. Returns whether they went by TCP.
    fn bulk(&mut self, seconds: u32) -> bool {
        let tcp = self.choice.tcp;
        for _ in 0..seconds {
            if tcp { self.second(1_000, self.tcp) } else { self.second(self.quic, 1_000) }
        }
        tcp
    }

    /// So many downloads of five seconds, some apart; how many went by TCP.
    fn downloads(&mut self, count: u32) -> u32 {
        (0..count)
            .map(|_| {
                let tcp = self.bulk(5);
                self.idle(20);
                u32::from(tcp)
            })
            .sum()
    }
}

#[test]
fn nothing_is_wanted_where_little_moves() {
    let mut path = Path::new(20 * MB, 900 * MB);
    assert_eq!(path.downloads(100), 0);
    assert_eq!(path.choice, Choice { tcp: false, why: Why::Quiet, wanted: false });
}

#[test]
fn the_faster_one_carries_what_moves_much_after_one_trial() {
    let mut path = Path::new(500 * MB, 800 * MB);
    assert!(!path.bulk(5), "TCP is not measured");
    path.idle(20);
    assert_eq!(path.choice, Choice { tcp: true, why: Why::Trial, wanted: true });
    assert_eq!(path.downloads(20), 20);
    assert_eq!(path.choice.why, Why::Faster);
    assert_eq!(path.chooser.rates(), [Some(500 * MB), Some(800 * MB)]);
}

#[test]
fn what_is_alike_stays_with_quic() {
    for tcp in [300, 500, 540] {
        let mut path = Path::new(500 * MB, tcp * MB);
        assert_eq!(path.downloads(20), 1, "{tcp}: one trial");
        assert_eq!(path.choice.why, Why::Alike);
    }
}

#[test]
fn what_is_not_used_is_measured_again_seldom() {
    let mut path = Path::new(500 * MB, 400 * MB);
    // Two hours and a half.
    assert!((8..=11).contains(&path.downloads(360)));
    path.tcp = 900 * MB;
    path.downloads(40);
    assert!(path.chooser.prefers_tcp, "it has become faster");
    path.tcp = 300 * MB;
    path.downloads(5);
    assert!(!path.chooser.prefers_tcp, "and slower again");
    // By TCP, of which QUIC is measured again now and then.
    path.tcp = 900 * MB;
    path.downloads(40);
    let by_quic = 360 - path.downloads(360);
    assert!((8..=11).contains(&by_quic), "{by_quic}");
}

#[test]
fn loss_turns_streams_back_to_quic_within_three_seconds_and_for_longer_each_time() {
    let mut path = Path::new(500 * MB, 800 * MB);
    path.downloads(5);
    assert!(path.choice.tcp);
    path.lost = 10_000;
    path.bulk(2);
    assert!(path.choice.tcp, "it may be the start of streams");
    path.bulk(1);
    assert_eq!(path.choice, Choice { tcp: false, why: Why::Lossy, wanted: false });
    assert_eq!(path.downloads(8), 0);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        let begun = path.now;
        while path.choice.why == Why::Lossy {
            path.idle(1);
        }
        pauses.push((path.now - begun).as_secs());
        // It still does.
        (0..3).for_each(|_| path.second(path.quic, 0));
    }
    assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]), "{pauses:?}");
    assert!(pauses[0] <= 60 && pauses[5] >= 500, "{pauses:?}");
    path.lost = 0;
    path.idle(901);
    assert!(path.downloads(5) >= 3, "the path is clean again: {:?}", path.choice);
    assert!(path.choice.tcp);
}

#[test]
fn a_trial_of_what_hardly_moves_ends() {
    let mut path = Path::new(500 * MB, 5 * MB);
    path.downloads(2);
    assert_eq!(path.choice.why, Why::Trial);
    let by_tcp = path.downloads(20);
    assert!(by_tcp <= 7, "half a minute in all: {by_tcp}");
    assert_eq!(path.choice.why, Why::Unknown);
}

#[test]
fn segments_out_of_order_tell_a_receiver_of_loss() {
    let mut path = Path::new(500 * MB, 800 * MB);
    path.downloads(5);
    assert!(path.choice.tcp);
    let quic = Seen { rtt: RTT, ..Seen::default() };
    let tcp = Seen { bytes: 300 * MB, rtt: RTT, received: 200_000, disordered: 40_000, ..Seen::default() };
    for why in [Why::Faster, Why::Faster, Why::Lossy] {
        path.now += SECOND;
        assert_eq!(path.chooser.look(path.now, &quic, Some(&tcp)).why, why);
    }
}

#[test]
fn a_path_that_is_busy_is_not_long() {
    let mut path = Path::new(500 * MB, 800 * MB);
    path.downloads(5);
    path.rtt = Duration::from_millis(8);
    assert!(path.bulk(100) && path.choice.tcp);
    path.bulk(500);
    assert_eq!(path.choice.why, Why::Long, "all the time: it has become long");
}

#[test]
fn a_long_path_or_one_where_tcp_does_not_pass_stays_with_quic() {
    let mut path = Path::new(500 * MB, 800 * MB);
    path.rtt = Duration::from_millis(20);
    assert_eq!(path.downloads(20), 0);
    assert!(!path.choice.wanted, "and nothing is dialled");
    let mut path = Path::new(500 * MB, 800 * MB);
    path.tcp_reachable = false;
    assert_eq!(path.downloads(20), 0);
    assert_eq!(path.choice.why, Why::Unreached);
}

#[test]
fn a_link_where_nothing_moves_much_any_more_needs_no_tcp() {
    let mut path = Path::new(500 * MB, 800 * MB);
    path.downloads(5);
    path.idle(570);
    assert!(path.choice.wanted);
    path.idle(20);
    assert!(!path.choice.wanted);
    // What was measured is still known.
    path.bulk(2);
    path.idle(2);
    assert!(path.choice.tcp);
}
