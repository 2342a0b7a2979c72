//! Parts that several kinds of route have.

use std::num::NonZeroU16;
use std::sync::Arc;

use eastway_model::rules::route::{Backend, BackendRef, HeaderEdits, MAX_BACKEND_WEIGHT, MAX_BACKENDS, ObjectName};
use eastway_model::{Label, PortNumber, ServiceKey};
use eastway_registry::diagnostic::{Code, quoted};
use eastway_registry::yaml::{At, Context, Field, List, NodeId, Place};

use super::file;
use super::{EASTWAY, MULTICLUSTER};
use crate::config::value::Fqdn;

pub(in crate::config) use crate::config::policy::sidecars::number;

/// What backends need to know.
pub(super) struct Parts<'a> {
    /// The route's.
    pub(super) namespace: &'a Label,
    /// Shares that are named.
    pub(super) named: &'a mut Vec<(ObjectName, Place)>,
}

/// What names a backend, wherever it stands.
pub(super) struct Reference<'f> {
    pub(super) at: NodeId,
    pub(super) group: &'f Field<String>,
    pub(super) kind: &'f Field<String>,
    pub(super) name: &'f Field<String>,
    pub(super) namespace: &'f Field<String>,
    pub(super) port: &'f Field<i64>,
}

impl Parts<'_> {
    pub(super) fn backends(&mut self, list: &List<file::Backend>, cx: &mut Context<'_>) -> Vec<Backend> {
        let sections = bounded(list, MAX_BACKENDS, "backends", cx).into_iter();
        let backends = sections.filter_map(|section| {
            let file::Backend { group, kind, name, namespace, port, weight } = &section.value;
            let reference = Reference { at: section.at, group, kind, name, namespace, port };
            Some(Backend {
                reference: self.reference(&reference, cx)?,
                weight: self::weight(weight, cx),
                request: HeaderEdits::default(),
                response: HeaderEdits::default(),
            })
        });
        backends.collect()
    }

    pub(super) fn reference(&mut self, reference: &Reference<'_>, cx: &mut Context<'_>) -> Option<BackendRef> {
        let group = reference.group.value().map_or("", String::as_str);
        let kind = reference.kind.value().map_or("Service", String::as_str);
        let namespace =
            reference.namespace.get().map_or(Some(self.namespace.clone()), |text| cx.parse(text, Label::parse));
        let number = port(reference.port, cx);
        let at = reference.at;
        match (group, kind) {
            ("" | "core", "Service") | (MULTICLUSTER, "ServiceImport") => {
                let what = "the service's name";
                let name = cx.required_parse(at, "name", reference.name, what, Label::parse_service);
                if kind == "Service" {
                    cx.required(at, "port", reference.port, "of a Service; one of a ServiceImport may leave it out");
                }
                Some(BackendRef::Service { service: ServiceKey { namespace: namespace?, name: name? }, port: number })
            }
            (EASTWAY, "ServiceShare") => {
                let name = cx.required_parse(at, "name", reference.name, "the name of a ServiceShare", subdomain)?;
                let object = ObjectName { namespace: namespace?, name };
                self.named.push((object.clone(), cx.place(at)));
                Some(BackendRef::Share { object, port: number })
            }
            _ => {
                let message = format!("{kind} of group {} is no backend here", quoted(group));
                let help = "a backend is a Service, a ServiceImport (group: multicluster.x-k8s.io) or a ServiceShare (group: eastway.dev)";
                cx.error_help(at, Code::Value, message, help);
                None
            }
        }
    }
}

/// The good items of a list that may have so many.
pub(super) fn bounded<'f, T>(list: &'f List<T>, most: usize, what: &str, cx: &mut Context<'_>) -> Vec<&'f At<T>> {
    if let Some(list) = list.get().filter(|list| list.value.len() > most) {
        cx.error(list.at, Code::TooLarge, format!("has {} {what}; at most {most} are allowed", list.value.len()));
    }
    list.items().take(most).collect()
}

pub(in crate::config) fn object_name(
    root: NodeId,
    field: &Field<file::RouteMetadata>,
    cx: &mut Context<'_>,
) -> Option<ObjectName> {
    let metadata = cx.required(root, "metadata", field, "name and namespace")?;
    let (at, metadata) = (metadata.at, &metadata.value);
    let name = cx.required_parse(at, "name", &metadata.name, "a name of your choice", subdomain);
    let what = "the namespace of the services";
    let namespace = cx.required_parse(at, "namespace", &metadata.namespace, what, Label::parse);
    Some(ObjectName { namespace: namespace?, name: name? })
}

/// Where the name of an object is: what concerns all of it is told there.
pub(in crate::config) fn name_at(cx: &Context<'_>) -> NodeId {
    let root = cx.root();
    cx.child(root, "metadata").and_then(|metadata| cx.child(metadata, "name")).unwrap_or(root)
}

pub(super) fn rule_name(field: &Field<String>, cx: &mut Context<'_>) -> Option<Arc<str>> {
    cx.parse(field.get()?, subdomain)
}

pub(in crate::config) fn port(field: &Field<i64>, cx: &mut Context<'_>) -> Option<PortNumber> {
    let at = field.get()?;
    cx.checked(at, |number| eastway_registry::value::port(*number)).map(|port: NonZeroU16| port)
}

pub(super) fn weight(field: &Field<i64>, cx: &mut Context<'_>) -> u32 {
    number(field, 0, MAX_BACKEND_WEIGHT, cx).unwrap_or(1)
}

/// A name of an object: labels of lower-case letters, digits and dashes, with dots between.
pub(in crate::config) fn subdomain(text: &str) -> Result<Arc<str>, String> {
    if text.len() > 253 {
        return Err(format!("is {} bytes long; at most 253 are allowed", text.len()));
    }
    match text.split('.').find_map(|label| Label::parse(label).err()) {
        None => Ok(Arc::from(text)),
        Some(_) => {
            Err("must consist of lower-case letters, digits, '-' and '.', and begin and end with a letter or digit"
                .to_owned())
        }
    }
}

/// A host's name, lower case.
pub(in crate::config) fn host_name(text: &str) -> Result<Arc<str>, &'static str> {
    let bad = "must be a host's name, e.g. reviews.example";
    if text.ends_with('.') || text.contains('*') || text.parse::<std::net::IpAddr>().is_ok() {
        return Err(bad);
    }
    Fqdn::parse(text).map(|name| Arc::from(name.as_str())).map_err(|_| bad)
}

/// A name that a TLS client asks for; `*.` may stand for its first label.
pub(in crate::config) fn server_name(text: &str) -> Result<Arc<str>, &'static str> {
    match text.strip_prefix("*.") {
        None => host_name(text),
        Some(rest) => host_name(rest).map(|rest| Arc::from(format!("*.{rest}"))),
    }
}
