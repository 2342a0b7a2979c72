//! Every command block of the documents is run, in order, as a reader would: each document in a lab
//! of its own, with the binary under test on the PATH and real gateways where the text starts them.
//!
//! A block is ```` ```sh ```` (commands) or ```` ```console ```` (commands after `$ `, and what they print; `…`
//! stands for anything). A word after the language is the host it is for: `onprem` and `gke` have a WAN
//! between them and the same addresses inside; without a word it is `here`. What cannot be run in a
//! test is in [`NOT_RUN`], with the reason; everything else fails if it does not work. Hosts that begin with `kube-` have
//! clusters of Kubernetes: `tests/tests/e2e_documents` runs these blocks.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod hosts;
mod mentions;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use eastway_tests::documents::blocks::{self, Block};
use eastway_tests::documents::{IN_CLUSTERS, KUBERNETES, read, root};
use eastway_tests::lab_test;
use hosts::Hosts;

/// Blocks that are not run: document, first line, reason. That the commands in them exist is checked.
const NOT_RUN: [(&str, &str, &str); 5] = [
    ("README.md", "make demo", "tests/tests/system/demo.rs runs it"),
    ("README.md", "make test", "this is part of it"),
    ("README.md", "cargo build --release --locked -p eastway", "Cargo built the binary under test before"),
    (
        "docs/operations/certificates.md",
        "kubectl get secret cacerts -n istio-system -o json | jq -r '.data[\"ca-key.pem\"]' | base64 -d > cacerts/ca-key.pem",
        "there is no Kubernetes here",
    ),
    (
        "docs/operations/service.md",
        "useradd --system --home-dir /var/lib/eastway --shell /usr/sbin/nologin eastway",
        "it changes the machine; the units have their test",
    ),
];

/// Every document with blocks that are run, and the test that runs it.
const RUN: [&str; 8] = [
    "README.md",
    "docs/dns.md",
    "docs/istio.md",
    "docs/operations/certificates.md",
    "docs/operations/troubleshooting.md",
    "docs/operations/upgrade.md",
    "docs/routing.md",
    "docs/sidecars.md",
];

lab_test! {
    async fn readme_works_as_it_stands() {
        run("README.md").await
    }

    async fn dns_works_as_it_stands() {
        run("docs/dns.md").await
    }

    async fn istio_works_as_it_stands() {
        run("docs/istio.md").await
    }

    async fn certificates_works_as_it_stands() {
        run("docs/operations/certificates.md").await
    }

    async fn troubleshooting_works_as_it_stands() {
        run("docs/operations/troubleshooting.md").await
    }

    async fn routing_works_as_it_stands() {
        run("docs/routing.md").await
    }

    async fn sidecars_works_as_it_stands() {
        run("docs/sidecars.md").await
    }

    async fn upgrade_works_as_it_stands() {
        run("docs/operations/upgrade.md").await
    }
}

/// README.md and its neighbours, and all below docs/: paths from the root.
fn documents() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("docs")];
    let mut files: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(|name| root().join(name)).into();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                files.push(path);
            }
        }
    }
    for file in files {
        found.push(file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
    }
    found.sort();
    found
}

/// Why a block is not run, if that is so.
fn reason(document: &str, block: &Block) -> Option<&'static str> {
    if block.host().starts_with(KUBERNETES) {
        return Some("it needs clusters of Kubernetes: tests/tests/e2e_documents runs it");
    }
    let entry = NOT_RUN.iter().find(|(of, first, _)| *of == document && Some(*first) == block.text.lines().next());
    entry.map(|(_, _, reason)| *reason)
}

/// What a document that begins where another one ends says in its text, unseen by readers.
fn goes_on_after(text: &str) -> Option<&str> {
    Some(text.split_once("<!-- after ")?.1.split_once(" -->")?.0)
}

async fn run(document: &'static str) -> Result<()> {
    let mut hosts = Hosts::lay().await?;
    if let Some(before) = goes_on_after(&read(document)) {
        run_on(&mut hosts, before).await?;
    }
    run_on(&mut hosts, document).await
}

async fn run_on(hosts: &mut Hosts, document: &str) -> Result<()> {
    let mut run = 0;
    for block in blocks::of(&read(document)).map_err(anyhow::Error::msg)? {
        if let Some(reason) = reason(document, &block) {
            println!("{document}:{}: not run: {reason}", block.line);
            continue;
        }
        for step in block.steps() {
            let output = hosts.run(block.host(), &step.command).await;
            let output = output.with_context(|| format!("{document}:{}: {}", block.line, step.command))?;
            ensure!(
                step.expects(&output),
                "{document}:{}: {}\nprints\n{output}\nnot\n{}",
                block.line,
                step.command,
                step.output
            );
            println!("{}$ {}\n{output}", block.host(), step.command.trim_end());
            run += 1;
        }
    }
    ensure!(run > 0, "{document} has no block to run: take it off the list");
    println!("{document}: {run} steps");
    Ok(())
}

/// No block is forgotten: a document with blocks to run has its test, and exceptions are not stale.
#[test]
fn every_block_is_run_or_has_a_reason() {
    let mut used = Vec::new();
    for document in documents() {
        let blocks = blocks::of(&read(&document)).unwrap_or_else(|error| panic!("{document}: {error}"));
        let (not_run, to_run): (Vec<&Block>, Vec<&Block>) =
            blocks.iter().partition(|block| reason(&document, block).is_some());
        let in_clusters = blocks.iter().any(|block| block.host().starts_with(KUBERNETES));
        assert_eq!(in_clusters, IN_CLUSTERS.contains(&document.as_str()), "{document}: has blocks for Kubernetes");
        used.extend(not_run.iter().map(|block| (document.clone(), block.text.lines().next().unwrap().to_owned())));
        let has_test = RUN.contains(&document.as_str());
        let line = to_run.first().map(|block| block.line);
        assert!(has_test == line.is_some(), "{document}: has a test: {has_test}; first block to run: line {line:?}");
    }
    for (document, first, reason) in NOT_RUN {
        let times = used.iter().filter(|(of, line)| of == document && line == first).count();
        assert_eq!(times, 1, "{document}: `{first}` ({reason}) is there {times} times");
    }
}

/// What documents name exists: make targets, commands of the binary, files, pages.
#[test]
fn what_documents_name_exists() {
    for document in documents() {
        let mistakes = mentions::mistakes(&root(), &document, &read(&document));
        assert!(mistakes.is_empty(), "{document}:\n  {}", mistakes.join("\n  "));
    }
}

/// The units that docs/operations/service.md installs start the binary in a way it takes.
#[test]
fn units_start_what_there_is() {
    let folder = root().join("gateway/eastway/examples/systemd");
    let config = root().join("gateway/eastway/examples/config/gateway.yaml");
    let mut started = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let unit = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for line in unit.lines().filter_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/eastway ")) {
            let words = line
                .split(' ')
                .map(|word| if word == "/etc/eastway/gateway.yaml" { config.to_str().unwrap() } else { word });
            let output =
                std::process::Command::new(eastway_tests::binary()).args(words).arg("--check").output().unwrap();
            // The example warns of a policy that allows nobody, on purpose.
            let code = output.status.code();
            assert!(matches!(code, Some(0 | 3)), "{line}: {}", String::from_utf8_lossy(&output.stderr));
            started += 1;
        }
    }
    assert_eq!(started, 2);
}
