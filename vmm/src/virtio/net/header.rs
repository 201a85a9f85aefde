//! The header before each packet (virtio 1.3, 5.1.6), features, and how they
//! look to a tap.

use virtio_bindings::virtio_net as net;

/// Length of the header.
pub(super) const HEADER_LENGTH: usize = 12;
/// Where it says how many chains a packet takes.
pub(super) const NUM_BUFFERS: usize = 10;
/// The largest packet, with its header: a segment that the receiver is to cut
/// up, behind an Ethernet header with a tag.
pub(super) const MAX_PACKET: usize = HEADER_LENGTH + 18 + 65_535;

const fn bit(feature: u32) -> u64 {
    1 << feature
}

pub(super) const MRG_RXBUF: u64 = bit(net::VIRTIO_NET_F_MRG_RXBUF);
pub(super) const MQ: u64 = bit(net::VIRTIO_NET_F_MQ);
pub(super) const CTRL_VQ: u64 = bit(net::VIRTIO_NET_F_CTRL_VQ);
const ALWAYS: u64 = MRG_RXBUF | CTRL_VQ | bit(net::VIRTIO_NET_F_MAC);
const CSUM: u64 = bit(net::VIRTIO_NET_F_CSUM)
    | bit(net::VIRTIO_NET_F_GUEST_CSUM)
    | bit(net::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
const TSO: u64 = bit(net::VIRTIO_NET_F_HOST_TSO4)
    | bit(net::VIRTIO_NET_F_HOST_TSO6)
    | bit(net::VIRTIO_NET_F_HOST_ECN)
    | bit(net::VIRTIO_NET_F_GUEST_TSO4)
    | bit(net::VIRTIO_NET_F_GUEST_TSO6)
    | bit(net::VIRTIO_NET_F_GUEST_ECN);
const UFO: u64 = bit(net::VIRTIO_NET_F_HOST_UFO) | bit(net::VIRTIO_NET_F_GUEST_UFO);

/// Features that the driver may switch on and off while the device is active,
/// and the bit of each for a tap (linux/if_tun.h).
const GUEST_OFFLOADS: [(u64, u32); 5] = [
    (bit(net::VIRTIO_NET_F_GUEST_CSUM), 0x01),
    (bit(net::VIRTIO_NET_F_GUEST_TSO4), 0x02),
    (bit(net::VIRTIO_NET_F_GUEST_TSO6), 0x04),
    (bit(net::VIRTIO_NET_F_GUEST_ECN), 0x08),
    (bit(net::VIRTIO_NET_F_GUEST_UFO), 0x10),
];

/// Work that guest and host leave to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// Cutting up TCP segments.
    pub tso: bool,
    /// Cutting up UDP datagrams.
    pub ufo: bool,
    /// Checksums. Without them there is nothing to cut up.
    pub csum: bool,
}

impl Default for Offloads {
    fn default() -> Self {
        Self {
            tso: true,
            ufo: true,
            csum: true,
        }
    }
}

/// What is offered.
pub(super) fn features(offloads: Offloads, mtu: bool, several_pairs: bool) -> u64 {
    let mut features = ALWAYS;
    if offloads.csum {
        features |= CSUM;
        features |= if offloads.tso { TSO } else { 0 };
        features |= if offloads.ufo { UFO } else { 0 };
    }
    if mtu {
        features |= bit(net::VIRTIO_NET_F_MTU);
    }
    if several_pairs {
        features |= MQ;
    }
    features
}

/// What a tap has to know of the driver's features or later wishes.
pub(super) fn tap_offload(features: u64) -> u32 {
    let flags = GUEST_OFFLOADS
        .iter()
        .filter(|(feature, _)| features & feature != 0)
        .fold(0, |flags, (_, flag)| flags | flag);
    // The kernel takes the rest only with checksums.
    if flags & 1 == 0 { 0 } else { flags }
}

/// The features that the driver may name when it changes offloads.
pub(super) fn guest_offloads(features: u64) -> u64 {
    GUEST_OFFLOADS
        .iter()
        .fold(0, |all, (feature, _)| all | features & feature)
}

/// The configuration structure (5.1.4), as far as the features need it.
pub(super) fn config_space(mac: [u8; 6], pairs: u16, mtu: u16) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..6].copy_from_slice(&mac);
    // The status, two bytes, belongs to a feature that is not offered.
    bytes[8..10].copy_from_slice(&pairs.to_le_bytes());
    bytes[10..12].copy_from_slice(&mtu.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_offered_only_with_checksums() {
        let without = Offloads {
            csum: false,
            ..Offloads::default()
        };
        assert_eq!(features(without, false, false), ALWAYS);
        let all = features(Offloads::default(), true, true);
        assert_eq!(all & (CSUM | TSO | UFO | MQ), CSUM | TSO | UFO | MQ);
    }

    #[test]
    fn a_tap_is_told_of_the_guest_s_side_only() {
        assert_eq!(tap_offload(features(Offloads::default(), true, true)), 0x1f);
        assert_eq!(tap_offload(ALWAYS), 0);
        assert_eq!(tap_offload(TSO), 0);
        assert_eq!(tap_offload(CSUM), 1);
    }

    #[test]
    fn fields_lie_where_the_standard_puts_them() {
        let bytes = config_space([1, 2, 3, 4, 5, 6], 0x0708, 0x090a);
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 0, 0, 8, 7, 10, 9]);
    }
}
