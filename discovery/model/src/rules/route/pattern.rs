//! Texts to compare with, and regular expressions that all readers of a rule take alike.

mod syntax;

use std::fmt;
use std::sync::Arc;

use regex::bytes::RegexBuilder;

/// Longest regular expression, bytes (Gateway API: `path.value`).
pub const MAX_PATTERN: usize = 1_024;
/// Most [steps](Pattern::steps) of one. Two of them, which are one for a gRPC method, stay below the 32,768
/// instructions that sidecars take.
pub const MAX_STEPS: u32 = 15_000;
/// Most times that something is repeated by counts, those around it included (RE2).
const MAX_REPETITION: u32 = 1_000;
/// Most memory of one while it is compiled, bytes: several times what [`MAX_STEPS`] need.
const MAX_COMPILED: usize = 8 << 20;

/// A regular expression that matches a whole text, in the common part of RE2's and Rust's syntax: what one of them
/// refuses, or reads otherwise, is refused here, because a proxy would refuse all rules of a service for it.
///
/// It is kept as its text. Compiled it is many times as large, and who needs that are proxies: here requests are matched
/// for those who ask what would become of one, and it is compiled for each question.
#[derive(Clone, PartialEq, Eq)]
pub struct Pattern {
    text: Arc<str>,
    steps: u32,
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
    /// A repetition of a repetition, by its operators.
    #[error(
        "has {0}, a repetition of a repetition, which RE2 refuses; put the first one into a group: (?:a*)* for a**"
    )]
    Stacked(String),
    /// Counts of nested repetitions that come to more than 1,000.
    #[error(
        "repeats a part {0} times with all counts around it, and RE2 at most {MAX_REPETITION} times; lower them, or repeat without a bound: a* for a{{0,5000}}"
    )]
    TooOften(u32),
    /// More than [`MAX_STEPS`].
    #[error(
        "comes to {0} steps with its counted repetitions written out; {MAX_STEPS} are allowed. Lower the counts, or repeat without a bound: .* for .{{0,900}}"
    )]
    TooLarge(u32),
    /// It is no regular expression.
    #[error("is no regular expression: {0}")]
    Syntax(String),
}

impl Pattern {
    /// Checks it.
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
        let steps = syntax::steps(text)?;
        if steps > MAX_STEPS {
            return Err(PatternError::TooLarge(steps));
        }
        Ok(Self { text: Arc::from(text), steps })
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
        let mut builder = RegexBuilder::new(&format!("^(?:{})$", self.text));
        // What is checked compiles within its bounds.
        builder.unicode(false).size_limit(MAX_COMPILED).build().is_ok_and(|regex| regex.is_match(text.as_bytes()))
    }

    /// How large a proxy's program for it is at most, in instructions of RE2.
    #[must_use]
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

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

    /// [Steps](Pattern::steps) of its pattern, if it is one.
    #[must_use]
    pub fn steps(&self) -> u32 {
        match self {
            Self::Exact(_) => 0,
            Self::Regex(pattern) => pattern.steps(),
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
