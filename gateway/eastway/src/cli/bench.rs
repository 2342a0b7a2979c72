//! `eastway bench`: what a live link to a peer can carry.

use std::io::{IsTerminal as _, stderr};

use clap::Args;
use serde_json::{Value, json};

use super::client::{self, Target, encode};
use super::exit::Failure;
use super::output::Output;
use crate::admin::views::BenchView;
use crate::telemetry::Escaped;

/// Arguments of `eastway bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eastway bench gke                5 s each way
  eastway bench gke --seconds 2    shorter
  eastway bench gke -o json        for programs

The gateway measures, on the link that is up: round trips of one byte, then as many bytes as the
link takes to the peer, then from it. It shares the link with everybody's connections. Loss is what
this side had to send again; the kind of packets below (QUIC, or TLS on TCP) is the link's own
choice. The peer may refuse: it allows `limits.benchSecondsPerHour` of them.

For a comparison with other tunnels: docs/performance.md.")]
pub(super) struct BenchArgs {
    /// The peer, as `eastway peers` names it
    peer: String,
    /// Seconds each way, 1 to 10
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=10))]
    seconds: u8,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

pub(super) fn bench(args: &BenchArgs) -> Result<(), Failure> {
    let part = |part: &str, doing: &str| {
        if stderr().is_terminal() {
            eprintln!("{doing}…");
        }
        let (peer, seconds) = (encode(&args.peer), args.seconds);
        let answer = args.target.get(&format!("/bench?peer={peer}&part={part}&seconds={seconds}"))?;
        let view: BenchView = client::view(&answer)?;
        Ok::<(Value, BenchView), Failure>((answer, view))
    };
    let (rtt_answer, rtt) = part("rtt", "20 round trips")?;
    let (up_answer, up) = part("up", &format!("to {} for {} s", args.peer, args.seconds))?;
    let (down_answer, down) = part("down", &format!("from {} for {} s", args.peer, args.seconds))?;
    let all = json!({"rtt": rtt_answer, "up": up_answer, "down": down_answer});
    args.output.print(&all, || Ok(text(&rtt, &up, &down)))
}

fn text(rtt: &BenchView, up: &BenchView, down: &BenchView) -> String {
    let peer = Escaped(&rtt.peer);
    let ms = |us: Option<u64>| format!("{:.1}", us.unwrap_or_default() as f64 / 1e3);
    let packets = if rtt.mtu == 0 { String::new() } else { format!(", packets of {} bytes", rtt.mtu) };
    let loss = up.loss.map_or_else(String::new, |loss| format!(", {:.2} % of the packets lost", loss * 100.0));
    let mbit = |view: &BenchView| view.bits_per_second as f64 / 1e6;
    format!(
        "{peer} over {}{packets}\nround trip   {} ms ({} to {})\nto {peer}   {:.1} Mbit/s{loss}\nfrom {peer}   {:.1} Mbit/s\n",
        Escaped(&rtt.transport),
        ms(rtt.rtt_us),
        ms(rtt.rtt_best_us),
        ms(rtt.rtt_worst_us),
        mbit(up),
        mbit(down),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_told_in_four_lines() {
        let view = |bits_per_second, loss| BenchView { bits_per_second, loss, ..BenchView::default() };
        let rtt = BenchView {
            peer: "gke".to_owned(),
            transport: "quic".to_owned(),
            mtu: 1452,
            rtt_us: Some(50_300),
            rtt_best_us: Some(50_010),
            rtt_worst_us: Some(52_900),
            ..BenchView::default()
        };
        let told = text(&rtt, &view(187_000_000, Some(0.0101)), &view(191_400_000, None));
        assert_eq!(
            told,
            "gke over quic, packets of 1452 bytes\nround trip   50.3 ms (50.0 to 52.9)\n\
             to gke   187.0 Mbit/s, 1.01 % of the packets lost\nfrom gke   191.4 Mbit/s\n"
        );
    }
}
