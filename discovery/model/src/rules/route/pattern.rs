//! Texts to compare with, and regular expressions that all readers of a rule take alike.

use std::fmt;
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};

/// Longest regular expression, bytes (Gateway API: `path.value`).
pub const MAX_PATTERN: usize = 1_024;
/// Most memory of one when it is compiled, bytes. Proxies have limits of their own, and refuse more than the rule.
const MAX_COMPILED: usize = 256 << 10;

/// Most repetitions that RE2 counts.
const MAX_REPETITION: u32 = 1_000;

/// A regular expression that matches a whole text, in the common part of RE2's and Rust's syntax: what one of them
/// refuses, or reads otherwise, is refused here, because a proxy would refuse all rules of a service for it.
#[derive(Clone)]
pub struct Pattern {
    text: Arc<str>,
    compiled: Regex,
}

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It has no characters.
    #[error("is empty")]
    Empty,
    /// More than [`MAX_PATTERN`] bytes.
    #[error("is {0} bytes long; a regular expression may have {MAX_PATTERN}")]
    TooLong(usize),
    /// Something that not all proxies know, or that they read in different ways.
    #[error("has {0}, which not every proxy takes alike; only RE2's syntax without it can be used")]
    Unsupported(&'static str),
    /// It is no regular expression, or too large a one.
    #[error("is no regular expression: {0}")]
    Syntax(String),
}

impl Pattern {
    /// Checks and compiles it.
    ///
    /// # Errors
    /// [`PatternError`]
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.len() > MAX_PATTERN {
            return Err(PatternError::TooLong(text.len()));
        }
        check(text)?;
        let compiled = RegexBuilder::new(&format!("^(?:{text})$")).unicode(false).size_limit(MAX_COMPILED).build();
        // The first lines quote the expression.
        let reason = |error: regex::Error| error.to_string().lines().last().unwrap_or_default().trim().to_owned();
        Ok(Self { text: Arc::from(text), compiled: compiled.map_err(|error| PatternError::Syntax(reason(error)))? })
    }

    /// Whatever begins with this text.
    ///
    /// # Errors
    /// [`PatternError`]: not every text can stand in an expression.
    pub fn beginning(text: &str) -> Result<Self, PatternError> {
        let mut pattern = String::with_capacity(text.len() + 2);
        for c in text.chars() {
            if r"\.+*?()|[]{}^$".contains(c) {
                pattern.push('\\');
            }
            pattern.push(c);
        }
        Self::parse(&(pattern + ".*"))
    }

    /// Whether it matches all of `text`.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.compiled.is_match(text.as_bytes())
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Refuses what RE2 does not know, or reads otherwise than we do.
fn check(text: &str) -> Result<(), PatternError> {
    let unsupported = |what| Err(PatternError::Unsupported(what));
    if !text.is_ascii() {
        return unsupported("a character that is not ASCII");
    }
    let mut rest = text;
    let mut in_class = false;
    while let Some(first) = rest.chars().next() {
        match (first, in_class) {
            ('\\', _) => {
                let escaped = rest.chars().nth(1);
                let known = escaped.is_some_and(|c| c.is_ascii_punctuation() || "dDsSwWntrfv".contains(c))
                    || !in_class && matches!(escaped, Some('b' | 'B'));
                if !known || matches!(escaped, Some('<' | '>')) || rest.starts_with("\\b{") {
                    return unsupported(
                        "an escape other than \\d \\D \\s \\S \\w \\W \\b \\B and those of single characters",
                    );
                }
                rest = rest.get(1..).unwrap_or_default();
            }
            ('[', false) => in_class = true,
            ('[', true) => return unsupported("[ inside of [ ]"),
            (']', true) => in_class = false,
            ('(', false) if rest.starts_with("(?") && !rest.starts_with("(?:") && !rest.starts_with("(?i)") => {
                return unsupported("a group that begins with (? and is not (?: or (?i)");
            }
            ('{', false) => {
                let counts = rest.get(1..).and_then(|rest| rest.split_once('}')).map_or("", |(counts, _)| counts);
                if counts.split(',').any(|count| count.parse::<u32>().is_ok_and(|count| count > MAX_REPETITION)) {
                    return unsupported("a repetition of more than 1000");
                }
            }
            _ if in_class && ["&&", "--", "~~"].iter().any(|word| rest.starts_with(word)) => {
                return unsupported("an operation on sets");
            }
            _ => {}
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    Ok(())
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.text)
    }
}

impl serde::Serialize for Pattern {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// What a text has to be.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TextMatch {
    /// This.
    Exact(Arc<str>),
    /// Anything that it matches.
    Regex(Pattern),
}

impl TextMatch {
    /// Whether `text` is it.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(wanted) => **wanted == *text,
            Self::Regex(pattern) => pattern.matches(text),
        }
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Exact(text) => text,
            Self::Regex(pattern) => pattern.as_str(),
        }
    }
}

/// `text`, or `~ pattern`.
impl fmt::Display for TextMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Regex(pattern) => write!(f, "~ {}", pattern.as_str()),
        }
    }
}
