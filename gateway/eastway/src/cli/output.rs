//! How answers are printed: a table for people, JSON or YAML for programs.

use std::io::{self, IsTerminal as _, Write as _};

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::exit::Failure;
use crate::telemetry::Escaped;

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns, for people
    #[default]
    Table,
    /// What the gateway answered, with `apiVersion` and `kind`
    Json,
    /// The same as YAML
    Yaml,
}

/// `-o`.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Output {
    /// How to print
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    pub(super) format: Format,
}

impl Output {
    /// Prints `value`, or `table` made of it.
    pub(super) fn print(self, value: &Value, table: impl FnOnce() -> Result<String, Failure>) -> Result<(), Failure> {
        let text = match self.format {
            Format::Table => table()?,
            Format::Json => serde_json::to_string_pretty(value).map_err(|error| Failure::failed(&error))? + "\n",
            Format::Yaml => serde_saphyr::to_string(value).map_err(|error| Failure::failed(&error))?,
        };
        print(&text)
    }
}

/// Writes to standard output. `println!` would panic when the reader has gone.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Columns aligned with two spaces between them, in the manner of kubectl.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    /// Adds a row; empty cells are shown as `-`.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let shown = |cell: String| if cell.is_empty() { "-".to_owned() } else { Escaped(&cell).to_string() };
        self.rows.push(cells.into_iter().map(shown).collect());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() <= 1
    }

    /// The table, or `instead` if it has no rows.
    pub(super) fn or(self, instead: &str) -> String {
        if self.is_empty() { format!("{instead}\n") } else { self.to_string() }
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut widths = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Colours of single words.
#[derive(Clone, Copy, Debug)]
pub(super) enum Colour {
    Green,
    Yellow,
    Red,
}

/// Paints `text` if standard output is a terminal that wants colours (<https://no-color.org>).
pub(super) fn paint(text: &str, colour: Colour) -> String {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    if refused || !io::stdout().is_terminal() {
        return text.to_owned();
    }
    let code = match colour {
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Red => 31,
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_escape() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(["gke".to_owned(), "up".to_owned()]);
        table.row(["a\nb".to_owned(), String::new()]);
        assert_eq!(table.to_string(), "NAME     STATE\ngke      up\na\\u{a}b  -\n");
    }
}
