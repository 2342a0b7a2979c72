//! One object of a list or a watch, decoded by itself: what is wrong with it stays its own matter.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Longest description of a mistake that is kept, bytes: some quote what they could not read.
const MAX_ERROR: usize = 300;

/// An object, or why it is none. Which object it is is known in both cases.
pub(super) struct Decoded<K> {
    /// Name, namespace, uid and version; nothing else.
    meta: ObjectMeta,
    body: Result<Arc<K>, String>,
}

impl<K> Decoded<K> {
    pub(super) fn into_parts(self) -> (ObjectMeta, Result<Arc<K>, String>) {
        (self.meta, self.body)
    }
}

#[cfg(test)]
impl<K: DeserializeOwned> Decoded<K> {
    pub(super) fn of(text: &str) -> Self {
        serde_json::from_str(text).unwrap()
    }
}

/// The fields of `metadata` that tell objects and their versions apart.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Head {
    metadata: HeadMeta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HeadMeta {
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Decoded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The text of the object, not a tree of it: decoding it twice costs less than building one. This needs
        // the `type` of a watch event to come before its `object`, as every API server writes it.
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let head: Head = serde_json::from_str(raw.get()).unwrap_or_default();
        let HeadMeta { namespace, name, uid, resource_version } = head.metadata;
        let meta = ObjectMeta { namespace, name, uid, resource_version, ..ObjectMeta::default() };
        let body = serde_json::from_str(raw.get()).map(Arc::new).map_err(|error| shortened(error.to_string()));
        Ok(Self { meta, body })
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > MAX_ERROR {
        let end = (0..=MAX_ERROR).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

impl<K> Clone for Decoded<K> {
    fn clone(&self) -> Self {
        Self { meta: self.meta.clone(), body: self.body.clone() }
    }
}

impl<K> fmt::Debug for Decoded<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body.as_ref().map(|_| ());
        f.debug_struct("Decoded").field("meta", &self.meta).field("body", &body).finish()
    }
}

impl<K> kube::Resource for Decoded<K> {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&resource.kind)
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&resource.group)
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&resource.version)
    }

    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&resource.api_version)
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&resource.plural)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use kube::Resource as _;

    use super::*;

    #[test]
    fn a_bad_object_is_known_by_name() {
        let text = r#"{"metadata": {"namespace": "shop", "name": "cart", "uid": "u", "resourceVersion": "7"},
                       "spec": {"ports": "many"}}"#;
        let bad = Decoded::<Service>::of(text);
        assert_eq!(bad.meta().name.as_deref(), Some("cart"));
        assert!(bad.into_parts().1.unwrap_err().contains("expected a sequence"));
    }

    #[test]
    fn what_is_no_object_at_all_is_bad_too() {
        for text in ["7", "null", "[]", r#"{"metadata": 5}"#, r#"{"metadata": {"name": {}}}"#] {
            let bad = Decoded::<Service>::of(text);
            assert_eq!(bad.meta().name, None);
            assert!(bad.into_parts().1.is_err(), "{text}");
        }
    }

    #[test]
    fn mistakes_are_told_briefly() {
        assert_eq!(shortened("ä".repeat(200)).chars().count(), 151);
        assert_eq!(shortened("short".to_owned()), "short");
    }
}
