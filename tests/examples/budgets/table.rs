//! One figure and its budget, and how they are shown.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// How much worse than its budget a size or an amount of memory may be: they hardly vary.
const TOLERANCE_OF_SIZES: f64 = 1.1;
/// How much worse a time may be: machines differ, and others run on them.
const TOLERANCE_OF_TIMES: f64 = 2.0;

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Millions of bytes.
    #[serde(rename = "MB")]
    Megabytes,
    /// Bytes.
    #[serde(rename = "B")]
    Bytes,
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Microseconds of CPU time.
    #[serde(rename = "µs")]
    Microseconds,
}

impl Kind {
    fn unit(self) -> &'static str {
        match self {
            Self::Megabytes => "MB",
            Self::Bytes => "B",
            Self::Milliseconds => "ms",
            Self::Microseconds => "µs",
        }
    }

    fn tolerance(self) -> f64 {
        match self {
            Self::Megabytes | Self::Bytes => TOLERANCE_OF_SIZES,
            Self::Milliseconds | Self::Microseconds => TOLERANCE_OF_TIMES,
        }
    }
}

/// A measured figure and the most it may be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    name: String,
    unit: Kind,
    measured: f64,
    budget: f64,
    note: String,
}

impl Figure {
    pub(crate) fn new(name: &str, unit: Kind, measured: f64, budget: f64, note: impl Into<String>) -> Self {
        Self { name: name.to_owned(), unit, measured, budget, note: note.into() }
    }

    /// Within the budget or at most its tolerance above it.
    pub(crate) fn is_tolerable(&self) -> bool {
        self.measured <= self.budget * self.unit.tolerance()
    }

    fn verdict(&self) -> &'static str {
        if self.measured <= self.budget {
            "ok"
        } else if self.is_tolerable() {
            "over"
        } else {
            "MISSED"
        }
    }
}

/// A table for people.
pub(crate) fn text(figures: &[Figure]) -> String {
    let width = figures.iter().map(|figure| figure.name.chars().count()).max().unwrap_or(0);
    let mut text = format!("{:width$}  {:>10}  {:>8}  {:2}  {:7}\n", "budget", "measured", "at most", "", "");
    for figure in figures {
        let Figure { name, unit, measured, budget, note } = figure;
        let (unit, verdict) = (unit.unit(), figure.verdict());
        let line = format!("{name:width$}  {measured:>10.1}  {budget:>8.0}  {unit:2}  {verdict:7}  {note}");
        writeln!(text, "{}", line.trim_end()).expect("a string takes all");
    }
    let (sizes, times) = (TOLERANCE_OF_SIZES, TOLERANCE_OF_TIMES);
    writeln!(text, "\nA budget is MISSED above {sizes} times that of a size, {times} times that of a time.")
        .expect("a string takes all");
    text
}

/// The same for programs.
pub(crate) fn json(figures: &[Figure]) -> serde_json::Value {
    let rows = figures.iter().map(|figure| {
        let mut row = serde_json::to_value(figure).expect("figures are plain");
        row["tolerance"] = figure.unit.tolerance().into();
        row["verdict"] = figure.verdict().to_lowercase().into();
        row
    });
    let rows: Vec<serde_json::Value> = rows.collect();
    serde_json::json!({"budgets": rows, "ok": figures.iter().all(Figure::is_tolerable)})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_missed_by_far_is_not_tolerable() {
        let of = |unit, measured| Figure::new("x", unit, measured, 100.0, "");
        for (figure, verdict) in [
            (of(Kind::Bytes, 100.0), "ok"),
            (of(Kind::Bytes, 109.0), "over"),
            (of(Kind::Bytes, 111.0), "MISSED"),
            (of(Kind::Microseconds, 199.0), "over"),
            (of(Kind::Microseconds, 201.0), "MISSED"),
        ] {
            assert_eq!(figure.verdict(), verdict);
            assert_eq!(json(&[figure])["ok"], verdict != "MISSED");
        }
    }
}
