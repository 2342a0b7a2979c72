//! Resources as people read them: Envoy's JSON (the JSON mapping of proto3, with the names of the `.proto` files), made of
//! the bytes that clients were sent.
//!
//! It goes by a schema, a list of names and numbers, instead of generated code: that would be a hundred times as large,
//! for something that only commands ask for. What the schema does not know is shown by its number.

mod wire;

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Number, Value, json};

use self::wire::{Raw, fields};
use crate::kind::Kind;
use crate::resource::Resource;

/// Deepest nesting that is shown: more than any message of ours has.
const MAX_DEPTH: usize = 64;
/// Fields that would be secret. None is ever sent by a gateway; none is shown in any case.
const SECRET: [&str; 5] = ["private_key", "password", "pkcs12", "session_ticket_keys", "generic_secret"];

/// Names and types of fields, by message; values by enumeration.
#[derive(Debug)]
pub struct Schema {
    bodies: HashMap<&'static str, &'static str>,
}

/// One field of a message.
struct Field {
    name: &'static str,
    /// A type's name, after `*` if it is a list; or `%key value`.
    shape: &'static str,
}

impl Schema {
    /// Reads the schema. It is cheap, and not worth keeping between two commands.
    #[must_use]
    pub fn load() -> Self {
        let text = eastway_proto::envoy::SCHEMA;
        let mut bodies = HashMap::new();
        let mut rest = text;
        while let Some((name, after)) = rest.split_once('\n') {
            let mut end = 0;
            for line in after.split_inclusive('\n').take_while(|line| line.starts_with(' ')) {
                end += line.len();
            }
            let (body, next) = after.split_at(end);
            bodies.insert(name, body);
            rest = next;
        }
        Self { bodies }
    }

    /// The whole resource.
    #[must_use]
    pub fn resource(&self, kind: Kind, resource: &Resource) -> Value {
        let name = kind.url().rsplit('/').next().unwrap_or_default();
        let any = fields(resource.world());
        let value = any.filter(|(number, _)| *number == 2).find_map(|(_, raw)| raw.bytes());
        self.message(name, value.unwrap_or_default(), 0)
    }

    fn lines(&self, name: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
        let body = self.bodies.get(name).copied().unwrap_or_default();
        body.lines().filter_map(|line| line.trim_start().split_once(' '))
    }

    fn field(&self, message: &str, number: u64) -> Option<Field> {
        let (_, rest) = self.lines(message).find(|(known, _)| known.parse() == Ok(number))?;
        let (name, shape) = rest.split_once(' ')?;
        Some(Field { name, shape })
    }

    fn message(&self, name: &str, bytes: &[u8], depth: usize) -> Value {
        if depth > MAX_DEPTH {
            return Value::String("…".to_owned());
        }
        if let Some(known) = self.well_known(name, bytes, depth) {
            return known;
        }
        let mut object = Map::new();
        for (number, raw) in fields(bytes) {
            let Some(Field { name, shape }) = self.field(name, number) else {
                object.insert(format!("#{number}"), raw.unknown());
                continue;
            };
            if SECRET.contains(&name) {
                object.insert(name.to_owned(), json!("[not shown]"));
            } else if let Some(entry) = shape.strip_prefix('%') {
                let map = object.entry(name).or_insert_with(|| json!({}));
                let (key, value) = self.entry(entry, raw.bytes().unwrap_or_default(), depth);
                if let Some(map) = map.as_object_mut() {
                    map.insert(key, value);
                }
            } else if let Some(of) = shape.strip_prefix('*') {
                let list = object.entry(name).or_insert_with(|| json!([]));
                if let Some(list) = list.as_array_mut() {
                    list.extend(self.items(of, &raw, depth));
                }
            } else {
                object.insert(name.to_owned(), self.value(shape, &raw, depth));
            }
        }
        Value::Object(object)
    }

    /// Messages that have a JSON of their own.
    fn well_known(&self, name: &str, bytes: &[u8], depth: usize) -> Option<Value> {
        let first = |wanted: u64| fields(bytes).find(|(number, _)| *number == wanted).map(|(_, raw)| raw);
        let number = |wanted: u64| first(wanted).map_or(0, |raw| raw.varint().cast_signed());
        Some(match name.strip_prefix("google.protobuf.")? {
            "Any" => {
                let text = |raw: Raw<'_>| String::from_utf8_lossy(raw.bytes().unwrap_or_default()).into_owned();
                let url = first(1).map(text).unwrap_or_default();
                let value = first(2).and_then(|raw| raw.bytes()).unwrap_or_default();
                self.any(&url, value, depth)
            }
            "Duration" => {
                let (seconds, nanos) = (number(1), number(2));
                let fraction = if nanos == 0 { String::new() } else { format!(".{nanos:09}") };
                json!(format!("{seconds}{}s", fraction.trim_end_matches('0')))
            }
            "BoolValue" => json!(number(1) != 0),
            "UInt32Value" | "UInt64Value" => json!(first(1).map_or(0, |raw| raw.varint())),
            "Int32Value" | "Int64Value" => json!(number(1)),
            "DoubleValue" => self.value("double", &first(1).unwrap_or(Raw::Fixed64(0)), depth),
            "FloatValue" => self.value("float", &first(1).unwrap_or(Raw::Fixed32(0)), depth),
            "StringValue" => self.value("string", &first(1).unwrap_or(Raw::Bytes(&[])), depth),
            "Struct" => {
                let entries = fields(bytes).filter_map(|(_, raw)| raw.bytes());
                Value::Object(entries.map(|entry| self.entry("string google.protobuf.Value", entry, depth)).collect())
            }
            "ListValue" => {
                let values = fields(bytes).filter_map(|(_, raw)| raw.bytes());
                values.map(|value| self.message("google.protobuf.Value", value, depth + 1)).collect()
            }
            "Value" => match fields(bytes).next() {
                Some((2, raw)) => self.value("double", &raw, depth),
                Some((3, raw)) => self.value("string", &raw, depth),
                Some((4, raw)) => json!(raw.varint() != 0),
                Some((5, raw)) => self.message("google.protobuf.Struct", raw.bytes().unwrap_or_default(), depth + 1),
                Some((6, raw)) => self.message("google.protobuf.ListValue", raw.bytes().unwrap_or_default(), depth + 1),
                _ => Value::Null,
            },
            _ => return None,
        })
    }

    fn any(&self, url: &str, value: &[u8], depth: usize) -> Value {
        let name = url.rsplit('/').next().unwrap_or_default();
        if !self.bodies.contains_key(name) {
            return json!({"@type": url, "value": BASE64.encode(value)});
        }
        let shown = self.message(name, value, depth + 1);
        let Value::Object(mut fields) = shown else { return json!({"@type": url, "value": shown}) };
        fields.insert("@type".to_owned(), json!(url));
        Value::Object(fields)
    }

    fn entry(&self, shape: &str, bytes: &[u8], depth: usize) -> (String, Value) {
        let (key_shape, value_shape) = shape.split_once(' ').unwrap_or((shape, "string"));
        let (mut key, mut value) = (String::new(), Value::Null);
        for (number, raw) in fields(bytes) {
            match number {
                1 => {
                    let shown = self.value(key_shape, &raw, depth);
                    key = shown.as_str().map_or_else(|| shown.to_string(), str::to_owned);
                }
                2 => value = self.value(value_shape, &raw, depth),
                _ => {}
            }
        }
        (key, value)
    }

    /// Items of a list; numbers may be packed into one field.
    fn items(&self, shape: &str, raw: &Raw<'_>, depth: usize) -> Vec<Value> {
        let is_number = shape.starts_with('=') || !shape.contains('.') && shape != "string" && shape != "bytes";
        match raw.bytes().filter(|_| is_number) {
            Some(packed) => wire::packed(shape, packed).map(|raw| self.value(shape, &raw, depth)).collect(),
            None => vec![self.value(shape, raw, depth)],
        }
    }

    fn value(&self, shape: &str, raw: &Raw<'_>, depth: usize) -> Value {
        if shape.starts_with('=') {
            let number = raw.varint().cast_signed();
            let named = self.lines(shape).find(|(known, _)| known.parse() == Ok(number));
            return named.map_or_else(|| json!(number), |(_, word)| json!(word));
        }
        let float = |value: f64| Number::from_f64(value).map_or(Value::Null, Value::Number);
        match (shape, raw) {
            ("bool", raw) => json!(raw.varint() != 0),
            ("double", Raw::Fixed64(bits)) => float(f64::from_bits(*bits)),
            ("float", Raw::Fixed32(bits)) => float(f64::from(f32::from_bits(*bits))),
            ("int32" | "int64", raw) => json!(raw.varint().cast_signed()),
            ("uint32" | "uint64" | "fixed32" | "fixed64", raw) => json!(raw.varint()),
            ("string", Raw::Bytes(text)) => json!(String::from_utf8_lossy(text)),
            ("bytes", Raw::Bytes(bytes)) => json!(BASE64.encode(bytes)),
            (message, Raw::Bytes(bytes)) => self.message(message, bytes, depth + 1),
            (_, raw) => raw.unknown(),
        }
    }
}

#[cfg(test)]
mod tests;
