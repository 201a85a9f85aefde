//! Finds VMs and asks them, all at once and none for long.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use instrumentation::snapshot::ExitSnapshot;

use crate::client::{Client, Method};

/// A pattern that no file name could match.
#[derive(Debug, thiserror::Error)]
#[error("{pattern:?} is no pattern for sockets")]
pub struct PatternError {
    pattern: String,
    source: glob::PatternError,
}

/// The VMs of a host, found by the names of their sockets.
#[derive(Debug)]
pub struct Vms {
    patterns: Vec<String>,
    patience: Duration,
    /// Sockets that are being asked. Taken for a look-up only.
    asked: Mutex<HashSet<PathBuf>>,
}

impl Vms {
    /// VMs whose sockets match one of `patterns`; a scrape waits for each at
    /// most `patience`.
    pub fn new(patterns: &[String], patience: Duration) -> Result<Vms, PatternError> {
        for pattern in patterns {
            glob::Pattern::new(pattern).map_err(|source| PatternError {
                pattern: pattern.clone(),
                source,
            })?;
        }
        Ok(Vms {
            patterns: patterns.to_vec(),
            patience,
            asked: Mutex::new(HashSet::new()),
        })
    }

    fn sockets(&self) -> BTreeSet<PathBuf> {
        self.patterns
            .iter()
            .filter_map(|pattern| glob::glob(pattern).ok())
            .flatten()
            .filter_map(Result::ok)
            .filter(|path| is_socket(path))
            .collect()
    }

    /// Asks every VM. `None` stands for one that did not answer in time, that
    /// is not running a VM, or that answered with something else.
    pub fn scrape(self: &Arc<Self>) -> BTreeMap<String, Option<ExitSnapshot>> {
        let deadline = Instant::now() + self.patience;
        let (sender, answers) = mpsc::channel();
        let mut found = BTreeMap::new();
        let mut waiting = 0;
        for path in self.sockets() {
            found.insert(path.display().to_string(), None);
            if self.ask(&path, sender.clone()) {
                waiting += 1;
            }
        }
        while waiting > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok((path, snapshot)) = answers.recv_timeout(left) else {
                break;
            };
            found.insert(path.display().to_string(), snapshot);
            waiting -= 1;
        }
        found
    }

    /// Starts asking, unless an earlier question is still open.
    fn ask(
        self: &Arc<Self>,
        path: &Path,
        sender: mpsc::Sender<(PathBuf, Option<ExitSnapshot>)>,
    ) -> bool {
        if !self.lock().insert(path.to_owned()) {
            return false;
        }
        let vms = Arc::clone(self);
        let asked = path.to_owned();
        let started = std::thread::Builder::new()
            .name("ask".into())
            .spawn(move || {
                let snapshot = vms.snapshot(&asked);
                vms.lock().remove(&asked);
                // The scrape may have given up on us.
                let _ = sender.send((asked, snapshot));
            });
        if started.is_err() {
            self.lock().remove(path);
        }
        started.is_ok()
    }

    fn snapshot(&self, path: &Path) -> Option<ExitSnapshot> {
        let response = Client::new(path)
            .request_within(Method::Get, "/exit-stats", None, self.patience)
            .ok()?;
        if response.status != 200 {
            return None;
        }
        serde_json::from_str(response.body.as_deref()?).ok()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}
