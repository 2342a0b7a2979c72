//! The stage: namespaces in which clusters run, entered by a copy of the program.
//!
//! Containers need real root, so unlike the lab's namespaces there is no user namespace. Process 1 is a shell
//! that adopts and reaps what daemons leave behind; the program is its child. `/run` and `/var` are
//! covered by overlays and one folder by a tmpfs, so that no file, mount, process or network namespace
//! survives the stage. Only cgroups do: they are empty then, and the parent removes them.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Tells the program on the stage where its tmpfs is.
const STAGE_FOLDER: &str = "EASTWAY_BED_FOLDER";
/// Tells it the name of this stage, unique on the machine.
const STAGE_NAME: &str = "EASTWAY_BED_NAME";
/// Folders that every system has and nothing on the stage needs.
const MOUNT_POINTS: [&str; 4] = ["/srv", "/media", "/opt", "/mnt"];
/// How long the kernel may take to empty the cgroups of a killed stage.
const EMPTYING: Duration = Duration::from_secs(10);
/// A cgroup gets its first process right after it is made; one that is older and empty has been left.
const YOUNG: Duration = Duration::from_secs(1);

/// Process 1 of the stage. Its arguments: the folder to cover, then the program and its arguments.
///
/// A background child of a shell has SIGINT ignored, so both signals are passed on as SIGTERM; `wait` returns
/// when a signal comes, hence the loop.
const FIRST: &str = r#"
set -eu
folder=$1
shift
mount -t tmpfs -o mode=0755 bed "$folder"
for covered in run var; do
    mkdir -p "$folder/.over/$covered" "$folder/.work/$covered"
    mount -t overlay -o "lowerdir=/$covered,upperdir=$folder/.over/$covered,workdir=$folder/.work/$covered" over "/$covered"
done
ip link set lo up
set +e
"$@" &
program=$!
trap 'kill -TERM $program 2>/dev/null' TERM INT
while :; do
    wait $program
    code=$?
    kill -0 $program 2>/dev/null || exit $code
done
"#;

/// Whether this process is on a stage.
#[must_use]
pub fn is_entered() -> bool {
    std::env::var_os(STAGE_FOLDER).is_some()
}

/// The stage's tmpfs.
///
/// # Errors
/// This process is not on a stage.
pub fn folder() -> Result<PathBuf> {
    let folder = std::env::var_os(STAGE_FOLDER)
        .context("clusters need a stage: run this by eastway_tests::kube::suite or `make bed`")?;
    Ok(PathBuf::from(folder))
}

/// A stage to be run.
#[derive(Debug)]
pub struct Stage {
    command: Command,
    name: String,
}

impl Stage {
    /// A stage on which a copy of this program is run with these arguments.
    ///
    /// # Errors
    /// This process is not root, or there is nowhere to put the stage.
    pub fn new(arguments: impl IntoIterator<Item = OsString>) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the Kubernetes test bed needs root: containers, mounts and cgroups are made for real. Run it as root (CI does)"
        );
        let program = std::env::current_exe().context("a program knows its file")?;
        let folder = mount_point(&program)?;
        let name = format!("eastway-bed-{}", std::process::id());
        // Killed with this process, and with it everything inside.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork"]);
        command.args([
            "--kill-child=KILL",
            "--mount-proc",
            "--propagation",
            "private",
            "--",
            "bash",
            "-c",
            FIRST,
            "bash",
        ]);
        command.arg(&folder).arg(program).args(arguments);
        command.env(STAGE_FOLDER, &folder).env(STAGE_NAME, &name).env("PATH", system_path());
        Ok(Self { command, name })
    }

    /// Starts it. Must be called on a thread that lives as long as the stage: its death would be the stage's.
    ///
    /// # Errors
    /// The tools that make namespaces are missing.
    pub fn start(mut self) -> Result<Running> {
        let child = self.command.spawn().context("start the stage (setpriv and unshare of util-linux)")?;
        Ok(Running { child, name: self.name })
    }
}

/// A stage that has been started.
#[derive(Debug)]
pub struct Running {
    child: std::process::Child,
    name: String,
}

impl Running {
    /// Waits for its end and removes what it leaves.
    ///
    /// # Errors
    /// Something stays that cannot be removed; the message names it.
    pub fn finish(mut self) -> Result<ExitStatus> {
        let status = self.child.wait().context("wait for the stage")?;
        remove_cgroups()?;
        let left = leftovers(&self.name);
        ensure!(left.is_empty(), "the stage has left behind: {}", left.join(", "));
        Ok(status)
    }

    /// The pid of the process that holds the stage's namespaces.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// Tells the program on the stage that is held by process `pid` to end in order.
///
/// # Errors
/// It has ended.
pub fn terminate(pid: u32) -> Result<()> {
    // The holder's only child is process 1 of the stage, which passes the signal on.
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let first = children.split_ascii_whitespace().next().context("the stage has not begun yet")?;
    Ok(kill(Pid::from_raw(first.parse()?), Signal::SIGTERM)?)
}

/// A stage's verdict as a number for the shell.
#[must_use]
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// A folder that can be covered: it must not hide the program or the working folder.
fn mount_point(program: &Path) -> Result<PathBuf> {
    let working = std::env::current_dir().context("the working folder")?;
    let fits = |folder: &&Path| folder.is_dir() && !program.starts_with(folder) && !working.starts_with(folder);
    let found = MOUNT_POINTS.iter().map(Path::new).find(fits);
    found.map(Path::to_owned).with_context(|| format!("none of {MOUNT_POINTS:?} can be covered by the stage"))
}

/// `PATH` with the folders of administration tools, which users often lack.
fn system_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

/// Removes cgroups of containers that are gone. containerd has one place for those of all its instances, so an empty
/// one may be another bed's, about to get its first process: only what stays empty for a while is removed.
fn remove_cgroups() -> Result<()> {
    let deadline = Instant::now() + EMPTYING;
    loop {
        let (mut waiting, mut stuck) = (false, None);
        for parent in container_cgroups() {
            let children = std::fs::read_dir(&parent).into_iter().flatten().flatten().map(|entry| entry.path());
            for cgroup in children.filter(|path| path.is_dir()) {
                match is_abandoned(&cgroup) {
                    Some(true) => stuck = std::fs::remove_dir(&cgroup).err().map(|error| (cgroup, error)).or(stuck),
                    Some(false) => waiting = true,
                    None => {}
                }
            }
            // Refused while there are others.
            let _others = std::fs::remove_dir(&parent);
        }
        match stuck {
            None if !waiting || Instant::now() > deadline => return Ok(()),
            Some((cgroup, error)) if Instant::now() > deadline => {
                bail!("a cgroup cannot be removed: {}: {error}", cgroup.display())
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Whether a cgroup has had no process for a while; `None`: it has one, or is gone.
fn is_abandoned(cgroup: &Path) -> Option<bool> {
    let processes = std::fs::read_to_string(cgroup.join("cgroup.procs")).ok()?;
    let age = cgroup.metadata().ok()?.modified().ok()?.elapsed().unwrap_or_default();
    processes.is_empty().then_some(age > YOUNG)
}

/// Where containerd has the cgroups of its containers, in every hierarchy.
fn container_cgroups() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let hierarchies = std::iter::once(root.to_owned()).chain(below);
    hierarchies.map(|folder| folder.join("k8s.io")).filter(|path| path.is_dir()).collect()
}

/// Processes of the stage that live, and mounts of it that are visible here. Nothing is expected.
fn leftovers(name: &str) -> Vec<String> {
    let mark = format!("{STAGE_NAME}={name}");
    let mut left = Vec::new();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|setting| setting == mark.as_bytes()) {
            left.push(format!("process {}", process.file_name().display()));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let ours = mounts.lines().filter(|line| line.starts_with("bed ") || line.contains("/containerd/"));
    left.extend(ours.map(|line| format!("mount {line}")));
    left
}
