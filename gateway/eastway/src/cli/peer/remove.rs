//! `eastway peer remove`: the file goes, and everything that came of it.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use eastway_registry::diagnostic::did_you_mean;

use crate::admin::views::Leftovers;
use crate::cli::client::{self, Target, encode};
use crate::cli::config::ConfigFile;
use crate::cli::exit::Failure;
use crate::cli::output::print;
use crate::config::Loaded;
use crate::human;

/// Pause between two questions to the gateway.
const POLL: Duration = Duration::from_millis(100);

/// Arguments of `eastway peer remove`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eastway peer remove gke --config gateway.yaml
  eastway peer remove gke --config gateway.yaml --dry-run     only say which file it would be

It waits until the running gateway has no link, no session, no import, no virtual address and no state
file of that peer any more. What the peer has of us goes when it notices: ask its operator to remove us.")]
pub(in crate::cli) struct RemoveArgs {
    /// The peer's cluster name
    name: String,
    #[command(flatten)]
    config: ConfigFile,
    /// Say which file would be deleted, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// How long to wait for the gateway
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,
}

pub(super) fn remove(args: &RemoveArgs) -> Result<(), Failure> {
    let loaded = args.config.load()?;
    let name = &args.name;
    let Some(peer) = loaded.peers.values().find(|peer| peer.name.as_str() == *name) else {
        return Err(unknown(name, &loaded));
    };
    let file = &peer.file;
    if args.dry_run {
        return print(&format!("would delete {}\n", file.display()));
    }
    let target = Target::at(loaded.settings.listen.admin);
    // Asked before: a gateway that does not run has nothing to wait for.
    let running = leftovers(&target, name);
    delete(file)?;
    print(&format!("deleted {}\n", file.display()))?;
    match running {
        Ok(_) => wait(&target, name, args.timeout),
        Err(_) => print("no gateway runs here; when it starts, it drops what it stored of this peer\n"),
    }
}

fn unknown(name: &str, loaded: &Loaded) -> Failure {
    let names: Vec<&str> = loaded.peers.values().map(|peer| peer.name.as_str()).collect();
    let hint = match did_you_mean(name, names.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None if names.is_empty() => "no peer is configured".to_owned(),
        None => format!("there are {}", names.join(", ")),
    };
    let folder = loaded.settings.peers.path.display();
    Failure::because(format!("no peer is called {name:?} in {folder}; {hint}"))
}

fn delete(file: &Path) -> Result<(), Failure> {
    std::fs::remove_file(file).map_err(|error| {
        let hint = match error.kind() == std::io::ErrorKind::ReadOnlyFilesystem {
            true => "; it is mounted read-only: remove the peer where the mount comes from, e.g. the ConfigMap",
            false => "",
        };
        Failure::because(format!("cannot delete {}: {error}{hint}", file.display()))
    })
}

fn leftovers(target: &Target, name: &str) -> Result<Leftovers, Failure> {
    client::view(&target.get(&format!("/leftovers?peer={}", encode(name)))?)
}

/// Waits until the gateway has nothing left of the peer.
fn wait(target: &Target, name: &str, timeout: Duration) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        let left = leftovers(target, name)?;
        if left.is_nothing() {
            let after = human::duration(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
            return print(&format!("nothing is left of {name} in the gateway, after {after}\n"));
        }
        if begun.elapsed() >= timeout {
            return Err(Failure::because(format!(
                "after {timeout:?} the gateway still has {}; see its log",
                list(left)
            )));
        }
        sleep(POLL);
    }
}

/// What is left, in words.
fn list(left: Leftovers) -> String {
    let Leftovers { configured, links, sessions, imports, vips, files } = left;
    let counts = [
        (u32::from(configured), "the peer in its configuration (a reload was refused?)".to_owned()),
        (links, format!("{links} links")),
        (sessions, format!("{sessions} sessions")),
        (imports, format!("{imports} imports")),
        (vips, format!("{vips} virtual addresses")),
        (files, format!("{files} state files")),
    ];
    counts.into_iter().filter(|(count, _)| *count > 0).map(|(_, text)| text).collect::<Vec<_>>().join(", ")
}
