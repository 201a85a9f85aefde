//! What the live view knows, and what its keys do. Nothing here draws.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use instrumentation::snapshot::{DeltaError, ExitSnapshot, ReasonCounters, Totals};

/// Points of a sparkline.
pub const HISTORY: usize = 60;

/// The column by which rows are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Exits per second, the highest first.
    Rate,
    /// Exits since boot, most first.
    Exits,
    /// Time in the kernel since boot, most first.
    Time,
    /// The manual's number.
    Number,
}

impl Sort {
    /// The next one in the order of the columns.
    pub fn next(self) -> Sort {
        match self {
            Sort::Rate => Sort::Exits,
            Sort::Exits => Sort::Time,
            Sort::Time => Sort::Number,
            Sort::Number => Sort::Rate,
        }
    }

    /// What the status line calls it.
    pub fn label(self) -> &'static str {
        match self {
            Sort::Rate => "rate",
            Sort::Exits => "exits",
            Sort::Time => "time",
            Sort::Number => "number",
        }
    }
}

/// A key that the view understands, whatever terminal library read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A character.
    Char(char),
    /// Return.
    Enter,
    /// Escape.
    Escape,
    /// Erase.
    Backspace,
    /// Arrow up.
    Up,
    /// Arrow down.
    Down,
}

/// One row of the view.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The reason with its figures since boot.
    pub reason: ReasonCounters,
    /// Exits per second in the last interval.
    pub rate: f64,
    /// Exits per interval, oldest first.
    pub history: Vec<u64>,
}

/// The state of the view.
#[derive(Debug)]
pub struct Model {
    /// What the title line calls the VM.
    pub vm: String,
    latest: Option<ExitSnapshot>,
    /// When it was read.
    read_at: Option<Instant>,
    /// Totals of the last interval, and its length in seconds.
    interval: Option<(Totals, f64)>,
    rates: HashMap<Option<u32>, f64>,
    histories: HashMap<Option<u32>, VecDeque<u64>>,
    /// The order of rows.
    pub sort: Sort,
    /// Text that a row's name has to contain; `None` while not filtering.
    pub filter: Option<String>,
    /// Whether keys go into the filter.
    pub typing: bool,
    /// Whether figures stand still.
    pub frozen: bool,
    /// Whether the selected reason is opened into its devices and vCPUs.
    pub opened: bool,
    /// The selected row.
    pub selected: usize,
    /// Why the last reading failed.
    pub error: Option<String>,
    /// When a reading was tried last, with whatever outcome.
    tried_at: Option<Instant>,
    /// Whether the next one is overdue.
    overdue: bool,
    /// What broke the series of readings last: a reboot or a switch.
    pub broken: Option<&'static str>,
}

/// What a key asks the loop to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Draw again.
    Continue,
    /// End the view.
    Quit,
}

impl Model {
    /// A view without figures yet.
    pub fn new(vm: &str) -> Model {
        Model {
            vm: vm.into(),
            latest: None,
            read_at: None,
            interval: None,
            rates: HashMap::new(),
            histories: HashMap::new(),
            sort: Sort::Rate,
            filter: None,
            typing: false,
            frozen: false,
            opened: false,
            selected: 0,
            error: None,
            tried_at: None,
            overdue: false,
            broken: None,
        }
    }

    /// The newest figures.
    pub fn latest(&self) -> Option<&ExitSnapshot> {
        self.latest.as_ref()
    }

    /// Why the counters shown are not those of this moment, if they are not.
    pub fn not_current(&self) -> Option<&'static str> {
        match &self.latest {
            Some(latest) if latest.ended => Some("ENDED: last counters"),
            Some(_) if self.frozen => Some("FROZEN"),
            Some(_) if self.error.is_some() || self.overdue => Some("NOT CURRENT: no answer"),
            _ => None,
        }
    }

    /// What happened in the last interval, and its length in seconds.
    pub fn interval(&self) -> Option<(Totals, f64)> {
        self.interval
    }

    /// Takes a reading of some moment. A frozen view takes none, so what is
    /// shown when it goes on happened over all of that time.
    pub fn update(&mut self, reading: Result<ExitSnapshot, String>, at: Instant) {
        self.tried_at = Some(at);
        self.overdue = false;
        if self.frozen {
            return;
        }
        let snapshot = match reading {
            Ok(snapshot) => snapshot,
            Err(error) => {
                self.error = Some(error);
                return;
            }
        };
        self.error = None;
        let delta = self.latest.as_ref().map(|last| snapshot.since(last));
        let chosen = self.chosen();
        match (delta, self.read_at) {
            (Some(Ok(delta)), Some(before)) => {
                self.broken = None;
                let elapsed = at.saturating_duration_since(before);
                self.advance(&delta, elapsed.as_secs_f64());
            }
            // The first reading, another boot, or counting was switched: rates
            // begin anew.
            (delta, _) => {
                self.broken = match delta {
                    Some(Err(DeltaError::Switched)) => Some("counting was switched"),
                    Some(Err(_)) => Some("the VM was booted again"),
                    _ => None,
                };
                self.interval = None;
                self.rates.clear();
                self.histories.clear();
            }
        }
        if snapshot.ended {
            self.interval = None;
            self.rates.clear();
        }
        self.latest = Some(snapshot);
        self.read_at = Some(at);
        self.stay_with(chosen);
    }

    /// A reading should come this long after the one before: a VMM that hangs is
    /// given up much later.
    pub fn expect_reading(&mut self, now: Instant, within: Duration) {
        self.overdue = self
            .tried_at
            .is_some_and(|at| now.saturating_duration_since(at) > within);
    }

    /// The reason that the user went to or opened; at the top without having
    /// done so, it is whatever comes first.
    fn chosen(&self) -> Option<Option<u32>> {
        (self.opened || self.selected > 0)
            .then(|| self.rows().get(self.selected).map(|row| row.reason.number))
            .flatten()
    }

    /// Selects the reason again, wherever its row went.
    fn stay_with(&mut self, chosen: Option<Option<u32>>) {
        let rows = self.rows();
        let place =
            chosen.and_then(|number| rows.iter().position(|row| row.reason.number == number));
        self.selected = place
            .unwrap_or(self.selected)
            .min(rows.len().saturating_sub(1));
    }

    fn advance(&mut self, delta: &ExitSnapshot, seconds: f64) {
        self.interval = Some((delta.totals, seconds));
        for row in delta.reasons.iter().flatten() {
            let exits = row.counters.exits;
            let rate = if seconds > 0.0 {
                exits as f64 / seconds
            } else {
                0.0
            };
            self.rates.insert(row.number, rate);
            let history = self.histories.entry(row.number).or_default();
            if history.len() == HISTORY {
                history.pop_front();
            }
            history.push_back(exits);
        }
    }

    /// The rows to show: what occurred and passes the filter, in order.
    pub fn rows(&self) -> Vec<Row> {
        let needle = self.filter.as_deref().unwrap_or("").to_lowercase();
        let reasons = self
            .latest
            .iter()
            .flat_map(|latest| latest.reasons.iter().flatten());
        let mut rows: Vec<Row> = reasons
            .filter(|reason| !reason.counters.is_zero())
            .filter(|reason| {
                reason.symbol.to_lowercase().contains(&needle)
                    || reason.name.to_lowercase().contains(&needle)
            })
            .map(|reason| Row {
                reason: reason.clone(),
                rate: self.rates.get(&reason.number).copied().unwrap_or(0.0),
                history: self
                    .histories
                    .get(&reason.number)
                    .map(|history| history.iter().copied().collect())
                    .unwrap_or_default(),
            })
            .collect();
        let counters = |row: &Row| row.reason.counters;
        match self.sort {
            Sort::Rate => rows.sort_by(|a, b| {
                (b.rate.total_cmp(&a.rate)).then(counters(b).exits.cmp(&counters(a).exits))
            }),
            Sort::Exits => rows.sort_by_key(|row| std::cmp::Reverse(counters(row).exits)),
            Sort::Time => rows.sort_by_key(|row| std::cmp::Reverse(counters(row).cycles)),
            Sort::Number => rows.sort_by_key(|row| row.reason.number.unwrap_or(u32::MAX)),
        }
        rows
    }

    /// Acts on a key.
    pub fn key(&mut self, key: Key) -> Outcome {
        if self.typing {
            self.type_into_filter(key);
            return Outcome::Continue;
        }
        match key {
            Key::Char('q') => return Outcome::Quit,
            Key::Char('s') => {
                let chosen = self.chosen();
                self.sort = self.sort.next();
                self.stay_with(chosen);
            }
            Key::Char('f' | ' ') => self.frozen = !self.frozen,
            Key::Char('/') => {
                self.typing = true;
                self.filter.get_or_insert_default();
            }
            Key::Enter => self.opened = !self.opened,
            Key::Escape if self.opened => self.opened = false,
            Key::Escape => self.filter = None,
            Key::Up | Key::Char('k') => self.selected = self.selected.saturating_sub(1),
            Key::Down | Key::Char('j') => self.selected += 1,
            Key::Char(_) | Key::Backspace => {}
        }
        self.selected = self.selected.min(self.rows().len().saturating_sub(1));
        Outcome::Continue
    }

    fn type_into_filter(&mut self, key: Key) {
        let filter = self.filter.get_or_insert_default();
        match key {
            Key::Char(c) => filter.push(c),
            Key::Backspace => {
                filter.pop();
            }
            Key::Enter => self.typing = false,
            Key::Escape => {
                self.typing = false;
                self.filter = None;
            }
            Key::Up | Key::Down => {}
        }
        self.selected = 0;
    }
}
