//! The `registries` section: which sources of local services there are.

use std::path::Path;
use std::sync::Arc;

use eastway_kubernetes::source::{ExportMark, SUBSET_LABELS};
use eastway_model::Label;
use eastway_model::name::check_label_key;
use eastway_registry::diagnostic::Code;
use eastway_registry::yaml::{At, Context, Field};

use super::convert::path;
use super::{ApiServerSettings, RegistrySettings, RegistrySource};
use crate::config::file::{ApiServerSection, ExportMarkWord, GatewayConfig, RegistrySection};

/// Most labels of a subset: what peers accept.
const MAX_SUBSET_LABELS: usize = 16;

pub(super) fn registries(config: &GatewayConfig, base: &Path, cx: &mut Context<'_>) -> Vec<RegistrySettings> {
    let mut all: Vec<RegistrySettings> = Vec::new();
    for section in config.registries.items() {
        let registry = &section.value;
        let name = cx.required_parse(section.at, "name", &registry.name, "a name of your choice", Label::parse);
        let source = registry_source(section, base, cx);
        let (Some(name), Some(source)) = (name, source) else { continue };
        let at = registry.file.get().map(|file| file.at).or(registry.kubernetes.get().map(|section| section.at));
        if let Some(earlier) = all.iter().position(|other| other.name == name) {
            let at = registry.name.get().map_or(section.at, |name| name.at);
            cx.error(at, Code::Duplicate, format!("\"{name}\" is already used by registries[{earlier}]"));
        } else if let Some(earlier) = all.iter().position(|other| same_source(&other.source, &source)) {
            let what = if registry.file.get().is_some() { "file" } else { "API server" };
            let message = format!("this {what} is already read by registries[{earlier}]");
            cx.error(at.unwrap_or(section.at), Code::Duplicate, message);
        } else {
            all.push(RegistrySettings { name, source });
        }
    }
    all
}

fn registry_source(section: &At<RegistrySection>, base: &Path, cx: &mut Context<'_>) -> Option<RegistrySource> {
    let RegistrySection { file, kubernetes, .. } = &section.value;
    match (file.get(), kubernetes.get()) {
        (Some(_), Some(kubernetes)) => {
            cx.error(kubernetes.at, Code::Conflict, "either file or kubernetes, not both");
            None
        }
        (Some(file), None) => path(file, base, cx).map(RegistrySource::File),
        (None, Some(kubernetes)) => Some(RegistrySource::Kubernetes(api_server_settings(&kubernetes.value, base, cx))),
        (None, None) => {
            if matches!((file, kubernetes), (Field::Absent, Field::Absent)) {
                let help = "write file: and the path of a ServiceList file, or kubernetes: {} in a pod";
                cx.error_help(section.at, Code::Missing, "file or kubernetes is required", help);
            }
            None
        }
    }
}

fn api_server_settings(section: &ApiServerSection, base: &Path, cx: &mut Context<'_>) -> ApiServerSettings {
    let kubeconfig = section.kubeconfig.get().and_then(|text| path(text, base, cx));
    if let (Some(context), Field::Absent) = (section.context.get(), &section.kubeconfig) {
        cx.error(context.at, Code::Conflict, "has no effect without kubeconfig");
    }
    let context = section.context.get().and_then(|text| {
        cx.parse(text, |text| if text.is_empty() { Err("must not be empty") } else { Ok(text.to_owned()) })
    });
    let mut export_marks: Vec<ExportMark> = section.export_marks.items().map(|mark| mark_of(mark.value)).collect();
    export_marks.sort();
    export_marks.dedup();
    let given = cx.parse_items(&section.subset_labels, |text| {
        check_label_key(text).map(|()| Arc::from(text)).map_err(|error| error.to_string())
    });
    let mut subset_labels: Vec<Arc<str>> = given.into_iter().map(|label| label.value).collect();
    match section.subset_labels.get() {
        Some(list) if list.value.len() > MAX_SUBSET_LABELS => {
            let message = format!("has {} labels; at most {MAX_SUBSET_LABELS} are allowed", list.value.len());
            cx.error(list.at, Code::TooLarge, message);
        }
        Some(_) => {}
        None => subset_labels = SUBSET_LABELS.map(Arc::from).to_vec(),
    }
    ApiServerSettings { kubeconfig, context, export_marks, subset_labels }
}

fn mark_of(word: ExportMarkWord) -> ExportMark {
    match word {
        ExportMarkWord::Istio => ExportMark::Istio,
        ExportMarkWord::Linkerd => ExportMark::Linkerd,
        ExportMarkWord::Cilium => ExportMark::Cilium,
    }
}

/// Whether both read the same, under whatever further settings.
fn same_source(a: &RegistrySource, b: &RegistrySource) -> bool {
    match (a, b) {
        (RegistrySource::File(a), RegistrySource::File(b)) => a == b,
        (RegistrySource::Kubernetes(a), RegistrySource::Kubernetes(b)) => {
            (&a.kubeconfig, &a.context) == (&b.kubeconfig, &b.context)
        }
        (RegistrySource::File(_), RegistrySource::Kubernetes(_))
        | (RegistrySource::Kubernetes(_), RegistrySource::File(_)) => false,
    }
}
