//! Network devices as Linux drives them, over taps of the host.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use crate::shell::Guest;
use crate::site::Site;
use crate::unrest::load_tun;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "nets",
    applies: Site::tries_devices,
    trials: trials![interfaces_are_what_they_were_given_and_use_all_their_queues],
};

// Features by bit (virtio 1.3, 5.1.3).
const OFFLOADS: [usize; 8] = [0, 1, 7, 8, 10, 11, 12, 14];
const MTU: usize = 3;
const MAC: usize = 5;
const MULTIQUEUE: usize = 22;

/// Features that the guest's driver has agreed on.
fn features(guest: &mut Guest, interface: &str) -> Result<BTreeSet<usize>> {
    let bits = guest.run(&format!("cat /sys/class/net/{interface}/device/features"))?;
    Ok(bits.match_indices('1').map(|(bit, _)| bit).collect())
}

fn interfaces_are_what_they_were_given_and_use_all_their_queues(site: &Site) -> Result<()> {
    load_tun(site)?;
    let nets = json!([
        {
            "tap": "wide0", "ip": "192.168.78.1", "mask": "255.255.255.0", "num_queues": 4,
            "queue_size": 512, "host_mac": "02:aa:bb:cc:dd:01", "mac": "02:11:22:33:44:55",
            "id": "wide",
        },
        {
            "tap": "plain0", "ip": "192.168.79.1", "mask": "255.255.255.0", "mtu": 1400,
            "mac": "02:11:22:33:44:66", "id": "plain",
            "offload_tso": false, "offload_ufo": false, "offload_csum": false,
        },
    ]);
    let mut guest = Guest::boot(
        site,
        json!({"net": nets, "cpus": {"boot_vcpus": 2, "max_vcpus": 2}}),
    )?;
    for (interface, mac, mtu, queues) in [
        ("eth0", "02:11:22:33:44:55", "1500", "2"),
        ("eth1", "02:11:22:33:44:66", "1400", "1"),
    ] {
        let folder = format!("/sys/class/net/{interface}");
        let said = guest.run(&format!(
            "echo $(cat {folder}/address {folder}/mtu) $(ls -d {folder}/queues/rx-* | wc -l) \
             $(ls -d {folder}/queues/tx-* | wc -l)"
        ))?;
        let expected = format!("{mac} {mtu} {queues} {queues}");
        ensure!(said == expected, "{interface}: {said}, not {expected}");
    }
    let wide = features(&mut guest, "eth0")?;
    let plain = features(&mut guest, "eth1")?;
    ensure!(
        OFFLOADS.iter().all(|bit| wide.contains(bit))
            && wide.contains(&MAC)
            && wide.contains(&MULTIQUEUE),
        "Of the first, features {wide:?}"
    );
    ensure!(
        !OFFLOADS.iter().any(|bit| plain.contains(bit))
            && plain.contains(&MTU)
            && !plain.contains(&MULTIQUEUE),
        "Of the second, features {plain:?}"
    );
    let host = fs::read_to_string("/sys/class/net/wide0/address")?;
    ensure!(host.trim() == "02:aa:bb:cc:dd:01", "The host has {host}");

    guest.run("ifconfig eth0 192.168.78.2 netmask 255.255.255.0 up")?;
    guest.run("ifconfig eth1 192.168.79.2 netmask 255.255.255.0 up")?;
    guest.run("ping -c 2 -s 1300 -W 20 192.168.79.1 >/dev/null")?;
    for (peer, cpu) in [
        ("192.168.78.1", 1),
        ("192.168.78.1", 2),
        ("192.168.79.1", 1),
    ] {
        there_and_back(&mut guest, peer, cpu)
            .with_context(|| format!("{peer}, from the CPUs {cpu:#b}"))?;
    }
    let interrupts = guest
        .run("grep $(basename $(readlink /sys/class/net/eth0/device))-.*put /proc/interrupts")?;
    let mut used = 0;
    for line in interrupts.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let count: u64 = words[1..3]
            .iter()
            .filter_map(|word| word.parse::<u64>().ok())
            .sum();
        used += u32::from(count > 0);
    }
    ensure!(used == 4, "Not all queues were used:\n{interrupts}");

    // The guest, the VMM and the host's tap count the same.
    for (id, inside, tap) in [("wide", "eth0", "wide0"), ("plain", "eth1", "plain0")] {
        for (ours, guests, taps) in [
            ("rx_frames", "rx_packets", "tx_packets"),
            ("tx_frames", "tx_packets", "rx_packets"),
            ("rx_bytes", "rx_bytes", "tx_bytes"),
            ("tx_bytes", "tx_bytes", "rx_bytes"),
        ] {
            let file = |name: &str| format!("/sys/class/net/{name}/statistics");
            let counted = guest.counter(id, ours)?;
            let of_guest: u64 = guest
                .run(&format!("cat {}/{guests}", file(inside)))?
                .parse()?;
            let of_tap: u64 = fs::read_to_string(format!("{}/{taps}", file(tap)))?
                .trim()
                .parse()?;
            ensure!(
                counted == of_guest && counted == of_tap && counted > 0,
                "{id}: {counted} {ours}, {of_guest} in the guest, {of_tap} at the tap"
            );
        }
    }
    Ok(())
}

/// Four MiB to the guest and back again, from these of its CPUs.
fn there_and_back(guest: &mut Guest, peer: &str, cpus: u32) -> Result<()> {
    let data: Vec<u8> = (0..1u32 << 20)
        .flat_map(|word| word.wrapping_mul(0x9e37_79b1).to_le_bytes())
        .collect();
    let (there, back) = (TcpListener::bind((peer, 0))?, TcpListener::bind((peer, 0))?);
    let (to, from) = (there.local_addr()?.port(), back.local_addr()?.port());
    let sent = data.clone();
    let sender = thread::spawn(move || there.accept()?.0.write_all(&sent));
    let receiver = thread::spawn(move || {
        let mut received = Vec::new();
        back.accept()?.0.read_to_end(&mut received)?;
        Ok::<_, std::io::Error>(received)
    });
    guest.run(&format!(
        "taskset {cpus} nc {peer} {to} </dev/null >/t/got; taskset {cpus} nc {peer} {from} </t/got"
    ))?;
    let panicked = |_| anyhow!("A thread panicked");
    sender.join().map_err(panicked)??;
    let received = receiver.join().map_err(panicked)??;
    ensure!(
        received == data,
        "{} bytes were sent, {} came back, or others",
        data.len(),
        received.len()
    );
    Ok(())
}
