//! Images are made by the library or by hand, byte by byte as the format's
//! description says, and read through [`Image`] as a disk would.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use imago::file::File as Storage;
use imago::{FormatCreateBuilder, Storage as _};
use vm_memory::GuestAddress;

use super::*;
use crate::memory::plain;
use crate::virtio::block::image::{Image, ImageFormat, LockRange};

const CLUSTER: u64 = 64 << 10;
const SIZE: u64 = 8 << 20;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn options(&self, name: &str) -> ImageOptions {
        ImageOptions {
            path: self.0.path().join(name),
            format: ImageFormat::Qcow2,
            read_only: false,
            direct: false,
            sparse: true,
            backing_files: true,
            lock: LockRange::Bytes,
        }
    }

    /// An image with some data in it.
    fn create(&self, name: &str, backing: Option<&str>) -> ImageOptions {
        let options = self.options(name);
        std::fs::write(&options.path, "").unwrap();
        let storage = StorageOpenOptions::new()
            .filename(&options.path)
            .write(true);
        let mut builder = Qcow2::<Storage>::create_builder(Storage::open(storage).unwrap());
        if let Some(backing) = backing {
            builder = builder.backing(backing.to_owned(), "qcow2".to_owned());
        }
        builder.size(SIZE).create().unwrap();
        options
    }

    fn filled(&self, name: &str) -> ImageOptions {
        let options = self.create(name, None);
        let image = Image::open(&options).unwrap();
        for at in [0, 3 * CLUSTER, 70 * CLUSTER + 512] {
            transfer(&image, at, 7, true).unwrap();
        }
        image.flush().unwrap();
        options
    }
}

/// Writes sectors of a value, or reads one and gives its first byte.
fn transfer(image: &Image, at: u64, value: u8, write: bool) -> io::Result<u8> {
    let memory = Arc::new(plain(2 << 20));
    let buffers = GuestBuffers::new(&memory, &[(GuestAddress(4096), 1024)]).unwrap();
    buffers.copy_from(&[value; 1024]);
    if write {
        image.write(&buffers, at)?;
    } else {
        image.read(&buffers, at)?;
    }
    let mut bytes = [0; 1024];
    buffers.copy_to(&mut bytes);
    Ok(bytes[0])
}

fn spoil(options: &ImageOptions, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(&options.path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

fn refusal(options: &ImageOptions) -> String {
    let mut text = Vec::new();
    let error = Image::open(options).map(drop).unwrap_err();
    let mut next: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = next {
        text.push(error.to_string());
        next = error.source();
    }
    text.join(": ")
}

#[test]
fn an_image_that_backs_itself_is_refused_and_its_chain_named() {
    let folder = Folder::new();
    let own = folder.create("self.qcow2", Some("self.qcow2"));
    let text = refusal(&own);
    assert!(
        text.contains("lead back") && text.contains(" -> "),
        "{text}"
    );
    let first = folder.create("first", Some("second"));
    folder.create("second", Some("first"));
    let text = refusal(&first);
    for name in ["first", "second"] {
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn ten_backing_files_are_followed_and_no_more() {
    let folder = Folder::new();
    folder.filled("0");
    for level in 1..=11 {
        let below = (level - 1).to_string();
        folder.create(&level.to_string(), Some(&below));
    }
    let ten = Image::open(&folder.options("10")).unwrap();
    assert_eq!(transfer(&ten, 3 * CLUSTER, 0, false).unwrap(), 7);
    transfer(&ten, 3 * CLUSTER, 9, true).unwrap();
    assert_eq!(transfer(&ten, 3 * CLUSTER, 0, false).unwrap(), 9);
    drop(ten);
    let text = refusal(&folder.options("11"));
    assert!(text.contains("more than 10"), "{text}");
    let off = ImageOptions {
        backing_files: false,
        ..folder.options("1")
    };
    assert!(refusal(&off).contains("backing_files is off"));
}

#[test]
fn a_backing_file_may_be_raw_and_is_never_written_or_waited_for() {
    use crate::host_file::testing::within_time;

    let folder = Folder::new();
    let raw = folder.0.path().join("raw");
    std::fs::write(&raw, vec![5; SIZE as usize]).unwrap();
    let top = folder.options("top");
    std::fs::write(&top.path, "").unwrap();
    let storage = StorageOpenOptions::new().filename(&top.path).write(true);
    Qcow2::<Storage>::create_builder(Storage::open(storage).unwrap())
        .backing("raw".into(), "raw".into())
        .size(SIZE)
        .create()
        .unwrap();
    let image = Image::open(&top).unwrap();
    transfer(&image, 512, 6, true).unwrap();
    for (at, value) in [(0, 5), (512, 6), (SIZE - 1024, 5)] {
        assert_eq!(transfer(&image, at, 0, false).unwrap(), value, "{at}");
    }
    drop(image);
    assert!(std::fs::read(&raw).unwrap().iter().all(|byte| *byte == 5));
    std::fs::remove_file(&raw).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &raw, 0o600.into()).unwrap();
    let text = within_time(move || refusal(&top));
    assert!(text.contains("it is a FIFO"), "{text}");
}

#[test]
fn what_would_be_misread_is_refused_by_name() {
    let folder = Folder::new();
    let word = |value: u32| value.to_be_bytes().to_vec();
    let long = |value: u64| value.to_be_bytes().to_vec();
    for (at, bytes, expected) in [
        (4, word(4), "version is 4"),
        (20, word(8), "cluster_bits"),
        (20, word(22), "cluster_bits"),
        (24, long(1 << 63), "2^63"),
        (24, long(SIZE + 1), "multiple of 512"),
        (24, long(1 << 62), "L1 table is larger"),
        (24, long(1 << 43), "and its size takes 16384"),
        (32, word(1), "encrypted"),
        (32, word(2), "encrypted"),
        (36, word(u32::MAX), "L1 table is larger"),
        (40, long(CLUSTER + 8), "L1 table is not where"),
        (40, long(1 << 40), "L1 table lies beyond"),
        (48, long(0), "refcount table is not where"),
        (48, long(1 << 40), "refcount table lies beyond"),
        (56, word(0), "refcount table is not where"),
        (56, word(u32::MAX), "refcount table is larger"),
        (72, long(1), "qemu-img check -r all"),
        (72, long(2), "qemu-img check -r all"),
        (72, long(4), "external data file"),
        (72, long(16), "extended L2"),
        (72, long(1 << 40), "feature 40"),
        (96, word(7), "refcount_order"),
        (100, word(8), "header_length"),
    ] {
        let options = folder.filled("image");
        spoil(&options, at, &bytes);
        let text = refusal(&options);
        assert!(text.contains(expected), "{at} {expected}: {text}");
    }
}

#[test]
fn dirty_and_corrupt_images_can_be_read() {
    let folder = Folder::new();
    for feature in [1u64, 2] {
        let mut options = folder.filled("image");
        spoil(&options, 72, &feature.to_be_bytes());
        options.read_only = true;
        let image = Image::open(&options).unwrap();
        assert_eq!(transfer(&image, 3 * CLUSTER, 0, false).unwrap(), 7);
        assert!(image.write_zeroes(0, 512, false).is_err());
        drop(image);
        let bytes = std::fs::read(&options.path).unwrap();
        assert_eq!(bytes[72..80], feature.to_be_bytes());
    }
}

#[test]
fn a_truncated_image_is_refused() {
    let folder = Folder::new();
    let whole = std::fs::metadata(folder.filled("image").path)
        .unwrap()
        .len();
    for length in [0, 3, 60, CLUSTER, whole - 2 * CLUSTER] {
        let options = folder.filled("image");
        let file = File::options().write(true).open(&options.path).unwrap();
        file.set_len(length).unwrap();
        assert!(Image::open(&options).is_err(), "{length} of {whole}");
    }
}

#[test]
fn tables_that_do_not_cover_what_is_used_are_refused() {
    let folder = Folder::new();
    let options = folder.filled("image");
    let bytes = std::fs::read(&options.path).unwrap();
    let long = |at: u64| {
        let mut long = [0; 8];
        long.copy_from_slice(&bytes[at as usize..][..8]);
        u64::from_be_bytes(long)
    };
    let (refcount_table, l1) = (long(48), long(40));
    let block = long(refcount_table);
    let l2 = long(l1) & 0x00ff_ffff_ffff_fe00;
    let data = long(l2) & 0x00ff_ffff_ffff_fe00;
    for (at, value, expected) in [
        (refcount_table, vec![0; 8], "not counted"),
        (block, vec![0; 2], "not counted"),
        (block + 2 * data / CLUSTER, vec![0; 2], "not counted"),
        (refcount_table, vec![0x7f; 8], "refcount block"),
        (l1, l1.to_be_bytes().to_vec(), "used twice"),
        (l2, l1.to_be_bytes().to_vec(), "used twice"),
        (l2 + 8, data.to_be_bytes().to_vec(), "used twice"),
        (l2 + 8, (data + 512).to_be_bytes().to_vec(), "not where"),
        (l2 + 8, (1u64 << 50).to_be_bytes().to_vec(), "beyond"),
        (l1, (1u64 << 50).to_be_bytes().to_vec(), "beyond"),
    ] {
        std::fs::write(&options.path, &bytes).unwrap();
        spoil(&options, at, &value);
        let text = refusal(&options);
        assert!(text.contains(expected), "{at} {expected}: {text}");
    }
    std::fs::write(&options.path, &bytes).unwrap();
    assert!(Image::open(&options).is_ok());
}

/// A sequence of numbers that is the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Opens each of many damaged images and uses it as a guest would, on a thread
/// with as much stack as a disk's. Any error will do; the process and the
/// thread have to survive.
#[test]
fn no_damage_to_an_image_reaches_beyond_its_disk() {
    let mutants: u64 = std::env::var("QCOW2_MUTANTS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(300);
    let folder = Folder::new();
    let whole = std::fs::read(folder.filled("image").path).unwrap();
    let options = folder.options("mutant");
    // Where header and tables are.
    let tables: Vec<u64> = whole
        .chunks(8)
        .enumerate()
        .filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0 && *byte != 7))
        .map(|(index, _)| index as u64 * 8)
        .collect();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let (mut opened, mut failed) = (0, 0);
    for mutant in 0..mutants {
        let mut bytes = whole.clone();
        for _ in 0..=numbers.below(3) {
            let at = tables[numbers.below(tables.len() as u64) as usize] as usize;
            match numbers.below(4) {
                0 => bytes[at..at + 8].fill(0),
                1 => bytes[at + numbers.below(8) as usize] ^= 1 << numbers.below(8),
                2 => bytes[at + 5] = numbers.below(16) as u8,
                _ => bytes[at..at + 8].copy_from_slice(&numbers.below(u64::MAX).to_be_bytes()),
            }
        }
        std::fs::write(&options.path, &bytes).unwrap();
        let mut options = options.clone();
        // Unchecked tables reach the library only so.
        options.read_only = mutant % 4 == 3;
        let thread = std::thread::Builder::new()
            .stack_size(512 << 10)
            .spawn(move || {
                let Ok(image) = Image::open(&options) else {
                    return None;
                };
                let size = image.size();
                let mut errors = 0;
                for step in 0..24 {
                    let at = (step * 11 * CLUSTER + step * 512) % (size - 1024).max(1) / 512 * 512;
                    let result = match step % 6 {
                        0 | 3 => transfer(&image, at, 3, true).map(drop),
                        1 | 4 => transfer(&image, at, 3, false).map(drop),
                        2 => image.write_zeroes(at, 1024, true),
                        _ => image.discard(at, 1024),
                    };
                    errors += u32::from(result.is_err());
                }
                let _ = image.flush();
                Some(errors)
            })
            .unwrap();
        let started = std::time::Instant::now();
        match thread.join().unwrap_or_else(|_| panic!("mutant {mutant}")) {
            None => {}
            Some(errors) => {
                opened += 1;
                failed += u32::from(errors > 0);
            }
        }
        assert!(
            started.elapsed().as_secs() < 20,
            "mutant {mutant} takes too long"
        );
    }
    println!("{mutants} mutants, {opened} opened, {failed} of these with errors");
    // Otherwise nothing was tried.
    assert!(opened > 0 && opened < mutants);
}

/// Several queues, a backing file, discards, zeroes and flushes at the same
/// time: what is read is what was written, and the tables are right at the end,
/// by our own check and by `qemu-img check`, where that is installed or has to be.
#[test]
fn an_image_is_intact_after_a_load_of_several_queues() {
    const QUEUES: u64 = 4;
    let folder = Folder::new();
    folder.filled("base");
    let top = folder.create("top", Some("base"));
    let opened = Image::open(&top).unwrap();
    let size = opened.size();
    let image = &opened;
    std::thread::scope(|scope| {
        for queue in 0..QUEUES {
            scope.spawn(move || {
                let mut numbers = Numbers(0x1234_5678 + queue);
                // Each queue has every fourth unit of 1 KiB to itself, so that
                // they share clusters and tables.
                let units = size / 1024 / QUEUES;
                let mut known = vec![None; units as usize];
                for _ in 0..1500 {
                    let unit = numbers.below(units);
                    let at = (unit * QUEUES + queue) * 1024;
                    let state = &mut known[unit as usize];
                    match numbers.below(8) {
                        0..=2 => {
                            let value = numbers.below(255) as u8 + 1;
                            transfer(image, at, value, true).unwrap();
                            *state = Some(value);
                        }
                        3 => {
                            image.write_zeroes(at, 1024, true).unwrap();
                            *state = Some(0);
                        }
                        4 => {
                            image.discard(at, 1024).unwrap();
                            *state = None;
                        }
                        5 if numbers.below(8) == 0 => image.flush().unwrap(),
                        _ => {
                            let value = transfer(image, at, 0, false).unwrap();
                            assert!(state.is_none_or(|state| state == value), "{at:#x}");
                        }
                    }
                }
            });
        }
    });
    // Whole clusters too, which gives space back.
    for cluster in (0..size / CLUSTER).step_by(3) {
        image.discard(cluster * CLUSTER, CLUSTER).unwrap();
    }
    image.flush().unwrap();
    drop(opened);
    let file = File::open(&top.path).unwrap();
    let header = Header::read(&file, true).unwrap();
    let length = file.metadata().unwrap().len();
    tables::check(&file, &header, length).unwrap();
    let check = std::process::Command::new("qemu-img")
        .arg("check")
        .arg(&top.path)
        .output();
    match check {
        Ok(output) => {
            let texts = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
            assert!(output.status.success(), "{texts:?}");
        }
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                && std::env::var_os("REQUIRE_QEMU_IMG").is_none() => {}
        Err(error) => panic!("qemu-img: {error}"),
    }
}
