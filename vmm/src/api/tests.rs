//! The real server on a real socket, with a control thread that does what a
//! test needs.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use api_client::types::{VmCounters, VmInfo, VmState};
use serde_json::{Value, json};

use super::*;
use crate::stats::StatsHub;
use crate::stats::tests::{PATCHED, machine};

mod clients;
mod description;
mod hostile;
mod inspect;

/// Obeys, except where told to fail or to take its time.
#[derive(Default)]
struct Double {
    info: Option<VmInfo>,
    seen: Vec<VmAction>,
    failure: Option<ApiError>,
    panic: bool,
    hold: Option<Receiver<()>>,
}

impl RequestHandler for Arc<Mutex<Double>> {
    fn handle(&mut self, action: VmAction) -> Result<VmReply, ApiError> {
        let hold = self.lock().unwrap().hold.take();
        if let Some(hold) = hold {
            let _ = hold.recv();
        }
        let mut double = self.lock().unwrap();
        assert!(!double.panic, "as told");
        double.seen.push(action.clone());
        if let Some(failure) = &double.failure {
            return Err(failure.clone());
        }
        if let VmAction::Create(config, _) = action {
            double.info = Some(VmInfo {
                config: *config,
                state: VmState::Created,
                memory_actual_size: 0,
                device_tree: None,
            });
        }
        Ok(VmReply::Empty)
    }

    fn status(&self) -> VmStatus {
        VmStatus {
            info: self.lock().unwrap().info.clone(),
            counters: None,
            balloon: None,
            machine: None,
        }
    }
}

struct Fixture {
    server: Option<ApiServer>,
    control: Option<JoinHandle<()>>,
    end: Sender<()>,
    double: Arc<Mutex<Double>>,
    hub: Arc<StatsHub>,
    board: StatusBoard,
    path: PathBuf,
    statistics: PathBuf,
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.sock");
        let (sender, queue) = api_channel().unwrap();
        let board = StatusBoard::default();
        let hub = Arc::new(StatsHub::new());
        let context = ApiContext {
            sender,
            board: board.clone(),
            stats: hub.clone(),
            identity: VmmIdentity {
                build_version: "v1-test".into(),
                version: "1".into(),
                features: vec!["kvm".into()],
            },
        };
        let statistics = dir.path().join("statistics.sock");
        let server = serve_on(
            Some(ApiSocket::bind(&path).unwrap()),
            Some(ApiSocket::bind(&statistics).unwrap()),
            context,
        )
        .unwrap();
        let double = Arc::new(Mutex::new(Double::default()));
        let (end, ended) = channel();
        let (mut handler, own_board) = (double.clone(), board.clone());
        let control = std::thread::spawn(move || {
            while ended.try_recv().is_err() {
                queue.serve(&mut handler, &own_board);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Fixture {
            server: Some(server),
            control: Some(control),
            end,
            double,
            hub,
            board,
            path,
            statistics,
            dir,
        }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream
    }

    fn ask(&self, request: &str) -> (u16, Option<Value>) {
        exchange(&mut self.connect(), request)
    }

    fn get(&self, path: &str) -> (u16, Option<Value>) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    fn put(&self, path: &str, body: &str) -> (u16, Option<Value>) {
        self.ask(&put(path, body))
    }

    fn seen(&self) -> Vec<VmAction> {
        self.double.lock().unwrap().seen.clone()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = self.end.send(());
        drop(self.server.take());
        if let Some(control) = self.control.take() {
            let _ = control.join();
        }
    }
}

fn put(path: &str, body: &str) -> String {
    format!(
        "PUT /api/v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Sends and reads one response, by its own length.
fn exchange(stream: &mut UnixStream, request: &str) -> (u16, Option<Value>) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    let value = (!body.is_empty()).then(|| serde_json::from_slice(&body).unwrap());
    (status, value)
}

#[test]
fn every_action_reaches_the_control_thread_and_nothing_else_does() {
    let fixture = Fixture::new();
    for (path, action, status) in [
        ("vm.boot", VmAction::Boot, 204),
        ("vm.pause", VmAction::Pause, 204),
        ("vm.resume", VmAction::Resume, 204),
        ("vm.reboot", VmAction::Reboot, 204),
        ("vm.pulse", VmAction::Pulse, 204),
        ("vm.power-button", VmAction::PowerButton, 204),
        ("vm.shutdown", VmAction::Shutdown, 204),
        ("vm.delete", VmAction::Delete, 204),
        ("vmm.shutdown", VmAction::VmmShutdown, 200),
    ] {
        assert_eq!(fixture.put(path, ""), (status, None), "{path}");
        assert_eq!(fixture.seen().last(), Some(&action));
    }
    let before = fixture.seen().len();
    for path in ["vmm.ping", "vm.info", "vm.counters", "vm.exit-stats"] {
        fixture.get(&format!("/api/v1/{path}"));
    }
    assert_eq!(fixture.seen().len(), before);
}

#[test]
fn the_statistics_socket_reads_and_changes_nothing() {
    let fixture = Fixture::new();
    fixture.hub.publish(machine(1, PATCHED));
    let ask = |request: &str| {
        let mut stream = UnixStream::connect(&fixture.statistics).unwrap();
        exchange(&mut stream, request)
    };
    let get = |path: &str| ask(&format!("GET {path} HTTP/1.1\r\n\r\n")).0;
    for path in ["/exit-stats", "/api/v1/vmm.ping"] {
        assert_eq!(get(path), 200, "{path}");
    }
    assert_eq!(get("/api/v1/vm.info"), 403);
    for action in ["vm.boot", "vm.shutdown", "vm.delete", "vmm.shutdown"] {
        let (status, body) = ask(&put(action, ""));
        assert_eq!(status, 403, "{action}");
        assert_eq!(body.unwrap()[0], "Forbidden");
    }
    assert!(fixture.seen().is_empty());
}

#[test]
fn readers_of_statistics_take_no_place_from_the_api() {
    let fixture = Fixture::new();
    let readers: Vec<_> = (0..600)
        .map_while(|_| UnixStream::connect(&fixture.statistics).ok())
        .collect();
    assert!(readers.len() > 100);
    let mut refused = UnixStream::connect(&fixture.statistics).unwrap();
    let mut head = [0; 13];
    refused.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 503 ");
    assert_eq!(fixture.get("/api/v1/vmm.ping").0, 200);
}

#[test]
fn ping_tells_who_answers() {
    let fixture = Fixture::new();
    assert_eq!(
        fixture.get("/api/v1/vmm.ping"),
        (
            200,
            Some(json!({
                "build_version": "v1-test",
                "version": "1",
                "pid": std::process::id(),
                "features": ["kvm"],
            }))
        )
    );
}

#[test]
fn what_was_created_is_what_info_shows() {
    let fixture = Fixture::new();
    assert_eq!(
        fixture.get("/api/v1/vm.info"),
        (
            404,
            Some(json!([
                "Error from API",
                "The VM info is not available",
                "VM is not created"
            ]))
        )
    );
    let config = json!({"cpus": {"boot_vcpus": 3, "max_vcpus": 4}, "new_field": null});
    assert_eq!(fixture.put("vm.create", &config.to_string()), (204, None));
    let (status, info) = fixture.get("/api/v1/vm.info");
    assert_eq!(status, 200);
    let info: VmInfo = serde_json::from_value(info.unwrap()).unwrap();
    assert_eq!(info.state, VmState::Created);
    assert_eq!(
        (info.config.cpus.boot_vcpus, info.config.cpus.max_vcpus),
        (3, 4)
    );
}

#[test]
fn counters_before_boot_are_cloud_hypervisors_error() {
    let fixture = Fixture::new();
    let expected = json!([
        "Error from API",
        "The VM info is not available",
        "VM is not running"
    ]);
    assert_eq!(fixture.get("/api/v1/vm.counters"), (500, Some(expected)));
    fixture.board.publish(VmStatus {
        info: None,
        counters: Some(Arc::new(|| {
            [("_disk0".to_owned(), [("read_ops".to_owned(), 5)].into())].into()
        })),
        balloon: None,
        machine: None,
    });
    assert_eq!(
        fixture.get("/api/v1/vm.counters"),
        (200, Some(json!({"_disk0": {"read_ops": 5}})))
    );
}

#[test]
fn failures_keep_their_kind_and_their_causes() {
    let fixture = Fixture::new();
    for (kind, expected) in [
        (ErrorKind::BadRequest, 400),
        (ErrorKind::NotFound, 404),
        (ErrorKind::Conflict, 409),
        (ErrorKind::TryLater, 429),
        (ErrorKind::Internal, 500),
    ] {
        fixture.double.lock().unwrap().failure =
            Some(ApiError::new(kind, "cause").context("effect"));
        assert_eq!(
            fixture.put("vm.boot", ""),
            (
                expected,
                Some(json!([
                    "Error from API",
                    "The VM could not boot",
                    "effect",
                    "cause"
                ]))
            )
        );
    }
}

#[test]
fn malformed_requests_never_reach_the_control_thread() {
    let fixture = Fixture::new();
    for (request, expected) in [
        (put("vm.create", "{\"cpus\": "), 400),
        (put("vm.create", ""), 400),
        (put("vm.boot", "{}"), 400),
        (put("no.such", ""), 404),
        ("GET /api/v1/vm.boot HTTP/1.1\r\n\r\n".into(), 400),
        ("POST /api/v1/vm.boot HTTP/1.1\r\n\r\n".into(), 400),
        ("hello\r\n\r\n".into(), 400),
    ] {
        let (status, body) = fixture.ask(&request);
        assert_eq!(status, expected, "{request}");
        let chain: Vec<String> = serde_json::from_value(body.unwrap()).unwrap();
        assert!(chain.len() >= 2, "{chain:?}");
    }
    assert_eq!(fixture.seen(), []);
}

#[test]
fn reads_go_on_while_the_control_thread_is_busy() {
    let fixture = Fixture::new();
    fixture.hub.publish(machine(2, PATCHED));
    let (release, hold) = channel();
    fixture.double.lock().unwrap().hold = Some(hold);
    let mut slow = fixture.connect();
    slow.write_all(put("vm.boot", "").as_bytes()).unwrap();
    let mut other = fixture.connect();
    let start = Instant::now();
    for _ in 0..100 {
        for path in ["/api/v1/vmm.ping", "/exit-stats"] {
            let (status, _) = exchange(&mut other, &format!("GET {path} HTTP/1.1\r\n\r\n"));
            assert_eq!(status, 200);
        }
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(fixture.seen(), []);
    release.send(()).unwrap();
    assert_eq!(exchange(&mut slow, ""), (204, None));
    assert_eq!(fixture.seen(), [VmAction::Boot]);
}

#[test]
fn a_client_that_leaves_before_its_answer_harms_nobody() {
    let fixture = Fixture::new();
    let (release, hold) = channel();
    fixture.double.lock().unwrap().hold = Some(hold);
    let mut impatient = fixture.connect();
    impatient.write_all(put("vm.boot", "").as_bytes()).unwrap();
    fixture.get("/api/v1/vmm.ping");
    drop(impatient);
    release.send(()).unwrap();
    assert_eq!(fixture.put("vm.pause", ""), (204, None));
    assert_eq!(fixture.seen(), [VmAction::Boot, VmAction::Pause]);
}

#[test]
fn a_control_thread_that_dies_answers_with_an_error() {
    let fixture = Fixture::new();
    fixture.double.lock().unwrap().panic = true;
    for _ in 0..2 {
        let (status, body) = fixture.put("vm.boot", "");
        assert_eq!(status, 500);
        assert_eq!(
            body.unwrap()[2],
            "The request was dropped without an answer"
        );
    }
}

#[test]
fn all_three_names_give_the_exit_statistics() {
    let fixture = Fixture::new();
    let paths = ["/exit-stats", "/api/v1/exit-stats", "/api/v1/vm.exit-stats"];
    for path in paths {
        let (status, body) = fixture.get(path);
        assert_eq!(status, 404);
        assert_eq!(body.unwrap()[1], "No virtual machine has been booted");
    }
    fixture.hub.publish(machine(1, PATCHED));
    for (n, path) in paths.iter().enumerate() {
        let (status, body) = fixture.get(path);
        assert_eq!(status, 200);
        let body = body.unwrap();
        assert_eq!(body["source"], "kvm-exit-stats");
        assert_eq!(body["isa"], "vmx");
        assert_eq!(body["totals"]["exits"], n + 1);
    }
}

#[test]
fn a_later_question_gets_later_figures() {
    let fixture = Fixture::new();
    fixture.hub.publish(machine(1, PATCHED));
    let mut stream = fixture.connect();
    let request = "GET /exit-stats HTTP/1.1\r\n\r\n";
    let exits = |(_, body): (u16, Option<Value>)| body.unwrap()["totals"]["exits"].clone();
    // Both are there at once, yet the second was asked after the first.
    assert_eq!(exits(exchange(&mut stream, &request.repeat(2))), 1);
    assert_eq!(exits(exchange(&mut stream, "")), 2);
    assert_eq!(exits(exchange(&mut stream, request)), 3);
}

#[test]
fn each_reason_answers_as_the_table_judges_it() {
    let fixture = Fixture::new();
    fixture.hub.publish(machine(1, PATCHED));
    for undefined in [
        "35",
        "38",
        "42",
        "71",
        "82",
        "83",
        "86",
        "0x1000A",
        "4294967295",
    ] {
        let (status, body) = fixture.get(&format!("/exit-stats?reason={undefined}"));
        assert_eq!(status, 404, "{undefined}");
        assert!(
            body.unwrap()[1]
                .as_str()
                .unwrap()
                .contains("does not define")
        );
    }
    for invalid in ["-1", "x", "", "4294967296", "1.5"] {
        let (status, _) = fixture.get(&format!("/exit-stats?reason={invalid}"));
        assert_eq!(status, 400, "{invalid}");
    }
    for (number, enabled, occurred) in [(3, false, false), (48, true, false), (12, true, true)] {
        let (status, body) = fixture.get(&format!("/exit-stats?reason={number}"));
        assert_eq!(status, 200);
        let reasons = body.unwrap()["reasons"].clone();
        assert_eq!(reasons.as_array().unwrap().len(), 1);
        assert_eq!(reasons[0]["number"], number);
        assert_eq!(reasons[0]["enabled"], enabled);
        assert_eq!(reasons[0]["exits"].as_u64().unwrap() > 0, occurred);
    }
}

#[test]
fn vcpu_and_nonzero_narrow_the_snapshot() {
    let fixture = Fixture::new();
    fixture.hub.publish(machine(3, PATCHED));
    let (_, body) = fixture.get("/exit-stats?vcpu=1&nonzero=true");
    let body = body.unwrap();
    assert_eq!(body["vcpus"].as_array().unwrap().len(), 1);
    assert_eq!(body["vcpus"][0]["id"], 1);
    assert_eq!(body["totals"]["exits"], 1);
    assert_eq!(body["reasons"].as_array().unwrap().len(), 1);
    assert_eq!(fixture.get("/exit-stats?vcpu=3").0, 404);
}

#[test]
fn an_unpatched_host_is_no_error_and_says_why() {
    let fixture = Fixture::new();
    fixture.hub.publish(machine(2, 0));
    let (status, body) = fixture.get("/exit-stats?reason=48");
    let body = body.unwrap();
    assert_eq!(status, 200);
    assert_eq!(body["source"], "kvm");
    assert_eq!(body["reasons"], Value::Null);
    assert!(
        body["unavailable"]
            .as_str()
            .unwrap()
            .contains("not patched")
    );
    assert_eq!(body["totals"]["exits"], 14);
}

#[test]
fn metrics_carry_the_path_of_the_socket() {
    let fixture = Fixture::new();
    let ask = || {
        let mut stream = fixture.connect();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    assert!(ask().ends_with("# EOF\n"));
    fixture.hub.publish(machine(1, PATCHED));
    let text = ask();
    assert!(text.contains("Content-Type: application/openmetrics-text"));
    let label = format!("vm=\"{}\"", fixture.path.display());
    assert!(text.contains(&label), "{text}");
}

#[test]
fn the_end_answers_who_asked_for_it_and_leaves_nothing_behind() {
    let mut fixture = Fixture::new();
    let mut idle = fixture.connect();
    let mut stream = fixture.connect();
    assert_eq!(exchange(&mut stream, &put("vmm.shutdown", "")), (200, None));
    let start = Instant::now();
    fixture.server.take().unwrap().stop().unwrap();
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(std::fs::read_dir(fixture.dir.path()).unwrap().count(), 0);
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
}

#[test]
fn sixty_four_clients_are_served_at_once() {
    let fixture = Fixture::new();
    fixture.hub.publish(machine(8, PATCHED));
    let mut streams: Vec<_> = (0..64).map(|_| fixture.connect()).collect();
    for _ in 0..10 {
        for stream in &mut streams {
            let (status, _) = exchange(stream, "GET /exit-stats HTTP/1.1\r\n\r\n");
            assert_eq!(status, 200);
        }
    }
}

#[test]
fn a_panic_in_the_api_thread_ends_the_vmm_and_is_told() {
    let mut fixture = Fixture::new();
    fixture.board.publish(VmStatus {
        info: None,
        counters: Some(Arc::new(|| panic!("no {}", "luck"))),
        balloon: None,
        machine: None,
    });
    let mut stream = fixture.connect();
    let request = b"GET /api/v1/vm.counters HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    // The connection ends, with or without a word.
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty());
    let error = fixture.server.take().unwrap().stop().unwrap_err();
    assert!(error.to_string().contains("no luck"), "{error}");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !fixture.seen().contains(&VmAction::VmmShutdown) {
        assert!(Instant::now() < deadline, "the VMM goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
}
