//! What `eastway dns install` writes into a Corefile: one server block between two markers, in front of all others.
//!
//! In front, because then taking it out leaves what was there to the byte. The first marker carries a digest of what is
//! between them, by which a change made by hand is seen and respected.

use sha2::{Digest as _, Sha256};

use super::syntax::{self, Block};
use super::{PlanError, State, Wanted};

const BEGIN: &str = "# BEGIN eastway ";
const ABOUT: &str = ": written by `eastway dns install`, taken out by `eastway dns uninstall`";
const END: &str = "# END eastway";
/// Port of a server without one.
const PORT: &str = "53";

/// What the resolver with this Corefile does.
///
/// # Errors
/// [`PlanError`]
pub fn state(text: &str, wanted: &Wanted) -> Result<State, PlanError> {
    let block = wanted_block(text, wanted)?;
    Ok(match (ours(text)?, block) {
        (Some(ours), Some(block)) if ours.content == block => State::Installed,
        (Some(_), _) => State::Outdated,
        (None, None) => State::BuiltIn,
        (None, Some(_)) => State::Absent,
    })
}

/// The text that makes the resolver do it; `None` if it does already.
///
/// # Errors
/// [`PlanError`]
pub fn install(text: &str, wanted: &Wanted) -> Result<Option<String>, PlanError> {
    let others = uninstall(text)?;
    let others = others.as_deref().unwrap_or(text);
    let Some(block) = wanted_block(text, wanted)? else { return Ok((others != text).then(|| others.to_owned())) };
    let digest = digest(&block);
    let written = format!("{BEGIN}{digest}{ABOUT}\n{block}{END}\n");
    let written = if is_crlf(others) { written.replace('\n', "\r\n") } else { written };
    let new = written + others;
    Ok((new != text).then_some(new))
}

/// The text without what [`install`] wrote; `None` if it wrote nothing.
///
/// # Errors
/// [`PlanError::Edited`] and [`PlanError::Markers`]
pub fn uninstall(text: &str) -> Result<Option<String>, PlanError> {
    let Some(ours) = ours(text)? else { return Ok(None) };
    let before = text.get(..ours.start).unwrap_or_default();
    let after = text.get(ours.end..).unwrap_or_default();
    Ok(Some(format!("{before}{after}")))
}

/// What we wrote.
struct Ours {
    /// Its bytes, markers and their line ends included.
    start: usize,
    end: usize,
    /// What is between the markers, with `\n`.
    content: String,
}

fn ours(text: &str) -> Result<Option<Ours>, PlanError> {
    let (mut begin, mut found, mut at) = (None, None, 0);
    let mut content = String::new();
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let (start, number, bare) = (at, index + 1, line.trim_end());
        at += line.len();
        if let Some(rest) = bare.strip_prefix(BEGIN) {
            if begin.is_some() || found.is_some() {
                return Err(PlanError::Markers { line: number });
            }
            let digest = rest.split(':').next().unwrap_or_default().to_owned();
            begin = Some((start, number, digest));
        } else if bare == END {
            let Some((start, line, stated)) = begin.take() else { return Err(PlanError::Markers { line: number }) };
            if digest(&content) != stated {
                return Err(PlanError::Edited { line });
            }
            found = Some(Ours { start, end: at, content: std::mem::take(&mut content) });
        } else if begin.is_some() {
            content.push_str(line.strip_suffix("\r\n").or(line.strip_suffix('\n')).unwrap_or(line));
            content.push('\n');
        }
    }
    match begin {
        Some((_, line, _)) => Err(PlanError::Markers { line }),
        None => Ok(found),
    }
}

fn digest(content: &str) -> String {
    let hash = Sha256::digest(content.as_bytes());
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn is_crlf(text: &str) -> bool {
    text.split_inclusive('\n').next().is_some_and(|line| line.ends_with("\r\n"))
}

/// Our server block; `None` if CoreDNS answers all zones by itself.
fn wanted_block(text: &str, wanted: &Wanted) -> Result<Option<String>, PlanError> {
    let others = uninstall(text)?;
    let blocks = syntax::blocks(others.as_deref().unwrap_or(text))?;
    let main = main_block(&blocks);
    let port = main.map_or(PORT, |block| block.port());
    let mut zones = Vec::new();
    for zone in &wanted.zones {
        if blocks.iter().any(|block| block.answers_imports(zone)) {
            continue;
        }
        if let Some(block) = blocks.iter().find(|block| block.serves(zone, port)) {
            // Lines are those of the text as it is, ours in front.
            let ours = ours(text)?.and_then(|ours| Some(text.get(ours.start..ours.end)?.matches('\n').count()));
            return Err(PlanError::Taken { zone: zone.clone(), line: block.line + ours.unwrap_or_default() });
        }
        zones.push(format!("{zone}:{port}"));
    }
    if zones.is_empty() {
        return Ok(None);
    }
    let mut lines = vec![format!("{} {{", zones.join(" "))];
    // A resolver that binds to addresses of its own, as the one on each node does, does so in every block.
    let bind = main.and_then(|block| block.directives.iter().find(|directive| directive.is("bind")));
    lines.extend(bind.map(|bind| format!("    {}", bind.words.join(" "))));
    lines.push("    errors".to_owned());
    // Our answers live for 5 s, denials for 1 s, which `cache` alone would raise to 5.
    lines.extend(["    cache 30 {", "        denial 9984 30 1", "    }"].map(str::to_owned));
    lines.push(format!("    forward . {}", wanted.server));
    lines.push("}".to_owned());
    Ok(Some(lines.join("\n") + "\n"))
}

/// The block that pods ask: with the cluster's names, else the one for everything.
fn main_block(blocks: &[Block]) -> Option<&Block> {
    let with_names = blocks.iter().find(|block| block.directives.iter().any(|directive| directive.is("kubernetes")));
    with_names.or_else(|| blocks.iter().find(|block| block.serves_cluster_names()))
}

impl syntax::Directive {
    fn is(&self, name: &str) -> bool {
        self.words.first().is_some_and(|word| word == name)
    }
}

impl Block {
    fn port(&self) -> &str {
        self.addresses.first().and_then(|address| split(address).1).unwrap_or(PORT)
    }

    fn serves_cluster_names(&self) -> bool {
        self.addresses.iter().any(|address| matches!(split(address).0.as_str(), "cluster.local" | ""))
    }

    /// Whether it answers for this very zone, plainly, on this port.
    fn serves(&self, zone: &str, port: &str) -> bool {
        let serves = |address: &String| {
            let (name, own) = split(address);
            let is_plain = !address.contains("://") || address.starts_with("dns://");
            is_plain && name == zone && own.unwrap_or(PORT) == port
        };
        self.addresses.iter().any(serves)
    }

    /// Whether its `kubernetes` answers the zone from ServiceImports.
    fn answers_imports(&self, zone: &str) -> bool {
        self.directives.iter().filter(|directive| directive.is("kubernetes")).any(|directive| {
            let named = |words: &[String]| words.iter().skip(1).any(|word| split(word).0 == zone);
            let option = |name: &str| directive.options.iter().find(|option| option.first().is_some_and(|n| n == name));
            named(&directive.words) && option("multicluster").is_some_and(|option| named(option))
        })
    }
}

/// Zone and port of a server's address: `clusterset.local`, `dns://Shop.Example.:53`, `.:53`.
fn split(address: &str) -> (String, Option<&str>) {
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    let (name, port) = match bare.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !port.is_empty() => (name, Some(port)),
        _ => (bare, None),
    };
    (name.trim_end_matches('.').to_ascii_lowercase(), port)
}

#[cfg(test)]
mod tests;
