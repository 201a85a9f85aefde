//! Disk images: what a guest's disk is stored in. Shared by the threads of all
//! queues.

mod lock;
mod qcow2;
mod raw;

use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub use lock::LockRange;
pub use qcow2::Qcow2Error;
use qcow2::Qcow2Image;
use raw::RawImage;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::SECTOR;
use crate::host_file::{self, Purpose};
use crate::memory::{AlignedBuffer, GuestBuffers};

/// What an image file begins with if it is one of these formats.
const MAGICS: [(&[u8], &str); 4] = [
    (b"QFI\xfb", "qcow2"),
    (b"vhdxfile", "VHDX"),
    (b"KDMV", "VMDK"),
    (b"conectix", "VHD"),
];
const LONGEST_MAGIC: usize = 8;
/// From here to the end of the file is what VHD has at its end.
const FOOTER: u64 = 512;

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
    /// It is of another format than the client says.
    #[error("{} is a {found} image, and image_type is {said}", .path.display())]
    OtherFormat {
        /// Where it is.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What it was said to be.
        said: &'static str,
    },
    /// There is not even one sector.
    #[error("{} has {size} bytes, which is less than a sector of 512", .path.display())]
    Empty {
        /// Where it is.
        path: PathBuf,
        /// Its bytes.
        size: u64,
    },
    /// It is damaged, or refers to others and may not.
    #[error("Cannot use {} as a qcow2 image", .0.display())]
    Qcow2(PathBuf, #[source] Qcow2Error),
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
    /// Data would be lost, and finding what to give up takes too long.
    #[error("A qcow2 image cannot become smaller than its {0} bytes while it is in use")]
    Shrink(u64),
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

/// Which file it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
    /// What the file is a block device for: it may have several names.
    block: Option<u64>,
}

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        let is_block = metadata.file_type().is_block_device();
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            block: is_block.then(|| metadata.rdev()),
        }
    }

    /// Of the file that a path leads to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn at(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|metadata| Self::of(&metadata))
    }
}

/// An open image.
pub struct Image {
    geometry: Geometry,
    /// Bytes that the guest sees. The control thread changes them, the queues'
    /// threads read them.
    size: AtomicU64,
    lock: LockRange,
    id: FileId,
    format: ImageFormat,
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
        let mut open = File::options();
        open.read(true).write(!options.read_only);
        let file = host_file::open_with(&options.path, Purpose::Disk, &mut open, OFlags::empty())
            .map_err(failed)?;
        let id = FileId::of(&file.metadata().map_err(failed)?);
        let format = chosen_format(options, detect(&file).map_err(failed)?)?;
        lock_file(&file, &options.path, options.lock, options.read_only)?;
        let (kind, size, block_size) = if format == ImageFormat::Qcow2 {
            let image = Qcow2Image::open(file, id, options)
                .map_err(|source| ImageError::Qcow2(options.path.clone(), source))?;
            let size = image.size();
            // The library takes any part of the host's blocks.
            (Kind::Qcow2(image), size, SECTOR as u32)
        } else {
            bypass_cache(&file, &options.path, options.direct)?;
            let image = RawImage::new(file, options.direct).map_err(failed)?;
            let (size, block_size) = (image.size().map_err(failed)?, image.block_size());
            (Kind::Raw(image), size, block_size)
        };
        if size < SECTOR {
            let path = options.path.clone();
            return Err(ImageError::Empty { path, size });
        }
        if !size.is_multiple_of(SECTOR) {
            log::warn!(
                "{}: {size} bytes are not a multiple of 512; the guest does not see the last {}",
                options.path.display(),
                size % SECTOR
            );
        }
        Ok(Self {
            geometry: Geometry {
                block_size,
                read_only: options.read_only,
                sparse: options.sparse,
            },
            size: AtomicU64::new(size),
            lock: options.lock,
            id,
            format,
            detected_raw: options.format == ImageFormat::Detect && format == ImageFormat::Raw,
            // Stays the same as long as the file does, as a serial number should.
            serial: format!("{:x}-{:x}", id.device, id.inode),
            kind,
        })
    }

    /// Which file it is.
    #[must_use]
    pub fn id(&self) -> FileId {
        self.id
    }

    /// Its format, never [`ImageFormat::Detect`].
    #[must_use]
    pub fn format(&self) -> ImageFormat {
        self.format
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
        if matches!(self.kind, Kind::Qcow2(_)) && size < old {
            return Err(ResizeError::Shrink(old));
        }
        // Nothing new may go where the image ends soon, and nothing may go
        // where it does not reach yet.
        self.size.store(size.min(old), Ordering::Release);
        let outcome = match &self.kind {
            Kind::Raw(image) => image.resize(size, self.lock),
            Kind::Qcow2(image) => image.grow(size).map_err(ResizeError::Image),
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

    /// The file, if buffers can be read from and written to it at the offset as
    /// they are, by whatever means.
    pub(super) fn plain_file(
        &self,
        buffers: &GuestBuffers,
        offset: u64,
    ) -> Option<&std::sync::Arc<File>> {
        match &self.kind {
            Kind::Raw(image) => image.plain_file(buffers, offset),
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

    /// Whether a write could give the image the mark of another format. The
    /// guest of an image whose format was found out by looking must not do
    /// that: the next look would open whatever file its header names.
    pub(super) fn touches_mark(&self, offset: u64, length: u64) -> bool {
        let end = offset.saturating_add(length);
        self.marks()
            .any(|mark| offset < mark + LONGEST_MAGIC as u64 && mark < end)
    }

    /// Whether these bytes at the offset would be the mark of a format.
    pub(super) fn makes_mark(&self, offset: u64, bytes: &[u8]) -> io::Result<bool> {
        let Kind::Raw(image) = &self.kind else {
            return Ok(false);
        };
        for mark in self.marks() {
            // What the write leaves of it stays as it is.
            let mut after = [0; LONGEST_MAGIC];
            image.read_bytes(&mut after, mark)?;
            for (byte, at) in after.iter_mut().zip(mark..) {
                let written = at
                    .checked_sub(offset)
                    .and_then(|at| usize::try_from(at).ok());
                if let Some(new) = written.and_then(|at| bytes.get(at)) {
                    *byte = *new;
                }
            }
            if MAGICS.iter().any(|(magic, _)| after.starts_with(magic)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where the marks of formats would be.
    fn marks(&self) -> impl Iterator<Item = u64> {
        let end = self
            .size()
            .checked_sub(FOOTER)
            .filter(|_| self.detected_raw);
        let start = self.detected_raw.then_some(0);
        start.into_iter().chain(end)
    }

    /// Writes bytes of this process.
    pub(super) fn write_bytes(
        &self,
        bytes: &AlignedBuffer,
        offset: u64,
        length: usize,
    ) -> io::Result<()> {
        match &self.kind {
            Kind::Raw(image) => image.write_bytes(bytes, offset, length),
            Kind::Qcow2(_) => Err(io::ErrorKind::Unsupported.into()),
        }
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

/// The format to use for what was found in the file.
fn chosen_format(
    options: &ImageOptions,
    found: Option<&'static str>,
) -> Result<ImageFormat, ImageError> {
    let path = options.path.clone();
    match (options.format, found) {
        (ImageFormat::Detect | ImageFormat::Raw, None) => Ok(ImageFormat::Raw),
        // Whether it is one its header says.
        (ImageFormat::Qcow2, _) | (ImageFormat::Detect, Some("qcow2")) => Ok(ImageFormat::Qcow2),
        (ImageFormat::Detect, Some(format)) => Err(ImageError::Format { path, format }),
        (ImageFormat::Raw, Some(found)) => Err(ImageError::OtherFormat {
            path,
            found,
            said: "raw",
        }),
    }
}

fn lock_file(
    file: &File,
    path: &Path,
    range: LockRange,
    read_only: bool,
) -> Result<(), ImageError> {
    lock::acquire(file, range, read_only).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => ImageError::Locked(path.to_owned(), source),
        _ => ImageError::Open(path.to_owned(), source),
    })
}

/// Bypasses the host's page cache from now on, if so wanted.
fn bypass_cache(file: &File, path: &Path, direct: bool) -> Result<(), ImageError> {
    if !direct {
        return Ok(());
    }
    fcntl_getfl(file)
        .and_then(|flags| fcntl_setfl(file, flags | OFlags::DIRECT))
        .map_err(|error| {
            let text =
                format!("its file system does not bypass the page cache (direct=on): {error}");
            ImageError::Open(path.to_owned(), io::Error::other(text))
        })
}

/// The name of the format that a file's bytes are typical of.
fn detect(file: &File) -> io::Result<Option<&'static str>> {
    let of = |at: u64| -> io::Result<Option<&'static str>> {
        let mut bytes = [0; LONGEST_MAGIC];
        let mut done = 0;
        while done < bytes.len() {
            match file.read_at(&mut bytes[done..], at + done as u64)? {
                0 => break,
                count => done += count,
            }
        }
        let found = MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic));
        Ok(found.map(|(_, name)| *name))
    };
    if let Some(name) = of(0)? {
        return Ok(Some(name));
    }
    // VHD has its mark at the end.
    let length = (&*file).seek(SeekFrom::End(0))?;
    match length.checked_sub(FOOTER) {
        Some(at) => Ok(of(at)?.filter(|name| *name == "VHD")),
        None => Ok(None),
    }
}
