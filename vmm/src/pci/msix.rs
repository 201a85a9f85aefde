//! MSI-X (PCI 3.0, 6.8.2): a table of messages that the guest fills in, and
//! masks for each of them and for all together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::{ConfigSpace, capability};
use crate::interrupt::{InterruptError, MsiMessage, MsiRouter, MsiVector};

/// Says that an event has no vector.
pub const NO_VECTOR: u16 = 0xffff;
/// Bytes of a table entry: address, data, control.
pub const ENTRY_SIZE: usize = 16;

const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;
const ENTRY_CONTROL: usize = 12;
const ENTRY_MASKED: u32 = 1;

/// What a device's threads raise.
pub struct MsixVectors {
    vectors: Box<[MsiVector]>,
    enabled: AtomicBool,
}

impl MsixVectors {
    /// `count` vectors, none of them connected.
    pub fn new(router: &Arc<MsiRouter>, count: u16) -> Result<Arc<Self>, InterruptError> {
        let vectors = (0..count)
            .map(|_| MsiVector::new(router))
            .collect::<Result<_, _>>()?;
        Ok(Arc::new(Self {
            vectors,
            enabled: AtomicBool::new(false),
        }))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.vectors.len() as u16
    }

    /// Raises a vector; false if it does not exist or the guest does not use
    /// MSI-X.
    pub fn raise(&self, vector: u16) -> bool {
        match self.vectors.get(usize::from(vector)) {
            Some(vector) if self.enabled.load(Ordering::Acquire) => {
                vector.raise();
                true
            }
            _ => false,
        }
    }
}

/// Where the capability lies in configuration space.
#[derive(Debug, Clone, Copy)]
pub struct MsixCapability {
    control: usize,
}

impl MsixCapability {
    /// Adds the capability. Table and pending bits lie in BAR `bar`.
    pub fn add(
        space: &mut ConfigSpace,
        vectors: u16,
        bar: u8,
        table: u32,
        pending: u32,
    ) -> MsixCapability {
        let mut body = Vec::new();
        body.extend_from_slice(&(vectors - 1).to_le_bytes());
        body.extend_from_slice(&(table | u32::from(bar)).to_le_bytes());
        body.extend_from_slice(&(pending | u32::from(bar)).to_le_bytes());
        let control = space.add_capability(capability::MSIX, &body) + 2;
        space.allow(control, &(CONTROL_ENABLE | CONTROL_MASK_ALL).to_le_bytes());
        Self { control }
    }

    /// Whether MSI-X is on, and whether all vectors are masked.
    #[must_use]
    pub fn state(self, space: &ConfigSpace) -> (bool, bool) {
        let control = space.u16(self.control);
        (
            control & CONTROL_ENABLE != 0,
            control & CONTROL_MASK_ALL != 0,
        )
    }
}

/// A vector as an inspection shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixVectorView {
    /// The guest's message.
    pub message: MsiMessage,
    /// The guest has masked this vector.
    pub masked: bool,
    /// It was raised and waits to be unmasked.
    pub pending: bool,
}

/// The table, and what follows from it for the vectors.
pub struct MsixTable {
    entries: Vec<[u8; ENTRY_SIZE]>,
    vectors: Arc<MsixVectors>,
    enabled: bool,
    masked: bool,
}

impl MsixTable {
    /// A table with every vector masked, as after a reset.
    #[must_use]
    pub fn new(vectors: Arc<MsixVectors>) -> Self {
        let mut entry = [0; ENTRY_SIZE];
        entry[ENTRY_CONTROL] = ENTRY_MASKED as u8;
        Self {
            entries: vec![entry; vectors.vectors.len()],
            vectors,
            enabled: false,
            masked: false,
        }
    }

    /// The table's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.entries.as_flattened()
    }

    /// A guest writes 4 or 8 bytes of the table; anything else is dropped.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Result<(), InterruptError> {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len()) {
            return Ok(());
        }
        let index = offset / ENTRY_SIZE;
        let Some(entry) = self.entries.get_mut(index) else {
            return Ok(());
        };
        // Aligned, so it ends within the entry.
        let at = offset % ENTRY_SIZE;
        entry[at..at + data.len()].copy_from_slice(data);
        // Only the mask is a bit of the control word.
        let control = u32_at(entry, ENTRY_CONTROL) & ENTRY_MASKED;
        entry[ENTRY_CONTROL..].copy_from_slice(&control.to_le_bytes());
        self.apply(index)
    }

    /// Follows the control register of the capability.
    pub fn set_state(&mut self, enabled: bool, masked: bool) -> Result<(), InterruptError> {
        if (enabled, masked) == (self.enabled, self.masked) {
            return Ok(());
        }
        if enabled && !self.enabled {
            // What happened before the guest switched MSI-X on is not for it.
            for vector in &self.vectors.vectors {
                vector.forget();
            }
        }
        (self.enabled, self.masked) = (enabled, masked);
        self.vectors.enabled.store(enabled, Ordering::Release);
        (0..self.entries.len()).try_for_each(|index| self.apply(index))
    }

    /// The vectors as the guest has set them, to be looked at.
    pub fn vectors(&self) -> impl Iterator<Item = MsixVectorView> {
        self.entries
            .iter()
            .zip(&self.vectors.vectors)
            .map(|(entry, vector)| MsixVectorView {
                message: message_of(entry),
                masked: u32_at(entry, ENTRY_CONTROL) & ENTRY_MASKED != 0,
                pending: vector.is_pending(),
            })
    }

    /// What the guest has put into the table, and what waits to be unmasked.
    ///
    /// # Errors
    /// Interrupts that are on their way cannot be waited for.
    pub fn save(&self) -> Result<MsixState, InterruptError> {
        let Self {
            entries,
            vectors,
            // These are bits of the capability.
            enabled: _,
            masked: _,
        } = self;
        vectors.vectors.iter().try_for_each(MsiVector::flush)?;
        Ok(MsixState {
            entries: entries.clone(),
            pending: vectors.vectors.iter().map(MsiVector::is_pending).collect(),
        })
    }

    /// Puts the table back, with MSI-X on or off and all vectors masked or not as
    /// the capability says, in a table that is as after a reset.
    ///
    /// # Errors
    /// Another number of vectors, or the hypervisor does not take them.
    pub fn restore(
        &mut self,
        state: &MsixState,
        (enabled, masked): (bool, bool),
    ) -> Result<(), MsixStateError> {
        let MsixState { entries, pending } = state;
        let count = self.entries.len();
        if entries.len() != count || pending.len() != count {
            return Err(MsixStateError::Count {
                saved: entries.len(),
                count,
            });
        }
        self.entries.clone_from(entries);
        for (vector, _) in self
            .vectors
            .vectors
            .iter()
            .zip(pending)
            .filter(|(_, p)| **p)
        {
            vector.raise();
        }
        (self.enabled, self.masked) = (enabled, masked);
        self.vectors.enabled.store(enabled, Ordering::Release);
        Ok((0..count).try_for_each(|index| self.apply(index))?)
    }

    fn apply(&self, index: usize) -> Result<(), InterruptError> {
        let (entry, vector) = (&self.entries[index], &self.vectors.vectors[index]);
        let masked = self.masked || u32_at(entry, ENTRY_CONTROL) & ENTRY_MASKED != 0;
        if self.enabled && !masked {
            vector.connect(message_of(entry))
        } else {
            vector.disconnect()
        }
    }

    /// The pending bits, in words of 64.
    #[must_use]
    pub fn pending(&self) -> Vec<u8> {
        self.vectors
            .vectors
            .chunks(64)
            .flat_map(|vectors| {
                let bits = vectors
                    .iter()
                    .enumerate()
                    .fold(0u64, |bits, (bit, vector)| {
                        bits | u64::from(self.enabled && vector.is_pending()) << bit
                    });
                bits.to_le_bytes()
            })
            .collect()
    }
}

/// A table as it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    entries: Vec<[u8; ENTRY_SIZE]>,
    /// By vector: it was raised while it was masked.
    pending: Vec<bool>,
}

/// Why a table cannot be what was saved.
#[derive(Debug, thiserror::Error)]
pub enum MsixStateError {
    /// Another device.
    #[error("{saved} interrupt vectors are saved, the device has {count}")]
    Count {
        /// Vectors in the saved state.
        saved: usize,
        /// Vectors of the device.
        count: usize,
    },
    /// The hypervisor refused.
    #[error(transparent)]
    Interrupt(#[from] InterruptError),
}

fn message_of(entry: &[u8; ENTRY_SIZE]) -> MsiMessage {
    MsiMessage {
        address: u64::from(u32_at(entry, 4)) << 32 | u64::from(u32_at(entry, 0)),
        data: u32_at(entry, 8),
    }
}

fn u32_at(entry: &[u8; ENTRY_SIZE], at: usize) -> u32 {
    u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::testing::{Call, RecordingVm};

    fn table(count: u16) -> (MsixTable, Arc<MsixVectors>, Arc<RecordingVm>) {
        let vm = RecordingVm::new();
        let router = MsiRouter::new(vm.clone());
        let vectors = MsixVectors::new(&router, count).unwrap();
        (MsixTable::new(Arc::clone(&vectors)), vectors, vm)
    }

    fn program(table: &mut MsixTable, index: usize, data: u32, masked: bool) {
        let at = index * ENTRY_SIZE;
        table.write(at, &0xfee0_1000_u32.to_le_bytes()).unwrap();
        table.write(at + 4, &[0; 4]).unwrap();
        table.write(at + 8, &data.to_le_bytes()).unwrap();
        table
            .write(at + 12, &u32::from(masked).to_le_bytes())
            .unwrap();
    }

    fn connections(vm: &RecordingVm) -> Vec<Call> {
        let wanted = |call: &Call| matches!(call, Call::Connect(_) | Call::Disconnect(_));
        vm.calls().into_iter().filter(wanted).collect()
    }

    #[test]
    fn a_vector_is_connected_when_nothing_masks_it() {
        let (mut table, _, vm) = table(2);
        program(&mut table, 1, 0x31, false);
        assert_eq!(connections(&vm), []);
        table.set_state(true, true).unwrap();
        assert_eq!(connections(&vm), []);
        table.set_state(true, false).unwrap();
        assert_eq!(connections(&vm), [Call::Connect(1)]);
        table.write(ENTRY_SIZE + 12, &[1, 0, 0, 0]).unwrap();
        assert_eq!(connections(&vm)[1..], [Call::Disconnect(1)]);
    }

    #[test]
    fn what_is_raised_while_masked_is_pending_until_unmasked() {
        let (mut table, vectors, _) = table(65);
        assert!(!vectors.raise(64));
        table.set_state(true, false).unwrap();
        assert_eq!(table.pending(), [0; 16]);
        assert!(vectors.raise(64) && vectors.raise(1));
        let mut expected = [0; 16];
        expected[0] = 2;
        expected[8] = 1;
        assert_eq!(table.pending(), expected);
        program(&mut table, 1, 0x31, false);
        expected[0] = 0;
        assert_eq!(table.pending(), expected);
        assert!(!vectors.raise(65) && !vectors.raise(NO_VECTOR));
    }

    #[test]
    fn a_saved_table_goes_on_in_another_one_and_in_no_smaller_one() {
        let (mut first, vectors, _) = table(2);
        first.set_state(true, false).unwrap();
        program(&mut first, 0, 0x31, false);
        // Is raised while it is masked.
        program(&mut first, 1, 0x32, true);
        assert!(vectors.raise(1));
        let saved = first.save().unwrap();
        let (mut second, _, vm) = table(2);
        second.restore(&saved, (true, false)).unwrap();
        assert_eq!(second.bytes(), first.bytes());
        assert_eq!(second.pending(), first.pending());
        assert_eq!(connections(&vm), [Call::Connect(0)]);
        program(&mut second, 1, 0x32, false);
        assert_eq!(second.pending(), [0; 8]);
        let (mut smaller, ..) = table(1);
        assert!(smaller.restore(&saved, (true, false)).is_err());
    }

    #[test]
    fn what_is_saved_has_reached_the_guest() {
        let (mut table, _, vm) = table(1);
        table.set_state(true, false).unwrap();
        program(&mut table, 0, 0x31, false);
        table.save().unwrap();
        // The kernel delivers before it lets go of an event.
        let calls = [Call::Connect(0), Call::Disconnect(0), Call::Connect(0)];
        assert_eq!(connections(&vm), calls);
    }

    #[test]
    fn only_the_mask_bit_of_a_control_word_can_be_set() {
        let (mut table, _, _) = table(1);
        table.write(8, &[0xff; 8]).unwrap();
        assert_eq!(table.bytes()[8..], [0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }

    #[test]
    fn odd_accesses_and_entries_that_do_not_exist_change_nothing() {
        let (mut table, _, _) = table(1);
        let before = table.bytes().to_vec();
        for (offset, width) in [(0, 1), (2, 2), (2, 4), (4, 8), (16, 4), (1 << 20, 8)] {
            table.write(offset, &vec![0xff; width]).unwrap();
        }
        assert_eq!(table.bytes(), before);
    }
}
