//! The live state over the API.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api_client::inspect::InspectNode;
use serde_json::{Value, json};

use super::{Fixture, put};
use crate::api::{InspectMachine, VmStatus};
use crate::inspect::{Question, Scope};

/// A machine with one disk. The disk's queue counts how often it was read; a part
/// called stuck is never told of.
#[derive(Default)]
struct Fake {
    reads: Mutex<u64>,
    stuck: Question<()>,
}

impl InspectMachine for Fake {
    fn inspect(&self, scope: &Scope<'_>, root: &mut InspectNode) {
        scope.add(root, "virtio", |scope, node| {
            scope.add(node, "a/b", |scope, node| {
                scope.add(node, "queue0", |_, node| {
                    let mut reads = self.reads.lock().unwrap();
                    *reads += 1;
                    node.count("reads", *reads);
                });
            });
            scope.add(node, "stuck", |scope, node| {
                let _ = self.stuck.ask();
                if self.stuck.wait(scope.deadline(), || true).is_none() {
                    node.lacks("no answer");
                }
            });
        });
    }
}

fn booted() -> (Fixture, Arc<Fake>) {
    let fixture = Fixture::new();
    assert_eq!(fixture.put("vm.create", "{}").0, 204);
    let fake = Arc::new(Fake::default());
    fixture.board.publish(VmStatus {
        machine: Some(Arc::clone(&fake) as Arc<_>),
        ..VmStatus::clone(&fixture.board.read())
    });
    (fixture, fake)
}

fn inspect(fixture: &Fixture, path: &str) -> (u16, Value) {
    let (status, body) = fixture.get(&format!("/api/v1/vm.inspect?path={path}"));
    (status, body.unwrap())
}

#[test]
fn without_a_vm_there_is_nothing_to_inspect() {
    let fixture = Fixture::new();
    let expected = json!([
        "Error from API",
        "The VM info is not available",
        "VM is not created"
    ]);
    assert_eq!(inspect(&fixture, ""), (404, expected));
}

#[test]
fn a_created_vm_shows_threads_and_descriptors() {
    let fixture = Fixture::new();
    assert_eq!(fixture.put("vm.create", "{}").0, 204);
    let (status, body) = inspect(&fixture, "");
    assert_eq!(status, 200);
    let node = &body["node"];
    assert_eq!(node["values"]["state"], "Created");
    assert_eq!(node["values"]["process"], std::process::id());
    let threads = node["children"]["threads"]["children"].as_object().unwrap();
    let named = |name: &str| {
        threads
            .values()
            .any(|thread| thread["values"]["filter"] == name)
    };
    assert!(named("api") && named("inspector"), "{threads:?}");
    let descriptors = &node["children"]["descriptors"]["values"];
    assert!(descriptors["socket"].as_u64() >= Some(2), "{descriptors}");
    assert!(body["monotonic_us"].as_u64() > Some(0));
}

#[test]
fn a_part_is_found_by_its_path_and_what_is_there_instead_is_named() {
    let (fixture, _) = booted();
    let (status, body) = inspect(&fixture, "virtio/a%2Fb/queue0");
    assert_eq!(
        (status, &body["path"]),
        (200, &json!("virtio/a%2Fb/queue0"))
    );
    assert_eq!(body["node"], json!({"counters": {"reads": 1}}));
    for (path, said) in [
        (
            "virtio/a/b",
            r#"There is no "a" in "virtio"; it has a%2Fb, stuck"#,
        ),
        (
            "..",
            r#"There is no ".." in the tree; it has descriptors, threads, virtio"#,
        ),
        (
            "%2e%2e%2fetc",
            r#"There is no "../etc" in the tree; it has descriptors, threads, virtio"#,
        ),
        (
            "virtio/a%2Fb/queue0/x",
            r#"There is no "x" in "virtio/a%2Fb/queue0"; it has no parts"#,
        ),
        (
            "%00%0d%0aX:1",
            r#"There is no "\0\r\nX:1" in the tree; it has descriptors, threads, virtio"#,
        ),
    ] {
        let expected = json!(["Error from API", "The VM could not be inspected", said]);
        assert_eq!(inspect(&fixture, path), (404, expected), "{path}");
    }
    let long = "a/".repeat(600) + "a";
    for path in [
        "/",
        "a//b",
        "virtio/",
        "%",
        "%f",
        "%ff",
        long.as_str(),
        "a&path=b",
        "a&x=1",
    ] {
        assert_eq!(inspect(&fixture, path).0, 400, "{path}");
    }
    // Read by this one, and by the one that led past it.
    let (_, body) = inspect(&fixture, "virtio/a%2Fb/queue0");
    assert_eq!(body["node"]["counters"]["reads"], 3);
}

#[test]
fn what_does_not_answer_is_said_and_holds_up_nobody_else() {
    let (fixture, fake) = booted();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| inspect(&fixture, "virtio/stuck"));
        while !fake.stuck.is_asked() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let others = Instant::now();
        assert_eq!(fixture.get("/api/v1/vmm.ping").0, 200);
        assert!(others.elapsed() < Duration::from_millis(150));
        let (status, body) = asker.join().unwrap();
        assert_eq!(status, 200);
        assert_eq!(body["node"], json!({"unavailable": ["no answer"]}));
    });
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn clients_that_ask_for_the_same_at_a_time_have_it_read_once() {
    let (fixture, fake) = booted();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| inspect(&fixture, "virtio/stuck"));
        while !fake.stuck.is_asked() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let ask = || inspect(&fixture, "virtio/a%2Fb/queue0");
        let askers: Vec<_> = (0..16).map(|_| scope.spawn(ask)).collect();
        // All of them have to be there before the first is answered.
        std::thread::sleep(Duration::from_millis(100));
        fake.stuck.answer(Some(()));
        assert_eq!(first.join().unwrap().1["node"], json!({}));
        for asker in askers {
            assert_eq!(asker.join().unwrap().0, 200);
        }
    });
    let reads = *fake.reads.lock().unwrap();
    assert!((1..16).contains(&reads), "read {reads} times");
}

#[test]
fn while_the_control_thread_is_busy_it_is_told_with_what() {
    let (fixture, _) = booted();
    let (release, hold): (Sender<()>, Receiver<()>) = channel();
    fixture.double.lock().unwrap().hold = Some(hold);
    std::thread::scope(|scope| {
        let pause = scope.spawn(|| fixture.ask(&put("vm.pause", "")));
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let (status, body) = inspect(&fixture, "virtio/a%2Fb");
            assert_eq!(status, 200, "{body}");
            let (_, body) = inspect(&fixture, "");
            if body["node"]["values"]["busy_with"] == "vm.pause" {
                assert!(body["node"]["values"]["busy_ms"].is_u64());
                break;
            }
            assert!(Instant::now() < deadline, "{body}");
        }
        release.send(()).unwrap();
        assert_eq!(pause.join().unwrap().0, 204);
    });
    let (_, body) = inspect(&fixture, "");
    assert_eq!(body["node"]["values"].get("busy_with"), None);
}
