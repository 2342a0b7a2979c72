//! As much of the Corefile's grammar as is needed to find server blocks and what is in them.
//!
//! It is the Caddyfile's: words between blanks; `"…"` may hold blanks and line ends; `#` begins a comment where a word
//! could begin; a block begins with `{` at the end of a line and ends with `}`.

use super::PlanError;

/// A server block, or a snippet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Line of its first address, from 1.
    pub(super) line: usize,
    /// What it serves, as written; commas are gone.
    pub(super) addresses: Vec<String>,
    /// Its directives.
    pub(super) directives: Vec<Directive>,
}

/// A plugin and what follows it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Directive {
    /// The first line, split into words.
    pub(super) words: Vec<String>,
    /// The lines of its own block.
    pub(super) options: Vec<Vec<String>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Word {
    line: usize,
    text: String,
    quoted: bool,
}

impl Word {
    fn is(&self, brace: &str) -> bool {
        !self.quoted && self.text == brace
    }
}

/// The server blocks and snippets; statements outside of blocks (`import`) are passed over.
pub(super) fn blocks(text: &str) -> Result<Vec<Block>, PlanError> {
    let words = words(text)?;
    let mut rest = words.as_slice();
    let mut blocks = Vec::new();
    while let Some(first) = rest.first() {
        if first.text == "import" && !first.quoted {
            rest = after_line(rest);
            continue;
        }
        let open = rest.iter().position(|word| word.is("{") || word.is("}"));
        let open = open.filter(|at| rest.get(*at).is_some_and(|word| word.is("{")));
        let Some((addresses, body)) = open.map(|at| rest.split_at(at)) else {
            return Err(PlanError::Syntax { line: first.line, what: "a server without braces, or a stray `}`" });
        };
        let (directives, after) = directives(body, first.line)?;
        blocks.push(Block { line: first.line, addresses: split_commas(addresses), directives });
        rest = after;
    }
    Ok(blocks)
}

/// Addresses may be separated by commas, with or without blanks.
fn split_commas(words: &[Word]) -> Vec<String> {
    let parts = words.iter().flat_map(|word| word.text.split(','));
    parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn after_line(words: &[Word]) -> &[Word] {
    let line = words.first().map_or(0, |word| word.line);
    let end = words.iter().position(|word| word.line != line).unwrap_or(words.len());
    words.get(end..).unwrap_or_default()
}

/// The directives of the block whose `{` is the first word, and what follows its `}`.
fn directives(words: &[Word], opened: usize) -> Result<(Vec<Directive>, &[Word]), PlanError> {
    let mut directives: Vec<Directive> = Vec::new();
    // 1: in the server block. 2: in the block of a directive. Deeper: passed over.
    let (mut depth, mut line) = (0_usize, 0);
    for (index, word) in words.iter().enumerate() {
        if word.is("{") {
            depth += 1;
            line = word.line;
            continue;
        }
        if word.is("}") {
            depth -= 1;
            if depth == 0 {
                return Ok((directives, words.get(index + 1..).unwrap_or_default()));
            }
            continue;
        }
        let is_new = word.line != line;
        line = word.line;
        match (depth, directives.last_mut()) {
            (1, Some(last)) if !is_new => last.words.push(word.text.clone()),
            (1, _) => directives.push(Directive { words: vec![word.text.clone()], options: Vec::new() }),
            (2, Some(last)) => match last.options.last_mut() {
                Some(option) if !is_new => option.push(word.text.clone()),
                _ => last.options.push(vec![word.text.clone()]),
            },
            _ => {}
        }
    }
    Err(PlanError::Syntax { line: opened, what: "the block that begins here has no `}`" })
}

fn words(text: &str) -> Result<Vec<Word>, PlanError> {
    let mut words = Vec::new();
    let mut line = 1;
    let mut rest = text.chars().peekable();
    while let Some(letter) = rest.next() {
        match letter {
            '\n' => line += 1,
            '#' => while rest.next_if(|letter| *letter != '\n').is_some() {},
            '"' => {
                let (begun, mut word) = (line, String::new());
                loop {
                    match rest.next() {
                        Some('"') => break,
                        Some('\\') if rest.peek() == Some(&'"') => word.extend(rest.next()),
                        Some(letter) => {
                            line += usize::from(letter == '\n');
                            word.push(letter);
                        }
                        None => return Err(PlanError::Syntax { line: begun, what: "a quote that does not end" }),
                    }
                }
                words.push(Word { line: begun, text: word, quoted: true });
            }
            letter if letter.is_whitespace() => {}
            letter => {
                let mut word = String::from(letter);
                while let Some(letter) = rest.next_if(|letter| !letter.is_whitespace()) {
                    word.push(letter);
                }
                words.push(Word { line, text: word, quoted: false });
            }
        }
    }
    Ok(words)
}
