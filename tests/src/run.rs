//! From a test function into namespaces, and back with its verdict.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use eastway::demo::stage::{LAB_FOLDER, in_namespaces};

/// Longest run of one test. The longest on purpose takes 40 s; the rest is for busy machines.
const TEST_LIMIT: Duration = Duration::from_secs(150);
/// If set: for so many seconds the soak test runs, instead of the minute that is part of every run.
pub const SOAK_SECONDS: &str = "EASTWAY_TEST_SOAK_SECONDS";
/// Names the binary under test; without it the one that Cargo built beside the tests.
const BINARY: &str = "EASTWAY_BIN";

/// The `eastway` binary under test.
///
/// # Panics
/// There is none.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os(BINARY) {
        return from_workspace(path.into());
    }
    // tests are <target>/<profile>/deps/<name>-<hash>, programs <target>/<profile>/<name>
    let test = std::env::current_exe().expect("a test knows its file");
    let path = test.ancestors().nth(2).expect("tests are in a folder").join("eastway-under-test");
    assert!(path.is_file(), "{} is missing: run the tests of the package, or set {BINARY}", path.display());
    path
}

/// A path as somebody wrote it who was in the workspace's folder: Cargo runs tests in that of their package.
#[must_use]
pub fn from_workspace(path: PathBuf) -> PathBuf {
    if path.is_absolute() { path } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path) }
}

/// How long the soak test is asked to run.
///
/// # Panics
/// [`SOAK_SECONDS`] is no number.
#[must_use]
pub fn soak() -> Option<Duration> {
    let seconds = std::env::var(SOAK_SECONDS).ok()?;
    Some(Duration::from_secs(seconds.parse().expect("a number of seconds")))
}

/// Runs `body` in namespaces: in this process if it is inside already, else in a copy of this test's
/// process. Use [`lab_test!`](crate::lab_test).
///
/// # Panics
/// The test fails, takes longer than `TEST_LIMIT`, or cannot get namespaces.
pub fn run_in_lab(module: &str, name: &str, body: impl Future<Output = Result<()>>) {
    if std::env::var_os(LAB_FOLDER).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        if let Err(error) = runtime.block_on(body) {
            let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            panic!("{}", causes.join("\n  because "));
        }
        return;
    }
    // libtest leaves the crate's name out.
    let path = module.split_once("::").map_or(name.to_owned(), |(_, module)| format!("{module}::{name}"));
    let test = std::env::current_exe().expect("a test knows its file");
    let mut command = in_namespaces(&binary());
    command.arg(test).args([&path, "--exact", "--nocapture", "--test-threads=1", "--include-ignored"]);
    // Where a harness failed is in the message; traces of its runtimes would bury it.
    command.env("RUST_BACKTRACE", "0");
    let (code, output) = run(command);
    println!("{output}");
    assert!(output.contains("1 passed"), "{path} {code} inside its namespaces; its output is above");
}

/// Runs to the end or the limit; gives what happened and all it printed.
fn run(mut command: Command) -> (String, String) {
    use std::io::Read;
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let stderr = writer.try_clone().expect("a descriptor");
    command.stdin(Stdio::null()).stdout(writer).stderr(stderr);
    // The thread that starts it lives as long as it: its death would be the child's.
    let mut child = command.spawn().expect("the binary under test starts");
    drop(command);
    let printer = std::thread::spawn(move || {
        let mut output = Vec::new();
        let read = reader.read_to_end(&mut output);
        (read, String::from_utf8_lossy(&output).into_owned())
    });
    let limit = TEST_LIMIT + soak().unwrap_or_default();
    let started = Instant::now();
    let verdict = loop {
        match child.try_wait().expect("the kernel knows its children") {
            Some(status) if status.success() => break "passed".to_owned(),
            Some(status) => break format!("failed ({status})"),
            None if started.elapsed() > limit => {
                child.kill().expect("a child can be killed");
                child.wait().expect("the kernel knows its children");
                break format!("took longer than {limit:?} and was killed");
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let (read, output) = printer.join().expect("the reader does not panic");
    read.expect("a pipe can be read");
    (verdict, output)
}
