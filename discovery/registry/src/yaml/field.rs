//! Fields that survive their own mistakes.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};

use super::tree::NodeId;

/// How [`Field`] asks our deserializer for its place.
pub(super) const FIELD: &str = "eastway::yaml::Field";
/// How [`Text`] asks our deserializer for the text as written.
pub(super) const TEXT: &str = "eastway::yaml::Text";

/// A value and where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its node in the document it was decoded from.
    pub at: NodeId,
}

/// A field of a file: a mistake in it has been reported and does not hide other mistakes.
///
/// Without `#[serde(default)]` the JSON Schema lists it as required; the file is then still
/// decoded without it, and [`super::Context::required`] reports that it is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Field<T> {
    /// Not there, or null.
    #[default]
    Absent,
    /// There, and already reported as wrong.
    Invalid,
    /// There.
    Set(At<T>),
}

/// A list whose items are checked one by one.
pub type List<T> = Field<Vec<Field<T>>>;

impl<T> Field<T> {
    /// The value, if there is a good one.
    #[must_use]
    pub fn get(&self) -> Option<&At<T>> {
        match self {
            Self::Set(at) => Some(at),
            Self::Absent | Self::Invalid => None,
        }
    }

    /// The value alone, if there is a good one.
    #[must_use]
    pub fn value(&self) -> Option<&T> {
        self.get().map(|at| &at.value)
    }
}

impl<T> Field<Vec<Field<T>>> {
    /// The good items.
    pub fn items(&self) -> impl Iterator<Item = &At<T>> {
        self.value().into_iter().flatten().filter_map(Field::get)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By way of an option, serde takes a missing key for `Absent`.
        deserializer.deserialize_option(OptionVisitor(PhantomData))
    }
}

struct OptionVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OptionVisitor<T> {
    type Value = Field<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(Field::Absent)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Field::Absent)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_newtype_struct(FIELD, FieldVisitor(PhantomData))
    }
}

struct FieldVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for FieldVisitor<T> {
    type Value = Field<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    /// Ours: the node, then the value or nothing if it was wrong.
    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let node = access.next_element::<u32>()?.ok_or_else(|| A::Error::custom("no node"))?;
        Ok(match access.next_element::<T>()? {
            Some(value) => Field::Set(At { value, at: NodeId(node) }),
            None => Field::Invalid,
        })
    }

    /// Any other deserializer.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        Ok(Field::Set(At { value: T::deserialize(deserializer)?, at: NodeId::NONE }))
    }
}

impl<T: schemars::JsonSchema> schemars::JsonSchema for Field<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        T::json_schema(generator)
    }
}

/// A text with its own grammar, taken as written even if YAML would see a number in it: the
/// grammar's own message ("needs a unit") is then better than "put it in quotes".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(pub String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Text, D::Error> {
                String::deserialize(deserializer).map(Text)
            }
        }
        deserializer.deserialize_newtype_struct(TEXT, TextVisitor)
    }
}

impl schemars::JsonSchema for Text {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "string".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string" })
    }
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        &self.0
    }
}
