//! The API under load, on this machine as it is: no emulator, no KVM.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::host::Isa;
use crate::load::{self as clients, Outcome, Plan};
use crate::tools::{Endpoint, Pace, Profile, build_release};
use crate::tree::Tree;

/// vCPUs of the machine that is polled.
const VCPUS: u32 = 8;
/// What 99 of 100 answers must come within.
pub(super) const LIMIT: Duration = Duration::from_millis(5);
/// Processor time that an answer may take the server, whatever else the machine
/// has to do: it took 37 to 114 us, and 300 and more when every question had a
/// snapshot and an encoding of its own.
const EFFORT: Duration = Duration::from_micros(250);

/// Polls the server and judges how fast it was.
pub fn load(tree: &Tree, lasting: Duration) -> Result<()> {
    build_release(tree)?;
    let mut slow = Vec::new();
    for isa in [Isa::Vmx, Isa::Svm] {
        let (outcome, effort) = poll(tree, isa, lasting, false)?;
        println!("{}: {outcome}", title(isa, effort));
        if outcome.quantile(0.99) > LIMIT {
            slow.push(isa.as_str());
        }
        // For information: 64 answers cannot leave in one instant.
        let (outcome, effort) = poll(tree, isa, lasting, true)?;
        println!("{}, all at once: {outcome}", title(isa, effort));
    }
    ensure!(
        slow.is_empty(),
        "p99 is over {} ms: {}. Was the machine idle?",
        LIMIT.as_millis(),
        slow.join(", ")
    );
    Ok(())
}

/// A short load that a busy machine passes, too: every question is answered,
/// at little effort.
pub fn short_load(tree: &Tree) -> Result<()> {
    build_release(tree)?;
    for isa in [Isa::Vmx, Isa::Svm] {
        let (outcome, effort) = poll(tree, isa, Duration::from_secs(4), false)?;
        println!("{}: {outcome}", title(isa, effort));
        ensure!(
            effort <= EFFORT,
            "An answer takes the server {effort:?} of a processor's time"
        );
    }
    Ok(())
}

fn title(isa: Isa, effort: Duration) -> String {
    format!("{}, {} us an answer", isa.as_str(), effort.as_micros())
}

/// 64 clients, 100 questions a second each, at the real server on a real
/// socket; its machine is made up. Tells the server's effort for an answer,
/// besides.
fn poll(tree: &Tree, isa: Isa, lasting: Duration, together: bool) -> Result<(Outcome, Duration)> {
    let socket = tree.fresh_log_dir("load")?.join("api.sock");
    let server = Endpoint::start(tree, Profile::Release, &socket, isa, VCPUS, Pace::Moving)?;
    let before = server.cpu_time()?;
    let outcome = clients::run(
        &socket,
        &Plan {
            clients: 64,
            hertz: 100.0,
            lasting,
            path: "/exit-stats".to_owned(),
            together,
            figures: true,
        },
    )?;
    ensure!(outcome.times.len() == outcome.due, "Answers are missing");
    let effort = (server.cpu_time()? - before).div_f64(outcome.times.len() as f64);
    Ok((outcome, effort))
}
