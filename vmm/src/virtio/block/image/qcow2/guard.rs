//! Keeps a fault of the library to the disk: the file as the library sees it,
//! with a limit on how deeply and how often one request may come back to it.
//!
//! What an image holds decides how the library walks through it, and once it
//! runs the guest may decide what the image holds. A walk without an end
//! overflows the stack, which ends the process without a word, or never ends.
//! Each turn of it accesses the file, or asks what alignment the file wants of
//! a new table, so it is stopped here: by an error, or by a panic where there
//! can be none, which ends at [`run`]. From then on nothing of the request
//! reaches the file, lest it be left half done.

use std::cell::Cell;
use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use imago::file::File as Plain;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{Storage, StorageOpenOptions};

use super::header::{FEATURES_AT, REPAIRABLE};
use crate::memory::AlignedBuffer;
use crate::sandbox::{Panicked, catch_panic};

/// Bytes of stack that one request may take. The threads of a disk have half
/// a mebibyte.
const MAX_STACK: usize = 192 << 10;

/// What is left of a request's share.
#[derive(Debug, Clone, Copy)]
struct Budget {
    /// An address on the stack where the request began.
    stack: usize,
    operations: u64,
    exceeded: Option<&'static str>,
}

thread_local! {
    /// Of the request that this thread is about.
    static BUDGET: Cell<Option<Budget>> = const { Cell::new(None) };
}

fn stack_address() -> usize {
    let here = 0u8;
    black_box(std::ptr::from_ref(&here)).addr()
}

/// Why an image cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error("the image makes the library {0}")]
    Exceeded(&'static str),
    #[error("the library {0}")]
    Panicked(Panicked),
}

/// Does the work of one request, which may access the file `operations` times.
/// The outer error says why the image cannot be used any more.
pub(super) fn run<T>(
    operations: u64,
    work: impl FnOnce() -> io::Result<T>,
) -> Result<io::Result<T>, GuardError> {
    BUDGET.set(Some(Budget {
        stack: stack_address(),
        operations,
        exceeded: None,
    }));
    let outcome = catch_panic(work);
    match BUDGET.take().and_then(|budget| budget.exceeded) {
        Some(why) => Err(GuardError::Exceeded(why)),
        None => outcome.map_err(GuardError::Panicked),
    }
}

fn spend() -> io::Result<()> {
    let Some(mut budget) = BUDGET.get() else {
        return Ok(());
    };
    if budget.exceeded.is_none() {
        if budget.stack.abs_diff(stack_address()) > MAX_STACK {
            budget.exceeded = Some("call itself without end");
        } else if budget.operations == 0 {
            budget.exceeded = Some("access the file without end");
        } else {
            budget.operations -= 1;
        }
        BUDGET.set(Some(budget));
    }
    match budget.exceeded {
        Some(why) => Err(io::Error::other(why)),
        None => Ok(()),
    }
}

/// The same where the library expects no error.
fn spend_or_unwind() {
    if let Err(error) = spend() {
        // Without the message that a panic prints: `run` tells of it.
        std::panic::resume_unwind(Box::new(error.to_string()));
    }
}

/// A file as the library sees it.
#[derive(Debug)]
pub(super) struct Guarded {
    plain: Plain,
    /// The same, to hide from a reader that the image is dirty or corrupt: the
    /// library refuses both.
    reader: Option<File>,
}

impl Guarded {
    pub(super) fn new(file: File, options: StorageOpenOptions, writable: bool) -> io::Result<Self> {
        let reader = if writable {
            None
        } else {
            Some(file.try_clone()?)
        };
        Ok(Self {
            plain: Plain::from_open_file(file, options.write(writable))?,
            reader,
        })
    }
}

impl Display for Guarded {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        self.plain.fmt(formatter)
    }
}

impl Storage for Guarded {
    fn mem_align(&self) -> usize {
        spend_or_unwind();
        self.plain.mem_align()
    }

    fn req_align(&self) -> usize {
        self.plain.req_align()
    }

    fn zero_align(&self) -> usize {
        self.plain.zero_align()
    }

    fn discard_align(&self) -> usize {
        self.plain.discard_align()
    }

    fn size(&self) -> io::Result<u64> {
        self.plain.size()
    }

    fn get_filename(&self) -> Option<PathBuf> {
        self.plain.get_filename()
    }

    unsafe fn pure_readv(&self, mut bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        spend()?;
        if let Some(reader) = &self.reader
            && offset < FEATURES_AT.end as u64
        {
            let mut bytes = AlignedBuffer::new(bufv.len() as usize)?;
            let mut done = 0;
            while done < bytes.bytes().len() {
                match reader.read_at(&mut bytes.bytes_mut()[done..], offset + done as u64) {
                    Ok(0) => break,
                    Ok(count) => done += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            hide_repairable(bytes.bytes_mut(), offset as usize);
            bufv.copy_from_slice(&bytes.bytes()[..bufv.len() as usize]);
            return Ok(());
        }
        // SAFETY: what the caller promises about offset and alignment is what
        // the file, which has the same alignment, asks for.
        unsafe { self.plain.pure_readv(bufv, offset) }
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        spend()?;
        // SAFETY: as for reading.
        unsafe { self.plain.pure_writev(bufv, offset) }
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        spend()?;
        // SAFETY: as for reading.
        unsafe { self.plain.pure_write_zeroes(offset, length) }
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        spend()?;
        // SAFETY: as for reading.
        unsafe { self.plain.pure_write_allocated_zeroes(offset, length) }
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        spend()?;
        // SAFETY: as for reading.
        unsafe { self.plain.pure_discard(offset, length) }
    }

    fn flush(&self) -> io::Result<()> {
        spend()?;
        self.plain.flush()
    }

    fn sync(&self) -> io::Result<()> {
        spend()?;
        self.plain.sync()
    }

    fn settle_writes(&self) -> io::Result<()> {
        self.plain.settle_writes()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        // SAFETY: the file has no cache of its own; it does nothing.
        unsafe { self.plain.invalidate_cache() }
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.plain.get_storage_helper()
    }

    fn resize(&self, new_size: u64, prealloc_mode: PreallocateMode) -> io::Result<()> {
        spend()?;
        self.plain.resize(new_size, prealloc_mode)
    }
}

/// Clears the repairable features in the header's bytes from `offset` on. A
/// raw file, or a header of version 2, does not have them.
fn hide_repairable(bytes: &mut [u8], offset: usize) {
    // The features are a big-endian number; these are in its last byte.
    let at = FEATURES_AT.end - 1;
    if let Some(byte) = at.checked_sub(offset).and_then(|at| bytes.get_mut(at)) {
        *byte &= !(REPAIRABLE as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recursion_and_loops_end_and_spoil_the_request() {
        fn deeper(level: u64) -> io::Result<u64> {
            let padding = black_box([level; 64]);
            spend()?;
            Ok(deeper(level + 1)? + padding[1])
        }
        let on_small_stack = std::thread::Builder::new().stack_size(512 << 10);
        let thread = on_small_stack
            .spawn(|| run(u64::MAX, || deeper(0)).unwrap_err())
            .unwrap();
        assert!(thread.join().unwrap().to_string().contains("call itself"));
        let looped = run(100, || -> io::Result<()> {
            loop {
                // Errors that the library ignores do not help it.
                let _ = spend();
                if BUDGET.get().unwrap().exceeded.is_some() {
                    return Ok(());
                }
            }
        });
        assert!(looped.unwrap_err().to_string().contains("without end"));
        let panicked = run(1, || -> io::Result<()> { panic!("no luck") });
        assert!(panicked.unwrap_err().to_string().contains("no luck"));
        assert!(run(2, spend).is_ok());
    }
}
