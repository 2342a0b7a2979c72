//! The fuzz targets of `fuzz/src` as plain tests: their corpora, cuts and changes of each file, and for as long
//! as `EASTWAY_FUZZ_SECONDS` says more changes of them (`EASTWAY_FUZZ_SEED` begins elsewhere). What makes a
//! target panic is written to the folder that `EASTWAY_FUZZ_FOUND` names, and belongs into the corpus.
//!
//! The corpora are written anew by `EASTWAY_REGENERATE=1 cargo test -p eastway --test fuzz`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

#[path = "fuzz/mutate.rs"]
mod mutate;
#[path = "fuzz/seeds.rs"]
mod seeds;
#[expect(unreachable_pub, reason = "it is a library beside libFuzzer's targets")]
#[path = "../../../fuzz/src/lib.rs"]
mod targets;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fastrand::Rng;

use self::targets::{TARGETS, Target};

/// Changed inputs of each target in every test run.
const ROUNDS: usize = 300;
/// One input must be answered within this time; generous, because the machine has other work.
const PATIENCE: Duration = Duration::from_secs(10);

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

fn files(target: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = corpus(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let read =
        |entry: std::fs::DirEntry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
    entries.map(|entry| read(entry.unwrap())).collect()
}

fn run(target: Target, input: &[u8], what: &str) {
    let (name, body) = target;
    let began = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| body(input)));
    let took = began.elapsed();
    if result.is_ok() && took < PATIENCE {
        return;
    }
    let folder = std::env::var_os("EASTWAY_FUZZ_FOUND").map_or_else(std::env::temp_dir, PathBuf::from);
    let file = folder.join(format!("{name}-{:016x}", fastrand::u64(..)));
    std::fs::write(&file, input).unwrap();
    panic!("{name}: {what} failed after {took:?}; the input is {}", file.display());
}

#[test]
fn u5_every_target_has_the_corpus_that_the_seeds_make() {
    for (target, name, bytes) in seeds::all() {
        let file = corpus(target).join(name);
        if std::env::var_os("EASTWAY_REGENERATE").is_some() {
            std::fs::create_dir_all(corpus(target)).unwrap();
            std::fs::write(&file, &bytes).unwrap();
        }
        let committed = std::fs::read(&file).unwrap_or_default();
        assert!(committed == bytes, "{}: run this test with EASTWAY_REGENERATE=1", file.display());
    }
    for (name, _) in TARGETS {
        assert!(files(name).len() >= 5, "{name} has too few seeds");
        let body = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../fuzz/fuzz_targets/{name}.rs"));
        assert!(body.is_file(), "{name} is not a target of libFuzzer");
    }
}

/// A corpus whose every file is refused at the door would try nothing behind it.
#[test]
fn the_seeds_get_where_they_are_meant_to() {
    let after = |name: &str| targets::federation::imported(&files("federation_import")[name]);
    assert_eq!(after("live"), ["shop/reviews"]);
    assert_eq!(after("over_quota").len(), 8);
    assert_eq!(after("recorded").len(), 3);
    assert_eq!(after("removals"), [""; 0]);
    assert_eq!(after("bad_among_good").len(), 8);
    assert_eq!(after("wrong_digest"), [""; 0], "I4, F15");
    assert_eq!(after("foreign_identity"), ["shop/reviews"]);
}

#[test]
fn u5_corpora_and_changes_of_them() {
    for target in TARGETS {
        let corpus: Vec<_> = files(target.0).into_iter().collect();
        let mut random = Rng::with_seed(5);
        for (name, bytes) in &corpus {
            run(*target, bytes, name);
            for _ in 0..8 {
                let cut = random.usize(..=bytes.len());
                run(*target, &bytes[..cut], &format!("{name} cut at {cut}"));
            }
        }
        let inputs: Vec<_> = corpus.into_iter().map(|(_, bytes)| bytes).collect();
        // Files on a disk are slow.
        let rounds = if target.0 == "ca_folder" { ROUNDS / 10 } else { ROUNDS };
        for round in 0..rounds {
            run(*target, &mutate::change(target.0, &inputs, &mut random), &format!("change {round}"));
        }
    }
}

#[test]
fn u5_for_longer_if_asked_to() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let Some(seconds) = number("EASTWAY_FUZZ_SECONDS") else { return };
    let seed = number("EASTWAY_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    let only = std::env::var("EASTWAY_FUZZ_TARGET").ok();
    for target in TARGETS.iter().filter(|target| only.as_ref().is_none_or(|only| only == target.0)) {
        let mut inputs: Vec<_> = files(target.0).into_values().collect();
        let committed = inputs.len();
        let mut random = Rng::with_seed(seed);
        let (began, mut count) = (Instant::now(), 0_u64);
        while began.elapsed() < Duration::from_secs(seconds) {
            let input = mutate::change(target.0, &inputs, &mut random);
            run(*target, &input, &format!("seed {seed}, change {count}"));
            count += 1;
            // Without coverage to go by, a few changed inputs are changed further.
            if count % 16 == 0 && input.len() < 1 << 16 {
                let place = committed + random.usize(..256);
                if place < inputs.len() { inputs[place] = input } else { inputs.push(input) }
            }
        }
        println!("{}: {count} inputs in {seconds} s, seed {seed}", target.0);
    }
}
