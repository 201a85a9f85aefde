//! All VMs of a host: found, asked, written as metrics, and each change told
//! once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use instrumentation::encode::{Detail, HostMetrics, VmMetrics, openmetrics_of_host};

use super::discovery::Patterns;
use super::log::Log;
use super::module::Module;
use super::scrape::{Outcome, ask_all};
use super::server::Scraper;

/// The VMs of a host, found by the names of their sockets.
#[derive(Debug)]
pub struct Vms {
    patterns: Patterns,
    timeout: Duration,
    detail: Detail,
    /// Of each VM at the last scrape why it was down; `None` if it was not.
    states: BTreeMap<String, Option<&'static str>>,
    unreadable: BTreeSet<PathBuf>,
    log: Log,
}

impl Vms {
    /// VMs whose sockets match; a scrape takes at most `timeout`.
    pub fn new(patterns: Patterns, timeout: Duration, detail: Detail) -> Self {
        Vms {
            patterns,
            timeout,
            detail,
            states: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            log: Log::default(),
        }
    }

    /// Writes a line for each VM whose state is another than at the last
    /// scrape. One that was up from the start is not worth a line.
    fn tell_changes(&mut self, outcomes: &BTreeMap<String, Outcome>) {
        let now = Instant::now();
        let mut states = BTreeMap::new();
        for (name, outcome) in outcomes {
            let state = outcome.as_ref().err().map(|down| down.label());
            let before = self.states.get(name).copied().unwrap_or(None);
            if state != before {
                let what = match outcome {
                    Ok(_) => "up".to_owned(),
                    Err(down) => format!("down: {down}"),
                };
                // A newline in a name must not make a second line.
                self.log
                    .line(&format!("{}: {what}", name.escape_debug()), now);
            }
            states.insert(name.clone(), state);
        }
        self.states = states;
    }

    fn tell_unreadable(&mut self, unreadable: BTreeSet<PathBuf>) {
        let now = Instant::now();
        for folder in unreadable.difference(&self.unreadable) {
            self.log
                .line(&format!("Cannot look for sockets in {folder:?}"), now);
        }
        self.unreadable = unreadable;
    }
}

impl Scraper for Vms {
    fn scrape(&mut self, patience: Option<Duration>) -> String {
        let found = self.patterns.find();
        let mut sockets: Vec<_> = found
            .sockets
            .iter()
            .map(|(name, path)| (name.as_str(), path.as_path()))
            .collect();
        // Where there are more VMs than are asked at a time, those that hang
        // must not be all that is waited for.
        sockets.sort_by_key(|(name, _)| self.states.get(*name).copied().flatten().is_some());
        // A scraper that has given up learns nothing, of no VM: what is left of its
        // time is for the way.
        let timeout = patience.map_or(self.timeout, |patience| self.timeout.min(patience / 4 * 3));
        let outcomes = ask_all(&sockets, timeout);
        self.tell_changes(&outcomes);
        let unreadable_folders = found.unreadable.len();
        self.tell_unreadable(found.unreadable);
        let module = Module::read();
        openmetrics_of_host(HostMetrics {
            vms: outcomes
                .into_iter()
                .map(|(name, outcome)| VmMetrics {
                    name,
                    snapshot: outcome.map_err(|down| down.label()),
                })
                .collect(),
            module_version: module.version,
            module_counts: module.counts,
            unreadable_folders,
            detail: self.detail,
        })
    }
}
