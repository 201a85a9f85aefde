//! A raw image: a file or a block device whose bytes are the disk's.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};

use super::ResizeError;
use super::lock::{self, LockRange};
use crate::memory::{AlignedBuffer, GuestBuffers};

/// What most files and devices want if they bypass the cache.
const USUAL_ALIGNMENT: usize = 512;
const PAGE: usize = 4096;
const ZEROES: usize = 64 << 10;

pub(super) struct RawImage {
    file: Arc<File>,
    /// Of buffers and offsets; 1 unless the cache is bypassed.
    alignment: usize,
}

impl RawImage {
    pub(super) fn new(file: File, direct: bool) -> io::Result<Self> {
        let alignment = if direct { probe_alignment(&file)? } else { 1 };
        Ok(Self {
            file: Arc::new(file),
            alignment,
        })
    }

    /// Length in bytes, of block devices too.
    pub(super) fn size(&self) -> io::Result<u64> {
        (&*self.file).seek(SeekFrom::End(0))
    }

    /// A block device has the size that the host gives it: it can only be told
    /// to the guest.
    pub(super) fn resize(&self, size: u64, range: LockRange) -> Result<(), ResizeError> {
        let metadata = self.file.metadata().map_err(ResizeError::Image)?;
        if metadata.file_type().is_block_device() {
            let actual = self.size().map_err(ResizeError::Image)?;
            return match actual == size {
                true => Ok(()),
                false => Err(ResizeError::BlockDevice(actual)),
            };
        }
        self.file.set_len(size).map_err(ResizeError::Image)?;
        // What is new is locked as well.
        lock::acquire(&self.file, range, false).map_err(ResizeError::Image)
    }

    pub(super) fn block_size(&self) -> u32 {
        self.alignment.max(USUAL_ALIGNMENT) as u32
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn plain_file(&self, buffers: &GuestBuffers) -> Option<&Arc<File>> {
        buffers.is_aligned(self.alignment).then_some(&self.file)
    }

    pub(super) fn read(&self, buffers: &GuestBuffers, offset: u64) -> io::Result<()> {
        if self.plain_file(buffers).is_some() {
            return buffers.read_from(self.file.as_fd(), offset, 0);
        }
        let mut bounce = AlignedBuffer::new(buffers.length())?;
        let mut done = 0;
        while done < buffers.length() {
            // A guest's length is whole sectors, a file's need not be.
            match self
                .file
                .read_at(&mut bounce.bytes_mut()[done..], offset + done as u64)
            {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffers.copy_from(bounce.bytes());
        Ok(())
    }

    pub(super) fn write(&self, buffers: &GuestBuffers, offset: u64) -> io::Result<()> {
        if self.plain_file(buffers).is_some() {
            return buffers.write_to(self.file.as_fd(), offset, 0);
        }
        let mut bounce = AlignedBuffer::new(buffers.length())?;
        buffers.copy_to(bounce.bytes_mut());
        self.file.write_all_at(bounce.bytes(), offset)
    }

    /// Fills `bytes`; what lies past the end reads as zero. Small reads only.
    pub(super) fn read_bytes(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        // Whole pages, for files that take no less.
        let start = offset / PAGE as u64 * PAGE as u64;
        let skip = (offset - start) as usize;
        let mut pages = AlignedBuffer::new((skip + bytes.len()).next_multiple_of(PAGE))?;
        let mut done = 0;
        while done < skip + bytes.len() {
            let rest = &mut pages.bytes_mut()[done..];
            match self.file.read_at(rest, start + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.copy_from_slice(&pages.bytes()[skip..][..bytes.len()]);
        Ok(())
    }

    pub(super) fn write_bytes(&self, bytes: &AlignedBuffer, offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes.bytes(), offset)
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub(super) fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        match self.punch(offset, length) {
            // Giving space back is a favour; where it is impossible, nothing
            // is lost.
            Err(error) if unsupported(&error) => Ok(()),
            result => result,
        }
    }

    pub(super) fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        if unmap && self.punch(offset, length).is_ok() {
            return Ok(());
        }
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        match fallocate(&*self.file, flags, offset, length) {
            Ok(()) => return Ok(()),
            Err(error) if !unsupported(&error.into()) => return Err(error.into()),
            Err(_) => {}
        }
        let zeroes = AlignedBuffer::new(ZEROES)?;
        let mut done = 0;
        while done < length {
            let step = (length - done).min(ZEROES as u64);
            self.file
                .write_all_at(&zeroes.bytes()[..step as usize], offset + done)?;
            done += step;
        }
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&*self.file, flags, offset, length)?)
    }
}

fn unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV)
    )
}

/// Finds out by trying what alignment reads want.
fn probe_alignment(file: &File) -> io::Result<usize> {
    let mut buffer = AlignedBuffer::new(2 * PAGE)?;
    for alignment in [USUAL_ALIGNMENT, PAGE] {
        // Aligned to this and to no more.
        let bytes = &mut buffer.bytes_mut()[alignment..2 * alignment];
        match file.read_at(bytes, 0) {
            Ok(_) => return Ok(alignment),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}
