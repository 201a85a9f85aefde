use std::io::Write;

use super::*;

const NAME_SIZE: usize = 48;

struct Stat {
    name: &'static str,
    kind: u32,
    bucket_size: u32,
    values: Vec<u64>,
}

fn scalar(name: &'static str, value: u64) -> Stat {
    Stat {
        name,
        kind: TYPE_CUMULATIVE,
        bucket_size: 0,
        values: vec![value],
    }
}

fn histogram(name: &'static str, base: u64) -> Stat {
    Stat {
        name,
        kind: TYPE_LINEAR_HIST,
        bucket_size: 1,
        values: (0..STATS_SLOTS as u64).map(|slot| base + slot).collect(),
    }
}

/// Writes statistics in the form that the kernel's documentation gives.
fn image(stats: &[Stat]) -> Vec<u8> {
    let descriptors_at = HEADER_LEN + NAME_SIZE;
    let data_at = descriptors_at + stats.len() * (DESCRIPTOR_LEN + NAME_SIZE);
    let mut bytes = Vec::new();
    for word in [
        0,
        NAME_SIZE,
        stats.len(),
        HEADER_LEN,
        descriptors_at,
        data_at,
    ] {
        bytes.extend((word as u32).to_le_bytes());
    }
    bytes.resize(descriptors_at, 0);
    let mut offset = 0u32;
    for stat in stats {
        bytes.extend(stat.kind.to_le_bytes());
        bytes.extend(0i16.to_le_bytes());
        bytes.extend((stat.values.len() as u16).to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.extend(stat.bucket_size.to_le_bytes());
        let mut name = stat.name.as_bytes().to_vec();
        name.resize(NAME_SIZE, 0);
        bytes.extend(name);
        offset += (stat.values.len() * WORD) as u32;
    }
    for stat in stats {
        for value in &stat.values {
            bytes.extend(value.to_le_bytes());
        }
    }
    bytes
}

fn open(bytes: &[u8]) -> Result<StatsFd, StatsError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    StatsFd::from_file(file)
}

fn patched() -> Vec<Stat> {
    vec![
        scalar("pf_taken", 1),
        scalar("exits", 4321),
        histogram("halt_wait_hist", 9),
        scalar("guest_cycles", 77),
        histogram("exits_by_reason", 1000),
        histogram("exit_cycles_by_reason", 2000),
        histogram("exit_blocked_cycles_by_reason", 3000),
        histogram("exit_userspace_cycles_by_reason", 4000),
        histogram("exit_preempted_cycles_by_reason", 5000),
        scalar("tail", 5),
    ]
}

#[test]
fn stock_kernel_gives_exits_and_no_arrays() {
    let stats = open(&image(&[scalar("pf_taken", 1), scalar("exits", 99)])).unwrap();
    assert!(!stats.has_reasons());
    assert_eq!(stats.length, WORD);
    let sample = stats.sample().unwrap();
    assert_eq!(
        (sample.exits, sample.guest_cycles, sample.arrays),
        (99, None, None)
    );
}

#[test]
fn patched_kernel_gives_each_array_from_its_own_place() {
    let stats = open(&image(&patched())).unwrap();
    assert!(stats.has_reasons());
    let sample = stats.sample().unwrap();
    assert_eq!((sample.exits, sample.guest_cycles), (4321, Some(77)));
    let arrays = sample.arrays.unwrap();
    for (array, base) in [
        (&arrays.exits, 1000),
        (&arrays.cycles, 2000),
        (&arrays.blocked_cycles, 3000),
        (&arrays.userspace_cycles, 4000),
        (&arrays.preempted_cycles, 5000),
    ] {
        let expected: Vec<u64> = (0..STATS_SLOTS as u64).map(|slot| base + slot).collect();
        assert_eq!(array, &expected);
    }
}

#[test]
fn first_version_of_the_interface_lacks_preempted_cycles_alone() {
    let mut stats = patched();
    stats.remove(8);
    let arrays = open(&image(&stats)).unwrap().sample().unwrap().arrays;
    let arrays = arrays.unwrap();
    assert!(arrays.preempted_cycles.is_empty());
    assert_eq!(arrays.userspace_cycles[1], 4001);
}

#[test]
fn a_kernel_with_more_reasons_is_read_with_all_of_them() {
    let mut stats = patched();
    for array in &mut stats[4..9] {
        array.values.extend([7, 8]);
    }
    let sample = open(&image(&stats)).unwrap().sample().unwrap();
    let arrays = sample.arrays.unwrap();
    assert_eq!(arrays.preempted_cycles.len(), STATS_SLOTS + 2);
    for (array, base) in [(&arrays.exits, 1000), (&arrays.userspace_cycles, 4000)] {
        assert_eq!(array.len(), STATS_SLOTS + 2);
        assert_eq!((array[0], array[STATS_SLOTS + 1]), (base, 8));
    }
}

#[test]
fn one_missing_or_misshapen_array_means_no_arrays() {
    for spoiled in 4..8 {
        let mut stats = patched();
        stats.remove(spoiled);
        assert!(!open(&image(&stats)).unwrap().has_reasons());

        let mut stats = patched();
        stats[spoiled].values.pop();
        assert!(!open(&image(&stats)).unwrap().has_reasons());

        let mut stats = patched();
        stats[spoiled].bucket_size = 2;
        assert!(!open(&image(&stats)).unwrap().has_reasons());
    }
}

#[test]
fn statistics_without_exits_are_refused() {
    assert!(matches!(
        open(&image(&[scalar("pf_taken", 1)])),
        Err(StatsError::NoExits)
    ));
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let whole = image(&patched());
    for length in 0..whole.len() {
        if let Ok(stats) = open(&whole[..length]) {
            assert!(stats.sample().is_err() || length >= whole.len() - WORD);
        }
    }
    for at in 0..HEADER_LEN + NAME_SIZE + 4 * (DESCRIPTOR_LEN + NAME_SIZE) {
        for value in [0, 1, 0x7f, 0xff] {
            let mut spoiled = whole.clone();
            spoiled[at] = value;
            if let Ok(stats) = open(&spoiled) {
                let _ = stats.sample();
            }
        }
    }
}

#[test]
fn whether_a_vcpu_sleeps_is_told_where_the_kernel_says_it() {
    let mut stats = patched();
    assert_eq!(open(&image(&stats)).unwrap().is_blocking(), None);
    for (value, expected) in [(0, false), (1, true)] {
        stats.push(Stat {
            kind: TYPE_INSTANT,
            ..scalar("blocking", value)
        });
        let fd = open(&image(&stats)).unwrap();
        assert_eq!(fd.is_blocking(), Some(expected));
        stats.pop();
    }
}
