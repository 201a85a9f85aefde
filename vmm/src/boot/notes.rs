//! The notes of an ELF image, as far as they tell whether it is Linux.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Type of the program headers that locate notes.
const PT_NOTE: u32 = 4;
/// Size of a program header of a 64-bit image.
const PROGRAM_HEADER: usize = 56;
/// Program headers, and bytes of each one's notes, that are looked at.
const MAX_HEADERS: u16 = 64;
const MAX_NOTES: u64 = 64 << 10;

/// The owner of the notes that Linux has had since 4.18, with its build salt
/// (include/linux/build-salt.h).
const LINUX: &[u8] = b"Linux\0";

/// Whether the image has a note of Linux's own.
pub(super) fn are_linux(file: &File) -> io::Result<bool> {
    let mut header = [0; 64];
    if file.read_at(&mut header, 0)? < header.len() {
        return Ok(false);
    }
    let table = u64_at(&header, 32);
    let count = u16_at(&header, 56).min(MAX_HEADERS);
    if usize::from(u16_at(&header, 54)) != PROGRAM_HEADER {
        return Ok(false);
    }
    for index in 0..u64::from(count) {
        let mut entry = [0; PROGRAM_HEADER];
        let Some(at) = table.checked_add(index * PROGRAM_HEADER as u64) else {
            return Ok(false);
        };
        if file.read_at(&mut entry, at)? < entry.len() {
            return Ok(false);
        }
        if u32_at(&entry, 0) != PT_NOTE {
            continue;
        }
        let mut notes = vec![0; u64_at(&entry, 32).min(MAX_NOTES) as usize];
        let length = file.read_at(&mut notes, u64_at(&entry, 8))?;
        if has_owner(&notes[..length], LINUX) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether one of the notes belongs to `owner`: each has three words, sizes of
/// owner and content first, and both of these padded to whole words.
fn has_owner(mut notes: &[u8], owner: &[u8]) -> bool {
    while notes.len() >= 12 {
        let padded = |at| (u32_at(notes, at) as usize).next_multiple_of(4);
        let (name, content) = (padded(0), padded(4));
        if u32_at(notes, 0) as usize == owner.len() && notes[12..].starts_with(owner) {
            return true;
        }
        match notes.get(12 + name + content..) {
            Some(rest) => notes = rest,
            None => return false,
        }
    }
    false
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(owner: &[u8], content: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        note.extend((owner.len() as u32).to_le_bytes());
        note.extend((content.len() as u32).to_le_bytes());
        note.extend(1u32.to_le_bytes());
        for part in [owner, content] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn owner_is_found_behind_other_notes() {
        let mut notes = note(b"Xen\0", &[1; 8]);
        notes.extend(note(b"GNU\0", &[2; 21]));
        assert!(!has_owner(&notes, LINUX));
        notes.extend(note(b"Linux\0", b"salt"));
        assert!(has_owner(&notes, LINUX));
    }

    #[test]
    fn damaged_notes_are_nobodys_and_never_a_panic() {
        let mut notes = note(b"Xen\0", &[1; 8]);
        notes.extend(note(b"Linux\0", b"salt"));
        for at in 0..12 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut spoiled = notes.clone();
                spoiled[at] = value;
                let _ = has_owner(&spoiled, LINUX);
            }
        }
        for length in 0..notes.len() - 8 {
            assert!(!has_owner(&notes[..length], LINUX), "{length}");
        }
    }
}
