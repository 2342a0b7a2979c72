//! The `registries` section: which sources of local services there are.

use std::path::Path;
use std::sync::Arc;

use eastway_kubernetes::source::{ExportMark, SUBSET_LABELS};
use eastway_model::Label;
use eastway_model::name::check_label_key;
use eastway_registry::diagnostic::Code;
use eastway_registry::yaml::{At, Context, Field, List};

use super::convert::path;
use super::{ApiServerSettings, ClusterPlace, ReadSettings, RegistrySettings, RegistrySource, SYSTEM_NAMESPACE};
use crate::config::file::{
    ApiServerSection, ClusterRegistrySection, ExportMarkWord, GatewayConfig, KubernetesSection, RegistrySection,
};

/// Most labels of a subset: what peers accept.
const MAX_SUBSET_LABELS: usize = 16;

pub(super) fn registries(config: &GatewayConfig, base: &Path, cx: &mut Context<'_>) -> Vec<RegistrySettings> {
    let mut all: Vec<RegistrySettings> = Vec::new();
    for section in config.registries.items() {
        let registry = &section.value;
        let name = cx.required_parse(section.at, "name", &registry.name, "a name of your choice", Label::parse);
        let source = registry_source(section, base, config.kubernetes.value(), cx);
        let (Some(name), Some(source)) = (name, source) else { continue };
        let at = registry.file.get().map(|file| file.at);
        let at = at.or(registry.kubernetes.get().map(|section| section.at));
        let at = at.or(registry.cluster_registry.get().map(|section| section.at));
        if let Some(earlier) = all.iter().position(|other| other.name == name) {
            let at = registry.name.get().map_or(section.at, |name| name.at);
            cx.error(at, Code::Duplicate, format!("\"{name}\" is already used by registries[{earlier}]"));
        } else if let Some(earlier) = all.iter().position(|other| same_source(&other.source, &source)) {
            let what = match source {
                RegistrySource::File(_) => "file",
                RegistrySource::Kubernetes(_) => "API server",
                RegistrySource::Clusters { .. } => "folder or namespace",
            };
            let message = format!("this {what} is already read by registries[{earlier}]");
            cx.error(at.unwrap_or(section.at), Code::Duplicate, message);
        } else {
            all.push(RegistrySettings { name, source });
        }
    }
    refuse_names_of_clusters(config, &all, cx);
    all
}

/// What a cluster registry finds gets names that begin with its own.
fn refuse_names_of_clusters(config: &GatewayConfig, all: &[RegistrySettings], cx: &mut Context<'_>) {
    for outer in all.iter().filter(|registry| matches!(registry.source, RegistrySource::Clusters { .. })) {
        let prefix = format!("{}-", outer.name);
        for name in config.registries.items().filter_map(|section| section.value.name.get()) {
            if name.value.starts_with(&prefix) {
                let message =
                    format!("names that begin with {prefix} are those of the API servers that {} finds", outer.name);
                cx.error(name.at, Code::Conflict, message);
            }
        }
    }
}

fn registry_source(
    section: &At<RegistrySection>,
    base: &Path,
    own: Option<&KubernetesSection>,
    cx: &mut Context<'_>,
) -> Option<RegistrySource> {
    let RegistrySection { file, kubernetes, cluster_registry, .. } = &section.value;
    let given = [
        file.get().map(|file| file.at),
        kubernetes.get().map(|section| section.at),
        cluster_registry.get().map(|section| section.at),
    ];
    if let Some(second) = given.into_iter().flatten().nth(1) {
        cx.error(second, Code::Conflict, "one of file, kubernetes and clusterRegistry, not several");
        return None;
    }
    if let Some(file) = file.get() {
        return path(file, base, cx).map(RegistrySource::File);
    }
    if let Some(kubernetes) = kubernetes.get() {
        return Some(RegistrySource::Kubernetes(api_server_settings(&kubernetes.value, base, cx)));
    }
    if let Some(clusters) = cluster_registry.get() {
        return cluster_registry_source(clusters, base, own, cx);
    }
    if matches!((file, kubernetes, cluster_registry), (Field::Absent, Field::Absent, Field::Absent)) {
        let help = "write file: and the path of a ServiceList file, or kubernetes: {} in a pod";
        cx.error_help(section.at, Code::Missing, "file, kubernetes or clusterRegistry is required", help);
    }
    None
}

fn cluster_registry_source(
    section: &At<ClusterRegistrySection>,
    base: &Path,
    own: Option<&KubernetesSection>,
    cx: &mut Context<'_>,
) -> Option<RegistrySource> {
    let clusters = &section.value;
    let read = read_settings(&clusters.export_marks, &clusters.subset_labels, cx);
    let place = match (clusters.folder.get(), clusters.namespace.get()) {
        (Some(_), Some(namespace)) => {
            cx.error(namespace.at, Code::Conflict, "either folder or namespace; a second registry reads the other");
            return None;
        }
        (Some(folder), None) => ClusterPlace::Folder(path(folder, base, cx)?),
        (None, Some(namespace)) => {
            let label = cx.parse(namespace, Label::parse)?;
            let system = own.and_then(|own| own.namespace.value()).map_or(SYSTEM_NAMESPACE, String::as_str);
            if label.as_str() == system {
                let help = "make a namespace of its own for them, e.g. eastway-clusters";
                let message = "the CA key is a Secret of this namespace, and the gateway must not read it";
                cx.error_help(namespace.at, Code::Forbidden, message, help);
                return None;
            }
            ClusterPlace::Namespace(label)
        }
        (None, None) => {
            if matches!((&clusters.folder, &clusters.namespace), (Field::Absent, Field::Absent)) {
                let help = "write folder: and the path of a folder of Cluster files, or namespace: and the one of Cluster objects";
                cx.error_help(section.at, Code::Missing, "folder or namespace is required", help);
            }
            return None;
        }
    };
    Some(RegistrySource::Clusters { place, read })
}

fn api_server_settings(section: &ApiServerSection, base: &Path, cx: &mut Context<'_>) -> ApiServerSettings {
    let kubeconfig = section.kubeconfig.get().and_then(|text| path(text, base, cx));
    if let (Some(context), Field::Absent) = (section.context.get(), &section.kubeconfig) {
        cx.error(context.at, Code::Conflict, "has no effect without kubeconfig");
    }
    let context = section.context.get().and_then(|text| {
        cx.parse(text, |text| if text.is_empty() { Err("must not be empty") } else { Ok(text.to_owned()) })
    });
    let read = read_settings(&section.export_marks, &section.subset_labels, cx);
    ApiServerSettings { kubeconfig, context, read }
}

fn read_settings(
    export_marks: &List<ExportMarkWord>,
    subset_labels: &List<String>,
    cx: &mut Context<'_>,
) -> ReadSettings {
    let mut marks: Vec<ExportMark> = export_marks.items().map(|mark| mark_of(mark.value)).collect();
    marks.sort();
    marks.dedup();
    let given = cx.parse_items(subset_labels, |text| {
        check_label_key(text).map(|()| Arc::from(text)).map_err(|error| error.to_string())
    });
    let mut labels: Vec<Arc<str>> = given.into_iter().map(|label| label.value).collect();
    match subset_labels.get() {
        Some(list) if list.value.len() > MAX_SUBSET_LABELS => {
            let message = format!("has {} labels; at most {MAX_SUBSET_LABELS} are allowed", list.value.len());
            cx.error(list.at, Code::TooLarge, message);
        }
        Some(_) => {}
        None => labels = SUBSET_LABELS.map(Arc::from).to_vec(),
    }
    ReadSettings { export_marks: marks, subset_labels: labels }
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
        (RegistrySource::Clusters { place: a, .. }, RegistrySource::Clusters { place: b, .. }) => a == b,
        (RegistrySource::File(_) | RegistrySource::Kubernetes(_) | RegistrySource::Clusters { .. }, _) => false,
    }
}
