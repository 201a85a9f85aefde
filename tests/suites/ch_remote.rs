//! `ch-remote`, the operator's command.

use std::process::Output;

use anyhow::{Result, ensure};
use instrumentation::table::Isa;
use lab::guest::{Instruction, Program};
use lab::vmm::{Machine, Stats};

use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "ch_remote",
    applies: Site::is_patched,
    trials: trials![
        default_is_a_table_of_what_occurred,
        table_of_linux_names_its_most_frequent_exits_first,
        json_is_what_rest_gives,
        reason_is_found_by_number_and_by_name,
        table_of_one_reason_shows_the_devices_behind_it_alone,
        unknown_reason_is_an_error,
        every_format_is_printed,
        lifecycle_commands_answer_as_cloud_hypervisors_do,
        error_of_the_server_is_shown_as_a_chain,
    ],
};

fn halted(site: &Site) -> Result<Machine> {
    let program = Program::new()
        .repeat(Instruction::Cpuid, 1234)
        .repeat(Instruction::Out(0x3f8), 5);
    let mut machine = site.boot_tiny(&program.halt())?;
    machine.wait_for_bytes(5, site.tiny_deadline())?;
    machine.wait_until_silent(site.tiny_deadline())?;
    Ok(machine)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn default_is_a_table_of_what_occurred(site: &Site) -> Result<()> {
    let machine = halted(site)?;
    let table = machine.ch_remote_text(&["exit-stats"])?;
    let cpuid = table.lines().find(|line| line.contains("CPUID"));
    ensure!(
        cpuid.is_some_and(|line| line.contains("1,234")),
        "No row for CPUID:\n{table}"
    );
    ensure!(
        !table.contains("WBINVD"),
        "A row for what never occurred:\n{table}"
    );
    let all = machine.ch_remote_text(&["exit-stats", "--all"])?;
    ensure!(all.contains("WBINVD"), "--all leaves a reason out:\n{all}");
    Ok(())
}

fn table_of_linux_names_its_most_frequent_exits_first(site: &Site) -> Result<()> {
    let run = site.linux()?;
    let rows: Vec<u64> = run
        .table
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let number: u32 = words.next()?.trim_start_matches("0x").parse().ok()?;
            let symbol = words.next()?;
            let row = run.paused[0]
                .reasons
                .values()
                .find(|reason| reason.symbol == symbol)?;
            let _ = number;
            Some(row.counters.exits)
        })
        .collect();
    ensure!(rows.len() > 3, "Few rows:\n{}", run.table);
    ensure!(
        rows.is_sorted_by(|a, b| a >= b),
        "Not sorted:\n{}",
        run.table
    );
    Ok(())
}

fn json_is_what_rest_gives(site: &Site) -> Result<()> {
    let machine = halted(site)?;
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    let json = machine.ch_remote_text(&["exit-stats", "--all", "--format", "json"])?;
    let stats = Stats::read(&serde_json::from_str(&json)?)?;
    ensure!(stats == machine.stats()?, "The figures differ");
    Ok(())
}

fn reason_is_found_by_number_and_by_name(site: &Site) -> Result<()> {
    let machine = halted(site)?;
    let cpuid = site.numbers().cpuid;
    for reason in [
        cpuid.to_string(),
        format!("{cpuid:#x}"),
        "CPUID".into(),
        "cpuid".into(),
    ] {
        let args = ["exit-stats", "--reason", &reason, "--format", "json"];
        let stats = Stats::read(&serde_json::from_str(&machine.ch_remote_text(&args)?)?)?;
        ensure!(
            stats.reasons.len() == 1 && stats.exits(cpuid) == 1234,
            "--reason {reason}: {:?}",
            stats.reasons
        );
    }
    Ok(())
}

fn table_of_one_reason_shows_the_devices_behind_it_alone(site: &Site) -> Result<()> {
    let machine = halted(site)?;
    let numbers = site.numbers();
    for (reason, has_devices) in [(numbers.io, true), (numbers.cpuid, false)] {
        let table = machine.ch_remote_text(&["exit-stats", "--reason", &reason.to_string()])?;
        ensure!(
            table.contains("serial") == has_devices,
            "Reason {reason:#x}:\n{table}"
        );
    }
    Ok(())
}

fn unknown_reason_is_an_error(site: &Site) -> Result<()> {
    let machine = halted(site)?;
    let undefined = match site.isa() {
        Isa::Vmx => "35",
        Isa::Svm => "0x404",
    };
    for reason in [undefined, "NO_SUCH_REASON"] {
        let output = machine.ch_remote(&["exit-stats", "--reason", reason])?;
        ensure!(
            output.status.code() == Some(1),
            "--reason {reason}: {}",
            output.status
        );
        ensure!(
            !stderr(&output).trim().is_empty(),
            "--reason {reason} says nothing"
        );
        ensure!(
            output.stdout.is_empty(),
            "--reason {reason} prints a table all the same"
        );
    }
    Ok(())
}

fn every_format_is_printed(site: &Site) -> Result<()> {
    let machine = halted(site)?;
    let csv = machine.ch_remote_text(&["exit-stats", "--format", "csv"])?;
    ensure!(
        csv.lines()
            .any(|line| line.contains("CPUID") && line.contains("1234")),
        "{csv}"
    );
    let metrics = machine.ch_remote_text(&["exit-stats", "--format", "openmetrics"])?;
    ensure!(metrics.trim_end().ends_with("# EOF"), "{metrics}");
    let sorted = machine.ch_remote_text(&["exit-stats", "--sort", "number", "--vcpu", "0"])?;
    ensure!(sorted.contains("CPUID"), "{sorted}");
    Ok(())
}

fn lifecycle_commands_answer_as_cloud_hypervisors_do(site: &Site) -> Result<()> {
    let mut machine = halted(site)?;
    let ping = machine.ch_remote_text(&["ping"])?;
    ensure!(
        ping.contains("\"pid\"") && ping.ends_with('\n'),
        "ping: {ping}"
    );
    for (command, state) in [
        ("pause", "Paused"),
        ("resume", "Running"),
        ("shutdown", "Created"),
    ] {
        let printed = machine.ch_remote_text(&[command])?;
        ensure!(printed.is_empty(), "{command} printed {printed:?}");
        let info: serde_json::Value = serde_json::from_str(&machine.ch_remote_text(&["info"])?)?;
        ensure!(info["state"] == state, "After {command}: {}", info["state"]);
    }
    machine.ch_remote_text(&["delete"])?;
    machine.ch_remote_text(&["shutdown-vmm"])?;
    let finished = machine.wait_for_end()?;
    ensure!(
        finished.status.success(),
        "The VMM ended with {}",
        finished.status
    );
    Ok(())
}

fn error_of_the_server_is_shown_as_a_chain(site: &Site) -> Result<()> {
    let machine = Machine::idle(&site.bin(), &site.fresh_dir()?)?;
    let output = machine.ch_remote(&["pause"])?;
    let text = stderr(&output);
    ensure!(output.status.code() == Some(1), "{}", output.status);
    ensure!(
        text.starts_with("Error: ch-remote exited with the following chain of errors:\n  0: "),
        "{text}"
    );
    Ok(())
}
