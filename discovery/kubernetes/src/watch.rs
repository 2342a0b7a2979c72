//! One list and watch of one kind of object that does not give up.
//!
//! Each object is decoded by itself: one that does not decode is counted, logged once per mistake and
//! shown, and the watch goes on. A failed request is tried again with growing, jittered pauses; a
//! version that the server no longer has leads to a new list, told as one difference. Streaming lists
//! are asked for first, and given up where the server has none.
//!
//! All of that is there once for all kinds (`follow`); what a kind adds is how its objects are decoded.

mod decode;
mod follow;
mod table;

use std::marker::PhantomData;
use std::sync::Arc;

use kube::Client;
use kube::core::ApiResource;
use serde::de::DeserializeOwned;

pub use table::{Difference, ObjectName};

use decode::{Anything, anything};
use follow::Follower;

/// What to watch.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The kind, under the versions that servers may have, the one to prefer first; at least one.
    pub resources: Vec<ApiResource>,
    /// Only objects of this namespace.
    pub namespace: Option<String>,
    /// Only objects with these labels, as `kubectl get -l` takes them.
    pub labels: Option<String>,
    /// Only objects with these fields, as `kubectl get --field-selector` takes them.
    pub fields: Option<String>,
}

impl Selection {
    /// All objects of a kind.
    #[must_use]
    pub fn all<K: kube::Resource<DynamicType = ()>>() -> Self {
        Self { resources: vec![ApiResource::erase::<K>(&())], namespace: None, labels: None, fields: None }
    }

    /// The same under other versions too, which are tried in this order after the first.
    #[must_use]
    pub fn or_versions(mut self, versions: &[&str]) -> Self {
        let Some(first) = self.resources.first().cloned() else { return self };
        for version in versions {
            let api_version =
                if first.group.is_empty() { (*version).to_owned() } else { format!("{}/{version}", first.group) };
            self.resources.push(ApiResource { version: (*version).to_owned(), api_version, ..first.clone() });
        }
        self
    }

    /// Only in this namespace.
    #[must_use]
    pub fn in_namespace(self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self }
    }

    /// Only with these labels.
    #[must_use]
    pub fn labelled(self, labels: &str) -> Self {
        Self { labels: Some(labels.to_owned()), ..self }
    }

    /// Only with these fields.
    #[must_use]
    pub fn with_fields(self, fields: &str) -> Self {
        Self { fields: Some(fields.to_owned()), ..self }
    }
}

/// How a watch is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchStatus {
    /// What is watched, as in `kubectl get`: `serviceexports.multicluster.x-k8s.io`.
    pub kind: String,
    /// Whether a list was read to its end at least once.
    pub listed: bool,
    /// The server does not know the kind: its definition is not installed.
    pub not_installed: bool,
    /// Why the last attempt failed; `None` once one succeeded after it.
    pub problem: Option<String>,
    /// Attempts that failed since the start.
    pub failures: u64,
    /// Objects.
    pub objects: usize,
    /// Objects whose latest version does not decode.
    pub quarantined: usize,
    /// The first of them, and why.
    pub bad: Vec<BadObject>,
}

impl WatchStatus {
    /// Whether it is known what there is: a list was read, or there can be none.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.listed || self.not_installed
    }
}

/// An object that does not decode.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BadObject {
    /// Which.
    pub object: ObjectName,
    /// Why.
    pub error: String,
}

/// A watch of objects that decode as `K`.
pub struct Watch<K> {
    follower: Follower,
    kind: PhantomData<fn() -> K>,
}

impl<K: DeserializeOwned + Send + Sync + 'static> Watch<K> {
    /// A watch that asks nothing until [`Watch::next`].
    #[must_use]
    pub fn new(client: Client, selection: Selection) -> Self {
        Self { follower: Follower::new(client, selection, anything::<K>), kind: PhantomData }
    }

    /// Tells the objects of the first list as they come, and does not collect them until it is complete: for readers
    /// that make little of much, and wait for [`WatchStatus::is_settled`] themselves.
    #[must_use]
    pub fn eager(mut self) -> Self {
        self.follower.tell_as_it_comes();
        self
    }

    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> &WatchStatus {
        self.follower.status()
    }

    /// Waits until there are differences or the status is another; in the latter case there may be
    /// none. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Vec<Difference<K>> {
        self.follower.next().await.into_iter().filter_map(Difference::of_kind).collect()
    }
}

impl Difference<Anything> {
    /// The same of a kind; every object is what the decoder of its watch made.
    fn of_kind<K: Send + Sync + 'static>(self) -> Option<Difference<K>> {
        match self {
            Self::Set(name, object) => Arc::downcast(object).ok().map(|object| Difference::Set(name, object)),
            Self::Gone(name) => Some(Difference::Gone(name)),
        }
    }
}

#[cfg(test)]
mod tests;
