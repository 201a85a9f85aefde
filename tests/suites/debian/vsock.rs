//! Sockets between guest and host, both ways.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

use super::guest::{Guest, STEP_TIMEOUT, Spec};
use crate::site::Site;

/// Bytes that go over a connection.
const BYTES: usize = 4 << 20;

/// A guest with the device; the socket of the host's side.
fn with_socket(site: &Site) -> Result<(Guest, PathBuf)> {
    let socket = site.fresh_dir()?.join("vsock");
    let device = format!("cid=3,socket={}", socket.display());
    let guest = Guest::boot(site, &Spec::shell().with(&["--vsock", &device]))?;
    Ok((guest, socket))
}

/// Connects to a port of the guest's by the `CONNECT` protocol.
fn connect(socket: &Path, port: u32) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("Cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(STEP_TIMEOUT))?;
    stream.set_write_timeout(Some(STEP_TIMEOUT))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut answer = String::new();
    // Byte by byte: what follows the line is the guest's.
    let mut byte = [0];
    while !answer.ends_with('\n') {
        ensure!(
            stream.read(&mut byte)? == 1,
            "Port {port} refuses: {answer:?}"
        );
        answer.push(char::from(byte[0]));
    }
    ensure!(answer.starts_with("OK "), "The answer is {answer:?}");
    Ok(stream)
}

fn pattern() -> Vec<u8> {
    (0..BYTES as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// Sends the pattern and reads it back from whoever echoes it.
fn echoed(stream: UnixStream) -> Result<()> {
    let mut writer = stream.try_clone()?;
    let sender = thread::spawn(move || -> Result<()> {
        writer.write_all(&pattern())?;
        writer.shutdown(std::net::Shutdown::Write)?;
        Ok(())
    });
    let mut received = Vec::new();
    BufReader::new(stream).read_to_end(&mut received)?;
    sender
        .join()
        .map_err(|_| anyhow!("The sender panicked"))??;
    ensure!(
        received == pattern(),
        "{} of {BYTES} bytes came back, or others",
        received.len()
    );
    Ok(())
}

/// Reaches a port of the guest's that echoes.
pub fn echo(socket: &Path, port: u32) -> Result<()> {
    echoed(connect(socket, port)?)
}

pub fn host_reaches_a_port_of_the_guest(site: &Site) -> Result<()> {
    let (mut guest, socket) = with_socket(site)?;
    ensure!(
        connect(&socket, 5000).is_err(),
        "A port was reached on which nobody listens"
    );
    guest.run("socat VSOCK-LISTEN:5000,fork EXEC:cat & sleep 1")?;
    echo(&socket, 5000)?;
    // Two at once on one port.
    let [first, second] = [(); 2].map(|()| connect(&socket, 5000));
    let (first, second) = (first?, second?);
    let other = thread::spawn(move || echoed(first));
    echoed(second)?;
    other.join().map_err(|_| anyhow!("An echo panicked"))??;
    guest.hold_accounts().map(drop)
}

pub fn guest_reaches_a_port_of_the_host(site: &Site) -> Result<()> {
    let (mut guest, socket) = with_socket(site)?;
    let port = socket.with_file_name("vsock_6000");
    let listener = UnixListener::bind(&port)
        .with_context(|| format!("Cannot listen on {}", port.display()))?;
    let server = thread::spawn(move || -> Result<String> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(STEP_TIMEOUT))?;
        let mut line = String::new();
        BufReader::new(stream.try_clone()?).read_line(&mut line)?;
        stream.write_all(b"from the host\n")?;
        Ok(line)
    });
    let answer = guest.run_within(
        "echo from the guest | socat - VSOCK-CONNECT:2:6000",
        STEP_TIMEOUT,
    )?;
    let asked = server
        .join()
        .map_err(|_| anyhow!("The server panicked"))??;
    ensure!(
        asked == "from the guest\n" && answer == "from the host",
        "The host got {asked:?}, the guest {answer:?}"
    );
    let refused = guest.begin("socat - VSOCK-CONNECT:2:6001 </dev/null")?;
    let (_, status) = guest.end(&refused, STEP_TIMEOUT)?;
    ensure!(status != 0, "A port was reached on which nobody listens");
    guest.hold_accounts().map(drop)
}
