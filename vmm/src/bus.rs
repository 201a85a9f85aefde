//! From an address to the device that owns it.
//!
//! Built by the control thread, used by vCPU threads. An access that is not
//! wholly inside one device's range belongs to nobody: reads give all ones,
//! writes are dropped, as on a PC.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use instrumentation::user_exit::{Access, AddressSpace, RangeId, RangeMap};

/// A device's registers. Called from every vCPU thread at once, so a device
/// locks its own state. It must answer any offset and any width that lies
/// within its range, whatever the guest does.
pub trait BusDevice: Send + Sync {
    /// Fills `data` from `offset` of the range.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data` at `offset` of the range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a device cannot have a range.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// Another device is there.
    #[error("Range {base:#x}+{len:#x} of {device} is taken")]
    Overlap {
        /// Who asked.
        device: String,
        /// First address.
        base: u64,
        /// Length.
        len: u64,
    },
    /// The range is empty or ends past the address space.
    #[error("Range {base:#x}+{len:#x} of {device} is impossible")]
    Impossible {
        /// Who asked.
        device: String,
        /// First address.
        base: u64,
        /// Length.
        len: u64,
    },
}

struct Slot {
    len: u64,
    id: RangeId,
    device: Arc<dyn BusDevice>,
}

/// One address space: the ports, or memory-mapped I/O.
///
/// Lock order: `slots` is taken for the look-up only and released before the
/// device is called, so a device may take its own locks and may change the bus.
pub struct Bus {
    space: AddressSpace,
    names: Arc<RangeMap>,
    slots: RwLock<BTreeMap<u64, Slot>>,
}

impl Bus {
    /// An empty address space that names its ranges in `names`.
    #[must_use]
    pub fn new(space: AddressSpace, names: Arc<RangeMap>) -> Self {
        Self {
            space,
            names,
            slots: RwLock::new(BTreeMap::new()),
        }
    }

    /// Gives `device` the addresses from `base` on.
    pub fn insert(
        &self,
        name: &str,
        base: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let end = match base.checked_add(len) {
            Some(end) if len > 0 => end,
            _ => {
                return Err(BusError::Impossible {
                    device: name.into(),
                    base,
                    len,
                });
            }
        };
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let below = slots.range(..end).next_back();
        if below.is_some_and(|(start, slot)| start + slot.len > base) {
            return Err(BusError::Overlap {
                device: name.into(),
                base,
                len,
            });
        }
        let id = self.names.register(name, base, len, self.space);
        slots.insert(base, Slot { len, id, device });
        Ok(())
    }

    /// Takes the range that begins at `base` from its device.
    pub fn remove(&self, base: u64) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let old = slots.remove(&base);
        if let Some(slot) = &old {
            self.names.release(slot.id);
        }
        // The device may end with it, and may use the bus for that.
        drop(slots);
        drop(old);
    }

    /// Lets go of all devices. Some of them hold the bus that they are on, so
    /// a machine that ends has to part the two.
    pub fn clear(&self) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::take(&mut *slots);
        drop(slots);
        drop(old);
    }

    /// Reads into `data`; says which register it was.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Access {
        match self.find(address, data.len()) {
            Some((offset, access, device)) => {
                device.read(offset, data);
                access
            }
            None => {
                data.fill(0xff);
                unassigned(address)
            }
        }
    }

    /// Writes `data`; says which register it was.
    pub fn write(&self, address: u64, data: &[u8]) -> Access {
        match self.find(address, data.len()) {
            Some((offset, access, device)) => {
                device.write(offset, data);
                access
            }
            None => unassigned(address),
        }
    }

    fn find(&self, address: u64, width: usize) -> Option<(u64, Access, Arc<dyn BusDevice>)> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let (base, slot) = slots.range(..=address).next_back()?;
        let offset = address - base;
        let end = offset.checked_add(width as u64)?;
        let access = Access {
            range: slot.id,
            register: match slot.len {
                ..=PAGE => offset,
                _ => offset - offset % PAGE,
            },
        };
        (end <= slot.len).then(|| (offset, access, Arc::clone(&slot.device)))
    }
}

/// A range longer than this is counted by page: a page of virtio's BAR holds one
/// of its structures, a page of the configuration space one function, and a
/// counter for each word of them would drown the rest.
const PAGE: u64 = 4096;

fn unassigned(address: u64) -> Access {
    Access {
        range: RangeId::default(),
        register: address,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn bus() -> (Bus, Arc<Recorder>) {
        let bus = Bus::new(AddressSpace::Port, Arc::new(RangeMap::new()));
        let device = Arc::new(Recorder::default());
        bus.insert("a", 0x100, 8, device.clone()).unwrap();
        (bus, device)
    }

    #[test]
    fn accesses_reach_the_owner_with_the_offset_in_its_range() {
        let (bus, device) = bus();
        let mut data = [0; 2];
        let owner = bus.read(0x106, &mut data);
        assert_ne!(owner.range, RangeId::default());
        assert_eq!((data, owner.register), ([6, 6], 6));
        let access = bus.write(0x101, &[9]);
        assert_eq!((access.range, access.register), (owner.range, 1));
        assert_eq!(*device.0.lock().unwrap(), [(1, vec![9])]);
    }

    #[test]
    fn accesses_that_nobody_wholly_owns_read_ones_and_write_nothing() {
        let (bus, device) = bus();
        for address in [0, 0xff, 0x107, 0x108, u64::MAX] {
            let mut data = [0; 2];
            assert_eq!(bus.read(address, &mut data), unassigned(address));
            assert_eq!(data, [0xff, 0xff]);
            assert_eq!(bus.write(address, &[1, 2]), unassigned(address));
        }
        assert!(device.0.lock().unwrap().is_empty());
    }

    #[test]
    fn long_ranges_are_told_apart_by_page() {
        let (bus, device) = bus();
        bus.insert("b", 0x1_0000, 0x4000, device.clone()).unwrap();
        let registers = |address| bus.write(address, &[0]).register;
        assert_eq!(registers(0x1_0014), 0);
        assert_eq!(registers(0x1_3004), 0x3000);
    }

    #[test]
    fn a_range_that_moves_keeps_its_name() {
        let (bus, device) = bus();
        let before = bus.write(0x104, &[0]);
        for base in 0x200..0x2000 {
            bus.remove(if base == 0x200 { 0x100 } else { base - 1 });
            bus.insert("a", base, 8, device.clone()).unwrap();
        }
        assert_eq!(bus.write(0x1fff + 4, &[0]), before);
    }

    #[test]
    fn ranges_may_touch_and_must_not_overlap() {
        let (bus, device) = bus();
        for (base, len) in [(0xf9, 8), (0x107, 1), (0x100, 8), (0, 0x1000), (0x102, 2)] {
            assert!(matches!(
                bus.insert("b", base, len, device.clone()),
                Err(BusError::Overlap { .. })
            ));
        }
        bus.insert("b", 0xf8, 8, device.clone()).unwrap();
        bus.insert("c", 0x108, 8, device.clone()).unwrap();
        for (base, len) in [(0x200, 0), (u64::MAX, 2)] {
            assert!(matches!(
                bus.insert("d", base, len, device.clone()),
                Err(BusError::Impossible { .. })
            ));
        }
    }
}
