//! A qcow2 image, read and written by the crate `imago`.

use std::fs::File;
use std::io;
use std::sync::{PoisonError, RwLock};

use imago::file::File as Storage;
use imago::format::PreallocateMode;
use imago::format::gate::ImplicitOpenGate;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, Storage as _, StorageOpenOptions};

use super::ImageOptions;
use crate::memory::{AlignedBuffer, GuestBuffers};

type Access = FormatAccess<Storage>;

/// Any number of threads read and write; discarding moves what they rely on,
/// so it is done alone.
pub(super) struct Qcow2Image {
    access: RwLock<Access>,
    /// Holds the lock on the image.
    _lock: File,
}

/// Decides about the files that an image refers to. An image from elsewhere
/// could name any file of the host.
struct Gate {
    open: bool,
}

impl Gate {
    fn check(&self) -> io::Result<()> {
        if self.open {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "The image refers to another file, and backing files are switched off",
        ))
    }
}

impl ImplicitOpenGate<Storage> for Gate {
    fn open_format<F: FormatDriverBuilder<Storage>>(&mut self, builder: F) -> io::Result<Access> {
        self.check()?;
        let format = builder.write(false).open(Gate { open: self.open })?;
        Ok(FormatAccess::new(format))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<Storage> {
        self.check()?;
        Storage::open(options.write(false))
    }
}

impl Qcow2Image {
    /// Opens the image at the path. `lock` is the same file, already locked.
    pub(super) fn open(lock: File, options: &ImageOptions) -> io::Result<Self> {
        let storage = StorageOpenOptions::new()
            .filename(&options.path)
            .write(!options.read_only)
            .direct(options.direct);
        let gate = Gate {
            open: options.backing_files,
        };
        let image = Qcow2::<Storage>::builder(Storage::open(storage)?)
            .write(!options.read_only)
            .open(gate)?;
        Ok(Self {
            access: RwLock::new(FormatAccess::new(image)),
            _lock: lock,
        })
    }

    pub(super) fn size(&self) -> u64 {
        self.shared(Access::size)
    }

    pub(super) fn resize(&self, size: u64) -> io::Result<()> {
        let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        access.resize(size, PreallocateMode::None)?;
        access.flush()?;
        access.sync()
    }

    pub(super) fn block_size(&self) -> u32 {
        let alignment = self.shared(Access::req_align);
        u32::try_from(alignment).unwrap_or(512).clamp(512, 4096)
    }

    fn shared<T>(&self, work: impl FnOnce(&Access) -> T) -> T {
        work(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }

    // Guest memory changes under the hands of whoever reads it, and imago
    // takes plain slices: data goes through memory of our own.

    pub(super) fn read(&self, buffers: &GuestBuffers, offset: u64) -> io::Result<()> {
        let mut bounce = AlignedBuffer::new(buffers.length())?;
        self.shared(|access| access.read(bounce.bytes_mut(), offset))?;
        buffers.copy_from(bounce.bytes());
        Ok(())
    }

    pub(super) fn write(&self, buffers: &GuestBuffers, offset: u64) -> io::Result<()> {
        let mut bounce = AlignedBuffer::new(buffers.length())?;
        buffers.copy_to(bounce.bytes_mut());
        self.shared(|access| access.write(bounce.bytes(), offset))
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        self.shared(|access| {
            access.flush()?;
            access.sync()
        })
    }

    pub(super) fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        match access.discard_to_zero(offset, length) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    pub(super) fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.shared(|access| access.write_zeroes(offset, length))
    }
}
