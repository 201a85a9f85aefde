//! Recordings: a VM's exits over time, as JSON lines.
//!
//! The first line is a [`Header`], every further one a [`Sample`] with what
//! happened since the sample before it; the first sample holds everything since
//! boot. Rows that did not move are left out, so a quiet VM costs few bytes, a
//! recorder that is killed leaves a file that is whole up to its last line, and
//! `jq` reads it.

use std::io::{self, BufRead, Write};

use instrumentation::snapshot::{DeltaError, ExitSnapshot, Query};
use serde::{Deserialize, Serialize};

/// What [`Header::format`] says.
pub const FORMAT: &str = "exit-stats-recording";
/// The version that this code writes and reads.
pub const VERSION: u32 = 1;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Always [`FORMAT`].
    pub format: String,
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// The VM, by the path of its socket or whatever its operator calls it.
    pub vm: String,
    /// Milliseconds between samples, as asked for.
    pub interval_ms: u64,
}

/// A further line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Milliseconds since the recording began.
    pub ms: u64,
    /// What happened since the sample before.
    pub delta: ExitSnapshot,
}

/// A whole recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// The first line.
    pub header: Header,
    /// The others.
    pub samples: Vec<Sample>,
}

/// Why a file is not a recording, or cannot go on being one.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// Reading failed.
    #[error("Cannot read the recording")]
    Read(#[source] io::Error),
    /// Writing failed; what was written before is whole.
    #[error("Cannot write the recording")]
    Write(#[source] io::Error),
    /// A line is not what it should be.
    #[error("Line {line} is not part of a recording")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What the JSON parser says.
        #[source]
        source: serde_json::Error,
    },
    /// The first line names another format or version.
    #[error("Not a recording of exit statistics in version {VERSION}")]
    Format,
    /// The VM was rebooted, or counting was switched on or off.
    #[error(transparent)]
    Delta(#[from] DeltaError),
}

/// Writes a recording, sample by sample.
#[derive(Debug)]
pub struct Recorder<W> {
    out: W,
    last: Option<ExitSnapshot>,
}

impl<W: Write> Recorder<W> {
    /// Begins a recording.
    pub fn new(mut out: W, vm: &str, interval_ms: u64) -> Result<Recorder<W>, RecordingError> {
        let header = Header {
            format: FORMAT.into(),
            version: VERSION,
            vm: vm.into(),
            interval_ms,
        };
        write_line(&mut out, &header)?;
        Ok(Recorder { out, last: None })
    }

    /// Adds a reading taken `ms` milliseconds after the beginning. `snapshot`
    /// holds everything since boot.
    pub fn add(&mut self, ms: u64, snapshot: ExitSnapshot) -> Result<(), RecordingError> {
        let delta = match &self.last {
            Some(last) => snapshot.since(last)?,
            None => snapshot.clone(),
        };
        write_line(
            &mut self.out,
            &Sample {
                ms,
                delta: compact(delta),
            },
        )?;
        self.last = Some(snapshot);
        Ok(())
    }
}

/// A line is written and flushed whole, so that a killed recorder loses at most
/// the sample that it was taking.
fn write_line(out: &mut impl Write, value: &impl Serialize) -> Result<(), RecordingError> {
    let mut write = || {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        out.write_all(&line)?;
        out.flush()
    };
    write().map_err(RecordingError::Write)
}

/// Leaves out what did not move, and the reasons of single vCPUs.
fn compact(delta: ExitSnapshot) -> ExitSnapshot {
    let nonzero = Query {
        nonzero: true,
        ..Query::default()
    };
    // A query without reason and vCPU asks for nothing that could be missing.
    let mut delta = delta.clone().narrow(&nonzero).unwrap_or(delta);
    for vcpu in &mut delta.vcpus {
        vcpu.reasons = None;
        vcpu.vmm = None;
    }
    delta
}

impl Recording {
    /// Whether a file begins as a recording does.
    pub fn begins(input: impl BufRead) -> bool {
        let mut first = String::new();
        let mut start = input.take(4096);
        start.read_line(&mut first).is_ok()
            && serde_json::from_str::<Header>(&first).is_ok_and(|header| header.format == FORMAT)
    }

    /// Reads a recording. A last line that was cut short is left out.
    pub fn read(input: impl BufRead) -> Result<Recording, RecordingError> {
        let mut lines = input.lines();
        let first = lines
            .next()
            .transpose()
            .map_err(RecordingError::Read)?
            .ok_or(RecordingError::Format)?;
        let header: Header = serde_json::from_str(&first).map_err(|_| RecordingError::Format)?;
        if header.format != FORMAT || header.version != VERSION {
            return Err(RecordingError::Format);
        }
        let mut samples = Vec::new();
        let mut lines = lines.enumerate().peekable();
        while let Some((index, line)) = lines.next() {
            match serde_json::from_str(&line.map_err(RecordingError::Read)?) {
                Ok(sample) => samples.push(sample),
                Err(source) if source.is_eof() && lines.peek().is_none() => {}
                Err(source) => {
                    return Err(RecordingError::Line {
                        line: index + 2,
                        source,
                    });
                }
            }
        }
        Ok(Recording { header, samples })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use instrumentation::snapshot::{Host, ReasonArrays, VcpuInput, VcpuSample};
    use instrumentation::table::{Isa, STATS_SLOTS};

    fn snapshot(cpuid: u64, hlt: u64) -> ExitSnapshot {
        let mut arrays = ReasonArrays {
            exits: vec![0; STATS_SLOTS],
            ..ReasonArrays::default()
        };
        arrays.exits[10] = cpuid;
        arrays.exits[12] = hlt;
        let input = VcpuInput {
            id: 0,
            sample: VcpuSample {
                exits: cpuid + hlt,
                guest_cycles: Some(0),
                arrays: Some(arrays),
            },
            user_exits: Vec::new(),
        };
        let host = Host {
            isa: Ok(Isa::Vmx),
            tsc_khz: 1000,
        };
        ExitSnapshot::from_samples(&host, &[], &[input])
    }

    fn recording() -> Vec<u8> {
        let mut file = Vec::new();
        let mut recorder = Recorder::new(&mut file, "vm", 10).unwrap();
        recorder.add(0, snapshot(5, 1)).unwrap();
        recorder.add(10, snapshot(9, 1)).unwrap();
        file
    }

    #[test]
    fn samples_add_up_to_the_last_reading() {
        let recording = Recording::read(&recording()[..]).unwrap();
        let rows: Vec<_> = recording
            .samples
            .iter()
            .map(|sample| (sample.ms, sample.delta.totals.exits))
            .collect();
        assert_eq!(rows, [(0, 6), (10, 4)]);
        let moved = recording.samples[1].delta.reasons.as_ref().unwrap();
        assert_eq!(moved.len(), 1, "HLT did not move");
    }

    #[test]
    fn a_recording_cut_short_is_read_up_to_its_last_whole_line() {
        let file = recording();
        let cut = Recording::read(&file[..file.len() - 20]).unwrap();
        assert_eq!(cut.samples.len(), 1);
    }

    #[test]
    fn a_broken_line_in_the_middle_is_named() {
        let mut text = String::from_utf8(recording()).unwrap();
        text.insert_str(text.find("\n").unwrap() + 1, "{\"ms\":\n");
        let error = Recording::read(text.as_bytes()).unwrap_err();
        assert!(
            matches!(error, RecordingError::Line { line: 2, .. }),
            "{error}"
        );
    }

    #[test]
    fn another_file_is_no_recording() {
        for text in ["", "{}\n", "hello\n"] {
            assert!(matches!(
                Recording::read(text.as_bytes()),
                Err(RecordingError::Format)
            ));
        }
    }

    #[test]
    fn a_reboot_ends_a_recording() {
        let mut recorder = Recorder::new(Vec::new(), "vm", 10).unwrap();
        recorder.add(0, snapshot(5, 1)).unwrap();
        assert!(matches!(
            recorder.add(10, snapshot(1, 0)),
            Err(RecordingError::Delta(_))
        ));
    }
}
