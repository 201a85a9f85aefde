use super::*;

fn access(range: RangeId, register: u64) -> Access {
    Access { range, register }
}

#[test]
fn each_access_moves_its_own_count_and_no_other() {
    let map = RangeMap::new();
    let serial = map.register("serial", 0x3f8, 8, AddressSpace::Port);
    let late = (0..40)
        .map(|n| map.register("disk", n << 12, 0x1000, AddressSpace::Mmio))
        .next_back()
        .unwrap();
    let recorder = UserExitRecorder::new();
    let mut expected = Vec::new();
    for range in [RangeId::default(), serial, late] {
        for kind in UserExitKind::ALL.into_iter().take(4) {
            for register in [0, 1, 7] {
                for size in [1u8, 2, 4, 8] {
                    let ticks = expected.len() as u64;
                    recorder.record(kind, access(range, register), size, ticks);
                    recorder.record(kind, access(range, register), size, 8);
                    expected.push(UserExitCount {
                        kind,
                        access: Some(AccessKey {
                            range: usize::from(range.0),
                            register: Some(register),
                            size,
                        }),
                        exits: 2,
                        ticks: ticks + 8,
                    });
                }
            }
        }
    }
    expected.sort_by_key(|count| (count.kind, count.access));
    assert_eq!(recorder.read(), expected);
}

#[test]
fn kinds_that_are_no_access_have_no_range() {
    for kind in UserExitKind::ALL.into_iter().skip(4) {
        let recorder = UserExitRecorder::new();
        recorder.record(kind, RangeId(3), 4, 5);
        let [count] = &recorder.read()[..] else {
            panic!("one row")
        };
        assert_eq!((count.kind, count.access, count.exits), (kind, None, 1));
        assert_eq!(
            serde_json::to_string(&kind).unwrap(),
            format!("\"{}\"", kind.as_str())
        );
    }
}

#[test]
fn a_guest_that_walks_through_all_addresses_loses_no_count_and_no_devices_register() {
    let map = RangeMap::new();
    let serial = map.register("serial", 0x3f8, 8, AddressSpace::Port);
    let recorder = UserExitRecorder::new();
    for address in 0..100_000 {
        recorder.record(
            UserExitKind::MmioRead,
            access(RangeId::default(), address),
            4,
            1,
        );
    }
    for register in 0..8 {
        recorder.record(UserExitKind::IoOut, access(serial, register), 1, 1);
    }
    let counts = recorder.read();
    let unassigned: Vec<_> = counts
        .iter()
        .filter(|count| count.kind == UserExitKind::MmioRead)
        .collect();
    assert!(unassigned.len() <= 129, "{}", unassigned.len());
    assert_eq!(
        unassigned.iter().map(|count| count.exits).sum::<u64>(),
        100_000
    );
    assert_eq!(unassigned[0].access.unwrap().register, None);
    assert_eq!(counts.len() - unassigned.len(), 8);
}

#[test]
fn registers_past_the_capacity_are_counted_by_range() {
    let map = RangeMap::new();
    let large = map.register("large", 0, 1 << 20, AddressSpace::Mmio);
    let recorder = UserExitRecorder::new();
    for register in 0..2 * UserExitRecorder::REGISTERS as u64 {
        recorder.record(UserExitKind::MmioWrite, access(large, register), 8, 1);
    }
    let counts = recorder.read();
    assert_eq!(counts.len(), UserExitRecorder::REGISTERS + 1);
    assert_eq!(counts[0].access.unwrap().register, None);
    assert_eq!(counts[0].exits, UserExitRecorder::REGISTERS as u64);
}

#[test]
fn a_range_registered_again_keeps_its_id() {
    let map = RangeMap::new();
    let first = map.register("serial", 0x3f8, 8, AddressSpace::Port);
    assert_ne!(first, RangeId::default());
    assert_eq!(map.register("serial", 0x3f8, 8, AddressSpace::Port), first);
    assert_ne!(map.register("serial", 0x3f8, 8, AddressSpace::Mmio), first);
}

#[test]
fn a_range_that_a_guest_moves_keeps_its_id_and_uses_up_none() {
    let map = RangeMap::new();
    let disk = map.register("disk", 0x1000, 0x1000, AddressSpace::Mmio);
    let neighbour = map.register("net", 0x10_0000, 0x1000, AddressSpace::Mmio);
    for base in 2..10_000 {
        map.release(disk);
        let moved = map.register("disk", base << 12, 0x1000, AddressSpace::Mmio);
        assert_eq!(moved, disk);
    }
    assert_eq!(map.ranges()[usize::from(disk.0)].base, Some(9999 << 12));
    assert_eq!(map.ranges()[usize::from(neighbour.0)].base, Some(0x10_0000));
    let late = map.register("late", 0, 1, AddressSpace::Port);
    assert_eq!(map.ranges()[usize::from(late.0)].device, "late");
}

#[test]
fn two_ranges_of_a_device_that_are_in_use_stay_apart() {
    let map = RangeMap::new();
    let one = map.register("disk", 0x1000, 0x1000, AddressSpace::Mmio);
    let two = map.register("disk", 0x2000, 0x1000, AddressSpace::Mmio);
    assert_ne!(one, two);
    map.release(two);
    map.release(one);
    assert_eq!(
        map.register("disk", 0x2000, 0x1000, AddressSpace::Mmio),
        two
    );
}

#[test]
fn ranges_past_the_capacity_count_as_other_devices() {
    let map = RangeMap::new();
    for n in 0..RangeMap::CAPACITY as u64 {
        map.register("disk", n, 1, AddressSpace::Mmio);
    }
    let late = map.register("late", 0, 1, AddressSpace::Mmio);
    assert_eq!(map.ranges()[usize::from(late.0)].device, "other devices");
}

#[test]
fn saved_counts_go_on_under_the_same_names() {
    let ranges = RangeMap::new();
    let serial = ranges.register("serial", 0x3f8, 8, AddressSpace::Port);
    let disk = ranges.register("disk", 0xe000_0000, 4096, AddressSpace::Mmio);
    let recorder = UserExitRecorder::new();
    for register in 0..UserExitRecorder::REGISTERS as u64 + 5 {
        let access = Access {
            range: disk,
            register,
        };
        recorder.record(UserExitKind::MmioWrite, access, 4, 3);
    }
    recorder.record(UserExitKind::IoOut, serial, 1, 7);
    recorder.record(UserExitKind::Shutdown, RangeId::default(), 0, 9);
    ranges.release(serial);

    let again = RangeMap::restore(&ranges.save()).unwrap();
    assert_eq!(again.save(), ranges.save());
    let restored = UserExitRecorder::restore(&recorder.save(), &again).unwrap();
    assert_eq!(restored.read(), recorder.read());
    // The device comes back and finds its range, as after a reset.
    assert_eq!(
        again.register("serial", 0x3f8, 8, AddressSpace::Port),
        serial
    );
    restored.record(UserExitKind::IoOut, serial, 1, 1);
    recorder.record(UserExitKind::IoOut, serial, 1, 1);
    assert_eq!(restored.read(), recorder.read());
}

#[test]
fn counts_that_make_no_sense_are_refused() {
    let ranges = RangeMap::new();
    let count = |kind, access| CountState {
        kind,
        access,
        exits: 1,
        ticks: 1,
    };
    let refused = |count| UserExitRecorder::restore(&[count], &ranges).unwrap_err();
    let access = |range, size| Some((range, Some(0), size));
    for (count, error) in [
        (
            count(UserExitKind::IoIn, None),
            RecorderStateError::Count("io_in"),
        ),
        (
            count(UserExitKind::Hlt, access(0, 1)),
            RecorderStateError::Count("hlt"),
        ),
        (
            count(UserExitKind::IoIn, access(0, 3)),
            RecorderStateError::Count("io_in"),
        ),
        (
            count(UserExitKind::IoIn, access(2, 1)),
            RecorderStateError::NoRange(2),
        ),
    ] {
        assert_eq!(refused(count), error);
    }
    let range = RangeState {
        device: "d".into(),
        base: 0,
        length: 1,
        space: AddressSpace::Port,
        released: false,
    };
    let twice = [range.clone(), range.clone()];
    assert_eq!(
        RangeMap::restore(&twice).unwrap_err(),
        RecorderStateError::Range("d".into())
    );
    let many = vec![range; RangeMap::CAPACITY];
    assert_eq!(
        RangeMap::restore(&many).unwrap_err(),
        RecorderStateError::Ranges(RangeMap::CAPACITY)
    );
}
