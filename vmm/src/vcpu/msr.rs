//! Model-specific registers that do not start with zero.

const MISC_ENABLE: u32 = 0x1a0;
const MTRR_DEF_TYPE: u32 = 0x2ff;

/// Fast string operations.
const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;
/// Memory type ranges are on, and all memory is write-back.
const MTRR_ENABLE: u64 = 1 << 11;
const WRITE_BACK: u64 = 6;

/// The registers of a vCPU that boots an operating system directly: what
/// firmware would have set.
#[must_use]
pub fn boot_msrs() -> Vec<(u32, u64)> {
    vec![
        (MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (MTRR_DEF_TYPE, MTRR_ENABLE | WRITE_BACK),
    ]
}
