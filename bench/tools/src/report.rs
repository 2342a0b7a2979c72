//! From figures to what people read: plots, and the section about the tunnel in `docs/performance.md`.
//!
//! Both are functions of `latest.json` alone; a test compares what is committed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::Value;

mod document;
mod plot;

/// Between these lines a document has what is written here.
const BEGIN: &str = "<!-- bench/results/latest.json: begin -->\n";
const END: &str = "<!-- bench/results/latest.json: end -->\n";

/// Arguments of `eastway-bench report`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Folder of the figures, and of the plots
    #[arg(long, default_value = "bench/results")]
    results: PathBuf,
    /// The document
    #[arg(long, default_value = "docs/performance.md")]
    documents: PathBuf,
}

/// Writes plots and documents anew.
///
/// # Errors
/// As [`write()`].
pub fn run(args: &Args) -> Result<()> {
    write(&args.results, &args.documents)
}

/// Writes the plots beside the figures, and the section of the document.
///
/// # Errors
/// The figures cannot be read, the document lacks the two lines, or something cannot be written.
pub fn write(results: &Path, document: &Path) -> Result<()> {
    let figures = read(results)?;
    for (name, plot) in plot::all(&figures) {
        std::fs::write(results.join(name), plot)?;
    }
    let text = std::fs::read_to_string(document).with_context(|| document.display().to_string())?;
    std::fs::write(document, renewed(&text, &figures)?)?;
    Ok(())
}

fn read(results: &Path) -> Result<Value> {
    let file = results.join("latest.json");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    serde_json::from_str(&text).with_context(|| file.display().to_string())
}

/// A document with its section written anew.
fn renewed(text: &str, figures: &Value) -> Result<String> {
    let (before, rest) = text.split_once(BEGIN).context("the line where the figures begin is missing")?;
    let (_, after) = rest.split_once(END).context("the line where the figures end is missing")?;
    Ok([before, BEGIN, &document::section(figures), END, after].concat())
}

/// A figure in the JSON, by the stage, the label and the metric.
fn median(figures: &Value, stage: &str, label: &str, metric: &str) -> Option<f64> {
    figures["stages"][stage]["medians"][label][metric].as_f64()
}

/// The tunnels in the order of tables and plots, with their names for people.
const TUNNELS: [(&str, &str); 12] = [
    ("direct", "no tunnel"),
    ("link", "Eastway, the transport it chooses"),
    ("quic", "Eastway over QUIC"),
    ("tls", "Eastway over TLS on TCP"),
    ("envoy", "Envoys, a TLS connection for each"),
    ("haproxy", "haproxies, a TLS connection for each"),
    ("rathole", "rathole, a Noise connection for each"),
    ("envoy-h2", "Envoys, HTTP/2 CONNECT"),
    ("envoy-h3", "Envoys, HTTP/3 CONNECT"),
    ("wireguard", "wireguard-go"),
    ("pump", "plain pump on quinn"),
    ("pump-chunks", "the same, a write for each datagram"),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// What is committed is what the figures say; `eastway-bench report` writes it.
    #[test]
    fn documents_and_plots_are_those_of_the_figures() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let results = root.join("bench/results");
        let figures = read(&results).unwrap();
        let document = std::fs::read_to_string(root.join("docs/performance.md")).unwrap();
        assert!(document == renewed(&document, &figures).unwrap(), "docs/performance.md: run `eastway-bench report`");
        for (name, plot) in plot::all(&figures) {
            let committed = std::fs::read_to_string(results.join(name)).unwrap();
            assert!(committed == plot, "{name}: run `eastway-bench report`");
        }
    }

    #[test]
    fn documents_without_a_place_for_figures_are_refused() {
        assert!(renewed("text\n", &Value::Null).is_err());
        let text = format!("a\n{BEGIN}old\n{END}b\n");
        let new = renewed(&text, &Value::Null).unwrap();
        assert!(new.starts_with(&format!("a\n{BEGIN}")) && new.ends_with(&format!("{END}b\n")), "{new}");
        assert!(!new.contains("old"));
    }
}
