//! What Istio's sidecars take, as PeerAuthentications say it.
//!
//! Those count that are for a whole namespace or for all. One that is for some workloads or ports and takes more than the
//! others leaves its namespace to the sidecars, which carry all of them out.

use std::collections::BTreeMap;
use std::sync::Arc;

use eastway_model::TlsMode;
use kube::api::ApiResource;

use super::objects::{MutualTls, PeerAuthentication};
use crate::watch::{ObjectName, Selection};

/// Namespace of what is for all namespaces.
const ROOT_NAMESPACE: &str = "istio-system";

/// What is watched for [`Modes`].
pub(super) fn selection() -> Selection {
    let resource = ApiResource {
        group: "security.istio.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "security.istio.io/v1".to_owned(),
        kind: "PeerAuthentication".to_owned(),
        plural: "peerauthentications".to_owned(),
    };
    Selection { resources: vec![resource], namespace: None, labels: None, fields: None }
}

/// What sidecars take: mutual TLS, plain text or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Strict,
    Permissive,
    Disabled,
}

/// The namespaces that a change is about.
#[derive(Debug)]
pub(super) enum Concerned {
    All,
    One(Arc<str>),
}

impl Concerned {
    pub(super) fn concerns(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::One(one) => **one == *namespace,
        }
    }
}

/// All PeerAuthentications, and the mode of each namespace that has one.
#[derive(Debug, Default)]
pub(super) struct Modes {
    objects: BTreeMap<ObjectName, PeerAuthentication>,
    /// `None`: whatever is for all counts.
    namespaces: BTreeMap<Arc<str>, Option<Mode>>,
}

impl Modes {
    /// Takes one, or takes it out; whom that is about, if anybody.
    pub(super) fn set(&mut self, name: ObjectName, object: Option<PeerAuthentication>) -> Option<Concerned> {
        let namespace = Arc::clone(&name.namespace);
        if self.objects.get(&name) == object.as_ref() {
            return None;
        }
        match object {
            Some(object) => _ = self.objects.insert(name, object),
            None => _ = self.objects.remove(&name),
        }
        let here = self.objects.iter().filter(|(name, _)| name.namespace == namespace).map(|(_, object)| object);
        match together(here) {
            Some(mode) => _ = self.namespaces.insert(Arc::clone(&namespace), mode),
            None => _ = self.namespaces.remove(&namespace),
        }
        Some(if *namespace == *ROOT_NAMESPACE { Concerned::All } else { Concerned::One(namespace) })
    }

    /// What the ports of a namespace's pods with a sidecar of Istio speak.
    pub(super) fn of(&self, namespace: &str) -> TlsMode {
        let of = |namespace: &str| self.namespaces.get(namespace).copied().flatten();
        match of(namespace).or_else(|| of(ROOT_NAMESPACE)) {
            Some(Mode::Strict) => TlsMode::IstioStrict,
            Some(Mode::Disabled) => TlsMode::None,
            Some(Mode::Permissive) | None => TlsMode::Istio,
        }
    }
}

/// What all those of a namespace say of it together; `None`: there are none. Where they do not agree it is taken to be
/// permissive.
fn together<'a>(objects: impl Iterator<Item = &'a PeerAuthentication>) -> Option<Option<Mode>> {
    let mut all: Option<Option<Mode>> = None;
    let mut some = Vec::new();
    for PeerAuthentication { spec } in objects {
        let selects = spec.selector.as_ref().and_then(|selector| selector.match_labels.as_ref());
        let mode = spec.mtls.as_ref().and_then(mode);
        if selects.is_some_and(|labels| !labels.is_empty()) {
            some.extend(mode);
            some.extend(spec.port_level_mtls.iter().flat_map(BTreeMap::values).filter_map(self::mode));
            all.get_or_insert(None);
        } else {
            all = Some(match all.flatten() {
                Some(other) if Some(other) != mode => Some(Mode::Permissive),
                _ => mode,
            });
        }
    }
    let whole = all?;
    let exempt = some.iter().any(|one| Some(*one) != whole && *one != Mode::Strict);
    let exempt = exempt || (whole == Some(Mode::Disabled) && !some.is_empty());
    Some(if exempt { Some(Mode::Permissive) } else { whole })
}

/// `UNSET` is what the next larger says.
fn mode(tls: &MutualTls) -> Option<Mode> {
    match tls.mode.as_deref() {
        Some("STRICT") => Some(Mode::Strict),
        Some("PERMISSIVE") => Some(Mode::Permissive),
        Some("DISABLE") => Some(Mode::Disabled),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_takes_nothing_but_mutual_tls_is_told_unless_a_part_of_it_is_exempt() {
        let mut modes = Modes::default();
        let mut set = |namespace: &str, name: &str, spec: Option<Value>| {
            let object = spec.map(|spec| serde_json::from_value(json!({"spec": spec})).unwrap());
            let about = modes.set(ObjectName::new(namespace, name), object);
            (modes.of("shop"), about.map(|about| about.concerns("shop")))
        };
        let whole = |mode: &str| Some(json!({"mtls": {"mode": mode}}));
        let some = |mode: &str| Some(json!({"selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": mode}}));
        let told = Some(true);
        assert_eq!(set("istio-system", "default", whole("STRICT")), (TlsMode::IstioStrict, told));
        assert_eq!(set("istio-system", "default", whole("STRICT")), (TlsMode::IstioStrict, None), "nothing is new");
        assert_eq!(set("mail", "default", whole("PERMISSIVE")), (TlsMode::IstioStrict, Some(false)));
        assert_eq!(set("shop", "default", whole("UNSET")), (TlsMode::IstioStrict, told));
        assert_eq!(set("shop", "default", whole("PERMISSIVE")), (TlsMode::Istio, told));
        assert_eq!(set("shop", "default", whole("DISABLE")), (TlsMode::None, told));
        assert_eq!(set("shop", "default", whole("STRICT")), (TlsMode::IstioStrict, told));
        assert_eq!(set("shop", "web", some("STRICT")), (TlsMode::IstioStrict, told));
        assert_eq!(set("shop", "web", some("PERMISSIVE")), (TlsMode::Istio, told));
        let port = json!({
            "selector": {"matchLabels": {"app": "web"}}, "portLevelMtls": {"80": {"mode": "DISABLE"}},
        });
        assert_eq!(set("shop", "web", Some(port)), (TlsMode::Istio, told));
        assert_eq!(set("shop", "web", None), (TlsMode::IstioStrict, told));
        set("istio-system", "default", None);
        assert_eq!(set("shop", "default", None), (TlsMode::Istio, told));
    }
}
