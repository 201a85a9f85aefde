use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use super::*;

fn socket() -> (tempfile::TempDir, PathBuf, UnixListener) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    (dir, path, listener)
}

#[test]
fn a_request_has_cloud_hypervisors_form() {
    let (_dir, path, listener) = socket();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![0; 4096];
        let len = stream.read(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 204 \r\n\r\n").unwrap();
        String::from_utf8(request[..len].to_vec()).unwrap()
    });
    let response = Client::new(&path)
        .request(Method::Put, "/api/v1/vm.create", Some(b"{}"))
        .unwrap();
    assert_eq!((response.status, response.body), (204, None));
    assert_eq!(
        server.join().unwrap(),
        "PUT /api/v1/vm.create HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\
         Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    );
}

#[test]
fn descriptors_travel_with_the_request() {
    use std::os::fd::AsRawFd;
    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    let (dir, path, listener) = socket();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![0; 4096];
        let (len, file) = stream.recv_with_fd(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 204 \r\n\r\n").unwrap();
        file.unwrap().write_all(b"sent").unwrap();
        String::from_utf8(request[..len].to_vec()).unwrap()
    });
    let path_of_file = dir.path().join("file");
    let file = std::fs::File::create(&path_of_file).unwrap();
    let response = Client::new(&path)
        .request_with(Method::Put, "/a", Some(b"{}"), &[file.as_raw_fd()])
        .unwrap();
    assert_eq!(response.status, 204);
    assert!(server.join().unwrap().ends_with("{}"));
    assert_eq!(std::fs::read(path_of_file).unwrap(), b"sent");
}

#[test]
fn nobody_at_the_socket_is_an_error_that_names_it() {
    let error = Client::new("/no/such/socket")
        .request(Method::Get, "/", None)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "Cannot connect to the API socket /no/such/socket"
    );
    let long = "x".repeat(200);
    assert!(matches!(
        Client::new(&long).request(Method::Get, "/", None),
        Err(ClientError::Connect { .. })
    ));
}

#[test]
fn a_server_that_hangs_costs_no_more_than_the_patience() {
    let (_dir, path, _listener) = socket();
    let client = Client::new(&path);
    let start = Instant::now();
    let patience = Duration::from_millis(50);
    let error = client
        .request_within(Method::Get, "/", None, patience)
        .unwrap_err();
    assert!(matches!(error, ClientError::Receive { .. }), "{error:?}");
    assert!(start.elapsed() >= patience);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_full_queue_of_clients_is_no_trap() {
    let (_dir, path, listener) = socket();
    rustix::net::listen(&listener, 1).unwrap();
    // Nobody accepts, and the kernel keeps two waiting.
    let mut streams = Vec::new();
    let error = loop {
        let deadline = Instant::now() + Duration::from_millis(50);
        match DeadlineStream::connect(&path, deadline) {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
        assert!(streams.len() < 10);
    };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[test]
fn an_answer_that_drips_in_does_not_extend_the_deadline() {
    let (_dir, path, listener) = socket();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let start = Instant::now();
    assert!(
        Client::new(&path)
            .request_within(Method::Get, "/", None, Duration::from_millis(60))
            .is_err()
    );
    assert!(start.elapsed() < Duration::from_secs(2));
    server.join().unwrap();
}

#[test]
fn a_vmm_that_does_not_answer_is_given_up_after_the_timeout() {
    // Nobody accepts, as with a VMM that was stopped.
    let (_dir, path, _listener) = socket();
    let client = Client::new(&path).with_timeout(Duration::from_millis(50));
    for method in [Method::Get, Method::Put] {
        let start = Instant::now();
        let error = client.request(method, "/a", None).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(matches!(error, ClientError::Receive { .. }), "{error:?}");
    }
}

#[test]
fn a_request_that_takes_long_goes_on_only_while_the_vmm_answers() {
    let (_dir, path, listener) = socket();
    let client = Client {
        probe: Duration::from_millis(50),
        ..Client::new(&path)
    };
    let server = std::thread::spawn(move || {
        let (mut busy, _) = listener.accept().unwrap();
        // It answers two pings while it is busy.
        for _ in 0..2 {
            let (mut ping, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let len = ping.read(&mut request).unwrap();
            assert!(request[..len].starts_with(b"GET /api/v1/vmm.ping "));
            ping.write_all(b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}")
                .unwrap();
        }
        busy.write_all(b"HTTP/1.1 204 \r\n\r\n").unwrap();
        listener
    });
    assert_eq!(client.request(Method::Put, "/a", None).unwrap().status, 204);
    let _listener = server.join().unwrap();
    // From here on nobody answers.
    let start = Instant::now();
    client.request(Method::Put, "/a", None).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(5));
}
