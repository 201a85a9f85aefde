//! What may be a disk's image, and what a guest may not make of it.

use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;

use virtio_bindings::virtio_blk as bits;

use super::{DATA, FAILED, Guest, Host, OK, SIZE};
use crate::virtio::block::image::{Image, ImageError, ImageFormat, ImageOptions};
use crate::virtio::testing::{BUFFERS, Buffer};

#[test]
fn a_detected_raw_image_cannot_become_another_format() {
    for (magic, place) in [("QFI\u{fb}", 0), ("conectix", SIZE / 512 - 1)] {
        for (format, status) in [(ImageFormat::Detect, FAILED), (ImageFormat::Raw, OK)] {
            let mut host = Host::new();
            host.options.format = format;
            let mut guest = Guest::new(&host);
            // Its characters are its bytes.
            let bytes: Vec<u8> = magic.chars().map(|byte| byte as u8).collect();
            guest.driver.put(DATA, &bytes);
            let write = [Buffer::readable(DATA, 512)];
            let mut put = |sector| guest.request(bits::VIRTIO_BLK_T_OUT, sector, &write).0;
            assert_eq!((put(1), put(place)), (OK, status), "{magic} {format:?}");
            let long = [Buffer::readable(DATA + 512, 512), write[0]];
            let put = guest.request(bits::VIRTIO_BLK_T_OUT, place.saturating_sub(1), &long);
            let expected = if place == 0 { OK } else { status };
            assert_eq!(put.0, expected, "{magic} {format:?}");
        }
    }
}

#[test]
fn what_is_checked_is_what_is_written_however_fast_the_guest_is() {
    let mut host = Host::new();
    host.options.format = ImageFormat::Detect;
    let mut guest = Guest::new(&host);
    let memory = Arc::clone(guest.driver.memory());
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let flips = std::thread::spawn(move || {
        use vm_memory::{Bytes, GuestAddress};
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            for word in [*b"QFI\xfb", *b"good"] {
                memory
                    .write_obj(word, GuestAddress(BUFFERS + DATA))
                    .unwrap();
            }
        }
    });
    for _ in 0..2000 {
        guest.request(bits::VIRTIO_BLK_T_OUT, 0, &[Buffer::readable(DATA, 512)]);
        assert_ne!(host.bytes(0, 4), b"QFI\xfb");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    flips.join().unwrap();
}

#[test]
fn files_that_can_be_no_disk_are_refused_at_once() {
    use crate::host_file::testing::{fifo, within_time};

    let (folder, pipe) = fifo();
    let small = folder.path().join("small");
    std::fs::write(&small, [0; 511]).unwrap();
    let listener = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&listener).unwrap();
    for path in [
        pipe,
        small.clone(),
        listener,
        folder.path().to_owned(),
        "/dev/null".into(),
        "/dev/zero".into(),
    ] {
        for read_only in [false, true] {
            let options = ImageOptions {
                path: path.clone(),
                format: ImageFormat::Detect,
                read_only,
                ..Host::new().options
            };
            let error = within_time(move || Image::open(&options).map(drop).unwrap_err());
            let expected = path == small;
            assert_eq!(
                matches!(error, ImageError::Empty { .. }),
                expected,
                "{error}"
            );
            assert_eq!(matches!(error, ImageError::Open(..)), !expected, "{error}");
        }
    }
}

#[test]
fn a_last_part_of_a_sector_is_not_shown() {
    let host = Host::new();
    host.file.as_file().set_len(SIZE + 100).unwrap();
    let mut guest = Guest::new(&host);
    let read = [Buffer::writable(DATA, 512)];
    let mut get = |sector| guest.request(bits::VIRTIO_BLK_T_IN, sector, &read).0;
    assert_eq!((get(SIZE / 512 - 1), get(SIZE / 512)), (OK, FAILED));
}

#[test]
fn an_image_has_one_writer() {
    let mut host = Host::new();
    let first = Image::open(&host.options).unwrap();
    assert!(matches!(
        Image::open(&host.options),
        Err(ImageError::Locked(..))
    ));
    drop(first);
    host.options.read_only = true;
    let (_first, _second) = (
        Image::open(&host.options).unwrap(),
        Image::open(&host.options).unwrap(),
    );
}

#[test]
fn formats_are_told_apart_and_unsupported_ones_refused() {
    let mut host = Host::new();
    host.options.format = ImageFormat::Detect;
    for (magic, fails) in [
        (b"conectix", true),
        (b"vhdxfile", true),
        (b"whatever", false),
    ] {
        let file = host.file.as_file_mut();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(magic).unwrap();
        let image = Image::open(&host.options);
        assert_eq!(matches!(image, Err(ImageError::Format { .. })), fails);
    }
    // What the client says has to be true.
    host.options.format = ImageFormat::Raw;
    assert!(Image::open(&host.options).is_ok());
    host.file.as_file_mut().seek(SeekFrom::Start(0)).unwrap();
    host.file.write_all(b"QFI\xfb").unwrap();
    let image = Image::open(&host.options);
    assert!(matches!(image, Err(ImageError::OtherFormat { .. })));
    host.options.format = ImageFormat::Detect;
    // Begins like a qcow2 image and is none.
    host.file.as_file_mut().seek(SeekFrom::Start(0)).unwrap();
    host.file.write_all(b"QFI\xfb").unwrap();
    assert!(matches!(
        Image::open(&host.options),
        Err(ImageError::Qcow2(..))
    ));
}
