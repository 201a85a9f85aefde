use super::*;
use crate::recording::Recorder;
use instrumentation::snapshot::{Host, ReasonArrays, VcpuInput, VcpuSample};
use instrumentation::table::{Isa, STATS_SLOTS};
use instrumentation::user_exit::{AddressSpace, RangeMap, UserExitKind, UserExitRecorder};

fn recording(isa: &Result<Isa, String>) -> Recording {
    let mut file = Vec::new();
    let mut recorder = Recorder::new(&mut file, "</script><b>vm", 100).unwrap();
    let ranges = RangeMap::new();
    let serial = ranges.register("serial", 0x3f8, 8, AddressSpace::Port);
    let user = UserExitRecorder::new();
    let mut arrays = ReasonArrays {
        exits: vec![0; STATS_SLOTS],
        cycles: vec![0; STATS_SLOTS],
        blocked_cycles: vec![0; STATS_SLOTS],
        userspace_cycles: vec![0; STATS_SLOTS],
        preempted_cycles: vec![0; STATS_SLOTS],
    };
    for step in 0..20u64 {
        for slot in 0..12 {
            arrays.exits[slot] += if step == 5 { 50 } else { 1 } + slot as u64;
            arrays.cycles[slot] += 1000;
        }
        user.record(UserExitKind::IoOut, serial, 1, 10);
        let input = VcpuInput {
            id: 0,
            sample: VcpuSample {
                exits: 1,
                guest_cycles: Some(step * 1000),
                arrays: isa.is_ok().then(|| arrays.clone()),
            },
            user_exits: user.read(),
        };
        let host = Host {
            isa: isa.clone(),
            tsc_khz: 1000,
        };
        let mut snapshot = ExitSnapshot::from_samples(&host, &ranges.ranges(), &[input]);
        let kernels = format!("latency on\n0xa CPUID <1024:{} <4096:1\n", step + 1);
        snapshot.latency = instrumentation::snapshot::Latency::parse(&kernels, 1_000_000);
        recorder.add(step * 100, snapshot).unwrap();
    }
    Recording::read(&file[..]).unwrap()
}

#[test]
fn a_page_shows_every_reason_and_loads_nothing() {
    let page = render(&recording(&Ok(Isa::Vmx))).unwrap();
    for text in [
        "EXCEPTION_NMI",
        "GETSEC",
        "serial 0x3f8 io_out",
        "one burst",
        "all others",
        "Time of single exits in the kernel",
    ] {
        assert!(page.contains(text), "{text}");
    }
    for needle in ["http://", "https://", "src=", "@import", "url("] {
        let without_namespace = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!without_namespace.contains(needle), "{needle}");
    }
}

#[test]
fn a_page_has_the_histograms_of_the_whole_recording() {
    let page = render(&recording(&Ok(Isa::Vmx))).unwrap();
    assert!(page.contains("CPUID,21,"), "{page}");
}

#[test]
fn a_page_takes_all_its_colours_from_the_theme() {
    let page = render(&recording(&Ok(Isa::Vmx))).unwrap();
    assert!(page.contains("fill=\"var(--c8, #8d9096)\""));
    assert!(!page.contains("#FE0"), "a stand-in colour is left");
}

#[test]
fn names_cannot_break_out_of_the_page() {
    let page = render(&recording(&Ok(Isa::Vmx))).unwrap();
    assert!(!page.contains("</script><b>"));
    assert!(page.contains("&lt;/script&gt;&lt;b&gt;vm"));
}

#[test]
fn exits_of_the_series_add_up_to_the_recording() {
    let recording = recording(&Ok(Isa::Vmx));
    let timeline = Timeline::new(&recording);
    let recorded: u64 = recording
        .samples
        .iter()
        .map(|sample| sample.delta.totals.exits)
        .sum();
    assert_eq!(timeline.exits().iter().sum::<u64>(), recorded);
}

#[test]
fn a_recording_of_an_unpatched_host_says_why_it_has_no_report() {
    let error = render(&recording(&Err("not patched".into()))).unwrap_err();
    assert!(error.to_string().contains("not patched"), "{error}");
}

#[test]
fn an_empty_recording_has_no_report() {
    let mut file = Vec::new();
    Recorder::new(&mut file, "vm", 1).unwrap();
    let recording = Recording::read(&file[..]).unwrap();
    assert!(matches!(render(&recording), Err(ReportError::Empty)));
}

#[test]
fn a_plot_alone_carries_its_own_legend() {
    let svg = render_svg(&recording(&Ok(Isa::Vmx))).unwrap();
    assert!(svg.contains(">CPUID</text>") && svg.contains(">all others</text>"));
    assert!(svg.contains("height=\"388\""), "{}", &svg[..300]);
}
