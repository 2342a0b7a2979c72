//! How much memory Envoy may use, and what it does before that is gone: it gives free memory back, then takes no further
//! connections until there is some again. Those that it has go on; the kernel would have ended all of them.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::config::SidecarSettings;

/// Of a limit for the container, what is left for this process, and for what the kernel counts: buffers of sockets, files in
/// memory. At least; and at least a fifth of it.
const OTHERS: u64 = 32 << 20;
/// Envoy with nothing to do has half of it.
const LEAST: u64 = 32 << 20;
/// What a connection costs that nobody speaks on, about, in both directions (`docs/sidecars.md`).
const CONNECTION: u64 = 64 << 10;
/// Most connections that others have to Envoy, however much memory there is.
const MOST_CONNECTIONS: u64 = 50_000;

/// What Envoy may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// Bytes of its heap; `None`: nobody has said, so nothing is watched.
    heap: Option<u64>,
}

impl Budget {
    /// By the file, else by the limit that this process has.
    pub(super) fn of(settings: &SidecarSettings) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let limit = || limit(Path::new("/sys/fs/cgroup"), &own);
        let left = |limit: u64| limit.saturating_sub(OTHERS.max(limit / 5)).max(LEAST);
        Self { heap: settings.envoy.memory.or_else(|| limit().map(left)) }
    }

    /// Most connections at a time.
    pub(super) fn connections(self) -> u64 {
        self.heap.map_or(MOST_CONNECTIONS, |heap| (heap / CONNECTION).min(MOST_CONNECTIONS))
    }

    /// Envoy's overload manager.
    pub(super) fn overload_manager(self) -> Value {
        let monitor = |name: &str, kind: &str, key: &str, value: u64| {
            let kind = format!("type.googleapis.com/envoy.extensions.resource_monitors.{kind}");
            json!({"name": format!("envoy.resource_monitors.{name}"), "typed_config": {"@type": kind, key: value}})
        };
        let most = monitor(
            "global_downstream_max_connections",
            "downstream_connections.v3.DownstreamConnectionsConfig",
            "max_active_downstream_connections",
            self.connections(),
        );
        let Some(heap) = self.heap else { return json!({"resource_monitors": [most]}) };
        let action = |name: &str, above: f64| {
            json!({
                "name": format!("envoy.overload_actions.{name}"),
                "triggers": [{"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": above}}],
            })
        };
        json!({
            "refresh_interval": "0.25s",
            "resource_monitors": [
                most, monitor("fixed_heap", "fixed_heap.v3.FixedHeapConfig", "max_heap_size_bytes", heap),
            ],
            "actions": [action("shrink_heap", 0.85), action("stop_accepting_connections", 0.95)],
        })
    }
}

/// The least of the limits of the control group that `own`, a `/proc/<pid>/cgroup`, names, and of those around it; in a
/// container the mounted one is its own. `None`: there is none.
fn limit(mount: &Path, own: &str) -> Option<u64> {
    let limits = own.lines().flat_map(|line| {
        // `<number>:<controllers>:<path>`; the second version has no list of controllers.
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let (top, file) = match controllers.split(',').any(|one| one == "memory") {
            true => (mount.join("memory"), "memory.limit_in_bytes"),
            false if controllers.is_empty() => (mount.to_owned(), "memory.max"),
            false => return Vec::new(),
        };
        let group = top.join(path.trim_start_matches('/'));
        let around = group.ancestors().filter(|folder| folder.starts_with(&top));
        around.filter_map(|folder| fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()).collect()
    });
    // The first version says a number near the largest where there is no limit, the second a word.
    limits.min().filter(|limit| *limit < 1 << 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_around_a_process_counts() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let file = folder.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        let of = |own: &str| limit(folder.path(), own);
        assert_eq!(of(""), None);
        write("pods/web/memory.max", "536870912\n");
        write("pods/memory.max", "max\n");
        assert_eq!(of("0::/pods/web\n"), Some(512 << 20));
        assert_eq!(of("0::/pods\n"), None, "no limit");
        write("memory.max", "268435456\n");
        assert_eq!(of("0::/pods/web\n"), Some(256 << 20), "the one around it is less");
        assert_eq!(of("0::/elsewhere\n"), Some(256 << 20), "a container sees no other than its own");
        // The first version, whose lines beside memory's say nothing of it.
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(of("3:cpu,cpuacct:/\n2:name=systemd:/\n4:memory:/\n"), None);
        write("memory/pod/memory.limit_in_bytes", "134217728\n");
        assert_eq!(of("4:memory:/pod/of/it\n"), Some(128 << 20));
        assert_eq!(of("4:memory\nnonsense\n::\n"), Some(256 << 20), "what is not understood is skipped");
    }

    #[test]
    fn connections_are_bounded_by_what_they_cost() {
        let connections = |heap| Budget { heap }.connections();
        assert_eq!(connections(Some(400 << 20)), 6_400);
        assert_eq!(connections(Some(LEAST)), 512);
        assert_eq!(connections(Some(1 << 40)), MOST_CONNECTIONS);
        assert_eq!(connections(None), MOST_CONNECTIONS);
        let unwatched = Budget { heap: None }.overload_manager();
        assert_eq!(unwatched["resource_monitors"].as_array().unwrap().len(), 1, "{unwatched}");
    }
}
