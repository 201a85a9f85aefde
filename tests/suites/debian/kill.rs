//! The VMM dies while its guest writes: what the guest has flushed is there.
//!
//! A writer in the guest scatters numbered records over a disk, flushes after
//! every few of them and only then says how far it came.

use std::fs;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::disk::images;
use super::guest::{Guest, STEP_TIMEOUT, Spec, WORK, hosts, run_on_host};
use crate::site::Site;

/// Bytes of a record: its number, again and again.
const RECORD: usize = 4096;
/// Records that a disk of 256 MiB has room for, and the distance of one from
/// the next; odd, so that each place is taken once.
const PLACES: u64 = 65536;
const STRIDE: u64 = 4099;

/// In Perl, as it is in every Debian.
const WRITER: &str = "use IO::Handle; $| = 1; my ($disk, $name, $n) = @ARGV; \
    open my $f, q(+<), $disk or die; \
    for (;; $n++) { \
        sysseek $f, $n * 4099 % 65536 * 4096, 0; \
        syswrite($f, pack(q(Q<), $n) x 512) == 4096 or die; \
        if ($n % 3 == 2) { $f->sync or die; print q(@flushed ), qq($name $n\\n) } \
    }";

/// Says how many records up to a number are not what they should be.
const READER: &str = "my ($disk, $last) = @ARGV; my ($bad, $read) = (0, q()); \
    open my $f, q(<), $disk or die; \
    for my $n (0 .. $last) { \
        sysseek $f, $n * 4099 % 65536 * 4096, 0; sysread $f, $read, 4096; \
        $bad++ if $read ne pack(q(Q<), $n) x 512; \
    } \
    print qq($bad\\n)";

/// How often the writers must have flushed before each kill.
const FLUSHES: [u64; 3] = [20, 41, 77];

/// The writers' disks.
#[derive(Clone, Copy)]
struct Disk {
    name: &'static str,
    device: &'static str,
}

const DISKS: [Disk; 2] = [
    Disk {
        name: "raw",
        device: "/dev/vdb",
    },
    Disk {
        name: "qcow2",
        device: "/dev/vdc",
    },
];

/// The last record that a writer says it has flushed.
fn flushed(shown: &str, disk: Disk) -> Option<u64> {
    let begin = format!("@flushed {} ", disk.name);
    // What stands behind the last line's end may be half a number.
    let (whole, _) = shown.rsplit_once('\n')?;
    whole
        .lines()
        .filter_map(|line| line.strip_prefix(&begin)?.parse().ok())
        .next_back()
}

/// Writes to both disks until each was flushed so often, and kills the VMM.
/// Returns the last record of each that is promised.
fn killed(mut guest: Guest, from: [u64; 2], flushes: u64) -> Result<[u64; 2]> {
    let mut line = String::new();
    for (disk, from) in DISKS.into_iter().zip(from) {
        line.push_str(&format!(
            "perl -e '{WRITER}' {} {} {from} & ",
            disk.device, disk.name
        ));
    }
    guest.begin(&format!("{line} wait"))?;
    let deadline = Instant::now() + STEP_TIMEOUT;
    loop {
        let shown = guest.serial().text();
        let done = DISKS.iter().zip(from).all(|(&disk, from)| {
            flushed(&shown, disk).is_some_and(|last| last >= from + 3 * flushes)
        });
        if done {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "The writers are slow\n{}",
            guest.serial().tail()
        );
        sleep(Duration::from_millis(50));
    }
    let serial = guest.serial().path().to_owned();
    guest.kill()?;
    let shown = fs::read_to_string(&serial).context("Cannot read the serial console")?;
    let mut last = [0; 2];
    for (last, disk) in last.iter_mut().zip(DISKS) {
        *last = flushed(&shown.replace('\r', ""), disk).context("Nothing was flushed")?;
    }
    Ok(last)
}

/// Looks at the images without our VMM.
fn intact(raw: &str, qcow2: &str, last: [u64; 2]) -> Result<()> {
    // Space that nothing refers to is no damage.
    let check = hosts("qemu-img", &["check", qcow2]).output()?;
    ensure!(
        matches!(check.status.code(), Some(0 | 3)),
        "qemu-img says {}",
        String::from_utf8_lossy(&check.stdout)
    );
    let plain = format!("{WORK}/plain.raw");
    run_on_host("qemu-img", &["convert", "-O", "raw", qcow2, &plain])?;
    for ((path, disk), last) in [raw, &plain].into_iter().zip(DISKS).zip(last) {
        let file = fs::File::open(path).with_context(|| format!("Cannot open {path}"))?;
        for number in 0..=last {
            let mut record = [0; RECORD];
            file.read_exact_at(&mut record, number * STRIDE % PLACES * RECORD as u64)?;
            ensure!(
                record.chunks(8).all(|word| word == number.to_le_bytes()),
                "Record {number} of {last} was flushed and is not on the {} disk",
                disk.name
            );
        }
    }
    fs::remove_file(&plain).context("Cannot remove the plain copy")
}

pub fn what_was_flushed_survives_a_kill(site: &Site) -> Result<()> {
    let [raw, qcow2] = images()?;
    let spec = Spec::shell().with_disks(&[
        format!("path={raw},image_type=raw"),
        format!("path={qcow2}"),
    ]);
    let mut guest = Guest::boot(site, &spec)?;
    let mut next = [0; 2];
    for flushes in FLUSHES {
        let last = killed(guest, next, flushes)?;
        intact(&raw, &qcow2, last)?;
        guest = Guest::boot(site, &spec)?;
        for (disk, last) in DISKS.into_iter().zip(last) {
            let bad = guest.run(&format!("perl -e '{READER}' {} {last}", disk.device))?;
            ensure!(
                bad == "0",
                "{bad} of {last} records that were flushed are gone from the {} disk",
                disk.name
            );
        }
        next = last.map(|last| last + 1);
    }
    Ok(())
}
