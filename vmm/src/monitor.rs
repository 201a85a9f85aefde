//! The event monitor: what happens to the VMM and its machine, as JSON, for
//! programs that want to be told rather than ask.
//!
//! A thread of its own writes, so that a reader who is slow or gone stops
//! nothing: events that it does not take in time are dropped.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::event::EventSink;
use crate::sandbox::{ThreadKind, spawn};

/// Events that may wait for the reader.
const WAITING: usize = 1024;

#[derive(Debug, Serialize)]
struct Timestamp {
    secs: u64,
    nanos: u32,
}

/// An event as it is written.
#[derive(Debug, Serialize)]
struct Event {
    timestamp: Timestamp,
    source: &'static str,
    event: &'static str,
    properties: Option<BTreeMap<&'static str, String>>,
}

/// Whom an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The process.
    Vmm,
    /// The machine.
    Vm,
    /// A device of it.
    VirtioDevice,
    /// What runs in it.
    Guest,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Source::Vmm => "vmm",
            Source::Vm => "vm",
            Source::VirtioDevice => "virtio-device",
            Source::Guest => "guest",
        }
    }
}

/// The control thread's end. Dropping it ends the thread once everything that
/// waits is written.
pub struct EventMonitor {
    start: Instant,
    queue: Option<SyncSender<Event>>,
    thread: Option<JoinHandle<()>>,
}

impl EventMonitor {
    /// Writes to `output`; time counts from now.
    pub fn start(output: File, events: EventSink) -> io::Result<Self> {
        let (queue, waiting) = sync_channel(WAITING);
        let thread = spawn(
            "event-monitor",
            ThreadKind::EventMonitor,
            events,
            move || {
                write_all(output, &waiting);
            },
        )?;
        Ok(Self {
            start: Instant::now(),
            queue: Some(queue),
            thread: Some(thread),
        })
    }

    /// Writes an event, with a property such as the id of the device that it is
    /// about.
    pub fn emit(
        &self,
        source: Source,
        event: &'static str,
        property: Option<(&'static str, &str)>,
    ) {
        let since: Duration = self.start.elapsed();
        let event = Event {
            timestamp: Timestamp {
                secs: since.as_secs(),
                nanos: since.subsec_nanos(),
            },
            source: source.name(),
            event,
            properties: property.map(|(name, value)| BTreeMap::from([(name, value.to_owned())])),
        };
        if let Some(queue) = &self.queue
            && let Err(error) = queue.try_send(event)
        {
            log::debug!("an event is lost: {error}");
        }
    }
}

impl Drop for EventMonitor {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A reader who takes nothing must not keep the process: what is
            // left is written if it is written soon.
            let deadline = Instant::now() + Duration::from_millis(500);
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn write_all(mut output: File, waiting: &Receiver<Event>) {
    let mut told = false;
    while let Ok(event) = waiting.recv() {
        let written = serde_json::to_vec_pretty(&event)
            .map_err(io::Error::from)
            .and_then(|mut text| {
                text.extend_from_slice(b"\n\n");
                output.write_all(&text)
            });
        if let Err(error) = written
            && !told
        {
            // Once: whoever closed it knows.
            log::warn!("events cannot be written: {error}");
            told = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use serde_json::Value;

    use super::*;

    fn monitor(output: File) -> EventMonitor {
        EventMonitor::start(output, EventSink::new(|_| {})).unwrap()
    }

    #[test]
    fn events_are_objects_with_an_empty_line_between() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let monitor = monitor(File::create(&path).unwrap());
        monitor.emit(Source::Vmm, "starting", None);
        monitor.emit(Source::VirtioDevice, "activated", Some(("id", "_disk0")));
        drop(monitor);
        let text = std::fs::read_to_string(&path).unwrap();
        let events: Vec<Value> = text
            .split_terminator("\n\n")
            .map(|event| serde_json::from_str(event).unwrap())
            .collect();
        assert_eq!(events.len(), 2, "{text}");
        assert_eq!(
            (&events[0]["source"], &events[0]["event"]),
            (&"vmm".into(), &"starting".into())
        );
        assert!(events[0]["properties"].is_null());
        assert_eq!(events[1]["properties"]["id"], "_disk0");
        let time = |event: &Value| {
            let timestamp = &event["timestamp"];
            Duration::new(
                timestamp["secs"].as_u64().unwrap(),
                timestamp["nanos"].as_u64().unwrap() as u32,
            )
        };
        assert!(time(&events[0]) < time(&events[1]));
    }

    #[test]
    fn a_reader_who_takes_nothing_stops_nobody() {
        let (mut reader, writer) = io::pipe().unwrap();
        let monitor = monitor(File::from(OwnedFd::from(writer)));
        let start = Instant::now();
        for _ in 0..10 * WAITING {
            monitor.emit(Source::Vm, "paused", None);
        }
        drop(monitor);
        assert!(start.elapsed() < Duration::from_secs(5));
        let mut start = [0; 1];
        reader.read_exact(&mut start).unwrap();
        assert_eq!(&start, b"{");
    }
}
