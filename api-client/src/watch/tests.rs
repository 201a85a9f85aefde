use std::sync::OnceLock;
use std::time::Duration;

use super::*;
use instrumentation::snapshot::{Host, ReasonArrays, VcpuInput, VcpuSample};
use instrumentation::table::{Isa, STATS_SLOTS};
use instrumentation::user_exit::{AddressSpace, RangeMap, UserExitKind, UserExitRecorder};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

fn snapshot(rows: &[(usize, u64)]) -> ExitSnapshot {
    let mut arrays = ReasonArrays {
        exits: vec![0; STATS_SLOTS],
        cycles: vec![0; STATS_SLOTS],
        blocked_cycles: vec![0; STATS_SLOTS],
        userspace_cycles: vec![0; STATS_SLOTS],
        preempted_cycles: vec![0; STATS_SLOTS],
    };
    for &(slot, exits) in rows {
        arrays.exits[slot] = exits;
        arrays.cycles[slot] = exits * 100;
    }
    let ranges = RangeMap::new();
    let serial = ranges.register("serial", 0x3f8, 8, AddressSpace::Port);
    let recorder = UserExitRecorder::new();
    recorder.record(UserExitKind::IoOut, serial, 1, 5_000_000);
    let input = VcpuInput {
        id: 0,
        sample: VcpuSample {
            exits: 0,
            guest_cycles: Some(0),
            arrays: Some(arrays),
        },
        user_exits: recorder.read(),
    };
    let host = Host {
        isa: Ok(Isa::Vmx),
        tsc_khz: 1_000_000,
    };
    ExitSnapshot::from_samples(&host, &ranges.ranges(), &[input])
}

/// A moment so many seconds after the first reading.
fn at(seconds: u64) -> Instant {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    *FIRST.get_or_init(Instant::now) + Duration::from_secs(seconds)
}

fn model() -> Model {
    let mut model = Model::new("vm.sock");
    model.update(Ok(snapshot(&[(10, 100), (30, 50)])), at(0));
    model.update(Ok(snapshot(&[(10, 110), (30, 90), (12, 1)])), at(2));
    model
}

fn symbols(model: &Model) -> Vec<String> {
    model
        .rows()
        .into_iter()
        .map(|row| row.reason.symbol.into_owned())
        .collect()
}

fn screen(model: &Model) -> String {
    let mut terminal = Terminal::new(TestBackend::new(100, 18)).unwrap();
    terminal
        .draw(|frame| draw(frame, model, Palette::monochrome()))
        .unwrap();
    terminal.backend().to_string()
}

#[test]
fn rates_are_what_happened_over_the_time_in_between() {
    let rows = model().rows();
    let rates: Vec<_> = rows
        .iter()
        .map(|row| (row.reason.number, row.rate))
        .collect();
    assert_eq!(rates, [(Some(30), 20.0), (Some(10), 5.0), (Some(12), 0.5)]);
}

#[test]
fn keys_sort_filter_and_quit() {
    let mut model = model();
    model.key(Key::Char('s'));
    assert_eq!(symbols(&model), ["CPUID", "IO_INSTRUCTION", "HLT"]);
    for key in [
        Key::Char('/'),
        Key::Char('q'),
        Key::Backspace,
        Key::Char('h'),
        Key::Enter,
    ] {
        assert_eq!(model.key(key), Outcome::Continue);
    }
    assert_eq!(symbols(&model), ["HLT"]);
    model.key(Key::Escape);
    assert_eq!(symbols(&model).len(), 3);
    assert_eq!(model.key(Key::Char('q')), Outcome::Quit);
}

#[test]
fn a_frozen_view_stands_still_until_it_goes_on() {
    let mut model = model();
    model.key(Key::Char('f'));
    model.update(Ok(snapshot(&[(10, 999)])), at(3));
    assert_eq!(model.latest().unwrap().totals.exits, 201);
    model.key(Key::Char('f'));
    model.update(Ok(snapshot(&[(10, 1110), (30, 90), (12, 1)])), at(12));
    assert_eq!(model.latest().unwrap().totals.exits, 1201);
    // A thousand more in the ten seconds since the last one that was shown.
    assert_eq!(model.rows()[0].rate, 100.0);
}

#[test]
fn the_selection_stays_with_its_reason() {
    let mut model = model();
    assert_eq!(symbols(&model), ["IO_INSTRUCTION", "CPUID", "HLT"]);
    // Nothing was chosen yet: the top stays the top.
    model.update(Ok(snapshot(&[(10, 1110), (30, 90), (12, 2)])), at(3));
    assert_eq!((model.selected, symbols(&model)[0].as_str()), (0, "CPUID"));
    model.key(Key::Enter);
    model.update(Ok(snapshot(&[(10, 1110), (30, 190), (12, 2)])), at(4));
    assert_eq!(symbols(&model)[model.selected], "CPUID");
    model.key(Key::Down);
    let chosen = symbols(&model)[model.selected].clone();
    for _ in 0..4 {
        model.key(Key::Char('s'));
        assert_eq!(symbols(&model)[model.selected], chosen);
    }
}

#[test]
fn a_reboot_begins_rates_anew() {
    let mut model = model();
    model.update(Ok(snapshot(&[(10, 1)])), at(3));
    assert_eq!(model.interval(), None);
    assert_eq!(model.rows()[0].rate, 0.0);
}

#[test]
fn a_failed_reading_is_shown_and_the_figures_stay() {
    let mut model = model();
    model.update(Err("Cannot connect".into()), at(3));
    let screen = screen(&model);
    assert!(screen.contains("Cannot connect") && screen.contains("IO_INSTRUCTION"));
}

#[test]
fn an_opened_reason_shows_the_devices_behind_it() {
    let mut model = model();
    assert!(!screen(&model).contains("serial"));
    model.key(Key::Enter);
    let screen = screen(&model);
    assert!(
        screen.contains("serial") && screen.contains("0x3f8"),
        "{screen}"
    );
    assert!(screen.contains("by vCPU  0: 90"), "{screen}");
}

#[test]
fn the_screen_reads_as_it_should() {
    insta::assert_snapshot!(screen(&model()));
}
