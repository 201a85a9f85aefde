//! The control queue (virtio 1.3, 5.1.6.5): the driver changes settings.

use std::io::{Read, Write};

use virtio_bindings::virtio_net as net;

use super::header::{guest_offloads, tap_offload};
use super::steering::Steering;
use crate::virtio::{Chain, GuestFaults, QueueError, VirtQueue};

/// What the driver asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Use so many queue pairs.
    SetPairs(u16),
    /// Take only these offloads from now on.
    SetOffloads(u64),
}

/// Why a command is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ControlError {
    /// Not a class, a command and what belongs to it.
    #[error("A control command of a wrong length")]
    Length,
    /// Of a feature that was not offered.
    #[error("An unknown control command {command} of class {class}")]
    Unknown {
        /// Its class.
        class: u8,
        /// Its number.
        command: u8,
    },
    /// More than there are, or none.
    #[error("{0} queue pairs are asked for")]
    Pairs(u16),
    /// Offloads that were not agreed on.
    #[error("The offloads {0:#x} are asked for")]
    Offloads(u64),
    /// The host does not do it.
    #[error("The host refuses a control command: {0}")]
    Host(String),
    /// Nowhere to write the answer to.
    #[error("A control command without room for the answer")]
    NoAnswer,
}

/// Longer than every command that is known.
const LONGEST: usize = 16;

impl Command {
    /// Reads a command.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ControlError> {
        let (&[class, command], body) = bytes.split_first_chunk().ok_or(ControlError::Length)?;
        match (u32::from(class), u32::from(command)) {
            (net::VIRTIO_NET_CTRL_MQ, net::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                let body = body.try_into().map_err(|_| ControlError::Length)?;
                Ok(Self::SetPairs(u16::from_le_bytes(body)))
            }
            (net::VIRTIO_NET_CTRL_GUEST_OFFLOADS, net::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                let body = body.try_into().map_err(|_| ControlError::Length)?;
                Ok(Self::SetOffloads(u64::from_le_bytes(body)))
            }
            _ => Err(ControlError::Unknown { class, command }),
        }
    }

    fn execute(self, steering: &Steering, features: u64) -> Result<(), ControlError> {
        let host = |error: std::io::Error| ControlError::Host(error.to_string());
        match self {
            Self::SetPairs(pairs) => {
                if pairs == 0 || usize::from(pairs) > steering.tap_queues().len() {
                    return Err(ControlError::Pairs(pairs));
                }
                steering.use_pairs(usize::from(pairs)).map_err(host)
            }
            Self::SetOffloads(offloads) => {
                if offloads & !guest_offloads(features) != 0 {
                    return Err(ControlError::Offloads(offloads));
                }
                steering.set_offload(tap_offload(offloads)).map_err(host)
            }
        }
    }
}

/// Carries out what is in the queue. `features` are those agreed on.
pub(super) fn process_queue(
    queue: &mut VirtQueue,
    faults: &GuestFaults,
    mut execute: impl FnMut(Command) -> Result<(), ControlError>,
) -> Result<(), QueueError> {
    queue.drain(|chain| match serve(chain, &mut execute) {
        Ok(refused) => {
            if let Some(error) = refused {
                faults.report(&error);
            }
            1
        }
        Err(error) => {
            faults.report(&error);
            0
        }
    })
}

/// How the device carries out commands.
pub(super) fn executor(
    steering: &Steering,
    features: u64,
) -> impl FnMut(Command) -> Result<(), ControlError> {
    move |command| command.execute(steering, features)
}

/// Serves one chain; says why the command was refused, if it was.
fn serve(
    chain: &Chain,
    execute: &mut impl FnMut(Command) -> Result<(), ControlError>,
) -> Result<Option<ControlError>, ControlError> {
    let mut bytes = [0; LONGEST];
    let mut reader = chain
        .clone()
        .reader(chain.memory())
        .map_err(|_| ControlError::Length)?;
    let mut writer = chain
        .clone()
        .writer(chain.memory())
        .map_err(|_| ControlError::NoAnswer)?;
    if writer.available_bytes() == 0 {
        return Err(ControlError::NoAnswer);
    }
    let length = reader.available_bytes();
    let done = match bytes.get_mut(..length) {
        Some(bytes) => reader
            .read_exact(bytes)
            .map_err(|_| ControlError::Length)
            .and_then(|()| Command::parse(bytes))
            .and_then(execute),
        None => Err(ControlError::Length),
    };
    let answer = if done.is_ok() {
        net::VIRTIO_NET_OK
    } else {
        net::VIRTIO_NET_ERR
    };
    writer
        .write_all(&[answer as u8])
        .map_err(|_| ControlError::NoAnswer)?;
    Ok(done.err())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::virtio::testing::{Buffer, Driver};

    #[test]
    fn commands_are_read_and_everything_else_is_refused() {
        assert_eq!(Command::parse(&[4, 0, 2, 1]), Ok(Command::SetPairs(0x102)));
        assert_eq!(
            Command::parse(&[5, 0, 1, 0, 0, 0, 0, 0, 0, 2]),
            Ok(Command::SetOffloads(0x0200_0000_0000_0001))
        );
        for bytes in [
            &[][..],
            &[4],
            &[4, 0],
            &[4, 0, 1],
            &[4, 0, 1, 0, 0],
            &[5, 0, 1],
        ] {
            assert_eq!(Command::parse(bytes), Err(ControlError::Length));
        }
        assert_eq!(
            Command::parse(&[0, 1, 1]),
            Err(ControlError::Unknown {
                class: 0,
                command: 1
            })
        );
    }

    #[test]
    fn the_answer_says_whether_the_command_was_carried_out() {
        let mut driver = Driver::new(16);
        driver.put(0, &[4, 0, 2, 0]);
        driver.put(16, &[4, 0, 9, 0]);
        for at in [0, 16] {
            driver.offer(&[
                Buffer::readable(at, 2),
                Buffer::readable(at + 2, 2),
                Buffer::writable(at + 8, 1),
            ]);
        }
        driver.put(8, &[0xff]);
        // No answer, too long, and too short.
        driver.offer(&[Buffer::readable(0, 4)]);
        driver.offer(&[Buffer::readable(0, 100), Buffer::writable(40, 1)]);
        driver.offer(&[Buffer::writable(41, 1)]);
        let faults = GuestFaults::new("net");
        let mut seen = Vec::new();
        process_queue(&mut driver.queue(), &faults, |command| {
            seen.push(command);
            match command {
                Command::SetPairs(2) => Ok(()),
                _ => Err(ControlError::Pairs(9)),
            }
        })
        .unwrap();
        assert_eq!(seen, [Command::SetPairs(2), Command::SetPairs(9)]);
        assert_eq!((driver.get(8, 1), driver.get(24, 1)), (vec![0], vec![1]));
        assert_eq!(driver.get(40, 2), [1, 1]);
        let lengths: Vec<u32> = driver.used().iter().map(|&(_, length)| length).collect();
        assert_eq!(lengths, [1, 1, 0, 1, 1]);
        assert_eq!(faults.count(), 4);
    }

    proptest! {
        #[test]
        fn whatever_the_command_is_nobody_panics(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let _ = Command::parse(&bytes);
        }
    }
}
