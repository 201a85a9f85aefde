//! Debian as a guest, with all that it makes of its devices. The host runs
//! Debian's programs as the other side.

mod boot;
mod disk;
mod guest;
mod kill;
mod net;
mod vsock;

use boot::{
    debian_on_a_qcow2_disk_comes_to_its_login_prompt,
    debian_on_a_raw_disk_comes_to_its_login_prompt,
    debian_on_a_read_only_disk_comes_to_its_login_prompt,
};
use disk::{
    fio_verifies_what_it_wrote_through_io_uring, fio_verifies_what_it_wrote_without_io_uring,
};
use kill::what_was_flushed_survives_a_kill;
use net::{
    iperf3_moves_data_both_ways, ping_is_answered_both_ways, transfer_arrives_as_it_was_sent,
    transfer_arrives_as_it_was_sent_without_offloads,
};
use vsock::{guest_reaches_a_port_of_the_host, host_reaches_a_port_of_the_guest};

use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "debian",
    applies: Site::has_debian,
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
    ],
};
