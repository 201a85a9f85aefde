//! The description of the API, `docs/openapi.json`: the schemas of what clients
//! send come from the types themselves; paths, and schemas of types that live
//! elsewhere, are written here. The VMM's tests hold the file against its
//! router and its answers. To write it anew:
//! `UPDATE_OPENAPI=1 cargo test -p api-client openapi`

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::config::{RestoreConfig, VmConfig, VmSnapshotConfig};
use crate::inspect::MAX_PATH;
use crate::types::{
    PciDeviceInfo, RemoveDevice, VmInfo, VmResize, VmResizeDisk, VmResizeZone, VmmPing,
};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");

fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Virtual machine monitor",
            "description": "HTTP/1.1 on the Unix socket given by --api-socket. Errors are a list \
                            of messages, outermost first.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "version": env!("CARGO_PKG_VERSION"),
        },
        "servers": [{"url": "http://localhost"}],
        "paths": paths(),
        "components": {"schemas": schemas()},
    })
}

fn paths() -> Value {
    let action = |id: &str, summary: &str, failures: &[u16]| json!({"put": operation(id, summary, done(), failures)});
    let exit_stats = |id: &str| {
        json!({
            "get": with_parameters(operation(
                id,
                "VM exits by reason. Reading waits for nothing and causes no exit.",
                body("ExitSnapshot", "The figures, or those at the end of the last run"),
                &[400, 404, 500],
            ))
        })
    };
    let taking = |mut operation: Value, schema: &str| {
        operation["requestBody"] = json!({
            "required": true,
            "content": {"application/json": {"schema": reference(schema)}},
        });
        json!({"put": operation})
    };
    let create = operation("createVM", "Keep a configuration", done(), &[400, 500]);
    let add = |id: &str, summary: &str, schema: &str| {
        let mut answers = body("PciDeviceInfo", "The device in the running VM");
        answers["204"] = json!({"description": "Kept for the next boot"});
        taking(operation(id, summary, answers, &[404, 409, 500]), schema)
    };
    let remove = operation(
        "removeDevice",
        "Take a device out of the configuration, and ask a running guest to give it up",
        done(),
        &[404, 500],
    );
    let mut inspect = operation(
        "inspectVM",
        "The live state of the VM and its parts, whatever the VMM is busy with. Costs the guest no \
         exit unless the path asks for the registers of a vCPU that runs.",
        body("Inspection", "The state at the path"),
        &[404, 500],
    );
    inspect["parameters"] = json!([{
        "in": "query", "name": "path", "schema": {"type": "string", "maxLength": MAX_PATH},
        "description": "Names with slashes between, as virtio/_disk0/queue0; the whole tree without. \
                        A slash or a percent sign in a name is percent-encoded.",
    }]);
    json!({
        "/api/v1/vmm.ping": {"get": operation(
            "pingVMM", "Who answers here", body("VmmPing", "The VMM"), &[])},
        "/api/v1/vmm.shutdown": {"put": operation(
            "shutdownVMM", "End the VM and the VMM",
            json!({"200": {"description": "Done; the body is empty"}}), &[500])},
        "/api/v1/vm.create": taking(create, "VmConfig"),
        "/api/v1/vm.delete": action(
            "deleteVM", "Forget the configuration, ending the VM if it runs", &[500]),
        "/api/v1/vm.boot": action("bootVM", "Boot the VM", &[400, 404, 500]),
        "/api/v1/vm.pause": action("pauseVM", "Stop the vCPUs", &[404, 500]),
        "/api/v1/vm.resume": action("resumeVM", "Let the vCPUs go on", &[404, 500]),
        "/api/v1/vm.shutdown": action(
            "shutdownVM", "End the VM and keep its configuration", &[404, 500]),
        "/api/v1/vm.reboot": action("rebootVM", "End the VM and boot it again", &[400, 404, 500]),
        "/api/v1/vm.pulse": action(
            "pulseVM",
            "Make the VM anew of its own state and let it go on: a test of that state, for developers",
            &[404, 409, 500]),
        "/api/v1/vm.snapshot": taking(
            operation("snapshotVM", "Take a snapshot of the paused VM", done(), &[404, 409, 500]),
            "VmSnapshotConfig"),
        "/api/v1/vm.restore": taking(
            operation(
                "restoreVM", "Restore a VM from a snapshot; it is paused unless resume is set",
                done(), &[404, 409, 500]),
            "RestoreConfig"),
        "/api/v1/vm.power-button": action(
            "powerButtonVM", "Press the power button", &[400, 404, 500]),
        "/api/v1/vm.nmi": action("nmiVM", "Interrupt the vCPUs with an NMI", &[404, 500]),
        "/api/v1/vmm.nmi": action("nmiVMM", "The same as vm.nmi", &[404, 500]),
        "/api/v1/vm.resize": taking(
            operation("resizeVM", "Change the size of the VM", done(), &[404, 500]), "VmResize"),
        "/api/v1/vm.resize-disk": taking(
            operation("resizeDisk", "Change the size of a disk of the running VM", done(), &[404, 500]),
            "VmResizeDisk"),
        "/api/v1/vm.resize-zone": taking(
            operation("resizeZone", "Change the size of a memory zone; not possible yet", done(), &[]),
            "VmResizeZone"),
        "/api/v1/vm.add-disk": add("addDisk", "Add a disk", "DiskConfig"),
        "/api/v1/vm.add-net": add("addNet", "Add a network device", "NetConfig"),
        "/api/v1/vm.add-vsock": add("addVsock", "Add a socket device", "VsockConfig"),
        "/api/v1/vm.remove-device": taking(remove, "RemoveDevice"),
        "/api/v1/vm.info": {"get": operation(
            "infoVM", "Configuration and state", body("VmInfo", "The VM"), &[404])},
        "/api/v1/vm.counters": {"get": operation(
            "countersVM", "Counters of the devices", body("VmCounters", "The counters"), &[500])},
        "/api/v1/vm.inspect": {"get": inspect},
        "/api/v1/vm.exit-stats": exit_stats("exitStatsVM"),
        "/api/v1/exit-stats": exit_stats("exitStatsShort"),
        "/exit-stats": exit_stats("exitStats"),
        "/metrics": {"get": operation(
            "metrics",
            "VM exits in OpenMetrics text",
            json!({"200": {
                "description": "The figures; empty without a VM",
                "content": {instrumentation::encode::CONTENT_TYPE: {"schema": {"type": "string"}}},
            }}),
            &[500],
        )},
    })
}

/// Any request can be malformed, so every one can be answered with 400.
fn operation(id: &str, summary: &str, mut responses: Value, failures: &[u16]) -> Value {
    for status in failures.iter().chain([&400]) {
        let description = match status {
            400 => "The request or the configuration is at fault",
            404 => "What the request names is not there",
            409 => "The request collides with something that is there",
            _ => "The request failed, or the state does not allow it",
        };
        responses[status.to_string()] = json!({
            "description": description,
            "content": {"application/json": {"schema": reference("Errors")}},
        });
    }
    json!({"operationId": id, "summary": summary, "responses": responses})
}

fn with_parameters(mut operation: Value) -> Value {
    let number = json!({"type": "integer", "minimum": 0, "maximum": u32::MAX});
    let parameter = |name: &str, schema: &Value, description: &str| json!({"in": "query", "name": name, "schema": schema, "description": description});
    operation["parameters"] = json!([
        parameter(
            "reason",
            &number,
            "Only this reason: 404 if the manual does not define it, zeros and enabled: false \
             if KVM has no handler for it",
        ),
        parameter("vcpu", &number, "Only this vCPU"),
        parameter(
            "nonzero",
            &json!({"type": "boolean"}),
            "Only reasons that occurred",
        ),
    ]);
    operation
}

fn done() -> Value {
    json!({"204": {"description": "Done"}})
}

fn body(schema: &str, description: &str) -> Value {
    json!({"200": {
        "description": description,
        "content": {"application/json": {"schema": reference(schema)}},
    }})
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn schemas() -> Value {
    let settings = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = SchemaGenerator::new(settings);
    generator.subschema_for::<VmConfig>();
    generator.subschema_for::<VmInfo>();
    generator.subschema_for::<VmmPing>();
    generator.subschema_for::<PciDeviceInfo>();
    generator.subschema_for::<RemoveDevice>();
    generator.subschema_for::<RestoreConfig>();
    generator.subschema_for::<VmSnapshotConfig>();
    generator.subschema_for::<VmResize>();
    generator.subschema_for::<VmResizeDisk>();
    generator.subschema_for::<VmResizeZone>();
    let mut schemas = Value::Object(generator.take_definitions(true));
    let count = json!({"type": "integer", "minimum": 0});
    let map = |values: &Value| json!({"type": "object", "additionalProperties": values});
    schemas["Errors"] = json!({"type": "array", "items": {"type": "string"}});
    schemas["VmCounters"] = map(&map(&count));
    for schema in schemas
        .as_object_mut()
        .into_iter()
        .flat_map(|map| map.values_mut())
    {
        // The server refuses what it does not know.
        if schema.get("properties").is_some() {
            schema["additionalProperties"] = json!(false);
        }
    }
    for (name, schema) in exit_schemas().into_iter().chain(inspect_schemas()) {
        schemas[name] = schema;
    }
    schemas
}

/// The schemas of `instrumentation`'s snapshot.
fn exit_schemas() -> Vec<(&'static str, Value)> {
    let count = json!({"type": "integer", "minimum": 0});
    let maybe_count = json!({"type": ["integer", "null"], "minimum": 0});
    let text = json!({"type": "string"});
    let maybe_text = json!({"type": ["string", "null"]});
    let list = |of: &str| json!({"type": "array", "items": reference(of)});
    let maybe_reasons = json!({"type": ["array", "null"], "items": reference("ReasonCounters")});
    vec![
        (
            "ExitSnapshot",
            object(
                "The exits of a VM. Cycles are ticks of the host's TSC.",
                &[
                    ("source", &json!({"enum": ["kvm-exit-stats", "kvm"]})),
                    ("isa", &json!({"enum": ["vmx", "svm", null]})),
                    ("manual", &maybe_text),
                    ("tsc_khz", &count),
                    ("since", &text),
                    ("totals", &reference("ExitTotals")),
                    ("reasons", &maybe_reasons),
                    ("vcpus", &list("VcpuExits")),
                    ("vmm", &reference("VmmExits")),
                ],
                &[
                    ("unavailable", &text),
                    ("boot_id", &text),
                    ("unix_us", &count),
                    ("monotonic_us", &count),
                    ("ended", &json!({"type": "boolean"})),
                    ("latency", &reference("Latency")),
                ],
            ),
        ),
        (
            "ExitTotals",
            object(
                "Sums over all reasons; null where KVM cannot tell",
                &[
                    ("exits", &count),
                    ("cycles", &maybe_count),
                    ("blocked_cycles", &maybe_count),
                    ("userspace_cycles", &maybe_count),
                    ("preempted_cycles", &maybe_count),
                    ("guest_cycles", &maybe_count),
                    ("kvm_exits", &maybe_count),
                    ("uncounted_exits", &count),
                ],
                &[],
            ),
        ),
        (
            "ReasonCounters",
            object(
                "The exits of one reason; number is null for those that have none",
                &[
                    ("number", &maybe_count),
                    ("name", &text),
                    ("symbol", &text),
                    ("enabled", &json!({"type": "boolean"})),
                    ("exits", &count),
                    ("cycles", &count),
                    ("blocked_cycles", &count),
                    ("userspace_cycles", &count),
                    ("preempted_cycles", &count),
                ],
                &[],
            ),
        ),
        (
            "VcpuExits",
            object(
                "The exits of one vCPU",
                &[
                    ("id", &count),
                    ("totals", &reference("ExitTotals")),
                    ("reasons", &maybe_reasons),
                    ("vmm", &reference("VmmExits")),
                ],
                &[],
            ),
        ),
        (
            "Latency",
            object(
                "How long exits took in the kernel, of VMs that keep histograms",
                &[
                    ("on", &json!({"type": "boolean"})),
                    ("reasons", &list("ReasonLatency")),
                ],
                &[],
            ),
        ),
        (
            "ReasonLatency",
            object(
                "min_ns is a lower bound of the shortest exit, max_ns an upper one of the longest, \
                 null if there is none",
                &[
                    ("number", &maybe_count),
                    ("symbol", &text),
                    ("min_ns", &count),
                    ("max_ns", &maybe_count),
                    ("buckets", &list("LatencyBucket")),
                ],
                &[],
            ),
        ),
        (
            "LatencyBucket",
            object(
                "Exits that took less than a bound and at least half of it; null is no bound",
                &[
                    ("below_ticks", &maybe_count),
                    ("below_ns", &maybe_count),
                    ("exits", &count),
                ],
                &[],
            ),
        ),
        (
            "VmmExits",
            object(
                "Exits that reached user space",
                &[("exits", &list("UserExits"))],
                &[],
            ),
        ),
        (
            "UserExits",
            object(
                "Exits of one kind that reached user space",
                &[
                    ("kind", &text),
                    ("exits", &count),
                    ("nanoseconds", &count),
                    ("devices", &list("DeviceExits")),
                ],
                &[],
            ),
        ),
        (
            "DeviceExits",
            object(
                "Accesses of one width to one register of a device, or to one page of a long range; \
                 address is null for all further registers of the range together",
                &[
                    ("id", &text),
                    ("address", &maybe_text),
                    ("range", &maybe_text),
                    ("size", &count),
                    ("exits", &count),
                    ("nanoseconds", &count),
                ],
                &[],
            ),
        ),
    ]
}

/// The schemas of a tree of live state.
fn inspect_schemas() -> Vec<(&'static str, Value)> {
    let count = json!({"type": "integer", "minimum": 0});
    let text = json!({"type": "string"});
    let map = |of: &Value| json!({"type": "object", "additionalProperties": of});
    let value = json!({
        "type": ["boolean", "integer", "string", "array"],
        "items": {"type": "string"},
        "description": "Addresses and masks are text in hexadecimal",
    });
    vec![
        (
            "Inspection",
            object(
                "The live state at a path, and when it was read by the host's monotonic clock",
                &[
                    ("path", &text),
                    ("monotonic_us", &count),
                    ("node", &reference("InspectNode")),
                ],
                &[],
            ),
        ),
        (
            "InspectNode",
            object(
                "A part: what is so at the moment, counters that only grow, what could not be found \
                 out in time, and its own parts. The contents of a part that is on_request are read \
                 only if the path names it.",
                &[],
                &[
                    ("values", &map(&value)),
                    ("counters", &map(&count)),
                    ("unavailable", &json!({"type": "array", "items": &text})),
                    ("on_request", &json!({"type": "boolean"})),
                    ("children", &map(&reference("InspectNode"))),
                ],
            ),
        ),
    ]
}

fn object(description: &str, required: &[(&str, &Value)], optional: &[(&str, &Value)]) -> Value {
    let properties: serde_json::Map<_, _> = required
        .iter()
        .chain(optional)
        .map(|(name, schema)| (name.to_string(), Value::clone(schema)))
        .collect();
    let required: Vec<_> = required.iter().map(|(name, _)| name).collect();
    json!({
        "type": "object",
        "description": description,
        "properties": properties,
        "required": required,
    })
}

#[test]
fn the_file_is_what_the_types_say() {
    let mut expected = serde_json::to_string_pretty(&document()).unwrap();
    expected.push('\n');
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(FILE, &expected).unwrap();
    }
    let found = std::fs::read_to_string(FILE).unwrap();
    assert!(
        found == expected,
        "docs/openapi.json is out of date: run UPDATE_OPENAPI=1 cargo test -p api-client openapi"
    );
}

const FIELDS_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/fields.rs");

/// The schema that a property refers to, if it is an object or a list of such.
fn inner(property: &Value, schemas: &Value) -> Option<String> {
    let name = |reference: &Value| {
        let name = reference.as_str()?.rsplit('/').next()?;
        schemas[name].get("properties")?;
        Some(name.to_owned())
    };
    let list = property.pointer("/items/$ref");
    let object = property
        .pointer("/$ref")
        .or_else(|| property.pointer("/anyOf/0/$ref"));
    match (list, object) {
        (Some(list), _) => Some(format!("[{}]", name(list)?)),
        (None, object) => name(object?),
    }
}

#[test]
fn the_table_of_fields_is_what_the_types_say() {
    let document = document();
    let schemas = &document["components"]["schemas"];
    let mut expected = String::from(
        "//! Fields of all types that requests carry, each with the type of the object that it holds,\n\
         //! in brackets if it is a list of such.\n\
         //! Made by `UPDATE_OPENAPI=1 cargo test -p api-client openapi`.\n\n\
         /// By type: name of each field, and the type of its objects, if it has any.\n\
         #[rustfmt::skip]\n\
         pub(crate) const FIELDS: &[(&str, &[(&str, &str)])] = &[\n",
    );
    for (name, schema) in schemas.as_object().unwrap() {
        if schema["additionalProperties"] != false {
            continue;
        }
        expected.push_str(&format!("    (\"{name}\", &[\n"));
        for (field, property) in schema["properties"].as_object().unwrap() {
            let inner = inner(property, schemas).unwrap_or_default();
            expected.push_str(&format!("        (\"{field}\", \"{inner}\"),\n"));
        }
        expected.push_str("    ]),\n");
    }
    expected.push_str("];\n");
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(FIELDS_FILE, &expected).unwrap();
    }
    let found = std::fs::read_to_string(FIELDS_FILE).unwrap();
    assert!(
        found == expected,
        "{FIELDS_FILE} is out of date: run UPDATE_OPENAPI=1 cargo test -p api-client openapi"
    );
}

#[test]
fn every_reference_leads_somewhere() {
    fn check(value: &Value, document: &Value) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    let pointer = target.strip_prefix('#').unwrap();
                    assert!(document.pointer(pointer).is_some(), "{target}");
                }
                map.values().for_each(|value| check(value, document));
            }
            Value::Array(list) => list.iter().for_each(|value| check(value, document)),
            _ => {}
        }
    }
    let document = document();
    check(&document, &document);
}
