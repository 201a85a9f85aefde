//! Packets over a tap, between the guest and the host.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::guest::{Guest, STEP_TIMEOUT, Spec, hosts};
use crate::site::Site;

pub const TAP: &str = "lab0";
pub const HOST: &str = "192.168.77.1";
const GUEST: &str = "192.168.77.2";

/// How long a transfer may take.
const TRANSFER: Duration = Duration::from_secs(2400);

/// The network device, in the form of `--net`.
pub fn device() -> String {
    format!("tap={TAP},ip={HOST},mask=255.255.255.0,mac=52:54:00:12:34:56")
}

/// Gives the guest's side its address.
pub fn set_up(guest: &mut Guest) -> Result<()> {
    guest
        .run(&format!(
            "ip address add {GUEST}/24 dev eth0 && ip link set eth0 up"
        ))
        .map(drop)
}

fn networked(site: &Site, vcpus: u32, more: &str) -> Result<Guest> {
    let spec = Spec {
        vcpus,
        ..Spec::shell().with(&["--net", &format!("{}{more}", device())])
    };
    let mut guest = Guest::boot(site, &spec)?;
    set_up(&mut guest)?;
    Ok(guest)
}

pub fn ping_is_answered_both_ways(site: &Site) -> Result<()> {
    let mut guest = networked(site, 1, "")?;
    let said = guest.run(&format!("ping -c 10 -i 0.2 -s 1400 {HOST}"))?;
    ensure!(said.contains("10 received, 0% packet loss"), "{said}");
    let said = hosts("ping", &["-c", "10", "-i", "0.2", "-s", "1400", GUEST]).output()?;
    let said = String::from_utf8_lossy(&said.stdout);
    ensure!(said.contains("10 received, 0% packet loss"), "{said}");
    // What the tap counts is what our side of it counts.
    let counters = guest.must("GET", "/api/v1/vm.counters", None)?.json()?;
    let counted = |name: &str| -> Result<u64> {
        let nets = counters.as_object().context("No counters")?;
        nets.values()
            .find_map(|device| device[name].as_u64())
            .with_context(|| format!("No {name} in {counters}"))
    };
    for (ours, taps) in [("rx_frames", "tx_packets"), ("tx_frames", "rx_packets")] {
        let path = format!("/sys/class/net/{TAP}/statistics/{taps}");
        let tap: u64 = fs::read_to_string(&path)?.trim().parse()?;
        ensure!(
            counted(ours)? == tap && tap >= 20,
            "{} {ours}, {tap} {taps} of the tap",
            counted(ours)?
        );
    }
    guest.hold_accounts().map(drop)
}

/// Bytes that a server of iperf3's on the host and its client in the guest
/// exchanged, as the receiving side counts.
pub fn iperf(guest: &mut Guest, more: &str) -> Result<u64> {
    let server = hosts("iperf3", &["-s", "-1", "-J", "-B", HOST])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("Cannot start iperf3")?;
    let client = format!(
        "for i in 1 2 3 4 5; do iperf3 -c {HOST} {more} >/tmp/iperf && break; sleep 1; done; tail -n 5 /tmp/iperf"
    );
    let said = guest.run_within(&client, STEP_TIMEOUT)?;
    let out = server.wait_with_output()?;
    let report: Value = serde_json::from_slice(&out.stdout)
        .with_context(|| format!("The guest's iperf3 said {said}"))?;
    let sum = &report["end"]["sum_received"]["bytes"];
    let sum = if more.contains("-R") {
        &report["end"]["sum_sent"]["bytes"]
    } else {
        sum
    };
    sum.as_u64()
        .with_context(|| format!("iperf3 counts no bytes: {said}"))
}

pub fn iperf3_moves_data_both_ways(site: &Site) -> Result<()> {
    let seconds = if site.is_long() { 20 } else { 2 };
    let mut guest = networked(site, 2, ",num_queues=4")?;
    for more in ["", "-R", "-P 4", "--bidir"] {
        let bytes = iperf(&mut guest, &format!("{more} -t {seconds}"))?;
        ensure!(bytes > 1_000_000, "iperf3 {more} moved {bytes} bytes");
    }
    guest.hold_accounts().map(drop)
}

/// Sends so many bytes to the guest, which sums them and sends them back.
fn there_and_back(guest: &mut Guest, bytes: usize) -> Result<()> {
    let [there, back] = [(); 2].map(|()| TcpListener::bind((HOST, 0)));
    let (there, back) = (there?, back?);
    let (to, from) = (there.local_addr()?.port(), back.local_addr()?.port());
    let sender = thread::spawn(move || -> Result<String> {
        let (mut stream, _) = there.accept()?;
        let mut hash = Sha256::new();
        let (mut left, mut state) = (bytes, 0x9e37_79b9_7f4a_7c15_u64);
        let mut block = vec![0; 64 << 10];
        while left > 0 {
            for word in block.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            let part = &block[..left.min(block.len())];
            hash.update(part);
            stream.write_all(part)?;
            left -= part.len();
        }
        Ok(shown(hash))
    });
    let receiver = thread::spawn(move || -> Result<String> {
        let (mut stream, _) = back.accept()?;
        let mut hash = Sha256::new();
        let mut block = vec![0; 64 << 10];
        loop {
            match stream.read(&mut block)? {
                0 => return Ok(shown(hash)),
                count => hash.update(&block[..count]),
            }
        }
    });
    let line = format!(
        "mkfifo /tmp/sum; sha256sum </tmp/sum >/tmp/summed & \
         socat -u TCP:{HOST}:{to} - | tee /tmp/sum | socat -u - TCP:{HOST}:{from}; \
         wait; rm /tmp/sum; cut -d' ' -f1 /tmp/summed"
    );
    let guests = guest.run_within(&line, TRANSFER)?;
    let panicked = |_| anyhow!("A thread panicked");
    let (sent, received) = (
        sender.join().map_err(panicked)??,
        receiver.join().map_err(panicked)??,
    );
    ensure!(
        sent == guests && sent == received,
        "Sums differ: sent {sent}, the guest's {guests}, received {received}"
    );
    Ok(())
}

fn shown(hash: Sha256) -> String {
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

pub fn transfer_arrives_as_it_was_sent(site: &Site) -> Result<()> {
    let bytes = if site.is_long() { 1 << 30 } else { 32 << 20 };
    let mut guest = networked(site, 2, ",num_queues=4")?;
    there_and_back(&mut guest, bytes)?;
    guest.hold_accounts().map(drop)
}

pub fn transfer_arrives_as_it_was_sent_without_offloads(site: &Site) -> Result<()> {
    let more = ",offload_tso=off,offload_ufo=off,offload_csum=off";
    let mut guest = networked(site, 1, more)?;
    there_and_back(&mut guest, 4 << 20)
}
