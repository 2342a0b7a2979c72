//! `relay` after all checks.

use std::sync::Arc;

use eastway_model::ClusterName;
use eastway_registry::diagnostic::Code;
use eastway_registry::yaml::{At, Context, Field, Text};
use eastway_tunnel::{RelayLimits, RelayRule};

use super::convert::number_in;
use crate::config::file::RelaySection;
use crate::config::value::{byte_size, cluster_name};

/// Pipes at one time: a link of some hundred streams.
const STREAMS: u32 = 512;
const MAX_STREAMS: u64 = 65_536;

/// The pairs. What is no pair is told and left out.
pub(super) fn rules(section: &At<RelaySection>, own: Option<&ClusterName>, cx: &mut Context<'_>) -> Vec<RelayRule> {
    let mut rules: Vec<RelayRule> = Vec::new();
    for pair in section.value.allow.items() {
        let names = cx.parse_items(&pair.value.between, cluster_name);
        let limits = RelayLimits {
            streams: number_in(&pair.value.streams, MAX_STREAMS, STREAMS, cx),
            bytes_per_second: bytes(&pair.value.bytes_per_second, cx),
            bytes_per_day: bytes(&pair.value.bytes_per_day, cx),
        };
        let [one, other] = names.as_slice() else {
            cx.error(pair.at, Code::Value, "between must name two clusters");
            continue;
        };
        if let Some(this) = [one, other].into_iter().find(|name| Some(&name.value) == own) {
            cx.error(
                this.at,
                Code::Conflict,
                format!("{} is this cluster: name the two that it relays for", this.value),
            );
        }
        if one.value == other.value {
            cx.error(other.at, Code::Duplicate, "between must name two different clusters");
        }
        let between = [one, other].map(|name| Arc::from(name.value.as_str()));
        let [first, second] = between.clone();
        let back = [second, first];
        if rules.iter().any(|rule| rule.between == between || rule.between == back) {
            cx.error(pair.at, Code::Duplicate, "this pair is already listed");
        }
        rules.push(RelayRule { between, limits });
    }
    rules
}

fn bytes(field: &Field<Text>, cx: &mut Context<'_>) -> Option<u64> {
    let text = field.get()?;
    let bytes = cx.parse(text, byte_size)?;
    if bytes < 1 << 10 {
        cx.error(text.at, Code::Value, "must be at least 1KiB");
    }
    Some(bytes)
}
