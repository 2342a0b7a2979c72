//! What is wrong with a file, said so that its author can mend it: where, what, and what to do.

use std::collections::BTreeSet;
use std::fmt;

/// Most diagnostics that are kept; further ones are only counted. A generated file with one
/// mistake per line must not cost memory in proportion to its square.
const MAX_KEPT: usize = 200;

/// Longest part of a line that is quoted, in characters.
const MAX_QUOTED: usize = 120;

/// A text with the name its diagnostics carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    name: String,
    text: String,
}

impl Source {
    /// `name` is how the user calls the file: its path as configured.
    #[must_use]
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into() }
    }

    /// How the user calls the file.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    fn line(&self, number: u32) -> Option<&str> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        self.text.lines().nth(index)
    }
}

/// A stretch of a [`Source`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// Length in characters on the first line, at least 1.
    pub length: u32,
}

/// Whether the file can be used in spite of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can, but does hardly what was meant.
    Warning,
}

/// The kind of mistake; stable, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The file or folder cannot be read.
    Unreadable,
    /// The file is larger than its limit.
    TooLarge,
    /// Not YAML, or YAML that we refuse (anchors, tags, several documents).
    Syntax,
    /// Another `apiVersion` or `kind` than belongs here.
    Kind,
    /// A key that does not exist.
    UnknownKey,
    /// A key twice in one mapping.
    DuplicateKey,
    /// A key that must be there.
    Missing,
    /// A list where a text belongs, and the like.
    Type,
    /// The right type, but not a value that is possible.
    Value,
    /// A name, address or key that something else already has.
    Duplicate,
    /// Two settings that exclude each other.
    Conflict,
    /// Possible, but refused for safety.
    Forbidden,
    /// Nothing happens because nothing is listed.
    Empty,
    /// Takes effect at the next start only.
    NeedsRestart,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// Its kind.
    pub code: Code,
    /// The file, as the user calls it.
    pub file: String,
    /// Where in it, if the mistake has a place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span: Option<Span>,
    /// The key, e.g. `spec.addresses[0]`; empty for the whole file.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The line in question, control characters replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quote: Option<String>,
    /// Where in `quote` the place begins, in characters from 0.
    #[serde(skip)]
    quote_start: usize,
}

impl Diagnostic {
    /// Something about `file` as a whole.
    #[must_use]
    pub fn of_file(severity: Severity, code: Code, file: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity,
            code,
            file: file.into(),
            span: None,
            path: String::new(),
            message: message.into(),
            help: None,
            quote: None,
            quote_start: 0,
        }
    }

    /// Something about `span` of `source`.
    #[must_use]
    pub fn at(severity: Severity, code: Code, source: &Source, span: Span, message: impl Into<String>) -> Self {
        let mut diagnostic = Self::of_file(severity, code, source.name(), message);
        diagnostic.span = Some(span);
        if let Some(line) = source.line(span.line) {
            let column = usize::try_from(span.column.saturating_sub(1)).unwrap_or(0);
            // A line may be a megabyte long: quote a window that holds the place.
            let skipped = if column > MAX_QUOTED * 2 / 3 { column - MAX_QUOTED / 2 } else { 0 };
            let window = line.chars().skip(skipped).take(MAX_QUOTED).map(printable);
            diagnostic.quote = Some(window.collect::<String>().trim_end().to_owned());
            diagnostic.quote_start = column - skipped;
        }
        diagnostic
    }

    /// Adds the key.
    #[must_use]
    pub fn with_path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Whether the file cannot be used.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// `file:line:column: path: message`, without quote and help: one log line.
    #[must_use]
    pub fn headline(&self) -> String {
        use fmt::Write as _;
        let mut text = self.file.clone();
        let mut add = |part: fmt::Arguments<'_>| {
            // Writing to a String cannot fail.
            let _unused = text.write_fmt(part);
        };
        if let Some(span) = self.span {
            add(format_args!(":{}:{}", span.line, span.column));
        }
        if self.severity == Severity::Warning {
            add(format_args!(": warning"));
        }
        if !self.path.is_empty() {
            add(format_args!(": {}", self.path));
        }
        add(format_args!(": {}", self.message));
        text
    }
}

/// The headline, the line in question with a mark under the place, and the help.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.headline())?;
        if let (Some(span), Some(quote)) = (self.span, &self.quote) {
            let left = quote.chars().count().saturating_sub(self.quote_start).max(1);
            let length = usize::try_from(span.length).unwrap_or(1).clamp(1, left);
            let number = span.line.to_string();
            write!(f, "\n  {number} | {quote}\n  {:width$} | ", "", width = number.len())?;
            write!(f, "{:indent$}{}", "", "^".repeat(length), indent = self.quote_start)?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

/// A character that cannot move the cursor, colour the terminal or turn the text around.
fn printable(character: char) -> char {
    match character {
        '\t' => ' ',
        // Bidirectional controls (Trojan Source, CVE-2021-42574).
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => '\u{fffd}',
        other if other.is_control() => '\u{fffd}',
        other => other,
    }
}

/// `text` in quotes for a message, with nothing in it that could harm a terminal or a log.
#[must_use]
pub fn quoted(text: &str) -> String {
    const MAX: usize = 80;
    let mut shown: String = text.chars().take(MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

/// The word of `candidates` that was probably meant by `word`.
#[must_use]
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    // The work is quadratic in the lengths, and no key of ours is half as long.
    if word.len() > 64 {
        return None;
    }
    let likeness = |candidate: &str| {
        let candidate = candidate.to_ascii_lowercase();
        let distance = strsim::osa_distance(&word, &candidate);
        let near = distance <= 1 + word.len().min(candidate.len()) / 4;
        let like = strsim::jaro_winkler(&word, &candidate);
        (near || like >= 0.9).then_some(like)
    };
    let scored = candidates.into_iter().filter_map(|candidate| Some((likeness(candidate)?, candidate)));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, candidate)| candidate)
}

/// All that is wrong, in the order found.
#[derive(Clone, Debug, Default)]
pub struct Diagnostics {
    kept: Vec<Diagnostic>,
    errors: usize,
    dropped: usize,
    /// `file: path` of keys that are there under a wrong name: that they are missing is no news.
    misspelt: BTreeSet<String>,
}

impl Diagnostics {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.errors += usize::from(diagnostic.is_error());
        if self.kept.len() < MAX_KEPT {
            self.kept.push(diagnostic);
        } else {
            self.dropped += 1;
        }
    }

    /// Adds all of `other`.
    pub fn append(&mut self, other: Self) {
        let dropped_errors = other.errors - other.kept.iter().filter(|each| each.is_error()).count();
        other.kept.into_iter().for_each(|each| self.push(each));
        self.errors += dropped_errors;
        self.dropped += other.dropped;
        self.misspelt.extend(other.misspelt);
    }

    /// Notes that the key `path` of `file` was reported as written wrong.
    pub(crate) fn misspelt(&mut self, file: &str, path: &str) {
        if self.misspelt.len() < MAX_KEPT {
            self.misspelt.insert(format!("{file}: {path}"));
        }
    }

    /// Whether [`Diagnostics::misspelt`] was told of this key.
    pub(crate) fn is_misspelt(&self, file: &str, path: &str) -> bool {
        self.misspelt.contains(&format!("{file}: {path}"))
    }

    /// Whether one of them is an error.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// How many are errors, those not kept included.
    #[must_use]
    pub fn error_count(&self) -> usize {
        self.errors
    }

    /// How many were counted but not kept.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// The kept ones, in the order found.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.kept.iter()
    }

    /// Sorts by file and place, so that equal input gives equal output however it was checked.
    pub fn sort(&mut self) {
        self.kept.sort_by(|a, b| {
            let place = |each: &Diagnostic| each.span.map(|span| (span.line, span.column));
            a.file.cmp(&b.file).then(place(a).cmp(&place(b)))
        });
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.kept.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        if self.dropped > 0 {
            write!(f, "\nand {} more", self.dropped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probable_word_is_offered() {
        let keys = ["addresses", "trustDomain", "gateway", "pins", "bundle", "export", "import"];
        let cases = [
            ("adress", Some("addresses")),
            ("pin", Some("pins")),
            ("trustdomain", Some("trustDomain")),
            ("exports", Some("export")),
            ("colour", None),
            ("", None),
        ];
        for (word, expected) in cases {
            assert_eq!(did_you_mean(word, keys), expected, "{word}");
        }
        assert_eq!(did_you_mean(&"a".repeat(1 << 20), keys), None);
    }

    #[test]
    fn p11_nothing_of_a_file_reaches_the_terminal_raw() {
        let source = Source::new("f.yaml", "key: \u{1b}[31mred\u{202e}\0\tx");
        let span = Span { line: 1, column: 6, length: 3 };
        let message = format!("is {}", quoted("\u{1b}[31m\n\u{202e}"));
        let shown = Diagnostic::at(Severity::Error, Code::Value, &source, span, message).to_string();
        assert!(!shown.contains(['\u{1b}', '\u{202e}', '\0', '\t']), "{shown:?}");
        assert_eq!(shown.lines().count(), 3, "{shown:?}");
    }

    #[test]
    fn long_lines_are_quoted_around_the_place() {
        let source = Source::new("f.yaml", format!("{}here{}", "a".repeat(5000), "b".repeat(5000)));
        let span = Span { line: 1, column: 5001, length: 4 };
        let diagnostic = Diagnostic::at(Severity::Error, Code::Value, &source, span, "is wrong");
        let quote = diagnostic.quote.clone().unwrap();
        assert_eq!(quote.chars().count(), MAX_QUOTED);
        assert!(quote[diagnostic.quote_start..].starts_with("here"));
    }

    #[test]
    fn many_mistakes_cost_bounded_memory() {
        let mut all = Diagnostics::new();
        for _ in 0..1000 {
            all.push(Diagnostic::of_file(Severity::Error, Code::Value, "f", "x"));
        }
        assert_eq!((all.iter().count(), all.error_count(), all.dropped()), (MAX_KEPT, 1000, 800));
        let mut sum = Diagnostics::new();
        sum.append(all);
        assert_eq!((sum.error_count(), sum.dropped()), (1000, 800));
    }
}
