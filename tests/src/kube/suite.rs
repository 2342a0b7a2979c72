//! The runner of tests that share one bed: libtest has no place to bring something up once and to end it after all.
//!
//! It understands as much of libtest's command line as people use: names to select by, `--exact`, `--list`,
//! `--ignored`, `--include-ignored`. Whatever else comes is ignored. Tests run one after the other.

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Bed, seconds, stage};
use crate::run::from_workspace;

/// A test's body.
pub type Body = for<'a> fn(&'a Bed) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// Longest run of one test that names no limit.
pub const LIMIT: Duration = Duration::from_secs(180);
/// Pause between two looks for programs that have ended, as long as a kubelet's first back-off.
const RESTART: Duration = Duration::from_secs(10);

/// Where the summary and logs go, from Cargo's target folder.
const RESULTS: &str = "e2e";

/// One test on the bed. Made by [`bed_tests!`](crate::bed_tests).
#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// Its path, as libtest would call it.
    pub name: &'static str,
    /// Why it runs only when asked for.
    pub ignored: Option<&'static str>,
    /// Longest run.
    pub limit: Duration,
    /// What it does.
    pub body: Body,
}

/// Declares tests on a shared bed and lists them in `TESTS`.
///
/// ```ignore
/// bed_tests! {
///     /// What it guards.
///     async fn name(bed) { Ok(()) }
///     /// One that takes longer, or runs only when named with `--include-ignored`.
///     async fn other(bed) limit 600 ignored "the reason" { Ok(()) }
/// }
/// ```
#[macro_export]
macro_rules! bed_tests {
    ($($(#[$meta:meta])* async fn $name:ident($bed:ident) $(limit $limit:literal)? $(ignored $reason:literal)? $body:block)+) => {
        $($(#[$meta])* async fn $name($bed: &$crate::kube::Bed) -> anyhow::Result<()> $body)+

        /// The tests of this module.
        pub(crate) const TESTS: &[$crate::kube::suite::Test] = &[$($crate::kube::suite::Test {
            name: concat!(module_path!(), "::", stringify!($name)),
            ignored: $crate::bed_tests!(@reason $($reason)?),
            limit: $crate::bed_tests!(@limit $($limit)?),
            body: |bed| Box::pin($name(bed)),
        }),+];
    };
    (@reason) => { None };
    (@reason $reason:literal) => { Some($reason) };
    (@limit) => { $crate::kube::suite::LIMIT };
    (@limit $limit:literal) => { std::time::Duration::from_secs($limit) };
}

/// What was asked for.
#[derive(Debug, Default)]
struct Selection {
    names: Vec<String>,
    exact: bool,
    list: bool,
    ignored: bool,
    not_ignored: bool,
}

impl Selection {
    fn parse(arguments: impl Iterator<Item = OsString>) -> Self {
        let mut selection = Self { not_ignored: true, ..Self::default() };
        for argument in arguments {
            match argument.to_string_lossy().as_ref() {
                "--exact" => selection.exact = true,
                "--list" => selection.list = true,
                "--include-ignored" => selection.ignored = true,
                "--ignored" => (selection.ignored, selection.not_ignored) = (true, false),
                option if option.starts_with('-') => {}
                name => selection.names.push(name.to_owned()),
            }
        }
        selection
    }

    fn has(&self, name: &str) -> bool {
        let fits = |wanted: &String| if self.exact { name == wanted } else { name.contains(wanted.as_str()) };
        self.names.is_empty() || self.names.iter().any(fits)
    }
}

/// The main function of a test target: enters the stage, runs the tests there and says what came of it.
#[must_use]
pub fn main(clusters: &[&str], tests: &[Test]) -> ExitCode {
    main_called("", clusters, tests)
}

/// As [`main`], for another target: what it measures goes into `summary-NAME.json`.
#[must_use]
pub fn main_called(name: &str, clusters: &[&str], tests: &[Test]) -> ExitCode {
    let selection = Selection::parse(std::env::args_os().skip(1));
    // libtest names tests without their crate.
    let named = |test: &Test| Test { name: test.name.split_once("::").map_or(test.name, |(_, name)| name), ..*test };
    let tests: Vec<Test> = tests.iter().map(named).filter(|test| selection.has(test.name)).collect();
    if selection.list {
        tests.iter().for_each(|test| println!("{}: test", test.name));
        return ExitCode::SUCCESS;
    }
    if tests.is_empty() {
        // As libtest: one filter is for several targets. Clusters for nothing would take their time all the same.
        println!("\nno test of this target has such a name");
        return ExitCode::SUCCESS;
    }
    let verdict = if stage::is_entered() { run(name, clusters, &tests, &selection) } else { enter() };
    verdict.unwrap_or_else(|error| {
        println!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// From the machine onto the stage, and a look around after it.
fn enter() -> Result<ExitCode> {
    std::fs::create_dir_all(results()).with_context(|| results().display().to_string())?;
    let status = stage::Stage::new(std::env::args_os().skip(1))?.start()?.finish()?;
    Ok(ExitCode::from(stage::exit_code(status)))
}

fn run(name: &str, clusters: &[&str], tests: &[Test], selection: &Selection) -> Result<ExitCode> {
    // Several threads: tests measure what happens while their neighbours are busy.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        println!("\nrunning {} tests", tests.len());
        let started = Instant::now();
        let bed = Bed::start(clusters).await?;
        println!("{} clusters are up after {:.1} s", clusters.len(), started.elapsed().as_secs_f64());
        let (mut passed, mut ignored, mut failed) = (0, 0, Vec::new());
        let mut verdicts = serde_json::Map::new();
        for test in tests {
            if test.ignored.map_or(!selection.not_ignored, |_| !selection.ignored) {
                println!("test {} ... ignored, {}", test.name, test.ignored.unwrap_or("not asked for"));
                ignored += 1;
                continue;
            }
            revive(&bed).await?;
            let started = Instant::now();
            let body = tokio::time::timeout(test.limit, (test.body)(&bed));
            let verdict = tokio::select! {
                verdict = body => verdict,
                Err(error) = keep_alive(&bed) => Ok(Err(error)),
            };
            let took = seconds(started.elapsed());
            let verdict = verdict.unwrap_or_else(|_| bail!("took longer than {:?}", test.limit));
            verdicts.insert(test.name.to_owned(), json!({"passed": verdict.is_ok(), "seconds": took}));
            match verdict {
                Ok(()) => {
                    println!("test {} ... ok ({took} s)", test.name);
                    passed += 1;
                }
                Err(error) => {
                    println!("test {} ... FAILED ({took} s)\n  {}", test.name, causes(&error));
                    for cluster in bed.clusters() {
                        println!("{}", cluster.report().await);
                    }
                    failed.push(test.name);
                }
            }
        }
        let stopping = Instant::now();
        let mut figures = bed.figures();
        bed.stop().await?;
        figures.insert("bed.down_s".to_owned(), json!(seconds(stopping.elapsed())));
        write_summary(name, &json!({"figures": figures, "tests": verdicts, "seconds": seconds(started.elapsed())}))?;
        for name in &failed {
            println!("failed: {name}");
        }
        let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
        println!(
            "\ntest result: {verdict}. {passed} passed; {} failed; {ignored} ignored; 0 measured; 0 filtered out; finished in {:.2}s\n",
            failed.len(),
            started.elapsed().as_secs_f64()
        );
        Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// What a kubelet would do: a scheduler, say, ends when it hears nothing of its API server for a while, or does not
/// understand what it hears.
async fn keep_alive(bed: &Bed) -> Result<()> {
    loop {
        tokio::time::sleep(RESTART).await;
        revive(bed).await?;
    }
}

async fn revive(bed: &Bed) -> Result<()> {
    for cluster in bed.clusters() {
        for program in cluster.revive().await? {
            println!("  {} of {} had ended, and was started again", program, cluster.name());
        }
    }
    Ok(())
}

fn causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join("\n  because ")
}

/// Where the summary and logs go.
#[must_use]
pub fn results() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    from_workspace(target.into()).join(RESULTS)
}

fn write_summary(name: &str, summary: &Value) -> Result<()> {
    let dash = if name.is_empty() { "" } else { "-" };
    let file = results().join(format!("summary{dash}{name}.json"));
    std::fs::write(&file, format!("{summary:#}\n")).with_context(|| file.display().to_string())?;
    println!("figures are in {}", file.display());
    Ok(())
}
