//! Buffers of guest memory as the kernel takes them: many of them filled or
//! sent with one call, without a copy in this process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::GuestRam;

/// The kernel takes no more buffers than this in a call, and one more that is
/// not the guest's.
const MAX_BUFFERS: usize = 1023;

/// Why a buffer is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IoVecsError {
    /// Not all of it is guest memory.
    #[error("A buffer lies outside of guest memory")]
    OutOfRange,
    /// One call cannot take so many.
    #[error("There are more than {MAX_BUFFERS} buffers")]
    TooMany,
}

#[derive(Clone, Copy)]
struct Piece {
    host: NonNull<u8>,
    length: usize,
}

/// A list of buffers, in order. Keeps its own memory from one use to the next.
pub struct IoVecs {
    /// Keeps the mappings that the pieces lie in.
    memory: Arc<GuestRam>,
    pieces: Vec<Piece>,
    /// Pieces before this one are spent.
    start: usize,
    length: usize,
    /// For the kernel, made anew for each call.
    call: Vec<libc::iovec>,
}

// SAFETY:
// - `pieces` point into mappings that `memory` keeps and that may be accessed
//   from any thread.
// - `call` is empty between calls.
unsafe impl Send for IoVecs {}

impl IoVecs {
    /// An empty list of buffers in `memory`.
    #[must_use]
    pub fn new(memory: Arc<GuestRam>) -> Self {
        Self {
            memory,
            pieces: Vec::new(),
            start: 0,
            length: 0,
            call: Vec::new(),
        }
    }

    /// Appends `length` bytes at `address`. After an error the list is as it
    /// was.
    pub fn push(&mut self, address: GuestAddress, length: usize) -> Result<(), IoVecsError> {
        if length == 0 {
            return Ok(());
        }
        // Spent pieces make room before new memory is asked for.
        if self.start > 0 && self.pieces.len() == self.pieces.capacity() {
            self.compact();
        }
        let before = self.pieces.len();
        for slice in GuestMemoryBackend::get_slices(&*self.memory, address, length) {
            let piece = slice.ok().and_then(|slice| {
                NonNull::new(slice.ptr_guard_mut().as_ptr()).map(|host| Piece {
                    host,
                    length: slice.len(),
                })
            });
            let refused = match piece {
                None => IoVecsError::OutOfRange,
                Some(_) if self.count() >= MAX_BUFFERS => IoVecsError::TooMany,
                Some(piece) => {
                    self.pieces.push(piece);
                    continue;
                }
            };
            self.pieces.truncate(before);
            return Err(refused);
        }
        self.length += length;
        Ok(())
    }

    /// Forgets all buffers.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.start = 0;
        self.length = 0;
    }

    /// How many buffers there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.pieces.len() - self.start
    }

    /// How many bytes they have.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Forgets the first `count` buffers.
    pub fn consume(&mut self, count: usize) {
        let end = self.start + count.min(self.count());
        let spent: usize = self.pieces[self.start..end]
            .iter()
            .map(|piece| piece.length)
            .sum();
        self.length -= spent;
        self.start = end;
        if self.count() == 0 {
            self.clear();
        }
    }

    /// Forgets all buffers after the first `count`.
    pub fn truncate(&mut self, count: usize) {
        let end = self.start + count.min(self.count());
        let gone: usize = self.pieces[end..].iter().map(|piece| piece.length).sum();
        self.length -= gone;
        self.pieces.truncate(end);
    }

    fn compact(&mut self) {
        self.pieces.drain(..self.start);
        self.start = 0;
    }

    /// Copies out the bytes from `offset` on; false if there are too few.
    #[must_use]
    pub fn read_at(&self, offset: usize, bytes: &mut [u8]) -> bool {
        let mut done = 0;
        let wanted = bytes.len();
        self.visit(offset, wanted, |slice| {
            let part = &mut bytes[done..done + slice.len()];
            done += slice.len();
            slice.copy_to(part);
        });
        done == wanted
    }

    /// Copies in bytes from `offset` on; false if there is too little room.
    #[must_use]
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> bool {
        let mut done = 0;
        self.visit(offset, bytes.len(), |slice| {
            // Cannot fail: both are equally long.
            let _ = slice.write_slice(&bytes[done..done + slice.len()], 0);
            done += slice.len();
        });
        done == bytes.len()
    }

    /// Calls `visit` with the parts that lie in a range of the list.
    fn visit(&self, offset: usize, length: usize, mut visit: impl FnMut(VolatileSlice<'_>)) {
        let mut skip = offset;
        let mut left = length;
        for piece in &self.pieces[self.start..] {
            if skip >= piece.length {
                skip -= piece.length;
                continue;
            }
            let part = left.min(piece.length - skip);
            if part == 0 {
                return;
            }
            // SAFETY:
            // - `skip + part` does not exceed the piece, which lies within a
            //   mapping that `self.memory` keeps longer than this borrow.
            // - Everybody accesses the range as volatile.
            visit(unsafe { VolatileSlice::new(piece.host.as_ptr().add(skip), part) });
            left -= part;
            skip = 0;
        }
    }

    /// Fills the buffers from `source`, beginning at `offset` and with no more
    /// than `limit` bytes; what comes on top of them goes to `rest`. One call;
    /// says how many bytes came.
    pub fn read_from(
        &mut self,
        source: BorrowedFd<'_>,
        offset: usize,
        limit: usize,
        rest: &mut [u8],
    ) -> io::Result<usize> {
        self.prepare(offset, limit);
        if !rest.is_empty() {
            self.call.push(libc::iovec {
                iov_base: rest.as_mut_ptr().cast(),
                iov_len: rest.len(),
            });
        }
        // SAFETY:
        // - Every entry is a range that may be written: pieces lie in mappings
        //   that `self.memory` keeps, and `rest` is borrowed for the call.
        // - The descriptor is open as long as it is borrowed.
        let count = unsafe {
            libc::readv(
                source.as_raw_fd(),
                self.call.as_ptr(),
                self.call.len() as libc::c_int,
            )
        };
        self.finish(count)
    }

    /// Sends the buffers' bytes from `offset` on, no more than `limit`, to
    /// `target`. One call; says how many bytes went.
    pub fn write_to(
        &mut self,
        target: BorrowedFd<'_>,
        offset: usize,
        limit: usize,
    ) -> io::Result<usize> {
        self.prepare(offset, limit);
        // SAFETY:
        // - Every entry is a range that may be read: pieces lie in mappings
        //   that `self.memory` keeps.
        // - The descriptor is open as long as it is borrowed.
        let count = unsafe {
            libc::writev(
                target.as_raw_fd(),
                self.call.as_ptr(),
                self.call.len() as libc::c_int,
            )
        };
        self.finish(count)
    }

    fn prepare(&mut self, offset: usize, limit: usize) {
        self.call.clear();
        let mut skip = offset;
        let mut left = limit;
        for piece in &self.pieces[self.start..] {
            if skip >= piece.length {
                skip -= piece.length;
                continue;
            }
            let part = left.min(piece.length - skip);
            if part == 0 {
                return;
            }
            self.call.push(libc::iovec {
                iov_base: piece.host.as_ptr().wrapping_add(skip).cast(),
                iov_len: part,
            });
            left -= part;
            skip = 0;
        }
    }

    fn finish(&mut self, count: isize) -> io::Result<usize> {
        // Nothing may look at `rest` later.
        self.call.clear();
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::fd::AsFd;

    use super::*;
    use crate::memory::{layout, plain};

    fn list(buffers: &[(u64, usize)]) -> IoVecs {
        let memory = Arc::new(plain(16 << 20));
        let mut list = IoVecs::new(memory);
        for &(address, length) in buffers {
            list.push(GuestAddress(address), length).unwrap();
        }
        list
    }

    fn contents(list: &IoVecs) -> Vec<u8> {
        let mut bytes = vec![0; list.length()];
        assert!(list.read_at(0, &mut bytes));
        bytes
    }

    #[test]
    fn bytes_cross_buffers_in_both_directions() {
        let list = list(&[(0, 3), (100, 0), (100, 2), (50, 4)]);
        assert_eq!((list.count(), list.length()), (3, 9));
        assert!(list.write_at(2, b"abcd"));
        assert_eq!(contents(&list), b"\0\0abcd\0\0\0");
        assert!(!list.write_at(6, b"wxyz"));
        assert!(!list.read_at(9, &mut [0]));
        assert!(list.read_at(9, &mut []));
    }

    #[test]
    fn files_are_read_and_written_in_place() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut list = list(&[(0, 2), (64, 5)]);
        let mut rest = [0; 8];
        assert_eq!(list.read_from(file.as_fd(), 1, 4, &mut rest).unwrap(), 10);
        assert_eq!(contents(&list), b"\x000123\0\0");
        assert_eq!(&rest, b"456789\0\0");

        let mut copy = tempfile::tempfile().unwrap();
        assert_eq!(list.write_to(copy.as_fd(), 1, 3).unwrap(), 3);
        assert_eq!(list.write_to(copy.as_fd(), 3, usize::MAX).unwrap(), 4);
        copy.seek(SeekFrom::Start(0)).unwrap();
        let mut bytes = Vec::new();
        copy.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"01223\0\0");
    }

    #[test]
    fn buffers_leave_at_both_ends() {
        let mut list = list(&[(0, 1), (10, 2), (20, 4), (30, 8)]);
        list.consume(1);
        assert_eq!((list.count(), list.length()), (3, 14));
        list.truncate(2);
        assert_eq!((list.count(), list.length()), (2, 6));
        assert!(list.write_at(0, b"ab"));
        for _ in 0..100 {
            list.push(GuestAddress(40), 1).unwrap();
            list.consume(1);
        }
        assert_eq!((list.count(), list.length()), (2, 2));
        list.consume(9);
        assert_eq!((list.count(), list.length()), (0, 0));
    }

    #[test]
    fn buffers_outside_of_memory_and_too_many_are_refused() {
        let mut list = list(&[(0, 1)]);
        for (address, length) in [(16 << 20, 1), ((16 << 20) - 1, 2), (u64::MAX, 2)] {
            assert_eq!(
                list.push(GuestAddress(address), length),
                Err(IoVecsError::OutOfRange)
            );
        }
        assert_eq!((list.count(), list.length()), (1, 1));
        for _ in 1..MAX_BUFFERS {
            list.push(GuestAddress(0), 1).unwrap();
        }
        assert_eq!(list.push(GuestAddress(0), 1), Err(IoVecsError::TooMany));
        assert_eq!(list.length(), MAX_BUFFERS);
    }

    #[test]
    fn buffers_do_not_cross_the_hole() {
        let size = layout::LOW_RAM_END + (2 << 20);
        let memory = Arc::new(plain(size));
        let mut list = IoVecs::new(memory);
        let edge = GuestAddress(layout::LOW_RAM_END - 8);
        assert_eq!(list.push(edge, 16), Err(IoVecsError::OutOfRange));
        assert!(list.push(edge, 8).is_ok());
    }
}
