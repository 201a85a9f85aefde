//! Guests of a few bytes that raise known exits: what they do is listed here,
//! so a test knows each count beforehand.
//!
//! They run in 32-bit protected mode without paging, interrupts stay off, and
//! no stack is used, so nothing happens that is not in the list. What they
//! find out goes over the serial port as it is; at the end they halt for good.

use anyhow::{Context, Result, ensure};

use super::elf::{LOAD_ADDRESS, pvh_image};

/// First bytes of a guest's report on the serial port.
pub const MAGIC: &[u8; 8] = b"@readout";

/// Where readings are gathered, clear of the code.
const RESULTS: u32 = 0x20_0000;
/// The first serial port's data register.
const SERIAL: u16 = 0x3f8;
/// Its line status register, whose lowest bit says that something has come.
const LINE_STATUS: u16 = 0x3fd;
/// A reading: four registers.
const READING: usize = 16;

/// What the registers hold before CPUID besides leaf and subleaf.
const POISON_EBX: u32 = 0xdead_beef;
const POISON_EDX: u32 = 0xfeed_f00d;

/// A leaf and subleaf to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidQuery {
    /// EAX before.
    pub leaf: u32,
    /// ECX before.
    pub subleaf: u32,
}

/// The registers after CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidReading {
    /// EAX after.
    pub eax: u32,
    /// EBX after.
    pub ebx: u32,
    /// ECX after.
    pub ecx: u32,
    /// EDX after.
    pub edx: u32,
}

/// An instruction that exits, always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// CPUID of leaf 0.
    Cpuid,
    /// CPUID of a leaf and subleaf 0.
    Leaf(u32),
    /// OUT of a byte to a port.
    Out(u16),
    /// IN of a byte from a port.
    In(u16),
    /// RDMSR of the platform id, which KVM never passes through.
    ReadMsr,
    /// WRMSR of the microcode update trigger, which KVM ignores.
    WriteMsr,
    /// The hypercall instruction of Intel's extension.
    Vmcall,
    /// The hypercall instruction of AMD's extension.
    Vmmcall,
}

/// A guest in the making.
#[derive(Clone, Debug, Default)]
pub struct Program {
    code: Vec<u8>,
}

impl Program {
    /// Does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Executes an instruction a number of times.
    pub fn repeat(mut self, instruction: Instruction, times: u32) -> Self {
        self.load(EBP, times);
        let again = self.code.len();
        match instruction {
            Instruction::Cpuid => {
                self.load(EAX, 0);
                self.emit(&[0x0f, 0xa2]);
            }
            Instruction::Leaf(leaf) => {
                self.load(EAX, leaf);
                self.load(ECX, 0);
                self.emit(&[0x0f, 0xa2]);
            }
            Instruction::Out(port) => {
                self.load(EDX, port.into());
                self.load(EAX, u32::from(b'.'));
                self.emit(&[0xee]);
            }
            Instruction::In(port) => {
                self.load(EDX, port.into());
                self.emit(&[0xec]);
            }
            Instruction::ReadMsr => {
                self.load(ECX, 0x17);
                self.emit(&[0x0f, 0x32]);
            }
            Instruction::WriteMsr => {
                self.load(ECX, 0x79);
                self.load(EAX, 0);
                self.load(EDX, 0);
                self.emit(&[0x0f, 0x30]);
            }
            // An unknown hypercall: it returns an error and changes nothing.
            Instruction::Vmcall => {
                self.load(EAX, 0xffff);
                self.emit(&[0x0f, 0x01, 0xc1]);
            }
            Instruction::Vmmcall => {
                self.load(EAX, 0xffff);
                self.emit(&[0x0f, 0x01, 0xd9]);
            }
        }
        self.emit(&[0x4d]); // dec ebp
        self.jump_if_not_zero(again);
        self
    }

    /// Writes a byte to a port.
    pub fn write(mut self, port: u16, value: u8) -> Self {
        self.load(EDX, port.into());
        self.load(EAX, value.into());
        self.emit(&[0xee]);
        self
    }

    /// Asks CPUID, poisoned registers first, and keeps all four answers. The
    /// queries run one after the other with nothing that exits in between.
    pub fn ask(mut self, queries: &[CpuidQuery]) -> Self {
        for (index, query) in queries.iter().enumerate() {
            self.load(EAX, query.leaf);
            self.load(ECX, query.subleaf);
            self.load(EBX, POISON_EBX);
            self.load(EDX, POISON_EDX);
            self.emit(&[0x0f, 0xa2]);
            let at = RESULTS + (index * READING) as u32;
            self.emit(&[0xa3]); // mov [at], eax
            self.emit(&at.to_le_bytes());
            for (modrm, offset) in [(0x1d, 4), (0x0d, 8), (0x15, 12)] {
                self.emit(&[0x89, modrm]); // mov [at + offset], ebx, ecx, edx
                self.emit(&(at + offset).to_le_bytes());
            }
        }
        self
    }

    /// Executes an instruction many times over and keeps how many ticks that
    /// took, once a round. Four rounds fill a reading.
    pub fn time(mut self, instruction: Instruction, times: u32, rounds: u32) -> Self {
        for round in 0..rounds {
            self.emit(&[0x0f, 0x31, 0x89, 0xc7]); // rdtsc; mov edi, eax
            self = self.repeat(instruction, times);
            self.emit(&[0x0f, 0x31, 0x29, 0xf8, 0xa3]); // rdtsc; sub eax, edi; mov [at], eax
            self.emit(&(RESULTS + 4 * round).to_le_bytes());
        }
        self
    }

    /// Sends the magic and `readings` answers over the serial port.
    pub fn report(mut self, readings: usize) -> Self {
        for &byte in MAGIC {
            self.load(EDX, SERIAL.into());
            self.load(EAX, byte.into());
            self.emit(&[0xee]);
        }
        if readings == 0 {
            return self;
        }
        self.load(ESI, RESULTS);
        self.load(EBP, (readings * READING) as u32);
        self.load(EDX, SERIAL.into());
        let again = self.code.len();
        self.emit(&[0xac, 0xee, 0x4d]); // lodsb; out dx, al; dec ebp
        self.jump_if_not_zero(again);
        self
    }

    /// Serial writes that a report of so many readings takes.
    pub fn report_writes(readings: usize) -> u64 {
        (MAGIC.len() + readings * READING) as u64
    }

    /// Never stops; exits on its own account no more. Interrupts are on: Bochs
    /// lets no interrupt of the host end a guest's turn that began with them off.
    pub fn spin(mut self) -> Vec<u8> {
        self.emit(&[0xfb, 0xeb, 0xfe]); // sti; jump to itself
        pvh_image(&self.code)
    }

    /// Sends back what comes over the serial port, for ever.
    pub fn echo(mut self) -> Vec<u8> {
        let again = self.code.len();
        self.load(EDX, LINE_STATUS.into());
        // in al, dx; test al, 1; jz back to the in
        self.emit(&[0xec, 0xa8, 1, 0x74, 0xfb]);
        self.load(EDX, SERIAL.into());
        self.emit(&[0xec, 0xee, 0xe9]); // in al, dx; out dx, al; jmp again
        let distance = again as i64 - (self.code.len() as i64 + 4);
        self.emit(&(distance as i32).to_le_bytes());
        pvh_image(&self.code)
    }

    /// Executes CPUID for ever.
    pub fn ask_for_ever(mut self) -> Vec<u8> {
        let again = self.code.len();
        self.load(EAX, 0);
        self.emit(&[0x0f, 0xa2, 0xe9]);
        let distance = again as i64 - (self.code.len() as i64 + 4);
        self.emit(&(distance as i32).to_le_bytes());
        pvh_image(&self.code)
    }

    /// Raises an exception that nobody can handle.
    pub fn triple_fault(mut self) -> Vec<u8> {
        self.emit(&[0x0f, 0x0b]); // ud2, with an empty interrupt table
        pvh_image(&self.code)
    }

    /// Goes on where no memory is, which nobody can execute.
    pub fn get_lost(mut self, address: u32) -> Vec<u8> {
        self.load(EAX, address);
        self.emit(&[0xff, 0xe0]); // jmp eax
        pvh_image(&self.code)
    }

    /// Halts with interrupts off: one last exit, then silence.
    pub fn halt(mut self) -> Vec<u8> {
        self.emit(&[0xfa, 0xf4, 0xeb, 0xfc]); // cli; hlt; back to cli
        pvh_image(&self.code)
    }

    fn load(&mut self, register: u8, value: u32) {
        self.emit(&[0xb8 + register]);
        self.emit(&value.to_le_bytes());
    }

    fn jump_if_not_zero(&mut self, target: usize) {
        self.emit(&[0x0f, 0x85]);
        let distance = target as i64 - (self.code.len() as i64 + 4);
        self.emit(&(distance as i32).to_le_bytes());
    }

    fn emit(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
        // The code may be long, but never so long that it meets the results.
        debug_assert!(LOAD_ADDRESS as usize + self.code.len() < RESULTS as usize);
    }
}

const EAX: u8 = 0;
const ECX: u8 = 1;
const EDX: u8 = 2;
const EBX: u8 = 3;
const EBP: u8 = 5;
const ESI: u8 = 6;

/// A guest that asks and reports, nothing else.
pub fn cpuid_reader(queries: &[CpuidQuery]) -> Vec<u8> {
    Program::new().ask(queries).report(queries.len()).halt()
}

/// The answers in a guest's report.
pub fn readings(serial: &[u8], count: usize) -> Result<Vec<CpuidReading>> {
    let start = serial
        .windows(MAGIC.len())
        .position(|window| window == MAGIC)
        .context("The guest reported nothing")?
        + MAGIC.len();
    let body = &serial[start..];
    ensure!(
        body.len() >= count * READING,
        "The report ends after {} of {} bytes",
        body.len(),
        count * READING
    );
    Ok(body
        .chunks_exact(READING)
        .take(count)
        .map(|reading| {
            let word = |at: usize| {
                u32::from_le_bytes([
                    reading[at],
                    reading[at + 1],
                    reading[at + 2],
                    reading[at + 3],
                ])
            };
            CpuidReading {
                eax: word(0),
                ebx: word(4),
                ecx: word(8),
                edx: word(12),
            }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_are_found_behind_other_output() {
        let mut serial = b"boot noise".to_vec();
        serial.extend(MAGIC);
        for word in [1u32, 2, 3, 4] {
            serial.extend(word.to_le_bytes());
        }
        let expected = CpuidReading {
            eax: 1,
            ebx: 2,
            ecx: 3,
            edx: 4,
        };
        assert_eq!(readings(&serial, 1).unwrap(), [expected]);
        assert!(readings(&serial, 2).is_err());
    }

    #[test]
    fn loop_jumps_back_to_its_instruction() {
        let code = Program::new().repeat(Instruction::In(0x80), 3).code;
        // mov ebp, 3; mov edx, 0x80; in al, dx; dec ebp; jnz -13
        assert_eq!(code[..5], [0xbd, 3, 0, 0, 0]);
        assert_eq!(code[5..12], [0xba, 0x80, 0, 0, 0, 0xec, 0x4d]);
        assert_eq!(code[12..], [0x0f, 0x85, 0xf3, 0xff, 0xff, 0xff]);
    }
}
