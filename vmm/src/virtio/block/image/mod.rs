//! Disk images: what a guest's disk is stored in. Shared by the threads of all
//! queues.

mod lock;
mod qcow2;
mod raw;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub use lock::LockRange;
use qcow2::Qcow2Image;
use raw::RawImage;

use crate::memory::GuestBuffers;

/// What an image file begins with if it is one of these formats.
const MAGICS: [(&[u8], &str); 4] = [
    (b"QFI\xfb", "qcow2"),
    (b"vhdxfile", "VHDX"),
    (b"KDMV", "VMDK"),
    (b"conectix", "VHD"),
];
const LONGEST_MAGIC: usize = 8;

/// The format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// Bytes as the guest sees them.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
    /// Whatever its first bytes say.
    Detect,
}

/// How to open an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageOptions {
    /// The file or block device.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// Never write to it.
    pub read_only: bool,
    /// Bypass the host's page cache.
    pub direct: bool,
    /// Give back space that the guest discards.
    pub sparse: bool,
    /// Follow the image's references to others.
    pub backing_files: bool,
    /// What the advisory lock covers.
    pub lock: LockRange,
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file.
    #[error("Cannot open {}", .0.display())]
    Open(PathBuf, #[source] io::Error),
    /// Another process uses it.
    #[error("{} is in use by another process", .0.display())]
    Locked(PathBuf, #[source] io::Error),
    /// It is of a format that is not supported.
    #[error("{} is of the format {format}, which is not supported", .path.display())]
    Format {
        /// Where it is.
        path: PathBuf,
        /// What it is.
        format: &'static str,
    },
    /// It is damaged, or refers to others and may not.
    #[error("Cannot use {} as a qcow2 image", .0.display())]
    Qcow2(PathBuf, #[source] io::Error),
}

/// Why an image keeps its size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// Nobody may write to it.
    #[error("The image is read-only")]
    ReadOnly,
    /// Part of a block.
    #[error("{size} bytes are no disk's size: it is a multiple of {block_size}, and not 0")]
    Size {
        /// What was asked for.
        size: u64,
        /// The image's unit.
        block_size: u32,
    },
    /// The host's administrator decides about it.
    #[error("The host's block device has {0} bytes, which only the host can change")]
    BlockDevice(u64),
    /// The file.
    #[error("Cannot change the image")]
    Image(#[source] io::Error),
}

/// Unit and abilities of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Smallest unit of reading and writing.
    pub block_size: u32,
    /// Writing fails.
    pub read_only: bool,
    /// Space can be given back.
    pub sparse: bool,
}

/// An open image.
pub struct Image {
    geometry: Geometry,
    /// Bytes that the guest sees. The control thread changes them, the queues'
    /// threads read them.
    size: AtomicU64,
    lock: LockRange,
    /// Found out by looking, so the guest must not be able to change what the
    /// next look finds.
    detected_raw: bool,
    serial: String,
    kind: Kind,
}

enum Kind {
    Raw(RawImage),
    Qcow2(Qcow2Image),
}

impl Image {
    /// Opens and locks an image.
    pub fn open(options: &ImageOptions) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Open(options.path.clone(), source);
        let file = open_file(&options.path, options).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        lock::acquire(&file, options.lock, options.read_only)
            .map_err(|source| ImageError::Locked(options.path.clone(), source))?;
        let found = detect(&options.path).map_err(failed)?;
        let format = match (options.format, found) {
            (ImageFormat::Detect, None) => ImageFormat::Raw,
            (ImageFormat::Detect, Some("qcow2")) => ImageFormat::Qcow2,
            (ImageFormat::Detect, Some(other)) => {
                return Err(ImageError::Format {
                    path: options.path.clone(),
                    format: other,
                });
            }
            (format, _) => format,
        };
        // Stays the same as long as the file does, as a serial number should.
        let serial = format!("{:x}-{:x}", metadata.dev(), metadata.ino());
        let (kind, size, block_size) = if format == ImageFormat::Qcow2 {
            let image = Qcow2Image::open(file, options)
                .map_err(|source| ImageError::Qcow2(options.path.clone(), source))?;
            let (size, block_size) = (image.size(), image.block_size());
            (Kind::Qcow2(image), size, block_size)
        } else {
            let image = RawImage::new(file, options.direct).map_err(failed)?;
            let (size, block_size) = (image.size().map_err(failed)?, image.block_size());
            (Kind::Raw(image), size, block_size)
        };
        Ok(Self {
            geometry: Geometry {
                block_size,
                read_only: options.read_only,
                sparse: options.sparse,
            },
            size: AtomicU64::new(size),
            lock: options.lock,
            detected_raw: options.format == ImageFormat::Detect && format == ImageFormat::Raw,
            serial,
            kind,
        })
    }

    /// Bytes that the guest sees.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Gives the image another size. What lies past a smaller one is lost.
    pub fn resize(&self, size: u64) -> Result<(), ResizeError> {
        let block_size = self.geometry.block_size;
        if self.geometry.read_only {
            return Err(ResizeError::ReadOnly);
        }
        if size == 0 || !size.is_multiple_of(block_size.into()) {
            return Err(ResizeError::Size { size, block_size });
        }
        let old = self.size();
        // Nothing new may go where the image ends soon, and nothing may go
        // where it does not reach yet.
        self.size.store(size.min(old), Ordering::Release);
        let outcome = match &self.kind {
            Kind::Raw(image) => image.resize(size, self.lock),
            Kind::Qcow2(image) => image.resize(size).map_err(ResizeError::Image),
        };
        let now = if outcome.is_ok() { size } else { old };
        self.size.store(now, Ordering::Release);
        outcome
    }

    /// Unit and abilities.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// A serial number for those who do not choose one.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The file, if buffers can be read from and written to it as they are,
    /// by whatever means.
    pub(super) fn plain_file(&self, buffers: &GuestBuffers) -> Option<&std::sync::Arc<File>> {
        match &self.kind {
            Kind::Raw(image) => image.plain_file(buffers),
            Kind::Qcow2(_) => None,
        }
    }

    /// The file, if making it durable is all there is to a flush.
    pub(super) fn sync_file(&self) -> Option<&std::sync::Arc<File>> {
        match &self.kind {
            Kind::Raw(image) => Some(image.file()),
            Kind::Qcow2(_) => None,
        }
    }

    /// Whether these bytes may be written at the offset. The guest of an image
    /// whose format was detected must not turn it into another format.
    pub(super) fn may_write(&self, offset: u64, buffers: &GuestBuffers) -> bool {
        if !self.detected_raw || offset > 0 {
            return true;
        }
        let mut start = [0; LONGEST_MAGIC];
        buffers.copy_to(&mut start);
        !MAGICS.iter().any(|(magic, _)| start.starts_with(magic))
    }

    pub(super) fn read(&self, buffers: &GuestBuffers, offset: u64) -> io::Result<()> {
        match &self.kind {
            Kind::Raw(image) => image.read(buffers, offset),
            Kind::Qcow2(image) => image.read(buffers, offset),
        }
    }

    pub(super) fn write(&self, buffers: &GuestBuffers, offset: u64) -> io::Result<()> {
        match &self.kind {
            Kind::Raw(image) => image.write(buffers, offset),
            Kind::Qcow2(image) => image.write(buffers, offset),
        }
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        match &self.kind {
            Kind::Raw(image) => image.flush(),
            Kind::Qcow2(image) => image.flush(),
        }
    }

    /// Gives space back. What is read there later does not matter.
    pub(super) fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        match &self.kind {
            Kind::Raw(image) => image.discard(offset, length),
            Kind::Qcow2(image) => image.discard(offset, length),
        }
    }

    /// Makes a range read as zeroes; `unmap` allows to give its space back.
    pub(super) fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        let unmap = unmap && self.geometry.sparse;
        match &self.kind {
            Kind::Raw(image) => image.write_zeroes(offset, length, unmap),
            Kind::Qcow2(image) => image.write_zeroes(offset, length),
        }
    }
}

fn open_file(path: &Path, options: &ImageOptions) -> io::Result<File> {
    let mut flags = libc::O_CLOEXEC;
    if options.direct {
        flags |= libc::O_DIRECT;
    }
    OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .custom_flags(flags)
        .open(path)
}

/// The name of the format that the first bytes are typical of.
fn detect(path: &Path) -> io::Result<Option<&'static str>> {
    // Opened anew: a file that bypasses the cache cannot be read by the byte.
    let mut file = File::open(path)?;
    let mut start = Vec::new();
    file.by_ref()
        .take(LONGEST_MAGIC as u64)
        .read_to_end(&mut start)?;
    let of = |start: &[u8]| {
        MAGICS
            .iter()
            .find(|(magic, _)| start.starts_with(magic))
            .map(|(_, name)| *name)
    };
    if let Some(name) = of(&start) {
        return Ok(Some(name));
    }
    // VHD has its mark at the end.
    let mut footer = Vec::new();
    if file.seek(SeekFrom::End(-512)).is_ok() {
        file.take(LONGEST_MAGIC as u64).read_to_end(&mut footer)?;
    }
    Ok(of(&footer).filter(|name| *name == "VHD"))
}
