//! The exporter over real sockets. The VMs here are stand-ins, because a VM
//! that hangs has to be made to.

use super::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::Instant;

use instrumentation::snapshot::{ExitSnapshot, Host, VcpuInput, VcpuSample};

fn body() -> String {
    let input = VcpuInput {
        id: 0,
        sample: VcpuSample {
            exits: 7,
            ..VcpuSample::default()
        },
        user_exits: Vec::new(),
    };
    let host = Host {
        isa: Err("stand-in".into()),
        tsc_khz: 1,
    };
    serde_json::to_string(&ExitSnapshot::from_samples(&host, &[], &[input])).unwrap()
}

/// A VMM that answers every request, or accepts and then says nothing.
fn vmm(path: &std::path::Path, answers: bool) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let mut silent = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if answers {
                let _ = stream.read(&mut [0; 1024]);
                let body = body();
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
            } else {
                silent.push(stream);
            }
        }
    });
}

fn exporter(pattern: &str) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let vms = Vms::new(&[pattern.to_string()], Duration::from_millis(300)).unwrap();
    std::thread::spawn(move || serve(&listener, &Arc::new(vms)));
    address
}

fn get(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

const SCRAPE: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn a_scrape_shows_all_vms_and_never_waits_for_one_that_hangs() {
    let folder = tempfile::tempdir().unwrap();
    vmm(&folder.path().join("good.sock"), true);
    vmm(&folder.path().join("hung.sock"), false);
    std::fs::write(folder.path().join("file.sock"), "").unwrap();
    let address = exporter(&format!("{}/*.sock", folder.path().display()));
    for _ in 0..3 {
        let begun = Instant::now();
        let answer = get(address, SCRAPE);
        assert!(begun.elapsed() < Duration::from_secs(2));
        let name = |vm: &str| format!("{}/{vm}.sock", folder.path().display());
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains(&format!("kvm_exit_stats_up{{vm=\"{}\"}} 1", name("good"))));
        assert!(answer.contains(&format!("kvm_exit_stats_up{{vm=\"{}\"}} 0", name("hung"))));
        assert!(answer.contains(&format!(
            "kvm_vcpu_exits_total{{vm=\"{}\",vcpu=\"0\"}} 7",
            name("good")
        )));
        assert!(!answer.contains("file.sock"));
        assert!(answer.ends_with("# EOF\n"));
    }
}

#[test]
fn vms_are_noticed_as_they_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let address = exporter(&format!("{}/*", folder.path().display()));
    assert!(!get(address, SCRAPE).contains("kvm_exit_stats_up{"));
    let path = folder.path().join("late");
    vmm(&path, true);
    assert!(get(address, SCRAPE).contains("late\"} 1"));
    std::fs::remove_file(&path).unwrap();
    assert!(!get(address, SCRAPE).contains("late"));
}

#[test]
fn what_is_no_scrape_is_told_so() {
    let address = exporter("/nonexistent/*");
    for (request, status) in [
        ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
        ("GET /other HTTP/1.1\r\n\r\n", "404"),
        ("\0\0\0\r\n\r\n", "400"),
    ] {
        let answer = get(address, request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
}

#[test]
fn a_pattern_that_cannot_match_is_refused() {
    assert!(Vms::new(&["a***".to_string()], PATIENCE).is_err());
}
