//! Which exit reasons the running kernel has a handler for, read from its
//! memory: `/proc/kallsyms` says where the dispatch table is, `/proc/kcore`
//! what is in it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use instrumentation::table::Isa;

const POINTER: u64 = 8;
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const LOADABLE: u32 = 1;

/// Whether this kernel's KVM serves encrypted guests, as the distribution
/// configured it: their exit has a handler only then, from Linux 6.12 on.
pub fn serves_encrypted_guests() -> Result<bool> {
    let symbols = File::open("/proc/kallsyms").context("Cannot open /proc/kallsyms")?;
    for line in BufReader::new(symbols).lines() {
        let line = line.context("Cannot read /proc/kallsyms")?;
        if line.split_whitespace().nth(2) == Some("sev_handle_vmgexit") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The numbers that have a handler.
pub fn handled_reasons(isa: Isa) -> Result<Vec<u32>> {
    let (symbol, entries) = match isa {
        // One past the last reason that any version of the table names.
        Isa::Vmx => ("kvm_vmx_exit_handlers", 76),
        Isa::Svm => ("svm_exit_handlers", 0x404),
    };
    let symbols = File::open("/proc/kallsyms").context("Cannot open /proc/kallsyms")?;
    let (start, end) = extent(BufReader::new(symbols), symbol)?;
    let entries = u64::from(entries as u32).min((end - start) / POINTER);
    let core = File::open("/proc/kcore").context("Cannot open /proc/kcore")?;
    let offset = file_offset(&core, start)?;
    let mut table = vec![0; (entries * POINTER) as usize];
    core.read_exact_at(&mut table, offset)
        .context("Cannot read the dispatch table")?;
    Ok((0u32..)
        .zip(table.chunks_exact(POINTER as usize))
        .filter(|(_, pointer)| pointer.iter().any(|&byte| byte != 0))
        .map(|(number, _)| number)
        .collect())
}

/// Where a symbol starts and where the next one does.
fn extent(symbols: impl BufRead, name: &str) -> Result<(u64, u64)> {
    let mut addresses = Vec::new();
    let mut start = None;
    for line in symbols.lines() {
        let line = line.context("Cannot read /proc/kallsyms")?;
        let mut words = line.split_whitespace();
        let (Some(address), Some(_), Some(symbol)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let address = u64::from_str_radix(address, 16).unwrap_or(0);
        addresses.push(address);
        if symbol == name {
            start = Some(address);
        }
    }
    let Some(start) = start.filter(|&start| start != 0) else {
        bail!("/proc/kallsyms does not show {name}");
    };
    let end = addresses
        .into_iter()
        .filter(|&address| address > start)
        .min();
    Ok((start, end.unwrap_or(u64::MAX)))
}

/// Where in `/proc/kcore` a virtual address is.
fn file_offset(core: &File, address: u64) -> Result<u64> {
    let mut header = [0; ELF_HEADER];
    core.read_exact_at(&mut header, 0)
        .context("Cannot read /proc/kcore")?;
    let segments_at = u64_at(&header, 32);
    let count = u64::from(u16::from_le_bytes([header[56], header[57]]));
    for index in 0..count {
        let mut segment = [0; PROGRAM_HEADER];
        core.read_exact_at(&mut segment, segments_at + index * PROGRAM_HEADER as u64)
            .context("Cannot read a segment of /proc/kcore")?;
        let kind = u32::from_le_bytes([segment[0], segment[1], segment[2], segment[3]]);
        let (offset, start, size) = (
            u64_at(&segment, 8),
            u64_at(&segment, 16),
            u64_at(&segment, 40),
        );
        if kind == LOADABLE && address >= start && address - start < size {
            return Ok(offset + (address - start));
        }
    }
    bail!("/proc/kcore does not hold address {address:#x}")
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extent_ends_at_the_next_symbol_by_address() {
        let symbols = "0000000000000100 d before\t[m]\n\
                       0000000000000300 d after\t[m]\n\
                       0000000000000200 d table\t[m]\n";
        assert_eq!(extent(symbols.as_bytes(), "table").unwrap(), (0x200, 0x300));
    }

    #[test]
    fn hidden_addresses_are_an_error() {
        let symbols = "0000000000000000 d table\n";
        assert!(extent(symbols.as_bytes(), "table").is_err());
    }
}
