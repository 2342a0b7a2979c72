//! `eastway check`: what is wrong, why, and what to do.

use clap::Args;

use super::client::{self, Target, encode};
use super::exit::{self, Failure};
use super::output::{Colour, Output, paint, print};
use crate::admin::check::catalogue::{self, Code};
use crate::admin::check::{CheckReport, Finding, Severity};
use crate::telemetry::Escaped;

/// Arguments of `eastway check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eastway check                   this gateway, its DNS and all peers
  eastway check gke               only the peer gke
  eastway check --explain EW302   what a code means
  eastway check --explain all     all codes

The gateway does the probing: UDP to each address, 64 KiB through a link and back, MTU, clocks,
pins, certificates, names, what is exchanged and what was denied.

Exit codes: 0 all well, 1 something does not work, 3 only warnings.")]
pub(super) struct CheckArgs {
    /// Check only this peer
    peer: Option<String>,
    /// Show only what is not well
    #[arg(long, short)]
    quiet: bool,
    /// Explain a code, or all of them, and end
    #[arg(long, value_name = "CODE", conflicts_with_all = ["peer", "quiet"])]
    explain: Option<String>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

pub(super) fn check(args: &CheckArgs) -> Result<(), Failure> {
    if let Some(id) = &args.explain {
        return explain(id);
    }
    let path = args.peer.as_ref().map_or_else(|| "/check".to_owned(), |peer| format!("/check?peer={}", encode(peer)));
    let answer = args.target.get(&path)?;
    let report: CheckReport = client::view(&answer)?;
    args.output.print(&answer, || Ok(text(&report, args.quiet)))?;
    match report.findings.iter().map(|finding| finding.severity).max() {
        Some(Severity::Error) => Err(Failure::silent(exit::FAILED)),
        Some(Severity::Warning) => Err(Failure::silent(exit::WARNINGS)),
        Some(Severity::Ok) | None => Ok(()),
    }
}

fn text(report: &CheckReport, quiet: bool) -> String {
    let mut text = String::new();
    for finding in report.findings.iter().filter(|finding| !quiet || finding.severity > Severity::Ok) {
        text.push_str(&lines(finding));
    }
    let count = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    text.push_str(&match (errors, warnings) {
        (0, 0) => "all is well\n".to_owned(),
        (0, warnings) => format!("{}, no error\n", plural(warnings, "warning")),
        (errors, warnings) => format!("{}, {}\n", plural(errors, "error"), plural(warnings, "warning")),
    });
    text
}

fn lines(finding: &Finding) -> String {
    let mark = match finding.severity {
        Severity::Ok => paint("ok  ", Colour::Green),
        Severity::Warning => paint("WARN", Colour::Yellow),
        Severity::Error => paint("FAIL", Colour::Red),
    };
    let Finding { code, subject, message, cause, fix, change, .. } = finding;
    let mut text = format!("{mark} {code} {}: {}\n", Escaped(subject), Escaped(message));
    if finding.severity > Severity::Ok {
        text.push_str(&format!("     why: {}\n     do:  {}\n", Escaped(cause), Escaped(fix)));
    }
    // As it is to be copied.
    change.lines().for_each(|line| text.push_str(&format!("{}\n", Escaped(line))));
    text
}

fn plural(count: usize, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

fn explain(id: &str) -> Result<(), Failure> {
    if id.eq_ignore_ascii_case("all") {
        let texts: Vec<String> = catalogue::ALL.iter().map(explanation).collect();
        return print(&texts.join("\n"));
    }
    match catalogue::find(id) {
        Some(code) => print(&explanation(code)),
        None => Err(Failure::usage(format!("{id:?} is not a code; `eastway check --explain all` lists them"))),
    }
}

fn explanation(code: &Code) -> String {
    let severity = match code.severity {
        Severity::Ok => "ok",
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    let plain = |text: &str| text.replace("{what}", "…").replace("{peer}", "PEER");
    let mut text = format!("{} ({severity}): {}\n", code.id, plain(code.title));
    if code.severity > Severity::Ok {
        text.push_str(&format!("  why: {}\n  do:  {}\n", plain(code.cause), plain(code.fix)));
    }
    text
}
