//! Guests written in assembly, `tests/guests`: more than a few bytes, still
//! nothing but what their text says.

use anyhow::{Context, Result, ensure};
use instrumentation::table::{ExitReason, ExitTable, Isa, ReasonStatus};

use super::elf::pvh_image;
use super::tiny::{CpuidQuery, CpuidReading, readings};

const MANY_EXITS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/many_exits.bin"));
const HOSTILE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hostile.bin"));
const EMULATED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/emulated.bin"));

const RESETS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/resets.bin"));
/// Does what a list says.
pub(super) const STEPS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/steps.bin"));
const NESTED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nested.bin"));

/// What the words to fill in follow.
const PARAMS: &[u8; 8] = b"@params\0";
/// Questions that the emulated guest has room for.
const MAX_QUESTIONS: usize = 8;
/// Numbers that the hostile guest judges by the table; above, none is defined.
const JUDGED: u32 = 0x408;

/// How often every vCPU does what, in each round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ManyExits {
    /// vCPUs; the VMM must be given as many.
    pub vcpus: u32,
    /// Rounds.
    pub rounds: u32,
    /// CPUID of leaf 0.
    pub cpuid: u32,
    /// IN and OUT of a byte, each.
    pub ports: u32,
    /// OUTS of four bytes.
    pub strings: u32,
    /// Reads of a device's memory.
    pub mmio: u32,
    /// Reads of the local APIC as memory, by the first vCPU, before the rounds.
    pub apic: u32,
    /// RDMSR and WRMSR, each.
    pub msrs: u32,
    /// Deadlines of the local APIC's timer.
    pub deadlines: u32,
    /// Pairs of writes to CR0.
    pub cr: u32,
    /// Writes to DR7, each followed by a CPUID.
    pub dr: u32,
    /// XSETBV.
    pub xsetbv: u32,
    /// WBINVD and INVD, each.
    pub caches: u32,
    /// VMCALL or VMMCALL.
    pub hypercalls: u32,
    /// Undefined instructions.
    pub undefined: u32,
    /// Single steps.
    pub steps: u32,
    /// RDPMC of a counter that is not there.
    pub rdpmc: u32,
    /// Halts that the timer ends.
    pub halts: u32,
    /// IPIs to the next vCPU.
    pub ipis: u32,
    /// NMIs to itself.
    pub nmis: u32,
    /// Pages touched for the first time, before the rounds.
    pub pages: u32,
    /// Ticks of the timer, about nanoseconds, from setting it to its interrupt.
    pub timer: u32,
}

impl ManyExits {
    /// Some of everything.
    pub fn some(vcpus: u32, rounds: u32) -> Self {
        ManyExits {
            vcpus,
            rounds,
            cpuid: 41,
            ports: 13,
            strings: 3,
            mmio: 17,
            apic: 5,
            msrs: 19,
            deadlines: 3,
            cr: 7,
            dr: 11,
            xsetbv: 9,
            caches: 8,
            hypercalls: 15,
            undefined: 6,
            steps: 12,
            rdpmc: 14,
            halts: 4,
            ipis: 5,
            nmis: 2,
            pages: 64,
            timer: 20_000,
        }
    }

    /// Nothing beyond what it takes to start and to end.
    pub fn nothing(vcpus: u32, rounds: u32) -> Self {
        ManyExits {
            vcpus,
            rounds,
            timer: 20_000,
            ..ManyExits::default()
        }
    }

    /// The numbers that it reads at the end, in that order.
    pub fn asked(isa: Isa) -> Vec<u32> {
        let (low, high) = extent(isa);
        (0..low).chain(0x400..0x400 + high).collect()
    }

    /// CPUIDs of all vCPUs, without those that read at the end.
    pub fn cpuids(&self) -> u64 {
        // One of each round asks whether the timer has deadlines.
        self.all(self.cpuid + self.dr + 1)
    }

    /// So many a round of each vCPU, in all.
    pub fn all(&self, a_round: u32) -> u64 {
        u64::from(self.vcpus) * u64::from(self.rounds) * u64::from(a_round)
    }

    /// The guest's ELF file.
    pub fn image(&self, isa: Isa) -> Result<Vec<u8>> {
        let (low, high) = extent(isa);
        let words = [
            self.vcpus,
            self.rounds,
            u32::from(isa == Isa::Svm),
            low,
            high,
            self.cpuid,
            self.ports,
            self.ports,
            self.strings,
            self.mmio,
            self.apic,
            self.msrs,
            self.msrs,
            self.deadlines,
            self.cr,
            self.dr,
            self.xsetbv,
            self.caches,
            self.caches,
            self.hypercalls,
            self.undefined,
            self.steps,
            self.rdpmc,
            self.halts,
            self.ipis,
            self.nmis,
            self.pages,
            self.timer,
        ];
        filled_in(MANY_EXITS, &words, &[])
    }
}

/// Reasons below, and from 0x400 on.
fn extent(isa: Isa) -> (u32, u32) {
    match isa {
        Isa::Vmx => (86, 0),
        Isa::Svm => (0xa7, 4),
    }
}

/// A guest that asks all leaves `queries` times in all, with all subleaves
/// below `dense`, powers of two, and random numbers, and judges the answers.
/// It reports two readings: queries, failures and the leaf and subleaf of the
/// first failure; and the answer to that.
pub fn hostile(table: &ExitTable, queries: u32, dense: u32) -> Result<Vec<u8>> {
    let signature = match table.isa {
        Isa::Vmx => *b"VMX\0",
        Isa::Svm => *b"SVM\0",
    };
    let status: Vec<u8> = (0..JUDGED)
        .map(|number| match table.status(ExitReason(number)) {
            ReasonStatus::Undefined => 0,
            ReasonStatus::NotEnabled => 1,
            ReasonStatus::Enabled => 2,
        })
        .collect();
    let words = [queries, dense, u32::from_le_bytes(signature)];
    filled_in(HOSTILE, &words, &status)
}

/// A guest that leaves protected mode in such a way that KVM emulates it on a
/// VMX host without unrestricted guest. So it executes CPUID and IN of a byte
/// `times` times each and the questions, then the questions again as other
/// guests do. It reports the answers, both times.
pub fn emulated(times: u32, questions: &[CpuidQuery]) -> Result<Vec<u8>> {
    ensure!(
        (1..=MAX_QUESTIONS).contains(&questions.len()),
        "{} questions, and there is room for {MAX_QUESTIONS}",
        questions.len()
    );
    let mut words = vec![times, u32::try_from(questions.len())?];
    words.extend(questions.iter().flat_map(|ask| [ask.leaf, ask.subleaf]));
    filled_in(EMULATED, &words, &[])
}

/// A hypervisor with a guest of its own, on SVM: how often the inner guest does
/// what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nested {
    /// CPUID that the hypervisor intercepts.
    pub cpuid_intercepted: u32,
    /// CPUID that it does not intercept.
    pub cpuid_passed: u32,
    /// RDTSC, which it intercepts.
    pub rdtsc: u32,
    /// OUT, which it does not intercept.
    pub out: u32,
    /// What every CPUID asks.
    pub asked: CpuidQuery,
}

/// What the hypervisor reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedReport {
    /// VMRUN that it executed.
    pub vmruns: u32,
    /// Exits of its guest that it got: CPUID, RDTSC, HLT, VMMCALL, others.
    pub seen: [u32; 5],
    /// The answer to its guest's last CPUID that it intercepted.
    pub by_hypervisor: CpuidReading,
    /// The answer to its guest's last CPUID that it did not.
    pub by_host: CpuidReading,
    /// The answer to its own, at the end.
    pub own: CpuidReading,
}

impl Nested {
    /// What the hypervisor writes in all four registers when it answers.
    pub const ANSWER: u32 = 0x600d_cafe;

    /// Readings in its report.
    pub const READINGS: usize = 5;

    /// The guest's ELF file.
    pub fn image(&self) -> Result<Vec<u8>> {
        let words = [
            self.cpuid_intercepted,
            self.cpuid_passed,
            self.rdtsc,
            self.out,
            self.asked.leaf,
            self.asked.subleaf,
        ];
        filled_in(NESTED, &words, &[])
    }

    /// Reads the report.
    pub fn report(serial: &[u8]) -> Result<NestedReport> {
        let [first, second, by_hypervisor, by_host, own] = readings(serial, Self::READINGS)?[..]
        else {
            unreachable!("as many readings as were asked for");
        };
        Ok(NestedReport {
            vmruns: first.eax,
            seen: [first.ebx, first.ecx, first.edx, second.eax, second.ebx],
            by_hypervisor,
            by_host,
            own,
        })
    }
}

/// A way in which software resets a PC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetWay {
    /// The reset register that the FADT names.
    Acpi,
    /// Command 0xFE of the i8042 keyboard controller.
    I8042,
    /// Port 0xCF9, in two steps.
    Cf9Hard,
    /// Port 0xCF9, in one.
    Cf9Full,
    /// System control port A.
    Port92,
    /// An exception while there is no way to report one.
    TripleFault,
    /// A jump to FFFF:0000 in real mode.
    BiosJump,
    /// A jump to F000:FFF0 in real mode.
    BiosEntry,
    /// A jump to 0xFFFFFFF0 in protected mode.
    FlatJump,
    /// An INIT that the boot processor sends to itself, in xAPIC mode, before it
    /// has enabled its local APIC.
    Init,
    /// The same in x2APIC mode.
    InitX2apic,
}

impl ResetWay {
    /// All of them, in the order of their numbers in the guest.
    pub const ALL: [ResetWay; 11] = [
        ResetWay::Acpi,
        ResetWay::I8042,
        ResetWay::Cf9Hard,
        ResetWay::Cf9Full,
        ResetWay::Port92,
        ResetWay::TripleFault,
        ResetWay::BiosJump,
        ResetWay::BiosEntry,
        ResetWay::FlatJump,
        ResetWay::Init,
        ResetWay::InitX2apic,
    ];

    /// A guest that writes `R` to the serial port and resets the machine so.
    pub fn image(self) -> Result<Vec<u8>> {
        filled_in(RESETS, &[self as u32], &[])
    }
}

pub(super) fn filled_in(code: &[u8], words: &[u32], bytes: &[u8]) -> Result<Vec<u8>> {
    let mut code = code.to_owned();
    let at = code
        .windows(PARAMS.len())
        .position(|window| window == PARAMS)
        .context("The guest has no place for parameters")?
        + PARAMS.len();
    let filling: Vec<u8> = words
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .chain(bytes.iter().copied())
        .collect();
    code.get_mut(at..at + filling.len())
        .context("The guest is shorter than its parameters")?
        .copy_from_slice(&filling);
    Ok(pvh_image(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_land_behind_the_mark() {
        let image = ManyExits::some(8, 3).image(Isa::Svm).unwrap();
        let at = image
            .windows(PARAMS.len())
            .position(|window| window == PARAMS)
            .unwrap()
            + PARAMS.len();
        let word = |index: usize| {
            u32::from_le_bytes(
                image[at + 4 * index..at + 4 * index + 4]
                    .try_into()
                    .unwrap(),
            )
        };
        assert_eq!((word(0), word(1), word(2), word(5)), (8, 3, 1, 41));
        assert_eq!(word(26), 64);
    }
}
