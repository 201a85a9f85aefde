//! The exit-reason tables: the one place that says which exit reasons exist,
//! how the manual names them and whether KVM handles them.
//!
//! The kernel side uses a C header generated from here ([`c_header`]), so the
//! guest's CPUID leaves, the REST API and `ch-remote` cannot judge a reason
//! differently.

use alloc::format;
use alloc::string::{String, ToString};
#[cfg(feature = "std")]
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

#[cfg(feature = "std")]
mod c_header;
mod find;
mod svm;
mod vmx;

#[cfg(feature = "std")]
pub use c_header::{C_HEADER_PATH, c_header};
pub use find::FindError;
pub use svm::SVM;
pub use vmx::VMX;

/// Slots in each of the kernel's per-vCPU arrays, for either instruction set.
///
/// The larger of the two tables decides; on VMX the slots past
/// [`ExitTable::slot_count`] stay zero.
pub const STATS_SLOTS: usize = SVM.slot_count();

/// The instruction-set extension whose exits are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isa {
    /// Intel VMX: reasons are basic exit reasons.
    Vmx,
    /// AMD SVM: reasons are VMEXIT codes.
    Svm,
}

impl Isa {
    /// The exit-reason table of this instruction set.
    pub fn table(self) -> &'static ExitTable {
        match self {
            Isa::Vmx => &VMX,
            Isa::Svm => &SVM,
        }
    }

    /// `vmx` or `svm`, as the REST API and the command line spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Isa::Vmx => "vmx",
            Isa::Svm => "svm",
        }
    }

    /// A reason's number as the manual writes it: decimal in Intel's,
    /// hexadecimal in AMD's.
    pub fn number(self, reason: u32) -> String {
        match self {
            Isa::Vmx => reason.to_string(),
            Isa::Svm => format!("{reason:#x}"),
        }
    }

    /// The signature that CPUID leaf 0x4FFFFFFB returns in EBX.
    pub fn signature(self) -> u32 {
        u32::from_le_bytes(match self {
            Isa::Vmx => *b"VMX\0",
            Isa::Svm => *b"SVM\0",
        })
    }

    /// The instruction set behind a signature, if it is a known one.
    pub fn from_signature(signature: u32) -> Option<Isa> {
        [Isa::Vmx, Isa::Svm]
            .into_iter()
            .find(|isa| isa.signature() == signature)
    }
}

/// An exit reason by the number that the manual gives it. Any 32-bit value can
/// be asked for, so this says nothing about validity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExitReason(pub u32);

/// Index into the kernel's per-vCPU arrays. Never mixed up with [`ExitReason`]:
/// SVM folds its sparse codes into compact slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExitSlot(pub usize);

/// How an exit reason is judged. The same three outcomes everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasonStatus {
    /// The manual does not define the number.
    Undefined,
    /// The manual defines it, KVM has no handler for it.
    NotEnabled,
    /// KVM has a handler for it.
    Enabled,
}

/// One exit reason that the manual defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonEntry {
    /// The manual's number.
    pub number: u32,
    /// The manual's name.
    pub name: &'static str,
    /// The name in Linux's uapi headers without its prefix, or the same form
    /// made from the manual's name where Linux has none.
    pub symbol: &'static str,
    /// Whether KVM's dispatch table has a handler.
    pub enabled: bool,
}

/// A run of reason numbers that map to consecutive slots.
#[derive(Clone, Copy, Debug)]
struct SlotRange {
    first_reason: u32,
    first_slot: usize,
    len: usize,
}

/// All exit reasons of one instruction set.
#[derive(Debug)]
pub struct ExitTable {
    /// The instruction set.
    pub isa: Isa,
    /// The manual that the names and numbers follow, with its revision.
    pub manual: &'static str,
    /// The reasons that the manual defines, ascending.
    pub reasons: &'static [ReasonEntry],
    ranges: &'static [SlotRange],
    slots: usize,
}

impl ExitTable {
    /// Slots in use, the one for everything without a number of its own
    /// included (it is the last).
    pub const fn slot_count(&self) -> usize {
        self.slots
    }

    /// The slot of exits that no number of the manual describes: failed VM
    /// entries that never reached the guest, and codes newer than this table.
    pub fn other_slot(&self) -> ExitSlot {
        ExitSlot(self.slots - 1)
    }

    /// The entry of a defined reason.
    pub fn entry(&self, reason: ExitReason) -> Option<&'static ReasonEntry> {
        self.reasons
            .binary_search_by_key(&reason.0, |entry| entry.number)
            .ok()
            .map(|index| &self.reasons[index])
    }

    /// Judges a number.
    pub fn status(&self, reason: ExitReason) -> ReasonStatus {
        match self.entry(reason) {
            None => ReasonStatus::Undefined,
            Some(entry) if entry.enabled => ReasonStatus::Enabled,
            Some(_) => ReasonStatus::NotEnabled,
        }
    }

    /// The slot that counts a reason; `None` for one that the manual does not
    /// define.
    pub fn slot(&self, reason: ExitReason) -> Option<ExitSlot> {
        self.entry(reason)?;
        self.ranges.iter().find_map(|range| {
            let offset = reason.0.checked_sub(range.first_reason)? as usize;
            (offset < range.len).then_some(ExitSlot(range.first_slot + offset))
        })
    }

    /// The defined reason that a slot counts; `None` for the other slot and
    /// for slots that stand for gaps in the manual's numbering.
    pub fn reason_at(&self, slot: ExitSlot) -> Option<&'static ReasonEntry> {
        let range = self
            .ranges
            .iter()
            .find(|range| (range.first_slot..range.first_slot + range.len).contains(&slot.0))?;
        self.entry(ExitReason(
            range.first_reason + (slot.0 - range.first_slot) as u32,
        ))
    }

    /// What each slot counts, as [`reason_at`](Self::reason_at) says.
    #[cfg(feature = "std")]
    pub fn by_slot(&self) -> &'static [Option<&'static ReasonEntry>] {
        static VMX_SLOTS: OnceLock<Vec<Option<&ReasonEntry>>> = OnceLock::new();
        static SVM_SLOTS: OnceLock<Vec<Option<&ReasonEntry>>> = OnceLock::new();
        let slots = match self.isa {
            Isa::Vmx => &VMX_SLOTS,
            Isa::Svm => &SVM_SLOTS,
        };
        slots.get_or_init(|| {
            let table = self.isa.table();
            (0..table.slots)
                .map(|slot| table.reason_at(ExitSlot(slot)))
                .collect()
        })
    }

    /// Finds a reason as a person types it: a decimal or 0x number, the Linux
    /// symbol or the manual's name, whatever the case.
    pub fn parse(&self, text: &str) -> Option<ExitReason> {
        let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        };
        number.map(ExitReason).or_else(|| {
            self.reasons
                .iter()
                .find(|entry| {
                    entry.symbol.eq_ignore_ascii_case(text) || entry.name.eq_ignore_ascii_case(text)
                })
                .map(|entry| ExitReason(entry.number))
        })
    }
}

const fn reason(
    number: u32,
    symbol: &'static str,
    name: &'static str,
    enabled: bool,
) -> ReasonEntry {
    ReasonEntry {
        number,
        name,
        symbol,
        enabled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_ascend_and_have_a_slot_each() {
        for table in [&VMX, &SVM] {
            let mut slots = std::collections::HashSet::new();
            for pair in table.reasons.windows(2) {
                assert!(pair[0].number < pair[1].number, "{:?}", pair);
            }
            for entry in table.reasons {
                let slot = table.slot(ExitReason(entry.number)).unwrap();
                assert!(slot < table.other_slot());
                assert!(slots.insert(slot), "{entry:?} shares a slot");
                assert_eq!(table.reason_at(slot), Some(entry));
            }
            assert_eq!(table.reason_at(table.other_slot()), None);
            assert!(table.slot_count() <= STATS_SLOTS);
        }
    }

    #[test]
    fn vmx_numbers_that_the_manual_leaves_out_are_undefined() {
        for number in [35, 38, 42, 71, 82, 83, 86, 0xdead, 0x1000A, u32::MAX] {
            assert_eq!(VMX.status(ExitReason(number)), ReasonStatus::Undefined);
            assert_eq!(VMX.slot(ExitReason(number)), None);
        }
    }

    #[test]
    fn vmx_reasons_without_a_handler_are_not_enabled() {
        let expected: Vec<u32> = [3, 4, 5, 6, 11, 16, 17, 33, 34, 51]
            .into_iter()
            .chain(63..=70)
            .chain([72, 73])
            .chain(76..=81)
            .chain([84, 85])
            .collect();
        let found: Vec<u32> = (0..200)
            .filter(|&n| VMX.status(ExitReason(n)) == ReasonStatus::NotEnabled)
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn svm_codes_are_judged_over_all_32_bits() {
        assert_eq!(SVM.status(ExitReason(0x72)), ReasonStatus::Enabled);
        assert_eq!(SVM.status(ExitReason(0x10072)), ReasonStatus::Undefined);
        assert_eq!(SVM.status(ExitReason(0x6e)), ReasonStatus::NotEnabled);
        assert_eq!(SVM.status(ExitReason(0x400)), ReasonStatus::Enabled);
        assert_eq!(SVM.status(ExitReason(0x404)), ReasonStatus::Undefined);
        assert_eq!(SVM.status(ExitReason(0xa7)), ReasonStatus::Undefined);
        assert_eq!(SVM.slot(ExitReason(0x403)), Some(ExitSlot(170)));
    }

    #[test]
    fn reasons_are_found_by_number_symbol_and_name() {
        for text in [
            "48",
            "0x30",
            "EPT_VIOLATION",
            "ept_violation",
            "EPT violation",
        ] {
            assert_eq!(VMX.parse(text), Some(ExitReason(48)), "{text}");
        }
        assert_eq!(VMX.parse("-1"), None);
        assert_eq!(VMX.parse("4294967296"), None);
        assert_eq!(VMX.parse("no such reason"), None);
    }

    #[test]
    fn numbers_are_written_as_the_manual_writes_them_and_read_back() {
        assert_eq!(Isa::Vmx.number(48), "48");
        assert_eq!(Isa::Svm.number(0x400), "0x400");
        assert_eq!(SVM.parse("0x400"), Some(ExitReason(0x400)));
    }

    #[test]
    fn a_signature_names_its_instruction_set() {
        assert_eq!(Isa::Vmx.signature(), 0x0058_4d56);
        assert_eq!(Isa::from_signature(Isa::Svm.signature()), Some(Isa::Svm));
        assert_eq!(Isa::from_signature(0), None);
    }
}
