//! The CPUID leaves by which a guest reads its VM's exits: register layout,
//! decoding and a reader over any source of CPUID results.
//!
//! The layout is the ABI that the kernel side answers by; high halves of 64-bit
//! values sit in EBX, low halves in EAX for counts and in ECX for cycles.

use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;

use crate::table::{ExitReason, Isa, ReasonStatus};

/// What this is: version, signature, vCPUs summed, host TSC kHz.
pub const LEAF_INFO: u32 = 0x4fff_fffb;
/// Cycles of the reason in ECX.
pub const LEAF_REASON_CYCLES: u32 = 0x4fff_fffc;
/// Exits of the reason in ECX.
pub const LEAF_REASON_EXITS: u32 = 0x4fff_fffd;
/// Cycles of all reasons.
pub const LEAF_TOTAL_CYCLES: u32 = 0x4fff_fffe;
/// Exits of all reasons.
pub const LEAF_TOTAL_EXITS: u32 = 0x4fff_ffff;

/// The version of the leaves that this reader knows.
pub const VERSION: u32 = 1;

/// The four registers as CPUID returns them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Registers {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

impl Registers {
    /// The answer for a reason that the manual does not define.
    pub const UNDEFINED: Registers = Registers {
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: u32::MAX,
    };

    /// A count: low half in EAX, high half in EBX.
    pub fn count(self) -> u64 {
        u64::from(self.ebx) << 32 | u64::from(self.eax)
    }

    /// Cycles: low half in ECX, high half in EBX.
    pub fn cycles(self) -> u64 {
        u64::from(self.ebx) << 32 | u64::from(self.ecx)
    }
}

/// Why a guest cannot read its exits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestError {
    /// The signature is missing: stock KVM, another hypervisor or real hardware,
    /// or the leaves were switched off for this VM.
    NoLeaves,
    /// A later version than [`VERSION`].
    UnknownVersion(u32),
    /// The manual does not define the reason that was asked for.
    Undefined(ExitReason),
}

impl fmt::Display for GuestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GuestError::NoLeaves => write!(
                f,
                "No exit statistics: CPUID leaf {LEAF_INFO:#x} has no signature. \
                 The host's KVM does not count exits, or the leaves are off for this VM"
            ),
            GuestError::UnknownVersion(version) => write!(
                f,
                "The host answers with version {version} of the leaves, this program knows {VERSION}"
            ),
            GuestError::Undefined(reason) => {
                write!(f, "Exit reason {} is undefined in the manual", reason.0)
            }
        }
    }
}

impl core::error::Error for GuestError {}

/// A source of CPUID results: leaf and subleaf in, registers out.
pub type Cpuid<'a> = &'a dyn Fn(u32, u32) -> Registers;

/// What a guest reads of one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GuestReason {
    /// The manual's number.
    pub number: u32,
    /// The manual's name.
    pub name: &'static str,
    /// Linux's symbol.
    pub symbol: &'static str,
    /// Whether the host's KVM has a handler for it, by the table.
    pub enabled: bool,
    /// Leaf 0x4FFFFFFD.
    pub exits: u64,
    /// Leaf 0x4FFFFFFC.
    pub cycles: u64,
}

/// Everything that the leaves tell, in the field names of the REST body.
///
/// The reading itself exits: each value is right at its own CPUID, so CPUID's
/// own row lags behind the total by the questions asked after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GuestSnapshot {
    /// Always `cpuid`.
    pub source: &'static str,
    /// From when on exits are counted: `boot`, or `earlier snapshot`.
    pub since: &'static str,
    /// In a difference, the microseconds that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// Exits that one reading makes.
    #[serde(skip)]
    pub own_exits: u32,
    /// Whose exit reasons these are.
    pub isa: Isa,
    /// The manual that names and numbers follow.
    pub manual: &'static str,
    /// Host TSC ticks per millisecond.
    pub tsc_khz: u32,
    /// vCPUs summed.
    pub vcpus: u32,
    /// Leaf 0x4FFFFFFF.
    pub exits: u64,
    /// Leaf 0x4FFFFFFE.
    pub cycles: u64,
    /// Every reason that the manual defines.
    pub reasons: Vec<GuestReason>,
}

impl GuestSnapshot {
    /// Reads all leaves, or those of one reason and the totals.
    pub fn read(cpuid: Cpuid, only: Option<ExitReason>) -> Result<GuestSnapshot, GuestError> {
        let asked = core::cell::Cell::new(0);
        let counted = |leaf, subleaf| {
            asked.set(asked.get() + 1);
            cpuid(leaf, subleaf)
        };
        let cpuid: Cpuid = &counted;
        let (isa, info) = identify(cpuid)?;
        let table = isa.table();
        if let Some(reason) = only
            && table.status(reason) == ReasonStatus::Undefined
        {
            return Err(GuestError::Undefined(reason));
        }
        let reasons: Vec<GuestReason> = table
            .reasons
            .iter()
            .filter(|entry| only.is_none_or(|reason| reason.0 == entry.number))
            .map(|entry| GuestReason {
                number: entry.number,
                name: entry.name,
                symbol: entry.symbol,
                enabled: entry.enabled,
                exits: cpuid(LEAF_REASON_EXITS, entry.number).count(),
                cycles: cpuid(LEAF_REASON_CYCLES, entry.number).cycles(),
            })
            .collect();
        let exits = cpuid(LEAF_TOTAL_EXITS, 0).count();
        let cycles = cpuid(LEAF_TOTAL_CYCLES, 0).cycles();
        Ok(GuestSnapshot {
            source: "cpuid",
            since: "boot",
            duration_us: None,
            own_exits: asked.get(),
            isa,
            manual: table.manual,
            tsc_khz: info.edx,
            vcpus: info.ecx,
            exits,
            cycles,
            reasons,
        })
    }

    /// What happened since an earlier reading of the same reasons, which took
    /// `duration_us` microseconds.
    pub fn since(mut self, earlier: &GuestSnapshot, duration_us: u64) -> GuestSnapshot {
        self.since = "earlier snapshot";
        self.duration_us = Some(duration_us);
        self.exits = self.exits.saturating_sub(earlier.exits);
        self.cycles = self.cycles.saturating_sub(earlier.cycles);
        for (row, old) in self.reasons.iter_mut().zip(&earlier.reasons) {
            row.exits = row.exits.saturating_sub(old.exits);
            row.cycles = row.cycles.saturating_sub(old.cycles);
        }
        self
    }
}

/// Whose leaves answer, and what [`LEAF_INFO`] says.
pub fn identify(cpuid: Cpuid) -> Result<(Isa, Registers), GuestError> {
    let info = cpuid(LEAF_INFO, 0);
    let isa = Isa::from_signature(info.ebx).ok_or(GuestError::NoLeaves)?;
    if info.eax != VERSION {
        return Err(GuestError::UnknownVersion(info.eax));
    }
    Ok((isa, info))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers as the ABI says, with a count of 2^32 + number for every reason.
    fn host(leaf: u32, subleaf: u32) -> Registers {
        let table = Isa::Vmx.table();
        match leaf {
            LEAF_INFO => Registers {
                eax: VERSION,
                ebx: Isa::Vmx.signature(),
                ecx: 2,
                edx: 2_600_000,
            },
            LEAF_TOTAL_EXITS => Registers {
                eax: 7,
                ..Registers::default()
            },
            LEAF_TOTAL_CYCLES => Registers {
                ebx: 1,
                ecx: 9,
                ..Registers::default()
            },
            _ => match table.status(ExitReason(subleaf)) {
                ReasonStatus::Undefined => Registers::UNDEFINED,
                ReasonStatus::NotEnabled => Registers::default(),
                ReasonStatus::Enabled if leaf == LEAF_REASON_EXITS => Registers {
                    eax: subleaf,
                    ebx: 1,
                    ..Registers::default()
                },
                ReasonStatus::Enabled => Registers {
                    ebx: 2,
                    ecx: subleaf,
                    ..Registers::default()
                },
            },
        }
    }

    #[test]
    fn halves_are_joined_from_the_registers_that_the_abi_names() {
        let snapshot = GuestSnapshot::read(&host, None).unwrap();
        assert_eq!((snapshot.exits, snapshot.cycles), (7, (1 << 32) + 9));
        let row = snapshot
            .reasons
            .iter()
            .find(|row| row.number == 48)
            .unwrap();
        assert_eq!((row.exits, row.cycles), ((1 << 32) + 48, (2 << 32) + 48));
        assert_eq!((snapshot.vcpus, snapshot.tsc_khz), (2, 2_600_000));
        let off = snapshot
            .reasons
            .iter()
            .find(|row| row.number == 11)
            .unwrap();
        assert_eq!((off.enabled, off.exits, off.cycles), (false, 0, 0));
    }

    #[test]
    fn a_difference_is_what_happened_in_between() {
        let first = GuestSnapshot::read(&host, None).unwrap();
        let later = |leaf: u32, subleaf: u32| {
            let mut registers = host(leaf, subleaf);
            if leaf == LEAF_TOTAL_EXITS || (leaf, subleaf) == (LEAF_REASON_EXITS, 10) {
                registers.eax += 200;
            }
            registers
        };
        let delta = GuestSnapshot::read(&later, None).unwrap().since(&first, 5);
        assert_eq!((delta.exits, delta.cycles), (200, 0));
        assert_eq!(
            (delta.since, delta.duration_us),
            ("earlier snapshot", Some(5))
        );
        let moved: Vec<_> = delta
            .reasons
            .iter()
            .filter(|row| row.exits + row.cycles > 0)
            .map(|row| (row.number, row.exits))
            .collect();
        assert_eq!(moved, [(10, 200)]);
        // Two leaves a reason, the totals, and the one that says what this is.
        assert_eq!(delta.own_exits as usize, 2 * delta.reasons.len() + 3);
    }

    #[test]
    fn without_a_signature_there_is_nothing_to_read() {
        let stock = |_: u32, _: u32| Registers {
            eax: 7,
            ebx: 0xabcd,
            ecx: 1,
            edx: 2,
        };
        assert_eq!(GuestSnapshot::read(&stock, None), Err(GuestError::NoLeaves));
    }

    #[test]
    fn a_later_version_is_not_guessed_at() {
        let later = |leaf: u32, subleaf: u32| Registers {
            eax: 2,
            ..host(leaf, subleaf)
        };
        assert_eq!(
            GuestSnapshot::read(&later, None),
            Err(GuestError::UnknownVersion(2))
        );
    }

    #[test]
    fn an_undefined_reason_is_refused_by_name() {
        let reason = ExitReason(35);
        assert_eq!(
            GuestSnapshot::read(&host, Some(reason)),
            Err(GuestError::Undefined(reason))
        );
    }
}
