//! The registers of a function as the guest finds them: its identity, its
//! capabilities, and the device's configuration.

use super::common;
use super::{BAR_SIZE, COMMON, DEVICE, DEVICE_END, ISR, NOTIFY, NOTIFY_STEP, PENDING, TABLE};
use crate::pci::{BarPlacer, ConfigSpace, Identity, MsixCapability, PciAddress, capability};
use crate::virtio::VirtioDevice;

const VENDOR: u16 = 0x1af4;
/// Device numbers of virtio 1.x count from here.
const DEVICE_BASE: u16 = 0x1040;
/// Virtio 1.x.
const REVISION: u8 = 1;

// Kinds of structures that vendor capabilities locate (4.1.4).
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;

/// The device's configuration, in whole words.
pub(super) fn device_config(device: &dyn VirtioDevice) -> Vec<u8> {
    let length = device.config_length().min(DEVICE_END - DEVICE);
    let mut bytes = vec![0; length.next_multiple_of(4)];
    device.read_config(0, &mut bytes[..length]);
    bytes
}

pub(super) fn config_space(
    address: PciAddress,
    device: &dyn VirtioDevice,
    vectors: u16,
) -> (ConfigSpace, MsixCapability) {
    let number = DEVICE_BASE + device.kind() as u16;
    let mut space = ConfigSpace::new(&Identity {
        vendor: VENDOR,
        device: number,
        revision: REVISION,
        class: class(device.kind()),
        subsystem: (VENDOR, number),
    });
    space.add_bar(0, BAR_SIZE as u32, BarPlacer::first_address(address));
    let msix = MsixCapability::add(&mut space, vectors, 0, TABLE as u32, PENDING as u32);
    let doorbells = NOTIFY_STEP * u32::from(vectors - 1);
    for (kind, offset, length, extra) in [
        (CAP_COMMON, COMMON, common::LENGTH as u32, None),
        (CAP_ISR, ISR, 4, None),
        (CAP_NOTIFY, NOTIFY, doorbells, Some(NOTIFY_STEP)),
        (CAP_DEVICE, DEVICE, device.config_length() as u32, None),
    ] {
        if length == 0 {
            continue;
        }
        let mut body = vec![if extra.is_some() { 20 } else { 16 }, kind];
        // BAR 0, no identifier.
        body.extend_from_slice(&[0; 4]);
        body.extend_from_slice(&(offset as u32).to_le_bytes());
        body.extend_from_slice(&length.to_le_bytes());
        if let Some(extra) = extra {
            body.extend_from_slice(&extra.to_le_bytes());
        }
        space.add_capability(capability::VENDOR, &body);
    }
    (space, msix)
}

/// Base class, sub-class and interface that fit a kind of device.
fn class(kind: u32) -> [u8; 3] {
    match kind {
        virtio_bindings::virtio_ids::VIRTIO_ID_NET => [0x02, 0x00, 0x00],
        virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK => [0x01, 0x80, 0x00],
        virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE => [0x07, 0x80, 0x00],
        _ => [0xff, 0x00, 0x00],
    }
}
