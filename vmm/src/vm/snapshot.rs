//! Snapshots. A snapshot is a directory with `config.json`, the configuration;
//! `memory-ranges`, the content of guest memory; and `state.json`, everything
//! else. The state is written last, so a directory with a state is complete.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use api_client::config::VmConfig;
use instrumentation::table::Isa;
use instrumentation::user_exit::{
    CountState, RangeMap, RangeState, RecorderStateError, UserExitRecorder,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::machine::MachineState;
use crate::api::ErrorKind;
use crate::host_file::{self, Purpose};
use crate::memory::contents::{self, SavedRegion};
use crate::memory::{GuestRam, MemoryError};
use crate::state::StateError;

const CONFIG: &str = "config.json";
const MEMORY: &str = "memory-ranges";
const STATE: &str = "state.json";
/// What a file is called until all of it is there.
const UNFINISHED: &str = ".unfinished";

/// How state.json is to be read. Grows with every change that an older reader
/// would misunderstand.
const FORMAT: u32 = 1;
/// Bytes of a description at most: 64 KiB for each of 4,096 vCPUs.
const LARGEST_DESCRIPTION: u64 = 256 << 20;

/// Why a machine is neither saved nor restored.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not a URL that is supported.
    #[error(
        "{0:?} is not the URL of a snapshot: file:// and the absolute path of a directory are expected"
    )]
    Url(String),
    /// Not a directory.
    #[error("{} is not a directory", .0.display())]
    NoDirectory(PathBuf),
    /// Something is there that would be overwritten.
    #[error("{} already contains a snapshot", .0.display())]
    Exists(PathBuf),
    /// A guest that runs.
    #[error("The VM is running: pause it first")]
    NotPaused,
    /// A guest that ended and was not looked after yet.
    #[error("The guest has switched itself off or reset itself: resume the VM first")]
    Deferred,
    /// Nothing is there.
    #[error("{} contains no snapshot: {STATE} is missing", .0.display())]
    Missing(PathBuf),
    /// The host.
    #[error("Cannot {operation} {}", .path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not what was written.
    #[error("{} is damaged", .0.display())]
    Damaged(PathBuf, #[source] serde_json::Error),
    /// Another version's.
    #[error(
        "The snapshot has the format {found}, made by version {version}; this version reads {FORMAT}"
    )]
    Format {
        /// What it is.
        found: u32,
        /// Who made it.
        version: String,
    },
    /// Another kind of host's.
    #[error("The snapshot was made on a host with {saved}, and this one has {here}")]
    Isa {
        /// There.
        saved: String,
        /// Here.
        here: String,
    },
    /// A state that contradicts itself or the configuration.
    #[error("The snapshot is inconsistent")]
    State(#[from] StateError),
    /// Counts that make no sense.
    #[error("The snapshot's counts of exits to user space are not valid")]
    Recorder(#[from] RecorderStateError),
    /// A device that had descriptors.
    #[error("The network device {0} was given file descriptors: net_fds must give it new ones")]
    NetDescriptors(String),
    /// Descriptors for a device that is not there.
    #[error(
        "net_fds names {0}, which is not a network device with file descriptors in this snapshot"
    )]
    NoNet(String),
    /// The memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl SnapshotError {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            SnapshotError::Missing(_) => ErrorKind::NotFound,
            SnapshotError::Exists(_) | SnapshotError::Deferred => ErrorKind::Conflict,
            SnapshotError::Url(_)
            | SnapshotError::NoDirectory(_)
            | SnapshotError::Damaged(..)
            | SnapshotError::Format { .. }
            | SnapshotError::Isa { .. }
            | SnapshotError::State(_)
            | SnapshotError::Recorder(_)
            | SnapshotError::NetDescriptors(_)
            | SnapshotError::NoNet(_)
            | SnapshotError::Memory(MemoryError::OnDemand) => ErrorKind::BadRequest,
            // As Cloud Hypervisor has it for a wrong state.
            SnapshotError::NotPaused
            | SnapshotError::File { .. }
            | SnapshotError::Memory(
                MemoryError::Map(..)
                | MemoryError::HugePages(..)
                | MemoryError::Node(..)
                | MemoryError::File(..)
                | MemoryError::Arrange(_)
                | MemoryError::Window(_)
                | MemoryError::Restore(_)
                | MemoryError::Hypervisor(_),
            ) => ErrorKind::Internal,
        }
    }
}

/// Everything that is kept of a machine beside its configuration and the content
/// of its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVm {
    format: u32,
    /// Which version wrote it.
    version: String,
    pub(super) isa: Option<Isa>,
    /// The boot of the host that it ran on.
    host_boot: String,
    /// The boot of the guest, as its statistics tell boots apart.
    pub(super) boot_id: String,
    pub(super) memory: Vec<SavedRegion>,
    pub(super) machine: MachineState,
    ranges: Vec<RangeState>,
    recorders: Vec<Vec<CountState>>,
}

impl SavedVm {
    /// The state of a machine, and what its vCPUs' recorders have counted.
    pub(super) fn new<'a>(
        machine: MachineState,
        isa: Option<Isa>,
        boot_id: String,
        ram: &GuestRam,
        ranges: &RangeMap,
        recorders: impl Iterator<Item = &'a UserExitRecorder>,
    ) -> Self {
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            isa,
            host_boot: host_boot(),
            boot_id,
            memory: contents::regions(ram),
            machine,
            ranges: ranges.save(),
            recorders: recorders.map(UserExitRecorder::save).collect(),
        }
    }

    /// Whether the host has not been started anew since.
    pub(super) fn is_of_this_boot(&self) -> bool {
        let boot = host_boot();
        !boot.is_empty() && self.host_boot == boot
    }

    /// The recorders, one for each vCPU, and the names in them.
    pub(super) fn recorders(&self) -> Result<(Vec<UserExitRecorder>, RangeMap), SnapshotError> {
        let ranges = RangeMap::restore(&self.ranges)?;
        let recorders = self.recorders.iter();
        let recorders = recorders
            .map(|counts| UserExitRecorder::restore(counts, &ranges))
            .collect::<Result<_, _>>()?;
        Ok((recorders, ranges))
    }
}

/// A number for each start of the host; empty if it tells none.
fn host_boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The directory that a client names.
pub fn directory(url: &str) -> Result<PathBuf, SnapshotError> {
    let path = url.strip_prefix("file://").map(PathBuf::from);
    let path = path.filter(|path| path.is_absolute());
    let path = path.ok_or_else(|| SnapshotError::Url(url.to_owned()))?;
    match path.is_dir() {
        true => Ok(path),
        false => Err(SnapshotError::NoDirectory(path)),
    }
}

/// Writes a snapshot into `directory`. Nobody changes the memory meanwhile. If that
/// fails, nothing of it stays.
pub(super) fn write(
    directory: &Path,
    config: &VmConfig,
    state: &SavedVm,
    ram: &GuestRam,
) -> Result<(), SnapshotError> {
    let names = [CONFIG, MEMORY, STATE];
    if names.iter().any(|name| directory.join(name).exists()) {
        return Err(SnapshotError::Exists(directory.to_owned()));
    }
    let written = || {
        // It may be edited.
        write_file(directory, CONFIG, |file| {
            write_line(file, &serde_json::to_vec_pretty(config)?)
        })?;
        write_file(directory, MEMORY, |file| contents::save(ram, file))?;
        write_file(directory, STATE, |file| {
            write_line(file, &serde_json::to_vec(state)?)
        })
    };
    written().inspect_err(|_| {
        for name in names {
            // What is not there need not go.
            let _ = std::fs::remove_file(directory.join(name));
        }
    })
}

fn write_line(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.write_all(b"\n")
}

/// A file that has its name only once its content is on the disk.
fn write_file(
    directory: &Path,
    name: &str,
    fill: impl FnOnce(&File) -> io::Result<()>,
) -> Result<(), SnapshotError> {
    let path = directory.join(name);
    let unfinished = directory.join(format!("{name}{UNFINISHED}"));
    // Left by somebody who was killed; a link or a FIFO is not followed.
    let _ = std::fs::remove_file(&unfinished);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)
        .and_then(|file| {
            fill(&file)?;
            file.sync_all()?;
            std::fs::rename(&unfinished, &path)?;
            File::open(directory)?.sync_all()
        });
    written.map_err(|source| {
        let _ = std::fs::remove_file(&unfinished);
        SnapshotError::File {
            operation: "write",
            path,
            source,
        }
    })
}

/// A snapshot that is there, read as far as its memory.
pub(super) struct Snapshot {
    pub(super) config: VmConfig,
    pub(super) state: SavedVm,
    pub(super) memory: File,
}

/// Just enough of a state to see whether the rest can be read.
#[derive(Deserialize)]
struct Preamble {
    format: u32,
    #[serde(default)]
    version: String,
}

/// Opens the snapshot in `directory`, for a host with `isa`.
pub(super) fn open(directory: &Path, isa: Option<Isa>) -> Result<Snapshot, SnapshotError> {
    let (path, bytes) = match read(directory, STATE) {
        Err(SnapshotError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(SnapshotError::Missing(directory.to_owned()));
        }
        other => other?,
    };
    let preamble: Preamble = parse(&path, &bytes)?;
    if preamble.format != FORMAT {
        return Err(SnapshotError::Format {
            found: preamble.format,
            version: preamble.version,
        });
    }
    let state: SavedVm = parse(&path, &bytes)?;
    if state.isa != isa {
        let name = |isa: Option<Isa>| {
            isa.map_or("no instruction set that is known", |isa| isa.as_str())
                .to_owned()
        };
        return Err(SnapshotError::Isa {
            saved: name(state.isa),
            here: name(isa),
        });
    }
    let (path, bytes) = read(directory, CONFIG)?;
    let config = parse(&path, &bytes)?;
    let path = directory.join(MEMORY);
    let memory =
        host_file::open(&path, Purpose::Content).map_err(|source| SnapshotError::File {
            operation: "open",
            path: path.clone(),
            source,
        })?;
    // Before anything is made of it.
    contents::check_length(&memory, &state.memory).map_err(|source| SnapshotError::File {
        operation: "use",
        path,
        source,
    })?;
    Ok(Snapshot {
        config,
        state,
        memory,
    })
}

fn read(directory: &Path, name: &str) -> Result<(PathBuf, Vec<u8>), SnapshotError> {
    let path = directory.join(name);
    let mut bytes = Vec::new();
    let read = host_file::open(&path, Purpose::Content).and_then(|file| {
        // One more than fits, to tell that it does not.
        let length = file.take(LARGEST_DESCRIPTION + 1).read_to_end(&mut bytes)?;
        match length as u64 > LARGEST_DESCRIPTION {
            true => Err(io::ErrorKind::FileTooLarge.into()),
            false => Ok(()),
        }
    });
    match read {
        Ok(()) => Ok((path, bytes)),
        Err(source) => Err(SnapshotError::File {
            operation: "read",
            path,
            source,
        }),
    }
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, SnapshotError> {
    serde_json::from_slice(bytes).map_err(|error| SnapshotError::Damaged(path.to_owned(), error))
}
