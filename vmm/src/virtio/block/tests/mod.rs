mod images;
mod life;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use virtio_bindings::virtio_blk as bits;
use virtio_queue::desc::split::Descriptor;

use super::image::{Image, ImageFormat, ImageOptions, LockRange, ResizeError};
use super::request::{Kind, Status, parse};
use super::*;
use crate::event::EventSink;
use crate::virtio::testing::{BUFFERS, Buffer, Driver, MEMORY};
use crate::virtio::{Activation, COMMON_FEATURES, VirtioDevice};

const SIZE: u64 = 1 << 20;
const HEADER: u64 = 0;
const STATUS: u64 = 0x100;
const DATA: u64 = 0x1000;
const FLUSH: u64 = 1 << bits::VIRTIO_BLK_F_FLUSH;

/// An image on the host, and a way to look at it behind the device's back.
struct Host {
    file: tempfile::NamedTempFile,
    options: ImageOptions,
}

impl Host {
    fn new() -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let pattern: Vec<u8> = (0..SIZE).map(|at| (at / 512) as u8).collect();
        file.write_all(&pattern).unwrap();
        let options = ImageOptions {
            path: file.path().to_owned(),
            format: ImageFormat::Raw,
            read_only: false,
            direct: false,
            sparse: true,
            backing_files: false,
            lock: LockRange::Bytes,
        };
        Self { file, options }
    }

    fn bytes(&self, at: u64, length: usize) -> Vec<u8> {
        let mut file = File::open(self.file.path()).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        let mut bytes = vec![0; length];
        file.read_exact(&mut bytes).unwrap();
        bytes
    }
}

fn params(host: &Host, io_uring: bool) -> DiskParams {
    DiskParams {
        image: host.options.clone(),
        queues: 1,
        queue_size: 16,
        serial: Some("twenty-one characters".into()),
        limit: None,
        affinity: Vec::new(),
        io_uring,
    }
}

/// A running disk with its driver.
struct Guest {
    block: Block,
    driver: Driver,
    done: usize,
}

impl Guest {
    fn with(params: &DiskParams, features: u64) -> Self {
        let image = Image::open(&params.image).unwrap();
        let events = EventSink::new(|event| panic!("{event:?}"));
        let mut block = Block::new("disk", image, params, None, &events).unwrap();
        let driver = Driver::new(16);
        block
            .activate(Activation {
                features: COMMON_FEATURES | features,
                ..driver.activation()
            })
            .unwrap();
        Self {
            block,
            driver,
            done: 0,
        }
    }

    fn new(host: &Host) -> Self {
        Self::with(&params(host, true), FLUSH)
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&sector.to_le_bytes());
        self.driver.put(HEADER, &header);
    }

    /// Does one request; gives its status and how much was written.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.header(kind, sector);
        self.driver.put(STATUS, &[0xee]);
        let mut chain = vec![Buffer::readable(HEADER, 16)];
        chain.extend_from_slice(data);
        chain.push(Buffer::writable(STATUS, 1));
        self.driver.offer(&chain);
        self.driver.kick();
        let written = self.wait();
        (self.driver.get(STATUS, 1)[0], written)
    }

    fn wait(&mut self) -> u32 {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.driver.used().len() == self.done {
            assert!(Instant::now() < deadline, "the request is lost");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.done += 1;
        self.driver.used()[self.done - 1].1
    }

    fn extents(&self, extents: &[(u64, u32, u32)]) -> Buffer {
        let bytes: Vec<u8> = extents
            .iter()
            .flat_map(|(sector, count, flags)| {
                [
                    sector.to_le_bytes().to_vec(),
                    count.to_le_bytes().to_vec(),
                    flags.to_le_bytes().to_vec(),
                ]
                .concat()
            })
            .collect();
        self.driver.put(DATA, &bytes);
        Buffer::readable(DATA, bytes.len() as u32)
    }
}

const OK: u8 = Status::Ok as u8;
const FAILED: u8 = Status::Failed as u8;
const UNSUPPORTED: u8 = Status::Unsupported as u8;

#[test]
fn reads_and_writes_reach_the_image_with_and_without_a_ring() {
    for (ring, features) in [(true, FLUSH), (false, FLUSH), (true, 0), (false, 0)] {
        let host = Host::new();
        let mut guest = Guest::with(&params(&host, ring), features);
        let read = [
            Buffer::writable(DATA, 1000),
            Buffer::writable(DATA + 2000, 536),
        ];
        assert_eq!(guest.request(bits::VIRTIO_BLK_T_IN, 5, &read), (OK, 1537));
        assert_eq!(guest.driver.get(DATA, 1000), host.bytes(5 * 512, 1000));
        assert_eq!(
            guest.driver.get(DATA + 2000, 536),
            host.bytes(5 * 512 + 1000, 536)
        );
        guest.driver.put(DATA, &[0xaa; 1024]);
        let write = [Buffer::readable(DATA, 1000), Buffer::readable(DATA, 24)];
        assert_eq!(guest.request(bits::VIRTIO_BLK_T_OUT, 9, &write), (OK, 1));
        assert_eq!(guest.request(bits::VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
        assert_eq!(host.bytes(9 * 512, 1024), [0xaa; 1024]);
        assert_eq!(host.bytes(8 * 512, 512), [8; 512]);
        assert_eq!(host.bytes(11 * 512, 512), [11; 512]);
        let counters = guest.block.counters().unwrap().read();
        let figure = |name: &str| counters[name];
        assert_eq!((figure("read_ops"), figure("read_bytes")), (1, 1536));
        assert_eq!((figure("write_ops"), figure("write_bytes")), (1, 1024));
    }
}

#[test]
fn a_disk_past_the_page_cache_takes_any_sector_into_any_buffer() {
    for qcow2_image in [false, true] {
        let mut host = if qcow2_image { qcow2() } else { Host::new() };
        host.options.direct = true;
        if let Err(error) = Image::open(&host.options) {
            // A temporary file in memory, on some kernels.
            assert!(error.to_string().contains("Cannot open"), "{error}");
            continue;
        }
        for ring in [true, false] {
            let mut guest = Guest::with(&params(&host, ring), FLUSH);
            let mut config = [0; 4];
            guest.block.read_config(20, &mut config);
            assert_eq!(u32::from_le_bytes(config), 512);
            for (sector, at) in [(0, DATA), (3, DATA + 8), (SIZE / 512 - 1, DATA + 512)] {
                let value = sector as u8 ^ u8::from(ring) ^ 0x5a;
                guest.driver.put(at, &[value; 512]);
                let write = [Buffer::readable(at, 512)];
                assert_eq!(guest.request(bits::VIRTIO_BLK_T_OUT, sector, &write).0, OK);
                let read = [Buffer::writable(DATA + 0x1001, 512)];
                assert_eq!(guest.request(bits::VIRTIO_BLK_T_IN, sector, &read).0, OK);
                assert_eq!(guest.driver.get(DATA + 0x1001, 512), [value; 512]);
            }
        }
        assert_eq!(host.file.as_file().metadata().unwrap().len() % 512, 0);
    }
}

#[test]
fn the_last_sector_is_reachable_and_nothing_behind_it() {
    let host = Host::new();
    let mut guest = Guest::new(&host);
    let last = SIZE / 512 - 1;
    for (sector, length, status) in [
        (last, 512, OK),
        (last, 1024, FAILED),
        (last + 1, 512, FAILED),
        (u64::MAX, 512, FAILED),
        (u64::MAX / 512, 512, FAILED),
        (0, 513, FAILED),
        (0, 0, FAILED),
    ] {
        let read = [Buffer::writable(DATA, length)];
        let (got, _) = guest.request(bits::VIRTIO_BLK_T_IN, sector, &read);
        assert_eq!(got, status, "{sector} {length}");
    }
}

/// An empty qcow2 image of that size, made by imago.
fn qcow2() -> Host {
    use imago::file::File as Storage;
    use imago::qcow2::Qcow2;
    use imago::{FormatCreateBuilder, Storage as _, StorageOpenOptions};

    let mut host = Host::new();
    host.file.as_file().set_len(0).unwrap();
    let options = StorageOpenOptions::new()
        .filename(host.file.path())
        .write(true);
    Qcow2::<Storage>::create_builder(Storage::open(options).unwrap())
        .size(SIZE)
        .create()
        .unwrap();
    host.options.format = ImageFormat::Qcow2;
    host
}

#[test]
fn a_disk_that_grows_or_shrinks_ends_where_the_driver_is_told() {
    for (host, sizes) in [
        (Host::new(), vec![SIZE / 512 + 4096, 1000, 1001]),
        (qcow2(), vec![SIZE / 512 + 4096, SIZE / 512 + 4097]),
    ] {
        let mut guest = Guest::new(&host);
        let capacity = |guest: &Guest| {
            let mut bytes = [0; 8];
            guest.block.read_config(0, &mut bytes);
            u64::from_le_bytes(bytes)
        };
        guest.driver.put(DATA, &[0xbb; 512]);
        for &sectors in &sizes {
            guest.block.image().change(sectors * 512).unwrap();
            assert_eq!(capacity(&guest), sectors);
            let write = [Buffer::readable(DATA, 512)];
            let mut put = |sector| guest.request(bits::VIRTIO_BLK_T_OUT, sector, &write).0;
            assert_eq!((put(sectors - 1), put(sectors)), (OK, FAILED), "{sectors}");
        }
        drop(guest);
        let last = sizes.last().unwrap() * 512;
        assert_eq!(Image::open(&host.options).unwrap().size(), last);
    }
}

#[test]
fn a_huge_qcow2_image_refuses_to_shrink_at_once_and_grows_within_qemus_limits() {
    use crate::host_file::testing::within_time;

    let image = Image::open(&qcow2().options).unwrap();
    within_time(move || {
        // The largest that tables of 32 MiB can describe.
        let most = 1u64 << 51;
        image.resize(most).unwrap();
        for (size, refused) in [(most + 512, true), (SIZE, true), (most, false)] {
            assert_eq!(image.resize(size).is_err(), refused, "{size}");
        }
    });
}

#[test]
fn a_size_that_is_none_is_refused_and_nothing_changes() {
    let mut host = Host::new();
    let image = Image::open(&host.options).unwrap();
    for size in [0, 511, SIZE + 1] {
        let error = image.resize(size).unwrap_err();
        assert!(matches!(error, ResizeError::Size { .. }), "{size}: {error}");
    }
    assert_eq!(image.size(), SIZE);
    drop(image);
    host.options.read_only = true;
    let error = Image::open(&host.options).unwrap().resize(512).unwrap_err();
    assert!(matches!(error, ResizeError::ReadOnly), "{error}");
}

#[test]
fn read_only_disks_refuse_every_change() {
    let mut host = Host::new();
    host.options.read_only = true;
    let mut guest = Guest::new(&host);
    let write = [Buffer::readable(DATA, 512)];
    assert_eq!(guest.request(bits::VIRTIO_BLK_T_OUT, 1, &write).0, FAILED);
    let extent = guest.extents(&[(1, 1, 0)]);
    for kind in [bits::VIRTIO_BLK_T_DISCARD, bits::VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(guest.request(kind, 0, &[extent]).0, FAILED);
    }
    assert_eq!(guest.request(bits::VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK);
    assert_eq!(host.bytes(512, 512), [1; 512]);
    assert_ne!(guest.block.features() & 1 << bits::VIRTIO_BLK_F_RO, 0);
    assert_eq!(guest.block.features() & 1 << bits::VIRTIO_BLK_F_DISCARD, 0);
}

#[test]
fn ranges_are_discarded_and_zeroed_exactly() {
    let host = Host::new();
    let mut guest = Guest::new(&host);
    let extents = guest.extents(&[(8, 8, 0), (24, 1, 1)]);
    let zeroes = bits::VIRTIO_BLK_T_WRITE_ZEROES;
    assert_eq!(guest.request(zeroes, 0, &[extents]), (OK, 1));
    for sector in 0..32u64 {
        let zero = (8..16).contains(&sector) || sector == 24;
        let expected = if zero { 0 } else { sector as u8 };
        assert_eq!(host.bytes(sector * 512, 512), [expected; 512], "{sector}");
    }
    let extents = guest.extents(&[(64, 64, 0)]);
    assert_eq!(
        guest.request(bits::VIRTIO_BLK_T_DISCARD, 0, &[extents]),
        (OK, 1)
    );
    assert_eq!(host.bytes(63 * 512, 512), [63; 512]);
    assert_eq!(host.bytes(128 * 512, 512), [128; 512]);
    for bad in [
        (SIZE / 512, 1, 0),
        (u64::MAX, 1, 0),
        (0, u32::MAX, 0),
        (0, 1, 2),
    ] {
        let extents = guest.extents(&[bad]);
        assert_eq!(guest.request(zeroes, 0, &[extents]).0, FAILED, "{bad:?}");
    }
}

#[test]
fn the_advertised_limits_of_discards_and_zeroes_hold() {
    let host = Host::new();
    host.file.as_file().set_len(8 << 30).unwrap();
    let mut guest = Guest::new(&host);
    let mut config = [0; 60];
    guest.block.read_config(0, &mut config);
    let field = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    for (kind, sectors, segments) in [
        (bits::VIRTIO_BLK_T_DISCARD, field(36), field(40)),
        (bits::VIRTIO_BLK_T_WRITE_ZEROES, field(48), field(52)),
    ] {
        for (extents, status) in [
            (vec![(0, sectors, 0)], OK),
            (vec![(0, sectors + 1, 0)], FAILED),
            (vec![(0, u32::MAX, 0)], FAILED),
            (vec![(0, 8, 0); segments as usize], OK),
            (vec![(0, 8, 0); segments as usize + 1], FAILED),
        ] {
            let buffer = guest.extents(&extents);
            let got = guest.request(kind, 0, &[buffer]).0;
            assert_eq!(got, status, "{kind} {:?} of {}", extents[0], extents.len());
        }
    }
}

#[test]
fn what_the_host_fails_is_counted_apart_from_what_the_driver_does() {
    let host = qcow2();
    let mut guest = Guest::new(&host);
    let write = [Buffer::readable(DATA, 512)];
    assert_eq!(guest.request(bits::VIRTIO_BLK_T_OUT, 0, &write).0, OK);
    drop(guest);
    let long = |at| u64::from_be_bytes(host.bytes(at, 8).try_into().unwrap());
    let l2 = long(long(40)) & 0x00ff_ffff_ffff_fe00;
    let mut guest = Guest::new(&host);
    // Behind the VMM's back the table becomes nonsense.
    host.file.as_file().seek(SeekFrom::Start(l2)).unwrap();
    host.file.as_file().write_all(&[0x3f; 512]).unwrap();
    let read = [Buffer::writable(DATA, 512)];
    for count in 1..3 {
        assert_eq!(guest.request(bits::VIRTIO_BLK_T_IN, 0, &read).0, FAILED);
        assert_eq!(guest.block.counters().unwrap().read()["io_errors"], count);
        assert_eq!(guest.block.faults().count(), 0);
    }
    let last = SIZE / 512;
    assert_eq!(guest.request(bits::VIRTIO_BLK_T_IN, last, &read).0, FAILED);
    assert_eq!(guest.block.counters().unwrap().read()["io_errors"], 2);
    assert_eq!(guest.block.faults().count(), 1);
}

#[test]
fn the_serial_number_is_cut_to_its_field() {
    let host = Host::new();
    let mut guest = Guest::new(&host);
    let id = bits::VIRTIO_BLK_T_GET_ID;
    assert_eq!(
        guest.request(id, 0, &[Buffer::writable(DATA, 20)]),
        (OK, 21)
    );
    assert_eq!(guest.driver.get(DATA, 20), b"twenty-one character");
    assert_eq!(
        guest.request(id, 0, &[Buffer::writable(DATA, 19)]).0,
        FAILED
    );
}

#[test]
fn unknown_requests_are_unsupported_and_misplaced_ones_fail() {
    let host = Host::new();
    let mut guest = Guest::new(&host);
    assert_eq!(guest.request(99, 0, &[]).0, UNSUPPORTED);
    let outside = [Buffer::writable(MEMORY - BUFFERS, 512)];
    assert_eq!(guest.request(bits::VIRTIO_BLK_T_IN, 0, &outside).0, FAILED);
    // Without room for a status the chain comes back empty.
    guest.driver.offer(&[Buffer::readable(HEADER, 16)]);
    guest.driver.kick();
    assert_eq!(guest.wait(), 0);
}

#[test]
fn header_data_and_status_may_be_cut_anywhere() {
    let host = Host::new();
    let mut guest = Guest::new(&host);
    guest.header(bits::VIRTIO_BLK_T_IN, 3);
    guest.driver.offer(&[
        Buffer::readable(HEADER, 5),
        Buffer::readable(HEADER + 5, 11),
        Buffer::writable(DATA, 100),
        Buffer::writable(DATA + 100, 413),
    ]);
    guest.driver.kick();
    assert_eq!(guest.wait(), 513);
    assert_eq!(
        guest.driver.get(DATA, 513),
        [[3; 512].as_slice(), &[OK]].concat()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn whatever_the_descriptors_say_parsing_ends_within_the_limits(
        descriptors in prop::collection::vec(
            (prop_oneof![0..MEMORY + 100, any::<u64>()], prop_oneof![0u32..2000, any::<u32>()], any::<u16>(), 0u16..10),
            8,
        ),
        header in prop::collection::vec(0u8..16, 64),
    ) {
        let mut driver = Driver::new(8);
        driver.memory();
        driver.put(0, &header);
        for (index, &(address, length, flags, next)) in descriptors.iter().enumerate() {
            driver.describe(index as u16, Descriptor::new(address, length, flags, next));
        }
        driver.offer_head(0);
        let mut queue = driver.queue();
        let memory = Arc::clone(driver.memory());
        if let Ok(Some(chain)) = queue.pop()
            && let Ok(request) = parse(&chain, &memory)
            && let Kind::Read { length, .. } | Kind::Write { length, .. } = request.kind
        {
            prop_assert!(length > 0 && length % SECTOR == 0 && length <= 256 << 20);
        }
    }
}
