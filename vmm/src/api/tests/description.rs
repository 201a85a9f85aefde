//! Description, router and answers say the same.

use serde_json::{Value, json};

use super::Fixture;
use crate::api::http::Method;
use crate::api::router::ROUTES;
use crate::stats::tests::{PATCHED, machine};

#[test]
fn the_description_of_the_api_lists_exactly_the_routes() {
    let document = description();
    let mut described: Vec<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            item.as_object()
                .unwrap()
                .keys()
                .map(move |verb| (path.clone(), verb.clone()))
        })
        .collect();
    let mut routed: Vec<(String, String)> = ROUTES
        .iter()
        .map(|route| {
            let verb = match route.method {
                Method::Get => "get",
                Method::Put => "put",
                Method::Other => panic!("no route has another verb"),
            };
            (route.path.to_owned(), verb.to_owned())
        })
        .collect();
    described.sort();
    routed.sort();
    assert_eq!(described, routed);
}

/// Whether a value is what a schema of the API's description allows: as much
/// of JSON Schema as the description uses, unknown properties refused.
fn check(value: &Value, schema: &Value, document: &Value, at: &str) {
    if let Some(reference) = schema.get("$ref") {
        let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
        return check(value, document.pointer(pointer).unwrap(), document, at);
    }
    // The description says "this or null" so.
    if let Some(choices) = schema.get("anyOf") {
        assert_eq!(choices[1], json!({"type": "null"}), "{at}");
        return match value {
            Value::Null => {}
            value => check(value, &choices[0], document, at),
        };
    }
    if let Some(choices) = schema.get("oneOf") {
        let mut choices = choices.as_array().unwrap().iter();
        assert!(
            choices.any(|choice| choice["const"] == *value),
            "{at}: {value}"
        );
        return;
    }
    if let Some(allowed) = schema.get("enum") {
        assert!(allowed.as_array().unwrap().contains(value), "{at}: {value}");
        return;
    }
    if let Some(types) = schema.get("type") {
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let allowed = *types == kind || types.as_array().is_some_and(|t| t.contains(&json!(kind)));
        assert!(allowed, "{at}: {value} is no {types}");
    }
    match value {
        Value::Object(map) => {
            for key in schema["required"].as_array().into_iter().flatten() {
                assert!(map.contains_key(key.as_str().unwrap()), "{at}: no {key}");
            }
            for (key, value) in map {
                let schema = match schema["properties"].get(key) {
                    Some(schema) => schema,
                    None => &schema["additionalProperties"],
                };
                assert!(schema.is_object(), "{at}: {key} is not described");
                check(value, schema, document, &format!("{at}.{key}"));
            }
        }
        Value::Array(list) => {
            for value in list {
                check(value, &schema["items"], document, at);
            }
        }
        _ => {}
    }
}

#[test]
fn answers_are_as_described() {
    let document = description();
    let fixture = Fixture::new();
    let config = json!({"payload": {"kernel": "/k"}, "platform": {}, "disks": [{}], "net": [{}]});
    fixture.put("vm.create", &config.to_string());
    for patched in [PATCHED, 0] {
        fixture.hub.publish(machine(2, patched));
        for path in [
            "/api/v1/vmm.ping",
            "/api/v1/vm.info",
            "/api/v1/vm.inspect",
            "/exit-stats",
        ] {
            let (status, body) = fixture.get(path);
            assert_eq!(status, 200);
            let pointer = "responses/200/content/application~1json/schema";
            let path_key = path.replace('/', "~1");
            let schema = document.pointer(&format!("/paths/{path_key}/get/{pointer}"));
            check(&body.unwrap(), schema.unwrap(), &document, path);
        }
    }
}

fn description() -> Value {
    serde_json::from_str(include_str!("../../../../docs/openapi.json")).unwrap()
}
