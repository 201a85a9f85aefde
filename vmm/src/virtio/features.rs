//! Names of what devices say with numbers and bits (virtio 1.3), for people.

use virtio_bindings::virtio_config as bits;
use virtio_bindings::virtio_ids as ids;

/// The kind of device that a number stands for.
pub fn kind_name(kind: u32) -> &'static str {
    match kind {
        ids::VIRTIO_ID_NET => "net",
        ids::VIRTIO_ID_BLOCK => "block",
        ids::VIRTIO_ID_CONSOLE => "console",
        ids::VIRTIO_ID_RNG => "entropy",
        ids::VIRTIO_ID_BALLOON => "balloon",
        ids::VIRTIO_ID_VSOCK => "socket",
        ids::VIRTIO_ID_WATCHDOG => "watchdog",
        _ => "other",
    }
}

/// The bits of the status field (2.1).
pub fn status_names(status: u8) -> Vec<String> {
    [
        (bits::VIRTIO_CONFIG_S_ACKNOWLEDGE, "ACKNOWLEDGE"),
        (bits::VIRTIO_CONFIG_S_DRIVER, "DRIVER"),
        (bits::VIRTIO_CONFIG_S_FEATURES_OK, "FEATURES_OK"),
        (bits::VIRTIO_CONFIG_S_DRIVER_OK, "DRIVER_OK"),
        (bits::VIRTIO_CONFIG_S_NEEDS_RESET, "DEVICE_NEEDS_RESET"),
        (bits::VIRTIO_CONFIG_S_FAILED, "FAILED"),
    ]
    .into_iter()
    .filter(|(bit, _)| u32::from(status) & bit != 0)
    .map(|(_, name)| name.to_owned())
    .collect()
}

/// Reserved feature bits, the same for all devices (6).
const COMMON: &[(u32, &str)] = &[
    (28, "RING_INDIRECT_DESC"),
    (29, "RING_EVENT_IDX"),
    (32, "VERSION_1"),
    (33, "ACCESS_PLATFORM"),
    (34, "RING_PACKED"),
    (35, "IN_ORDER"),
    (36, "ORDER_PLATFORM"),
    (37, "SR_IOV"),
    (38, "NOTIFICATION_DATA"),
    (39, "NOTIF_CONFIG_DATA"),
    (40, "RING_RESET"),
];

/// 5.1.3.
const NET: &[(u32, &str)] = &[
    (0, "NET_CSUM"),
    (1, "NET_GUEST_CSUM"),
    (2, "NET_CTRL_GUEST_OFFLOADS"),
    (3, "NET_MTU"),
    (5, "NET_MAC"),
    (7, "NET_GUEST_TSO4"),
    (8, "NET_GUEST_TSO6"),
    (9, "NET_GUEST_ECN"),
    (10, "NET_GUEST_UFO"),
    (11, "NET_HOST_TSO4"),
    (12, "NET_HOST_TSO6"),
    (13, "NET_HOST_ECN"),
    (14, "NET_HOST_UFO"),
    (15, "NET_MRG_RXBUF"),
    (16, "NET_STATUS"),
    (17, "NET_CTRL_VQ"),
    (18, "NET_CTRL_RX"),
    (19, "NET_CTRL_VLAN"),
    (21, "NET_GUEST_ANNOUNCE"),
    (22, "NET_MQ"),
    (23, "NET_CTRL_MAC_ADDR"),
    (54, "NET_GUEST_USO4"),
    (55, "NET_GUEST_USO6"),
    (56, "NET_HOST_USO"),
];

/// 5.2.3.
const BLOCK: &[(u32, &str)] = &[
    (1, "BLK_SIZE_MAX"),
    (2, "BLK_SEG_MAX"),
    (4, "BLK_GEOMETRY"),
    (5, "BLK_RO"),
    (6, "BLK_BLK_SIZE"),
    (9, "BLK_FLUSH"),
    (10, "BLK_TOPOLOGY"),
    (11, "BLK_CONFIG_WCE"),
    (12, "BLK_MQ"),
    (13, "BLK_DISCARD"),
    (14, "BLK_WRITE_ZEROES"),
];

/// 5.3.3.
const CONSOLE: &[(u32, &str)] = &[
    (0, "CONSOLE_SIZE"),
    (1, "CONSOLE_MULTIPORT"),
    (2, "CONSOLE_EMERG_WRITE"),
];

/// 5.5.3.
const BALLOON: &[(u32, &str)] = &[
    (0, "BALLOON_MUST_TELL_HOST"),
    (1, "BALLOON_STATS_VQ"),
    (2, "BALLOON_DEFLATE_ON_OOM"),
    (3, "BALLOON_FREE_PAGE_HINT"),
    (4, "BALLOON_PAGE_POISON"),
    (5, "BALLOON_PAGE_REPORTING"),
];

/// 5.10.3.
const SOCKET: &[(u32, &str)] = &[
    (0, "VSOCK_STREAM"),
    (1, "VSOCK_SEQPACKET"),
    (2, "VSOCK_NO_IMPLIED_STREAM"),
];

/// The names of a device's feature bits, lowest first; a bit without one is
/// called by its number.
pub fn feature_names(kind: u32, features: u64) -> Vec<String> {
    let own = match kind {
        ids::VIRTIO_ID_NET => NET,
        ids::VIRTIO_ID_BLOCK => BLOCK,
        ids::VIRTIO_ID_CONSOLE => CONSOLE,
        ids::VIRTIO_ID_BALLOON => BALLOON,
        ids::VIRTIO_ID_VSOCK => SOCKET,
        _ => &[],
    };
    (0..u64::BITS)
        .filter(|bit| features & 1 << bit != 0)
        .map(|bit| {
            let mut known = own.iter().chain(COMMON);
            let known = known.find(|(number, _)| *number == bit);
            known.map_or_else(|| format!("bit {bit}"), |(_, name)| (*name).to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use virtio_bindings::{virtio_blk, virtio_net, virtio_ring};

    use super::*;

    #[test]
    fn bits_have_the_names_of_the_kernels_headers() {
        for (kind, bit, name) in [
            (ids::VIRTIO_ID_NET, virtio_net::VIRTIO_NET_F_MQ, "NET_MQ"),
            (
                ids::VIRTIO_ID_NET,
                virtio_net::VIRTIO_NET_F_MRG_RXBUF,
                "NET_MRG_RXBUF",
            ),
            (
                ids::VIRTIO_ID_NET,
                virtio_net::VIRTIO_NET_F_CTRL_VQ,
                "NET_CTRL_VQ",
            ),
            (
                ids::VIRTIO_ID_BLOCK,
                virtio_blk::VIRTIO_BLK_F_FLUSH,
                "BLK_FLUSH",
            ),
            (
                ids::VIRTIO_ID_BLOCK,
                virtio_blk::VIRTIO_BLK_F_CONFIG_WCE,
                "BLK_CONFIG_WCE",
            ),
            (
                ids::VIRTIO_ID_BLOCK,
                virtio_blk::VIRTIO_BLK_F_WRITE_ZEROES,
                "BLK_WRITE_ZEROES",
            ),
            (
                ids::VIRTIO_ID_RNG,
                virtio_ring::VIRTIO_RING_F_EVENT_IDX,
                "RING_EVENT_IDX",
            ),
            (
                ids::VIRTIO_ID_RNG,
                virtio_ring::VIRTIO_RING_F_INDIRECT_DESC,
                "RING_INDIRECT_DESC",
            ),
            (ids::VIRTIO_ID_RNG, bits::VIRTIO_F_VERSION_1, "VERSION_1"),
            (ids::VIRTIO_ID_RNG, 63, "bit 63"),
        ] {
            assert_eq!(feature_names(kind, 1 << bit), [name]);
        }
        assert_eq!(
            feature_names(ids::VIRTIO_ID_BLOCK, 1 | 1 << 9),
            ["bit 0", "BLK_FLUSH"]
        );
        assert_eq!(status_names(0x4f).len(), 5);
        assert!(status_names(0).is_empty());
    }
}
