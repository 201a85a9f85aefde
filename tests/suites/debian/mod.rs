//! Debian as a guest, with all that it makes of its devices. The host runs
//! Debian's programs as the other side.

use std::num::NonZero;
use std::thread::available_parallelism;

mod all;
mod boot;
mod disk;
mod firmware;
mod guest;
mod kill;
mod net;
mod plug;
mod smp;
mod vsock;

use all::exits_are_counted_with_all_devices_at_work;
use boot::{
    debian_on_a_qcow2_disk_comes_to_its_login_prompt,
    debian_on_a_raw_disk_comes_to_its_login_prompt,
    debian_on_a_read_only_disk_comes_to_its_login_prompt,
};
use disk::{
    fio_verifies_what_it_wrote_through_io_uring, fio_verifies_what_it_wrote_without_io_uring,
};
use firmware::firmware_boots_debian_from_its_disk;
use kill::what_was_flushed_survives_a_kill;
use net::{
    iperf3_moves_data_both_ways, ping_is_answered_both_ways, transfer_arrives_as_it_was_sent,
    transfer_arrives_as_it_was_sent_without_offloads,
};
use plug::disks_and_nets_that_come_and_go_leave_nothing_behind;
use smp::eight_vcpus_bear_stress;
use vsock::{guest_reaches_a_port_of_the_host, host_reaches_a_port_of_the_guest};

use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "debian",
    applies: |site| site.has_debian() && host_cpus() == 1 && !site.counts_time(),
    trials: trials![
        debian_on_a_raw_disk_comes_to_its_login_prompt,
        debian_on_a_qcow2_disk_comes_to_its_login_prompt,
        debian_on_a_read_only_disk_comes_to_its_login_prompt,
        fio_verifies_what_it_wrote_through_io_uring,
        fio_verifies_what_it_wrote_without_io_uring,
        what_was_flushed_survives_a_kill,
        ping_is_answered_both_ways,
        iperf3_moves_data_both_ways,
        transfer_arrives_as_it_was_sent,
        transfer_arrives_as_it_was_sent_without_offloads,
        host_reaches_a_port_of_the_guest,
        guest_reaches_a_port_of_the_host,
        disks_and_nets_that_come_and_go_leave_nothing_behind,
        exits_are_counted_with_all_devices_at_work,
    ],
};

/// On a host whose clock counts instructions: QEMU 7.2 does not bear EDK2 as a
/// guest of its guest on any other.
pub const FIRMWARE: Suite = Suite {
    name: "debian_by_firmware",
    applies: |site| site.has_debian() && site.counts_time(),
    trials: trials![firmware_boots_debian_from_its_disk],
};

/// Fewer CPUs than vCPUs, and more than one: vCPUs run at the same time, are
/// moved, and wait for others that do not run.
pub const MANY_VCPUS: Suite = Suite {
    name: "debian_on_two_cpus",
    applies: |site| site.has_debian() && host_cpus() == 2,
    trials: trials![eight_vcpus_bear_stress],
};

fn host_cpus() -> usize {
    available_parallelism().map_or(1, NonZero::get)
}
