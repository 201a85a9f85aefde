//! Which request means what.

use api_client::UNSUPPORTED;
use api_client::config::{NetConfig, RestoreConfig, VmConfig, unknown_field};
use api_client::inspect::InspectPath;
use api_client::types::RemoveDevice;
use instrumentation::snapshot::Query;
use serde::de::DeserializeOwned;

use super::exit_stats;
use super::http::{Method, Request, Response};
use super::request::{NewDevice, VmAction};

/// What a request may bring along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Nothing,
    Parameters,
    Body,
    BodyAndDescriptors,
}

/// What a path stands for.
pub struct Route {
    /// The verb.
    pub method: Method,
    /// The path, matched exactly.
    pub path: &'static str,
    takes: Takes,
    call: fn(&Request) -> Result<Call, Response>,
}

const fn read(
    path: &'static str,
    takes: Takes,
    call: fn(&Request) -> Result<Call, Response>,
) -> Route {
    Route {
        method: Method::Get,
        path,
        takes,
        call,
    }
}

const fn act(
    path: &'static str,
    takes: Takes,
    call: fn(&Request) -> Result<Call, Response>,
) -> Route {
    Route {
        method: Method::Put,
        path,
        takes,
        call,
    }
}

/// Every path with its verb. The OpenAPI document lists the same, and a test
/// holds the two against each other.
pub const ROUTES: &[Route] = &[
    read("/api/v1/vmm.ping", Takes::Nothing, |_| Ok(Call::Ping)),
    read("/api/v1/vm.info", Takes::Nothing, |_| Ok(Call::Info)),
    read("/api/v1/vm.counters", Takes::Nothing, |_| {
        Ok(Call::Counters)
    }),
    read("/api/v1/vm.inspect", Takes::Parameters, |request| {
        super::inspect::parse_query(request.query.as_deref().unwrap_or_default())
            .map(Call::Inspect)
            .map_err(|error| bad_request(error.to_string()))
    }),
    read("/api/v1/vm.exit-stats", Takes::Parameters, statistics),
    read("/api/v1/exit-stats", Takes::Parameters, statistics),
    read("/exit-stats", Takes::Parameters, statistics),
    read("/metrics", Takes::Nothing, |_| Ok(Call::Metrics)),
    act("/api/v1/vmm.shutdown", Takes::Nothing, |_| {
        action(VmAction::VmmShutdown, "The VMM could not shut down")
    }),
    act("/api/v1/vm.create", Takes::BodyAndDescriptors, |request| {
        let mut config: VmConfig = parse("VmConfig", &request.body)?;
        assign(request, config.net.as_deref_mut().unwrap_or_default())?;
        let descriptors = request.descriptors.clone();
        action(
            VmAction::Create(Box::new(config), descriptors),
            "The VM could not be created",
        )
    }),
    act("/api/v1/vm.delete", Takes::Nothing, |_| {
        action(VmAction::Delete, "The VM could not be deleted")
    }),
    act("/api/v1/vm.boot", Takes::Nothing, |_| {
        action(VmAction::Boot, "The VM could not boot")
    }),
    act("/api/v1/vm.pause", Takes::Nothing, |_| {
        action(VmAction::Pause, "The VM could not be paused")
    }),
    act("/api/v1/vm.resume", Takes::Nothing, |_| {
        action(VmAction::Resume, "The VM could not resume")
    }),
    act("/api/v1/vm.shutdown", Takes::Nothing, |_| {
        action(VmAction::Shutdown, "The VM could not shut down")
    }),
    act("/api/v1/vm.reboot", Takes::Nothing, |_| {
        action(VmAction::Reboot, "The VM could not reboot")
    }),
    act("/api/v1/vm.pulse", Takes::Nothing, |_| {
        action(VmAction::Pulse, "The VM could not be made anew")
    }),
    act("/api/v1/vm.snapshot", Takes::Body, |request| {
        action(
            VmAction::Snapshot(parse("VmSnapshotConfig", &request.body)?),
            "The VM could not be saved",
        )
    }),
    act("/api/v1/vm.restore", Takes::BodyAndDescriptors, |request| {
        let mut restore: RestoreConfig = parse("RestoreConfig", &request.body)?;
        let nets = restore.net_fds.as_deref_mut().unwrap_or_default();
        request
            .descriptors
            .assign_to_restored(nets)
            .map_err(|error| bad_request(error.to_string()))?;
        let descriptors = request.descriptors.clone();
        action(
            VmAction::Restore(Box::new(restore), descriptors),
            "The VM could not be restored",
        )
    }),
    act("/api/v1/vm.power-button", Takes::Nothing, |_| {
        action(
            VmAction::PowerButton,
            "The power button could not be pressed",
        )
    }),
    act("/api/v1/vm.nmi", Takes::Nothing, nmi),
    // What Cloud Hypervisor's description calls it, and clients made from that.
    act("/api/v1/vmm.nmi", Takes::Nothing, nmi),
    act("/api/v1/vm.resize", Takes::Body, |request| {
        action(
            VmAction::Resize(parse("VmResize", &request.body)?),
            "The VM could not be resized",
        )
    }),
    act("/api/v1/vm.resize-disk", Takes::Body, |request| {
        action(
            VmAction::ResizeDisk(parse("VmResizeDisk", &request.body)?),
            "The disk could not be resized",
        )
    }),
    act("/api/v1/vm.resize-zone", Takes::Body, |request| {
        action(
            VmAction::ResizeZone(parse("VmResizeZone", &request.body)?),
            "The memory zone could not be resized",
        )
    }),
    act("/api/v1/vm.add-disk", Takes::Body, |request| {
        let disk = parse("DiskConfig", &request.body)?;
        add(NewDevice::Disk(Box::new(disk)))
    }),
    act("/api/v1/vm.add-net", Takes::BodyAndDescriptors, |request| {
        let mut net: NetConfig = parse("NetConfig", &request.body)?;
        assign(request, std::slice::from_mut(&mut net))?;
        let descriptors = request.descriptors.clone();
        add(NewDevice::Net(Box::new(net), descriptors))
    }),
    act("/api/v1/vm.add-vsock", Takes::Body, |request| {
        let vsock = parse("VsockConfig", &request.body)?;
        add(NewDevice::Vsock(Box::new(vsock)))
    }),
    act("/api/v1/vm.remove-device", Takes::Body, |request| {
        let RemoveDevice { id } = parse("RemoveDevice", &request.body)?;
        action(
            VmAction::RemoveDevice(id),
            "The device could not be removed from the VM",
        )
    }),
];

/// What a request asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Who answers here.
    Ping,
    /// The machine's configuration and state.
    Info,
    /// The devices' counters.
    Counters,
    /// The live state at a path.
    Inspect(InspectPath),
    /// The exit statistics.
    ExitStats(Query),
    /// The exit statistics for Prometheus.
    Metrics,
    /// Something for the control thread.
    Action {
        /// What it is.
        action: VmAction,
        /// What its failure is called, before the cause.
        failure: &'static str,
    },
}

fn action(action: VmAction, failure: &'static str) -> Result<Call, Response> {
    Ok(Call::Action { action, failure })
}

fn add(device: NewDevice) -> Result<Call, Response> {
    action(
        VmAction::AddDevice(device),
        "The device could not be added to the VM",
    )
}

fn nmi(_: &Request) -> Result<Call, Response> {
    action(VmAction::Nmi, "The vCPUs could not be interrupted")
}

fn statistics(request: &Request) -> Result<Call, Response> {
    exit_stats::parse_query(request.query.as_deref().unwrap_or_default())
        .map(Call::ExitStats)
        .map_err(|error| bad_request(error.to_string()))
}

/// Gives the descriptors that came to network devices.
fn assign(request: &Request, nets: &mut [NetConfig]) -> Result<(), Response> {
    request
        .descriptors
        .assign_to(nets)
        .map_err(|error| bad_request(error.to_string()))
}

/// Understands a request, or says what is wrong with it.
pub fn route(request: &Request) -> Result<Call, Response> {
    let path = &request.path;
    let Some(route) = ROUTES.iter().find(|route| route.path == *path) else {
        return Err(not_found(path));
    };
    if route.method != request.method {
        let verb = match route.method {
            Method::Put => "PUT",
            Method::Get | Method::Other => "GET",
        };
        return Err(bad_request(format!("{path} takes {verb} only")));
    }
    if request.query.is_some() && route.takes != Takes::Parameters {
        return Err(bad_request(format!("{path} has no parameters")));
    }
    let takes_body = matches!(route.takes, Takes::Body | Takes::BodyAndDescriptors);
    if !request.body.is_empty() && !takes_body {
        return Err(bad_request(format!("{path} takes no body")));
    }
    if !request.descriptors.is_empty() && route.takes != Takes::BodyAndDescriptors {
        return Err(bad_request(format!("{path} takes no descriptors")));
    }
    (route.call)(request)
}

/// What the statistics socket serves: counts, and who counts. `vm.info` is not
/// among it, since the kernel's command line and the paths of disks are no
/// statistics.
const STATISTICS: [&str; 6] = [
    "/api/v1/vmm.ping",
    "/api/v1/vm.counters",
    "/api/v1/vm.exit-stats",
    "/api/v1/exit-stats",
    "/exit-stats",
    "/metrics",
];

/// Understands a request at the statistics socket, which refuses whatever else
/// there is.
pub fn route_statistics(request: &Request) -> Result<Call, Response> {
    let known = request.method == Method::Get && STATISTICS.contains(&request.path.as_str());
    if !known {
        return Err(Response::error(
            403,
            [
                "Forbidden".to_owned(),
                "This socket is for reading statistics; the API socket serves the rest".to_owned(),
            ],
        ));
    }
    route(request)
}

/// The body of a request, of the type that the description calls so.
fn parse<T: DeserializeOwned>(name: &str, body: &[u8]) -> Result<T, Response> {
    if body.is_empty() {
        return Err(bad_request("A configuration is missing".to_owned()));
    }
    // An array would pass for an object: its elements would be the fields.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(bad_request("A configuration is an object".to_owned()));
    }
    let invalid = |why: String| {
        Response::error(
            400,
            [
                "Bad Request".to_owned(),
                "The body is not a valid configuration".to_owned(),
                why,
            ],
        )
    };
    let parsed = serde_json::from_slice(body).map_err(|error| invalid(error.to_string()))?;
    let fields = serde_json::from_slice(body).map_err(|error| invalid(error.to_string()))?;
    match unknown_field(name, &fields) {
        None => Ok(parsed),
        Some(why) => Err(invalid(why)),
    }
}

fn not_found(path: &str) -> Response {
    let action = path.strip_prefix("/api/v1/vm.");
    let why = match action {
        Some(action) if UNSUPPORTED.contains(&action) => {
            format!("vm.{action} is not supported by this VMM")
        }
        _ => format!("There is no resource \"{path}\""),
    };
    Response::error(404, ["Not Found".to_owned(), why])
}

fn bad_request(why: String) -> Response {
    Response::error(400, ["Bad Request".to_owned(), why])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Descriptors;

    fn request(method: Method, path: &str, query: Option<&str>, body: &str) -> Request {
        Request {
            method,
            path: path.to_owned(),
            query: query.map(str::to_owned),
            body: body.as_bytes().to_vec(),
            keep_alive: true,
            descriptors: Descriptors::default(),
        }
    }

    fn status(method: Method, path: &str, query: Option<&str>, body: &str) -> u16 {
        route(&request(method, path, query, body)).map_or_else(|response| response.status, |_| 0)
    }

    #[test]
    fn every_route_answers_to_its_verb_and_to_no_other() {
        for route in ROUTES {
            let (path, takes) = (route.path, route.takes);
            let body = match path.rsplit('/').next().unwrap() {
                "vm.remove-device" => "{\"id\": \"a\"}",
                "vm.resize-disk" => "{\"id\": \"a\", \"desired_size\": 512}",
                "vm.snapshot" => "{\"destination_url\": \"file:///s\"}",
                "vm.restore" => "{\"source_url\": \"file:///s\"}",
                "vm.resize-zone" => "{\"id\": \"a\", \"desired_ram\": 512}",
                "vm.add-vsock" => "{\"cid\": 3, \"socket\": \"a\"}",
                _ if matches!(takes, Takes::Body | Takes::BodyAndDescriptors) => "{}",
                _ => "",
            };
            assert_eq!(status(route.method, path, None, body), 0, "{path}");
            for other in [Method::Get, Method::Put, Method::Other] {
                if other != route.method {
                    assert_eq!(status(other, path, None, body), 400, "{path}");
                }
            }
        }
    }

    #[test]
    fn the_statistics_socket_changes_nothing_and_shows_no_configuration() {
        let served: Vec<&str> = ROUTES
            .iter()
            .filter(|route| route_statistics(&request(route.method, route.path, None, "")).is_ok())
            .map(|route| route.path)
            .collect();
        assert_eq!(
            served,
            [
                "/api/v1/vmm.ping",
                "/api/v1/vm.counters",
                "/api/v1/vm.exit-stats",
                "/api/v1/exit-stats",
                "/exit-stats",
                "/metrics"
            ]
        );
        for (method, path) in [(Method::Put, "/exit-stats"), (Method::Get, "/nothing")] {
            let response = route_statistics(&request(method, path, None, "")).unwrap_err();
            assert_eq!(response.status, 403);
        }
    }

    #[test]
    fn paths_match_exactly() {
        for path in [
            "",
            "/",
            "/api/v1",
            "/api/v1/vm.info/",
            "/api/v1/VM.info",
            "/vm.info",
            "/api/v1//vm.info",
            "/api/v1/metrics",
        ] {
            assert_eq!(status(Method::Get, path, None, ""), 404, "{path}");
        }
    }

    #[test]
    fn what_this_vmm_does_not_have_is_refused_by_name() {
        for action in UNSUPPORTED {
            let path = format!("/api/v1/vm.{action}");
            let response = route(&request(Method::Put, &path, None, "{}")).unwrap_err();
            let (_, text) = response.body.unwrap();
            let chain: Vec<String> = serde_json::from_slice(&text).unwrap();
            assert_eq!(response.status, 404);
            assert_eq!(
                chain[1],
                format!("vm.{action} is not supported by this VMM")
            );
        }
    }

    #[test]
    fn a_body_must_be_there_exactly_where_one_is_taken() {
        assert_eq!(status(Method::Put, "/api/v1/vm.create", None, ""), 400);
        assert_eq!(status(Method::Put, "/api/v1/vm.boot", None, "{}"), 400);
        assert_eq!(status(Method::Get, "/api/v1/vm.info", None, "{}"), 400);
    }

    #[test]
    fn parameters_are_refused_where_there_are_none() {
        assert_eq!(status(Method::Get, "/api/v1/vm.info", Some("a=1"), ""), 400);
        assert_eq!(status(Method::Get, "/exit-stats", Some("vcpu=1"), ""), 0);
        assert_eq!(status(Method::Get, "/exit-stats", Some("vcpu=x"), ""), 400);
    }

    #[test]
    fn a_field_that_does_not_exist_is_refused_by_name() {
        for (path, body, field) in [
            (
                "vm.create",
                r#"{"cpus": {"boot_vcpu": 2}}"#,
                "cpus.boot_vcpu",
            ),
            (
                "vm.add-disk",
                r#"{"path": "/a", "read_only": true}"#,
                "read_only",
            ),
            ("vm.add-net", r#"{"tapp": "a"}"#, "tapp"),
            ("vm.add-vsock", r#"{"cid": 3, "socket": "a", "x": 1}"#, "x"),
            ("vm.remove-device", r#"{"id": "a", "x": 1}"#, "x"),
            ("vm.resize", r#"{"desired_cpus": 1}"#, "desired_cpus"),
            (
                "vm.resize-disk",
                r#"{"id": "a", "desired_size": 1, "size": 1}"#,
                "size",
            ),
        ] {
            let path = format!("/api/v1/{path}");
            let response = route(&request(Method::Put, &path, None, body)).unwrap_err();
            let (_, text) = response.body.unwrap();
            let chain: Vec<String> = serde_json::from_slice(&text).unwrap();
            assert_eq!(response.status, 400);
            assert_eq!(chain[2], format!("Unknown field {field}"));
        }
    }

    #[test]
    fn what_cloud_hypervisors_own_client_sends_is_accepted() {
        let body = r#"{"path": "/a", "disable_io_uring": false, "disable_aio": false}"#;
        assert_eq!(status(Method::Put, "/api/v1/vm.add-disk", None, body), 0);
        let body = r#"{"path": "/a", "disable_io_uring": true}"#;
        assert_eq!(status(Method::Put, "/api/v1/vm.add-disk", None, body), 400);
    }

    #[test]
    fn a_bad_configuration_is_named() {
        assert_eq!(status(Method::Put, "/api/v1/vm.create", None, " []"), 400);
        for body in ["{", "1", "{\"cpus\": 3}", "{\"cpus\":{\"boot_vcpus\":-1}}"] {
            let response =
                route(&request(Method::Put, "/api/v1/vm.create", None, body)).unwrap_err();
            assert_eq!(response.status, 400);
            let (_, body) = response.body.unwrap();
            let chain: Vec<String> = serde_json::from_slice(&body).unwrap();
            assert_eq!(chain.len(), 3);
            assert!(chain[2].contains("line 1 column"), "{chain:?}");
        }
    }
}
