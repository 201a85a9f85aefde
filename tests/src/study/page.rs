//! The study's page, in Markdown.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Boot, Case};
use crate::host::Isa;

/// Reasons that are worth naming of two boots.
const DIFFERENCES: usize = 5;

/// All boots of the study.
pub type Boots = BTreeMap<(&'static str, Case), Boot>;

/// Writes the page. `host` says what the boots ran on.
pub fn render(host: &str, boots: &Boots) -> String {
    let mut page = format!(
        "# How many exits does a boot take, and which?\n\n\
         <!-- Written by `cargo lab study` from recorded boots; do not edit. -->\n\n\
         Debian's cloud kernel boots in our VMM, and once in the distribution's QEMU, with 256 MiB, a\n\
         busybox initramfs and the command line `{}`,\n\
         from the first instruction to the first program and one second beyond.\n\
         {host} The clocks are the emulators': times are comparable within a column, counts with\n\
         real machines. `cargo lab study` runs all of it again.\n",
        super::CMDLINE
    );
    overview(&mut page, boots);
    for isa in [Isa::Vmx, Isa::Svm] {
        if let Some(boot) = boots.get(&(isa.as_str(), Case::OneVcpu)) {
            one_boot(&mut page, isa, boot);
        }
    }
    comparison(&mut page, boots);
    let svm = |case| boots.get(&(Isa::Svm.as_str(), case));
    if let (Some(ours), Some(other)) = (svm(Case::OneVcpu), svm(Case::Qemu)) {
        qemu(&mut page, ours, other);
    }
    page
}

// Writing to a String cannot fail, here and below.
fn line(page: &mut String, text: &str) {
    page.push_str(text);
    page.push('\n');
}

fn overview(page: &mut String, boots: &Boots) {
    line(page, "\n## In short\n");
    line(
        page,
        "| boot | exits | seconds | exits/s, mean | exits/s, highest | in the busiest tenth of the time |",
    );
    line(page, "| --- | --: | --: | --: | --: | --: |");
    for ((isa, case), boot) in boots {
        let (mean, highest) = boot.rates();
        let _ = writeln!(
            page,
            "| {} {} | {} | {:.2} | {mean:.0} | {highest:.0} | {:.0} % of the exits |",
            isa.to_uppercase(),
            case.name(),
            boot.exits,
            boot.seconds(),
            boot.share_of_busiest_tenth() * 100.0
        );
    }
    let tenths: Vec<f64> = boots.values().map(Boot::share_of_busiest_tenth).collect();
    let lowest = tenths.iter().copied().fold(1.0, f64::min) * 100.0;
    let _ = writeln!(
        page,
        "\nExits come in bursts: the busiest tenth of the time holds at least {lowest:.0} % of them, where an \
         even rate would put 10 %."
    );
}

fn one_boot(page: &mut String, isa: Isa, boot: &Boot) {
    let name = isa.as_str();
    let upper = name.to_uppercase();
    let _ = writeln!(page, "\n## {upper}, one vCPU\n");
    let _ = writeln!(
        page,
        "![Exits per second by reason](boot-exit-study/{name}-1-vcpu.svg)\n"
    );
    if let (Some(first), Some(last)) = (boot.reasons.first(), boot.reasons.last()) {
        let _ = writeln!(
            page,
            "{} exits. The most frequent reason is {} ({}, {:.0} %), the least frequent of those that \
             occur {} ({}).\n",
            boot.exits,
            first.symbol,
            first.exits,
            first.exits as f64 * 100.0 / boot.exits as f64,
            last.symbol,
            last.exits
        );
    }
    line(page, "| # | reason | exits | share | average ticks | why |");
    line(page, "| --: | --- | --: | --: | --: | --- |");
    for reason in &boot.reasons {
        let _ = writeln!(
            page,
            "| {} | {} | {} | {:.1} % | {} | {} |",
            reason.label,
            reason.symbol,
            reason.exits,
            reason.exits as f64 * 100.0 / boot.exits as f64,
            reason.cycles.checked_div(reason.exits).unwrap_or(0),
            why(&reason.symbol)
        );
    }
    let sum: u64 = boot.split.iter().sum();
    let share = |index: usize| boot.split[index] as f64 * 100.0 / sum.max(1) as f64;
    let _ = writeln!(
        page,
        "\nThe vCPU's time: {:.1} % in the guest, {:.1} % in KVM, {:.1} % in user space, {:.1} % asleep, {:.1} % preempted.",
        share(0),
        share(1),
        share(3),
        share(2),
        share(4)
    );
    if !boot.devices.is_empty() {
        let devices: Vec<String> = boot
            .devices
            .iter()
            .map(|(id, exits)| format!("{id} {exits}"))
            .collect();
        let _ = writeln!(
            page,
            "Accesses that reached user space, by device: {}.",
            devices.join(", ")
        );
    }
}

fn comparison(page: &mut String, boots: &Boots) {
    line(page, "\n## Side by side\n");
    for isa in [Isa::Vmx, Isa::Svm] {
        let columns: Vec<_> = boots
            .iter()
            .filter(|((name, _), _)| *name == isa.as_str())
            .map(|((_, case), boot)| (case.name(), boot))
            .collect();
        let Some((_, first)) = columns.first() else {
            continue;
        };
        let mut symbols: Vec<&str> = first
            .reasons
            .iter()
            .map(|row| row.symbol.as_str())
            .collect();
        for (_, boot) in &columns {
            for reason in &boot.reasons {
                if !symbols.contains(&reason.symbol.as_str()) {
                    symbols.push(&reason.symbol);
                }
            }
        }
        let names: Vec<&str> = columns.iter().map(|column| column.0).collect();
        let _ = writeln!(
            page,
            "| {} | {} |\n| --- |{}",
            isa.as_str().to_uppercase(),
            names.join(" | "),
            " --: |".repeat(columns.len())
        );
        for symbol in symbols {
            let _ = write!(page, "| {symbol} |");
            for (_, boot) in &columns {
                let _ = write!(page, " {} |", boot.exits_of(symbol));
            }
            page.push('\n');
        }
        let _ = write!(page, "| all |");
        for (_, boot) in &columns {
            let _ = write!(page, " {} |", boot.exits);
        }
        page.push_str("\n\n");
    }
    line(
        page,
        "With several vCPUs each of them is started, identified and given its timers, so what one vCPU \
         does at its start comes once for each. With shadow paging KVM keeps page tables of its own in \
         step with the guest's: every page fault, every CR3 load and every TLB flush of the guest then \
         exits, which nested paging spares it.",
    );
}

/// What another VMM has the same guest do.
fn qemu(page: &mut String, ours: &Boot, qemu: &Boot) {
    let _ = writeln!(
        page,
        "\n## The same guest in QEMU\n\n\
         1-vcpu-qemu is QEMU's machine `microvm`, firmware included, with the host's CPU model: {} exits, \
         {:.2} times those of 1-vcpu. Its counters are read from debugfs, QEMU knows nothing of them. \
         Where the two differ most:\n\n\
         | reason | 1-vcpu | 1-vcpu-qemu |\n| --- | --: | --: |",
        qemu.exits,
        qemu.exits as f64 / ours.exits as f64
    );
    let mut symbols: Vec<&str> = ours
        .reasons
        .iter()
        .chain(&qemu.reasons)
        .map(|reason| reason.symbol.as_str())
        .collect();
    symbols.sort_unstable();
    symbols.dedup();
    symbols.sort_by_key(|symbol| {
        std::cmp::Reverse(ours.exits_of(symbol).abs_diff(qemu.exits_of(symbol)))
    });
    for symbol in symbols.into_iter().take(DIFFERENCES) {
        let _ = writeln!(
            page,
            "| {symbol} | {} | {} |",
            ours.exits_of(symbol),
            qemu.exits_of(symbol)
        );
    }
}

/// Why Linux causes this exit as it boots.
fn why(symbol: &str) -> &'static str {
    match symbol {
        "CPUID" => "the kernel asks for every feature, most of it several times",
        "IO_INSTRUCTION" | "IOIO" => {
            "ports: the serial console's characters, probing for old devices"
        }
        "EXTERNAL_INTERRUPT" | "INTR" => "the host's own interrupts, its timer first of all",
        "MSR_WRITE" | "MSR" => "x2APIC registers and the deadline of the next timer tick",
        "MSR_READ" => "features and machine state that are read once",
        "EPT_VIOLATION" | "NPF" => {
            "first touch of a piece of memory, and devices mapped into memory"
        }
        "EPT_MISCONFIG" => "a device mapped into memory, recognised by a mark in the page table",
        "CR_ACCESS" | "WRITE_CR0" | "WRITE_CR3" | "WRITE_CR4" | "READ_CR0" | "READ_CR3"
        | "READ_CR4" | "WRITE_CR8" | "READ_CR8" | "CR0_SEL_WRITE" => {
            "mode changes of the processor's start, features switched on"
        }
        "INTERRUPT_WINDOW" | "VINTR" => "an interrupt waited until the guest could take it",
        "HLT" => "nothing to do",
        "XSETBV" => "vector state is switched on",
        "DR_ACCESS" | "READ_DR0" | "WRITE_DR0" | "READ_DR7" | "WRITE_DR7" => {
            "debug registers are cleared once"
        }
        "EXCEPTION_NMI" | "EXCP_UD" | "EXCP_PF" => {
            "an exception that KVM has to see: with shadow paging every page fault"
        }
        "WBINVD" => "caches are written back as memory types are set",
        "INVLPG" => "a TLB entry is dropped, which concerns KVM with shadow paging only",
        "PREEMPTION_TIMER" => "the guest's timer, kept by the processor on behalf of KVM",
        "APIC_WRITE" | "EOI_INDUCED" | "TPR_BELOW_THRESHOLD" | "APIC_ACCESS" => {
            "the local interrupt controller"
        }
        "PAUSE_INSTRUCTION" | "PAUSE" => "a vCPU spins for a lock that another one holds",
        "VMCALL" | "VMMCALL" => "the guest calls KVM, to wake another vCPU for instance",
        "TASK_SWITCH" | "TRIPLE_FAULT" | "SHUTDOWN" => "the machine resets",
        "OTHER" => "the entry failed, or KVM emulated code that the processor cannot run",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::Reason;

    #[test]
    fn page_holds_the_recorded_figures() {
        let sample = |ms: u64, exits: u64| {
            format!(
                r#"{{"ms":{ms},"delta":{{"isa":"vmx","totals":{{"exits":{exits},"cycles":1,"blocked_cycles":1,
                "userspace_cycles":1,"preempted_cycles":1,"guest_cycles":1}},"reasons":[{{"number":10,"symbol":"CPUID",
                "name":"CPUID","exits":{exits},"cycles":4}}]}}}}"#
            )
        };
        let boot = Boot::read(&["{}".into(), sample(0, 1200), sample(20, 34)]).unwrap();
        assert_eq!(
            boot.reasons,
            [Reason {
                label: "10".into(),
                symbol: "CPUID".into(),
                name: "CPUID".into(),
                exits: 1234,
                cycles: 8
            }]
        );
        let boots = Boots::from([
            (("vmx", Case::OneVcpu), boot.clone()),
            (("svm", Case::OneVcpu), boot.clone()),
            (("svm", Case::Qemu), boot),
        ]);
        let page = render("A host.", &boots);
        assert!(page.contains("| 10 | CPUID | 1234 | 100.0 % |"), "{page}");
        assert!(page.contains("A host."));
        assert!(page.contains("1234 exits, 1.00 times"), "{page}");
        assert!(page.contains("| CPUID | 1234 | 1234 |\n"), "{page}");
    }
}
