use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::*;

fn opened(target: &ConsoleTarget) -> CharBackend {
    CharBackend::open(target).unwrap()
}

#[test]
fn a_file_is_made_anew_and_shared_by_clones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    std::fs::write(&path, "old").unwrap();
    let mut end = opened(&ConsoleTarget::File(path.clone()));
    assert!(!end.has_input());
    end.write_all(b"one ").unwrap();
    end.clone().send(b"two");
    assert_eq!(std::fs::read(&path).unwrap(), b"one two");
}

#[test]
fn a_file_that_cannot_be_made_is_an_error() {
    assert!(CharBackend::open(&ConsoleTarget::File("/no/such/dir/f".into())).is_err());
}

#[test]
fn a_named_pipe_takes_a_reader_to_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, Mode::RWXU, 0).unwrap();
    let target = ConsoleTarget::File(path.clone());
    assert!(CharBackend::open(&target).is_err());
    let mut reader = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(&path)
        .unwrap();
    opened(&target).write_all(b"word").unwrap();
    let mut bytes = [0; 4];
    reader.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"word");
}

#[test]
fn a_pseudo_terminal_carries_both_directions_and_never_holds_the_guest_up() {
    let mut end = opened(&ConsoleTarget::PseudoTerminal);
    let path = end.pseudo_terminal_path().unwrap().to_owned();
    end.write_all(b"prompt\n").unwrap();
    let mut program = File::options().read(true).write(true).open(path).unwrap();
    let mut bytes = [0; 7];
    program.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"prompt\n");
    program.write_all(b"x\r").unwrap();
    let mut typed = [0; 2];
    (&*end.input().unwrap()).read_exact(&mut typed).unwrap();
    assert_eq!(&typed, b"x\r");

    let started = Instant::now();
    for _ in 0..50 {
        end.write_all(&[b'x'; 4096]).unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[test]
fn who_connects_last_has_the_console() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let mut end = opened(&ConsoleTarget::Socket(path.clone()));
    let mut first = UnixStream::connect(&path).unwrap();
    assert!(end.accept());
    assert!(!end.accept());
    let mut second = UnixStream::connect(&path).unwrap();
    assert!(end.accept());
    end.write_all(b"2").unwrap();
    let mut byte = [0];
    second.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"2");
    assert_eq!(first.read(&mut byte).unwrap(), 0);
    end.end_input();
    assert_eq!(second.read(&mut byte).unwrap(), 0);
    drop(end);
    assert!(!path.exists());
}

#[test]
fn a_socket_is_replaced_only_if_nobody_serves_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let target = ConsoleTarget::Socket(path.clone());
    let listener = UnixListener::bind(&path).unwrap();
    assert!(CharBackend::open(&target).is_err());
    drop(listener);
    let _end = opened(&target);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    assert!(CharBackend::open(&target).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_full_pipe_that_others_write_to_as_well_is_not_waited_for() {
    let (reader, writer) = io::pipe().unwrap();
    let output = without_waiting(writer.as_fd()).unwrap();
    let start = Instant::now();
    CharBackend::new(None, Some(output.into()), Shared::default()).send(&vec![7; 1 << 20]);
    assert!(start.elapsed() < Duration::from_secs(2));
    // The others' descriptor is as it was.
    assert!(!fcntl_getfl(&writer).unwrap().contains(OFlags::NONBLOCK));
    drop(reader);
}

#[test]
fn a_slow_reader_holds_one_write_up_for_a_second_and_nobody_else() {
    let (mut reader, writer) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    let output: OwnedFd = writer.into();
    let end = CharBackend::new(None, Some(output.into()), Shared::default());
    let other = end.clone();
    let thread = std::thread::spawn(move || {
        let start = Instant::now();
        other.send(&vec![7; 64 << 20]);
        start.elapsed()
    });
    let mut bytes = vec![0; 32 << 10];
    while !thread.is_finished() {
        std::thread::sleep(Duration::from_millis(20));
        let start = Instant::now();
        assert!(end.input().is_none());
        assert!(start.elapsed() < Duration::from_millis(500));
        assert!(reader.read(&mut bytes).is_ok());
    }
    assert!(thread.join().unwrap() < Duration::from_secs(10));
}

#[test]
fn a_socket_keeps_the_last_mib_for_who_connects_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let mut end = opened(&ConsoleTarget::Socket(path.clone()));
    let said: Vec<u8> = (0..BACKLOG + 5000).map(|at| (at % 251) as u8).collect();
    for part in said.chunks(777) {
        end.write_all(part).unwrap();
    }
    let read_all = |mut stream: UnixStream| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            bytes
        })
    };
    let reader = read_all(UnixStream::connect(&path).unwrap());
    assert!(end.accept());
    end.write_all(b"after").unwrap();
    end.end_input();
    let heard = reader.join().unwrap();
    assert_eq!(heard.len(), BACKLOG + 5);
    assert!(heard[..BACKLOG] == said[5000..] && heard[BACKLOG..] == *b"after");

    // Also between two clients, and never twice.
    end.write_all(&vec![b'x'; 2 * BACKLOG]).unwrap();
    end.write_all(b"last").unwrap();
    let reader = read_all(UnixStream::connect(&path).unwrap());
    assert!(end.accept());
    end.end_input();
    let heard = reader.join().unwrap();
    assert_eq!(heard.len(), BACKLOG);
    assert!(heard.ends_with(b"xlast"));
}

#[test]
fn a_client_that_reads_nothing_holds_the_guest_up_for_a_moment_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let mut end = opened(&ConsoleTarget::Socket(path.clone()));
    end.write_all(&vec![b'x'; BACKLOG]).unwrap();
    let _client = UnixStream::connect(&path).unwrap();
    let started = Instant::now();
    assert!(end.accept());
    end.write_all(b"more").unwrap();
    assert!(started.elapsed() < 2 * WRITE_TOTAL);
}

#[test]
fn the_terminals_output_alone_has_no_input() {
    let end = opened(&ConsoleTarget::TerminalOutput);
    assert!(!end.has_input() && !end.is_terminal() && end.size().is_none());
}
