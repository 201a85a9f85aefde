//! The exporter over real sockets. The VMs here are stand-ins, because a VM
//! that hangs has to be made to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use instrumentation::encode::Detail;
use instrumentation::snapshot::{ExitSnapshot, Host, VcpuInput, VcpuSample};

use super::connection::{ANSWER_TIMEOUT, REQUEST_TIMEOUT};
use super::*;

/// Long enough for a machine that is busy.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(2);

fn body(vcpus: u32) -> String {
    let inputs: Vec<_> = (0..vcpus)
        .map(|id| VcpuInput {
            id,
            sample: VcpuSample {
                exits: 7,
                ..VcpuSample::default()
            },
            user_exits: Vec::new(),
        })
        .collect();
    let host = Host {
        isa: Err("stand-in".into()),
        tsc_khz: 1,
    };
    serde_json::to_string(&ExitSnapshot::from_samples(&host, &[], &inputs)).unwrap()
}

/// What a stand-in does with a client.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Answers,
    Hangs,
    RunsNoVm,
    SpeaksSomethingElse,
}

fn vmm(path: &Path, manner: Manner) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let mut hung = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (status, body) = match manner {
                Manner::Answers => (200, body(2)),
                Manner::RunsNoVm => (404, "[\"The VM is not running\"]".to_owned()),
                Manner::SpeaksSomethingElse => {
                    let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
                    continue;
                }
                Manner::Hangs => {
                    hung.push(stream);
                    continue;
                }
            };
            let _ = stream.read(&mut [0; 1024]);
            let _ = write!(
                stream,
                "HTTP/1.1 {status} \r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
    });
}

fn exporter(patterns: &[String]) -> SocketAddr {
    exporter_of(Vms::new(
        Patterns::new(patterns).unwrap(),
        SCRAPE_TIMEOUT,
        Detail::Vm,
    ))
    .0
}

fn exporter_of(scraper: impl Scraper) -> (SocketAddr, JoinHandle<std::io::Result<()>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || serve(listener, scraper));
    (address, thread)
}

fn get(address: SocketAddr, request: &str) -> String {
    let mut answer = String::new();
    ask(address, request).read_to_string(&mut answer).unwrap();
    answer
}

fn ask(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

const SCRAPE: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

/// Answers at once and needs no VM.
struct Nothing;

impl Scraper for Nothing {
    fn scrape(&mut self, _: Option<Duration>) -> String {
        "# EOF\n".into()
    }
}

#[test]
fn a_scrape_tells_why_each_vm_gives_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    vmm(&at("good.sock"), Manner::Answers);
    vmm(&at("hung.sock"), Manner::Hangs);
    vmm(&at("waits.sock"), Manner::RunsNoVm);
    vmm(&at("other.sock"), Manner::SpeaksSomethingElse);
    // A socket whose process has ended stays in its folder.
    drop(UnixListener::bind(at("dead.sock")).unwrap());
    std::fs::write(at("file.sock"), "").unwrap();
    let pattern = at("*.sock").display().to_string();
    let missing = at("missing").display().to_string();
    let address = exporter(&[pattern, missing]);
    for _ in 0..2 {
        let begun = Instant::now();
        let answer = get(address, SCRAPE);
        assert!(begun.elapsed() < SCRAPE_TIMEOUT * 5);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let good = at("good.sock").display().to_string();
        assert!(answer.contains(&format!("kvm_exit_stats_up{{vm=\"{good}\"}} 1\n")));
        assert!(answer.contains(&format!("kvm_vm_exits_total{{vm=\"{good}\"}} 14\n")));
        for (name, reason) in [
            ("hung.sock", "timeout"),
            ("waits.sock", "no_vm"),
            ("other.sock", "protocol"),
            ("dead.sock", "refused"),
            ("missing", "missing"),
        ] {
            let vm = at(name).display().to_string();
            assert!(answer.contains(&format!("kvm_exit_stats_up{{vm=\"{vm}\"}} 0\n")));
            let down = format!("kvm_exit_stats_down{{vm=\"{vm}\",reason=\"{reason}\"}} 1\n");
            assert!(answer.contains(&down), "{down}{answer}");
        }
        assert!(!answer.contains("file.sock"));
        assert!(answer.ends_with("# EOF\n"));
    }
}

#[test]
fn a_vm_that_hangs_leaves_a_scraper_its_time() {
    let folder = tempfile::tempdir().unwrap();
    vmm(&folder.path().join("hung"), Manner::Hangs);
    let vms = Vms::new(
        Patterns::new(&[format!("{}/*", folder.path().display())]).unwrap(),
        Duration::from_secs(600),
        Detail::Vm,
    );
    let answer = get(
        exporter_of(vms).0,
        "GET /metrics HTTP/1.1\r\nX-Prometheus-Scrape-Timeout-Seconds: 0.5\r\n\r\n",
    );
    assert!(answer.contains("reason=\"timeout\"} 1\n"), "{answer}");
}

#[test]
fn vms_are_noticed_as_they_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let address = exporter(&[format!("{}/*", folder.path().display())]);
    assert!(!get(address, SCRAPE).contains("kvm_exit_stats_up{"));
    let path = folder.path().join("late");
    vmm(&path, Manner::Answers);
    assert!(get(address, SCRAPE).contains("late\"} 1"));
    std::fs::remove_file(&path).unwrap();
    assert!(!get(address, SCRAPE).contains("late"));
}

#[test]
fn a_path_with_quotes_and_newlines_is_escaped() {
    let folder = tempfile::tempdir().unwrap();
    vmm(&folder.path().join("a\"b\\c\nd"), Manner::Answers);
    let answer = get(
        exporter(&[format!("{}/*", folder.path().display())]),
        SCRAPE,
    );
    assert!(answer.contains("/a\\\"b\\\\c\\nd\"} 1\n"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    for line in body.lines() {
        assert!(line.starts_with("# ") || line.starts_with("kvm_"), "{line}");
    }
}

#[test]
fn more_vms_than_are_asked_at_a_time_all_answer() {
    let folder = tempfile::tempdir().unwrap();
    let listeners: Vec<_> = (0..300)
        .map(|index| folder.path().join(format!("{index}")))
        .collect();
    for path in &listeners {
        vmm(path, Manner::Answers);
    }
    let answer = get(
        exporter(&[format!("{}/*", folder.path().display())]),
        SCRAPE,
    );
    for line in ["kvm_exit_stats_up{", "kvm_exit_stats_info{"] {
        let lines = answer.lines().filter(|text| text.starts_with(line));
        let good = lines.filter(|text| text.ends_with("\"} 1"));
        assert_eq!(good.count(), 300, "{line}: {answer}");
    }
}

#[test]
fn what_is_no_scrape_is_told_so() {
    let (address, _) = exporter_of(Nothing);
    for (request, status) in [
        ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
        ("GET /other HTTP/1.1\r\n\r\n", "404"),
        ("\0\0\0\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\n\r\n", "200"),
    ] {
        let answer = get(address, request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
}

#[test]
fn clients_with_half_a_request_stop_no_scrape() {
    let (address, _) = exporter_of(Nothing);
    let half: Vec<_> = (0..300)
        .map(|_| ask(address, "GET /metrics HTTP/1.1\r\nHost"))
        .collect();
    for _ in 0..20 {
        assert!(get(address, SCRAPE).starts_with("HTTP/1.1 200 "));
    }
    drop(half);
}

#[test]
fn clients_that_send_a_byte_now_and_then_run_out_of_time() {
    let (address, _) = exporter_of(Nothing);
    let mut slow: Vec<_> = (0..16).map(|_| ask(address, "G")).collect();
    let begun = Instant::now();
    // Each byte would begin a deadline of a single read anew.
    while slow.iter_mut().any(|stream| stream.write_all(b"E").is_ok()) {
        assert!(begun.elapsed() < REQUEST_TIMEOUT * 4, "never closed");
        assert!(get(address, SCRAPE).starts_with("HTTP/1.1 200 "));
        std::thread::sleep(REQUEST_TIMEOUT / 10);
    }
    assert!(begun.elapsed() >= REQUEST_TIMEOUT - Duration::from_secs(1));
}

/// More than sockets hold.
struct Long;

impl Scraper for Long {
    fn scrape(&mut self, _: Option<Duration>) -> String {
        "#\n".repeat(16 << 20)
    }
}

#[test]
fn clients_that_do_not_read_their_answer_run_out_of_time() {
    let (address, _) = exporter_of(Long);
    let mut slow = ask(address, SCRAPE);
    std::thread::sleep(ANSWER_TIMEOUT + Duration::from_secs(2));
    let mut answer = Vec::new();
    let outcome = slow.read_to_end(&mut answer);
    assert!(outcome.is_err() || answer.len() < 32 << 20);
    // A client that does read gets all of it.
    assert!(get(address, SCRAPE).len() > 32 << 20);
}

#[test]
fn an_answer_is_compressed_where_the_client_takes_it() {
    let (address, _) = exporter_of(Long);
    let mut answer = Vec::new();
    ask(
        address,
        "GET /metrics HTTP/1.1\r\nAccept-Encoding: gzip\r\n\r\n",
    )
    .read_to_end(&mut answer)
    .unwrap();
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap()
        + 4;
    let head = String::from_utf8_lossy(&answer[..end]);
    assert!(head.contains("\r\nContent-Encoding: gzip\r\n"), "{head}");
    let mut body = String::new();
    flate2::read::GzDecoder::new(&answer[end..])
        .read_to_string(&mut body)
        .unwrap();
    assert_eq!(body, Long.scrape(None));
    assert!(answer.len() < body.len() / 10);
}

#[test]
fn the_end_of_the_thread_that_scrapes_is_an_error() {
    struct Fails;
    impl Scraper for Fails {
        fn scrape(&mut self, _: Option<Duration>) -> String {
            panic!("as told");
        }
    }
    let (address, thread) = exporter_of(Fails);
    let mut answer = String::new();
    let _ = ask(address, SCRAPE).read_to_string(&mut answer);
    assert!(thread.join().unwrap().is_err());
}
