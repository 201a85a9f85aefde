//! The boot-exit study: which boots it compares, what was recorded of them,
//! and the page that is written from the recordings. Every figure on the page
//! comes out of a recording by way of the template.

mod page;
mod recording;

pub use page::render;
pub use recording::{Boot, Reason};

/// Start of the line that begins a case.
pub const CASE: &str = "@study case ";
/// Start of a line of the case's recording.
pub const CASE_LINE: &str = "@study line ";
/// Start of the line with KVM's own count of the case's exits.
pub const CASE_EXITS: &str = "@study exits ";

/// The guest's command line: quiet, as a cloud guest boots.
pub const CMDLINE: &str =
    "console=ttyS0 quiet panic=-1 reboot=k mitigations=off tsc=reliable lpj=1000000";

/// One way to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Case {
    /// One vCPU.
    OneVcpu,
    /// Four vCPUs.
    FourVcpus,
    /// One vCPU, and KVM shadows the guest's page tables.
    ShadowPaging,
    /// One vCPU of the distribution's QEMU.
    Qemu,
}

impl Case {
    /// All of them, in the order of the page.
    pub const ALL: [Case; 4] = [
        Case::OneVcpu,
        Case::FourVcpus,
        Case::ShadowPaging,
        Case::Qemu,
    ];

    /// Its name in file names.
    pub fn name(self) -> &'static str {
        match self {
            Case::OneVcpu => "1-vcpu",
            Case::FourVcpus => "4-vcpus",
            Case::ShadowPaging => "shadow-paging",
            Case::Qemu => "1-vcpu-qemu",
        }
    }

    /// The case of a name.
    pub fn from_name(name: &str) -> Option<Case> {
        Case::ALL.into_iter().find(|case| case.name() == name)
    }

    /// vCPUs of the guest.
    pub fn vcpus(self) -> u32 {
        match self {
            Case::FourVcpus => 4,
            Case::OneVcpu | Case::ShadowPaging | Case::Qemu => 1,
        }
    }

    /// Whether KVM is to do without EPT or nested paging.
    pub fn without_nested_paging(self) -> bool {
        self == Case::ShadowPaging
    }
}
