//! Making a vCPU leave the guest, from any thread.
//!
//! KVM_RUN returns at once with EINTR while `immediate_exit` in the vCPU's
//! shared page is set, and a signal makes it return when it is already in the
//! guest. Setting the byte first and sending the signal second leaves no gap
//! between the two.

use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;

/// Holds a mapping of its own of the vCPU's shared page, so that it may
/// outlive the vCPU.
#[derive(Debug)]
pub struct VcpuKick {
    page: NonNull<libc::c_void>,
    length: usize,
}

// SAFETY:
// - The mapping belongs to this value alone and lives until it is dropped.
// - The only access is to one byte, through AtomicU8.
unsafe impl Send for VcpuKick {}
// SAFETY: as above; `immediate_exit` is atomic, so shared access is sound.
unsafe impl Sync for VcpuKick {}

impl VcpuKick {
    pub(super) fn new(vcpu: RawFd) -> std::io::Result<Self> {
        let length = std::mem::size_of::<kvm_run>();
        // SAFETY:
        // - A new mapping at an address of the kernel's choice overlaps nothing.
        // - `vcpu` is an open vCPU descriptor, whose page 0 is a kvm_run that is
        //   at least as long as the header mapped here.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        match NonNull::new(address) {
            Some(page) => Ok(Self { page, length }),
            None => Err(std::io::Error::from_raw_os_error(libc::ENOMEM)),
        }
    }

    /// While `on`, every attempt to run the vCPU returns at once, after
    /// completing an I/O instruction that is under way.
    pub fn set_immediate_exit(&self, on: bool) {
        let offset = std::mem::offset_of!(kvm_run, immediate_exit);
        // SAFETY:
        // - The offset lies within the mapping, which is as long as kvm_run.
        // - A byte has no alignment to violate.
        // - The kernel reads this byte and never writes it; other threads of
        //   this process access it through this function alone.
        let byte = unsafe { AtomicU8::from_ptr(self.page.as_ptr().cast::<u8>().add(offset)) };
        byte.store(u8::from(on), Ordering::SeqCst);
    }
}

impl Drop for VcpuKick {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new`, is owned by this value and no
        // reference into it outlives a method call.
        unsafe {
            libc::munmap(self.page.as_ptr(), self.length);
        }
    }
}
