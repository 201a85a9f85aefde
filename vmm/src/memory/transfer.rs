//! Guest memory as the source or target of file I/O, without a copy.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::GuestRam;

/// The kernel takes no more buffers than this in one call.
pub(super) const MAX_BUFFERS: usize = 1024;

/// A range that is not guest memory, or too many bytes altogether.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("A buffer lies outside of guest memory")]
pub struct OutOfRange;

/// Buffers of one request, in order.
pub struct GuestBuffers {
    /// Keeps the mappings that the vectors point into.
    _memory: Arc<GuestRam>,
    vectors: Vec<libc::iovec>,
    length: usize,
}

// SAFETY: the vectors point into mappings that `_memory` keeps and that may be
// accessed from any thread.
unsafe impl Send for GuestBuffers {}

impl GuestBuffers {
    /// Checks that all ranges are guest memory.
    pub fn new(memory: &Arc<GuestRam>, ranges: &[(GuestAddress, u32)]) -> Result<Self, OutOfRange> {
        let mut vectors = Vec::with_capacity(ranges.len());
        let mut length = 0usize;
        for &(address, count) in ranges {
            let count = count as usize;
            for slice in GuestMemoryBackend::get_slices(&**memory, address, count) {
                let slice = slice.map_err(|_| OutOfRange)?;
                vectors.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
            length = length.checked_add(count).ok_or(OutOfRange)?;
        }
        Ok(Self {
            _memory: Arc::clone(memory),
            vectors,
            length,
        })
    }

    /// Bytes of all buffers together.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Whether every buffer begins and ends on a multiple of `alignment`.
    #[must_use]
    pub fn is_aligned(&self, alignment: usize) -> bool {
        self.vectors.iter().all(|vector| {
            (vector.iov_base as usize).is_multiple_of(alignment)
                && vector.iov_len.is_multiple_of(alignment)
        })
    }

    /// For the kernel, which may use them as long as `self` exists.
    pub(super) fn vectors(&self) -> &[libc::iovec] {
        &self.vectors
    }

    /// Reads what comes after the first `done` bytes from the file, in which
    /// the buffers begin at `offset`. What lies past its end reads as zero.
    pub fn read_from(&self, file: BorrowedFd<'_>, offset: u64, done: usize) -> io::Result<()> {
        self.transfer(done, |vectors, done| {
            // SAFETY:
            // - The vectors are ranges of mappings that `self` keeps.
            // - Nobody holds references into them; guest and VMM use volatile
            //   accesses only.
            let count = unsafe {
                libc::preadv(
                    file.as_raw_fd(),
                    vectors.as_ptr(),
                    vectors.len() as libc::c_int,
                    file_offset(offset, done)?,
                )
            };
            usize::try_from(count).map_err(|_| io::Error::last_os_error())
        })
        .map(|done| self.visit(done, |slice, _| zero(&slice)))
    }

    /// Writes what comes after the first `done` bytes.
    pub fn write_to(&self, file: BorrowedFd<'_>, offset: u64, done: usize) -> io::Result<()> {
        let done = self.transfer(done, |vectors, done| {
            // SAFETY: as for reading.
            let count = unsafe {
                libc::pwritev(
                    file.as_raw_fd(),
                    vectors.as_ptr(),
                    vectors.len() as libc::c_int,
                    file_offset(offset, done)?,
                )
            };
            usize::try_from(count).map_err(|_| io::Error::last_os_error())
        })?;
        if done < self.length {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// Repeats a call until nothing is left or nothing moves any more.
    fn transfer(
        &self,
        mut done: usize,
        mut call: impl FnMut(&[libc::iovec], usize) -> io::Result<usize>,
    ) -> io::Result<usize> {
        while done < self.length {
            let rest = self.after(done);
            match call(&rest[..rest.len().min(MAX_BUFFERS)], done) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn after(&self, done: usize) -> Vec<libc::iovec> {
        let mut skip = done;
        let mut rest = Vec::with_capacity(self.vectors.len());
        for vector in &self.vectors {
            let skipped = skip.min(vector.iov_len);
            skip -= skipped;
            if skipped < vector.iov_len {
                rest.push(libc::iovec {
                    iov_base: vector.iov_base.wrapping_byte_add(skipped),
                    iov_len: vector.iov_len - skipped,
                });
            }
        }
        rest
    }

    /// Copies `bytes` to the beginning of the buffers.
    pub fn copy_from(&self, bytes: &[u8]) {
        self.visit(0, |slice, at| {
            slice.copy_from(bytes.get(at..).unwrap_or_default());
        });
    }

    /// Copies the buffers' bytes; as many as there is room for.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        self.visit(0, |slice, at| {
            slice.copy_to(bytes.get_mut(at..).unwrap_or_default());
        });
    }

    fn visit(&self, done: usize, mut visit: impl FnMut(VolatileSlice<'_>, usize)) {
        let mut at = done;
        for vector in self.after(done) {
            // SAFETY:
            // - The vector lies in a mapping that `self` keeps, longer than the
            //   slice lives.
            // - Everybody accesses it as volatile.
            let slice = unsafe { VolatileSlice::new(vector.iov_base.cast(), vector.iov_len) };
            visit(slice, at);
            at += vector.iov_len;
        }
    }
}

fn zero(slice: &VolatileSlice<'_>) {
    const ZEROES: [u8; 4096] = [0; 4096];
    let mut at = 0;
    while at < slice.len() {
        let step = ZEROES.len().min(slice.len() - at);
        if let Ok(part) = slice.subslice(at, step) {
            part.copy_from(&ZEROES[..step]);
        }
        at += step;
    }
}

fn file_offset(offset: u64, done: usize) -> io::Result<libc::off_t> {
    offset
        .checked_add(done as u64)
        .and_then(|offset| libc::off_t::try_from(offset).ok())
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))
}

/// Page-aligned memory of this process, for files that take no other.
pub struct AlignedBuffer {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: owns its mapping, as a boxed slice would.
unsafe impl Send for AlignedBuffer {}

impl AlignedBuffer {
    /// Zeroed memory.
    pub fn new(length: usize) -> io::Result<Self> {
        let length = length.max(1);
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start.cast())
            .map(|start| Self { start, length })
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is initialised, owned by `self`, and not written
        // while this borrow lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// Its bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this borrow is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: the mapping is owned by this value and no borrow is left.
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.length);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::fd::AsFd;

    use vm_memory::Bytes;

    use super::*;
    use crate::memory::plain;

    fn memory() -> Arc<GuestRam> {
        Arc::new(plain(16 << 20))
    }

    #[test]
    fn files_are_read_into_all_buffers_and_end_in_zeroes() {
        let memory = memory();
        memory.write_slice(&[0xee; 64], GuestAddress(0)).unwrap();
        let ranges = [
            (GuestAddress(0), 3),
            (GuestAddress(32), 4),
            (GuestAddress(8), 2),
        ];
        let buffers = GuestBuffers::new(&memory, &ranges).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"..abcdef").unwrap();
        buffers.read_from(file.as_fd(), 2, 0).unwrap();
        let mut bytes = [0xff; 9];
        buffers.copy_to(&mut bytes);
        assert_eq!(&bytes, b"abcdef\0\0\0");
        assert_eq!(memory.read_obj::<u8>(GuestAddress(3)).unwrap(), 0xee);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(36)).unwrap(), 0xee);
    }

    #[test]
    fn a_transfer_that_was_begun_is_finished() {
        let memory = memory();
        let ranges = [(GuestAddress(0), 3), (GuestAddress(32), 4)];
        let buffers = GuestBuffers::new(&memory, &ranges).unwrap();
        buffers.copy_from(b"abcdefgh");
        let mut file = tempfile::tempfile().unwrap();
        buffers.write_to(file.as_fd(), 1, 4).unwrap();
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"\0\0\0\0\0efg");
    }

    #[test]
    fn more_buffers_than_a_call_takes_are_written_in_several() {
        let memory = memory();
        let ranges: Vec<_> = (0..3000).map(|at| (GuestAddress(at * 2), 1)).collect();
        let buffers = GuestBuffers::new(&memory, &ranges).unwrap();
        let pattern: Vec<u8> = (0..3000u32).map(|at| at as u8).collect();
        buffers.copy_from(&pattern);
        let file = tempfile::tempfile().unwrap();
        buffers.write_to(file.as_fd(), 0, 0).unwrap();
        buffers.copy_from(&[0; 3000]);
        buffers.read_from(file.as_fd(), 0, 0).unwrap();
        let mut bytes = vec![0; 3000];
        buffers.copy_to(&mut bytes);
        assert_eq!(bytes, pattern);
    }

    #[test]
    fn ranges_outside_of_memory_are_refused() {
        let memory = memory();
        for (address, length) in [
            (16 << 20, 1),
            ((16 << 20) - 1, 2),
            (u64::MAX, 2),
            (0, u32::MAX),
        ] {
            assert!(GuestBuffers::new(&memory, &[(GuestAddress(address), length)]).is_err());
        }
    }

    #[test]
    fn alignment_covers_beginning_and_end() {
        let memory = memory();
        let aligned = |address, length| {
            let ranges = [(GuestAddress(0), 512), (GuestAddress(address), length)];
            GuestBuffers::new(&memory, &ranges).unwrap().is_aligned(512)
        };
        assert!(aligned(1024, 512));
        assert!(!aligned(1025, 512) && !aligned(1024, 100));
    }
}
