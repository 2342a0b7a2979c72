//! The budgets of the design beside what is measured: `make bench-micro` runs this after the
//! micro-benchmarks. Fails if a figure misses its budget by more than its tolerance.
//!
//! Times and memory are those of the binary given, as a user would run it; this program only starts
//! processes and looks at them, so its own build does not matter.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a measurement that meets the unexpected has to fail, and prints what it measured"
)]

mod inside;
mod printed;
mod start;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use eastway::demo::stage;
use table::{Figure, Kind};

/// Prints the budgets beside what is measured.
#[derive(Debug, Parser)]
struct Args {
    /// The release binary of the gateway
    #[arg(long)]
    binary: PathBuf,
    /// What `cargo bench` and the memory test printed
    #[arg(long)]
    printed: Option<PathBuf>,
    /// How to print
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
    /// Measures linked gateways; runs inside the namespaces of a laboratory
    #[arg(long, hide = true)]
    inside: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if args.inside {
        let figures = runtime.block_on(inside::measure())?;
        println!("{}", serde_json::to_string(&figures)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut figures = vec![binary_size(&args.binary)?];
    figures.extend(runtime.block_on(start::measure(&args.binary))?);
    figures.extend(in_namespaces(&args.binary)?);
    if let Some(path) = &args.printed {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        figures.extend(printed::figures(&text)?);
    }
    match args.output.as_str() {
        "json" => println!("{:#}", table::json(&figures)),
        _ => print!("{}", table::text(&figures)),
    }
    Ok(if figures.iter().all(Figure::is_tolerable) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn binary_size(binary: &Path) -> Result<Figure> {
    let bytes = std::fs::metadata(binary).with_context(|| format!("look at {}", binary.display()))?.len();
    Ok(Figure::new("gateway binary, stripped", Kind::Megabytes, to_f64(bytes) / 1e6, 25.0, ""))
}

/// Runs this program again where it may make networks.
fn in_namespaces(binary: &Path) -> Result<Vec<Figure>> {
    let binary = binary.canonicalize()?;
    let mut command = stage::in_namespaces(&binary);
    command.arg(std::env::current_exe()?).arg("--inside").arg("--binary").arg(&binary);
    let output = command.env("EASTWAY_BIN", &binary).stderr(std::process::Stdio::inherit()).output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "the measurement in namespaces failed: {text}");
    serde_json::from_str(text.lines().last().context("it printed nothing")?).context("what it printed")
}

/// Figures are far below 2^52.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn to_f64(number: u64) -> f64 {
    number as f64
}

/// The middle of `figures`, and the one that at most one in a hundred exceeds.
fn median_and_p99(mut figures: Vec<f64>) -> (f64, f64) {
    figures.sort_by(f64::total_cmp);
    let last = figures.len().checked_sub(1).expect("at least one figure");
    let at = |index: usize| *figures.get(index.min(last)).expect("below the length");
    (at(figures.len() / 2), at(figures.len() * 99 / 100))
}
