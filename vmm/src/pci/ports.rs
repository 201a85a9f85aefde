//! Configuration mechanism #1 of the PCI Local Bus Specification (3.0, section
//! 3.2.2.3.2): an address port and a data port of four bytes each.
//!
//! Only machines that boot firmware have it. Firmware knows no other way to
//! its bus; Linux would take it in place of memory that it reads without an
//! exit.
//!
//! A byte in the middle of the address port is another device's, as on a PC:
//! the reset control register.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::PciSegment;
use crate::bus::BusDevice;

/// The address port counts only when set; the data port is dead without.
const ENABLE: u32 = 1 << 31;
/// Bus, device, function and register, as they stand in the address.
const BUS: u32 = 0xff << 16;
const FUNCTION_SHIFT: u32 = 8;
const FUNCTION_MASK: u32 = 0xff;
const REGISTER: u32 = 0xfc;

/// How far apart functions are in the mapped configuration space, as a power
/// of two.
const MAPPED_SHIFT: u32 = 12;

const ADDRESS_PORT: u64 = 0;
const RESET_CONTROL: u64 = 1;
const DATA_PORT: u64 = 4;

/// The two ports. One guest uses them under one lock, so the address is not
/// guarded against a second vCPU, as on a PC.
pub struct PciConfigPorts {
    segment: Arc<PciSegment>,
    reset_control: Arc<dyn BusDevice>,
    address: AtomicU32,
}

impl PciConfigPorts {
    /// Ports that lead to this segment's functions, and to the reset control
    /// register.
    #[must_use]
    pub fn new(segment: Arc<PciSegment>, reset_control: Arc<dyn BusDevice>) -> Self {
        Self {
            segment,
            reset_control,
            address: AtomicU32::new(0),
        }
    }

    /// The address port.
    #[must_use]
    pub fn address(&self) -> u32 {
        self.address.load(Ordering::Relaxed)
    }

    /// Sets the address port.
    pub fn set_address(&self, address: u32) {
        self.address.store(address, Ordering::Relaxed);
    }

    /// Where in the mapped configuration space the data port's byte `offset`
    /// is now, if it is anywhere.
    fn target(&self, offset: u64) -> Option<u64> {
        let address = self.address.load(Ordering::Relaxed);
        if address & ENABLE == 0 || address & BUS != 0 {
            return None;
        }
        let function = (address >> FUNCTION_SHIFT) & FUNCTION_MASK;
        Some(u64::from((function << MAPPED_SHIFT) | (address & REGISTER)) + offset)
    }
}

impl BusDevice for PciConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        match offset.checked_sub(DATA_PORT) {
            Some(offset) => {
                if let Some(target) = self.target(offset) {
                    self.segment.read(target, data);
                }
            }
            // Of the address port only the whole is a register.
            None => match (offset, &data) {
                (ADDRESS_PORT, [_, _, _, _]) => {
                    let address = self.address.load(Ordering::Relaxed);
                    data.copy_from_slice(&address.to_le_bytes());
                }
                (RESET_CONTROL, [_]) => self.reset_control.read(0, data),
                _ => {}
            },
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match offset.checked_sub(DATA_PORT) {
            Some(offset) => {
                if let Some(target) = self.target(offset) {
                    self.segment.write(target, data);
                }
            }
            None => match (offset, data) {
                (ADDRESS_PORT, &[a, b, c, d]) => {
                    let address = u32::from_le_bytes([a, b, c, d]);
                    self.address.store(address, Ordering::Relaxed);
                }
                (RESET_CONTROL, [_]) => self.reset_control.write(0, data),
                _ => {}
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU8;

    use super::*;
    use crate::interrupt::testing::RecordingVm;

    /// A register that keeps its byte.
    #[derive(Default)]
    struct Byte(AtomicU8);

    impl BusDevice for Byte {
        fn read(&self, _: u64, data: &mut [u8]) {
            data.fill(self.0.load(Ordering::Relaxed));
        }
        fn write(&self, _: u64, data: &[u8]) {
            self.0.store(data[0], Ordering::Relaxed);
        }
    }

    fn ports() -> PciConfigPorts {
        let segment = PciSegment::new(RecordingVm::new()).unwrap();
        PciConfigPorts::new(segment, Arc::new(Byte::default()))
    }

    fn read<const N: usize>(ports: &PciConfigPorts, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        ports.read(offset, &mut data);
        data
    }

    #[test]
    fn host_bridge_is_read_in_every_width() {
        let ports = ports();
        ports.write(0, &0x8000_0000_u32.to_le_bytes());
        assert_eq!(read(&ports, 0), 0x8000_0000_u32.to_le_bytes());
        assert_eq!(read(&ports, 4), [0x86, 0x80, 0x57, 0x0d]);
        assert_eq!(read(&ports, 6), [0x57, 0x0d]);
        assert_eq!(read(&ports, 7), [0x0d]);
    }

    #[test]
    fn registers_are_written_where_the_address_says() {
        let ports = ports();
        ports.write(0, &0x8000_003c_u32.to_le_bytes());
        ports.write(4, &[0x55]);
        assert_eq!(read(&ports, 4), [0x55]);
        ports.write(0, &0x8000_003f_u32.to_le_bytes());
        assert_eq!(read(&ports, 4), [0x55], "the lowest bits do not count");
        ports.write(0, &0x8000_0000_u32.to_le_bytes());
        assert_eq!(read(&ports, 4), [0x86]);
    }

    #[test]
    fn nothing_is_elsewhere_or_while_it_is_switched_off() {
        let ports = ports();
        for address in [
            0,           // not enabled
            0x8001_0000, // another bus
            0x8000_0800, // no such device
            0x8000_0100, // no such function
        ] {
            ports.write(0, &u32::to_le_bytes(address));
            ports.write(4, &[0; 4]);
            assert_eq!(read(&ports, 4), [0xff; 4], "{address:#x}");
        }
    }

    #[test]
    fn address_port_takes_nothing_but_the_whole() {
        let ports = ports();
        ports.write(0, &0x8000_0000_u32.to_le_bytes());
        ports.write(0, &[0x12]);
        ports.write(2, &[0x12, 0x34]);
        assert_eq!(read(&ports, 2), [0xff]);
        assert_eq!(read(&ports, 0), 0x8000_0000_u32.to_le_bytes());
    }

    #[test]
    fn reset_control_register_is_one_byte_in_the_address_port() {
        let ports = ports();
        ports.write(0, &0x8000_0000_u32.to_le_bytes());
        ports.write(1, &[0x0a, 0x0b]);
        assert_eq!(read(&ports, 1), [0], "two bytes are not the register");
        ports.write(1, &[0x0a]);
        assert_eq!(read(&ports, 1), [0x0a]);
        assert_eq!(read(&ports, 0), 0x8000_0000_u32.to_le_bytes());
    }
}
