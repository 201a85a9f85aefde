//! The device status field (virtio 1.3, 2.1): which writes of the driver are
//! steps, and what follows from them.

use virtio_bindings::virtio_config as bits;

const ACKNOWLEDGE: u8 = bits::VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
const DRIVER: u8 = bits::VIRTIO_CONFIG_S_DRIVER as u8;
const DRIVER_OK: u8 = bits::VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FEATURES_OK: u8 = bits::VIRTIO_CONFIG_S_FEATURES_OK as u8;
const FAILED: u8 = bits::VIRTIO_CONFIG_S_FAILED as u8;
/// The bit by which a device asks for a reset.
pub const NEEDS_RESET: u8 = bits::VIRTIO_CONFIG_S_NEEDS_RESET as u8;

/// What a write of the status asks the device to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// Nothing.
    None,
    /// Forget everything.
    Reset,
    /// Start. The status shows it at once.
    Activate,
}

/// The status as the driver reads it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceStatus(u8);

impl DeviceStatus {
    /// The register's value.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    /// A status as [`bits`](Self::bits) told it.
    #[must_use]
    pub fn from_bits(bits: u8) -> Self {
        Self(bits & !NEEDS_RESET)
    }

    /// The driver has taken the device into use.
    #[must_use]
    pub fn is_active(self) -> bool {
        self.0 & DRIVER_OK != 0
    }

    /// The driver knows how to drive the device, and features are still open.
    #[must_use]
    pub fn negotiating(self) -> bool {
        self.0 & (DRIVER | FEATURES_OK) == DRIVER
    }

    /// Features are settled and queues are still open.
    #[must_use]
    pub fn configuring(self) -> bool {
        self.0 & (FEATURES_OK | DRIVER_OK) == FEATURES_OK
    }

    /// The driver wrote `value`. `features_accepted` says whether the features
    /// it chose are possible. Steps come in the standard's order; whatever is
    /// not a step, such as taking back a bit, changes nothing.
    pub fn write(&mut self, value: u8, features_accepted: bool) -> Transition {
        if value == 0 {
            self.0 = 0;
            return Transition::Reset;
        }
        if value & self.0 != self.0 & !NEEDS_RESET {
            return Transition::None;
        }
        let mut transition = Transition::None;
        // Drivers may take several steps in one write.
        for (step, after) in [
            (ACKNOWLEDGE, 0),
            (DRIVER, ACKNOWLEDGE),
            (FEATURES_OK, ACKNOWLEDGE | DRIVER),
            (DRIVER_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK),
        ] {
            if value & step == 0 || self.0 & step != 0 || self.0 & after != after {
                continue;
            }
            if step == FEATURES_OK && !features_accepted {
                continue;
            }
            self.0 |= step;
            if step == DRIVER_OK {
                transition = Transition::Activate;
            }
        }
        self.0 |= value & FAILED;
        transition
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_usual_sequence_activates_once() {
        let mut status = DeviceStatus::default();
        for (value, negotiating, configuring) in
            [(1, false, false), (3, true, false), (0xb, false, true)]
        {
            assert_eq!(status.write(value, true), Transition::None);
            assert_eq!(status.bits(), value);
            assert_eq!(
                (status.negotiating(), status.configuring()),
                (negotiating, configuring)
            );
        }
        assert_eq!(status.write(0xf, true), Transition::Activate);
        assert_eq!(status.write(0xf, true), Transition::None);
        assert_eq!(status.write(0, true), Transition::Reset);
        assert_eq!(status.bits(), 0);
    }

    #[test]
    fn impossible_features_are_not_acknowledged() {
        let mut status = DeviceStatus(3);
        status.write(0xb, false);
        assert_eq!(status.bits(), 3);
        assert_eq!(status.write(0xf, false), Transition::None);
        assert_eq!(status.bits(), 3);
    }

    #[test]
    fn giving_up_is_possible_at_any_time() {
        let mut status = DeviceStatus(1);
        status.write(0x81, true);
        assert_eq!(status.bits(), 0x81);
    }

    proptest! {
        #[test]
        fn a_device_is_active_only_after_all_steps(writes in prop::collection::vec(any::<u8>(), 0..50)) {
            let mut status = DeviceStatus::default();
            for value in writes {
                let before = status;
                let transition = status.write(value, true);
                let steps = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
                if status.0 & DRIVER_OK != 0 {
                    prop_assert_eq!(status.0 & steps, steps);
                }
                let started = before.0 & DRIVER_OK == 0 && status.0 & DRIVER_OK != 0;
                prop_assert_eq!(transition == Transition::Activate, started);
                prop_assert!(value == 0 || status.0 & before.0 == before.0);
            }
        }
    }
}
