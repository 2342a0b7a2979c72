//! From the tree to structs, by serde.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::{BorrowedStrDeserializer, U32Deserializer};
use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};

use super::field::{FIELD, TEXT};
use super::tree::{Document, Entry, NodeId, Value, is_null};
use crate::diagnostic::{Code, Diagnostic, Diagnostics, Severity, Span, did_you_mean, quoted};

impl Document {
    /// Decodes the whole document. What is wrong goes to `sink`; a value comes back if the
    /// outermost shape fits, its wrong fields being [`super::Field::Invalid`].
    pub fn decode<'d, T: de::Deserialize<'d>>(&'d self, sink: &mut Diagnostics) -> Option<T> {
        self.decode_at(self.root(), sink)
    }

    /// As [`Document::decode`], of one node.
    pub(super) fn decode_at<'d, T: de::Deserialize<'d>>(&'d self, node: NodeId, sink: &mut Diagnostics) -> Option<T> {
        self.with(node, sink, |decoder| T::deserialize(decoder).map_err(|error| decoder.report(error)).ok())
    }

    /// What `act` makes of one node; what it reports goes to `sink`.
    pub(super) fn with<'d, T>(
        &'d self,
        node: NodeId,
        sink: &mut Diagnostics,
        act: impl FnOnce(Decoder<'d, '_>) -> T,
    ) -> T {
        let reports = RefCell::new(std::mem::take(sink));
        let value = act(Decoder { document: self, node, reports: &reports, in_list: false });
        *sink = reports.into_inner();
        value
    }
}

/// Why a node is not the value that was asked for.
#[derive(Debug)]
pub(super) struct DecodeError {
    /// `None` until it is known: serde's own errors carry no place.
    node: Option<NodeId>,
    code: Code,
    message: String,
    help: Option<String>,
}

impl DecodeError {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { node: None, code, message: message.into(), help: None }
    }

    fn or_at(mut self, node: NodeId) -> Self {
        self.node.get_or_insert(node);
        self
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Code::Value, message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Code::Missing, format!("{field} is required"))
    }
}

#[derive(Clone, Copy)]
pub(super) struct Decoder<'a, 'r> {
    document: &'a Document,
    node: NodeId,
    reports: &'r RefCell<Diagnostics>,
    /// An empty item of a list is a mistake; an empty field is an absent one.
    in_list: bool,
}

impl<'a, 'r> Decoder<'a, 'r> {
    fn child(self, node: NodeId, in_list: bool) -> Self {
        Self { node, in_list, ..self }
    }

    fn value(self) -> Option<&'a Value> {
        self.document.value(self.node)
    }

    fn is_null(self) -> bool {
        matches!(self.value(), Some(Value::Scalar { text, plain: true }) if is_null(text))
    }

    pub(super) fn report(self, error: DecodeError) {
        let node = error.node.unwrap_or(self.node);
        self.push(self.document.span(node), self.document.path(node), error);
    }

    fn push(self, span: Span, path: String, error: DecodeError) {
        let source = self.document.source();
        let mut diagnostic = Diagnostic::at(Severity::Error, error.code, source, span, error.message);
        diagnostic.path = path;
        diagnostic.help = error.help;
        self.reports.borrow_mut().push(diagnostic);
    }

    /// "must be a list, not text".
    fn mismatch(self, wanted: &str) -> DecodeError {
        let found = match self.value() {
            Some(Value::Scalar { text, plain: true }) => match Plain::of(text) {
                Plain::Null => "nothing".to_owned(),
                Plain::Bool(_) => format!("the boolean {text}"),
                Plain::Number => format!("the number {text}"),
                Plain::Text => format!("the text {}", quoted(text)),
            },
            Some(Value::Scalar { text, plain: false }) => format!("the text {}", quoted(text)),
            Some(Value::List(_)) => "a list".to_owned(),
            Some(Value::Map(_)) => "a mapping".to_owned(),
            None => "nothing".to_owned(),
        };
        DecodeError::new(Code::Type, format!("must be {wanted}, not {found}")).or_at(self.node)
    }

    fn text(self) -> Result<&'a str, DecodeError> {
        match self.value() {
            Some(Value::Scalar { text, plain: false }) => Ok(text),
            Some(Value::Scalar { text, plain: true }) => match Plain::of(text) {
                Plain::Text => Ok(text),
                Plain::Bool(_) | Plain::Number => {
                    let mut error = self.mismatch("text");
                    error.help = Some(format!("put it in quotes: \"{text}\""));
                    Err(error)
                }
                Plain::Null => Err(self.mismatch("text")),
            },
            _ => Err(self.mismatch("text")),
        }
    }

    fn boolean(self) -> Result<bool, DecodeError> {
        if let Some(Value::Scalar { text, plain: true }) = self.value()
            && let Plain::Bool(value) = Plain::of(text)
        {
            return Ok(value);
        }
        Err(self.mismatch("true or false"))
    }

    fn number<N: std::str::FromStr>(self, wanted: &str) -> Result<N, DecodeError> {
        if let Some(Value::Scalar { text, plain: true }) = self.value()
            && let Ok(value) = text.parse()
        {
            return Ok(value);
        }
        Err(self.mismatch(wanted))
    }

    pub(super) fn items(self) -> Result<&'a [NodeId], DecodeError> {
        match self.value() {
            Some(Value::List(items)) => Ok(items),
            _ => Err(self.mismatch("a list")),
        }
    }

    pub(super) fn entries(self) -> Result<&'a [Entry], DecodeError> {
        match self.value() {
            Some(Value::Map(entries)) => Ok(entries),
            _ => Err(self.mismatch("a mapping (key: value)")),
        }
    }

    pub(super) fn unknown_key(self, entry: &Entry, known: &[&str]) {
        let mut message = "unknown field".to_owned();
        let mut help = None;
        if let Some(meant) = did_you_mean(&entry.key, known.iter().copied()) {
            message = format!("unknown field (did you mean {meant}?)");
            let path = self.document.path_of_key(self.node, meant);
            self.reports.borrow_mut().misspelt(self.document.source().name(), &path);
        } else if known.is_empty() {
            help = Some("nothing can be set here".to_owned());
        } else {
            help = Some(format!("possible here: {}", known.join(", ")));
        }
        let path = self.document.path(entry.value);
        self.push(entry.key_span, path, DecodeError { node: None, code: Code::UnknownKey, message, help });
    }
}

/// What YAML 1.2 (core schema, §10.3.2) takes an unquoted text for.
enum Plain {
    Null,
    Bool(bool),
    Number,
    Text,
}

impl Plain {
    fn of(text: &str) -> Self {
        match text {
            _ if is_null(text) => Self::Null,
            "true" | "True" | "TRUE" => Self::Bool(true),
            "false" | "False" | "FALSE" => Self::Bool(false),
            _ if is_number(text) => Self::Number,
            _ => Self::Text,
        }
    }
}

fn is_number(text: &str) -> bool {
    let all = |digits: &str, good: fn(&u8) -> bool| !digits.is_empty() && digits.bytes().all(|byte| good(&byte));
    if let Some(digits) = text.strip_prefix("0x") {
        return all(digits, u8::is_ascii_hexdigit);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return all(digits, |byte| (b'0'..=b'7').contains(byte));
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    // Rust's grammar of floats is YAML's, plus words such as "inf" and "nan".
    unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') && unsigned.parse::<f64>().is_ok()
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty, $wanted:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            visitor.$visit(self.number::<$type>($wanted)?).map_err(|error: DecodeError| error.or_at(self.node))
        }
    )*};
}

impl<'de> Deserializer<'de> for Decoder<'de, '_> {
    type Error = DecodeError;

    numbers! {
        deserialize_i8 visit_i8 i8, "a whole number from -128 to 127";
        deserialize_i16 visit_i16 i16, "a whole number from -32768 to 32767";
        deserialize_i32 visit_i32 i32, "a whole number";
        deserialize_i64 visit_i64 i64, "a whole number";
        deserialize_u8 visit_u8 u8, "a whole number from 0 to 255";
        deserialize_u16 visit_u16 u16, "a whole number from 0 to 65535";
        deserialize_u32 visit_u32 u32, "a whole number of 0 or more";
        deserialize_u64 visit_u64 u64, "a whole number of 0 or more";
        deserialize_f32 visit_f32 f32, "a number";
        deserialize_f64 visit_f64 f64, "a number";
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value() {
            None => visitor.visit_unit(),
            Some(Value::List(_)) => self.deserialize_seq(visitor),
            Some(Value::Map(_)) => self.deserialize_map(visitor),
            Some(Value::Scalar { text, plain: false }) => visitor.visit_borrowed_str(text),
            Some(Value::Scalar { text, plain: true }) => match Plain::of(text) {
                Plain::Null => visitor.visit_unit(),
                Plain::Bool(value) => visitor.visit_bool(value),
                Plain::Text => visitor.visit_borrowed_str(text),
                Plain::Number => match (text.parse::<u64>(), text.parse::<i64>(), text.parse::<f64>()) {
                    (Ok(value), ..) => visitor.visit_u64(value),
                    (_, Ok(value), _) => visitor.visit_i64(value),
                    (_, _, Ok(value)) => visitor.visit_f64(value),
                    _ => visitor.visit_borrowed_str(text),
                },
            },
        }
        .map_err(|error: DecodeError| error.or_at(self.node))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_bool(self.boolean()?).map_err(|error: DecodeError| error.or_at(self.node))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_borrowed_str(self.text()?).map_err(|error: DecodeError| error.or_at(self.node))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, _: V) -> Result<V::Value, DecodeError> {
        Err(self.mismatch("text"))
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, _: V) -> Result<V::Value, DecodeError> {
        Err(self.mismatch("text"))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if !self.is_null() {
            return visitor.visit_some(self);
        }
        if self.in_list {
            let mut error = DecodeError::new(Code::Empty, "is empty");
            error.help = Some("remove the item or give it a value".to_owned());
            self.report(error);
        }
        visitor.visit_none()
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if self.is_null() { visitor.visit_unit() } else { Err(self.mismatch("nothing")) }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match name {
            FIELD => visitor.visit_seq(FieldAccess { decoder: self, step: 0 }),
            TEXT => match self.value() {
                Some(Value::Scalar { text, .. }) if !self.is_null() => visitor.visit_borrowed_str(text),
                _ => Err(self.mismatch("text")),
            },
            _ => visitor.visit_newtype_struct(self),
        }
        .map_err(|error: DecodeError| error.or_at(self.node))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_seq(Items { decoder: self, items: self.items()?.iter() }).map_err(|error| error.or_at(self.node))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let entries = Entries { decoder: self, entries: self.entries()?.iter(), value: None, known: None };
        visitor.visit_map(entries).map_err(|error| error.or_at(self.node))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let entries = Entries { decoder: self, entries: self.entries()?.iter(), value: None, known: Some(fields) };
        visitor.visit_map(entries).map_err(|error| error.or_at(self.node))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let possible = match variants {
            [_, _, _, ..] => format!("one of {}", variants.join(", ")),
            few => few.join(" or "),
        };
        let Some(Value::Scalar { text, .. }) = self.value() else { return Err(self.mismatch(&possible)) };
        if !variants.contains(&text.as_str()) {
            let mut error = self.mismatch(&possible);
            error.code = Code::Value;
            if let Some(meant) = did_you_mean(text, variants.iter().copied()) {
                error.message.push_str(&format!(" (did you mean {meant}?)"));
            }
            return Err(error);
        }
        visitor.visit_enum(UnitVariant(text)).map_err(|error: DecodeError| error.or_at(self.node))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }
}

/// Gives a [`super::Field`] its node and its value; keeps the value's mistake to itself.
struct FieldAccess<'a, 'r> {
    decoder: Decoder<'a, 'r>,
    step: u8,
}

impl<'de> SeqAccess<'de> for FieldAccess<'de, '_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, DecodeError> {
        self.step += 1;
        if self.step == 1 {
            return seed.deserialize(U32Deserializer::new(self.decoder.node.0)).map(Some);
        }
        match seed.deserialize(self.decoder.child(self.decoder.node, false)) {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                self.decoder.report(error);
                Ok(None)
            }
        }
    }
}

struct Items<'a, 'r> {
    decoder: Decoder<'a, 'r>,
    items: std::slice::Iter<'a, NodeId>,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, DecodeError> {
        let Some(item) = self.items.next() else { return Ok(None) };
        seed.deserialize(self.decoder.child(*item, true)).map(Some).map_err(|error| error.or_at(*item))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Entries<'a, 'r> {
    decoder: Decoder<'a, 'r>,
    entries: std::slice::Iter<'a, Entry>,
    value: Option<NodeId>,
    /// The keys of a struct; `None` where any key will do.
    known: Option<&'static [&'static str]>,
}

impl<'de> MapAccess<'de> for Entries<'de, '_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        for entry in self.entries.by_ref() {
            match self.known {
                Some(known) if !known.contains(&&*entry.key) => self.decoder.unknown_key(entry, known),
                _ => {
                    self.value = Some(entry.value);
                    return seed.deserialize(BorrowedStrDeserializer::new(&entry.key)).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DecodeError> {
        let node = self.value.take().unwrap_or(self.decoder.node);
        seed.deserialize(self.decoder.child(node, false)).map_err(|error| error.or_at(node))
    }
}

/// Our enums are words; a variant with contents does not occur in files.
struct UnitVariant<'a>(&'a str);

impl<'de> EnumAccess<'de> for UnitVariant<'de> {
    type Error = DecodeError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), DecodeError> {
        let value = seed.deserialize(BorrowedStrDeserializer::<DecodeError>::new(self.0))?;
        Ok((value, self))
    }
}

impl<'de> VariantAccess<'de> for UnitVariant<'de> {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<(), DecodeError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, DecodeError> {
        Err(DecodeError::new(Code::Type, "must be a word"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, DecodeError> {
        Err(DecodeError::new(Code::Type, "must be a word"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, DecodeError> {
        Err(DecodeError::new(Code::Type, "must be a word"))
    }
}
