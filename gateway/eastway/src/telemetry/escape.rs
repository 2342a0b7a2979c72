//! Text from outside, made safe to print.

use std::fmt::{self, Write as _};

/// Longest text that is printed; the rest is cut and replaced by `…`.
pub const MAX_PRINTED: usize = 256;

/// Prints a text of unknown origin so that it stays on its line and inside its field: control
/// characters (new lines, NUL, terminal escapes), bidirectional controls and other invisible
/// characters become `\u{…}`, and at most [`MAX_PRINTED`] characters are shown (threat P11).
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, character) in self.0.chars().enumerate() {
            if index == MAX_PRINTED {
                return f.write_char('…');
            }
            if is_unsafe(character) {
                write!(f, "{}", character.escape_unicode())?;
            } else {
                f.write_char(character)?;
            }
        }
        Ok(())
    }
}

/// Whether a character can break a line or a field, or change how its neighbours are shown: controls, line and
/// paragraph separators, the bidirectional controls of Unicode TR9, zero-width characters and the byte order mark.
fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{061c}' | '\u{00ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p11_nothing_breaks_the_line() {
        let hostile = "a\nlevel=ERROR\r\u{1b}[31m\0\u{202e}gpj\u{2028}\u{9b}31m";
        let shown = Escaped(hostile).to_string();
        assert_eq!(shown, "a\\u{a}level=ERROR\\u{d}\\u{1b}[31m\\u{0}\\u{202e}gpj\\u{2028}\\u{9b}31m");
        assert!(shown.chars().all(|c| !is_unsafe(c)));
    }

    #[test]
    fn p11_long_text_is_cut() {
        let shown = Escaped(&"ä".repeat(65_536)).to_string();
        assert_eq!(shown.chars().count(), MAX_PRINTED + 1);
        assert!(shown.ends_with('…'));
    }

    #[test]
    fn ordinary_text_stays() {
        assert_eq!(Escaped("bookinfo/reviews — 50 %").to_string(), "bookinfo/reviews — 50 %");
    }
}
