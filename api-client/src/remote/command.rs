//! Cloud Hypervisor's own subcommands: a request, its body printed as it came.

use std::fs;
use std::io::Read;
use std::os::fd::RawFd;
use std::str::FromStr;

use serde::Serialize;

use super::Command;
use super::output::{Failure, print};
use crate::client::{Client, Method};
use crate::config::{
    DiskConfig, NetConfig, RestoreConfig, VmConfig, VmSnapshotConfig, VsockConfig,
};
use crate::options::{OptionError, parse_size};
use crate::types::{RemoveDevice, VmResize, VmResizeDisk, VmResizeZone};

/// The request behind a subcommand; `None` for one that is more than that.
fn request(command: &Command) -> Option<(Method, &'static str)> {
    Some(match command {
        Command::AddDisk { .. } => (Method::Put, "vm.add-disk"),
        Command::AddNet { .. } => (Method::Put, "vm.add-net"),
        Command::AddVsock { .. } => (Method::Put, "vm.add-vsock"),
        Command::Boot => (Method::Put, "vm.boot"),
        Command::Counters => (Method::Get, "vm.counters"),
        Command::Create { .. } => (Method::Put, "vm.create"),
        Command::Delete => (Method::Put, "vm.delete"),
        Command::ExitStats(_) | Command::Exporter(_) | Command::Inspect(_) => return None,
        Command::Info => (Method::Get, "vm.info"),
        Command::Nmi => (Method::Put, "vm.nmi"),
        Command::Pause => (Method::Put, "vm.pause"),
        Command::Ping => (Method::Get, "vmm.ping"),
        Command::PowerButton => (Method::Put, "vm.power-button"),
        Command::Reboot => (Method::Put, "vm.reboot"),
        Command::Resize { .. } => (Method::Put, "vm.resize"),
        Command::ResizeDisk { .. } => (Method::Put, "vm.resize-disk"),
        Command::ResizeZone { .. } => (Method::Put, "vm.resize-zone"),
        Command::Resume => (Method::Put, "vm.resume"),
        Command::RemoveDevice { .. } => (Method::Put, "vm.remove-device"),
        Command::Restore { .. } => (Method::Put, "vm.restore"),
        Command::Shutdown => (Method::Put, "vm.shutdown"),
        Command::Snapshot { .. } => (Method::Put, "vm.snapshot"),
        Command::ShutdownVmm => (Method::Put, "vmm.shutdown"),
    })
}

/// Sends the request and prints the answer.
pub fn run(client: &Client, command: &Command) -> Result<(), Failure> {
    // A number of this process means nothing to the server: the descriptor
    // itself is sent.
    let mut descriptors = Vec::new();
    let body = match command {
        Command::AddDisk { disk } => Some(device::<DiskConfig>(disk)?),
        Command::AddNet { net } => {
            let mut net: NetConfig = parsed(net)?;
            descriptors = net.fds.take().unwrap_or_default();
            Some(encode(&net)?)
        }
        Command::AddVsock { vsock } => Some(device::<VsockConfig>(vsock)?),
        Command::Create { path } => {
            let body = configuration(path)?;
            descriptors = named_descriptors(&body);
            Some(body)
        }
        Command::RemoveDevice { id } => Some(encode(&RemoveDevice { id: id.clone() })?),
        Command::Restore { restore } => {
            let mut restore: RestoreConfig = parsed(restore)?;
            for net in restore.net_fds.iter_mut().flatten() {
                descriptors.extend(net.fds.take().unwrap_or_default());
            }
            Some(encode(&restore)?)
        }
        Command::Snapshot { destination_url } => Some(encode(&VmSnapshotConfig {
            destination_url: destination_url.clone(),
        })?),
        Command::Resize {
            cpus,
            memory,
            balloon,
        } => Some(encode(&VmResize {
            desired_vcpus: *cpus,
            desired_ram: optional_size("--memory", memory.as_deref())?,
            desired_balloon: optional_size("--balloon", balloon.as_deref())?,
        })?),
        Command::ResizeDisk { disk, size: text } => Some(encode(&VmResizeDisk {
            id: disk.clone(),
            desired_size: size("--size", text)?,
        })?),
        Command::ResizeZone { id, size: text } => Some(encode(&VmResizeZone {
            id: id.clone(),
            desired_ram: size("--size", text)?,
        })?),
        _ => None,
    };
    let Some((method, resource)) = request(command) else {
        return Ok(());
    };
    let target = format!("/api/v1/{resource}");
    let response = client.request_with(method, &target, body.as_deref(), &descriptors)?;
    if !response.is_success() {
        return Err(Failure::from_response(&response));
    }
    match response.body {
        Some(body) => print(&format!("{body}\n")),
        None => Ok(()),
    }
}

/// A device as the VMM's command line describes it, as JSON.
fn device<T>(text: &str) -> Result<Vec<u8>, Failure>
where
    T: FromStr<Err = OptionError> + Serialize,
{
    encode(&parsed::<T>(text)?)
}

fn parsed<T: FromStr<Err = OptionError>>(text: &str) -> Result<T, Failure> {
    text.parse()
        .map_err(|error| Failure::Line(format!("Cannot understand {text:?}: {error}")))
}

fn optional_size(flag: &str, text: Option<&str>) -> Result<Option<u64>, Failure> {
    text.map(|text| size(flag, text)).transpose()
}

fn size(flag: &str, text: &str) -> Result<u64, Failure> {
    parse_size(text).ok_or_else(|| Failure::Line(format!("{flag}: {text:?} is no size")))
}

fn encode(body: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(body).map_err(|error| Failure::Line(format!("Cannot send: {error}")))
}

/// The descriptors that a configuration's network devices name, in order.
fn named_descriptors(body: &[u8]) -> Vec<RawFd> {
    // What is no configuration is the server's to refuse.
    let config: VmConfig = serde_json::from_slice(body).unwrap_or_default();
    let nets = config.net.into_iter().flatten();
    nets.flat_map(|net| net.fds.unwrap_or_default()).collect()
}

/// Reads a configuration. Text that is not JSON at all is told of here, in one
/// line and with the name of the file; the rest is the server's to judge.
fn configuration(path: &str) -> Result<Vec<u8>, Failure> {
    let (name, bytes) = match path {
        "-" => {
            let mut bytes = Vec::new();
            let read = std::io::stdin().lock().read_to_end(&mut bytes);
            ("standard input", read.map(|_| bytes))
        }
        path => (path, fs::read(path)),
    };
    let bytes = bytes.map_err(|error| Failure::Line(format!("Cannot read {name}: {error}")))?;
    serde_json::from_slice::<serde::de::IgnoredAny>(&bytes)
        .map_err(|error| Failure::Line(format!("{name} is not valid JSON: {error}")))?;
    Ok(bytes)
}
