//! Code at the two addresses where an x86 processor or a guest that gives up
//! goes on as if the machine had been switched on. A PC has its firmware there.
//!
//! - 0xFFFF0, physical address of FFFF:0000: Linux jumps there (`reboot=b`, and
//!   by default on hardware-reduced ACPI without EFI), BSDs and DOS too.
//! - 0xFFFFFFF0: the first vCPU begins there after an INIT.
//!
//! Without code, the processor would execute zeros for ever, or an address that
//! has no memory.

use std::sync::Arc;

use hypervisor::Vm;
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::memory::layout::{LOW_RESET_VECTOR, RESET_VECTOR_PAGE};
use crate::memory::{GuestRam, MemoryError, RESET_VECTOR_SLOT, ReadOnlyWindow};

/// Bytes from the reset vector to the end of its 64 KiB.
const LENGTH: usize = 16;

const PAGE: usize = 4096;

/// Position-independent, 16-bit. The i8042 controller resets the machine; the
/// vCPU sleeps until that has happened.
const CODE: [u8; 8] = [
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xfa, // cli
    0xf4, // hlt
    0xeb, 0xfd, // jmp to the hlt
];

const _: () = assert!(CODE.len() <= LENGTH);

/// Writes the code below 1 MiB, into memory that the map reserves.
pub(super) fn write(ram: &GuestRam) -> Result<(), BootError> {
    ram.write_slice(&CODE, GuestAddress(LOW_RESET_VECTOR))
        .map_err(|source| BootError::Write("the reset vector", source))
}

/// Maps the last page below 4 GiB with the code at its end. The guest can read
/// it and not write it.
///
/// # Errors
/// The host gives no memory, or the hypervisor does not take it.
pub fn map(vm: Arc<dyn Vm>) -> Result<ReadOnlyWindow, MemoryError> {
    let mut page = [0xff; PAGE];
    page[PAGE - LENGTH..][..CODE.len()].copy_from_slice(&CODE);
    ReadOnlyWindow::map(vm, RESET_VECTOR_SLOT, RESET_VECTOR_PAGE, &page, 1)
}
