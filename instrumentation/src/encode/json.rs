//! The REST body, as serde writes it, in a fraction of the time.
//!
//! A body has a row for each reason of each vCPU, most of a row never changes,
//! and many clients may ask many times a second. What never changes is made
//! once; the figures are put in between.

use std::sync::OnceLock;

use serde::Serialize;

use crate::snapshot::{ExitCounters, ExitSnapshot, ReasonCounters, Totals};
use crate::table::{ExitTable, Isa};

/// Longer than any row with five figures of twenty digits.
const ROW: usize = 288;
/// Everything that is not a row; longer only with very many devices.
const REST: usize = 8192;

/// The rest of a row whose figures are all zero.
const ZEROS: &str = r#"0,"cycles":0,"blocked_cycles":0,"userspace_cycles":0,"preempted_cycles":0}"#;

/// The snapshot as JSON: byte for byte what serde would write.
pub fn json(snapshot: &ExitSnapshot) -> Vec<u8> {
    let mut bytes = Vec::new();
    json_into(&mut bytes, snapshot);
    bytes
}

/// The same in place of what `bytes` held, in the room that it has.
pub fn json_into(bytes: &mut Vec<u8>, snapshot: &ExitSnapshot) {
    let rows = |reasons: &Option<Vec<ReasonCounters>>| reasons.as_ref().map_or(0, Vec::len);
    let count = rows(&snapshot.reasons)
        + snapshot
            .vcpus
            .iter()
            .map(|vcpu| rows(&vcpu.reasons))
            .sum::<usize>();
    bytes.clear();
    bytes.reserve(count * ROW + REST);
    let mut body = Body {
        bytes,
        known: snapshot.isa.map(|isa| (isa.table(), known_rows(isa))),
    };
    body.snapshot(snapshot);
}

/// What is known of a row before its figures are.
struct KnownRow {
    /// Up to the first figure.
    beginning: String,
    /// All of it, if nothing was counted.
    zero: String,
}

/// The rows of the defined reasons.
fn known_rows(isa: Isa) -> &'static [KnownRow] {
    static VMX: OnceLock<Vec<KnownRow>> = OnceLock::new();
    static SVM: OnceLock<Vec<KnownRow>> = OnceLock::new();
    let cell = match isa {
        Isa::Vmx => &VMX,
        Isa::Svm => &SVM,
    };
    cell.get_or_init(|| {
        let rows = isa.table().reasons.iter();
        rows.map(|entry| {
            let beginning = beginning(Some(entry.number), entry.name, entry.symbol, entry.enabled);
            KnownRow {
                zero: beginning.clone() + ZEROS,
                beginning,
            }
        })
        .collect()
    })
}

fn beginning(number: Option<u32>, name: &str, symbol: &str, enabled: bool) -> String {
    #[derive(Serialize)]
    struct Beginning<'a> {
        number: Option<u32>,
        name: &'a str,
        symbol: &'a str,
        enabled: bool,
    }
    let row = Beginning {
        number,
        name,
        symbol,
        enabled,
    };
    // Plain fields of plain types: nothing in them can fail.
    let mut text = serde_json::to_string(&row).unwrap_or_default();
    text.pop();
    text.push_str(r#","exits":"#);
    text
}

struct Body<'a> {
    bytes: &'a mut Vec<u8>,
    known: Option<(&'static ExitTable, &'static [KnownRow])>,
}

impl Body<'_> {
    fn snapshot(&mut self, snapshot: &ExitSnapshot) {
        self.text(r#"{"source":"#);
        self.value(&snapshot.source);
        if let Some(unavailable) = &snapshot.unavailable {
            self.text(r#","unavailable":"#);
            self.value(unavailable);
        }
        self.text(r#","isa":"#);
        self.value(&snapshot.isa);
        self.text(r#","manual":"#);
        self.value(&snapshot.manual);
        self.text(r#","tsc_khz":"#);
        self.number(snapshot.tsc_khz.into());
        self.text(r#","since":"#);
        self.value(&snapshot.since);
        if let Some(id) = &snapshot.boot_id {
            self.text(r#","boot_id":"#);
            self.value(id);
        }
        for (key, time) in [
            (r#","unix_us":"#, snapshot.unix_us),
            (r#","monotonic_us":"#, snapshot.monotonic_us),
            (r#","duration_us":"#, snapshot.duration_us),
        ] {
            if let Some(time) = time {
                self.text(key);
                self.number(time);
            }
        }
        if snapshot.ended {
            self.text(r#","ended":true"#);
        }
        self.text(r#","totals":"#);
        self.totals(&snapshot.totals);
        self.text(r#","reasons":"#);
        self.reasons(snapshot.reasons.as_deref());
        self.text(r#","vcpus":["#);
        for (index, vcpu) in snapshot.vcpus.iter().enumerate() {
            self.text(if index == 0 {
                r#"{"id":"#
            } else {
                r#",{"id":"#
            });
            self.number(vcpu.id.into());
            self.text(r#","totals":"#);
            self.totals(&vcpu.totals);
            self.text(r#","reasons":"#);
            self.reasons(vcpu.reasons.as_deref());
            self.text(r#","vmm":"#);
            self.value(&vcpu.vmm);
            self.text("}");
        }
        self.text("]");
        if let Some(latency) = &snapshot.latency {
            self.text(r#","latency":"#);
            self.value(latency);
        }
        self.text(r#","vmm":"#);
        self.value(&snapshot.vmm);
        self.text("}");
    }

    fn totals(&mut self, totals: &Totals) {
        self.text(r#"{"exits":"#);
        self.number(totals.exits);
        for (key, figure) in [
            (r#","cycles":"#, totals.cycles),
            (r#","blocked_cycles":"#, totals.blocked_cycles),
            (r#","userspace_cycles":"#, totals.userspace_cycles),
            (r#","preempted_cycles":"#, totals.preempted_cycles),
            (r#","guest_cycles":"#, totals.guest_cycles),
            (r#","kvm_exits":"#, totals.kvm_exits),
        ] {
            self.text(key);
            match figure {
                Some(figure) => self.number(figure),
                None => self.text("null"),
            }
        }
        self.text(r#","uncounted_exits":"#);
        self.number(totals.uncounted_exits);
        self.text("}");
    }

    fn reasons(&mut self, reasons: Option<&[ReasonCounters]>) {
        let Some(reasons) = reasons else {
            return self.text("null");
        };
        self.text("[");
        for (index, row) in reasons.iter().enumerate() {
            if index > 0 {
                self.text(",");
            }
            match self.known_row(index, row) {
                Some(known) if row.counters.is_zero() => self.text(&known.zero),
                Some(known) => {
                    self.text(&known.beginning);
                    self.counters(&row.counters);
                }
                None => {
                    self.text(&beginning(row.number, &row.name, &row.symbol, row.enabled));
                    self.counters(&row.counters);
                }
            }
        }
        self.text("]");
    }

    /// What was made beforehand, if the row is what the table says. Where no row
    /// was left out, it stands where the row does.
    fn known_row(&self, index: usize, row: &ReasonCounters) -> Option<&'static KnownRow> {
        let (table, rows) = self.known?;
        let number = row.number?;
        let place = match table.reasons.get(index) {
            Some(entry) if entry.number == number => index,
            _ => table
                .reasons
                .binary_search_by_key(&number, |entry| entry.number)
                .ok()?,
        };
        let entry = &table.reasons[place];
        let same =
            row.enabled == entry.enabled && row.symbol == entry.symbol && row.name == entry.name;
        same.then(|| &rows[place])
    }

    fn counters(&mut self, counters: &ExitCounters) {
        self.number(counters.exits);
        self.text(r#","cycles":"#);
        self.number(counters.cycles);
        self.text(r#","blocked_cycles":"#);
        self.number(counters.blocked_cycles);
        self.text(r#","userspace_cycles":"#);
        self.number(counters.userspace_cycles);
        self.text(r#","preempted_cycles":"#);
        self.number(counters.preempted_cycles);
        self.text("}");
    }

    fn text(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn number(&mut self, number: u64) {
        self.text(itoa::Buffer::new().format(number));
    }

    fn value(&mut self, value: &impl Serialize) {
        // Strings, numbers and lists of them, into memory: nothing can fail.
        let _ = serde_json::to_writer(&mut *self.bytes, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Host, Query, ReasonArrays, VcpuInput, VcpuSample};
    use crate::table::STATS_SLOTS;
    use crate::user_exit::{RangeId, UserExitKind, UserExitRecorder};

    fn machine(isa: Result<Isa, String>) -> ExitSnapshot {
        let inputs: Vec<_> = (0..3u64)
            .map(|id| {
                // Every slot, the one for unknown codes too, and some at zero.
                let figure = |slot: usize| match slot % 4 {
                    1 => 0,
                    _ => u64::MAX / 1000 / (slot as u64 + 1) * (id + 1),
                };
                let array: Vec<u64> = (0..STATS_SLOTS).map(figure).collect();
                let recorder = UserExitRecorder::new();
                recorder.record(UserExitKind::IoOut, RangeId::default(), 4, 4_000);
                VcpuInput {
                    id: id as u32,
                    sample: VcpuSample {
                        exits: 7,
                        guest_cycles: Some(1 << 40),
                        arrays: isa.is_ok().then(|| ReasonArrays {
                            exits: array.clone(),
                            cycles: array.clone(),
                            blocked_cycles: array.clone(),
                            userspace_cycles: array.clone(),
                            preempted_cycles: array,
                        }),
                    },
                    user_exits: recorder.read(),
                }
            })
            .collect();
        let tsc_khz = 2_600_000;
        ExitSnapshot {
            boot_id: Some("1".into()),
            unix_us: Some(2),
            monotonic_us: Some(3),
            ended: true,
            latency: crate::snapshot::Latency::parse(
                "latency on\n0xa CPUID <8:3 more:1\n",
                tsc_khz,
            ),
            ..ExitSnapshot::from_samples(&Host { isa, tsc_khz }, &[], &inputs)
        }
    }

    fn assert_same(snapshot: &ExitSnapshot) {
        assert_eq!(
            String::from_utf8(json(snapshot)).unwrap(),
            serde_json::to_string(snapshot).unwrap()
        );
    }

    #[test]
    fn bytes_are_those_that_serde_writes() {
        for isa in [Isa::Vmx, Isa::Svm] {
            let whole = machine(Ok(isa));
            assert_same(&whole);
            assert_same(&whole.since(&whole).unwrap());
            let other = whole.reasons.as_ref().unwrap().last().unwrap();
            assert_eq!(other.number, None);
            for query in [
                Query {
                    nonzero: true,
                    ..Query::default()
                },
                Query {
                    reason: Some(crate::table::ExitReason(0x40)),
                    vcpu: Some(1),
                    ..Query::default()
                },
            ] {
                assert_same(&whole.clone().narrow(&query).unwrap());
            }
        }
        assert_same(&machine(Err("this KVM says \"no\"".into())));
    }

    #[test]
    fn a_row_that_is_not_the_tables_keeps_its_own_words() {
        let mut snapshot = machine(Ok(Isa::Vmx));
        let rows = snapshot.reasons.as_mut().unwrap();
        rows[3].name = "Another \"name\"".into();
        rows[4].enabled = !rows[4].enabled;
        rows[5].number = Some(4711);
        assert_same(&snapshot);
    }
}
