//! On a KVM that does not count by reason, everything else still works, and
//! every view says why its figures are missing.

use anyhow::{Result, ensure};
use lab::guest::{self, CpuidQuery, Instruction, Program};

use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "stock_kvm",
    applies: |site| !site.is_patched(),
    trials: trials![
        linux_boots_and_its_reader_says_that_kvm_does_not_count,
        rest_gives_kvms_total_and_says_why_there_is_no_more,
        vmm_still_lists_exits_to_user_space,
        ch_remote_says_that_kvm_is_not_patched,
        leaves_are_kvms_own,
    ],
};

fn linux_boots_and_its_reader_says_that_kvm_does_not_count(site: &Site) -> Result<()> {
    let script = "exit-stats; echo \"@status $?\"";
    let mut machine = site.boot_linux(script, 1)?;
    let line = machine.wait_for("@status", site.linux_deadline())?;
    ensure!(line == "@status 1", "The reader ended with {line:?}");
    let shown = machine.serial().text();
    ensure!(
        shown.contains("exit-stats: "),
        "The reader says nothing:\n{shown}"
    );
    let finished = machine.wait_for_end()?;
    ensure!(
        finished.status.success(),
        "{}: {}",
        finished.status,
        finished.stderr
    );
    Ok(())
}

fn rest_gives_kvms_total_and_says_why_there_is_no_more(site: &Site) -> Result<()> {
    let machine = site.boot_tiny(&Program::new().repeat(Instruction::Cpuid, 99).halt())?;
    machine.wait_until_silent(site.tiny_deadline())?;
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    let body = machine.must("GET", "/exit-stats", None)?.json()?;
    ensure!(body["source"] == "kvm", "source {}", body["source"]);
    ensure!(body["reasons"].is_null(), "reasons {}", body["reasons"]);
    ensure!(
        body["unavailable"]
            .as_str()
            .is_some_and(|why| !why.is_empty()),
        "It does not say why: {body}"
    );
    let (total, own) = (body["totals"]["exits"].as_u64(), machine.debugfs_exits()?);
    ensure!(
        total == Some(own) && own > 99,
        "Total {total:?}, KVM's own {own}"
    );
    Ok(())
}

fn vmm_still_lists_exits_to_user_space(site: &Site) -> Result<()> {
    let mut machine = site.boot_tiny(&Program::new().repeat(Instruction::Out(0x3f8), 11).halt())?;
    machine.wait_for_bytes(11, site.tiny_deadline())?;
    machine.wait_until_silent(site.tiny_deadline())?;
    let body = machine.must("GET", "/exit-stats", None)?.json()?;
    let kinds = body["vmm"]["exits"].as_array().cloned().unwrap_or_default();
    let out = kinds.iter().find(|row| row["kind"] == "io_out");
    ensure!(
        out.is_some_and(|row| row["exits"] == 11),
        "Eleven bytes: {kinds:?}"
    );
    Ok(())
}

fn ch_remote_says_that_kvm_is_not_patched(site: &Site) -> Result<()> {
    let machine = site.boot_tiny(&Program::new().repeat(Instruction::Cpuid, 99).halt())?;
    machine.wait_until_silent(site.tiny_deadline())?;
    let shown = machine.ch_remote_text(&["exit-stats"])?;
    ensure!(
        shown.contains("not patched") || shown.contains("does not count"),
        "It does not say why:\n{shown}"
    );
    Ok(())
}

fn leaves_are_kvms_own(site: &Site) -> Result<()> {
    let readings = site.ask(&[
        CpuidQuery {
            leaf: 0x4fff_fffb,
            subleaf: 0,
        },
        CpuidQuery {
            leaf: 0x4fff_fffd,
            subleaf: 35,
        },
    ])?;
    let undefined = guest::CpuidReading {
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: u32::MAX,
    };
    ensure!(
        readings[1] != undefined,
        "A stock KVM judged a reason: {:x?}",
        readings[1]
    );
    Ok(())
}
