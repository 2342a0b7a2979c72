//! The demo, as a user runs it: the real binary, without root, on the host.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;

/// Longest wait for a run of the script.
const LIMIT: Duration = Duration::from_secs(90);
/// What a new user may have to wait for the first answer across clouds.
const FIRST_ANSWER_MS: f64 = 3000.0;
/// A user without any rights of his own (`nobody` on Linux).
const NOBODY: u32 = 65534;

/// One demo at a time: each checks that the machine is as it was before.
static ALONE: Mutex<()> = Mutex::new(());

/// A copy of the binary where any user can run it, in a folder that is removed at the end.
struct Binary {
    folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Binary {
    fn copy() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let copy = Self { folder, _alone: alone };
        std::fs::copy(eastway_tests::binary(), copy.path()).unwrap();
        copy
    }

    fn path(&self) -> PathBuf {
        // The name tells its processes from all others.
        let unique = self.folder.path().file_name().unwrap().to_string_lossy().into_owned();
        self.folder.path().join(format!("eastway{unique}"))
    }

    /// A copy of the newest Envoy beside it, as [`Binary::copy`] is one.
    fn envoy(&self) -> PathBuf {
        let copy = self.folder.path().join("envoy");
        std::fs::copy(eastway_tests::envoy::binary(eastway_tests::envoy::VERSIONS[0]).unwrap(), &copy).unwrap();
        copy
    }

    /// `eastway demo …`, never as root; without Envoys unless one is among the arguments.
    fn demo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path());
        command.arg("demo").args(arguments).current_dir("/").stdin(Stdio::null());
        command.env_remove("EASTWAY_BIN").env_remove("EASTWAY_ENVOY");
        if !arguments.contains(&"--envoy") {
            command.arg("--no-envoy");
        }
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// Processes that run this copy, or Envoys of it.
    fn processes(&self) -> BTreeSet<u32> {
        [self.path(), self.folder.path().join("envoy")].iter().flat_map(|path| Self::running(path)).collect()
    }

    fn running(path: &Path) -> BTreeSet<u32> {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let runs = |entry: &std::fs::DirEntry| {
            std::fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == path)
                || std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| starts_with(&line, path))
        };
        entries.filter(runs).filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    fn wait_until_nothing_runs(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.processes().is_empty() {
            assert!(Instant::now() < deadline, "processes stayed: {:?}", self.processes());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn starts_with(line: &[u8], path: &Path) -> bool {
    line.starts_with(path.to_string_lossy().as_bytes())
}

/// Folders and mounts that a demo might forget.
fn left_behind() -> BTreeSet<String> {
    let folders = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    let names = folders.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let links = std::fs::read_to_string("/proc/net/dev").unwrap();
    let interfaces = links.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned());
    names
        .filter(|name| name.starts_with("eastway-lab"))
        .chain(mounts.lines().map(str::to_owned))
        .chain(interfaces)
        .collect()
}

/// Runs the script; gives whether it succeeded, its JSON and what it said. One thousand connections in 150 are further
/// off than 3 σ by chance, though no weight is wrong: then, and only then, it runs once more.
fn script(mut demo: Command, arguments: &[&str]) -> (bool, Value, String) {
    demo.args(["--once", "-o", "json"]).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (ok, json, said) = script_once(&mut demo);
    let chance =
        json["steps"][1]["detail"]["error"].as_str().is_some_and(|error| error.contains("further than 3 sigma"));
    if chance { script_once(&mut demo) } else { (ok, json, said) }
}

fn script_once(demo: &mut Command) -> (bool, Value, String) {
    let mut child = demo.spawn().unwrap();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let said = std::thread::spawn(move || {
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        said
    });
    let printed = std::thread::spawn(move || {
        let mut printed = String::new();
        stdout.read_to_string(&mut printed).unwrap();
        printed
    });
    let ended = wait(&mut child, LIMIT);
    let (printed, said) = (printed.join().unwrap(), said.join().unwrap());
    let json = serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}\n{printed}\n{said}"));
    (ended, json, said)
}

fn wait(child: &mut Child, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.success();
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("no end within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn check_steps(json: &Value, said: &str) {
    let steps = json["steps"].as_array().unwrap();
    let names: Vec<&str> = steps.iter().filter_map(|step| step["name"].as_str()).collect();
    assert_eq!(names, ["resolve", "weights", "private-cluster", "failover", "failback"]);
    for step in steps {
        assert_eq!(step["ok"], true, "{step:#}\n{said}");
    }
    let requests = json["requests"].as_array().unwrap();
    assert!(requests.len() > 2000, "{}", requests.len());
    let crossed = |from: &str, to: &str| {
        requests.iter().any(|request| {
            request["crossed"].as_array().is_some_and(|pairs| pairs.iter().any(|pair| pair[0] == from && pair[1] == to))
        })
    };
    for (from, to) in [("onprem", "gke"), ("gke", "edge"), ("edge", "onprem"), ("onprem", "edge")] {
        assert!(crossed(from, to), "nothing went from {from} to {to}");
    }
}

/// What a new user sees: three clouds without root, the same addresses, no route across, all steps ok.
#[test]
fn demo_script_runs_in_namespaces_without_root() {
    let binary = Binary::copy();
    let before = left_behind();
    let (ok, json, said) = script(binary.demo(&[]), &["--require-namespaces"]);
    check_steps(&json, &said);
    assert!(ok, "{said}");
    assert_eq!(json["isolation"], "namespaces");
    let clouds = json["clouds"].as_array().unwrap();
    assert_eq!(clouds.len(), 3);
    for cloud in clouds {
        assert_eq!(cloud["pod_range"], "10.244.0.0/16", "{cloud:#}");
        assert_eq!(cloud["routes"].as_array().unwrap().len(), 2, "{cloud:#}");
        let ways = cloud["ways_out"].as_object().unwrap();
        assert!(ways.len() == 2 && ways.values().all(|way| way == "Network is unreachable"), "{cloud:#}");
        assert!(cloud["gateway"]["rss_bytes"].as_u64().unwrap() > 1 << 20, "{cloud:#}");
    }
    let pods: Vec<&Value> = clouds.iter().map(|cloud| &cloud["pods"]["10.244.1.11"]).collect();
    assert_eq!(pods, ["productpage v1", "reviews v2", "ratings v1"]);
    assert!(json["envoy"].is_null() && json["envoy_reason"] == "asked for", "{}", json["envoy"]);
    let edge = &clouds[2];
    assert!(edge["inbound"].is_null() && edge["inbound_guard"].is_string(), "{edge:#}");
    let links = edge["gateway"]["links"].as_array().unwrap();
    assert!(!links.is_empty() && links.iter().all(|link| link["dialled"] == true), "{edge:#}");
    let first = json["first_cross_cloud_answer_ms"].as_f64().unwrap();
    println!("first answer across clouds: {first} ms");
    // Users run the release binary, as `make test` does.
    if std::env::var_os("EASTWAY_BIN").is_some() {
        assert!(first <= FIRST_ANSWER_MS, "{first} ms");
    }
    binary.wait_until_nothing_runs();
    assert_eq!(left_behind(), before);
}

/// Where user namespaces are forbidden the demo still shows everything, and says what it does not show.
#[test]
fn demo_script_runs_on_loopback_where_namespaces_are_forbidden() {
    let binary = Binary::copy();
    let before = left_behind();
    // In a user namespace that may have none inside, and without a capability to do without.
    let forbid = "echo 0 >/proc/sys/user/max_user_namespaces && \
                  exec setpriv --bounding-set=-all --inh-caps=-all --ambient-caps=-all \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c", forbid, "sh"]).arg(binary.path()).arg("demo");
    command.current_dir("/").stdin(Stdio::null()).env_remove("EASTWAY_BIN");
    let (ok, json, said) = script(command, &[]);
    check_steps(&json, &said);
    assert!(ok, "{said}");
    assert_eq!(json["isolation"], "loopback");
    let reason = json["isolation_reason"].as_str().unwrap();
    assert!(reason.contains("namespaces are forbidden here"), "{reason}");
    binary.wait_until_nothing_runs();
    assert_eq!(left_behind(), before);
}

/// A live demo that has shown its page's address and the first line of its table.
struct Live {
    process: Child,
    url: String,
    /// A demo that nobody listens to would end.
    _output: (BufReader<ChildStderr>, BufReader<ChildStdout>),
}

fn live(binary: &Binary, arguments: &[&str]) -> Live {
    let mut command = binary.demo(arguments);
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(process.stderr.take().unwrap());
    let mut url = None;
    while url.is_none() {
        let mut line = String::new();
        assert!(said.read_line(&mut line).unwrap() > 0, "it does not say where the page is");
        url = line.split_ascii_whitespace().find(|word| word.starts_with("http://")).map(str::to_owned);
    }
    let mut table = BufReader::new(process.stdout.take().unwrap());
    let mut line = String::new();
    table.read_line(&mut line).unwrap();
    assert!(line.contains("productpage v1 (onprem)"), "{line}");
    Live { process, url: url.unwrap(), _output: (said, table) }
}

/// The page a browser gets.
fn browse(url: &str) -> String {
    let (host, path) = url.trim_start_matches("http://").split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nAccept: text/html\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

/// The live demo serves its page on the host's loopback, and Ctrl-C leaves nothing behind.
#[test]
fn demo_ends_with_ctrl_c_and_leaves_nothing() {
    let binary = Binary::copy();
    let before = left_behind();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut demo = live(&binary, &["--listen", "127.0.0.1:0"]);
        let page = browse(&demo.url);
        assert!(page.starts_with("HTTP/1.1 200 OK") && page.contains("The Comedy of Errors"), "{page}");
        assert!(binary.processes().len() > 12, "{:?}", binary.processes());
        kill(Pid::from_raw(i32::try_from(demo.process.id()).unwrap()), signal).unwrap();
        assert!(wait(&mut demo.process, Duration::from_secs(15)), "{signal} is no failure");
        binary.wait_until_nothing_runs();
        assert_eq!(left_behind(), before);
    }
}

/// With an Envoy beside each service the page shows what the rules say of its reader; Ctrl-C ends the Envoys, too.
#[test]
fn demo_with_envoys_follows_rules_and_leaves_nothing() {
    let binary = Binary::copy();
    let before = left_behind();
    let envoy = binary.envoy();
    let arguments = ["--listen", "127.0.0.1:0", "--require-namespaces", "--envoy"];
    let mut demo = live(&binary, &[&arguments[..], &[envoy.to_str().unwrap()]].concat());
    for _ in 0..10 {
        let his = browse(&format!("{}?user=jason", demo.url));
        assert!(his.contains("<td>reviews</td><td>v2</td>"), "{his}");
        let hers = browse(&format!("{}?user=mary", demo.url));
        assert!(hers.contains("<td>reviews</td><td>v1</td>") || hers.contains("<td>reviews</td><td>v3</td>"), "{hers}");
    }
    assert_eq!(Binary::running(&envoy).len(), 8);
    kill(Pid::from_raw(i32::try_from(demo.process.id()).unwrap()), Signal::SIGINT).unwrap();
    assert!(wait(&mut demo.process, Duration::from_secs(15)), "Ctrl-C is no failure");
    binary.wait_until_nothing_runs();
    assert_eq!(left_behind(), before);
}

/// An Envoy that ends at once ends the demo at once, and the last line says whose it was and what it said.
#[test]
fn demo_with_an_envoy_that_ends_does_not_wait_for_answers() {
    use std::os::unix::fs::PermissionsExt;
    let binary = Binary::copy();
    let envoy = binary.folder.path().join("envoy");
    let text = "#!/bin/sh\n[ \"$1\" = --version ] && exec echo 'envoy  version: a/1.40.0/Clean/RELEASE/x'\nexit 3\n";
    std::fs::write(&envoy, text).unwrap();
    std::fs::set_permissions(&envoy, PermissionsExt::from_mode(0o755)).unwrap();
    let begun = Instant::now();
    let mut demo = binary.demo(&["--once", "--require-namespaces", "--envoy", envoy.to_str().unwrap()]);
    let output = demo.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    assert!(!output.status.success() && begun.elapsed() < Duration::from_secs(15), "{:?}: {said}", begun.elapsed());
    let why = "-sidecar has ended: Envoy ended right after its start (exit status: 3)";
    assert!(last.starts_with("error: ") && last.contains(why), "{last}");
    binary.wait_until_nothing_runs();
}

/// An Envoy that is not there is told by its flag, and an empty variable is as none.
#[test]
fn demo_with_an_envoy_that_is_missing() {
    let demo = |arguments: &[&str], variable: &str| {
        let mut demo = Command::new(eastway_tests::binary());
        demo.arg("demo").args(arguments).env("EASTWAY_ENVOY", variable).stdin(Stdio::null());
        String::from_utf8_lossy(&demo.output().unwrap().stderr).into_owned()
    };
    let missing = demo(&["--once", "--isolation", "namespaces"], "/nonexistent");
    assert_eq!(missing, "error: --envoy /nonexistent: there is no Envoy at /nonexistent; 1.36.0 or newer is needed\n");
    let empty = demo(&["-o", "json"], "");
    assert_eq!(empty, "error: -o json prints one result: add --once\n");
}

/// Neither does a kill that gives no process a chance to tidy up.
#[test]
fn demo_that_is_killed_leaves_nothing() {
    let binary = Binary::copy();
    let before = left_behind();
    let mut demo = live(&binary, &["--listen", "127.0.0.1:0", "--require-namespaces"]);
    demo.process.kill().unwrap();
    demo.process.wait().unwrap();
    binary.wait_until_nothing_runs();
    assert_eq!(left_behind(), before);
}
