//! Puts the registers behind a BAR where the guest wants them.

use std::sync::{Arc, Weak};

use super::{PciAddress, SLOTS};
use crate::bus::{Bus, BusDevice, BusError};
use crate::memory::layout::{PCI_WINDOW_END, PCI_WINDOW_START};

/// Room of each device in the window as the machine starts. The guest may
/// arrange them differently.
const ROOM: u64 = 64 << 10;

const _: () = assert!(PCI_WINDOW_START + ROOM * SLOTS as u64 <= PCI_WINDOW_END);

/// Where a device's registers are now, and how to put them elsewhere. Refers
/// to the bus weakly, since the bus owns the devices.
pub struct BarPlacer {
    name: String,
    bus: Weak<Bus>,
    size: u64,
    at: Option<u64>,
}

impl BarPlacer {
    /// A BAR of `size` bytes that is not decoded yet.
    #[must_use]
    pub fn new(name: &str, bus: &Arc<Bus>, size: u64) -> Self {
        Self {
            name: name.to_owned(),
            bus: Arc::downgrade(bus),
            size,
            at: None,
        }
    }

    /// The address that a device's first BAR holds as the machine starts.
    #[must_use]
    pub fn first_address(address: PciAddress) -> u32 {
        (PCI_WINDOW_START + ROOM * u64::from(address.device)) as u32
    }

    /// Where the registers are.
    #[must_use]
    pub fn at(&self) -> Option<u64> {
        self.at
    }

    /// Moves the registers of `device`; true if they are elsewhere afterwards.
    /// A place that they cannot have leaves them nowhere.
    pub fn place(&mut self, wanted: Option<u64>, device: &Weak<dyn BusDevice>) -> bool {
        let wanted = wanted.filter(|&at| self.fits(at));
        if wanted == self.at {
            return false;
        }
        let before = self.at.take();
        let Some(bus) = self.bus.upgrade() else {
            // The machine is being taken down.
            return before.is_some();
        };
        if let Some(base) = before {
            bus.remove(base);
        }
        if let (Some(base), Some(device)) = (wanted, device.upgrade()) {
            match bus.insert(&self.name, base, self.size, device) {
                Ok(()) => self.at = Some(base),
                Err(BusError::Overlap { .. } | BusError::Impossible { .. }) => {
                    log::debug!("{}: no room at {base:#x}", self.name);
                }
            }
        }
        before != self.at
    }

    fn fits(&self, at: u64) -> bool {
        at >= PCI_WINDOW_START
            && at
                .checked_add(self.size)
                .is_some_and(|end| end <= PCI_WINDOW_END)
    }
}

impl Drop for BarPlacer {
    fn drop(&mut self) {
        if let (Some(base), Some(bus)) = (self.at, self.bus.upgrade()) {
            bus.remove(base);
        }
    }
}

#[cfg(test)]
mod tests {
    use instrumentation::user_exit::{AddressSpace, RangeId, RangeMap};

    use super::*;

    struct Ones;

    impl BusDevice for Ones {
        fn read(&self, _: u64, data: &mut [u8]) {
            data.fill(1);
        }
        fn write(&self, _: u64, _: &[u8]) {}
    }

    const BASE: u64 = PCI_WINDOW_START;

    #[test]
    fn registers_follow_the_bar_and_never_leave_the_window() {
        let bus = Arc::new(Bus::new(AddressSpace::Mmio, Arc::new(RangeMap::new())));
        let device: Arc<dyn BusDevice> = Arc::new(Ones);
        let weak = &Arc::downgrade(&device);
        let answers = |at| bus.read(at, &mut [0]).range != RangeId::default();
        let mut placer = BarPlacer::new("a", &bus, 0x1000);
        assert!(placer.place(Some(BASE), weak));
        assert!(answers(BASE));
        assert!(!placer.place(Some(BASE), weak));
        assert!(placer.place(Some(BASE + 0x4000), weak));
        assert!(!answers(BASE) && answers(BASE + 0x4000));
        let mut other = BarPlacer::new("b", &bus, 0x1000);
        assert!(!other.place(Some(BASE + 0x4000), weak));
        for outside in [0, BASE - 0x1000, PCI_WINDOW_END, !0xfff] {
            other.place(Some(outside), weak);
            assert_eq!(other.at(), None);
        }
        assert!(placer.place(None, weak));
        assert!(!answers(BASE + 0x4000));
        assert!(other.place(Some(BASE), weak));
        drop(other);
        assert!(!answers(BASE));
    }
}
