//! What a manual page says beyond the definition of the command line.

use anyhow::Result;
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// The sections after the options.
pub struct Page {
    description: &'static str,
    exit_status: &'static str,
    /// What it is for, and the lines to type.
    examples: &'static [(&'static str, &'static [&'static str])],
    see_also: &'static [&'static str],
}

/// The VMM.
pub const CLOUD_HYPERVISOR: Page = Page {
    description: "Runs one virtual machine on KVM, which boots at once if --kernel or --firmware \
        is given, else when the API is told to. On a KVM that counts VM exits by reason the counts \
        are served at GET /exit-stats and GET /metrics of the API socket; see \
        ch-remote-exit-stats(1). Flags and API are those of Cloud Hypervisor.",
    exit_status: "0 after the machine has ended, 1 if the command line is wrong or the machine \
        cannot run. What is wrong is told in one line on standard error.",
    examples: &[
        (
            "A machine with its console on this terminal:",
            &[
                "cloud-hypervisor --api-socket /run/vm.sock --memory size=1G",
                "    --kernel /boot/vmlinuz --initramfs initrd.img --cmdline console=ttyS0",
                "    --serial tty --console off",
            ],
        ),
        (
            "The same with a disk and two processors:",
            &[
                "cloud-hypervisor --api-socket /run/vm.sock --memory size=1G --cpus boot=2",
                "    --kernel /boot/vmlinuz --cmdline 'console=ttyS0 root=/dev/vda'",
                "    --disk path=root.img --serial tty --console off",
            ],
        ),
    ],
    see_also: &["ch-remote(1)", "ch-remote-exit-stats(1)", "exit-stats(1)"],
};

/// The client.
pub const CH_REMOTE: Page = Page {
    description: "Sends one request to the API socket of a virtual machine monitor and prints the \
        answer. exit-stats shows the machine's exits as the host's KVM counts them, exporter \
        serves those of all machines of a host to Prometheus.",
    exit_status: "0 on success, 1 if the monitor does not answer or refuses, 2 if the command line \
        is wrong.",
    examples: &[
        (
            "The reasons that occurred, the dearest first:",
            &["ch-remote --api-socket /run/vm.sock exit-stats --sort cycles"],
        ),
        (
            "What happens in ten seconds:",
            &[
                "ch-remote --api-socket /run/vm.sock exit-stats --format json >before",
                "sleep 10",
                "ch-remote --api-socket /run/vm.sock exit-stats --since before",
            ],
        ),
        (
            "A recording until the machine ends, drawn as a page:",
            &[
                "ch-remote --api-socket /run/vm.sock exit-stats record --until-shutdown -o boot.jsonl",
                "ch-remote exit-stats report boot.jsonl -o boot.html",
            ],
        ),
    ],
    see_also: &["cloud-hypervisor(1)", "exit-stats(1)"],
};

/// The reader in the guest.
pub const EXIT_STATS: Page = Page {
    description: "Runs in a virtual machine and asks the host's KVM, with the CPUID instruction \
        alone, how often this machine left to it, for what reasons and for how long. It needs no \
        privilege and no device. All virtual processors are summed. Each question is an exit itself \
        and is counted.",
    exit_status: "0 on success, 1 if the host does not count exits or the manual does not define \
        the reason, 2 if the command line is wrong.",
    examples: &[
        (
            "The reasons that occurred, most exits first:",
            &["exit-stats"],
        ),
        (
            "One reason, every two seconds:",
            &["exit-stats --reason CPUID --watch 2"],
        ),
    ],
    see_also: &["ch-remote-exit-stats(1)", "cpuid(1)"],
};

/// The page as troff.
pub fn render(command: &Command, page: Option<&Page>, date: &str) -> Result<Vec<u8>> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let mut text = Vec::new();
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .section("1")
        .date(date)
        .source(concat!("kvm-exit-stats ", env!("CARGO_PKG_VERSION")))
        .manual("Virtual machines");
    man.render_title(&mut text)?;
    // Lists of options stretch badly to both margins, and read worse hyphenated.
    let mut layout = Roff::new();
    layout.control("ad", ["l"]).control("nh", []);
    layout.to_writer(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    match page {
        Some(page) => section("DESCRIPTION", page.description).to_writer(&mut text)?,
        None => man.render_description_section(&mut text)?,
    }
    if command.get_arguments().next().is_some() {
        man.render_options_section(&mut text)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    if let Some(page) = page {
        section("EXIT STATUS", page.exit_status).to_writer(&mut text)?;
        let mut examples = Roff::new();
        examples.control("SH", ["EXAMPLES"]);
        for (purpose, lines) in page.examples {
            examples.control("PP", []).text([roman(*purpose)]);
            for line in *lines {
                examples.control("br", []).text([bold(*line)]);
            }
        }
        examples.to_writer(&mut text)?;
        section("SEE ALSO", &page.see_also.join(", ")).to_writer(&mut text)?;
    }
    Ok(text)
}

fn section(title: &str, text: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", [title]).text([roman(text)]);
    roff
}
