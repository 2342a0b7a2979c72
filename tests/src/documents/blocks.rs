//! Command blocks of a Markdown text.

/// A fenced block of commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Line of its fence, from 1.
    pub line: usize,
    /// `sh` or `console`.
    language: String,
    /// The word after the language.
    host: Option<String>,
    /// What is between the fences, without their indentation.
    pub text: String,
}

/// One command, or several lines of commands, and what they should print.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// What to run.
    pub command: String,
    /// Nothing: whatever they print is right.
    pub output: String,
}

/// The command blocks of `text`, in order.
///
/// # Errors
/// A block is not closed, or holds commands and says no language.
pub fn of(text: &str) -> Result<Vec<Block>, String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let Some(info) = line.trim_start().strip_prefix("```") else { continue };
        let indent = line.len() - line.trim_start().len();
        let mut content = String::new();
        loop {
            let (_, inner) = lines.next().ok_or_else(|| format!("the block of line {} is not closed", index + 1))?;
            if inner.trim() == "```" {
                break;
            }
            content.push_str(inner.get(indent..).unwrap_or_default());
            content.push('\n');
        }
        let mut words = info.split_ascii_whitespace();
        let (language, host) = (words.next().unwrap_or_default(), words.next());
        match language {
            "sh" | "console" => blocks.push(Block {
                line: index + 1,
                language: language.to_owned(),
                host: host.map(str::to_owned),
                text: content,
            }),
            "bash" | "shell" | "zsh" => return Err(format!("line {}: commands are ```sh or ```console", index + 1)),
            "" if looks_like_commands(&content) => {
                return Err(format!("the block of line {} holds commands: say so with ```sh or ```console", index + 1));
            }
            _ => {}
        }
    }
    Ok(blocks)
}

fn looks_like_commands(content: &str) -> bool {
    let is_command = |line: &str| {
        let line = line.trim_start();
        ["$ ", "eastway ", "make ", "cargo "].iter().any(|start| line.starts_with(start))
    };
    content.lines().any(is_command)
}

impl Block {
    /// Where it is to be run.
    #[must_use]
    pub fn host(&self) -> &str {
        self.host.as_deref().unwrap_or("here")
    }

    /// What to run, in order.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        if self.language == "sh" {
            return vec![Step { command: self.text.clone(), output: String::new() }];
        }
        let mut steps: Vec<Step> = Vec::new();
        for line in self.text.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                steps.push(Step { command: command.to_owned(), output: String::new() });
            } else if let Some(step) = steps.last_mut() {
                if step.command.ends_with('\\') {
                    step.command.push('\n');
                    step.command.push_str(line.strip_prefix("> ").unwrap_or(line));
                } else {
                    step.output.push_str(line);
                    step.output.push('\n');
                }
            }
        }
        steps
    }
}

impl Step {
    /// Whether this is what the document says it prints: runs of blanks count as one, `…` is
    /// anything within a line, a line of `…` alone any lines.
    #[must_use]
    pub fn expects(&self, printed: &str) -> bool {
        if self.output.trim().is_empty() {
            return true;
        }
        let plain = |text: &str| -> Vec<String> {
            let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
            lines.filter(|line| !line.is_empty()).collect()
        };
        lines_match(&plain(&self.output), &plain(printed))
    }
}

fn lines_match(expected: &[String], printed: &[String]) -> bool {
    match (expected.split_first(), printed.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "…" => {
            (0..=printed.len()).any(|skipped| lines_match(rest, &printed[skipped..]))
        }
        (Some((first, rest)), Some((line, others))) => line_matches(first, line) && lines_match(rest, others),
        _ => false,
    }
}

fn line_matches(expected: &str, line: &str) -> bool {
    let mut rest = line;
    let mut parts = expected.split('…').map(str::trim);
    let first = parts.next().unwrap_or_default();
    let Some(after) = rest.strip_prefix(first) else { return false };
    rest = after;
    let mut last = None;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        last = Some(part);
    }
    match last {
        // The last `…` may stand for nothing less than the rest.
        Some(part) => part.is_empty() || line.ends_with(part),
        None => rest.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_with_their_hosts() {
        let text = "a\n```sh onprem\nls\n```\n1. b\n\n   ```console\n   $ echo \\\n   > 1\n   1\n   $ true\n   ```\n```yaml\nx: 1\n```\n";
        let blocks = of(text).unwrap();
        assert_eq!(
            blocks.iter().map(|block| (block.line, block.host())).collect::<Vec<_>>(),
            [(2, "onprem"), (7, "here")]
        );
        let steps = blocks[1].steps();
        assert_eq!(steps[0], Step { command: "echo \\\n1".to_owned(), output: "1\n".to_owned() });
        assert_eq!(steps[1].command, "true");
        assert!(of("```sh\nls\n").is_err());
        assert!(of("```\neastway run\n```\n").is_err());
        assert!(of("```bash\nls\n```\n").is_err());
        assert!(of("```\nsome drawing\n```\n").unwrap().is_empty());
    }

    #[test]
    fn printed_text_is_compared() {
        let expects =
            |output: &str, printed: &str| Step { command: String::new(), output: output.to_owned() }.expects(printed);
        assert!(expects("", "anything"));
        assert!(expects("a  b\n", "a b"));
        assert!(!expects("a\n", "a\nb\n"));
        assert!(expects("a\n…\nz", "a\nb\nc\nz\n"));
        assert!(expects("pin sha256:… ok", "pin   sha256:0123 ok"));
        assert!(!expects("pin sha256:… ok", "pin sha256:0123 not"));
        assert!(expects("242.0.…", "242.0.3.1"));
        assert!(!expects("242.0.…", "10.0.3.1"));
    }
}
