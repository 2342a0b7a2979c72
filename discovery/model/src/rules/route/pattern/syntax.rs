//! Which regular expressions RE2 and we read alike, and how large RE2's program for one gets.
//!
//! The text is parsed alone, before it is put into anything: `/x)|(/y` is none, whatever is around it. What RE2 refuses
//! beyond that is told in its `parse.cc`: operators of repetition that follow each other, and counts that come to more
//! than 1,000 with all counts around them. A test of the workspace compares the verdicts with Envoy's.

use regex_syntax::ast::parse::Parser;
use regex_syntax::ast::{
    AssertionKind, Ast, ClassBracketed, ClassPerl, ClassPerlKind, ClassSet, ClassSetItem, Flag, Flags, FlagsItemKind,
    GroupKind, Literal, LiteralKind, Repetition, RepetitionKind, RepetitionRange, Span, SpecialLiteralKind,
};
use regex_syntax::hir::translate::TranslatorBuilder;

use super::{MAX_REPETITION, PatternError};

/// Instructions of RE2 for the characters that are not ASCII, in UTF-8.
const NOT_ASCII: u32 = 10;
/// Instructions for a range of ASCII.
const RANGE: u32 = 2;
/// Instructions for a character or a range of them in both cases: two of them have a third that is not ASCII.
const BOTH_CASES: u32 = 8;

/// Checks it, and gives the most instructions that RE2 makes of it.
pub(super) fn steps(text: &str) -> Result<u32, PatternError> {
    if !text.is_ascii() {
        return Err(PatternError::Unsupported("a character that is not ASCII"));
    }
    let ast = Parser::new().parse(text).map_err(|error| PatternError::Syntax(error.kind().to_string()))?;
    // Flags count for what follows them; as if for all of it, there are only more steps.
    let steps = Walk { text, both_cases: text.contains("(?i)") }.steps(&ast, 1)?;
    let mut translator = TranslatorBuilder::new().unicode(false).utf8(false).build();
    match translator.translate(text, &ast) {
        Ok(_) => Ok(steps.saturating_add(OUTSIDE)),
        Err(error) => Err(PatternError::Syntax(error.kind().to_string())),
    }
}

/// Instructions of an empty expression.
const OUTSIDE: u32 = 4;

struct Walk<'t> {
    text: &'t str,
    both_cases: bool,
}

impl Walk<'_> {
    /// `times`: the counts of all repetitions around it. The parser bounds how deep this goes.
    fn steps(&self, ast: &Ast, times: u32) -> Result<u32, PatternError> {
        match ast {
            Ast::Empty(_) => Ok(1),
            Ast::Flags(flags) => is_ignore_case(&flags.flags).map(|()| 0),
            Ast::Literal(literal) => self.literal(literal),
            Ast::Dot(_) => Ok(NOT_ASCII),
            Ast::Assertion(assertion) => match assertion.kind {
                AssertionKind::StartLine
                | AssertionKind::EndLine
                | AssertionKind::WordBoundary
                | AssertionKind::NotWordBoundary => Ok(1),
                AssertionKind::StartText
                | AssertionKind::EndText
                | AssertionKind::WordBoundaryStart
                | AssertionKind::WordBoundaryEnd
                | AssertionKind::WordBoundaryStartAngle
                | AssertionKind::WordBoundaryEndAngle
                | AssertionKind::WordBoundaryStartHalf
                | AssertionKind::WordBoundaryEndHalf => Err(bad_escape()),
            },
            Ast::ClassUnicode(_) => Err(bad_escape()),
            Ast::ClassPerl(class) => Ok(self.perl(class)),
            Ast::ClassBracketed(class) => self.class(class),
            Ast::Repetition(repetition) => self.repetition(repetition, times),
            Ast::Group(group) => match &group.kind {
                GroupKind::CaptureIndex(_) => Ok(self.steps(&group.ast, times)?.saturating_add(2)),
                GroupKind::NonCapturing(flags) if flags.items.is_empty() => self.steps(&group.ast, times),
                GroupKind::NonCapturing(_) | GroupKind::CaptureName { .. } => Err(bad_group()),
            },
            Ast::Alternation(all) => {
                let nodes = u32::try_from(all.asts.len()).unwrap_or(u32::MAX);
                Ok(self.sum(&all.asts, times)?.saturating_add(nodes))
            }
            Ast::Concat(all) => self.sum(&all.asts, times),
        }
    }

    fn sum(&self, asts: &[Ast], times: u32) -> Result<u32, PatternError> {
        asts.iter().try_fold(0_u32, |steps, ast| Ok(steps.saturating_add(self.steps(ast, times)?)))
    }

    fn repetition(&self, repetition: &Repetition, times: u32) -> Result<u32, PatternError> {
        if let Ast::Repetition(inner) = &*repetition.ast {
            let operators = inner.op.span.start.offset..repetition.op.span.end.offset;
            return Err(PatternError::Stacked(self.text.get(operators).unwrap_or_default().to_owned()));
        }
        let RepetitionKind::Range(range) = &repetition.op.kind else {
            return Ok(self.steps(&repetition.ast, times)?.saturating_add(2));
        };
        let (written, most) = match range {
            RepetitionRange::Exactly(count) => (format!("{{{count}}}"), *count),
            RepetitionRange::AtLeast(least) => (format!("{{{least},}}"), *least),
            RepetitionRange::Bounded(least, most) => (format!("{{{least},{most}}}"), *most),
        };
        // To RE2, {02} and { 2} are texts.
        if self.of(&repetition.op.span).trim_end_matches('?') != written {
            return Err(PatternError::Unsupported("a space or a leading zero in { }"));
        }
        let times = times.saturating_mul(most.max(1));
        if times > MAX_REPETITION {
            return Err(PatternError::TooOften(times));
        }
        // One more for each to go on or to end, and for what comes after the last without a bound.
        let one = self.steps(&repetition.ast, times)?.saturating_add(1);
        Ok(one.saturating_mul(most.max(1)).saturating_add(2))
    }

    fn literal(&self, literal: &Literal) -> Result<u32, PatternError> {
        use SpecialLiteralKind::{CarriageReturn, FormFeed, LineFeed, Tab, VerticalTab};
        match literal.kind {
            LiteralKind::Verbatim
            | LiteralKind::Meta
            | LiteralKind::Superfluous
            | LiteralKind::Special(FormFeed | Tab | LineFeed | CarriageReturn | VerticalTab) => {
                Ok(if self.both_cases && literal.c.is_ascii_alphabetic() { BOTH_CASES } else { 1 })
            }
            LiteralKind::Octal | LiteralKind::HexFixed(_) | LiteralKind::HexBrace(_) | LiteralKind::Special(_) => {
                Err(bad_escape())
            }
        }
    }

    fn class(&self, class: &ClassBracketed) -> Result<u32, PatternError> {
        // Not an operation to us, but a range to RE2.
        let begins_with_range = ["[--", "[^--"].iter().any(|start| self.of(&class.span).starts_with(start));
        let ClassSet::Item(item) = &class.kind else { return Err(bad_set()) };
        if begins_with_range {
            return Err(bad_set());
        }
        let rest = if class.negated { self.not_ascii() } else { 1 };
        Ok(self.class_item(item)?.saturating_add(rest))
    }

    fn class_item(&self, item: &ClassSetItem) -> Result<u32, PatternError> {
        match item {
            ClassSetItem::Empty(_) => Ok(0),
            ClassSetItem::Literal(literal) => Ok(self.literal(literal)?.max(RANGE)),
            ClassSetItem::Range(range) => {
                let ends = self.literal(&range.start)?.max(self.literal(&range.end)?);
                // Letters can be in it though none is an end of it.
                Ok(if self.both_cases { BOTH_CASES } else { ends.max(RANGE) })
            }
            ClassSetItem::Perl(class) => Ok(self.perl(class)),
            ClassSetItem::Union(union) => {
                union.items.iter().try_fold(0_u32, |steps, item| Ok(steps.saturating_add(self.class_item(item)?)))
            }
            ClassSetItem::Ascii(_) | ClassSetItem::Bracketed(_) => Err(PatternError::Unsupported("[ inside of [ ]")),
            ClassSetItem::Unicode(_) => Err(bad_escape()),
        }
    }

    fn perl(&self, class: &ClassPerl) -> u32 {
        let ranges = match class.kind {
            ClassPerlKind::Digit => 1,
            ClassPerlKind::Space => 3,
            ClassPerlKind::Word => 4,
        };
        // What is not in them is one range more.
        let not = if class.negated { RANGE + self.not_ascii() } else { 0 };
        ranges * RANGE + not + if self.both_cases { BOTH_CASES } else { 0 }
    }

    /// All that is not ASCII; but for two characters that are letters of ASCII in the other case.
    fn not_ascii(&self) -> u32 {
        if self.both_cases { 2 * NOT_ASCII } else { NOT_ASCII }
    }

    fn of(&self, span: &Span) -> &str {
        self.text.get(span.start.offset..span.end.offset).unwrap_or_default()
    }
}

fn is_ignore_case(flags: &Flags) -> Result<(), PatternError> {
    match flags.items.as_slice() {
        [flag] if flag.kind == FlagsItemKind::Flag(Flag::CaseInsensitive) => Ok(()),
        _ => Err(bad_group()),
    }
}

fn bad_escape() -> PatternError {
    let known = "an escape other than \\d \\D \\s \\S \\w \\W \\b \\B and those of single characters";
    PatternError::Unsupported(known)
}

fn bad_group() -> PatternError {
    PatternError::Unsupported("a group that begins with (? and is not (?: or (?i)")
}

fn bad_set() -> PatternError {
    PatternError::Unsupported("an operation on sets")
}
