//! The demonstration: a Linux guest, and its exits seen from three sides.

use std::io::Write;

use anyhow::{Context, Result};
use lab::guest;

use crate::site::Site;

/// Marks that the demonstration's sections begin with; `lab` makes headings
/// of them and a report.
const SECTION: &str = "@section ";

/// Lines of a long text that are enough to see what it is.
const EXCERPT: usize = 24;

/// Boots the guest and prints what can be read.
pub fn show(site: &Site) -> Result<()> {
    let (io, cpuid) = (site.numbers().io, site.numbers().cpuid);
    let busiest = match site.isa() {
        instrumentation::table::Isa::Vmx => 48,
        instrumentation::table::Isa::Svm => 0x400,
    };
    let script = format!(
        "dmesg | head -n 3; dmesg | grep -E 'Hypervisor|kvm-clock: Using|smp: Brought|Run /init'\n\
         echo \"$(uname -sr), up $(cut -d' ' -f1 /proc/uptime) s\"\n\
         exit-stats --format leaves >/tmp/leaves\n\
         echo '@part leaves'\n\
         sed -n 1p /tmp/leaves; grep -E '^0x4ffffff[bef]' /tmp/leaves\n\
         grep -E '  ({io:#010x}|{cpuid:#010x}|{busiest:#010x})  ' /tmp/leaves\n\
         echo '@part cpuid'\n\
         echo '# cpuid -1 -l 0x4ffffffd -s {busiest}'; cpuid -1 -l 0x4ffffffd -s {busiest}\n\
         echo '@part reader'\n\
         echo '# exit-stats'; exit-stats\n\
         echo '@part end'\n\
         read -r word\n"
    );
    section("The guest boots")?;
    let mut machine = site.boot_linux(&script, 1)?;
    machine.wait_for("@part end", site.linux_deadline())?;
    let serial = machine.serial().text();
    let up = serial
        .find(guest::UP)
        .context("The guest did not come up")?;
    print_part(
        &serial[up..],
        guest::UP,
        "@part leaves",
        "Seconds until the first program: ",
    )?;
    section("The leaves, as the guest reads them")?;
    print_part(&serial, "@part leaves\n", "@part cpuid", "")?;
    print_part(&serial, "@part cpuid\n", "@part reader", "")?;
    print_part(&serial, "@part reader\n", "@part end", "")?;
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    section("The operator reads them, the VM paused: ch-remote exit-stats")?;
    println!("(More than above: the guest's reading and printing of that exited too.)\n");
    print!("{}", machine.ch_remote_text(&["exit-stats"])?);
    section("And over REST: GET /exit-stats?nonzero=true, its beginning")?;
    let body = machine.must("GET", "/exit-stats?nonzero=true", None)?.body;
    for line in indented(&body).lines().take(EXCERPT) {
        println!("{line}");
    }
    println!("…");
    section("KVM's own count of the same guest's exits, from debugfs")?;
    println!("{}", machine.debugfs_exits()?);
    machine.must("PUT", "/api/v1/vm.resume", None)?;
    machine.type_line("")?;
    let finished = machine.wait_for_end()?;
    section("The guest powered off; the VMM's exit status")?;
    println!("{}", finished.status);
    Ok(())
}

fn section(title: &str) -> Result<()> {
    println!("{SECTION}{title}");
    std::io::stdout().flush().context("Cannot print")
}

fn print_part(text: &str, from: &str, to: &str, lead: &str) -> Result<()> {
    let (_, rest) = text
        .split_once(from)
        .with_context(|| format!("No {from:?}"))?;
    let (part, _) = rest.split_once(to).with_context(|| format!("No {to:?}"))?;
    println!("{lead}{}", part.trim_end());
    Ok(())
}

/// JSON on lines of its own, its order kept.
fn indented(json: &str) -> String {
    let mut text = String::new();
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for character in json.chars() {
        if quoted {
            text.push(character);
            quoted = escaped || character != '"';
            escaped = !escaped && character == '\\';
            continue;
        }
        let break_line = |text: &mut String, depth: usize| {
            text.push('\n');
            text.push_str(&"  ".repeat(depth));
        };
        match character {
            '{' | '[' => {
                depth += 1;
                text.push(character);
                break_line(&mut text, depth);
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                break_line(&mut text, depth);
                text.push(character);
            }
            ',' => {
                text.push(character);
                break_line(&mut text, depth);
            }
            ':' => text.push_str(": "),
            '"' => {
                quoted = true;
                text.push(character);
            }
            c if c.is_whitespace() => {}
            c => text.push(c),
        }
    }
    text
}
