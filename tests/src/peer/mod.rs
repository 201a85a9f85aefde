//! QEMU as a VMM that knows nothing of us, on a KVM host: its command line,
//! its monitor and the guest in it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::console::Console;

mod qmp;

pub use qmp::Figures;
use qmp::Qmp;

/// The distribution's build with one accelerator, KVM, and few devices.
pub const PROGRAM: &str = "/usr/bin/qemu-system-x86_64-microvm";

/// The distribution's build with all devices, on PCI too.
pub const WHOLE_PROGRAM: &str = "/usr/bin/qemu-system-x86_64";

/// How long its monitor may take to come up.
const MONITOR_UP: Duration = Duration::from_secs(60);

/// What to boot.
#[derive(Clone, Debug)]
pub struct PeerSpec<'a> {
    /// Kernel or tiny guest.
    pub kernel: &'a Path,
    /// Initramfs and kernel command line, if any.
    pub linux: Option<(&'a Path, &'a str)>,
    /// CPU model, such as `host`.
    pub cpu: &'a str,
    /// vCPUs.
    pub vcpus: u32,
}

/// A running QEMU; killed when dropped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    dir: PathBuf,
    serial: Console,
    qmp: Qmp,
}

impl Peer {
    /// Whether this host has the program.
    pub fn is_here() -> bool {
        Path::new(PROGRAM).exists()
    }

    /// Starts it with a guest. `dir` is the machine's own.
    pub fn boot(dir: &Path, spec: &PeerSpec<'_>) -> Result<Peer> {
        let mut peer = Peer::ready(dir, spec)?;
        peer.go_on()?;
        Ok(peer)
    }

    /// Starts it with a guest that has not executed anything yet.
    pub fn ready(dir: &Path, spec: &PeerSpec<'_>) -> Result<Peer> {
        let monitor = dir.join("qmp.sock");
        let serial = dir.join("serial.log");
        let mut qemu = Command::new(PROGRAM);
        qemu.args(["-machine", "microvm,accel=kvm,rtc=on", "-nodefaults"])
            .args(["-cpu", spec.cpu, "-m", "256"])
            .args(["-smp", &spec.vcpus.to_string(), "-display", "none", "-S"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()))
            .arg("-serial")
            .arg(format!("file:{}", serial.display()))
            .arg("-kernel")
            .arg(spec.kernel);
        if let Some((initramfs, cmdline)) = spec.linux {
            qemu.arg("-initrd")
                .arg(initramfs)
                .args(["-append", cmdline]);
        }
        let said = dir.join("stderr.log");
        let mut child = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&said)?)
            .spawn()
            .with_context(|| format!("Cannot start {PROGRAM}"))?;
        match connect(&mut child, &monitor) {
            Ok(qmp) => Ok(Peer {
                child,
                dir: dir.to_owned(),
                serial: Console::new(&serial),
                qmp,
            }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.context(fs::read_to_string(said).unwrap_or_default()))
            }
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The guest's serial console.
    pub fn serial(&self) -> &Console {
        &self.serial
    }

    /// What it wrote to standard error.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.dir.join("stderr.log")).unwrap_or_default()
    }

    /// Waits until the serial console carried this many bytes.
    pub fn wait_for_bytes(&mut self, count: u64, within: Duration) -> Result<Vec<u8>> {
        let Peer { child, serial, .. } = self;
        let bytes = serial.wait_for_bytes(count, within, || matches!(child.try_wait(), Ok(None)));
        bytes.with_context(|| format!("QEMU said: {}", self.stderr().trim()))
    }

    /// Waits for a line on the serial console.
    pub fn wait_for(&mut self, needle: &str, within: Duration) -> Result<String> {
        let Peer { child, serial, .. } = self;
        let line = serial.wait_for(needle, within, || matches!(child.try_wait(), Ok(None)));
        line.with_context(|| format!("QEMU said: {}", self.stderr().trim()))
    }

    /// Lets the vCPUs run.
    pub fn go_on(&mut self) -> Result<()> {
        self.qmp.execute("cont", &json!({}))?;
        Ok(())
    }

    /// Takes all vCPUs out of the guest, and leaves them there.
    pub fn stop(&mut self) -> Result<()> {
        self.qmp.execute("stop", &json!({}))?;
        Ok(())
    }

    /// KVM's figures of each vCPU, as QEMU's own command gives them.
    pub fn query_stats(&mut self) -> Result<Vec<Figures>> {
        let all_of_kvm = json!({"target": "vcpu", "providers": [{"provider": "kvm"}]});
        qmp::vcpu_figures(&self.qmp.execute("query-stats", &all_of_kvm)?)
    }

    /// What QEMU's own command says that KVM's figures of vCPUs are, by name.
    pub fn query_stats_schemas(&mut self) -> Result<Figures> {
        let answer = self
            .qmp
            .execute("query-stats-schemas", &json!({"provider": "kvm"}))?;
        let vcpu = answer
            .as_array()
            .into_iter()
            .flatten()
            .find(|schema| schema["target"] == "vcpu")
            .context("There is no schema of vCPUs")?;
        vcpu["stats"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|figure| {
                let name = figure["name"].as_str().context("A figure has no name")?;
                Ok((name.to_owned(), figure.clone()))
            })
            .collect()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(child: &mut Child, monitor: &Path) -> Result<Qmp> {
    let deadline = Instant::now() + MONITOR_UP;
    loop {
        match Qmp::connect(monitor) {
            Ok(qmp) => return Ok(qmp),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => {}
        }
        if let Some(status) = child.try_wait()? {
            bail!("QEMU ended with {status}");
        }
        sleep(Duration::from_millis(20));
    }
}

/// A list of a figure, in the order of KVM's buckets: QEMU 7.2 makes the list
/// of each histogram by putting one element before the other, so that the last
/// bucket comes first.
pub fn in_kvms_order(figure: &Value) -> Result<Vec<u64>> {
    figure
        .as_array()
        .context("A histogram is no list")?
        .iter()
        .rev()
        .map(|bucket| bucket.as_u64().context("A bucket is no number"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_first_element_is_kvms_last_bucket() {
        assert_eq!(in_kvms_order(&json!([3, 2, 1])).unwrap(), [1, 2, 3]);
        assert!(in_kvms_order(&json!(7)).is_err());
        assert!(in_kvms_order(&json!([1.5])).is_err());
    }
}
