//! Clients that want to hold up the others, or have done what they did not
//! ask for.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, getrlimit, setrlimit};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::*;
use crate::api::http::CLIENT_TIMEOUT;

/// Sends bytes, whether the server reads them all or not, and gives the status
/// of the answer, 0 if there is none.
fn status_of(fixture: &Fixture, bytes: &[u8]) -> u16 {
    let mut stream = fixture.connect();
    let _ = stream.write_all(bytes);
    status(&mut stream)
}

fn status(stream: &mut UnixStream) -> u16 {
    let mut answer = Vec::new();
    // A server that has enough of it resets the connection.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1);
    status.map_or(0, |status| status.parse().unwrap())
}

#[test]
fn nothing_is_carried_out_of_a_request_with_another_sense_to_others() {
    let fixture = Fixture::new();
    for headers in [
        "Content-Length: 0\r\nContent-Length: 0",
        "Content-Length: +0",
        "Content-Length : 0",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: identity, chunked",
        "Content-Length: 0\r\n Transfer-Encoding: chunked",
    ] {
        let request = format!(
            "PUT /api/v1/vm.boot HTTP/1.1\r\n{headers}\r\n\r\n\
             5\r\nhello\r\n0\r\n\r\nPUT /api/v1/vm.pause HTTP/1.1\r\n\r\n"
        );
        assert_eq!(status_of(&fixture, request.as_bytes()), 400, "{headers}");
    }
    assert_eq!(fixture.seen(), []);
}

#[test]
fn a_head_has_an_end_that_comes_soon() {
    let fixture = Fixture::new();
    let line = "PUT /api/v1/vm.boot HTTP/1.1\r\n";
    for rest in [
        format!("{}\r\n", "A: b\r\n".repeat(200_000)),
        format!("X: {}", "a".repeat(1 << 20)),
        "a".repeat(1 << 20),
    ] {
        let request = format!("{line}{rest}");
        let mut stream = fixture.connect();
        let _ = stream.write_all(request.as_bytes());
        // Its answer may be lost with the bytes that nobody read.
        let status = status(&mut stream);
        let begun = &rest[..20];
        assert!([0, 400].contains(&status), "{begun}: {status}");
    }
    assert_eq!(fixture.seen(), []);
    assert_eq!(fixture.get("/api/v1/vmm.ping").0, 200);
}

#[test]
fn nine_hundred_descriptors_are_too_many_and_are_closed() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("sent");
    let file = File::create(&path).unwrap();
    let head = b"PUT /api/v1/vm.boot HTTP/1.1\r\n";
    for _ in 0..20 {
        let stream = fixture.connect();
        let mut sent = 0;
        for (at, byte) in head.chunks(1).enumerate() {
            let numbers = [file.as_raw_fd(); 90];
            let count = if at % 3 == 0 && sent < 900 { 90 } else { 0 };
            sent += count;
            if stream.send_with_fds(&[byte], &numbers[..count]).is_err() {
                break;
            }
        }
    }
    assert_eq!(fixture.get("/api/v1/vmm.ping").0, 200);
    assert_eq!(fixture.seen(), []);
    let deadline = Instant::now() + Duration::from_secs(10);
    while descriptors_of(&path) > 1 {
        let left = descriptors_of(&path);
        assert!(Instant::now() < deadline, "{left} are open");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many descriptors of this process lead to a file.
fn descriptors_of(path: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    links
        .flatten()
        .filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target == path))
        .count()
}

#[test]
fn who_sent_many_requests_ahead_holds_up_nobody() {
    const CLIENTS: usize = 100;
    const REQUESTS: usize = 50;
    let fixture = Fixture::new();
    let config = put("vm.create", "{}");
    assert_eq!(fixture.ask(&config).0, 204);
    let info = fixture.board.read().info.clone();
    let answered = Arc::new(AtomicUsize::new(0));
    let at_info = Arc::new(AtomicUsize::new(0));
    let (release, hold) = channel::<()>();
    let hold = Mutex::new(hold);
    let (counted, noted, seen) = (answered.clone(), answered.clone(), at_info.clone());
    fixture.board.publish(VmStatus {
        info,
        counters: Some(Arc::new(move || {
            if counted.fetch_add(1, Ordering::Relaxed) == 0 {
                let _ = hold.lock().unwrap().recv();
            }
            VmCounters::default()
        })),
        balloon: Some(Arc::new(move || {
            seen.store(noted.load(Ordering::Relaxed), Ordering::Relaxed);
            0
        })),
        machine: None,
    });
    let request = b"GET /api/v1/vm.counters HTTP/1.1\r\n\r\n";
    let mut first = fixture.connect();
    first.write_all(request).unwrap();
    while answered.load(Ordering::Relaxed) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _others: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut stream = fixture.connect();
            stream.write_all(&request.repeat(REQUESTS)).unwrap();
            stream
        })
        .collect();
    let mut last = fixture.connect();
    last.write_all(b"GET /api/v1/vm.info HTTP/1.1\r\n\r\n")
        .unwrap();
    release.send(()).unwrap();
    assert_eq!(exchange(&mut last, "").0, 200);
    let before = at_info.load(Ordering::Relaxed);
    assert!(
        before < CLIENTS * REQUESTS / 5,
        "{before} were answered first"
    );
}

#[test]
fn half_requests_and_idle_clients_give_way() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum.map(|most| most.min(8192));
    setrlimit(Resource::Nofile, limit).unwrap();
    let fixture = Fixture::new();
    let mut clients: Vec<_> = (0..512)
        .map(|number| {
            let mut stream = fixture.connect();
            if number % 2 == 0 {
                stream.write_all(b"GET /api/v1/vmm.ping HT").unwrap();
            }
            stream
        })
        .collect();
    let full = fixture.get("/api/v1/vmm.ping");
    assert_eq!(full.0, 503, "{full:?}");
    std::thread::sleep(CLIENT_TIMEOUT + Duration::from_secs(2));
    assert_eq!(fixture.get("/api/v1/vmm.ping").0, 200);
    assert_eq!(status(&mut clients[0]), 408);
    // 256 are gone and 256 are idle: room for as many, and then for those who
    // have something to ask.
    let _more: Vec<_> = (0..256).map(|_| fixture.connect()).collect();
    assert_eq!(fixture.get("/api/v1/vmm.ping").0, 200);
}
