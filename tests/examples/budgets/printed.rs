//! Figures that other programs printed: divan's tables and the memory test.

use anyhow::{Context, Result};

use crate::table::{Figure, Kind};

/// What `text`, the output of `cargo bench` and the memory test, says of the budgets.
///
/// # Errors
/// One of them is not there.
pub(crate) fn figures(text: &str) -> Result<Vec<Figure>> {
    let median = |path: [&str; 3]| median_of(text, path).with_context(|| format!("no benchmark {path:?} was printed"));
    let owner = median(["model", "local_endpoint_changed", "10000"])?;
    let sessions = median(["federation", "endpoint_changed", "10000"])?;
    let importer = median(["model", "remote_endpoint_changed", "10000"])?;
    let note = format!("owner's store {owner:.1}, both sessions {sessions:.1}, importer's store {importer:.1}");
    let wire = before(text, " bytes on the wire for one endpoint changed in a service of 10000")?;
    let memory = before(text, " bytes per remote endpoint")?;
    Ok(vec![
        Figure::new("one endpoint changed of 10,000: CPU", Kind::Microseconds, owner + sessions + importer, 70.0, note),
        Figure::new("one endpoint changed of 10,000: wire", Kind::Bytes, wire, 300.0, "both directions"),
        Figure::new("memory per remote endpoint", Kind::Bytes, memory, 400.0, "goal 150"),
    ])
}

/// The number that stands before `words`.
fn before(text: &str, words: &str) -> Result<f64> {
    let number = text.lines().find_map(|line| line.split_once(words)?.0.split_ascii_whitespace().last()?.parse().ok());
    number.with_context(|| format!("nothing printed '…{words}'"))
}

/// Median in µs of one benchmark, found by the names above it in divan's tree.
fn median_of(text: &str, path: [&str; 3]) -> Option<f64> {
    let mut above: Vec<&str> = Vec::new();
    for line in text.lines() {
        let row = line.trim_start_matches(['│', '├', '╰', '─', ' ']);
        let depth = (line.chars().count() - row.chars().count()) / 3;
        let Some(name) = row.split_ascii_whitespace().next() else { continue };
        above.truncate(depth);
        above.push(name);
        if above == path {
            return microseconds(row.split('│').nth(2)?);
        }
    }
    None
}

fn microseconds(column: &str) -> Option<f64> {
    let (number, unit) = column.trim().split_once(' ')?;
    let factor = match unit {
        "ns" => 1e-3,
        "µs" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "\
Timer precision: 20 ns
model                        fastest       │ slowest       │ median        │ mean          │ samples │ iters
├─ changes_since             1.123 µs      │ 2.1 µs        │ 1.2 µs        │ 1.3 µs        │ 100     │ 100
├─ local_endpoint_changed                  │               │               │               │         │
│  ├─ 100                    2.123 µs      │ 2.1 µs        │ 2.2 µs        │ 1.3 µs        │ 100     │ 100
│  ╰─ 10000                  15.12 µs      │ 82.1 µs       │ 16.5 µs       │ 17.3 µs       │ 100     │ 100
╰─ remote_endpoint_changed                 │               │               │               │         │
   ╰─ 10000                  9.123 µs      │ 92.1 µs       │ 900 ns        │ 11.3 µs       │ 100     │ 100

federation                   fastest       │ slowest       │ median        │ mean          │ samples │ iters
╰─ endpoint_changed                        │               │               │               │         │
   ╰─ 10000                  9.123 µs      │ 92.1 µs       │ 0.02 ms       │ 11.3 µs       │ 100     │ 100
96 bytes on the wire for one endpoint changed in a service of 10000
test a ... 141 bytes per remote endpoint
";

    #[test]
    fn tables_of_divan_are_read() {
        assert_eq!(median_of(PRINTED, ["model", "local_endpoint_changed", "10000"]), Some(16.5));
        assert_eq!(median_of(PRINTED, ["model", "remote_endpoint_changed", "10000"]), Some(0.9));
        assert_eq!(median_of(PRINTED, ["federation", "local_endpoint_changed", "10000"]), None);
        let figures: Vec<String> = figures(PRINTED).unwrap().iter().map(|figure| format!("{figure:?}")).collect();
        for (figure, measured) in figures.iter().zip(["37.4", "96.0", "141.0"]) {
            assert!(figure.contains(&format!("measured: {measured}")), "{figure}");
        }
    }

    #[test]
    fn a_figure_that_is_missing_is_an_error() {
        assert!(figures(&PRINTED.replace("per remote", "")).is_err());
        assert!(figures(&PRINTED.replace("federation", "")).is_err());
    }
}
