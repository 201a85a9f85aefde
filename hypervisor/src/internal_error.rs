//! Where and why KVM gave up on a guest (`KVM_EXIT_INTERNAL_ERROR` of
//! Linux' Documentation/virt/kvm/api.rst).

use std::fmt;

/// Longest instruction of the architecture.
const LONGEST: usize = 15;
/// Bit of the first word: the second and third hold the instruction.
const HAS_INSTRUCTION: u64 = 1;

const EMULATION: u32 = 1;
const SIMULTANEOUS_EXCEPTIONS: u32 = 2;
const DELIVERY: u32 = 3;
const UNKNOWN_EXIT: u32 = 4;

/// One such error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InternalError {
    suberror: u32,
    ip: Option<u64>,
    instruction: [u8; LONGEST],
    length: u8,
}

impl InternalError {
    /// The error as KVM reports it, `count` of `data` being valid, at the
    /// guest's instruction pointer `ip`, if that is known.
    pub(crate) fn new(suberror: u32, ip: Option<u64>, count: u32, data: &[u64; 16]) -> Self {
        let mut error = Self {
            suberror,
            ip,
            instruction: [0; LONGEST],
            length: 0,
        };
        if suberror == EMULATION && count >= 3 && data[0] & HAS_INSTRUCTION != 0 {
            let [length, low @ ..] = data[1].to_le_bytes();
            error.instruction[..7].copy_from_slice(&low);
            error.instruction[7..].copy_from_slice(&data[2].to_le_bytes());
            error.length = length.min(LONGEST as u8);
        }
        error
    }
}

impl fmt::Display for InternalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.suberror {
            EMULATION => f.write_str("it cannot emulate an instruction")?,
            SIMULTANEOUS_EXCEPTIONS => f.write_str("it cannot deliver two exceptions at once")?,
            DELIVERY => f.write_str("an exit came while an event was delivered")?,
            UNKNOWN_EXIT => f.write_str("it does not know an exit")?,
            other => write!(f, "internal error {other}")?,
        }
        if let Some(ip) = self.ip {
            write!(f, ", instruction pointer {ip:#x}")?;
        }
        if self.length > 0 {
            f.write_str(", bytes")?;
        }
        let mut bytes = self.instruction.iter().take(self.length.into());
        bytes.try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(suberror: u32, count: u32, data: [u64; 3]) -> String {
        let mut all = [0; 16];
        all[..3].copy_from_slice(&data);
        InternalError::new(suberror, Some(0xfff0), count, &all).to_string()
    }

    #[test]
    fn an_instruction_that_kvm_gives_is_shown_and_nothing_is_made_up() {
        let bytes = [1, 0x0807_0605_0403_020a, 0x100f_0e0d_0c0b_0a09];
        assert_eq!(
            shown(1, 4, bytes),
            "it cannot emulate an instruction, instruction pointer 0xfff0, \
             bytes 02 03 04 05 06 07 08 09 0a 0b"
        );
        let alone = "it cannot emulate an instruction, instruction pointer 0xfff0";
        assert_eq!(shown(1, 1, bytes), alone);
        assert_eq!(shown(1, 4, [0, bytes[1], bytes[2]]), alone);
        assert_eq!(shown(1, 4, [1, 0, 0]), alone);
    }

    #[test]
    fn a_length_beyond_all_instructions_shows_what_there_is() {
        let text = shown(1, 4, [1, u64::MAX, u64::MAX]);
        assert_eq!(text.matches(" ff").count(), LONGEST);
    }

    #[test]
    fn other_errors_are_named_and_new_ones_numbered() {
        assert!(shown(3, 4, [1, 15, 0]).starts_with("an exit came while"));
        assert_eq!(
            shown(99, 0, [0; 3]),
            "internal error 99, instruction pointer 0xfff0"
        );
        let nowhere = InternalError::new(4, None, 0, &[0; 16]);
        assert_eq!(nowhere.to_string(), "it does not know an exit");
    }
}
