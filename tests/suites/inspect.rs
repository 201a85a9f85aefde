//! The live state of a VM: what it says, what it costs, and that nothing holds it up.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use instrumentation::table::Isa;
use lab::guest::{Instruction, Program};
use lab::load::{self, Plan};
use lab::oracle::{HeldThread, SyscallCount, guest_memory_word, thread_named};
use lab::vmm::Machine;
use serde_json::{Value, json};

use crate::shell::Guest;
use crate::site::Site;
use crate::unrest::{self, Tap, Unrest};
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "inspect",
    // Bochs is too slow for many questions.
    applies: |site| site.is_patched() && site.isa() == Isa::Svm && !site.is_shared(),
    trials: trials![sixty_four_clients_cost_a_guest_no_exit_paused_or_asleep],
};

pub const DEVICES: Suite = Suite {
    name: "inspect",
    applies: Site::tries_devices,
    trials: trials![
        state_of_devices_at_work_is_what_memory_and_counters_say,
        pause_that_does_not_end_holds_up_no_inspection,
    ],
};

/// Unlike the size of any other mapping of a VMM.
const MEMORY: u64 = 176 << 20;
const TAP: Tap = Tap {
    name: "inspect0",
    host: "192.168.84.1",
    guest: "192.168.84.2",
    host_mac: "02:aa:bb:cc:dd:84",
};
/// How long an inspection may take that cannot ask everybody.
const BOUND: Duration = Duration::from_secs(5);

/// The node at a path, once all of it can be told: threads of a busy host may come
/// too late to a question.
fn inspect_all(machine: &Machine, path: &str) -> Result<Value> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let node = inspect(machine, path)?;
        if node["unavailable"] == Value::Null {
            return Ok(node);
        }
        ensure!(Instant::now() < deadline, "{path}: {node}");
    }
}

/// The node at a path.
fn inspect(machine: &Machine, path: &str) -> Result<Value> {
    let target = format!("/api/v1/vm.inspect?path={path}");
    let body = machine.must("GET", &target, None)?.json()?;
    Ok(body["node"].clone())
}

fn value(node: &Value, name: &str) -> Result<u64> {
    let value = &node["values"][name];
    let hex = value.as_str().and_then(|text| text.strip_prefix("0x"));
    let parsed = match hex {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => value.as_u64(),
    };
    parsed.with_context(|| format!("No number {name} in {node}"))
}

fn all_of(clients: usize, path: &str) -> Plan {
    Plan {
        clients,
        hertz: 4.0,
        lasting: Duration::from_secs(2),
        path: path.to_owned(),
        together: true,
        figures: false,
    }
}

fn sixty_four_clients_cost_a_guest_no_exit_paused_or_asleep(site: &Site) -> Result<()> {
    let program = Program::new()
        .repeat(Instruction::Cpuid, 100)
        .repeat(Instruction::Out(0x3f8), 1);
    let mut machine = site.boot_tiny(&program.halt())?;
    machine.wait_for_bytes(1, site.tiny_deadline())?;
    machine.wait_until_silent(site.tiny_deadline())?;
    ensure!(
        inspect(&machine, "vcpus/0")?["values"]["state"] == "asleep",
        "{}",
        inspect(&machine, "vcpus/0")?
    );
    for state in ["asleep", "paused"] {
        if state == "paused" {
            machine.must("PUT", "/api/v1/vm.pause", None)?;
        }
        let before = (machine.stats()?.totals, machine.debugfs_exits()?);
        let signals = SyscallCount::start("tgkill")?;
        for path in [
            "",
            "virtio",
            "vcpus",
            "memory",
            "pci",
            "threads",
            "descriptors",
        ] {
            let target = format!("/api/v1/vm.inspect?path={path}");
            let outcome = load::run(&machine.socket(), &all_of(64, &target))?;
            ensure!(
                outcome.times.len() == outcome.due,
                "Answers are missing: {outcome}"
            );
            for body in &outcome.last {
                ensure!(body["node"]["unavailable"] == Value::Null, "{path}: {body}");
            }
        }
        let after = (machine.stats()?.totals, machine.debugfs_exits()?);
        ensure!(
            before.0.exits == after.0.exits && before.1 == after.1,
            "Exits of a guest that is {state}: {before:?}, then {after:?}"
        );
        let signals = signals.of_process(machine.pid())?;
        ensure!(signals == 0, "{signals} signals were sent to threads");
        let vcpu = inspect(&machine, "vcpus/0")?;
        ensure!(
            vcpu["values"]["state"] == state && vcpu["counters"]["exits"] == after.0.exits,
            "{vcpu}"
        );
        ensure!(
            vcpu["children"]["registers"] == json!({"on_request": true}),
            "{vcpu}"
        );
    }
    // Asked for by name, they are there: behind HLT, in protected mode.
    let registers = inspect(&machine, "vcpus/0/registers")?;
    ensure!(value(&registers, "cr0")? & 1 == 1, "{registers}");
    let at = value(&registers, "rip")?;
    machine.must("PUT", "/api/v1/vm.resume", None)?;
    // Nor does it cost an exit to wake a vCPU that sleeps.
    let before = machine.debugfs_exits()?;
    for _ in 0..10 {
        let running = inspect_all(&machine, "vcpus/0/registers")?;
        ensure!(value(&running, "rip")? == at, "{registers} then {running}");
    }
    let after = machine.debugfs_exits()?;
    ensure!(before == after, "{before} exits, later {after}");
    Ok(())
}

/// A guest whose disk, network and socket devices are at work.
fn busy(site: &Site, tap: &Tap) -> Result<(Guest, Unrest)> {
    let mut guest = unrest::boot(site, tap, 64 << 20, |dir| {
        json!({
            "memory": {"size": MEMORY, "shared": true},
            "disks": [{"path": dir.join("disk"), "id": "a disk", "num_queues": 2}],
        })
    })?;
    let unrest = Unrest::start(tap.host, guest.dir.join("vsock"))?;
    for work in [
        "dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null".to_owned(),
        format!(
            "nc {} {} </dev/zero >/dev/null 2>&1",
            tap.host,
            unrest.port()
        ),
    ] {
        guest.run(&format!("(while :; do {work}; done) &"))?;
    }
    Ok((guest, unrest))
}

/// The queues that the guest uses for sure, by path.
const QUEUES: [&str; 3] = [
    "virtio/net/queue0",
    "virtio/net/queue1",
    "virtio/vsock/queue1",
];

fn state_of_devices_at_work_is_what_memory_and_counters_say(site: &Site) -> Result<()> {
    let (guest, unrest) = busy(site, &TAP)?;
    let machine = &guest.machine;
    let pid = machine.pid();
    let moved = |before: &[(u64, u64)]| -> Result<Vec<(u64, u64)>> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let now = QUEUES
                .iter()
                .map(|path| {
                    let queue = inspect_all(machine, path)?;
                    Ok((value(&queue, "avail_idx")?, value(&queue, "next_avail")?))
                })
                .collect::<Result<Vec<_>>>()?;
            let all = now.iter().zip(before).all(|(now, before)| now != before);
            if before.is_empty() || all {
                return Ok(now);
            }
            ensure!(Instant::now() < deadline, "{before:?}, later {now:?}");
        }
    };
    let first = moved(&[])?;
    moved(&first)?;

    // Counters are those of vm.counters: read between two readings of these.
    let counters = || machine.must("GET", "/api/v1/vm.counters", None)?.json();
    let (before, tree, after) = (counters()?, inspect(machine, "virtio")?, counters()?);
    for (device, counters) in before.as_object().context("No counters")? {
        for (name, low) in counters.as_object().context("No counters")? {
            // Averages come and go.
            if name.contains("latency") {
                continue;
            }
            let shown = &tree["children"][device]["counters"][name];
            let (low, high) = (low.as_u64(), after[device][name].as_u64());
            ensure!(
                shown.as_u64() >= low && shown.as_u64() <= high && shown.is_u64(),
                "{name} of {device}: {low:?}, {shown}, {high:?}"
            );
        }
    }
    // Registers of vCPUs that run.
    for vcpu in 0..2 {
        let registers = inspect_all(machine, &format!("vcpus/{vcpu}/registers"))?;
        ensure!(value(&registers, "cr3")? != 0, "{registers}");
    }

    machine.must("PUT", "/api/v1/vm.pause", None)?;
    let tree = inspect(machine, "")?;
    ensure!(tree["values"]["state"] == "Paused", "{tree}");
    let mut compared = 0;
    let devices = tree["children"]["virtio"]["children"].as_object();
    for (id, device) in devices.context("No devices")? {
        ensure!(device["values"]["active"] == true, "{id}: {device}");
        for (name, part) in device["children"].as_object().context("No parts")? {
            if !name.starts_with("queue") || part["values"]["ready"] != true {
                continue;
            }
            for (index, area) in [("avail_idx", "driver_area"), ("used_idx", "device_area")] {
                let address = value(part, area)? + 2;
                let word = guest_memory_word(pid, MEMORY, address)?;
                ensure!(
                    value(part, index)? == u64::from(word),
                    "{index} of {name} of {id} in memory: {word}; {part}"
                );
            }
            // What was taken is given back, or put back.
            ensure!(
                value(part, "next_used")? == value(part, "used_idx")?,
                "{name} of {id}: {part}"
            );
            compared += 1;
        }
        for (name, counter) in counters()?[id].as_object().context("No counters")? {
            let part = match name.contains("latency") {
                true => "values",
                false => "counters",
            };
            ensure!(device[part][name] == *counter, "{name} of {id}: {device}");
        }
        for worker in device["children"]["workers"]["children"]
            .as_object()
            .context("No threads")?
            .values()
        {
            ensure!(worker["values"]["state"] == "paused", "{id}: {worker}");
        }
    }
    // Those of two disk queues, net, vsock and the entropy device.
    ensure!(compared >= 7, "{compared} queues were compared: {tree}");
    for (id, vcpu) in tree["children"]["vcpus"]["children"]
        .as_object()
        .context("No vCPUs")?
    {
        let thread = thread_named(pid, &format!("vcpu{id}"))?;
        ensure!(
            vcpu["values"]["state"] == "paused" && value(vcpu, "thread")? == u64::from(thread),
            "{vcpu}"
        );
    }
    ensure!(
        value(&tree["children"]["memory"], "size")? == MEMORY,
        "{tree}"
    );
    // What does not exist, and how it is shown to people.
    let answer = machine.api("GET", "/api/v1/vm.inspect?path=virtio/net/queue7", None)?;
    let last = answer.errors()?.pop().unwrap_or_default();
    ensure!(
        answer.status == 404 && last.contains("queue0, queue1"),
        "{answer:?}"
    );
    let text = machine.ch_remote_text(&["inspect", "virtio/a disk/queue0"])?;
    ensure!(text.contains("avail_idx"), "{text}");
    let json = machine.ch_remote_text(&["inspect", "vcpus/1/registers", "--format", "json"])?;
    let json: Value = serde_json::from_str(&json)?;
    ensure!(value(&json["node"], "cr3")? != 0, "{json}");
    let out = machine.ch_remote(&["inspect", "nothing"])?;
    ensure!(out.status.code() == Some(1), "{out:?}");
    machine.must("PUT", "/api/v1/vm.resume", None)?;
    moved(&first)?;
    drop(unrest);
    Ok(())
}

fn pause_that_does_not_end_holds_up_no_inspection(site: &Site) -> Result<()> {
    let (guest, unrest) = busy(site, &TAP)?;
    let machine = &guest.machine;
    let held = HeldThread::hold(machine.pid(), "a_disk_q1")?;
    let paused = thread::scope(|scope| -> Result<()> {
        let pause = scope.spawn(|| machine.must("PUT", "/api/v1/vm.pause", None).map(drop));
        let deadline = Instant::now() + BOUND;
        loop {
            let start = Instant::now();
            let tree = inspect(machine, "")?;
            let took = start.elapsed();
            ensure!(took < BOUND, "It took {took:?}");
            let disk = &tree["children"]["virtio"]["children"]["a disk"];
            let waits = tree["values"]["busy_with"] == "vm.pause"
                && disk["unavailable"]
                    .as_array()
                    .is_some_and(|why| !why.is_empty());
            if waits {
                judge_waited_for(disk)?;
                // The others are as they always are.
                let net = &tree["children"]["virtio"]["children"]["net"];
                ensure!(net["unavailable"] == Value::Null, "{net}");
                break;
            }
            ensure!(Instant::now() < deadline, "{tree}");
        }
        ensure!(!pause.is_finished(), "The pause did not wait");
        drop(held);
        pause.join().ok().context("The client panicked")?
    });
    paused?;
    let disk = inspect(machine, "virtio/a%20disk")?;
    ensure!(disk["unavailable"] == Value::Null, "{disk}");
    ensure!(
        disk["children"]["workers"]["children"]["a disk_q1"]["values"]["state"] == "paused",
        "{disk}"
    );
    machine.must("PUT", "/api/v1/vm.resume", None)?;
    drop(unrest);
    Ok(())
}

/// Registers and indices are there; what the thread alone knows is said to be
/// missing.
fn judge_waited_for(disk: &Value) -> Result<()> {
    ensure!(disk["values"]["active"] == true, "{disk}");
    let queue = &disk["children"]["queue1"];
    value(queue, "avail_idx")?;
    ensure!(
        queue["values"]["next_avail"] == Value::Null && queue["unavailable"].is_array(),
        "{queue}"
    );
    let stuck = &disk["children"]["workers"]["children"]["a disk_q1"];
    ensure!(stuck["unavailable"].is_array(), "{stuck}");
    Ok(())
}
