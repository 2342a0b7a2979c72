//! One object of a list or a watch, decoded by itself: what is wrong with it stays its own matter.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Longest description of a mistake that is kept, bytes: some quote what they could not read.
const MAX_ERROR: usize = 300;

/// What a decoder makes: an `Arc` of some kind of object.
pub(super) type Anything = dyn Any + Send + Sync;

/// Makes an object of a text, or says why it is none.
pub(super) type Decoder = fn(&str) -> Result<Arc<Anything>, serde_json::Error>;

/// The decoder of a kind.
pub(super) fn anything<K: DeserializeOwned + Send + Sync + 'static>(
    text: &str,
) -> Result<Arc<Anything>, serde_json::Error> {
    serde_json::from_str::<K>(text).map(|object| Arc::new(object) as Arc<Anything>)
}

/// An object of whatever kind, as the server wrote it.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    /// Name, namespace, uid and version; nothing else.
    meta: ObjectMeta,
    text: Box<RawValue>,
}

impl Raw {
    pub(super) fn decoded(self, decode: Decoder) -> Decoded<Anything> {
        let body = decode(self.text.get()).map_err(|error| shortened(error.to_string()));
        Decoded { meta: self.meta, body }
    }
}

/// An object, or why it is none. Which object it is is known in both cases.
pub(super) struct Decoded<K: ?Sized> {
    meta: ObjectMeta,
    body: Result<Arc<K>, String>,
}

impl<K: ?Sized> Decoded<K> {
    pub(super) fn into_parts(self) -> (ObjectMeta, Result<Arc<K>, String>) {
        (self.meta, self.body)
    }
}

#[cfg(test)]
impl<K: DeserializeOwned> Decoded<K> {
    pub(super) fn of(text: &str) -> Self {
        let Raw { meta, text } = serde_json::from_str(text).unwrap();
        let body = serde_json::from_str(text.get()).map(Arc::new).map_err(|error| shortened(error.to_string()));
        Self { meta, body }
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

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The text of the object, not a tree of it: reading it twice costs less than building one. This needs
        // the `type` of a watch event to come before its `object`, as every API server writes it.
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let head: Head = serde_json::from_str(text.get()).unwrap_or_default();
        let HeadMeta { namespace, name, uid, resource_version } = head.metadata;
        let meta = ObjectMeta { namespace, name, uid, resource_version, ..ObjectMeta::default() };
        Ok(Self { meta, text })
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

impl kube::Resource for Raw {
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
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Data {
        #[expect(dead_code, reason = "it only has to decode")]
        data: BTreeMap<String, String>,
    }

    #[test]
    fn a_bad_object_is_known_by_name() {
        let text = r#"{"metadata": {"namespace": "shop", "name": "cart", "uid": "u", "resourceVersion": "7"},
                       "data": {"ports": 7}}"#;
        let bad = Decoded::<Data>::of(text);
        assert_eq!(bad.meta.name.as_deref(), Some("cart"));
        assert!(bad.into_parts().1.unwrap_err().contains("expected a string"));
    }

    #[test]
    fn what_is_no_object_at_all_is_bad_too() {
        for text in ["7", "null", "[]", r#"{"metadata": 5}"#, r#"{"metadata": {"name": {}}}"#] {
            let bad = Decoded::<Data>::of(text);
            assert_eq!(bad.meta.name, None);
            assert!(bad.into_parts().1.is_err(), "{text}");
        }
    }

    #[test]
    fn mistakes_are_told_briefly() {
        assert_eq!(shortened("ä".repeat(200)).chars().count(), 151);
        assert_eq!(shortened("short".to_owned()), "short");
    }
}
