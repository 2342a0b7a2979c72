//! The example files: good ones, and good by the published schemas too.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::check;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/config")
}

#[test]
fn they_are_good_and_complete() {
    let report = check(&folder().join("gateway.yaml"));
    assert!(report.usable, "{report}");
    let warnings: Vec<&str> = report.diagnostics.iter().map(|each| each.message.as_str()).collect();
    assert_eq!(warnings, ["the list is empty: this policy allows nobody"], "{report}");
    let summary = report.summary.unwrap();
    assert_eq!((summary.peers, summary.policies, summary.services), (2, 4, 2));
}

#[test]
fn each_is_good_by_itself_and_by_its_schema() {
    let mut checked = 0;
    for file in ["gateway.yaml", "services.yaml", "sidecar.yaml"].map(|name| folder().join(name)).into_iter().chain(
        ["peers", "policies"]
            .iter()
            .flat_map(|name| std::fs::read_dir(folder().join(name)).unwrap())
            .map(|entry| entry.unwrap().path()),
    ) {
        assert!(check(&file).usable, "{}", check(&file));
        let text = std::fs::read_to_string(&file).unwrap();
        let (_, schema) = text.lines().next().unwrap().split_once("$schema=").unwrap();
        let schema: Value =
            serde_json::from_str(&std::fs::read_to_string(file.parent().unwrap().join(schema)).unwrap()).unwrap();
        for document in text.split("\n---\n") {
            let value: Value = serde_saphyr::from_str(document).unwrap();
            conforms(&value, &schema, &schema).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
        checked += 1;
    }
    assert_eq!(checked, 8);
}

#[test]
fn the_schemas_refuse_what_we_refuse() {
    let read = |name: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
    let schema: Value = serde_json::from_str(&read("schema/peer.json")).unwrap();
    let good: Value = serde_saphyr::from_str(&read("examples/config/peers/gke.yaml")).unwrap();
    conforms(&good, &schema, &schema).unwrap();
    let spoilt: [fn(&mut Value); 6] = [
        |peer| peer["kind"] = "Peers".into(),
        |peer| peer["colour"] = 1.into(),
        |peer| peer["spec"]["adress"] = 1.into(),
        |peer| peer["spec"]["pins"] = Value::Array(Vec::new()),
        |peer| peer["metadata"]["name"] = 7.into(),
        |peer| drop(peer["spec"].as_object_mut().unwrap().remove("pins")),
    ];
    for spoil in spoilt {
        let mut peer = good.clone();
        spoil(&mut peer);
        assert!(conforms(&peer, &schema, &schema).is_err(), "{peer}");
    }
}

/// As much of JSON Schema as our schemas use; patterns are our parser's business.
fn conforms(value: &Value, schema: &Value, root: &Value) -> Result<(), String> {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = root.pointer(reference.trim_start_matches('#')).ok_or(format!("no {reference}"))?;
        conforms(value, target, root)?;
    }
    let number = |key: &str| schema.get(key).and_then(Value::as_i64);
    let size = |least: &str, most: &str, length: usize| {
        let length = i64::try_from(length).unwrap();
        number(least).is_none_or(|least| length >= least) && number(most).is_none_or(|most| length <= most)
    };
    let fits = match schema.get("type").and_then(Value::as_str) {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64(),
        None => true,
        Some(other) => panic!("the schema has a type {other}"),
    };
    let constant = schema.get("const").is_none_or(|wanted| wanted == value);
    let listed = schema.get("enum").and_then(Value::as_array).is_none_or(|words| words.contains(value));
    let sized = match value {
        Value::String(text) => size("minLength", "maxLength", text.len()),
        Value::Array(items) => size("minItems", "maxItems", items.len()),
        Value::Number(value) => {
            let value = value.as_i64().unwrap();
            number("minimum").is_none_or(|least| value >= least) && number("maximum").is_none_or(|most| value <= most)
        }
        Value::Null | Value::Bool(_) | Value::Object(_) => true,
    };
    if !(fits && constant && listed && sized) {
        return Err(format!("{value} does not conform to {schema}"));
    }
    for item in value.as_array().into_iter().flatten() {
        conforms(item, schema.get("items").unwrap_or(&Value::Null), root)?;
    }
    let Some(object) = value.as_object() else { return Ok(()) };
    for key in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if !object.contains_key(key.as_str().unwrap()) {
            return Err(format!("{key} is missing in {value}"));
        }
    }
    let additional = schema.get("additionalProperties");
    for (key, value) in object {
        match schema.get("properties").and_then(|known| known.get(key)).or(additional) {
            Some(Value::Bool(false)) => return Err(format!("{key} is not known to the schema")),
            Some(schema) => conforms(value, schema, root).map_err(|error| format!("{key}: {error}"))?,
            None => {}
        }
    }
    Ok(())
}
