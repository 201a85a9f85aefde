//! Takes the ELF kernel out of a bzImage.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ruzstd::decoding::StreamingDecoder;

/// Fields of the boot protocol's header, Documentation/x86/boot.rst.
const SETUP_SECTORS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

/// The older frame format of LZ4, which the kernel uses.
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// It is cut in blocks of at most this size.
const LZ4_BLOCK: usize = 8 << 20;
/// What a frame of Zstandard begins with: Debian packs its newer kernels so.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The ELF file inside, uncompressed.
pub fn extract(bzimage: &Path) -> Result<Vec<u8>> {
    let image =
        std::fs::read(bzimage).with_context(|| format!("Cannot read {}", bzimage.display()))?;
    let payload = payload(&image).context("Not a bzImage")?;
    let vmlinux = if let Some(blocks) = payload.strip_prefix(&LZ4_LEGACY) {
        unpack(blocks)?
    } else if payload.starts_with(&ZSTD) {
        let mut whole = Vec::new();
        StreamingDecoder::new(payload)
            .context("The frame is damaged")?
            .read_to_end(&mut whole)
            .context("The frame is damaged")?;
        whole
    } else {
        bail!("The kernel is packed with neither LZ4 nor Zstandard");
    };
    ensure!(
        vmlinux.starts_with(b"\x7fELF"),
        "What was packed is no ELF file"
    );
    Ok(vmlinux)
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize)
    };
    let sectors = usize::from(*image.get(SETUP_SECTORS)?);
    let start = (sectors + 1) * SECTOR + word(PAYLOAD_OFFSET)?;
    image.get(start..start + word(PAYLOAD_LENGTH)?)
}

fn unpack(mut blocks: &[u8]) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    // The last four bytes are the unpacked size, appended by the kernel's build.
    while blocks.len() > 4 {
        let (size, rest) = blocks.split_at(4);
        let size = u32::from_le_bytes([size[0], size[1], size[2], size[3]]) as usize;
        ensure!(size <= rest.len(), "A block is longer than the payload");
        let (block, rest) = rest.split_at(size);
        whole.extend(lz4_flex::block::decompress(block, LZ4_BLOCK).context("A block is damaged")?);
        blocks = rest;
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_joined_and_the_size_at_the_end_is_not_one() {
        let mut blocks = Vec::new();
        for text in [b"\x7fELF one ".as_slice(), b"two"] {
            let packed = lz4_flex::block::compress(text);
            blocks.extend((packed.len() as u32).to_le_bytes());
            blocks.extend(packed);
        }
        blocks.extend(12u32.to_le_bytes());
        assert_eq!(unpack(&blocks).unwrap(), b"\x7fELF one two");
    }

    #[test]
    fn short_file_is_no_bzimage() {
        assert!(payload(b"MZ").is_none());
    }
}
