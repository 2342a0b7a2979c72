//! The section as Markdown.

use std::fmt::Write as _;

use serde_json::Value;

use super::{TUNNELS, median, plot};

/// Whose versions are told, in this order.
const PROGRAMS: [&str; 7] = ["eastway", "envoy", "haproxy", "iperf3", "quinn", "rathole", "wireguard-go"];

/// Everything between the two lines.
pub(super) fn section(figures: &Value) -> String {
    let mut text = String::new();
    let setup = &figures["setup"];
    let machine = &setup["machine"];
    let text_of = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let length = if setup["quick"] == true { "A quick run" } else { "A full run" };
    let _infallible = writeln!(
        text,
        "{length} of {} minutes on {} × {}, Linux {}; {}.\n",
        setup["seconds"].as_u64().unwrap_or_default().div_ceil(60),
        machine["processors"],
        text_of(&machine["processor"]),
        text_of(&machine["kernel"]),
        versions(&setup["versions"]),
    );
    text.push_str(&goals(figures));
    text.push_str(&goodput(figures));
    text.push_str(&latency(figures));
    for (name, _) in plot::all(figures) {
        let _infallible = writeln!(text, "![{}](../bench/results/{name})", name.trim_end_matches(".svg"));
    }
    text
}

/// Of all programs that took part, and the commit that ours was built of.
fn versions(all: &Value) -> String {
    let known = PROGRAMS.iter().filter_map(|name| Some(format!("{name} {}", short(all[name].as_str()?))));
    let commit = all["commit"].as_str().map(|commit| format!("commit {commit}"));
    known.chain(commit).collect::<Vec<_>>().join(", ")
}

/// The version out of what a program says of itself: the first word that begins with a digit, after a `v` or not, and
/// has a dot.
fn short(said: &str) -> &str {
    let words = said.split(|letter: char| letter.is_whitespace() || "/\"".contains(letter));
    let mut words = words.map(|word| word.trim_start_matches('v'));
    let is_version = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit()) && word.contains('.');
    words.find(is_version).unwrap_or_default()
}

fn goals(figures: &Value) -> String {
    let mut text =
        "| goal | what | measured | 95 % | rounds | floor | goal | reached |\n|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    let mut lines: Vec<(&String, &Value)> = figures["ratios"].as_object().into_iter().flatten().collect();
    lines.sort_by_key(|(key, _)| (number(key), *key));
    for (key, line) in lines {
        let bound = |name: &str| match (line[name].as_f64(), line["better"].as_str()) {
            (Some(bound), Some("less")) => format!("≤ {bound}"),
            (Some(bound), _) => format!("≥ {bound}"),
            (None, _) => String::new(),
        };
        let [low, high] = [0, 1].map(|end| digits(line["ci95"][end].as_f64()));
        let _infallible = writeln!(
            text,
            "| {key} | {} | {} | {low} – {high} | {} | {} | {} | {} |",
            line["what"].as_str().unwrap_or_default(),
            digits(line["median"].as_f64()),
            line["rounds"],
            bound("floor"),
            bound("goal"),
            line["met"].as_str().unwrap_or_default(),
        );
    }
    text.push('\n');
    text
}

/// Of a goal: 10 of `G10/1`.
pub(super) fn number(key: &str) -> u32 {
    key.chars()
        .filter(char::is_ascii)
        .skip(1)
        .map_while(|letter| letter.to_digit(10))
        .fold(0, |all, digit| all * 10 + digit)
}

/// One row for each tunnel with at least one figure, under these heads.
fn table(figures: &Value, heads: &[&str], columns: &[(&str, &str, &str)]) -> String {
    let mut rows = String::new();
    for (tunnel, name) in TUNNELS {
        let cells: Vec<String> = columns
            .iter()
            .map(|(stage, what, metric)| digits(median(figures, stage, &format!("{tunnel}/{what}"), metric)))
            .collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            let _infallible = writeln!(rows, "| {name} | {} |", cells.join(" | "));
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    format!("| | {} |\n|---|{}\n{rows}\n", heads.join(" | "), "---|".repeat(heads.len()))
}

fn goodput(figures: &Value) -> String {
    let heads =
        ["MTU 1500: Mbit/s, 1 flow", "8 flows", "CPU-s/GB, 1 flow", "8 flows", "MTU 9000: Mbit/s, 1 flow", "8 flows"];
    let columns = [
        ("wire-1500", "1", "mbit"),
        ("wire-1500", "8", "mbit"),
        ("wire-1500", "1", "cpu_s_per_gb"),
        ("wire-1500", "8", "cpu_s_per_gb"),
        ("wire-9000", "1", "mbit"),
        ("wire-9000", "8", "mbit"),
    ];
    table(figures, &heads, &columns)
}

fn latency(figures: &Value) -> String {
    let heads = [
        "1,000 requests/s: p50, µs",
        "p99, µs",
        "ping beside bulk: p99, µs",
        "new connections/s, 16 at a time",
        "first byte at 100 ms RTT, ms",
        "1 % loss, 50 ms: Mbit/s of 200",
        "32 small flows beside bulk there: p99, ms",
        "UDP, 1200 B: Mbit/s",
    ];
    let columns = [
        ("latency", "rpc", "p50_us"),
        ("latency", "rpc", "p99_us"),
        ("latency", "ping-beside", "p99_us"),
        ("connections", "connect-16", "per_s"),
        ("far", "connect-1", "p50_ms"),
        ("loss", "1", "mbit"),
        ("loss", "rpc-beside", "p99_ms"),
        ("packets", "udp-1200", "mbit"),
    ];
    table(figures, &heads, &columns)
}

/// Three significant digits, with separators of thousands.
fn digits(value: Option<f64>) -> String {
    let Some(value) = value else { return String::new() };
    if value >= 1000.0 {
        let whole = format!("{:.0}", value / 10.0) + "0";
        let (thousands, rest) = whole.split_at(whole.len() - 3);
        return format!("{thousands},{rest}");
    }
    let decimals = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let cases =
            [(0.456, "0.46"), (1.0, "1.00"), (45.67, "45.7"), (456.7, "457"), (11_419.6, "11,420"), (1000.0, "1,000")];
        for (value, text) in cases {
            assert_eq!(digits(Some(value)), text);
        }
        assert_eq!(digits(None), "");
    }

    #[test]
    fn goals_have_numbers() {
        assert_eq!([number("G1/8"), number("G10/16"), number("G2a/1"), number("?")], [1, 10, 2, 0]);
    }

    #[test]
    fn versions_are_found() {
        assert_eq!(short("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/"), "2.6.12-1+deb12u4");
        assert_eq!(short("v0.0.0-20260522210424-ecfc5a8d5446 // indirect"), "0.0.0-20260522210424-ecfc5a8d5446");
        assert_eq!(short("9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL"), "1.40.0");
        assert_eq!(short("{ version = \"0.11.12\", default-features = false }"), "0.11.12");
        assert_eq!(short("unknown"), "");
        let all =
            serde_json::json!({"iperf3": "iperf 3.12 (cJSON 1.7.15)", "eastway": "eastway 0.1.0", "commit": "abc"});
        assert_eq!(versions(&all), "eastway 0.1.0, iperf3 3.12, commit abc");
    }
}
