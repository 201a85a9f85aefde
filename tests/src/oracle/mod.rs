//! What the kernel itself says about exits, by ways that our code has no part
//! in: the `kvm_exit` tracepoint, KVM's debugfs counters, its dispatch tables,
//! its memory and its log.

mod dispatch;
mod events;
mod exits;
mod guest_memory;
mod held;
mod histogram;
mod log;
mod memory;
mod open;
mod process_watch;
mod rss;
mod table;
mod threads;

pub use dispatch::{handled_reasons, serves_encrypted_guests};
pub use events::{ReturnCount, SyscallCount};
pub use exits::{debugfs_exits, debugfs_vms, wait_until_silent};
pub use guest_memory::{checksum as guest_memory_checksum, word as guest_memory_word};
pub use held::HeldThread;
pub use histogram::{ExitHistogram, Histogram, same_exits};
pub use log::warnings;
pub use memory::KernelMemory;
pub use open::{Attempt, try_open};
pub use process_watch::{Lives, thread_named};
pub use rss::own_memory;
pub use table::{DebugfsRow, DebugfsTable};
pub use threads::{Thread, vcpu_threads};
