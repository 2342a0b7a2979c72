//! Names that documents mention and that must exist.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::blocks;

/// What `text` mentions and is not there: `make` targets, commands of the binary, packages, linked files.
pub(crate) fn mistakes(root: &Path, document: &str, text: &str) -> Vec<String> {
    let makefile = std::fs::read_to_string(root.join("Makefile")).unwrap();
    let mut mistakes = Vec::new();
    for command in commands(text) {
        let words: Vec<&str> = command.split_ascii_whitespace().collect();
        let known = match words.as_slice() {
            ["make", rest @ ..] => targets(rest).all(|target| makefile.contains(&format!("\n{target}:"))),
            ["eastway", rest @ ..] => is_command(rest),
            ["cargo", rest @ ..] => package(rest).is_none_or(|name| is_package(root, name)),
            [program, ..] if program.contains('/') && !program.starts_with('/') && !program.contains("://") => {
                root.join(program).exists()
            }
            _ => true,
        };
        if !known {
            mistakes.push(format!("there is no `{command}`"));
        }
    }
    let folder = root.join(document).parent().unwrap().to_owned();
    for link in links(text) {
        let path = link.split('#').next().unwrap_or_default();
        if !path.is_empty() && !link.contains("://") && !folder.join(path).exists() {
            mistakes.push(format!("the link to {link} leads nowhere"));
        }
    }
    mistakes
}

/// Every line of a command block, and inline code that begins like a command.
fn commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    for block in blocks::of(text).unwrap() {
        let lines = block.text.lines().map(|line| line.strip_prefix("$ ").unwrap_or(line));
        commands.extend(lines.filter(|line| begins_like_a_command(line)).map(str::to_owned));
    }
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            let code = line.split('`').skip(1).step_by(2);
            commands.extend(code.filter(|code| begins_like_a_command(code)).map(str::to_owned));
        }
    }
    commands
}

fn begins_like_a_command(line: &str) -> bool {
    ["make ", "eastway ", "cargo ", "./tests/", "./bench/"].iter().any(|start| line.starts_with(start))
}

fn targets<'a>(words: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    // Then come variables and other commands.
    let words = words.iter().take_while(|word| !word.contains('=') && !matches!(**word, "&&" | "&" | "|" | ";"));
    words.filter(|word| word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-')).copied()
}

/// Every word is a subcommand of those before it, up to a flag or to a command that takes arguments.
fn is_command(words: &[&str]) -> bool {
    let names = words.iter().take_while(|word| word.chars().all(|letter| letter.is_ascii_lowercase()));
    let mut kept = Vec::new();
    let mut help = help_of(&kept);
    for name in names {
        kept.push(*name);
        let deeper = help_of(&kept);
        if !deeper.contains(&format!("Usage: eastway {}", kept.join(" "))) {
            return !help.contains("\nCommands:\n");
        }
        help = deeper;
    }
    true
}

fn help_of(names: &[&str]) -> String {
    // It calls itself what it is called.
    let mut command = Command::new(eastway_tests::binary());
    let output = command.arg0("eastway").args(names).arg("--help").output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn package<'a>(words: &'a [&'a str]) -> Option<&'a str> {
    let at = words.iter().position(|word| *word == "-p")?;
    words.get(at + 1).copied()
}

fn is_package(root: &Path, name: &str) -> bool {
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).unwrap();
    lock.contains(&format!("name = \"{name}\"\n"))
}

/// Targets of `[…](target)` outside of code.
fn links(text: &str) -> Vec<&str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link).collect()
}
