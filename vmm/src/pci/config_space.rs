//! The configuration registers of one function: bytes, and which bits of them
//! the guest may change. BAR sizing needs nothing more: the low bits of a BAR
//! cannot be changed.

/// Registers of a conventional function. The extended ones do not exist.
pub const CONFIG_SIZE: usize = 256;

/// Offsets of registers of the type 0 header (PCI 3.0, 6.1).
pub mod register {
    /// What the function does on the bus.
    pub const COMMAND: usize = 0x04;
    /// What it can do.
    pub const STATUS: usize = 0x06;
    /// The first base address.
    pub const BAR0: usize = 0x10;
    /// Offset of the first capability.
    pub const CAPABILITIES: usize = 0x34;
}

/// Identifiers of capabilities.
pub mod capability {
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
    /// Defined by the vendor.
    pub const VENDOR: u8 = 0x09;
}

/// Bit of the command register: memory BARs are decoded.
pub const COMMAND_MEMORY: u16 = 1 << 1;
// Memory decoding, bus mastering, no INTx.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | 1 << 2 | 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const HEADER_END: usize = 0x40;

/// Saved registers are those of another function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the configuration registers are those of another function")]
pub struct ForeignRegisters;

/// What a function says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device of that vendor.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, sub-class, programming interface.
    pub class: [u8; 3],
    /// Vendor and device of the board it sits on.
    pub subsystem: (u16, u16),
}

/// The registers of one function.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_SIZE],
    writable: [u8; CONFIG_SIZE],
    /// Where the next capability goes.
    free: usize,
    /// The byte that is to point to it.
    link: usize,
}

impl ConfigSpace {
    /// Registers of a function without BARs and capabilities.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_SIZE],
            writable: [0; CONFIG_SIZE],
            free: HEADER_END,
            link: register::CAPABILITIES,
        };
        let [base, sub, interface] = identity.class;
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(0x08, &[identity.revision, interface, sub, base]);
        space.put(0x2c, &identity.subsystem.0.to_le_bytes());
        space.put(0x2e, &identity.subsystem.1.to_le_bytes());
        space.allow(register::COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        // Scratch for the guest's own notes: the interrupt line.
        space.allow(0x3c, &[0xff]);
        space
    }

    /// Adds a 32-bit memory BAR of `size` bytes, a power of two, at `address`.
    pub fn add_bar(&mut self, index: usize, size: u32, address: u32) {
        let at = register::BAR0 + index * 4;
        self.put(at, &address.to_le_bytes());
        self.allow(at, &(!(size - 1)).to_le_bytes());
    }

    /// Appends a capability whose part after identifier and link is `body`;
    /// says where it lies.
    ///
    /// # Panics
    /// If the space is full, which depends on no input.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.free;
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        let link = self.link;
        self.put(link, &[at as u8]);
        self.link = at + 1;
        self.free = (at + 2 + body.len()).next_multiple_of(4);
        let status = self.u16(register::STATUS) | STATUS_CAPABILITIES;
        self.put(register::STATUS, &status.to_le_bytes());
        at
    }

    /// Lets the guest change the bits of `mask` at `offset`.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// Sets registers, whatever the guest may change.
    pub fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// A write of the guest's; what lies outside is dropped.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let offsets = offset..CONFIG_SIZE;
        for (at, value) in offsets.zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | value & mask;
        }
    }

    /// Puts back what [`bytes`](Self::bytes) told. Only what the guest may change
    /// can differ.
    ///
    /// # Errors
    /// They are the registers of another function.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), ForeignRegisters> {
        let mut restored = self.clone();
        restored.write(0, bytes);
        if restored.bytes != bytes {
            return Err(ForeignRegisters);
        }
        *self = restored;
        Ok(())
    }

    /// All registers.
    #[must_use]
    pub fn bytes(&self) -> &[u8; CONFIG_SIZE] {
        &self.bytes
    }

    /// A register of two bytes.
    #[must_use]
    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// A register of four bytes.
    #[must_use]
    pub fn u32(&self, offset: usize) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset + 2)) << 16
    }

    /// Where a 32-bit memory BAR is decoded, if it is.
    #[must_use]
    pub fn bar(&self, index: usize) -> Option<u64> {
        let decoded = self.u16(register::COMMAND) & COMMAND_MEMORY != 0;
        decoded.then(|| u64::from(self.u32(register::BAR0 + index * 4) & !0xf))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(&Identity {
            vendor: 0x1af4,
            device: 0x1044,
            revision: 1,
            class: [0xff, 0, 0],
            subsystem: (0x1af4, 0x1100),
        });
        space.add_bar(0, 0x4000, 0xc000_8000);
        space
    }

    #[test]
    fn sizing_a_bar_gives_its_size_and_keeps_the_others_zero() {
        let mut space = space();
        for index in 0..6 {
            space.write(register::BAR0 + index * 4, &[0xff; 4]);
        }
        assert_eq!(space.u32(register::BAR0), 0xffff_c000);
        for index in 1..6 {
            assert_eq!(space.u32(register::BAR0 + index * 4), 0);
        }
    }

    #[test]
    fn a_bar_is_decoded_where_the_guest_puts_it_while_memory_is_enabled() {
        let mut space = space();
        assert_eq!(space.bar(0), None);
        space.write(register::COMMAND, &COMMAND_MEMORY.to_le_bytes());
        assert_eq!(space.bar(0), Some(0xc000_8000));
        space.write(register::BAR0, &0xd123_4567_u32.to_le_bytes());
        assert_eq!(space.bar(0), Some(0xd123_4000));
        space.write(register::COMMAND, &[0, 0]);
        assert_eq!(space.bar(0), None);
    }

    #[test]
    fn capabilities_form_a_list_in_the_order_they_came() {
        let mut space = space();
        assert_eq!(space.u16(register::STATUS), 0);
        let first = space.add_capability(capability::MSIX, &[1; 10]);
        let second = space.add_capability(capability::VENDOR, &[2; 3]);
        let bytes = space.bytes();
        assert_eq!(usize::from(bytes[register::CAPABILITIES]), first);
        assert_eq!(
            (bytes[first], usize::from(bytes[first + 1])),
            (0x11, second)
        );
        assert_eq!((bytes[second], bytes[second + 1]), (0x09, 0));
        assert_eq!(second % 4, 0);
        assert_eq!(space.u16(register::STATUS), STATUS_CAPABILITIES);
    }

    #[test]
    fn registers_are_put_back_into_the_same_function_only() {
        let mut first = space();
        first.write(register::COMMAND, &[6, 0]);
        first.write(register::BAR0, &0xd000_0000_u32.to_le_bytes());
        let saved = *first.bytes();
        let mut second = space();
        second.restore(&saved).unwrap();
        assert_eq!(second.bytes(), &saved);
        let mut other = saved;
        other[0] ^= 1;
        for wrong in [&other[..], &saved[1..], &[saved, saved].concat()] {
            assert_eq!(second.restore(wrong), Err(ForeignRegisters));
            assert_eq!(second.bytes(), &saved);
        }
    }

    proptest! {
        #[test]
        fn the_guest_changes_writable_bits_only(
            writes in prop::collection::vec((0usize..300, prop::collection::vec(any::<u8>(), 0..9)), 0..40)
        ) {
            let mut space = space();
            let before = space.clone();
            for (offset, data) in &writes {
                space.write(*offset, data);
            }
            for at in 0..CONFIG_SIZE {
                let changed = space.bytes[at] ^ before.bytes[at];
                prop_assert_eq!(changed & !before.writable[at], 0, "{:#x}", at);
            }
        }
    }
}
