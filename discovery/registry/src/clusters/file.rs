//! One Cluster file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Opened;
use crate::diagnostic::{Code, Diagnostics, Source, quoted};
use crate::yaml::{self, At, Context, Field};

/// `apiVersion` of Cluster files.
pub const API_VERSION: &str = "clusterregistry.k8s.io/v1alpha1";
/// Annotation that allows the `exec` section of the kubeconfig.
pub const ALLOW_EXEC: &str = "eastway.dev/allow-exec";
/// Annotation that names a context of the kubeconfig.
pub const CONTEXT: &str = "eastway.dev/context";
/// Longest name of a cluster: Kubernetes' limit for names of objects.
const MAX_NAME: usize = 253;

/// What a file says about the credentials of its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The kubeconfig.
    pub kubeconfig: PathBuf,
    /// A context of it; `None`: its current one.
    pub context: Option<String>,
    /// Its `exec` section may be carried out.
    pub allow_exec: bool,
}

/// Why a kubeconfig is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// `kind: Cluster` as its API defines it. What a kubeconfig says anyway is not looked at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClusterFile {
    api_version: Field<String>,
    kind: Field<String>,
    metadata: Field<Metadata>,
    spec: Field<Spec>,
    #[serde(default, rename = "status")]
    _status: Field<IgnoredAny>,
}

/// What people write, and what a file made by `kubectl get -o yaml` has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Field<String>,
    #[serde(default)]
    annotations: Field<BTreeMap<String, Field<String>>>,
    #[serde(default, rename = "namespace")]
    _namespace: Field<IgnoredAny>,
    #[serde(default, rename = "labels")]
    _labels: Field<IgnoredAny>,
    #[serde(default, rename = "uid")]
    _uid: Field<IgnoredAny>,
    #[serde(default, rename = "resourceVersion")]
    _resource_version: Field<IgnoredAny>,
    #[serde(default, rename = "generation")]
    _generation: Field<IgnoredAny>,
    #[serde(default, rename = "creationTimestamp")]
    _creation_timestamp: Field<IgnoredAny>,
    #[serde(default, rename = "managedFields")]
    _managed_fields: Field<IgnoredAny>,
    #[serde(default, rename = "selfLink")]
    _self_link: Field<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    auth_info: Field<AuthInfo>,
    #[serde(default, rename = "kubernetesApiEndpoints")]
    _kubernetes_api_endpoints: Field<IgnoredAny>,
}

#[derive(Deserialize)]
struct AuthInfo {
    controller: Field<ControllerSection>,
    #[serde(default, rename = "user")]
    _user: Field<IgnoredAny>,
}

#[derive(Deserialize)]
struct ControllerSection {
    kind: Field<String>,
    name: Field<String>,
    #[serde(default, rename = "namespace")]
    _namespace: Field<IgnoredAny>,
}

/// Name, reference and what `open` makes of it; what is wrong goes to `sink`.
pub(super) fn read<T>(
    path: &Path,
    source: &Arc<Source>,
    open: &dyn Fn(&Reference) -> Result<Opened<T>, Refusal>,
    sink: &mut Diagnostics,
) -> Option<(Arc<str>, Reference, Option<Opened<T>>)> {
    let document = yaml::read_one(source, "Cluster", sink)?;
    let file: ClusterFile = document.decode(sink)?;
    let mut cx = Context::new(&document, sink);
    let root = cx.root();
    for (key, field, wanted) in [("apiVersion", &file.api_version, API_VERSION), ("kind", &file.kind, "Cluster")] {
        let Some(text) = cx.required(root, key, field, wanted) else { continue };
        if text.value != wanted {
            cx.error(text.at, Code::Kind, format!("must be {wanted}, not {}", quoted(&text.value)));
        }
    }
    let metadata = cx.required(root, "metadata", &file.metadata, "at least metadata.name")?;
    let what = "a name for this API server";
    let name = cx.required_parse(metadata.at, "name", &metadata.value.name, what, object_name);
    let annotation = |key: &str| metadata.value.annotations.value().and_then(|all| all.get(key)).and_then(Field::get);
    let context = annotation(CONTEXT).map(|text| text.value.clone());
    let allow_exec = annotation(ALLOW_EXEC).is_some_and(|text| {
        cx.parse(text, |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("must be \"true\" or \"false\""),
        })
        .unwrap_or(false)
    });
    let named = kubeconfig(root, &file.spec, &mut cx)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let reference = Reference { kubeconfig: folder.join(&named.value), context, allow_exec };
    let opened = match open(&reference) {
        Ok(opened) => Some(opened),
        Err(Refusal { message, help: Some(help) }) => {
            cx.error_help(named.at, Code::Unreadable, message, help);
            None
        }
        Err(Refusal { message, help: None }) => {
            cx.error(named.at, Code::Unreadable, message);
            None
        }
    };
    Some((name?, reference, opened))
}

/// The path that the file names.
fn kubeconfig<'f>(root: yaml::NodeId, spec: &'f Field<Spec>, cx: &mut Context<'_>) -> Option<&'f At<String>> {
    let what = "where its kubeconfig is: authInfo: {controller: {kind: Kubeconfig, name: PATH}}";
    let spec = cx.required(root, "spec", spec, what)?;
    let auth = cx.required(spec.at, "authInfo", &spec.value.auth_info, what)?;
    let controller = cx.required(auth.at, "controller", &auth.value.controller, "{kind: Kubeconfig, name: PATH}")?;
    let kind = cx.required(controller.at, "kind", &controller.value.kind, "Kubeconfig")?;
    if kind.value != "Kubeconfig" {
        let help = "put the kubeconfig beside this file and write kind: Kubeconfig with its path as the name; Secrets are read for \
                    Cluster objects";
        let message = format!("must be Kubeconfig in a file, not {}", quoted(&kind.value));
        cx.error_help(kind.at, Code::Value, message, help);
        return None;
    }
    let name = cx.required(controller.at, "name", &controller.value.name, "the path of the kubeconfig")?;
    if name.value.is_empty() || name.value.contains('\0') {
        cx.error(name.at, Code::Value, "must be the path of a kubeconfig");
        return None;
    }
    Some(name)
}

/// As Kubernetes names objects (RFC 1123 subdomain).
fn object_name(text: &str) -> Result<Arc<str>, &'static str> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label =
        |label: &str| !label.is_empty() && label.bytes().all(good) && !label.starts_with('-') && !label.ends_with('-');
    if text.len() > MAX_NAME || !text.split('.').all(label) {
        return Err("must be lower-case letters, digits, dashes and dots, at most 253");
    }
    Ok(text.into())
}
