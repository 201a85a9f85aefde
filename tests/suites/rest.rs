//! The API on its socket, as any client of Cloud Hypervisor would use it.

use anyhow::{Context, Result, ensure};
use instrumentation::table::Isa;
use lab::guest::{Instruction, Program};
use lab::vmm::{Machine, Response, Stats};
use serde_json::Value;

use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "rest",
    applies: Site::is_patched,
    trials: trials![
        body_names_its_source_isa_manual_and_clock,
        three_paths_are_one_resource,
        rows_are_the_reasons_of_the_manual,
        undefined_reason_is_404_and_says_so,
        reason_without_handler_is_200_with_zeros,
        enabled_reason_is_200_with_its_row_alone,
        reason_that_is_no_number_of_32_bits_is_400,
        nonzero_leaves_out_what_never_occurred,
        one_vcpu_is_asked_for_by_number,
        exits_to_user_space_are_listed_by_device,
        metrics_hold_the_same_figures,
        malformed_json_is_400_and_the_server_goes_on,
        unknown_path_is_404_and_wrong_method_400,
    ],
};

/// A guest that did a little and halted.
fn halted(site: &Site) -> Result<Machine> {
    let program = Program::new()
        .repeat(Instruction::Cpuid, 41)
        .repeat(Instruction::In(0x80), 3)
        .repeat(Instruction::Out(0x3f8), 13);
    let mut machine = site.boot_tiny(&program.halt())?;
    machine.wait_for_bytes(13, site.tiny_deadline())?;
    machine.wait_until_silent(site.tiny_deadline())?;
    Ok(machine)
}

fn body_names_its_source_isa_manual_and_clock(site: &Site) -> Result<()> {
    let body = halted(site)?
        .must("GET", "/api/v1/vm.exit-stats", None)?
        .json()?;
    ensure!(
        body["source"] == "kvm-exit-stats",
        "source {}",
        body["source"]
    );
    ensure!(body["isa"] == site.isa().as_str(), "isa {}", body["isa"]);
    ensure!(
        body["manual"] == site.table().manual,
        "manual {}",
        body["manual"]
    );
    ensure!(
        body["tsc_khz"].as_u64().is_some_and(|khz| khz > 0),
        "tsc_khz {}",
        body["tsc_khz"]
    );
    ensure!(body["since"] == "boot", "since {}", body["since"]);
    Ok(())
}

fn three_paths_are_one_resource(site: &Site) -> Result<()> {
    let machine = halted(site)?;
    // A resource that stands still but for the time of its reading, so that the
    // bodies may be compared.
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    let without_time = |response: &Response| -> Result<Value> {
        let mut body = response.json()?;
        for time in ["unix_us", "monotonic_us"] {
            ensure!(body[time].take().is_u64(), "There is no {time}");
        }
        Ok(body)
    };
    let first = machine.must("GET", "/api/v1/vm.exit-stats", None)?;
    for path in ["/exit-stats", "/api/v1/exit-stats"] {
        let other = machine.must("GET", path, None)?;
        ensure!(
            without_time(&other)? == without_time(&first)?,
            "{path} gives another body"
        );
    }
    ensure!(
        first.header("content-type") == Some("application/json"),
        "{:?}",
        first.headers
    );
    Ok(())
}

fn rows_are_the_reasons_of_the_manual(site: &Site) -> Result<()> {
    let stats = halted(site)?.stats()?;
    let expected = site.table().reasons;
    ensure!(
        stats.reasons.len() == expected.len(),
        "{} rows",
        stats.reasons.len()
    );
    for entry in expected {
        let row = stats
            .reasons
            .get(&entry.number)
            .with_context(|| format!("No row for {}", entry.number))?;
        ensure!(
            row.name == entry.name && row.symbol == entry.symbol && row.enabled == entry.enabled,
            "{row:?} is not {entry:?}"
        );
    }
    Ok(())
}

fn undefined_reason_is_404_and_says_so(site: &Site) -> Result<()> {
    let machine = halted(site)?;
    let numbers: &[u32] = match site.isa() {
        Isa::Vmx => &[35, 38, 42, 71, 82, 83, 86, 0x1000a, 0xffff_ffff],
        Isa::Svm => &[0xa7, 0x404, 0x1_0072, 0x7fff_ffff],
    };
    for number in numbers {
        let response = machine.api("GET", &format!("/exit-stats?reason={number}"), None)?;
        let errors = response.errors()?;
        ensure!(
            response.status == 404,
            "Reason {number} gave {}",
            response.status
        );
        ensure!(
            errors.iter().any(|error| error.contains("does not define")),
            "Reason {number}: {errors:?}"
        );
    }
    Ok(())
}

fn reason_without_handler_is_200_with_zeros(site: &Site) -> Result<()> {
    let machine = halted(site)?;
    let numbers: &[u32] = match site.isa() {
        Isa::Vmx => &[3, 11, 65],
        Isa::Svm => &[0x01, 0x63, 0xa0],
    };
    for number in numbers {
        let path = format!("/exit-stats?reason={number}");
        let stats = Stats::read(&machine.must("GET", &path, None)?.json()?)?;
        let row = stats.reasons.get(number).context("The row is missing")?;
        ensure!(
            stats.reasons.len() == 1 && !row.enabled && row.counters == Default::default(),
            "Reason {number}: {:?}",
            stats.reasons
        );
    }
    Ok(())
}

fn enabled_reason_is_200_with_its_row_alone(site: &Site) -> Result<()> {
    let cpuid = site.numbers().cpuid;
    let path = format!("/exit-stats?reason={cpuid}");
    let stats = Stats::read(&halted(site)?.must("GET", &path, None)?.json()?)?;
    ensure!(
        stats.reasons.len() == 1 && stats.exits(cpuid) == 41,
        "41 executed: {:?}",
        stats.reasons
    );
    Ok(())
}

fn reason_that_is_no_number_of_32_bits_is_400(site: &Site) -> Result<()> {
    let machine = halted(site)?;
    for reason in ["x", "", "-1", "4294967296", "1.5", "99999999999999999999"] {
        let response = machine.api("GET", &format!("/exit-stats?reason={reason}"), None)?;
        ensure!(
            response.status == 400,
            "reason={reason} gave {}",
            response.status
        );
        ensure!(
            !response.errors()?.is_empty(),
            "reason={reason} has no message"
        );
    }
    Ok(())
}

fn nonzero_leaves_out_what_never_occurred(site: &Site) -> Result<()> {
    let machine = halted(site)?;
    let whole = machine.stats()?;
    let body = machine
        .must("GET", "/exit-stats?nonzero=true", None)?
        .json()?;
    let narrow = Stats::read(&body)?;
    ensure!(
        narrow.occurred() == whole.occurred(),
        "Rows that occurred are missing"
    );
    ensure!(
        narrow.reasons.len() == whole.occurred().len(),
        "Rows that never occurred are there"
    );
    Ok(())
}

fn one_vcpu_is_asked_for_by_number(site: &Site) -> Result<()> {
    let machine = halted(site)?;
    let one = Stats::read(&machine.must("GET", "/exit-stats?vcpu=0", None)?.json()?)?;
    ensure!(
        one.totals == machine.stats()?.totals,
        "The only vCPU is not the whole"
    );
    let none = machine.api("GET", "/exit-stats?vcpu=7", None)?;
    ensure!(
        none.status == 404 && !none.errors()?.is_empty(),
        "vcpu=7 gave {}",
        none.status
    );
    Ok(())
}

fn exits_to_user_space_are_listed_by_device(site: &Site) -> Result<()> {
    let body = halted(site)?.must("GET", "/exit-stats", None)?.json()?;
    let kind = |name: &str| -> Result<Value> {
        let kinds = body["vmm"]["exits"]
            .as_array()
            .context("The VMM's side is missing")?;
        let row = kinds.iter().find(|row| row["kind"] == name);
        row.cloned()
            .with_context(|| format!("No {name} in {kinds:?}"))
    };
    let out = kind("io_out")?;
    let devices = out["devices"].as_array().context("io_out has no devices")?;
    let serial: Vec<_> = devices.iter().filter(|row| row["id"] == "serial").collect();
    let written: u64 = serial.iter().filter_map(|row| row["exits"].as_u64()).sum();
    ensure!(written == 13, "Thirteen bytes written: {serial:?}");
    ensure!(out["exits"] == 13, "io_out {}", out["exits"]);
    ensure!(
        kind("io_in")?["exits"] == 3,
        "Three bytes read: {}",
        kind("io_in")?
    );
    Ok(())
}

fn metrics_hold_the_same_figures(site: &Site) -> Result<()> {
    let machine = halted(site)?;
    let response = machine.must("GET", "/metrics", None)?;
    ensure!(
        response.body.trim_end().ends_with("# EOF"),
        "OpenMetrics ends with # EOF"
    );
    let symbol = site
        .table()
        .reasons
        .iter()
        .find(|entry| entry.number == site.numbers().cpuid)
        .map(|entry| entry.symbol)
        .context("CPUID has a symbol")?;
    let sum: f64 = response
        .body
        .lines()
        .filter(|line| line.contains("_exits_total{") && line.contains(&format!("\"{symbol}\"")))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    ensure!(
        sum == 41.0,
        "41 CPUIDs executed, {sum} in:\n{}",
        response.body
    );
    Ok(())
}

fn malformed_json_is_400_and_the_server_goes_on(site: &Site) -> Result<()> {
    let machine = Machine::idle(&site.bin(), &site.fresh_dir()?)?;
    for body in [
        "{",
        "[]",
        "{\"cpus\": 3}",
        "nonsense",
        "{\"payload\": {\"kernel\": 5}}",
    ] {
        let response = machine.api("PUT", "/api/v1/vm.create", Some(body))?;
        ensure!(
            response.status == 400,
            "{body} gave {}: {}",
            response.status,
            response.body
        );
        ensure!(!response.errors()?.is_empty(), "{body} has no message");
    }
    machine.must("GET", "/api/v1/vmm.ping", None)?;
    Ok(())
}

fn unknown_path_is_404_and_wrong_method_400(site: &Site) -> Result<()> {
    let machine = Machine::idle(&site.bin(), &site.fresh_dir()?)?;
    let status =
        |method: &str, path: &str| -> Result<u16> { Ok(machine.api(method, path, None)?.status) };
    ensure!(
        status("GET", "/api/v1/vm.nothing")? == 404,
        "An unknown path"
    );
    ensure!(
        status("PUT", "/api/v1/vmm.ping")? == 400,
        "PUT on what is only read"
    );
    ensure!(
        status("PUT", "/exit-stats")? == 400,
        "PUT on the statistics"
    );
    ensure!(
        status("GET", "/api/v1/vm.info")? == 404,
        "Information on no machine"
    );
    Ok(())
}
