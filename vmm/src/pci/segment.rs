//! The segment: which function sits where, and the memory-mapped
//! configuration space through which the guest finds out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypervisor::Vm;

use super::config_space::ForeignRegisters;
use super::{CONFIG_SIZE, HostBridge, PciAddress, PciFunction};
use crate::bus::BusDevice;
use crate::memory::layout::{PCI_CONFIG_LENGTH, PCI_CONFIG_START};
use crate::memory::{MemoryError, PCI_CONFIG_SLOT, ReadOnlyWindow};

/// Device numbers on the bus; the first belongs to the host bridge.
pub const SLOTS: u8 = 32;

const HOST_BRIDGE: PciAddress = PciAddress { device: 0 };

/// Bytes of configuration space of a function, and of a device with its eight.
const FUNCTION: usize = 4096;
const DEVICE: usize = 8 * FUNCTION;

/// Lock order: `functions` is released before a function is called, so a
/// function may take any lock of its own.
pub struct PciSegment {
    window: ReadOnlyWindow,
    host_bridge: Arc<HostBridge>,
    /// By slot. Whoever inserts a function knows that its slot is free.
    functions: Mutex<Vec<Option<Arc<dyn PciFunction>>>>,
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
        let host_bridge = Arc::new(HostBridge::new());
        let segment = Self {
            window,
            host_bridge: Arc::clone(&host_bridge),
            functions: Mutex::new((0..SLOTS).map(|_| None).collect()),
            showing: Mutex::new(()),
        };
        segment.insert(HOST_BRIDGE, host_bridge);
        Ok(Arc::new(segment))
    }

    /// The registers of the host bridge.
    #[must_use]
    pub fn host_bridge(&self) -> [u8; CONFIG_SIZE] {
        self.host_bridge.config()
    }

    /// Puts them back.
    ///
    /// # Errors
    /// They are the registers of something else.
    pub fn restore_host_bridge(&self, registers: &[u8]) -> Result<(), ForeignRegisters> {
        self.host_bridge.restore(registers)?;
        self.refresh(HOST_BRIDGE);
        Ok(())
    }

    /// Shows the registers of a function that have changed by themselves.
    pub fn refresh(&self, address: PciAddress) {
        let _showing = self.showing();
        let function = self.functions().get(usize::from(address.device)).cloned();
        if let Some(Some(function)) = function {
            self.show(address, &function.config());
        }
    }

    /// Address and length of the configuration space.
    #[must_use]
    pub fn range() -> (u64, u64) {
        (PCI_CONFIG_START, PCI_CONFIG_LENGTH)
    }

    /// Puts a function into a slot that is free.
    pub fn insert(&self, address: PciAddress, function: Arc<dyn PciFunction>) {
        let _showing = self.showing();
        self.show(address, &function.config());
        self.set(address, Some(function));
    }

    /// The guest ejects what is in a slot. When this returns, nothing of it is
    /// left on the bus, and its memory slots are free. Returns its id; `None` if
    /// nothing is there, or the host bridge.
    pub fn eject(&self, address: PciAddress) -> Option<String> {
        if address.device == 0 {
            return None;
        }
        let showing = self.showing();
        let function = self.set(address, None)?;
        self.show(address, &[0xff; CONFIG_SIZE]);
        drop(showing);
        function.detach();
        Some(function.id().to_owned())
    }

    fn set(
        &self,
        address: PciAddress,
        function: Option<Arc<dyn PciFunction>>,
    ) -> Option<Arc<dyn PciFunction>> {
        let mut functions = self.functions();
        let slot = functions.get_mut(usize::from(address.device))?;
        std::mem::replace(slot, function)
    }

    fn show(&self, address: PciAddress, config: &[u8; CONFIG_SIZE]) {
        self.window
            .store(usize::from(address.device) * DEVICE, config);
    }

    fn functions(&self) -> MutexGuard<'_, Vec<Option<Arc<dyn PciFunction>>>> {
        self.functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
        let function = Arc::clone(self.functions().get(device)?.as_ref()?);
        let device = u8::try_from(device).ok()?;
        Some((PciAddress { device }, function, register))
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
        fn id(&self) -> &str {
            "f"
        }
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
    fn functions_answer_in_their_slot_and_nowhere_else() {
        let segment = PciSegment::new(RecordingVm::new()).unwrap();
        assert_eq!(read(&segment, 0, 0), 0x0d57_8086);
        let address = PciAddress { device: 1 };
        assert_eq!(read(&segment, 1, 0), 0xffff_ffff);
        segment.insert(address, function());
        assert_eq!(read(&segment, 1, 0), 0x5678_1234);
        assert_eq!(read(&segment, 2, 0), 0xffff_ffff);
        // Another function of the same device, and an extended register.
        assert_eq!(read(&segment, 1, 0x1000), 0xffff_ffff);
        assert_eq!(read(&segment, 1, 0x100), 0xffff_ffff);
        assert_eq!(segment.eject(address).as_deref(), Some("f"));
        assert_eq!(read(&segment, 1, 0), 0xffff_ffff);
        assert_eq!(segment.eject(address), None);
        assert_eq!(segment.eject(PciAddress { device: 0 }), None);
        assert_eq!(read(&segment, 0, 0), 0x0d57_8086);
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
