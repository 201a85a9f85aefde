//! The debug port: what firmware and early kernels write a byte at a time to
//! be seen before they have a driver for anything.

use crate::bus::BusDevice;
use crate::chardev::CharBackend;

/// What the port reads as, by which programs find out that it is there.
const PRESENT: u8 = 0xe9;

/// A port whose bytes go to the host's end of a console.
#[derive(Debug)]
pub struct DebugConsole(CharBackend);

impl DebugConsole {
    /// A port that leads to `end`.
    #[must_use]
    pub fn new(end: CharBackend) -> Self {
        Self(end)
    }
}

impl BusDevice for DebugConsole {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(PRESENT);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.0.send(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chardev::ConsoleTarget;

    #[test]
    fn bytes_arrive_as_they_are_and_the_port_says_that_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("debug");
        let end = CharBackend::open(&ConsoleTarget::File(path.clone())).unwrap();
        let device = DebugConsole::new(end);
        for byte in b"early\n" {
            device.write(0, &[*byte]);
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"early\n");
        let mut data = [0];
        device.read(0, &mut data);
        assert_eq!(data, [0xe9]);
    }
}
