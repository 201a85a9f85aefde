//! A qcow2 image, read and written by the crate `imago`. Header and tables are
//! checked before the library sees them (`header`, `tables`), and what it does
//! later is kept within limits (`guard`).

#[expect(
    unsafe_code,
    reason = "methods of the trait Storage are unsafe to call"
)]
mod guard;
mod header;
mod tables;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};

use super::{FileId, ImageError, ImageOptions, bypass_cache, lock_file};
use crate::host_file::{self, Purpose};
use crate::memory::{AlignedBuffer, GuestBuffers};
use guard::{GuardError, Guarded};
use header::Header;

type Access = FormatAccess<Guarded>;

/// Most files behind an image. Each holds a descriptor and takes part in each
/// read of what the image does not have.
const MAX_BACKING_FILES: usize = 10;
/// Bytes whose tables a flush may have to write.
const CACHED: u64 = 64 << 20;

/// Why a qcow2 image cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Qcow2Error {
    #[error("it does not begin as a qcow2 image does")]
    NotQcow2,
    #[error("its version is {0}, and 2 and 3 are supported")]
    Version(u32),
    #[error("its cluster_bits are {0}, not 9 to 21")]
    ClusterBits(u32),
    #[error("it is encrypted, which is not supported")]
    Encrypted,
    #[error(
        "it is marked dirty: who wrote it last did not close it; \
         `qemu-img check -r all` repairs it"
    )]
    Dirty,
    #[error(
        "it is marked corrupt; `qemu-img check -r all` repairs it, \
         and with readonly=on it can be read as it is"
    )]
    Corrupt,
    #[error("it uses {0}, which is not supported")]
    Feature(String),
    #[error("its size of {0} bytes is not a multiple of 512 below 2^63")]
    Size(u64),
    #[error("the field {0} of its header is out of range")]
    Field(&'static str),
    #[error("its {0} is larger than QEMU allows")]
    TableTooLarge(&'static str),
    #[error("its L1 table has {entries} entries, and its size takes {needed}")]
    L1TooSmall { entries: u32, needed: u64 },
    #[error("its {0} is not where a cluster begins; `qemu-img check` says more")]
    Misplaced(&'static str),
    #[error("its {0} lies beyond the end of the file, which may be truncated")]
    BeyondEnd(&'static str),
    #[error("its cluster {0} is used twice; `qemu-img check` says more")]
    Overlap(u64),
    #[error(
        "its cluster {0} is in use and not counted as such; `qemu-img check -r all` repairs it"
    )]
    NotCounted(u64),
    #[error("it has the backing file {}, and backing_files is off", .0.display())]
    BackingOff(PathBuf),
    #[error("its backing files lead back to one of them: {0}")]
    BackingCycle(String),
    #[error("it has more than {MAX_BACKING_FILES} backing files: {0}")]
    BackingDepth(String),
    #[error("the format of the backing file {} is {format}, not raw or qcow2", .path.display())]
    BackingFormat { path: PathBuf, format: String },
    #[error("the backing file {}", .0.display())]
    Backing(PathBuf, #[source] Box<Qcow2Error>),
    #[error(transparent)]
    BackingFile(Box<ImageError>),
    #[error("Cannot read it")]
    Read(#[source] io::Error),
    #[error("{0}")]
    Library(GuardError),
}

/// Any number of threads read and write; discarding moves what they rely on,
/// so it is done alone.
pub(super) struct Qcow2Image {
    access: RwLock<Access>,
    cluster: u64,
    /// Files that a read may have to look into.
    layers: u64,
    /// The library failed; nothing is read or written any more.
    broken: AtomicBool,
}

/// One file of an image.
struct Layer {
    path: PathBuf,
    file: File,
    id: FileId,
    /// None if it is raw.
    header: Option<Header>,
}

impl Qcow2Image {
    /// Opens the image in `file`, which is locked.
    pub(super) fn open(file: File, id: FileId, options: &ImageOptions) -> Result<Self, Qcow2Error> {
        let writable = !options.read_only;
        let header = Header::read(&file, writable)?;
        let length = file.metadata().map_err(Qcow2Error::Read)?.len();
        if writable && length > 0 {
            tables::check(&file, &header, length)?;
        }
        let cluster = header.cluster();
        bypass_cache(&file, &options.path, options.direct)
            .map_err(|error| Qcow2Error::BackingFile(Box::new(error)))?;
        let layers = layers(
            Layer {
                path: options.path.clone(),
                file,
                id,
                header: Some(header),
            },
            options,
        )?;
        let count = layers.len() as u64;
        let opened = guard::run(operations(0, cluster, count), || assemble(layers, options));
        let access = match opened {
            Ok(Ok(access)) => access,
            Ok(Err(error)) => return Err(Qcow2Error::Read(error)),
            Err(fault) => return Err(Qcow2Error::Library(fault)),
        };
        Ok(Self {
            access: RwLock::new(access),
            cluster,
            layers: count,
            broken: AtomicBool::new(false),
        })
    }

    pub(super) fn size(&self) -> u64 {
        self.shared(Access::size)
    }

    /// Makes the image larger.
    pub(super) fn grow(&self, size: u64) -> io::Result<()> {
        self.alone(0, |access| {
            access.resize_grow(size, PreallocateMode::None)?;
            access.flush()?;
            access.sync()
        })
    }

    fn shared<T>(&self, work: impl FnOnce(&Access) -> T) -> T {
        work(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does the work of a request for so many bytes beside others.
    fn beside<T>(&self, bytes: u64, work: impl FnOnce(&Access) -> io::Result<T>) -> io::Result<T> {
        self.guarded(bytes, || self.shared(work))
    }

    /// Does the work of a request for so many bytes alone.
    fn alone<T>(
        &self,
        bytes: u64,
        work: impl FnOnce(&mut Access) -> io::Result<T>,
    ) -> io::Result<T> {
        self.guarded(bytes, || {
            work(&mut self.access.write().unwrap_or_else(PoisonError::into_inner))
        })
    }

    fn guarded<T>(&self, bytes: u64, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.broken.load(Ordering::Acquire) {
            return Err(io::Error::other(
                "the image is damaged, and not used any more",
            ));
        }
        let allowed = operations(bytes, self.cluster, self.layers);
        guard::run(allowed, work).unwrap_or_else(|fault| {
            self.broken.store(true, Ordering::Release);
            Err(io::Error::other(fault))
        })
    }

    // Guest memory changes under the hands of whoever reads it, and imago
    // takes plain slices: data goes through memory of our own.

    pub(super) fn read(&self, buffers: &GuestBuffers, offset: u64) -> io::Result<()> {
        let mut bounce = AlignedBuffer::new(buffers.length())?;
        let length = buffers.length() as u64;
        self.beside(length, |access| access.read(bounce.bytes_mut(), offset))?;
        buffers.copy_from(bounce.bytes());
        Ok(())
    }

    pub(super) fn write(&self, buffers: &GuestBuffers, offset: u64) -> io::Result<()> {
        let mut bounce = AlignedBuffer::new(buffers.length())?;
        buffers.copy_to(bounce.bytes_mut());
        let length = buffers.length() as u64;
        self.beside(length, |access| access.write(bounce.bytes(), offset))
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        // The cache may be full of tables that have to be written.
        self.beside(CACHED, |access| {
            access.flush()?;
            access.sync()
        })
    }

    pub(super) fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.alone(length, |access| {
            match access.discard_to_zero(offset, length) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
                result => result,
            }
        })
    }

    pub(super) fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.beside(length, |access| access.write_zeroes(offset, length))
    }
}

/// How often a request for so many bytes may access the files: generously
/// more than it takes with cold caches.
fn operations(bytes: u64, cluster: u64, layers: u64) -> u64 {
    16_384 + (bytes / cluster + 2) * (32 + 4 * layers)
}

/// Finds the files behind an image, down to one that has none.
fn layers(top: Layer, options: &ImageOptions) -> Result<Vec<Layer>, Qcow2Error> {
    let mut layers = vec![top];
    loop {
        let Some(last) = layers.last() else {
            return Ok(layers);
        };
        let backing = last
            .header
            .as_ref()
            .and_then(|header| header.backing.clone());
        let Some(backing) = backing else {
            return Ok(layers);
        };
        let path = match last.path.parent() {
            Some(folder) => folder.join(&backing.name),
            None => backing.name,
        };
        // An image from elsewhere could name any file of the host.
        if !options.backing_files {
            return Err(Qcow2Error::BackingOff(path));
        }
        let chain = || {
            let names = layers.iter().map(|layer| layer.path.display().to_string());
            let names: Vec<String> = names.chain([path.display().to_string()]).collect();
            names.join(" -> ")
        };
        let layer = backing_layer(&path, backing.format.as_deref(), options)?;
        if layers.iter().any(|known| known.id == layer.id) {
            return Err(Qcow2Error::BackingCycle(chain()));
        }
        if layers.len() > MAX_BACKING_FILES {
            return Err(Qcow2Error::BackingDepth(chain()));
        }
        lock_file(&layer.file, &layer.path, options.lock, true)
            .map_err(|error| Qcow2Error::BackingFile(Box::new(error)))?;
        layers.push(layer);
    }
}

/// Opens one backing file, to be read only.
fn backing_layer(
    path: &Path,
    format: Option<&[u8]>,
    options: &ImageOptions,
) -> Result<Layer, Qcow2Error> {
    let wrapped = |error| Qcow2Error::BackingFile(Box::new(error));
    let failed = |source| wrapped(ImageError::Open(path.to_owned(), source));
    let file = host_file::open(path, Purpose::Disk).map_err(failed)?;
    let id = FileId::of(&file.metadata().map_err(failed)?);
    let found = super::detect(&file).map_err(failed)?;
    let qcow2 = match format {
        Some(b"raw") => false,
        Some(b"qcow2") => true,
        None => found == Some("qcow2"),
        Some(other) => {
            return Err(Qcow2Error::BackingFormat {
                path: path.to_owned(),
                format: String::from_utf8_lossy(other).into_owned(),
            });
        }
    };
    let header = qcow2
        .then(|| Header::read(&file, false))
        .transpose()
        .map_err(|error| Qcow2Error::Backing(path.to_owned(), Box::new(error)))?;
    bypass_cache(&file, path, options.direct).map_err(wrapped)?;
    Ok(Layer {
        path: path.to_owned(),
        file,
        id,
        header,
    })
}

/// Has the library open the files, from the last one behind the image on.
fn assemble(layers: Vec<Layer>, options: &ImageOptions) -> io::Result<Access> {
    let mut behind = None;
    for (index, layer) in layers.into_iter().enumerate().rev() {
        let writable = index == 0 && !options.read_only;
        let storage = StorageOpenOptions::new()
            .filename(&layer.path)
            .direct(options.direct);
        let storage = Guarded::new(layer.file, storage, writable)?;
        let gate = DenyImplicitOpenGate::default();
        behind = Some(if layer.header.is_some() {
            let image = Qcow2::<Guarded>::builder(storage)
                .write(writable)
                .backing(behind)
                .data_file(None)
                .open(gate)?;
            FormatAccess::new(image)
        } else {
            FormatAccess::new(Raw::builder(storage).write(writable).open(gate)?)
        });
    }
    behind.ok_or_else(|| io::ErrorKind::NotFound.into())
}
