//! The rules of the workspace, checked over `cargo metadata`: crate arrows, banned crates,
//! licences and sources. The bans and licences are those of `deny.toml`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Who may depend on whom. A line missing here is an arrow that does not exist.
const ARROWS: &[(&str, &[&str])] = &[
    ("eastway-proto", &[]),
    ("eastway-model", &["eastway-proto"]),
    ("eastway-registry", &["eastway-model"]),
    ("eastway-federation", &["eastway-model", "eastway-proto"]),
    ("eastway-xds", &["eastway-model", "eastway-proto"]),
    ("eastway-kubernetes", &["eastway-model"]),
    ("eastway-dns", &[]),
    ("eastway-identity", &[]),
    ("eastway-tunnel", &["eastway-identity", "eastway-proto"]),
    (
        "eastway",
        &[
            "eastway-proto",
            "eastway-model",
            "eastway-registry",
            "eastway-federation",
            "eastway-xds",
            "eastway-kubernetes",
            "eastway-dns",
            "eastway-identity",
            "eastway-tunnel",
        ],
    ),
    ("eastway-bench", &[]),
];

/// What no part of the product depends on: it may use what is walled off there.
const OUTSIDE: [&str; 2] = ["eastway-tests", "eastway-bench"];

/// Crates that only one of ours may use, so that what they bring stays behind one wall.
const WALLS: &[(&str, &[&str])] = &[
    ("quinn", &["eastway-tunnel"]),
    ("quinn-proto", &["eastway-tunnel"]),
    ("quinn-udp", &["eastway-tunnel"]),
    ("hickory-server", &["eastway-dns"]),
    ("hickory-proto", &["eastway-dns"]),
    ("kube", &["eastway-kubernetes"]),
    ("k8s-openapi", &["eastway-kubernetes"]),
    ("rcgen", &["eastway-identity"]),
    ("rustls-webpki", &["eastway-identity"]),
    ("envoy-types", &["eastway-proto"]),
];

#[test]
fn crate_arrows_are_those_of_the_architecture() {
    let metadata = metadata();
    for (name, allowed) in ARROWS {
        for dependency in dependencies(&metadata, name, None) {
            let ours = dependency == "eastway" || dependency.starts_with("eastway-");
            assert!(!ours || allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
    let known: BTreeSet<_> = ARROWS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let ours = |name: &String| name != "eastway-tests";
    let members: BTreeSet<_> = members(&metadata).into_iter().filter(ours).collect();
    assert_eq!(members, known, "every crate needs its arrows");
}

#[test]
fn walled_crates_have_one_user() {
    let metadata = metadata();
    for member in members(&metadata).iter().filter(|name| !OUTSIDE.contains(&name.as_str())) {
        for dependency in dependencies(&metadata, member, None) {
            let Some((_, users)) = WALLS.iter().find(|(walled, _)| *walled == dependency) else { continue };
            assert!(users.contains(&member.as_str()), "{dependency} belongs to {users:?}, {member} must not use it");
        }
    }
}

#[test]
fn banned_crates_are_absent() {
    let deny = deny();
    let names = built_crates(&deny);
    assert!(names.contains("rustls"), "cargo tree lists what is built");
    for ban in deny["bans"]["deny"].as_array().unwrap() {
        let banned = ban["crate"].as_str().unwrap();
        assert!(!names.contains(banned), "{banned} is banned: {}", ban["reason"]);
    }
}

#[test]
fn licences_are_allowed_and_sources_are_the_registry() {
    let (metadata, deny) = (metadata(), deny());
    let allowed: BTreeSet<_> =
        deny["licenses"]["allow"].as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} names no licence"));
        assert!(licence_allowed(licence, &allowed), "{name}: licence {licence} is not in deny.toml");
        if let Some(source) = package["source"].as_str() {
            assert!(source.starts_with("registry+"), "{name} comes from {source}");
        }
    }
}

#[test]
fn licence_expressions() {
    let allowed = BTreeSet::from(["MIT", "ISC", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"]);
    for good in
        ["MIT", "GPL-3.0 OR MIT", "GPL-3.0/MIT", "ISC AND (MIT OR GPL-3.0)", "Apache-2.0 WITH LLVM-exception OR X"]
    {
        assert!(licence_allowed(good, &allowed), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0"] {
        assert!(!licence_allowed(bad, &allowed), "{bad}");
    }
}

fn metadata() -> Value {
    let run = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    serde_json::from_slice(&run.stdout).unwrap()
}

/// Names of all crates that a build for one of our targets compiles. `cargo metadata` would list
/// optional dependencies that no feature turns on as well.
fn built_crates(deny: &Value) -> BTreeSet<String> {
    let mut tree = Command::new(env!("CARGO"));
    tree.args(["tree", "--workspace", "--locked", "--edges", "all", "--prefix", "none", "--format", "{p}"]);
    for target in deny["graph"]["targets"].as_array().unwrap() {
        tree.args(["--target", target.as_str().unwrap()]);
    }
    let run = tree.current_dir(root()).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let text = String::from_utf8(run.stdout).unwrap();
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn deny() -> Value {
    let text = std::fs::read_to_string(root().join("deny.toml")).unwrap();
    serde_json::to_value(toml::from_str::<toml::Table>(&text).unwrap()).unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn members(metadata: &Value) -> BTreeSet<String> {
    let ids: BTreeSet<_> =
        metadata["workspace_members"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .filter(|p| ids.contains(p["id"].as_str().unwrap()))
        .map(|p| p["name"].as_str().unwrap().to_owned())
        .collect()
}

/// Names of the direct dependencies of `package` of one kind (`None`: normal ones).
fn dependencies(metadata: &Value, package: &str, kind: Option<&str>) -> BTreeSet<String> {
    let by_name: BTreeMap<_, _> =
        metadata["packages"].as_array().unwrap().iter().map(|p| (p["name"].as_str().unwrap(), p)).collect();
    let listed = by_name[package]["dependencies"].as_array().unwrap().iter();
    listed.filter(|d| d["kind"].as_str() == kind).map(|d| d["name"].as_str().unwrap().to_owned()).collect()
}

/// Evaluates an SPDX expression; `/` is an old spelling of OR.
fn licence_allowed(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ").replace(" WITH ", "+WITH+");
    let mut tokens = spaced.split_whitespace().peekable();
    any_of(&mut tokens, allowed)
}

type Tokens<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(tokens: &mut Tokens<'_>, allowed: &BTreeSet<&str>) -> bool {
    let mut result = all_of(tokens, allowed);
    while tokens.next_if_eq(&"OR").is_some() {
        result |= all_of(tokens, allowed);
    }
    result
}

fn all_of(tokens: &mut Tokens<'_>, allowed: &BTreeSet<&str>) -> bool {
    let mut result = one(tokens, allowed);
    while tokens.next_if_eq(&"AND").is_some() {
        result &= one(tokens, allowed);
    }
    result
}

fn one(tokens: &mut Tokens<'_>, allowed: &BTreeSet<&str>) -> bool {
    match tokens.next() {
        Some("(") => {
            let result = any_of(tokens, allowed);
            assert_eq!(tokens.next(), Some(")"), "unbalanced licence expression");
            result
        }
        Some(licence) => allowed.contains(licence.replace("+WITH+", " WITH ").as_str()),
        None => false,
    }
}

/// Every invariant of `docs/invariants.md` is guarded by a test whose name begins with it.
#[test]
fn every_invariant_has_tests_that_name_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let listed = std::fs::read_to_string(root.join("docs/invariants.md")).unwrap();
    let listed: Vec<String> =
        listed.lines().filter_map(|line| Some(line.strip_prefix("- **")?.split_once("**")?.0.to_lowercase())).collect();
    assert_eq!(listed, (1..=13).map(|number| format!("i{number}")).collect::<Vec<_>>());
    let mut named = BTreeMap::<&str, usize>::new();
    for folder in ["discovery", "dns", "gateway", "tests"] {
        for file in sources(&root.join(folder)) {
            let text = std::fs::read_to_string(file).unwrap();
            for line in text
                .lines()
                .filter_map(|line| line.trim().strip_prefix("fn ").or(line.trim().strip_prefix("async fn ")))
            {
                let words: Vec<&str> = line.split(['_', '(']).collect();
                listed.iter().filter(|name| words.contains(&name.as_str())).for_each(|name| {
                    *named.entry(name).or_default() += 1;
                });
            }
        }
    }
    for name in &listed {
        assert!(named.get(name.as_str()).is_some_and(|count| *count >= 2), "{name}: {named:?}");
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
