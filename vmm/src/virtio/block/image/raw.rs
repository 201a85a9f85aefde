//! A raw image: a file or a block device whose bytes are the disk's.
//!
//! The guest's blocks are 512 bytes on a file, whatever the host's disk has: an
//! image keeps its partition table when it moves to another host. What the
//! host wants where its page cache is bypassed is kept to in here. A block
//! device's blocks are its own, which its partition table counts in.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, FallocateFlags, StatxFlags, fallocate, ioctl_blksszget, statx};

use super::ResizeError;
use super::lock::{self, LockRange};
use crate::memory::{AlignedBuffer, GuestBuffers};

const SMALLEST_BLOCK: u32 = 512;
/// Satisfies what bypasses the cache anywhere; larger blocks are not offered
/// to a guest.
const PAGE: u32 = 4096;
const ZEROES: usize = 64 << 10;

pub(super) struct RawImage {
    file: Arc<File>,
    block_size: u32,
    /// Of buffers, offsets and lengths; 1 unless the cache is bypassed.
    alignment: u64,
    /// Held while a block is written of which only a part is new, and while
    /// the length changes.
    partial: Mutex<()>,
}

impl RawImage {
    pub(super) fn new(file: File, direct: bool) -> io::Result<Self> {
        let block_size = if file.metadata()?.file_type().is_block_device() {
            ioctl_blksszget(&file)?
        } else {
            SMALLEST_BLOCK
        };
        if !(SMALLEST_BLOCK..=PAGE).contains(&block_size) || !block_size.is_power_of_two() {
            let text = format!("its blocks have {block_size} bytes, 512 to 4096 are supported");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let alignment = if direct {
            direct_alignment(&file).max(block_size)
        } else {
            1
        };
        Ok(Self::with_alignment(file, block_size, alignment))
    }

    fn with_alignment(file: File, block_size: u32, alignment: u32) -> Self {
        Self {
            file: Arc::new(file),
            block_size,
            alignment: alignment.into(),
            partial: Mutex::new(()),
        }
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
        let _partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        self.file.set_len(size).map_err(ResizeError::Image)?;
        // What is new is locked as well.
        lock::acquire(&self.file, range, false).map_err(ResizeError::Image)
    }

    pub(super) fn block_size(&self) -> u32 {
        self.block_size
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The file, if these buffers can be read from and written to it at the
    /// offset as they are.
    pub(super) fn plain_file(&self, buffers: &GuestBuffers, offset: u64) -> Option<&Arc<File>> {
        let aligned = buffers.is_aligned(self.alignment as usize);
        (aligned && offset.is_multiple_of(self.alignment)).then_some(&self.file)
    }

    pub(super) fn read(&self, buffers: &GuestBuffers, offset: u64) -> io::Result<()> {
        if self.plain_file(buffers, offset).is_some() {
            return buffers.read_from(self.file.as_fd(), offset, 0);
        }
        let (blocks, skip) = self.read_blocks(offset, buffers.length())?;
        buffers.copy_from(&blocks.bytes()[skip..][..buffers.length()]);
        Ok(())
    }

    /// Fills `bytes`; what lies past the end reads as zero.
    pub(super) fn read_bytes(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let (blocks, skip) = self.read_blocks(offset, bytes.len())?;
        bytes.copy_from_slice(&blocks.bytes()[skip..][..bytes.len()]);
        Ok(())
    }

    /// The blocks that a range touches, and where in them it begins. What lies
    /// past the end of the file is zero.
    fn read_blocks(&self, offset: u64, length: usize) -> io::Result<(AlignedBuffer, usize)> {
        let start = offset - offset % self.alignment;
        let skip = (offset - start) as usize;
        let wanted = skip + length;
        let mut blocks = AlignedBuffer::new(wanted.next_multiple_of(self.alignment as usize))?;
        let mut done = 0;
        while done < wanted {
            let rest = &mut blocks.bytes_mut()[done..];
            match self.file.read_at(rest, start + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok((blocks, skip))
    }

    pub(super) fn write(&self, buffers: &GuestBuffers, offset: u64) -> io::Result<()> {
        if self.plain_file(buffers, offset).is_some() {
            return buffers.write_to(self.file.as_fd(), offset, 0);
        }
        let mut copy = AlignedBuffer::new(buffers.length())?;
        buffers.copy_to(copy.bytes_mut());
        self.write_bytes(&copy, offset, buffers.length())
    }

    /// Writes the first `length` bytes of a buffer.
    pub(super) fn write_bytes(
        &self,
        bytes: &AlignedBuffer,
        offset: u64,
        length: usize,
    ) -> io::Result<()> {
        let bytes = &bytes.bytes()[..length];
        let whole = |value: u64| value.is_multiple_of(self.alignment);
        if whole(offset) && whole(length as u64) {
            return self.file.write_all_at(bytes, offset);
        }
        // Two writes to parts of one block must not bring back what the other
        // has replaced.
        let _partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        let old_length = self.file.metadata()?.len();
        let (mut blocks, skip) = self.read_blocks(offset, length)?;
        blocks.bytes_mut()[skip..][..length].copy_from_slice(bytes);
        let start = offset - skip as u64;
        self.file.write_all_at(blocks.bytes(), start)?;
        // The last block may reach past the end of a file.
        let end = start + blocks.bytes().len() as u64;
        if old_length > 0 && end > old_length && offset + length as u64 <= old_length {
            self.file.set_len(old_length)?;
        }
        Ok(())
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
            self.write_bytes(&zeroes, offset + done, step as usize)?;
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

/// What buffers, offsets and lengths have to be multiples of where the page
/// cache is bypassed. Trying it out would not do: where a file has no data yet
/// some file systems take any alignment, and refuse it later.
fn direct_alignment(file: &File) -> u32 {
    let flags = AtFlags::EMPTY_PATH;
    let told = statx(file, "", flags, StatxFlags::DIOALIGN).ok();
    let told = told
        .filter(|status| status.stx_mask & StatxFlags::DIOALIGN.bits() != 0)
        .map(|status| status.stx_dio_mem_align.max(status.stx_dio_offset_align));
    match told {
        Some(alignment) if alignment.is_power_of_two() => alignment.max(SMALLEST_BLOCK),
        // Kernels before 6.1, and file systems that do not say.
        _ => PAGE,
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;
    use crate::memory::plain;

    /// An image of 11 sectors on a host whose blocks have 4 KiB.
    fn image() -> (tempfile::NamedTempFile, RawImage) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..11 * 512).map(|at| (at / 512) as u8).collect();
        std::fs::write(file.path(), bytes).unwrap();
        let open = File::options().read(true).write(true).open(file.path());
        let image = RawImage::with_alignment(open.unwrap(), 512, 4096);
        (file, image)
    }

    #[test]
    fn sectors_are_read_and_written_alone_where_the_host_has_larger_blocks() {
        let (file, image) = image();
        let memory = Arc::new(plain(2 << 20));
        let buffers = |length| GuestBuffers::new(&memory, &[(GuestAddress(512), length)]).unwrap();
        for (sector, count) in [(0, 1), (3, 2), (6, 4), (10, 1), (0, 11)] {
            let target = buffers(count * 512);
            assert!(image.plain_file(&target, sector * 512).is_none());
            image.read(&target, sector * 512).unwrap();
            let mut read = vec![0; count as usize * 512];
            target.copy_to(&mut read);
            let expected = std::fs::read(file.path()).unwrap();
            assert_eq!(read, expected[sector as usize * 512..][..read.len()]);
            target.copy_from(&vec![0xa0 + sector as u8; read.len()]);
            image.write(&target, sector * 512).unwrap();
            let mut after = expected.clone();
            after[sector as usize * 512..][..read.len()].fill(0xa0 + sector as u8);
            assert_eq!(std::fs::read(file.path()).unwrap(), after, "{sector}");
        }
    }

    #[test]
    fn writes_to_parts_of_one_block_do_not_undo_each_other() {
        let (file, image) = image();
        let image = &image;
        std::thread::scope(|scope| {
            for sector in 0..8u8 {
                scope.spawn(move || {
                    for round in 0..200u8 {
                        let mut bytes = AlignedBuffer::new(512).unwrap();
                        bytes.bytes_mut().fill(round);
                        let at = u64::from(sector) * 512;
                        image.write_bytes(&bytes, at, 512).unwrap();
                        let mut read = [0; 512];
                        image.read_bytes(&mut read, at).unwrap();
                        assert_eq!(read, [round; 512]);
                    }
                });
            }
        });
        let bytes = std::fs::read(file.path()).unwrap();
        assert_eq!(bytes.len(), 11 * 512);
        assert!(bytes[..4096].iter().all(|byte| *byte == 199));
    }

    #[test]
    fn the_guests_blocks_on_a_file_do_not_depend_on_the_hosts() {
        let (file, _) = image();
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .open(file.path())
                .unwrap()
        };
        for direct in [false, true] {
            let image = RawImage::new(open(), direct).unwrap();
            assert_eq!(image.block_size(), 512);
            assert!(!direct || image.alignment >= 512);
        }
    }
}
