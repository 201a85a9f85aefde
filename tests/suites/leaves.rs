//! The guest's CPUID leaves, register by register.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use instrumentation::table::{ExitReason, Isa, ReasonStatus};
use lab::guest::{CpuidQuery, CpuidReading, Instruction, Program, hostile, readings};
use lab::oracle;

use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "leaves",
    applies: Site::is_patched,
    trials: trials![
        undefined_reason_sets_edx_to_all_ones_and_clears_the_rest,
        reason_without_handler_reads_zero_in_all_registers,
        count_fills_eax_and_ebx_and_clears_the_rest,
        cycles_fill_ecx_and_ebx_and_clear_the_rest,
        totals_have_the_same_form_as_their_parts,
        asking_counts_itself_once_and_at_once,
        identity_names_version_isa_vcpus_and_clock,
        every_small_number_is_judged_as_the_table_says,
        hostile_subleaves_get_one_of_three_answers,
        mass_of_hostile_questions_gets_nothing_but_the_three_answers,
        neighbouring_leaves_are_left_to_kvm,
        debians_cpuid_reads_what_our_reader_reads,
        leaves_switched_off_for_a_machine_are_kvms_own,
    ],
};

/// What takes many vCPUs.
pub const MANY_VCPUS: Suite = Suite {
    name: "leaves",
    applies: |site| site.is_patched() && site.boots_quickly(),
    trials: trials![an_answer_about_many_vcpus_takes_little_longer_than_about_one],
};

/// With another guest on the CPU, whose questions are answered meanwhile.
fn an_answer_about_many_vcpus_takes_little_longer_than_about_one(site: &Site) -> Result<()> {
    let busy = site.boot_tiny(&Program::new().ask_for_ever())?;
    for leaf in [TOTAL_EXITS, TOTAL_CYCLES, EXITS, CYCLES] {
        let one = ticks(site, leaf, 1)?;
        for (vcpus, times) in [(64, 4), (255, 8)] {
            let before = busy.stats()?.totals.exits;
            let many = ticks(site, leaf, vcpus)?;
            let after = busy.stats()?.totals.exits;
            ensure!(
                many < times * one,
                "Leaf {leaf:#x} takes {one} ticks for one vCPU, {many} for {vcpus}"
            );
            ensure!(after > before + 1000, "The other guest had to wait");
        }
    }
    Ok(())
}

/// The fewest ticks that an answer took.
fn ticks(site: &Site, leaf: u32, vcpus: u32) -> Result<u32> {
    const ROUNDS: u32 = 64;
    let count = ROUNDS as usize / 4;
    let guest = Program::new()
        .time(Instruction::Leaf(leaf), 1, ROUNDS)
        .report(count)
        .halt();
    let mut machine = site.boot_tiny_on(&guest, vcpus)?;
    let serial = machine.wait_for_bytes(Program::report_writes(count), site.tiny_deadline())?;
    readings(&serial, count)?
        .into_iter()
        .flat_map(|reading| [reading.eax, reading.ebx, reading.ecx, reading.edx])
        .min()
        .context("There are no rounds")
}

/// What a guest reads whose machine has these features of the accounting.
fn ask_with(
    site: &Site,
    features: &serde_json::Value,
    queries: &[CpuidQuery],
) -> Result<Vec<CpuidReading>> {
    let dir = site.fresh_dir()?;
    let kernel = dir.join("guest.elf");
    std::fs::write(&kernel, lab::guest::cpuid_reader(queries))?;
    let mut machine = lab::vmm::Machine::idle(&site.bin(), &dir)?;
    let config = serde_json::json!({
        "memory": {"size": 64 << 20},
        "payload": {"kernel": kernel},
        "serial": {"mode": "File", "file": dir.join("serial.log")},
        "console": {"mode": "Off"},
        "exit_stats": features,
    });
    machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    machine.must("PUT", "/api/v1/vm.boot", None)?;
    let bytes = lab::guest::Program::report_writes(queries.len());
    let serial = machine.wait_for_bytes(bytes, site.tiny_deadline())?;
    let exits = machine.stats()?.totals.exits;
    ensure!(exits > 0, "The operator sees nothing either");
    lab::guest::readings(&serial, queries.len())
}

fn leaves_switched_off_for_a_machine_are_kvms_own(site: &Site) -> Result<()> {
    // The second is nobody's leaf, so KVM answers it by itself.
    let queries = [IDENTITY, 0x4fff_fff0].map(|leaf| CpuidQuery { leaf, subleaf: 0 });
    let off = serde_json::json!({"guest_leaves": false});
    let readings = ask_with(site, &off, &queries)?;
    ensure!(readings[0] == readings[1], "Switched off: {readings:?}");
    let on = serde_json::json!({"guest_leaves": true, "latency": true});
    let readings = ask_with(site, &on, &queries)?;
    ensure!(readings[0] != readings[1], "Switched on: {readings:?}");
    Ok(())
}

const EXITS: u32 = 0x4fff_fffd;
const CYCLES: u32 = 0x4fff_fffc;
const TOTAL_EXITS: u32 = 0x4fff_ffff;
const TOTAL_CYCLES: u32 = 0x4fff_fffe;
const IDENTITY: u32 = 0x4fff_fffb;

const UNDEFINED: CpuidReading = CpuidReading {
    eax: 0,
    ebx: 0,
    ecx: 0,
    edx: u32::MAX,
};
const ZERO: CpuidReading = CpuidReading {
    eax: 0,
    ebx: 0,
    ecx: 0,
    edx: 0,
};

fn count(subleaf: u32) -> CpuidQuery {
    CpuidQuery {
        leaf: EXITS,
        subleaf,
    }
}

fn cycles(subleaf: u32) -> CpuidQuery {
    CpuidQuery {
        leaf: CYCLES,
        subleaf,
    }
}

/// Both leaves of each reason.
fn both(reasons: &[u32]) -> Vec<CpuidQuery> {
    reasons
        .iter()
        .flat_map(|&reason| [count(reason), cycles(reason)])
        .collect()
}

fn ensure_all(site: &Site, reasons: &[u32], expected: CpuidReading) -> Result<()> {
    let queries = both(reasons);
    for (query, reading) in queries.iter().zip(site.ask(&queries)?) {
        ensure!(
            reading == expected,
            "{query:x?} gave {reading:x?}, not {expected:x?}"
        );
    }
    Ok(())
}

/// Numbers that the manual does not define, some of them a truncation away
/// from one that it does.
fn undefined(isa: Isa) -> &'static [u32] {
    match isa {
        Isa::Vmx => &[35, 38, 42, 71, 82, 83, 86, 0x1000a, 0xffff_ffff],
        Isa::Svm => &[
            0xa7,
            0xff,
            0x3ff,
            0x404,
            0x500,
            0x1_0072,
            0x8000_0072,
            0x7fff_ffff,
        ],
    }
}

/// Numbers that the manual defines and KVM has no handler for.
fn without_handler(isa: Isa) -> &'static [u32] {
    match isa {
        Isa::Vmx => &[3, 11, 65],
        Isa::Svm => &[0x01, 0x63, 0x70, 0xa0],
    }
}

fn undefined_reason_sets_edx_to_all_ones_and_clears_the_rest(site: &Site) -> Result<()> {
    ensure_all(site, undefined(site.isa()), UNDEFINED)
}

fn reason_without_handler_reads_zero_in_all_registers(site: &Site) -> Result<()> {
    ensure_all(site, without_handler(site.isa()), ZERO)
}

fn count_fills_eax_and_ebx_and_clears_the_rest(site: &Site) -> Result<()> {
    let reading = site.ask(&[count(site.numbers().cpuid)])?[0];
    // The guest's first exit of this reason is the question itself.
    let expected = CpuidReading { eax: 1, ..ZERO };
    ensure!(reading == expected, "The first CPUID read {reading:x?}");
    Ok(())
}

fn cycles_fill_ecx_and_ebx_and_clear_the_rest(site: &Site) -> Result<()> {
    let cpuid = site.numbers().cpuid;
    let readings = site.ask(&[cycles(cpuid), cycles(cpuid)])?;
    ensure!(
        readings[0] == ZERO,
        "An exit that is not over has no cycles: {:x?}",
        readings[0]
    );
    let second = readings[1];
    ensure!(
        second.ecx > 0
            && second
                == CpuidReading {
                    ecx: second.ecx,
                    ..ZERO
                },
        "After one finished exit: {second:x?}"
    );
    Ok(())
}

fn totals_have_the_same_form_as_their_parts(site: &Site) -> Result<()> {
    let query = |leaf| CpuidQuery {
        leaf,
        subleaf: 0x5555_5555,
    };
    let readings = site.ask(&[query(TOTAL_EXITS), query(TOTAL_CYCLES), query(TOTAL_EXITS)])?;
    let [first, cycles, second] = readings[..] else {
        anyhow::bail!("Three questions, {} answers", readings.len());
    };
    ensure!(
        first
            == CpuidReading {
                eax: first.eax,
                ..ZERO
            }
            && first.eax > 0,
        "{first:x?}"
    );
    ensure!(
        cycles
            == CpuidReading {
                ecx: cycles.ecx,
                ..ZERO
            }
            && cycles.ecx > 0,
        "{cycles:x?}"
    );
    ensure!(
        second.eax >= first.eax + 2,
        "{first:x?}, two exits later {second:x?}"
    );
    Ok(())
}

fn asking_counts_itself_once_and_at_once(site: &Site) -> Result<()> {
    let queries = [count(site.numbers().cpuid); 64];
    for (expected, reading) in (1..).zip(site.ask(&queries)?) {
        ensure!(
            reading
                == CpuidReading {
                    eax: expected,
                    ..ZERO
                },
            "Not {expected}: {reading:x?}"
        );
    }
    Ok(())
}

fn identity_names_version_isa_vcpus_and_clock(site: &Site) -> Result<()> {
    let reading = site.ask(&[CpuidQuery {
        leaf: IDENTITY,
        subleaf: 7,
    }])?[0];
    let signature = match site.isa() {
        Isa::Vmx => *b"VMX\0",
        Isa::Svm => *b"SVM\0",
    };
    ensure!(reading.eax == 1, "Version {}", reading.eax);
    ensure!(
        reading.ebx.to_le_bytes() == signature,
        "ISA {:x?}",
        reading.ebx.to_le_bytes()
    );
    ensure!(reading.ecx == 1, "{} vCPUs", reading.ecx);
    // What the VMM tells its operator comes by another way.
    let machine = site.boot_tiny(&lab::guest::Program::new().halt())?;
    let body = machine.must("GET", "/exit-stats", None)?.json()?;
    ensure!(
        body["tsc_khz"] == reading.edx,
        "{} kHz, REST says {}",
        reading.edx,
        body["tsc_khz"]
    );
    Ok(())
}

fn every_small_number_is_judged_as_the_table_says(site: &Site) -> Result<()> {
    let numbers: Vec<u32> = match site.isa() {
        Isa::Vmx => (0..128).collect(),
        Isa::Svm => (0..0xc0).chain(0x3f8..0x408).collect(),
    };
    let queries: Vec<_> = numbers.iter().map(|&number| count(number)).collect();
    for (number, reading) in numbers.into_iter().zip(site.ask(&queries)?) {
        let right = match site.table().status(ExitReason(number)) {
            ReasonStatus::Undefined => reading == UNDEFINED,
            ReasonStatus::NotEnabled => reading == ZERO,
            ReasonStatus::Enabled => {
                reading
                    == CpuidReading {
                        eax: reading.eax,
                        ..ZERO
                    }
            }
        };
        ensure!(right, "{number:#x} gave {reading:x?}");
    }
    Ok(())
}

fn hostile_subleaves_get_one_of_three_answers(site: &Site) -> Result<()> {
    let mut subleaves: Vec<u32> = (0..32).flat_map(|bit| [1 << bit, !(1 << bit)]).collect();
    // A fixed sequence, so that a failure can be repeated.
    let mut state = 0x2545_f491_u32;
    subleaves.extend((0..100).map(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    }));
    let queries: Vec<_> = subleaves.iter().map(|&subleaf| count(subleaf)).collect();
    for (query, reading) in queries.iter().zip(site.ask(&queries)?) {
        let expected = match site.table().status(ExitReason(query.subleaf)) {
            ReasonStatus::Undefined => UNDEFINED,
            ReasonStatus::NotEnabled => ZERO,
            ReasonStatus::Enabled => CpuidReading {
                eax: reading.eax,
                ..ZERO
            },
        };
        ensure!(reading == expected, "{query:x?} gave {reading:x?}");
    }
    Ok(())
}

const HOSTILE_DEADLINE: Duration = Duration::from_secs(300);

/// How many questions are asked, and below which number with every subleaf:
/// two thirds of them. Bochs takes some ten thousand a second.
fn hostile_mass(site: &Site) -> (u32, u32) {
    if site.boots_quickly() {
        (1_000_000, 0x2_0000)
    } else {
        (100_000, 0x3400)
    }
}

fn mass_of_hostile_questions_gets_nothing_but_the_three_answers(site: &Site) -> Result<()> {
    let (questions, dense) = hostile_mass(site);
    let mut machine = site.boot_tiny(&hostile(site.table(), questions, dense)?)?;
    let serial = machine.wait_for_bytes(Program::report_writes(2), HOSTILE_DEADLINE)?;
    let [summary, answer] = readings(&serial, 2)?[..] else {
        anyhow::bail!("The guest's report is short");
    };
    ensure!(
        summary.eax == questions && summary.ebx == 0,
        "{} questions, {} wrong answers; leaf {:#x} with {:#x} gave first {answer:x?}",
        summary.eax,
        summary.ebx,
        summary.ecx,
        summary.edx
    );
    machine.wait_until_silent(site.tiny_deadline())?;
    let stats = machine.stats()?;
    ensure!(
        stats.exits(site.numbers().cpuid) == u64::from(questions),
        "{} counted",
        stats.exits(site.numbers().cpuid)
    );
    let warnings = oracle::warnings()?;
    ensure!(
        site.is_shared() || warnings.is_empty(),
        "The kernel says:\n{}",
        warnings.join("\n")
    );
    Ok(())
}

fn neighbouring_leaves_are_left_to_kvm(site: &Site) -> Result<()> {
    let query = |leaf| CpuidQuery { leaf, subleaf: 35 };
    let readings = site.ask(&[query(0x4fff_fffa), query(0x5000_0000)])?;
    for reading in readings {
        ensure!(
            reading != UNDEFINED,
            "A leaf that is not ours gave {reading:x?}"
        );
    }
    Ok(())
}

fn debians_cpuid_reads_what_our_reader_reads(site: &Site) -> Result<()> {
    let shown = site.linux()?.between("@cpuid begins", "@cpuid ends")?;
    let lines: Vec<&str> = shown.lines().collect();
    ensure!(lines.len() == 3, "Our reader, then cpuid twice:\n{shown}");
    let ours: Vec<u32> = lines[0]
        .split_whitespace()
        .map(|word| u32::from_str_radix(word.trim_start_matches("0x"), 16))
        .collect::<Result<_, _>>()
        .with_context(|| format!("Our reader printed {:?}", lines[0]))?;
    ensure!(ours.len() == 6, "Our reader printed {:?}", lines[0]);
    let theirs = registers(lines[1])?;
    // The two commands ran one after the other, and printing is input and output.
    ensure!(
        theirs[0] > ours[2] && theirs[1..] == [0, 0, 0],
        "exit-stats: {}\ncpuid: {}",
        lines[0],
        lines[1]
    );
    ensure!(
        registers(lines[2])? == [0, 0, 0, u32::MAX],
        "cpuid: {}",
        lines[2]
    );
    Ok(())
}

/// The registers in a line of `cpuid --raw`.
fn registers(line: &str) -> Result<[u32; 4]> {
    let mut values = [0; 4];
    for (value, name) in values
        .iter_mut()
        .zip(["eax=0x", "ebx=0x", "ecx=0x", "edx=0x"])
    {
        let hex = line
            .split_once(name)
            .and_then(|(_, rest)| rest.get(..8))
            .with_context(|| format!("cpuid printed {line:?}"))?;
        *value = u32::from_str_radix(hex, 16)?;
    }
    Ok(values)
}
