//! Which of Cloud Hypervisor's API is spoken, and what of it is not here.

/// The version of Cloud Hypervisor's API that is spoken: what `vmm.ping` and
/// `--version` tell clients that choose their features by it.
pub const API_VERSION: &str = "54.0.0";

/// Its requests, as `ch-remote` calls them; the resources have `vm.` before the
/// name. An entry goes when the feature comes.
pub const UNSUPPORTED: [&str; 9] = [
    "add-device",
    "add-fs",
    "add-generic-vhost-user",
    "add-pmem",
    "add-user-device",
    "add-vdpa",
    "coredump",
    "receive-migration",
    "send-migration",
];
