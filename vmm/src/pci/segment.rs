//! The segment: which function sits where, and the memory-mapped
//! configuration space through which the guest finds out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypervisor::Vm;

use super::{CONFIG_SIZE, HostBridge, PciAddress, PciFunction};
use crate::bus::BusDevice;
use crate::memory::layout::{PCI_CONFIG_LENGTH, PCI_CONFIG_START};
use crate::memory::{MemoryError, PCI_CONFIG_SLOT, ReadOnlyWindow};

/// Device numbers on the bus; the first belongs to the host bridge.
pub const SLOTS: u8 = 32;

/// Bytes of configuration space of a function, and of a device with its eight.
const FUNCTION: usize = 4096;
const DEVICE: usize = 8 * FUNCTION;

/// Why a function has no place.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SegmentError {
    /// No number is free.
    #[error("All {SLOTS} places on the PCI bus are taken")]
    Full,
    /// The number that was asked for is not free.
    #[error("The place {0} on the PCI bus is taken")]
    Taken(PciAddress),
    /// The number that was asked for does not exist.
    #[error("The PCI bus has no place {0}")]
    NoSuchPlace(u8),
}

enum Place {
    Free,
    /// Promised to a function that does not exist yet.
    Reserved,
    Taken(Arc<dyn PciFunction>),
}

/// Lock order: `places` is released before a function is called, so a function
/// may take any lock of its own.
pub struct PciSegment {
    window: ReadOnlyWindow,
    places: Mutex<Vec<Place>>,
    /// Held from a write until the window shows its outcome, so that of two
    /// writes the later one is seen last.
    showing: Mutex<()>,
}

impl PciSegment {
    /// A segment with a host bridge and nothing else.
    pub fn new(vm: Arc<dyn Vm>) -> Result<Arc<Self>, MemoryError> {
        // Where no function is, everything reads as ones.
        let window = ReadOnlyWindow::map(
            vm,
            PCI_CONFIG_SLOT,
            PCI_CONFIG_START,
            &[0xff; DEVICE],
            SLOTS.into(),
        )?;
        let segment = Self {
            window,
            places: Mutex::new((0..SLOTS).map(|_| Place::Free).collect()),
            showing: Mutex::new(()),
        };
        segment.insert(PciAddress { device: 0 }, Arc::new(HostBridge::new()));
        Ok(Arc::new(segment))
    }

    /// Address and length of the configuration space.
    #[must_use]
    pub fn range() -> (u64, u64) {
        (PCI_CONFIG_START, PCI_CONFIG_LENGTH)
    }

    /// Finds a place: the one that is asked for, or the lowest that is free.
    pub fn reserve(&self, wanted: Option<u8>) -> Result<PciAddress, SegmentError> {
        let mut places = self.places();
        let device = match wanted {
            Some(device) => match places.get(usize::from(device)) {
                Some(Place::Free) => device,
                Some(_) => return Err(SegmentError::Taken(PciAddress { device })),
                None => return Err(SegmentError::NoSuchPlace(device)),
            },
            None => (0..SLOTS)
                .zip(places.iter())
                .find(|(_, place)| matches!(place, Place::Free))
                .map(|(device, _)| device)
                .ok_or(SegmentError::Full)?,
        };
        places[usize::from(device)] = Place::Reserved;
        Ok(PciAddress { device })
    }

    /// Puts a function into its reserved place.
    pub fn insert(&self, address: PciAddress, function: Arc<dyn PciFunction>) {
        let _showing = self.showing();
        self.show(address, &function.config());
        self.set(address, Place::Taken(function));
    }

    /// Frees a place, whether a function sits there or it is only reserved.
    pub fn remove(&self, address: PciAddress) {
        let showing = self.showing();
        let old = self.set(address, Place::Free);
        self.show(address, &[0xff; CONFIG_SIZE]);
        drop(showing);
        if let Some(Place::Taken(function)) = old {
            function.detach();
        }
    }

    /// The guest gives up what is at a place; false if nothing is, or the host
    /// bridge.
    pub fn give_up(&self, address: PciAddress) -> bool {
        let place = usize::from(address.device);
        let taken = matches!(self.places().get(place), Some(Place::Taken(_)));
        if !taken || place == 0 {
            return false;
        }
        self.remove(address);
        true
    }

    fn set(&self, address: PciAddress, place: Place) -> Option<Place> {
        self.places()
            .get_mut(usize::from(address.device))
            .map(|old| std::mem::replace(old, place))
    }

    fn show(&self, address: PciAddress, config: &[u8; CONFIG_SIZE]) {
        self.window
            .store(usize::from(address.device) * DEVICE, config);
    }

    fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn showing(&self) -> MutexGuard<'_, ()> {
        self.showing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The function at an offset of the configuration space, and the offset in
    /// its registers.
    fn find(&self, offset: u64) -> Option<(PciAddress, Arc<dyn PciFunction>, usize)> {
        let offset = usize::try_from(offset).ok()?;
        let device = offset / DEVICE;
        // Nobody has more than one function, or extended registers.
        let register = offset % DEVICE;
        if register >= CONFIG_SIZE {
            return None;
        }
        match self.places().get(device)? {
            Place::Taken(function) => {
                let device = u8::try_from(device).ok()?;
                Some((PciAddress { device }, Arc::clone(function), register))
            }
            Place::Free | Place::Reserved => None,
        }
    }
}

impl BusDevice for PciSegment {
    /// The guest reads the window instead, except with accesses that the
    /// hypervisor cannot map, such as one that crosses its end.
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((_, function, register)) = self.find(offset) {
            let config = function.config();
            for (byte, value) in data.iter_mut().zip(&config[register..]) {
                *byte = *value;
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 1 | 2 | 4) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let _showing = self.showing();
        if let Some((address, function, register)) = self.find(offset) {
            function.write_config(register, data);
            self.show(address, &function.config());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::testing::RecordingVm;
    use crate::pci::{ConfigSpace, Identity};

    struct Function(Mutex<ConfigSpace>);

    impl PciFunction for Function {
        fn write_config(&self, offset: usize, data: &[u8]) {
            self.0.lock().unwrap().write(offset, data);
        }
        fn config(&self) -> [u8; CONFIG_SIZE] {
            *self.0.lock().unwrap().bytes()
        }
    }

    fn function() -> Arc<Function> {
        Arc::new(Function(Mutex::new(ConfigSpace::new(&Identity {
            vendor: 0x1234,
            device: 0x5678,
            revision: 0,
            class: [0xff, 0, 0],
            subsystem: (0, 0),
        }))))
    }

    fn read(segment: &PciSegment, device: u64, register: u64) -> u32 {
        let mut data = [0; 4];
        segment.read(device * DEVICE as u64 + register, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn numbers_are_given_in_order_and_explicit_ones_are_respected() {
        let segment = PciSegment::new(RecordingVm::new()).unwrap();
        let device = |wanted| segment.reserve(wanted).map(|address| address.device);
        assert_eq!(device(Some(2)), Ok(2));
        assert_eq!((device(None), device(None)), (Ok(1), Ok(3)));
        let two = PciAddress { device: 2 };
        assert_eq!(device(Some(2)), Err(SegmentError::Taken(two)));
        assert_eq!(
            device(Some(0)),
            Err(SegmentError::Taken(PciAddress { device: 0 }))
        );
        assert_eq!(device(Some(32)), Err(SegmentError::NoSuchPlace(32)));
        for _ in 4..SLOTS {
            device(None).unwrap();
        }
        assert_eq!(device(None), Err(SegmentError::Full));
        segment.remove(two);
        assert_eq!(device(None), Ok(2));
    }

    #[test]
    fn functions_answer_at_their_place_and_nowhere_else() {
        let segment = PciSegment::new(RecordingVm::new()).unwrap();
        assert_eq!(read(&segment, 0, 0), 0x0d57_8086);
        let address = segment.reserve(None).unwrap();
        assert_eq!(read(&segment, 1, 0), 0xffff_ffff);
        segment.insert(address, function());
        assert_eq!(read(&segment, 1, 0), 0x5678_1234);
        assert_eq!(read(&segment, 2, 0), 0xffff_ffff);
        // Another function of the same device, and an extended register.
        assert_eq!(read(&segment, 1, 0x1000), 0xffff_ffff);
        assert_eq!(read(&segment, 1, 0x100), 0xffff_ffff);
        segment.remove(address);
        assert_eq!(read(&segment, 1, 0), 0xffff_ffff);
    }

    #[test]
    fn writes_of_odd_shapes_change_nothing() {
        let segment = PciSegment::new(RecordingVm::new()).unwrap();
        for (offset, width) in [(0x3c, 3), (0x3b, 2), (0x3a, 4), (0x38, 8), (0x3c, 0)] {
            segment.write(offset, &vec![0x55; width]);
            assert_eq!(read(&segment, 0, 0x3c), 0, "{offset:#x} {width}");
        }
        segment.write(0x3c, &[0x55]);
        assert_eq!(read(&segment, 0, 0x3c), 0x55);
    }
}
