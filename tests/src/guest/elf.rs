//! The smallest ELF file that boots by PVH: one segment and the note that
//! says where to enter it.

/// Where a guest is loaded.
pub const LOAD_ADDRESS: u32 = 0x10_0000;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Name and type of the note, from Xen's `elfnote.h`: the 32-bit entry point.
const NOTE_NAME: &[u8; 4] = b"Xen\0";
const NOTE_PHYS32_ENTRY: u32 = 18;

/// Wraps code that is entered at its first byte, in 32-bit mode without paging.
pub fn pvh_image(code: &[u8]) -> Vec<u8> {
    let note = note();
    let note_at = HEADER + 2 * PROGRAM_HEADER;
    let code_at = (note_at + note.len()).next_multiple_of(0x1000);
    let mut image = header();
    image.extend(segment(1, 7, code_at, LOAD_ADDRESS, code.len(), 0x1000));
    image.extend(segment(4, 4, note_at, 0, note.len(), 4));
    image.extend(note);
    image.resize(code_at, 0);
    image.extend_from_slice(code);
    image
}

fn header() -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend(2u16.to_le_bytes()); // executable
    header.extend(62u16.to_le_bytes()); // x86-64
    header.extend(1u32.to_le_bytes());
    header.extend(u64::from(LOAD_ADDRESS).to_le_bytes());
    header.extend((HEADER as u64).to_le_bytes()); // program headers
    header.extend(0u64.to_le_bytes()); // no sections
    header.extend(0u32.to_le_bytes());
    for half in [HEADER as u16, PROGRAM_HEADER as u16, 2, 0, 0, 0] {
        header.extend(half.to_le_bytes());
    }
    header
}

fn segment(kind: u32, flags: u32, at: usize, address: u32, size: usize, align: u64) -> Vec<u8> {
    let mut segment = kind.to_le_bytes().to_vec();
    segment.extend(flags.to_le_bytes());
    let (at, size, address) = (at as u64, size as u64, u64::from(address));
    for word in [at, address, address, size, size, align] {
        segment.extend(word.to_le_bytes());
    }
    segment
}

fn note() -> Vec<u8> {
    let mut note = Vec::new();
    for word in [NOTE_NAME.len() as u32, 4, NOTE_PHYS32_ENTRY] {
        note.extend(word.to_le_bytes());
    }
    note.extend(NOTE_NAME);
    note.extend(LOAD_ADDRESS.to_le_bytes());
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_lies_where_its_segment_says() {
        let image = pvh_image(&[0xf4, 0x90]);
        let offset = u64::from_le_bytes(image[HEADER + 8..HEADER + 16].try_into().unwrap());
        assert_eq!(image[offset as usize..], [0xf4, 0x90]);
    }
}
