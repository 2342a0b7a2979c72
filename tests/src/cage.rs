//! A memory limit that the kernel enforces on some processes of a test: a cgroup of version 1 or 2.
//!
//! Only root has the right to make one, also inside the namespaces of a lab; who runs the tests as another user gets none.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// A cgroup. Dropping it removes it; its processes must be gone by then.
#[derive(Debug)]
pub struct Cage {
    folder: PathBuf,
    /// Of the tests themselves.
    outside: PathBuf,
    version: u8,
}

impl Cage {
    /// One of `bytes` for processes together; `None`: the tests run without the right to.
    ///
    /// # Errors
    /// They run as root and still cannot.
    pub fn of(bytes: u64) -> Result<Option<Self>> {
        if !is_root()? {
            return Ok(None);
        }
        let own = fs::read_to_string("/proc/self/cgroup").context("read the own cgroup")?;
        let v1 = own.lines().find_map(|line| line.split_once(":memory:")).map(|(_, path)| path);
        let v2 = own.lines().find_map(|line| line.strip_prefix("0::"));
        let root = Path::new("/sys/fs/cgroup");
        let (version, root, own) = match (v1, v2) {
            (Some(own), _) => (1, root.join("memory"), own),
            (None, Some(own)) => (2, root.to_owned(), own),
            (None, None) => anyhow::bail!("no cgroup: {own}"),
        };
        let folder = root.join(format!("eastway-cage-{}-{}", std::process::id(), fastrand::u32(..)));
        if version == 2 {
            fs::write(root.join("cgroup.subtree_control"), "+memory").context("ask for the memory controller")?;
        }
        fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        let cage = Self { folder, outside: root.join(own.trim_start_matches('/')), version };
        let limit = if version == 1 { "memory.limit_in_bytes" } else { "memory.max" };
        cage.write(limit, &bytes.to_string())?;
        Ok(Some(cage))
    }

    /// This process and what it starts from now on is inside.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn enter(&self) -> Result<()> {
        self.write("cgroup.procs", "0")
    }

    /// This process and what it starts from now on is outside again.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn leave(&self) -> Result<()> {
        fs::write(self.outside.join("cgroup.procs"), "0").context("leave the cage")
    }

    /// Processes that the kernel has killed for want of memory.
    ///
    /// # Errors
    /// It does not say.
    pub fn kills(&self) -> Result<u64> {
        let file = if self.version == 1 { "memory.oom_control" } else { "memory.events" };
        let text = fs::read_to_string(self.folder.join(file)).with_context(|| format!("read {file}"))?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).context("no count of kills")?;
        Ok(count.trim().parse()?)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        fs::write(self.folder.join(file), text).with_context(|| format!("write {text} to {file} of the cage"))
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        // A process that was killed is in it until the kernel has let go of it.
        let deadline = Instant::now() + Duration::from_secs(2);
        while fs::remove_dir(&self.folder).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Whether this process is root where its namespaces were made, too.
fn is_root() -> Result<bool> {
    let map = fs::read_to_string("/proc/self/uid_map").context("read the map of user ids")?;
    Ok(map.split_ascii_whitespace().nth(1) == Some("0"))
}
