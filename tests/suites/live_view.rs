//! The live view on a terminal, and whoever else reads a VM for long, while the
//! host's counting, the VM and the VMM change behind them.

use std::fs::{self, File};
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::guest::Program;
use lab::vmm::{Machine, MachineSpec, request_tcp};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::modules::CountingOff;
use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "views",
    // The views are one wherever KVM counts; and counting is the whole host's.
    applies: Site::tries_devices,
    trials: trials![
        live_view_says_at_every_width_what_is_not_current,
        scrapes_show_no_counter_of_what_is_not_current,
    ],
};

/// Columns of the terminal.
const WIDTHS: [u16; 5] = [40, 60, 80, 100, 120];
const ROWS: u16 = 30;
/// How long a view may take to show what has changed.
const STEP: Duration = Duration::from_secs(60);
/// Between two readings of the view. Some things are said for that long only.
const INTERVAL: &str = "1";

/// What a terminal shows, as far as the live view makes use of one.
struct Screen {
    cells: Vec<Vec<char>>,
    row: usize,
    column: usize,
    /// Bytes of a character or of a sequence that is not complete.
    pending: Vec<u8>,
}

impl Screen {
    fn new() -> Screen {
        Screen {
            cells: vec![vec![' '; 200]; ROWS.into()],
            row: 0,
            column: 0,
            pending: Vec::new(),
        }
    }

    fn text(&self) -> String {
        let lines = self.cells.iter().map(|line| {
            let line: String = line.iter().collect();
            line.trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The same without line ends: a sentence may be wrapped.
    fn words(&self) -> String {
        let text = self.text();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn take(&mut self, byte: u8) {
        self.pending.push(byte);
        if self.pending[0] == 0x1b {
            let ends = match self.pending[..] {
                [_] => false,
                [_, b'['] => false,
                [_, b'[', ..] => (0x40..0x7f).contains(&byte),
                _ => true,
            };
            if ends {
                let sequence = std::mem::take(&mut self.pending);
                self.obey(&String::from_utf8_lossy(&sequence[1..]));
            }
            return;
        }
        let Ok(text) = std::str::from_utf8(&self.pending) else {
            // The rest of the character is to come.
            if self.pending.len() >= 4 {
                self.pending.clear();
            }
            return;
        };
        if let Some(shown) = text.chars().next().filter(|c| !c.is_control())
            && let Some(cell) = self
                .cells
                .get_mut(self.row)
                .and_then(|line| line.get_mut(self.column))
        {
            *cell = shown;
            self.column += 1;
        }
        self.pending.clear();
    }

    fn obey(&mut self, sequence: &str) {
        let Some(body) = sequence.strip_prefix('[') else {
            return;
        };
        let (arguments, command) = body.split_at(body.len().saturating_sub(1));
        match command {
            "H" => {
                let mut numbers = arguments.split(';').map(|n| n.parse().unwrap_or(1));
                let mut next = || numbers.next().unwrap_or(1usize).saturating_sub(1);
                (self.row, self.column) = (next(), next());
            }
            "J" => self.cells.iter_mut().for_each(|line| line.fill(' ')),
            _ => {}
        }
    }
}

/// `ch-remote exit-stats --watch` on a terminal of its own.
struct View {
    child: Child,
    main: File,
    screen: Screen,
}

impl Drop for View {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl View {
    fn open(site: &Site, socket: &Path) -> Result<View> {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&main)?;
        unlockpt(&main)?;
        let path = ptsname(&main, Vec::new())?.into_string()?;
        let terminal = File::options().read(true).write(true).open(path)?;
        let main = File::from(main);
        resize(&main, WIDTHS[0])?;
        rustix::io::ioctl_fionbio(&main, true)?;
        // It is the terminal that tells a program of another size.
        let child = Command::new("setsid")
            .arg("-c")
            .arg(site.bin().join("ch-remote"))
            .arg("--api-socket")
            .arg(socket)
            .args(["exit-stats", "--watch", INTERVAL])
            .env("NO_COLOR", "1")
            .stdin(terminal.try_clone()?)
            .stdout(terminal.try_clone()?)
            .stderr(terminal)
            .spawn()
            .context("Cannot start ch-remote")?;
        Ok(View {
            child,
            main,
            screen: Screen::new(),
        })
    }

    /// Waits until the screen is as it should be, looking at it after every few
    /// bytes: what comes and goes is seen however late it is read.
    fn wait_for(&mut self, what: &str, holds: impl Fn(&str) -> bool) -> Result<()> {
        let deadline = Instant::now() + STEP;
        while !holds(&self.screen.words()) {
            let mut bytes = [0; 64];
            match self.main.read(&mut bytes) {
                Ok(count) => bytes[..count]
                    .iter()
                    .for_each(|&byte| self.screen.take(byte)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    ensure!(
                        Instant::now() < deadline,
                        "{what} is not shown:\n{}",
                        self.screen.text()
                    );
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error).context("The view has ended"),
            }
        }
        Ok(())
    }

    /// The same at every width, each drawn from nothing.
    fn holds_at_every_width(&mut self, what: &str, holds: impl Fn(&str) -> bool) -> Result<()> {
        for columns in WIDTHS {
            self.redraw(columns)?;
            self.wait_for(&format!("{what}, at {columns} columns"), |screen| {
                holds(screen)
            })?;
        }
        Ok(())
    }

    /// Nothing of what was shown before stays.
    fn redraw(&mut self, columns: u16) -> Result<()> {
        resize(&self.main, columns + 1)?;
        resize(&self.main, columns)?;
        self.screen = Screen::new();
        Ok(())
    }
}

fn resize(main: &File, columns: u16) -> Result<()> {
    let size = Winsize {
        ws_row: ROWS,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(main, size).context("Cannot change the terminal's size")
}

fn send(machine: &Machine, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(machine.pid())?).context("No process")?;
    kill_process(pid, signal).context("Cannot send a signal")
}

/// A VMM with a guest that asks for ever, in a folder that one before it may have used.
fn busy(site: &Site, dir: &Path) -> Result<Machine> {
    let kernel = dir.join("guest.elf");
    fs::write(&kernel, Program::new().ask_for_ever()).context("Cannot write the guest")?;
    Machine::boot(&site.bin(), dir, &MachineSpec::tiny(&kernel))
}

fn counts(screen: &str) -> bool {
    screen.contains("/s exits: ") && screen.contains("CPUID") && !is_old(screen)
}

fn is_old(screen: &str) -> bool {
    ["NOT CURRENT", "ENDED", "FROZEN"]
        .iter()
        .any(|word| screen.contains(word))
}

fn live_view_says_at_every_width_what_is_not_current(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let machine = busy(site, &dir)?;
    let mut view = View::open(site, &machine.socket())?;
    view.holds_at_every_width("Counters of a VM that runs", counts)?;

    let off = CountingOff::now()?;
    view.holds_at_every_width("Counting that is off", |screen| {
        screen.contains("Counting is off") && !screen.contains("CPUID")
    })?;
    drop(off);
    view.wait_for("Counting that was switched", |screen| {
        screen.contains("Rates begin anew: counting was switched")
    })?;
    view.holds_at_every_width("What was not counted", |screen| {
        counts(screen) && screen.contains("were not counted by reason")
    })?;

    machine.must("PUT", "/api/v1/vm.reboot", None)?;
    view.wait_for("A reboot", |screen| {
        screen.contains("Rates begin anew: the VM was booted again")
    })?;
    view.holds_at_every_width("Counters after a reboot", |screen| {
        counts(screen) && !screen.contains("were not counted")
    })?;

    send(&machine, Signal::STOP)?;
    view.holds_at_every_width("A VMM that hangs", |screen| screen.contains("NOT CURRENT"))?;
    send(&machine, Signal::CONT)?;
    view.holds_at_every_width("A VMM that goes on", counts)?;

    machine.kill()?;
    view.holds_at_every_width("A VMM that is gone", |screen| {
        screen.contains("NOT CURRENT: no answer")
    })?;
    let machine = busy(site, &dir)?;
    view.wait_for("Another VMM", |screen| {
        screen.contains("Rates begin anew: the VM was booted again")
    })?;
    view.holds_at_every_width("Counters of another VMM", counts)?;

    machine.must("PUT", "/api/v1/vm.shutdown", None)?;
    view.holds_at_every_width("The end of the VM", |screen| screen.contains("ENDED"))?;
    machine.shut_down().map(drop)
}

/// An exporter of one VMM.
struct Exporter {
    child: Child,
    address: std::net::SocketAddr,
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Exporter {
    fn start(site: &Site, socket: &Path) -> Result<Exporter> {
        // A port that is free.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(site.bin().join("ch-remote"))
            .args(["exporter", "--listen", &address.to_string()])
            .arg(socket)
            .stdin(Stdio::null())
            .spawn()
            .context("Cannot start the exporter")?;
        Ok(Exporter { child, address })
    }

    /// Scrapes until the metrics are as they should be.
    fn wait_for(&self, what: &str, holds: impl Fn(&str) -> bool) -> Result<()> {
        let deadline = Instant::now() + STEP;
        loop {
            let scraped = request_tcp(self.address, "/metrics").map(|answer| answer.body);
            if scraped.as_ref().is_ok_and(|metrics| holds(metrics)) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{what}: {scraped:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The value of the only series of this name.
fn value(metrics: &str, name: &str) -> Option<f64> {
    let line = metrics.lines().find(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(['{', ' ']))
    })?;
    line.rsplit(' ').next()?.parse().ok()
}

fn scrapes_show_no_counter_of_what_is_not_current(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let machine = busy(site, &dir)?;
    let exporter = Exporter::start(site, &machine.socket())?;
    let counts = |metrics: &str| {
        metrics.contains("kvm_exits_total{")
            && value(metrics, "kvm_exit_stats_up") == Some(1.0)
            && value(metrics, "kvm_exit_stats_host_counts") == Some(1.0)
            && value(metrics, "kvm_exit_stats_running") == Some(1.0)
    };
    let says_nothing = |metrics: &str| {
        !metrics.contains("kvm_exits_total{") && !metrics.contains("kvm_vm_exits_total{")
    };
    let down = |metrics: &str, why: &str| {
        says_nothing(metrics)
            && value(metrics, "kvm_exit_stats_up") == Some(0.0)
            && metrics.contains(&format!("reason=\"{why}\"}} 1"))
    };
    exporter.wait_for("A VM that runs", counts)?;

    let off = CountingOff::now()?;
    exporter.wait_for("Counting that is off", |metrics| {
        !metrics.contains("kvm_exits_total{")
            && value(metrics, "kvm_exit_stats_host_counts") == Some(0.0)
    })?;
    drop(off);
    exporter.wait_for("Counting that is on", counts)?;

    send(&machine, Signal::STOP)?;
    exporter.wait_for("A VMM that hangs", |metrics| down(metrics, "timeout"))?;
    send(&machine, Signal::CONT)?;
    exporter.wait_for("A VMM that goes on", counts)?;

    // What the first VMM has counted is above all that the next one will have.
    let before = request_tcp(exporter.address, "/metrics")?.body;
    let before = value(&before, "kvm_vm_exits_total").context("No total")?;
    machine.kill()?;
    exporter.wait_for("A VMM that is gone", |metrics| down(metrics, "refused"))?;
    let machine = busy(site, &dir)?;
    exporter.wait_for("Another VMM", counts)?;
    let after = request_tcp(exporter.address, "/metrics")?.body;
    let after = value(&after, "kvm_vm_exits_total").context("No total")?;
    let own = machine.stats()?.totals.exits as f64;
    ensure!(
        after <= own,
        "{after} exits of a VM that has {own}; the one before had {before}"
    );

    machine.must("PUT", "/api/v1/vm.shutdown", None)?;
    exporter.wait_for("A VM that has ended", |metrics| {
        value(metrics, "kvm_exit_stats_running") == Some(0.0)
    })?;
    let csv = machine.ch_remote(&["exit-stats", "--format", "csv"])?;
    let said = String::from_utf8_lossy(&csv.stderr).into_owned();
    ensure!(
        said.contains("The VM has ended: these are its last counters"),
        "{csv:?}"
    );
    machine.must("PUT", "/api/v1/vm.delete", None)?;
    exporter.wait_for("A VMM without a VM", |metrics| down(metrics, "no_vm"))?;
    machine.shut_down().map(drop)
}
