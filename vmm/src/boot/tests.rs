use std::io::Write;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::layout::{HIGH_RAM_START, PVH_INFO_START, ZERO_PAGE_START};
use crate::memory::plain;

const RSDP: u64 = 0xe_0000;

fn ram(mib: u64) -> GuestRam {
    plain(mib << 20)
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn payload(kernel: &Path) -> Payload {
    Payload {
        kernel: kernel.to_owned(),
        firmware: false,
        initramfs: None,
        cmdline: "console=ttyS0".into(),
    }
}

/// The smallest image with a header that the loader takes.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 0x400 + 0x1000];
    image[0x1f1] = 1; // setup_sects
    image[0x1fe..0x200].copy_from_slice(&0xaa55u16.to_le_bytes());
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x211] = 1; // loadflags: loaded high
    image[0x214..0x218].copy_from_slice(&(HIGH_RAM_START as u32).to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    image[0x236..0x238].copy_from_slice(&1u16.to_le_bytes()); // xloadflags
    image[0x238..0x23c].copy_from_slice(&255u32.to_le_bytes()); // cmdline_size
    image[0x258..0x260].copy_from_slice(&HIGH_RAM_START.to_le_bytes()); // pref_address
    image[0x260..0x264].copy_from_slice(&0x10_0000u32.to_le_bytes()); // init_size
    image
}

/// An ELF image of one segment with a PVH note.
fn elf() -> Vec<u8> {
    let mut image = vec![0; 0x1000];
    image[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    image[0x18..0x20].copy_from_slice(&HIGH_RAM_START.to_le_bytes()); // e_entry
    image[0x20..0x28].copy_from_slice(&64u64.to_le_bytes()); // e_phoff
    image[0x36..0x38].copy_from_slice(&56u16.to_le_bytes()); // e_phentsize
    image[0x38..0x3a].copy_from_slice(&2u16.to_le_bytes()); // e_phnum
    let mut header = |index: usize, kind: u32, offset: u64, size: u64| {
        let at = 64 + index * 56;
        image[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        image[at + 8..at + 16].copy_from_slice(&offset.to_le_bytes());
        image[at + 24..at + 32].copy_from_slice(&HIGH_RAM_START.to_le_bytes());
        image[at + 32..at + 40].copy_from_slice(&size.to_le_bytes());
        image[at + 40..at + 48].copy_from_slice(&size.to_le_bytes());
    };
    header(0, 1, 0x200, 0x100);
    header(1, 4, 0x400, 24);
    image[0x400..0x404].copy_from_slice(&4u32.to_le_bytes());
    image[0x404..0x408].copy_from_slice(&4u32.to_le_bytes());
    image[0x408..0x40c].copy_from_slice(&18u32.to_le_bytes());
    image[0x40c..0x410].copy_from_slice(b"Xen\0");
    image[0x410..0x414].copy_from_slice(&(HIGH_RAM_START as u32 + 0x40).to_le_bytes());
    image
}

/// Loads all of a payload.
fn load(ram: &GuestRam, payload: &Payload, rsdp: u64) -> Result<Entry, BootError> {
    let kernel = load_kernel(ram, payload)?;
    load_rest(ram, payload, &kernel, rsdp)
}

#[test]
fn a_bzimage_is_entered_in_64_bit_mode_with_its_zero_page() {
    let (ram, kernel, initramfs) = (ram(64), file(&bzimage()), file(&[7; 5000]));
    let mut payload = payload(kernel.path());
    payload.initramfs = Some(initramfs.path().to_owned());
    let entry = load(&ram, &payload, RSDP).unwrap();
    assert_eq!(
        entry,
        Entry::Linux64 {
            address: HIGH_RAM_START + 0x200
        }
    );
    let at = |offset: u64| GuestAddress(ZERO_PAGE_START + offset);
    assert_eq!(ram.read_obj::<u64>(at(0x70)).unwrap(), RSDP);
    assert_eq!(ram.read_obj::<u32>(at(0x202)).unwrap(), 0x5372_6448);
    assert_eq!(ram.read_obj::<u32>(at(0x21c)).unwrap(), 5000);
    let cmdline_size = ram.read_obj::<u32>(at(0x238)).unwrap();
    assert_eq!(
        cmdline_size, 255,
        "the image's, not the command line's length"
    );
    let start = ram.read_obj::<u32>(at(0x218)).unwrap();
    assert_eq!(u64::from(start), (64 << 20) - 8192);
    assert_eq!(
        ram.read_obj::<u8>(GuestAddress(u64::from(start) + 4999))
            .unwrap(),
        7
    );
    assert_eq!(ram.read_obj::<u8>(at(0x1e8)).unwrap(), 3);
    let mut cmdline = [0; 14];
    ram.read_slice(&mut cmdline, GuestAddress(CMDLINE_START))
        .unwrap();
    assert_eq!(&cmdline, b"console=ttyS0\0");
}

#[test]
fn an_elf_image_with_the_note_is_entered_by_pvh() {
    let (ram, kernel) = (ram(64), file(&elf()));
    let entry = load(&ram, &payload(kernel.path()), RSDP).unwrap();
    assert_eq!(
        entry,
        Entry::Pvh {
            address: HIGH_RAM_START + 0x40
        }
    );
    let at = |offset: u64| GuestAddress(PVH_INFO_START + offset);
    assert_eq!(ram.read_obj::<u32>(at(0)).unwrap(), 0x336e_c578);
    assert_eq!(ram.read_obj::<u64>(at(32)).unwrap(), RSDP);
}

#[test]
fn what_is_not_linux_is_known_by_its_version_or_its_notes() {
    let is_linux = |image: &[u8]| {
        let kernel = file(image);
        load_kernel(&ram(64), &payload(kernel.path()))
            .unwrap()
            .is_linux()
    };
    assert!(!is_linux(&elf()));
    let mut linux = elf();
    // The note's owner has six letters then, and its content comes after them.
    let mut note = b"\x06\0\0\0\x04\0\0\0\0\x01\0\0Linux\0\0\0salt".to_vec();
    note.extend_from_slice(&elf()[0x400..0x414]);
    linux[0x400..0x400 + note.len()].copy_from_slice(&note);
    linux[64 + 56 + 32] = note.len() as u8;
    assert!(is_linux(&linux));

    let mut image = bzimage();
    assert!(!is_linux(&image));
    image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
    image[0x300..0x310].copy_from_slice(b"Memtest86+ v6.10");
    assert!(!is_linux(&image));
    image[0x300..0x320].copy_from_slice(b"6.1.0-56 (who@where) #1 SMP Now\0");
    assert!(is_linux(&image));
}

#[test]
fn an_elf_image_without_the_note_is_refused() {
    let mut image = elf();
    image[0x408] = 17;
    let kernel = file(&image);
    assert!(matches!(
        load(&ram(64), &payload(kernel.path()), RSDP),
        Err(BootError::KernelFormat(_))
    ));
}

#[test]
fn firmware_is_an_elf_image_with_the_note_and_nothing_else() {
    let boot = |bytes: &[u8]| {
        let firmware = file(bytes);
        let payload = Payload {
            firmware: true,
            ..payload(firmware.path())
        };
        load(&ram(64), &payload, RSDP)
    };
    assert!(matches!(boot(&elf()), Ok(Entry::Pvh { .. })));
    let mut flash = vec![0xff; 1 << 20];
    flash[(1 << 20) - 16..][..3].copy_from_slice(&[0x0f, 0x20, 0xc0]);
    let mut no_note = elf();
    no_note[0x408] = 17;
    for other in [flash, no_note, bzimage()] {
        assert!(matches!(boot(&other), Err(BootError::FirmwareFormat(_))));
    }
}

#[test]
fn what_is_no_kernel_is_refused() {
    for bytes in [&b""[..], b"#!/bin/sh\n", &[0; 4096]] {
        let kernel = file(bytes);
        assert!(matches!(
            load(&ram(64), &payload(kernel.path()), RSDP),
            Err(BootError::KernelFormat(_))
        ));
    }
    assert!(matches!(
        load(&ram(64), &payload(Path::new("/nonexistent")), RSDP),
        Err(BootError::OpenKernel(..))
    ));
}

#[test]
fn damaged_images_are_errors_and_never_panics() {
    let ram = ram(32);
    for image in [bzimage(), elf()] {
        for at in (0..0x420.min(image.len())).chain([image.len() - 1]) {
            for value in [0, 1, 0x7f, 0xff] {
                let mut spoiled = image.clone();
                spoiled[at] = value;
                let kernel = file(&spoiled);
                let _ = load(&ram, &payload(kernel.path()), RSDP);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let kernel = file(&bzimage());
    assert!(matches!(
        load(&ram(1), &payload(kernel.path()), RSDP),
        Err(BootError::LoadKernel(..) | BootError::KernelTooBig(_))
    ));
    let initramfs = file(&vec![1; 15 << 20]);
    let mut big = payload(kernel.path());
    big.initramfs = Some(initramfs.path().to_owned());
    assert!(matches!(
        load(&ram(16), &big, RSDP),
        Err(BootError::InitramfsTooBig(_))
    ));
    let mut long = payload(kernel.path());
    long.cmdline = "x".repeat(256);
    assert!(matches!(
        load(&ram(16), &long, RSDP),
        Err(BootError::CmdlineTooLong {
            length: 256,
            max: 255
        })
    ));
    long.cmdline = "a\0b".into();
    assert!(matches!(
        load(&ram(16), &long, RSDP),
        Err(BootError::CmdlineZero)
    ));
}

#[test]
fn a_kernel_or_initramfs_that_is_no_file_is_refused_at_once() {
    use crate::host_file::testing::{fifo, within_time};

    let kernel = file(&bzimage());
    let (_folder, pipe) = fifo();
    let empty = file(&[]);
    for (kernel, initramfs, expected) in [
        (pipe.as_path(), None, "it is a FIFO"),
        (Path::new("/dev/zero"), None, "it is a character device"),
        (Path::new("/"), None, "it is a directory"),
        (empty.path(), None, "neither a bzImage nor"),
        (kernel.path(), Some(pipe.as_path()), "it is a FIFO"),
        (
            kernel.path(),
            Some(Path::new("/dev/zero")),
            "it is a character device",
        ),
        (kernel.path(), Some(empty.path()), "is empty"),
    ] {
        let mut payload = payload(kernel);
        payload.initramfs = initramfs.map(Path::to_owned);
        let error = within_time(move || load(&ram(64), &payload, RSDP).unwrap_err());
        let source = std::error::Error::source(&error).map(ToString::to_string);
        let text = format!("{error}: {}", source.unwrap_or_default());
        assert!(text.contains(expected), "{text}");
    }
}
