//! The body of `GET /exit-stats` as the documentation describes it, read
//! independently of the code that writes it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

/// Count and time of one reason or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Exits.
    pub exits: u64,
    /// Ticks in the kernel.
    pub cycles: u64,
    /// Ticks asleep.
    pub blocked: u64,
    /// Ticks in user space.
    pub userspace: u64,
    /// Ticks without a CPU.
    pub preempted: u64,
}

impl Counters {
    fn read(value: &Value) -> Result<Self> {
        let field = |name: &str| {
            value[name]
                .as_u64()
                .with_context(|| format!("{name} is missing in {value}"))
        };
        Ok(Counters {
            exits: field("exits")?,
            cycles: field("cycles")?,
            blocked: field("blocked_cycles")?,
            userspace: field("userspace_cycles")?,
            preempted: field("preempted_cycles")?,
        })
    }

    fn add(&mut self, other: Counters) {
        self.exits += other.exits;
        self.cycles += other.cycles;
        self.blocked += other.blocked;
        self.userspace += other.userspace;
        self.preempted += other.preempted;
    }

    /// Whether each figure is at least the other's.
    pub fn at_least(&self, other: &Counters) -> bool {
        self.exits >= other.exits
            && self.cycles >= other.cycles
            && self.blocked >= other.blocked
            && self.userspace >= other.userspace
            && self.preempted >= other.preempted
    }
}

/// One reason's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The manual's name.
    pub name: String,
    /// Linux's symbol.
    pub symbol: String,
    /// Whether KVM has a handler.
    pub enabled: bool,
    /// The figures.
    pub counters: Counters,
}

/// A whole reading on a host whose KVM counts by reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// The sums that the VMM gives.
    pub totals: Counters,
    /// Rows by number.
    pub reasons: BTreeMap<u32, Reason>,
    /// Exits that no number describes.
    pub other: Counters,
    /// The sums of each vCPU and the sum over its rows.
    pub vcpus: Vec<(Counters, Counters)>,
}

impl Stats {
    /// From the JSON body.
    pub fn read(body: &Value) -> Result<Stats> {
        let rows = body["reasons"].as_array().context("There are no reasons")?;
        let mut reasons = BTreeMap::new();
        let mut other = Counters::default();
        for row in rows {
            let counters = Counters::read(row)?;
            let Some(number) = row["number"].as_u64() else {
                other.add(counters);
                continue;
            };
            let number = u32::try_from(number).context("A number of more than 32 bits")?;
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            let reason = Reason {
                name: text("name"),
                symbol: text("symbol"),
                enabled: row["enabled"].as_bool().context("enabled is missing")?,
                counters,
            };
            anyhow::ensure!(
                reasons.insert(number, reason).is_none(),
                "Reason {number} is there twice"
            );
        }
        let vcpus = body["vcpus"]
            .as_array()
            .context("There are no vCPUs")?
            .iter()
            .map(|vcpu| {
                let mut sum = Counters::default();
                for row in vcpu["reasons"].as_array().into_iter().flatten() {
                    sum.add(Counters::read(row)?);
                }
                Ok((Counters::read(&vcpu["totals"])?, sum))
            })
            .collect::<Result<_>>()?;
        Ok(Stats {
            totals: Counters::read(&body["totals"])?,
            reasons,
            other,
            vcpus,
        })
    }

    /// Our own sum over the rows.
    pub fn sum(&self) -> Counters {
        let mut sum = self.other;
        for reason in self.reasons.values() {
            sum.add(reason.counters);
        }
        sum
    }

    /// Exits of one reason.
    pub fn exits(&self, number: u32) -> u64 {
        self.reasons
            .get(&number)
            .map_or(0, |reason| reason.counters.exits)
    }

    /// The reasons that occurred, with their exits.
    pub fn occurred(&self) -> BTreeMap<u32, u64> {
        self.reasons
            .iter()
            .filter(|(_, reason)| reason.counters.exits > 0)
            .map(|(&number, reason)| (number, reason.counters.exits))
            .collect()
    }

    /// Whether no figure is below that of an earlier reading.
    pub fn at_least(&self, earlier: &Stats) -> bool {
        self.totals.at_least(&earlier.totals)
            && earlier.reasons.iter().all(|(number, before)| {
                self.reasons
                    .get(number)
                    .is_some_and(|now| now.counters.at_least(&before.counters))
            })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(exits: u64) -> Value {
        let row = |number: Value, exits: u64| {
            json!({"number": number, "name": "n", "symbol": "S", "enabled": true, "exits": exits,
                   "cycles": 2, "blocked_cycles": 0, "userspace_cycles": 0, "preempted_cycles": 0})
        };
        let totals = json!({"exits": exits + 1, "cycles": 4, "blocked_cycles": 0, "userspace_cycles": 0, "preempted_cycles": 0});
        json!({"totals": totals, "reasons": [row(json!(10), exits), row(Value::Null, 1)],
               "vcpus": []})
    }

    #[test]
    fn sum_includes_exits_without_a_number() {
        let stats = Stats::read(&body(5)).unwrap();
        assert_eq!(stats.sum(), stats.totals);
        assert_eq!(stats.exits(10), 5);
    }

    #[test]
    fn later_reading_is_never_below_an_earlier_one() {
        let (early, late) = (
            Stats::read(&body(5)).unwrap(),
            Stats::read(&body(6)).unwrap(),
        );
        assert!(late.at_least(&early) && !early.at_least(&late));
    }
}
