//! Which request means what.

use api_client::UNSUPPORTED;
use api_client::config::{NetConfig, VmConfig, unknown_field};
use api_client::types::RemoveDevice;
use instrumentation::snapshot::Query;
use serde::de::DeserializeOwned;

use super::exit_stats;
use super::http::{Method, Request, Response};
use super::request::{NewDevice, VmAction};

/// Something that a path stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `vmm.ping`
    Ping,
    /// `vmm.shutdown`
    VmmShutdown,
    /// `vm.create`
    Create,
    /// `vm.delete`
    Delete,
    /// `vm.boot`
    Boot,
    /// `vm.pause`
    Pause,
    /// `vm.resume`
    Resume,
    /// `vm.shutdown`
    Shutdown,
    /// `vm.reboot`
    Reboot,
    /// `vm.power-button`
    PowerButton,
    /// `vm.nmi`
    Nmi,
    /// `vm.resize`
    Resize,
    /// `vm.resize-disk`
    ResizeDisk,
    /// `vm.resize-zone`
    ResizeZone,
    /// `vm.add-disk`
    AddDisk,
    /// `vm.add-net`
    AddNet,
    /// `vm.add-vsock`
    AddVsock,
    /// `vm.remove-device`
    RemoveDevice,
    /// `vm.info`
    Info,
    /// `vm.counters`
    Counters,
    /// The exit statistics.
    ExitStats,
    /// The exit statistics for Prometheus.
    Metrics,
}

impl Endpoint {
    /// Whether a request carries anything.
    fn takes_body(self) -> bool {
        matches!(
            self,
            Endpoint::Create
                | Endpoint::AddDisk
                | Endpoint::AddNet
                | Endpoint::AddVsock
                | Endpoint::RemoveDevice
                | Endpoint::Resize
                | Endpoint::ResizeDisk
                | Endpoint::ResizeZone
        )
    }
}

/// What the statistics socket serves: counts, and who counts. `vm.info` is not
/// among it, since the kernel's command line and the paths of disks are no
/// statistics.
const STATISTICS: [Endpoint; 4] = [
    Endpoint::Ping,
    Endpoint::Counters,
    Endpoint::ExitStats,
    Endpoint::Metrics,
];

/// Every path with its verb; matched exactly. The OpenAPI document lists the
/// same, and a test holds the two against each other.
pub const ROUTES: &[(Method, &str, Endpoint)] = &[
    (Method::Get, "/api/v1/vmm.ping", Endpoint::Ping),
    (Method::Put, "/api/v1/vmm.shutdown", Endpoint::VmmShutdown),
    (Method::Put, "/api/v1/vm.create", Endpoint::Create),
    (Method::Put, "/api/v1/vm.delete", Endpoint::Delete),
    (Method::Put, "/api/v1/vm.boot", Endpoint::Boot),
    (Method::Put, "/api/v1/vm.pause", Endpoint::Pause),
    (Method::Put, "/api/v1/vm.resume", Endpoint::Resume),
    (Method::Put, "/api/v1/vm.shutdown", Endpoint::Shutdown),
    (Method::Put, "/api/v1/vm.reboot", Endpoint::Reboot),
    (
        Method::Put,
        "/api/v1/vm.power-button",
        Endpoint::PowerButton,
    ),
    (Method::Put, "/api/v1/vm.add-disk", Endpoint::AddDisk),
    (Method::Put, "/api/v1/vm.add-net", Endpoint::AddNet),
    (Method::Put, "/api/v1/vm.add-vsock", Endpoint::AddVsock),
    (
        Method::Put,
        "/api/v1/vm.remove-device",
        Endpoint::RemoveDevice,
    ),
    (Method::Put, "/api/v1/vm.nmi", Endpoint::Nmi),
    (Method::Put, "/api/v1/vm.resize", Endpoint::Resize),
    (Method::Put, "/api/v1/vm.resize-disk", Endpoint::ResizeDisk),
    (Method::Put, "/api/v1/vm.resize-zone", Endpoint::ResizeZone),
    (Method::Get, "/api/v1/vm.info", Endpoint::Info),
    (Method::Get, "/api/v1/vm.counters", Endpoint::Counters),
    (Method::Get, "/api/v1/vm.exit-stats", Endpoint::ExitStats),
    (Method::Get, "/api/v1/exit-stats", Endpoint::ExitStats),
    (Method::Get, "/exit-stats", Endpoint::ExitStats),
    (Method::Get, "/metrics", Endpoint::Metrics),
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
    /// The exit statistics.
    ExitStats(Query),
    /// The exit statistics for Prometheus.
    Metrics,
    /// Something for the control thread.
    Action(VmAction),
}

/// Understands a request, or says what is wrong with it.
pub fn route(request: &Request) -> Result<Call, Response> {
    let Some((method, _, endpoint)) = ROUTES.iter().find(|(_, path, _)| *path == request.path)
    else {
        return Err(not_found(&request.path));
    };
    if *method != request.method {
        let verb = match method {
            Method::Put => "PUT",
            Method::Get | Method::Other => "GET",
        };
        return Err(bad_request(format!("{} takes {verb} only", request.path)));
    }
    if request.query.is_some() && *endpoint != Endpoint::ExitStats {
        return Err(bad_request(format!("{} has no parameters", request.path)));
    }
    if !request.body.is_empty() && !endpoint.takes_body() {
        return Err(bad_request(format!("{} takes no body", request.path)));
    }
    if !request.descriptors.is_empty() && !matches!(endpoint, Endpoint::Create | Endpoint::AddNet) {
        return Err(bad_request(format!(
            "{} takes no descriptors",
            request.path
        )));
    }
    Ok(match endpoint {
        Endpoint::Ping => Call::Ping,
        Endpoint::Info => Call::Info,
        Endpoint::Counters => Call::Counters,
        Endpoint::Metrics => Call::Metrics,
        Endpoint::ExitStats => Call::ExitStats(
            exit_stats::parse_query(request.query.as_deref().unwrap_or_default())
                .map_err(bad_request)?,
        ),
        Endpoint::VmmShutdown => Call::Action(VmAction::VmmShutdown),
        Endpoint::Delete => Call::Action(VmAction::Delete),
        Endpoint::Boot => Call::Action(VmAction::Boot),
        Endpoint::Pause => Call::Action(VmAction::Pause),
        Endpoint::Resume => Call::Action(VmAction::Resume),
        Endpoint::Shutdown => Call::Action(VmAction::Shutdown),
        Endpoint::Reboot => Call::Action(VmAction::Reboot),
        Endpoint::PowerButton => Call::Action(VmAction::PowerButton),
        Endpoint::Nmi => Call::Action(VmAction::Nmi),
        Endpoint::Resize => Call::Action(VmAction::Resize(parse("VmResize", &request.body)?)),
        Endpoint::ResizeDisk => {
            Call::Action(VmAction::ResizeDisk(parse("VmResizeDisk", &request.body)?))
        }
        Endpoint::ResizeZone => {
            Call::Action(VmAction::ResizeZone(parse("VmResizeZone", &request.body)?))
        }
        Endpoint::Create => {
            let mut config: VmConfig = parse("VmConfig", &request.body)?;
            request
                .descriptors
                .give_to(config.net.as_deref_mut().unwrap_or_default())
                .map_err(bad_request)?;
            let descriptors = request.descriptors.clone();
            Call::Action(VmAction::Create(Box::new(config), descriptors))
        }
        Endpoint::AddDisk => add(NewDevice::Disk(Box::new(parse(
            "DiskConfig",
            &request.body,
        )?))),
        Endpoint::AddNet => {
            let mut net: NetConfig = parse("NetConfig", &request.body)?;
            request
                .descriptors
                .give_to(std::slice::from_mut(&mut net))
                .map_err(bad_request)?;
            add(NewDevice::Net(Box::new(net), request.descriptors.clone()))
        }
        Endpoint::AddVsock => add(NewDevice::Vsock(Box::new(parse(
            "VsockConfig",
            &request.body,
        )?))),
        Endpoint::RemoveDevice => {
            let RemoveDevice { id } = parse("RemoveDevice", &request.body)?;
            Call::Action(VmAction::RemoveDevice(id))
        }
    })
}

/// The same at the statistics socket, which refuses whatever else there is.
pub fn route_statistics(request: &Request) -> Result<Call, Response> {
    let known = ROUTES.iter().any(|(method, path, endpoint)| {
        *method == request.method && *path == request.path && STATISTICS.contains(endpoint)
    });
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

fn add(device: NewDevice) -> Call {
    Call::Action(VmAction::AddDevice(device))
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
        for (method, path, endpoint) in ROUTES {
            let body = match endpoint {
                Endpoint::RemoveDevice => "{\"id\": \"a\"}",
                Endpoint::ResizeDisk => "{\"id\": \"a\", \"desired_size\": 512}",
                Endpoint::ResizeZone => "{\"id\": \"a\", \"desired_ram\": 512}",
                Endpoint::AddVsock => "{\"cid\": 3, \"socket\": \"a\"}",
                endpoint if endpoint.takes_body() => "{}",
                _ => "",
            };
            assert_eq!(status(*method, path, None, body), 0, "{path}");
            for other in [Method::Get, Method::Put, Method::Other] {
                if other != *method {
                    assert_eq!(status(other, path, None, body), 400, "{path}");
                }
            }
        }
    }

    #[test]
    fn the_statistics_socket_changes_nothing_and_shows_no_configuration() {
        let served: Vec<&str> = ROUTES
            .iter()
            .filter(|(method, path, _)| route_statistics(&request(*method, path, None, "")).is_ok())
            .map(|(_, path, _)| *path)
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
