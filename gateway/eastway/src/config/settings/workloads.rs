//! The workloads that the ca role certifies on sockets of their own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use eastway_identity::SpiffeId;
use eastway_model::Label;
use eastway_registry::diagnostic::Code;
use eastway_registry::yaml::{At, Context};

use super::convert::path;
use super::{CaAddress, TrustSettings, WorkloadSettings};
use crate::config::file::{GatewayConfig, WorkloadSection};
use crate::local::socket::MAX_PATH;

/// Most of them: each costs the ca role a file descriptor.
const MOST: usize = 1_024;

/// `trust.workloads`. `system`: Eastway's own namespace, whose accounts are no workloads.
pub(super) fn workloads(
    config: &GatewayConfig,
    trust: &TrustSettings,
    system: &str,
    base: &Path,
    cx: &mut Context<'_>,
) -> Vec<WorkloadSettings> {
    let Some(section) = config.trust.value() else { return Vec::new() };
    let mut found: Vec<WorkloadSettings> = Vec::new();
    let mut taken: BTreeMap<PathBuf, &str> = BTreeMap::new();
    if let CaAddress::Unix(socket) = &trust.ca {
        taken.insert(socket.clone(), "trust.ca");
    }
    for item in section.workloads.items() {
        if found.len() == MOST {
            cx.error(item.at, Code::TooLarge, format!("at most {MOST} workloads"));
            break;
        }
        let Some(workload) = workload(item, trust, system, base, cx) else { continue };
        let at = item.value.socket.get().map_or(item.at, |socket| socket.at);
        match taken.get(&workload.socket) {
            Some(user) => cx.error_help(
                at,
                Code::Duplicate,
                format!("{} is already used by {user}", workload.socket.display()),
                "each identity has a socket of its own",
            ),
            None => {
                taken.insert(workload.socket.clone(), "another workload");
                found.push(workload);
            }
        }
    }
    found
}

fn workload(
    item: &At<WorkloadSection>,
    trust: &TrustSettings,
    system: &str,
    base: &Path,
    cx: &mut Context<'_>,
) -> Option<WorkloadSettings> {
    let (at, section) = (item.at, &item.value);
    let namespace = cx.required_parse(at, "namespace", &section.namespace, "a namespace", Label::parse);
    let what = "the service account that it is certified as";
    let account = cx.required_parse(at, "serviceAccount", &section.service_account, what, Label::parse);
    let socket = cx.required(at, "socket", &section.socket, "a path, e.g. ./run/productpage.sock");
    let socket = socket.and_then(|text| socket_path(text, base, cx));
    let uid = match section.uid.get() {
        // The last number means "nobody in particular" to the kernel (chown(2)).
        Some(uid) => match u32::try_from(uid.value).ok().filter(|uid| *uid != u32::MAX) {
            Some(uid) => Some(uid),
            None => {
                cx.error(uid.at, Code::Value, format!("must be 0 to {}", u32::MAX - 1));
                return None;
            }
        },
        None => None,
    };
    let (namespace, account) = (namespace?, account?);
    if namespace.as_str() == system {
        let place = section.namespace.get().map_or(at, |namespace| namespace.at);
        let help = "its accounts are Eastway's own processes; give workloads a namespace of theirs";
        cx.error_help(place, Code::Forbidden, format!("{namespace} is Eastway's own namespace"), help);
        return None;
    }
    let identity = SpiffeId::workload(&trust.domain, namespace.as_str(), account.as_str()).ok()?;
    Some(WorkloadSettings { identity, socket: socket?, uid })
}

/// A path that a socket can have.
fn socket_path(text: &At<String>, base: &Path, cx: &mut Context<'_>) -> Option<PathBuf> {
    let path = path(text, base, cx)?;
    if path.as_os_str().len() > MAX_PATH {
        cx.error(
            text.at,
            Code::Value,
            format!("{} is too long: a socket's path has at most {MAX_PATH} bytes", path.display()),
        );
        return None;
    }
    Some(path)
}
