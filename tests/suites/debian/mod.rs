//! Debian as a guest, with all that it makes of its devices. The host runs
//! Debian's programs as the other side.

mod boot;
mod disk;
mod guest;
mod kill;

use boot::{
    debian_on_a_qcow2_disk_comes_to_its_login_prompt,
    debian_on_a_raw_disk_comes_to_its_login_prompt,
    debian_on_a_read_only_disk_comes_to_its_login_prompt,
};
use disk::{
    fio_verifies_what_it_wrote_through_io_uring, fio_verifies_what_it_wrote_without_io_uring,
};
use kill::what_was_flushed_survives_a_kill;

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
    ],
};
