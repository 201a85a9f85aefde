//! What a recording says about a boot.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// One reason's figures over a whole boot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reason {
    /// Number as the manual writes it.
    pub label: String,
    /// Linux's symbol.
    pub symbol: String,
    /// The manual's name.
    pub name: String,
    /// Exits.
    pub exits: u64,
    /// TSC ticks in the kernel.
    pub cycles: u64,
}

/// A recorded boot.
#[derive(Clone, Debug, PartialEq)]
pub struct Boot {
    /// Reasons by falling number of exits.
    pub reasons: Vec<Reason>,
    /// Exits in all.
    pub exits: u64,
    /// Ticks in the guest, in KVM, asleep, in user space and preempted.
    pub split: [u64; 5],
    /// Accesses that reached user space, by device, most first.
    pub devices: Vec<(String, u64)>,
    /// Exits and the end in milliseconds of each sample after the first.
    samples: Vec<(u64, u64)>,
}

impl Boot {
    /// Reads the lines of a recording.
    pub fn read(lines: &[String]) -> Result<Boot> {
        let mut boot = Boot {
            reasons: Vec::new(),
            exits: 0,
            split: [0; 5],
            devices: Vec::new(),
            samples: Vec::new(),
        };
        for line in lines.iter().skip(1) {
            let sample: Value = serde_json::from_str(line).context("A line is no sample")?;
            boot.add(&sample)?;
        }
        ensure!(!boot.reasons.is_empty(), "The recording holds no exits");
        boot.reasons
            .sort_by_key(|reason| std::cmp::Reverse(reason.exits));
        boot.devices
            .sort_by_key(|(_, exits)| std::cmp::Reverse(*exits));
        Ok(boot)
    }

    fn add(&mut self, sample: &Value) -> Result<()> {
        let delta = &sample["delta"];
        let totals = &delta["totals"];
        let exits = figure(totals, "exits")?;
        self.exits += exits;
        self.samples.push((exits, figure(sample, "ms")?));
        for (sum, field) in self.split.iter_mut().zip([
            "guest_cycles",
            "cycles",
            "blocked_cycles",
            "userspace_cycles",
            "preempted_cycles",
        ]) {
            *sum += figure(totals, field)?;
        }
        for row in delta["reasons"].as_array().context("No reasons")? {
            let symbol = row["symbol"].as_str().context("No symbol")?;
            let index = match self.reasons.iter().position(|seen| seen.symbol == symbol) {
                Some(index) => index,
                None => {
                    let isa = delta["isa"].as_str();
                    self.reasons.push(Reason {
                        label: label(isa, row["number"].as_u64()),
                        symbol: symbol.into(),
                        name: row["name"].as_str().unwrap_or_default().into(),
                        ..Reason::default()
                    });
                    self.reasons.len() - 1
                }
            };
            self.reasons[index].exits += figure(row, "exits")?;
            self.reasons[index].cycles += figure(row, "cycles")?;
        }
        for row in delta["vmm"]["exits"].as_array().into_iter().flatten() {
            for device in row["devices"].as_array().into_iter().flatten() {
                let id = device["id"].as_str().context("No device")?;
                let exits = figure(device, "exits")?;
                match self.devices.iter_mut().find(|(seen, _)| seen == id) {
                    Some((_, sum)) => *sum += exits,
                    None => self.devices.push((id.into(), exits)),
                }
            }
        }
        Ok(())
    }

    /// A reason's exits, 0 if it did not occur.
    pub fn exits_of(&self, symbol: &str) -> u64 {
        self.reasons
            .iter()
            .find(|reason| reason.symbol == symbol)
            .map_or(0, |reason| reason.exits)
    }

    /// Seconds from the first to the last sample.
    pub fn seconds(&self) -> f64 {
        match (self.samples.first(), self.samples.last()) {
            (Some((_, first)), Some((_, last))) => (last - first) as f64 / 1000.0,
            _ => 0.0,
        }
    }

    /// Exits per second from the first to the last sample: the mean, and the
    /// highest between two samples.
    pub fn rates(&self) -> (f64, f64) {
        let later = self.samples.iter().skip(1).map(|(exits, _)| exits);
        let mean = later.sum::<u64>() as f64 / self.seconds().max(f64::MIN_POSITIVE);
        let highest = self
            .samples
            .windows(2)
            .map(|pair| pair[1].0 as f64 * 1000.0 / (pair[1].1 - pair[0].1).max(1) as f64)
            .fold(0.0, f64::max);
        (mean, highest)
    }

    /// The share of the exits that falls into the busiest tenth of the samples.
    pub fn share_of_busiest_tenth(&self) -> f64 {
        let mut counts: Vec<u64> = self
            .samples
            .iter()
            .skip(1)
            .map(|(exits, _)| *exits)
            .collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let tenth: u64 = counts.iter().take(counts.len().div_ceil(10)).sum();
        tenth as f64 / counts.iter().sum::<u64>().max(1) as f64
    }
}

fn figure(value: &Value, field: &str) -> Result<u64> {
    value[field]
        .as_u64()
        .with_context(|| format!("No figure {field}"))
}

fn label(isa: Option<&str>, number: Option<u64>) -> String {
    match (isa, number) {
        (_, None) => "-".into(),
        (Some("svm"), Some(number)) => format!("{number:#x}"),
        (_, Some(number)) => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(ms: u64, cpuid: u64, io: u64) -> String {
        format!(
            r#"{{"ms":{ms},"delta":{{"isa":"vmx","totals":{{"exits":{},"cycles":10,"blocked_cycles":1,
            "userspace_cycles":2,"preempted_cycles":4,"guest_cycles":3}},"reasons":[
            {{"number":10,"symbol":"CPUID","name":"CPUID","exits":{cpuid},"cycles":4}},
            {{"number":30,"symbol":"IO_INSTRUCTION","name":"I/O","exits":{io},"cycles":6}}],
            "vmm":{{"exits":[{{"devices":[{{"id":"serial","exits":{io}}}]}}]}}}}}}"#,
            cpuid + io
        )
    }

    #[test]
    fn samples_add_up_to_the_boot() {
        let lines = ["{}".into(), line(0, 1, 9), line(100, 2, 0), line(200, 8, 0)];
        let boot = Boot::read(&lines).unwrap();
        assert_eq!(boot.exits, 20);
        assert_eq!(boot.split, [9, 30, 3, 6, 12]);
        let rows: Vec<_> = boot
            .reasons
            .iter()
            .map(|reason| (reason.symbol.as_str(), reason.exits))
            .collect();
        assert_eq!(rows, [("CPUID", 11), ("IO_INSTRUCTION", 9)]);
        assert_eq!(boot.devices, [("serial".into(), 9)]);
        assert_eq!(boot.rates(), (50.0, 80.0));
        assert_eq!(boot.share_of_busiest_tenth(), 0.8);
    }

    #[test]
    fn recording_without_exits_is_refused() {
        assert!(Boot::read(&["{}".into()]).is_err());
        assert!(Boot::read(&["{}".into(), "{}".into()]).is_err());
    }
}
