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
    screen_of(model, 100, 18)
}

fn screen_of(model: &Model, columns: u16, rows: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
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
fn counters_grow_old_while_an_answer_does_not_come() {
    let within = Duration::from_secs(3);
    let mut model = Model::new("vm.sock");
    model.expect_reading(at(100), within);
    assert_eq!(model.not_current(), None);
    model.update(Ok(snapshot(&[(10, 100)])), at(0));
    for (seconds, says) in [
        (3, None),
        (4, Some("NOT CURRENT: no answer")),
        (2, None),
        (9, Some("NOT CURRENT: no answer")),
    ] {
        model.expect_reading(at(seconds), within);
        assert_eq!(model.not_current(), says, "{seconds}");
    }
    model.key(Key::Char('f'));
    assert_eq!(model.not_current(), Some("FROZEN"));
    model.key(Key::Char('f'));
    model.update(Ok(snapshot(&[(10, 110)])), at(9));
    model.expect_reading(at(10), within);
    assert_eq!(model.not_current(), None);
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

/// Figures with as many digits as a long-lived machine has.
fn large_model() -> Model {
    let rows = |factor: u64| -> Vec<(usize, u64)> {
        [
            (1, 7),
            (10, 31),
            (30, 4),
            (48, 19),
            (49, 5),
            (32, 23),
            (7, 3),
        ]
        .map(|(slot, weight)| (slot, weight * factor + slot as u64))
        .to_vec()
    };
    let mut model = Model::new("/run/vms/a-machine-with-a-long-name.sock");
    model.update(Ok(snapshot(&rows(123_456_789))), at(0));
    model.update(Ok(snapshot(&rows(123_987_654))), at(1));
    model
}

/// Each number on a narrow screen is one that stands on the widest, whole.
#[test]
fn columns_are_left_out_whole_and_digits_never() {
    let words = |screen: &str| -> Vec<String> {
        screen
            .lines()
            .flat_map(|line| line.trim_matches('"').split_whitespace())
            .map(str::to_owned)
            .collect()
    };
    let mut model = large_model();
    for opened in [false, true] {
        model.opened = opened;
        let wide = words(&screen_of(&model, 300, 24));
        for columns in 20..=200 {
            let narrow = screen_of(&model, columns, 24);
            for word in words(&narrow) {
                let is_number = word.starts_with(|c: char| c.is_ascii_digit());
                assert!(
                    !is_number || wide.contains(&word),
                    "{columns}: {word}\n{narrow}"
                );
            }
            if columns >= 40 {
                for whole in ["EXTERNAL_INTERRUPT", "MSR_WRITE", "Exits/s"] {
                    assert!(narrow.contains(whole), "{columns}: {whole}\n{narrow}");
                }
            }
        }
    }
}

#[test]
fn a_long_list_scrolls_to_what_is_selected() {
    let mut model = large_model();
    let last = symbols(&model).last().unwrap().clone();
    assert!(!screen_of(&model, 80, 9).contains(&last));
    for _ in 0..10 {
        model.key(Key::Down);
    }
    assert!(screen_of(&model, 80, 9).contains(&last));
}

#[test]
fn a_terminal_that_does_not_say_its_size_is_taken_as_80_by_24() {
    assert_eq!(viewport(0, 0), Viewport::Fixed(Rect::new(0, 0, 80, 24)));
    assert_eq!(viewport(80, 0), Viewport::Fixed(Rect::new(0, 0, 80, 24)));
    assert_eq!(viewport(132, 50), Viewport::Fullscreen);
}

/// Everything that makes counters old or incomplete, at every width.
#[test]
fn what_is_not_current_says_so_at_any_width() {
    let counting = |boot_id: &str, rows: &[(usize, u64)]| ExitSnapshot {
        boot_id: Some(boot_id.into()),
        ..snapshot(rows)
    };
    let off = || {
        let mut off = counting("a", &[(10, 110)]);
        off.source = instrumentation::snapshot::Source::Kvm;
        off.unavailable = Some("Counting is off".into());
        off.isa = None;
        off.reasons = None;
        off
    };
    let ended = ExitSnapshot {
        ended: true,
        ..counting("a", &[(10, 120)])
    };
    let cases = [
        (Ok(off()), "Counting is off"),
        (Ok(ended), "ENDED"),
        (Err("Cannot connect".to_owned()), "NOT CURRENT"),
        (Ok(counting("b", &[(10, 500)])), "Rates begin anew"),
    ];
    for (reading, says) in cases {
        let mut model = Model::new("vm.sock");
        model.update(Ok(counting("a", &[(10, 100)])), at(0));
        model.update(Ok(counting("a", &[(10, 110)])), at(1));
        model.update(reading, at(2));
        for columns in 40..=120 {
            let screen = screen_of(&model, columns, 24);
            assert!(screen.contains(says), "{columns}: {says}\n{screen}");
        }
        model.update(Ok(off()), at(3));
        model.update(Ok(counting("a", &[(10, 130)])), at(4));
        assert!(screen(&model).contains("counting was switched"));
    }
    let mut frozen = large_model();
    frozen.key(Key::Char('f'));
    assert!(screen_of(&frozen, 40, 24).contains("FROZEN"));
}

#[test]
fn the_screen_reads_as_it_should() {
    insta::assert_snapshot!(screen(&model()));
}
