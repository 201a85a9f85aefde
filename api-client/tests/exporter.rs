//! `ch-remote exporter` as a process: what its limits and its user do to it,
//! and what it writes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

struct Exporter {
    child: Child,
    stderr: BufReader<ChildStderr>,
    address: String,
}

impl Exporter {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let (_, rest) = line.split_once("http://").expect(&line);
        let (address, _) = rest.split_once('/').unwrap();
        Exporter {
            child,
            stderr,
            address: address.to_owned(),
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream
    }

    /// Empty if the connection was closed before an answer came.
    fn scrape(&self) -> String {
        let mut stream = self.connect();
        let mut answer = String::new();
        let _ = stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            .and_then(|()| stream.read_to_string(&mut answer).map(drop));
        answer
    }

    /// Ends it and returns what it has written.
    fn end(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        let stderr = &mut self.stderr;
        stderr.lines().map(Result::unwrap).collect()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn exporter(sockets: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ch-remote"));
    command
        .args(["exporter", "--listen", "localhost:0"])
        .arg(sockets);
    command
}

#[test]
fn want_of_descriptors_neither_ends_it_nor_stops_scrapes() {
    let mut limited = Command::new("sh");
    limited.args([
        "-c",
        "ulimit -n 16; exec \"$0\" exporter --listen 127.0.0.1:0 '/nonexistent/*'",
        env!("CARGO_BIN_EXE_ch-remote"),
    ]);
    let mut exporter = Exporter::start(&mut limited);
    let idle: Vec<_> = (0..64).map(|_| exporter.connect()).collect();
    let begun = Instant::now();
    while !exporter.scrape().starts_with("HTTP/1.1 200 ") {
        assert!(begun.elapsed() < Duration::from_secs(60));
        assert!(exporter.child.try_wait().unwrap().is_none(), "it ended");
    }
    drop(idle);
    let written = exporter.end();
    assert!(written.iter().any(|line| line.contains("Cannot accept")));
    assert!(written.len() < 200, "{} lines", written.len());
}

#[test]
fn each_change_of_a_vm_is_written_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm\n.sock");
    drop(UnixListener::bind(&path).unwrap());
    let exporter = Exporter::start(&mut exporter(&folder.path().join("*.sock")));
    for _ in 0..3 {
        assert!(exporter.scrape().contains("reason=\"refused\"} 1"));
    }
    std::fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 404 \r\nContent-Length: 8\r\n\r\n[\"none\"]");
        }
    });
    for _ in 0..3 {
        assert!(exporter.scrape().contains("reason=\"no_vm\"} 1"));
    }
    let written = exporter.end();
    assert_eq!(written.len(), 2, "{written:?}");
    assert!(written[0].ends_with("vm\\n.sock: down: no process listens on the socket"));
    assert!(written[1].ends_with("vm\\n.sock: down: the VMM runs no VM"));
}

#[test]
fn a_socket_and_a_folder_of_another_user_are_named_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let allow = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    allow(folder.path(), 0o755);
    let _listener = UnixListener::bind(at("private")).unwrap();
    allow(&at("private"), 0);
    std::fs::create_dir(at("closed")).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_ch-remote"), at("ch-remote")).unwrap();
    allow(&at("closed"), 0);
    let mut command = Command::new(at("ch-remote"));
    command
        .args(["exporter", "--listen", "localhost:0"])
        .args([at("private"), at("closed/*")]);
    if rustix::process::geteuid().is_root() {
        // Whom permissions bind.
        command.uid(65534).gid(65534);
    }
    let exporter = Exporter::start(&mut command);
    let metrics = exporter.scrape();
    assert!(metrics.contains("reason=\"permission\"} 1\n"), "{metrics}");
    assert!(metrics.contains("kvm_exit_stats_unreadable_folders 1\n"));
    let written = exporter.end();
    assert_eq!(written.len(), 2, "{written:?}");
    allow(&at("closed"), 0o700);
}

#[test]
fn listening_for_other_hosts_is_warned_of() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ch-remote"));
    command.args(["exporter", "--listen", ":0", "/nonexistent/*"]);
    let exporter = Exporter::start(&mut command);
    assert!(!exporter.scrape_at_loopback().is_empty());
    let written = exporter.end();
    assert!(written[0].contains("warning"), "{written:?}");
}

impl Exporter {
    /// For one that listens at every address.
    fn scrape_at_loopback(&self) -> String {
        let (_, port) = self.address.rsplit_once(':').unwrap();
        let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
        let mut answer = String::new();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}
