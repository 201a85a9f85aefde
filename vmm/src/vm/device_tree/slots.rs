//! The slots of the PCI bus: which device has which.

use crate::pci::{PciAddress, SLOTS};

/// Why a device gets no slot.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SlotError {
    /// No slot is free.
    #[error("All {SLOTS} slots of the PCI bus are in use")]
    Full,
    /// The slot that was asked for is not free.
    #[error("PCI slot {0} is in use")]
    InUse(PciAddress),
    /// The slot that was asked for does not exist.
    #[error("PCI slot {0} is out of range (1 to 31)")]
    OutOfRange(u8),
}

/// One bit for each slot that is in use. Slot 0 is the host bridge's.
#[derive(Debug)]
pub(super) struct Slots(u32);

const _: () = assert!(SLOTS as u32 == u32::BITS);

impl Slots {
    pub(super) fn new() -> Self {
        Self(1)
    }

    /// Takes the slot that is asked for, or the lowest that is free.
    pub(super) fn take(&mut self, wanted: Option<u8>) -> Result<PciAddress, SlotError> {
        let device = match wanted {
            None => self.0.trailing_ones() as u8,
            Some(device) if (1..SLOTS).contains(&device) => device,
            Some(device) => return Err(SlotError::OutOfRange(device)),
        };
        if device >= SLOTS {
            return Err(SlotError::Full);
        }
        if self.0 & 1 << device != 0 {
            return Err(SlotError::InUse(PciAddress { device }));
        }
        self.0 |= 1 << device;
        Ok(PciAddress { device })
    }

    pub(super) fn free(&mut self, address: PciAddress) {
        self.0 &= !(1 << (address.device % SLOTS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_given_in_order_and_explicit_ones_are_respected() {
        let mut slots = Slots::new();
        let mut device = |wanted| slots.take(wanted).map(|address| address.device);
        assert_eq!(device(Some(2)), Ok(2));
        assert_eq!((device(None), device(None)), (Ok(1), Ok(3)));
        let two = PciAddress { device: 2 };
        assert_eq!(device(Some(2)), Err(SlotError::InUse(two)));
        for outside in [0, 32, 255] {
            assert_eq!(device(Some(outside)), Err(SlotError::OutOfRange(outside)));
        }
        for _ in 4..SLOTS {
            device(None).unwrap();
        }
        assert_eq!(device(None), Err(SlotError::Full));
        slots.free(two);
        assert_eq!(slots.take(None), Ok(two));
    }
}
