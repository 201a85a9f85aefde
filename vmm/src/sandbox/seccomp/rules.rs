//! What each kind of thread does, as system calls.

use libc::{c_long, c_ulong};

use crate::sandbox::ThreadKind;

/// A system call that is allowed: always, or if one of the conditions holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) number: c_long,
    pub(super) conditions: &'static [ArgCondition],
}

/// A condition on an argument, of which the lower half counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct ArgCondition {
    pub(super) argument: u8,
    pub(super) mask: u32,
    pub(super) value: u32,
}

/// Everything that a thread of this kind may do. A call may occur more than
/// once; it is allowed if one of its entries allows it.
pub(super) fn of(kind: ThreadKind) -> Vec<Entry> {
    let mut entries = COMMON.to_vec();
    for list in lists(kind) {
        entries.extend_from_slice(list);
    }
    entries
}

fn lists(kind: ThreadKind) -> Vec<&'static [Entry]> {
    match kind {
        ThreadKind::Control => vec![
            CONTROL, VCPU, TAP, WORKER, BLOCK, NET, STREAMS, TERMINAL, SOCKETS, CONNECT,
        ],
        ThreadKind::Api => vec![API, STREAMS],
        ThreadKind::Inspector => vec![INSPECTOR],
        ThreadKind::Vcpu => vec![VCPU, TAP, STREAMS],
        ThreadKind::SerialInput => vec![WORKER, TERMINAL, STREAMS, SOCKETS],
        ThreadKind::VirtioBlock => vec![WORKER, BLOCK],
        ThreadKind::VirtioNet => vec![WORKER, TAP, NET],
        ThreadKind::VirtioConsole => vec![WORKER, TERMINAL, STREAMS, SOCKETS],
        ThreadKind::VirtioVsock => vec![WORKER, STREAMS, SOCKETS, CONNECT],
        ThreadKind::VirtioRng | ThreadKind::VirtioBalloon | ThreadKind::VirtioWatchdog => {
            vec![WORKER]
        }
        ThreadKind::ShutdownWatch => vec![WATCH],
        ThreadKind::EventMonitor => vec![],
    }
}

const fn any(number: c_long) -> Entry {
    Entry {
        number,
        conditions: &[],
    }
}

const fn with(number: c_long, conditions: &'static [ArgCondition]) -> Entry {
    Entry { number, conditions }
}

/// An argument that has exactly this value.
const fn equal(argument: u8, value: u32) -> ArgCondition {
    ArgCondition {
        argument,
        mask: u32::MAX,
        value,
    }
}

/// A request to a device, whose number is the second argument.
const fn request(number: c_ulong) -> ArgCondition {
    equal(1, number as u32)
}

/// An argument none of whose bits in the mask is set.
const fn without(argument: u8, mask: u32) -> ArgCondition {
    ArgCondition {
        argument,
        mask,
        value: 0,
    }
}

/// Memory that can be executed is never made, so that what gets into a thread
/// stays data.
const NOT_EXECUTABLE: &[ArgCondition] = &[without(2, libc::PROT_EXEC as u32)];

/// What the allocator, locks, clocks, messages and the end of a thread take.
const COMMON: &[Entry] = &[
    any(libc::SYS_brk),
    any(libc::SYS_clock_gettime),
    any(libc::SYS_close),
    any(libc::SYS_exit),
    any(libc::SYS_exit_group),
    // Builds with assertions look whether what they close is open.
    with(libc::SYS_fcntl, &[equal(1, libc::F_GETFD as u32)]),
    any(libc::SYS_futex),
    any(libc::SYS_getpid),
    any(libc::SYS_getrandom),
    any(libc::SYS_gettid),
    any(libc::SYS_madvise),
    with(libc::SYS_mmap, NOT_EXECUTABLE),
    with(libc::SYS_mprotect, NOT_EXECUTABLE),
    any(libc::SYS_mremap),
    any(libc::SYS_munmap),
    with(libc::SYS_prctl, &[equal(0, libc::PR_GET_NAME as u32)]),
    any(libc::SYS_read),
    any(libc::SYS_restart_syscall),
    any(libc::SYS_rt_sigprocmask),
    any(libc::SYS_rt_sigreturn),
    // The allocator asks how many CPUs there are.
    any(libc::SYS_sched_getaffinity),
    any(libc::SYS_sched_yield),
    any(libc::SYS_sigaltstack),
    any(libc::SYS_write),
    any(libc::SYS_writev),
];

/// What a device's thread takes to wait for its queues.
const WORKER: &[Entry] = &[
    any(libc::SYS_epoll_ctl),
    any(libc::SYS_epoll_pwait),
    any(libc::SYS_epoll_wait),
    any(libc::SYS_eventfd2),
    any(libc::SYS_timerfd_create),
    any(libc::SYS_timerfd_settime),
];

/// What the watch over a shutdown takes to wait.
const WATCH: &[Entry] = &[any(libc::SYS_poll), any(libc::SYS_ppoll)];

/// Copies of descriptors, and descriptors that do not block.
const STREAMS: &[Entry] = &[
    with(
        libc::SYS_fcntl,
        &[
            equal(1, libc::F_DUPFD_CLOEXEC as u32),
            equal(1, libc::F_GETFL as u32),
            equal(1, libc::F_SETFL as u32),
        ],
    ),
    with(libc::SYS_ioctl, &[request(libc::FIONBIO)]),
];

// KVM's requests, from linux/kvm.h.
const KVM_CHECK_EXTENSION: c_ulong = 0xae03;
const KVM_RUN: c_ulong = 0xae80;
const KVM_GET_REGS: c_ulong = 0x8090_ae81;
const KVM_GET_SREGS: c_ulong = 0x8138_ae83;
const KVM_KVMCLOCK_CTRL: c_ulong = 0xaead;
const KVM_IOEVENTFD: c_ulong = 0x4040_ae79;
const KVM_IRQFD: c_ulong = 0x4020_ae76;
const KVM_SET_GSI_ROUTING: c_ulong = 0x4008_ae6a;
const KVM_SET_USER_MEMORY_REGION: c_ulong = 0x4020_ae46;
const KVM_SIGNAL_MSI: c_ulong = 0x4020_aea5;

/// A vCPU runs, and what its guest writes into registers moves address ranges,
/// routes interrupts and starts devices.
const VCPU: &[Entry] = &[
    any(libc::SYS_eventfd2),
    // Registers that the guest reads without an exit, wherever it moves them.
    any(libc::SYS_memfd_create),
    with(
        libc::SYS_ioctl,
        &[
            request(KVM_RUN),
            // To say where it was when KVM gives up on the guest.
            request(KVM_GET_REGS),
            // For an inspection.
            request(KVM_GET_SREGS),
            request(KVM_KVMCLOCK_CTRL),
            request(KVM_IOEVENTFD),
            request(KVM_IRQFD),
            request(KVM_SET_GSI_ROUTING),
            request(KVM_SET_USER_MEMORY_REGION),
            request(KVM_SIGNAL_MSI),
        ],
    ),
    // Waits a moment for whoever reads the serial port or the debug console.
    any(libc::SYS_poll),
    any(libc::SYS_ppoll),
    // Before it runs, where it is bound to CPUs.
    any(libc::SYS_sched_setaffinity),
];

/// The second argument of an advisory lock that belongs to the open file.
const F_OFD_SETLK: u32 = 37;

/// Reading and writing images, by the ring or without.
const BLOCK: &[Entry] = &[
    any(libc::SYS_fallocate),
    with(libc::SYS_fcntl, &[equal(1, libc::F_GETFL as u32)]),
    any(libc::SYS_fdatasync),
    any(libc::SYS_fstat),
    any(libc::SYS_fsync),
    any(libc::SYS_ftruncate),
    any(libc::SYS_io_uring_enter),
    any(libc::SYS_lseek),
    any(libc::SYS_newfstatat),
    any(libc::SYS_pread64),
    any(libc::SYS_preadv),
    any(libc::SYS_pwrite64),
    any(libc::SYS_pwritev),
    any(libc::SYS_sched_getscheduler),
    // Queues bound to CPUs.
    any(libc::SYS_sched_setaffinity),
    with(
        libc::SYS_sched_setscheduler,
        &[
            equal(1, libc::SCHED_OTHER as u32),
            equal(1, libc::SCHED_BATCH as u32),
        ],
    ),
    any(libc::SYS_statx),
];

/// What the driver switches on the interface, when it takes the device and
/// later.
const TAP: &[Entry] = &[with(
    libc::SYS_ioctl,
    &[request(libc::TUNSETOFFLOAD), request(libc::TUNSETQUEUE)],
)];

/// Frames.
const NET: &[Entry] = &[any(libc::SYS_readv)];

/// Input, and the size of the screen.
const TERMINAL: &[Entry] = &[
    with(libc::SYS_ioctl, &[request(libc::TIOCGWINSZ)]),
    any(libc::SYS_poll),
    any(libc::SYS_ppoll),
    any(libc::SYS_readv),
];

/// Clients of a socket.
const SOCKETS: &[Entry] = &[
    any(libc::SYS_accept4),
    // Waits a moment where a client can be neither accepted nor refused.
    any(libc::SYS_clock_nanosleep),
    any(libc::SYS_poll),
    any(libc::SYS_ppoll),
    any(libc::SYS_readv),
    any(libc::SYS_recvfrom),
    any(libc::SYS_recvmsg),
    any(libc::SYS_sendmsg),
    any(libc::SYS_sendto),
    any(libc::SYS_shutdown),
];

/// Sockets of host programs. None is made but Unix sockets, and the device's
/// own socket goes with the thread.
const CONNECT: &[Entry] = &[
    any(libc::SYS_connect),
    with(libc::SYS_socket, &[equal(0, libc::AF_UNIX as u32)]),
    any(libc::SYS_unlink),
];

/// Clients come and go, the statistics are read, and at the end the socket and
/// its lock file go.
const API: &[Entry] = &[
    any(libc::SYS_accept4),
    any(libc::SYS_clock_nanosleep),
    any(libc::SYS_epoll_ctl),
    any(libc::SYS_epoll_pwait),
    any(libc::SYS_epoll_wait),
    // Whether counting is on.
    with(libc::SYS_ioctl, &[request(KVM_CHECK_EXTENSION)]),
    any(libc::SYS_newfstatat),
    any(libc::SYS_pread64),
    any(libc::SYS_recvfrom),
    any(libc::SYS_recvmsg),
    any(libc::SYS_sendmsg),
    any(libc::SYS_sendto),
    // Room for a whole answer.
    with(libc::SYS_setsockopt, &[equal(2, libc::SO_SNDBUF as u32)]),
    any(libc::SYS_statx),
    any(libc::SYS_unlink),
];

/// The state of all parts is read: registers and statistics of vCPUs, and which
/// descriptors are open.
const INSPECTOR: &[Entry] = &[
    any(libc::SYS_clock_nanosleep),
    any(libc::SYS_getdents64),
    with(
        libc::SYS_ioctl,
        &[
            request(KVM_CHECK_EXTENSION),
            request(KVM_GET_REGS),
            request(KVM_GET_SREGS),
        ],
    ),
    any(libc::SYS_lseek),
    any(libc::SYS_pread64),
    any(libc::SYS_readlinkat),
    // Brings a vCPU out of the guest.
    any(libc::SYS_tgkill),
];

/// All of KVM's requests.
const KVM: ArgCondition = ArgCondition {
    argument: 1,
    mask: 0xff00,
    value: 0xae00,
};

// From linux/io_uring.h.
const IORING_REGISTER_EVENTFD: u32 = 4;
const IORING_REGISTER_RESTRICTIONS: u32 = 11;
const IORING_REGISTER_ENABLE_RINGS: u32 = 12;

const THREADS_ONLY: &[ArgCondition] = &[ArgCondition {
    argument: 0,
    mask: libc::CLONE_THREAD as u32,
    value: libc::CLONE_THREAD as u32,
}];

/// Building and taking down machines and devices, starting threads, and what
/// those need before they put their own filters on.
const CONTROL: &[Entry] = &[
    any(libc::SYS_access),
    any(libc::SYS_bind),
    any(libc::SYS_clock_nanosleep),
    with(libc::SYS_clone, THREADS_ONLY),
    any(libc::SYS_clone3),
    any(libc::SYS_dup),
    // Waiting of the threads that it starts.
    any(libc::SYS_epoll_create1),
    any(libc::SYS_faccessat),
    any(libc::SYS_faccessat2),
    with(libc::SYS_fcntl, &[equal(1, F_OFD_SETLK)]),
    any(libc::SYS_flock),
    any(libc::SYS_fstatfs),
    any(libc::SYS_get_robust_list),
    any(libc::SYS_getsockopt),
    any(libc::SYS_getuid),
    any(libc::SYS_geteuid),
    with(
        libc::SYS_ioctl,
        &[
            KVM,
            request(libc::TUNSETIFF),
            request(libc::TUNGETIFF),
            request(libc::TUNSETVNETHDRSZ),
            request(libc::TUNSETVNETLE),
            // The interface's address, mask, hardware address, MTU and state.
            request(libc::SIOCGIFFLAGS as c_ulong),
            request(libc::SIOCGIFINDEX as c_ulong),
            request(libc::SIOCGIFMTU as c_ulong),
            request(libc::SIOCSIFADDR as c_ulong),
            request(libc::SIOCSIFFLAGS as c_ulong),
            request(libc::SIOCSIFHWADDR as c_ulong),
            request(libc::SIOCSIFMTU as c_ulong),
            request(libc::SIOCSIFNETMASK as c_ulong),
            // Terminals.
            request(libc::TCGETS as c_ulong),
            request(libc::TCSETS as c_ulong),
            request(libc::TCGETS2 as c_ulong),
            request(libc::TCSETS2 as c_ulong),
            request(libc::TIOCGPTN as c_ulong),
            request(libc::TIOCGPTPEER as c_ulong),
            request(libc::TIOCSPTLCK as c_ulong),
            // The size and blocks of block devices.
            request(libc::BLKSSZGET as c_ulong),
            request(BLKGETSIZE64),
            request(BLKPBSZGET),
        ],
    ),
    // What a disk's new ring takes; it then takes no more.
    with(
        libc::SYS_io_uring_register,
        &[
            equal(1, IORING_REGISTER_EVENTFD),
            equal(1, IORING_REGISTER_RESTRICTIONS),
            equal(1, IORING_REGISTER_ENABLE_RINGS),
        ],
    ),
    any(libc::SYS_io_uring_setup),
    any(libc::SYS_landlock_add_rule),
    any(libc::SYS_landlock_create_ruleset),
    any(libc::SYS_landlock_restrict_self),
    any(libc::SYS_listen),
    any(libc::SYS_lstat),
    any(libc::SYS_mbind),
    any(libc::SYS_memfd_create),
    any(libc::SYS_open),
    any(libc::SYS_openat),
    any(libc::SYS_pipe2),
    with(
        libc::SYS_prctl,
        &[
            equal(0, libc::PR_SET_NAME as u32),
            equal(0, libc::PR_SET_NO_NEW_PRIVS as u32),
            equal(0, libc::PR_SET_SECCOMP as u32),
            equal(0, PR_SCHED_CORE),
        ],
    ),
    any(libc::SYS_prlimit64),
    any(libc::SYS_readlink),
    any(libc::SYS_readlinkat),
    // A snapshot's file gets its name when it is whole.
    any(libc::SYS_rename),
    any(libc::SYS_rseq),
    any(libc::SYS_rt_sigaction),
    any(libc::SYS_seccomp),
    any(libc::SYS_set_robust_list),
    any(libc::SYS_setsockopt),
    // The socket through which interfaces are set up.
    with(
        libc::SYS_socket,
        &[
            equal(0, libc::AF_INET as u32),
            equal(0, libc::AF_INET6 as u32),
        ],
    ),
    any(libc::SYS_socketpair),
    any(libc::SYS_stat),
    any(libc::SYS_statfs),
    any(libc::SYS_sysinfo),
    // Interrupts vCPU threads.
    any(libc::SYS_tgkill),
    any(libc::SYS_umask),
];

// From linux/fs.h and linux/prctl.h.
const BLKGETSIZE64: c_ulong = 0x8008_1272;
const BLKPBSZGET: c_ulong = 0x127b;
const PR_SCHED_CORE: u32 = 62;
