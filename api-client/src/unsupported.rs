//! What of Cloud Hypervisor's API is not here.

/// Its requests, as `ch-remote` calls them; the resources have `vm.` before the
/// name. An entry goes when the feature comes.
pub const UNSUPPORTED: [&str; 11] = [
    "add-device",
    "add-fs",
    "add-generic-vhost-user",
    "add-pmem",
    "add-user-device",
    "add-vdpa",
    "coredump",
    "receive-migration",
    "restore",
    "send-migration",
    "snapshot",
];
