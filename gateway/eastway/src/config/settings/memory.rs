//! How much memory this process may use: the least limit of its cgroup and of those above it, as cgroups(7) shows them.

use std::fs;
use std::path::{Path, PathBuf};

/// Beyond this a number says that there is no limit: version 1 has no other way to.
const NO_LIMIT: u64 = 1 << 50;

/// In bytes; `None`: as much as the machine has.
pub(super) fn limit() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_of(&own, |path| fs::read_to_string(path).ok())
}

/// `own`: the contents of `/proc/self/cgroup`.
fn limit_of(own: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let files = own.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        match controllers {
            "" => Some(("/sys/fs/cgroup", path, "memory.max")),
            "memory" => Some(("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes")),
            _ => None,
        }
    });
    let limits = files.flat_map(|(root, path, file)| {
        // A container may be shown the path of its host, where there is nothing, and its own cgroup at the root.
        let folders = Path::new(path).ancestors().map(move |folder| folder.strip_prefix("/").unwrap_or(folder));
        folders.map(move |folder| PathBuf::from(root).join(folder).join(file)).collect::<Vec<_>>()
    });
    let limits = limits.filter_map(|path| read(&path)?.trim().parse().ok());
    limits.filter(|limit| *limit < NO_LIMIT).min()
}

#[cfg(test)]
mod tests {
    use super::super::Limits;
    use super::*;

    fn limit_with(own: &str, files: &[(&str, &str)]) -> Option<u64> {
        limit_of(own, |path| {
            let found = files.iter().find(|(file, _)| Path::new(file) == path);
            found.map(|(_, text)| format!("{text}\n"))
        })
    }

    #[test]
    fn f22_the_least_limit_on_the_way_up_counts() {
        let files = [("/sys/fs/cgroup/pods/gw/memory.max", "max"), ("/sys/fs/cgroup/pods/memory.max", "268435456")];
        assert_eq!(limit_with("0::/pods/gw\n", &files), Some(256 << 20));
        assert_eq!(limit_with("0::/other\n", &files), None);
        // As a container sees it that has a namespace of cgroups.
        assert_eq!(limit_with("0::/\n", &[("/sys/fs/cgroup/memory.max", "1073741824")]), Some(1 << 30));
    }

    #[test]
    fn f22_buffers_get_a_quarter_each_of_little_memory() {
        let buffers = |memory: Option<u64>| {
            let limits = Limits::within(memory.map(|mebibytes| mebibytes << 20));
            (limits.buffer_bytes >> 20, limits.hbone_buffer_bytes >> 20)
        };
        assert_eq!(buffers(None), (256, 256));
        assert_eq!(buffers(Some(4_096)), (256, 256));
        assert_eq!(buffers(Some(256)), (64, 64));
        assert_eq!(buffers(Some(32)), (16, 16));
    }

    #[test]
    fn f22_version_1_and_its_way_to_say_none() {
        let own = "5:devices:/a\n4:memory:/kubepods/pod1\n0::/\n";
        let none = "9223372036854771712";
        let root = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
        assert_eq!(limit_with(own, &[(root, none)]), None);
        // The host's path leads nowhere in a container; its own limit is at the root.
        assert_eq!(limit_with(own, &[(root, "536870912")]), Some(512 << 20));
        let pod = "/sys/fs/cgroup/memory/kubepods/pod1/memory.limit_in_bytes";
        assert_eq!(limit_with(own, &[(root, none), (pod, "134217728")]), Some(128 << 20));
        assert_eq!(limit_with("nonsense\n::\n", &[]), None);
    }
}
