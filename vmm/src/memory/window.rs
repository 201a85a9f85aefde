//! Memory that the guest reads like RAM, without an exit, and whose writes
//! come to the VMM as memory-mapped I/O. It fits registers whose reading has
//! no side effect: the VMM stores what the guest is to see, and the guest's
//! many reads cost nothing.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hypervisor::Vm;

use super::MemoryError;

const PAGE: usize = 4096;
const WORD: usize = size_of::<u32>();

/// A range of this kind. Any thread may store to it; the guest and this
/// process see whole 32-bit words change.
pub struct ReadOnlyWindow {
    vm: Arc<dyn Vm>,
    slot: u32,
    host: NonNull<u8>,
    length: usize,
}

// SAFETY:
// - The mapping is owned by this value and unmapped only when it is dropped.
// - Its bytes are accessed as atomic words only; the guest cannot write them.
unsafe impl Send for ReadOnlyWindow {}
// SAFETY: as above.
unsafe impl Sync for ReadOnlyWindow {}

impl ReadOnlyWindow {
    /// Shows `count` copies of `pattern`, whose length is a multiple of the
    /// page size, from the guest address `guest` on. Copies that are never
    /// stored to share their pages.
    pub fn map(
        vm: Arc<dyn Vm>,
        slot: u32,
        guest: u64,
        pattern: &[u8],
        count: usize,
    ) -> Result<Self, MemoryError> {
        let (host, length) = map_copies(pattern, count).map_err(MemoryError::Window)?;
        // The value exists before the guest knows of the range, so that an
        // error below gives the memory back.
        let window = Self {
            vm,
            slot,
            host,
            length,
        };
        // SAFETY:
        // - The mapping stays until this value is dropped, which takes it away
        //   from the guest first.
        // - It is accessed through atomics only, never through references to
        //   plain bytes.
        unsafe {
            window
                .vm
                .map_readonly_memory(slot, guest, length as u64, host.as_ptr())
        }
        .map_err(MemoryError::Hypervisor)?;
        Ok(window)
    }

    /// Stores `bytes` at `offset`. Both are multiples of four; whatever lies
    /// outside of the window is dropped.
    pub fn store(&self, offset: usize, bytes: &[u8]) {
        for (index, word) in bytes.as_chunks::<WORD>().0.iter().enumerate() {
            let Some(cell) = self.word(offset + index * WORD) else {
                return;
            };
            // Words that stay as they are keep their page shared.
            let value = u32::from_ne_bytes(*word);
            if cell.load(Ordering::Relaxed) != value {
                cell.store(value, Ordering::Release);
            }
        }
    }

    fn word(&self, offset: usize) -> Option<&AtomicU32> {
        let end = offset.checked_add(WORD)?;
        if end > self.length || !offset.is_multiple_of(WORD) {
            return None;
        }
        // SAFETY:
        // - The word lies within the mapping and is aligned, both checked; the
        //   mapping itself is page-aligned.
        // - It lives as long as the borrow of `self`.
        // - Everybody in this process accesses it as an atomic.
        Some(unsafe { AtomicU32::from_ptr(self.host.as_ptr().add(offset).cast()) })
    }
}

impl Drop for ReadOnlyWindow {
    fn drop(&mut self) {
        if let Err(error) = self.vm.unmap_memory(self.slot) {
            // Either the range was never shown, or the VM still shows it: then
            // the mapping has to stay for good.
            log::debug!("memory slot {}: {error}", self.slot);
            return;
        }
        // SAFETY: the mapping is owned by this value, no borrow of it is left,
        // and the guest has lost it just now.
        unsafe {
            libc::munmap(self.host.as_ptr().cast(), self.length);
        }
    }
}

/// Maps copies of `pattern` one after the other, each private.
fn map_copies(pattern: &[u8], count: usize) -> io::Result<(NonNull<u8>, usize)> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    if pattern.is_empty() || !pattern.len().is_multiple_of(PAGE) {
        return Err(invalid());
    }
    let length = pattern.len().checked_mul(count).ok_or_else(invalid)?;
    // SAFETY: the name is a constant with a terminating zero; the call has no
    // other pointer.
    let fd = unsafe { libc::memfd_create(c"guest-window".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else knows it.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(pattern)?;
    let start = mmap(std::ptr::null_mut(), length, None)?;
    for copy in 0..count {
        let place = start.as_ptr().wrapping_add(copy * pattern.len());
        if let Err(error) = mmap(place, pattern.len(), Some(&file)) {
            // SAFETY: the range was mapped above and nobody refers to it.
            unsafe { libc::munmap(start.as_ptr().cast(), length) };
            return Err(error);
        }
    }
    Ok((start, length))
}

/// Maps private memory: anywhere without a file; with one, at `place`, which
/// has to lie in a mapping that the caller owns.
fn mmap(place: *mut u8, length: usize, file: Option<&File>) -> io::Result<NonNull<u8>> {
    let (flags, fd) = match file {
        Some(file) => (libc::MAP_FIXED, file.as_raw_fd()),
        None => (libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1),
    };
    // SAFETY:
    // - Without a file the kernel chooses the place; with one, the caller owns
    //   what is replaced.
    // - The descriptor, if any, is open for the duration of the call.
    let address = unsafe {
        libc::mmap(
            place.cast(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | flags,
            fd,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(start: NonNull<u8>, length: usize) -> Vec<u8> {
        (0..length)
            // SAFETY: the tests read within what they have mapped.
            .map(|offset| unsafe { start.add(offset).read_volatile() })
            .collect()
    }

    #[test]
    fn copies_of_a_pattern_are_equal_and_private() {
        let mut pattern = vec![0xff; 2 * PAGE];
        pattern[PAGE] = 7;
        let (start, length) = map_copies(&pattern, 3).unwrap();
        assert_eq!(bytes(start, length), pattern.repeat(3));
        // SAFETY: within the mapping.
        unsafe { start.write_volatile(1) };
        assert_eq!(bytes(start, length)[2 * PAGE..], pattern.repeat(2));
    }

    #[test]
    fn patterns_that_are_no_pages_are_refused() {
        for pattern in [&[][..], &[0; 100]] {
            assert!(map_copies(pattern, 1).is_err());
        }
        assert!(map_copies(&[0; PAGE], usize::MAX).is_err());
    }
}
