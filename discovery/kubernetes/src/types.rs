//! The custom resources that Eastway reads and writes, as Rust structs.
//!
//! They are read leniently: unknown fields are ignored and missing ones have their default, because
//! an object with a mistake must not stop a watch ([`crate::watch`] quarantines what does not decode
//! at all). What a field may say is checked where it is used.

pub mod about;
pub mod eastway;
pub mod mcs;

/// One custom resource: the struct with `metadata`, `spec` and `status`, its [`kube::Resource`], and a
/// [`serde::Serialize`] that writes `apiVersion` and `kind`, as server-side apply wants them.
macro_rules! object {
    (
        $(#[$doc:meta])*
        $name:ident($group:literal, $version:literal, $plural:literal, $scope:ty) { spec: $spec:ty, status: $status:ty }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Deserialize)]
        pub struct $name {
            /// Name, namespace, labels and so on.
            #[serde(default)]
            pub metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
            /// What is wanted.
            #[serde(default)]
            pub spec: $spec,
            /// What is the case.
            #[serde(default)]
            pub status: $status,
        }

        impl kube::Resource for $name {
            type DynamicType = ();
            type Scope = $scope;

            fn kind(_: &()) -> std::borrow::Cow<'_, str> {
                stringify!($name).into()
            }

            fn group(_: &()) -> std::borrow::Cow<'_, str> {
                $group.into()
            }

            fn version(_: &()) -> std::borrow::Cow<'_, str> {
                $version.into()
            }

            fn plural(_: &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &mut self.metadata
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeStruct as _;
                // A status that says nothing is left out: most writers only own the spec.
                let status = self.status != <$status>::default();
                let mut object = serializer.serialize_struct(stringify!($name), if status { 5 } else { 4 })?;
                object.serialize_field("apiVersion", concat!($group, "/", $version))?;
                object.serialize_field("kind", stringify!($name))?;
                object.serialize_field("metadata", &self.metadata)?;
                object.serialize_field("spec", &self.spec)?;
                if status {
                    object.serialize_field("status", &self.status)?;
                }
                object.end()
            }
        }
    };
}

pub(crate) use object;

#[cfg(test)]
mod tests;
