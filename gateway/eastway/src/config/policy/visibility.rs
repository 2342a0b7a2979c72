//! What workloads are told of, after all checks.

use std::collections::BTreeMap;
use std::sync::Arc;

use eastway_model::Label;
use eastway_model::rules::{MAX_PATTERNS, ServicePattern, Visibility, Visible};
use eastway_registry::diagnostic::Code;
use eastway_registry::yaml::{Context, Place};

use super::{Collected, file, metadata};

impl Collected {
    pub(super) fn visibility(&mut self, policy: &file::Visibility, cx: &mut Context<'_>) {
        let root = cx.root();
        cx.header(root, &policy.api_version, &policy.kind, "Visibility");
        let names = metadata(root, &policy.metadata, cx);
        let Some(section) = cx.required(root, "spec", &policy.spec, "spec.services") else { return };
        let spec = &section.value;
        let what = "services, e.g. [\"bookinfo/*\"]; [] for none but those of the namespace";
        let Some(list) = cx.required(section.at, "services", &spec.services, what) else { return };
        if list.value.len() > MAX_PATTERNS {
            cx.error(
                list.at,
                Code::Value,
                format!("has {} patterns; at most {MAX_PATTERNS} are allowed", list.value.len()),
            );
        }
        let patterns = cx.parse_items(&spec.services, str::parse::<ServicePattern>);
        let Some(key) = names else { return };
        if let Some((_, earlier)) = self.visibility.get(&key) {
            let message = format!("Visibility {}/{} is already defined in {earlier}", key.0, key.1);
            cx.error(section.at, Code::Duplicate, message);
            return;
        }
        let patterns = patterns.into_iter().map(|at| at.value).collect();
        self.visibility.insert(key, (patterns, cx.place(section.at)));
    }
}

/// What all policies of a namespace say together.
pub(super) fn by_namespace(policies: BTreeMap<(Label, Label), (Vec<ServicePattern>, Place)>) -> Visibility {
    let mut all: BTreeMap<Label, Vec<ServicePattern>> = BTreeMap::new();
    for ((namespace, _), (patterns, _)) in policies {
        all.entry(namespace).or_default().extend(patterns);
    }
    let visible = |(namespace, mut services): (Label, Vec<ServicePattern>)| {
        services.sort();
        services.dedup();
        (namespace.clone(), Arc::new(Visible { namespace, services }))
    };
    all.into_iter().map(visible).collect()
}
