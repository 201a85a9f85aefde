//! The content of guest memory in a file: all regions one behind the other in
//! the order of their addresses, with holes where there is nothing but zeroes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::GuestRam;

/// Zeroes are told from data in units of this.
const PAGE: usize = 4096;
/// Bytes that are looked at together.
const CHUNK: usize = 1 << 20;

/// Where a region of guest memory is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRegion {
    /// Guest address of its first byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Where it begins in the file.
    pub offset: u64,
}

/// The regions of `ram` as [`save`] puts them into a file.
#[must_use]
pub fn regions(ram: &GuestRam) -> Vec<SavedRegion> {
    let mut offset = 0;
    ram.iter()
        .map(|region| {
            let saved = SavedRegion {
                start: region.start_addr().0,
                length: region.len(),
                offset,
            };
            offset += saved.length;
            saved
        })
        .collect()
}

/// Writes what is not zero of `ram` into `file`, which is empty, and makes it as
/// long as all of it. Nobody changes the memory meanwhile.
pub fn save(ram: &GuestRam, file: &File) -> io::Result<()> {
    let saved = regions(ram);
    file.set_len(saved.last().map_or(0, |last| last.offset + last.length))?;
    let mut chunk = vec![0; CHUNK];
    for (region, saved) in ram.iter().zip(saved) {
        let mut done = 0;
        while done < saved.length {
            let length = (saved.length - done).min(CHUNK as u64) as usize;
            let slice = region
                .get_slice(MemoryRegionAddress(done), length)
                .map_err(io::Error::other)?;
            let chunk = &mut chunk[..length];
            slice.copy_to(chunk);
            write_data(file, saved.offset + done, chunk)?;
            done += length as u64;
        }
    }
    Ok(())
}

/// Writes those pages of `bytes` that are not zero, neighbours together.
fn write_data(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        let page = |at: usize| &bytes[at..(at + PAGE).min(bytes.len())];
        let is_data = |at: usize| at < bytes.len() && page(at).iter().any(|&byte| byte != 0);
        let start = at;
        while is_data(at) {
            at += PAGE;
        }
        let end = at.min(bytes.len());
        if end > start {
            file.write_all_at(&bytes[start..end], offset + start as u64)?;
        } else {
            at += PAGE;
        }
    }
    Ok(())
}

/// Reads what [`save`] has written into `ram`, which is all zeroes and has the
/// same regions.
///
/// # Errors
/// The file ends too soon, or the host does not read it.
pub fn load(ram: &GuestRam, file: &File) -> io::Result<()> {
    check_length(file, &regions(ram))?;
    let mut chunk = vec![0; CHUNK];
    for (region, saved) in ram.iter().zip(regions(ram)) {
        let end = saved.offset + saved.length;
        let mut at = saved.offset;
        while let Some((data, hole)) = next_data(file, at, end)? {
            at = data;
            while at < hole {
                let length = (hole - at).min(CHUNK as u64) as usize;
                let chunk = &mut chunk[..length];
                file.read_exact_at(chunk, at)?;
                let slice = region
                    .get_slice(MemoryRegionAddress(at - saved.offset), length)
                    .map_err(io::Error::other)?;
                slice.copy_from(chunk);
                at += length as u64;
            }
        }
    }
    Ok(())
}

/// Whether the file has as many bytes as the regions.
///
/// # Errors
/// It has not, or the host does not tell.
pub fn check_length(file: &File, regions: &[SavedRegion]) -> io::Result<()> {
    let expected = regions.last().map_or(0, |last| last.offset + last.length);
    let found = file.metadata()?.len();
    if found != expected {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it has {found} bytes, and the memory has {expected}"),
        ));
    }
    Ok(())
}

/// The next part of the file between these offsets that is no hole.
fn next_data(file: &File, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    if from >= end {
        return Ok(None);
    }
    let data = match seek(file, SeekFrom::Data(from)) {
        Ok(data) => data,
        // Nothing but a hole up to the end of the file.
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if data >= end {
        return Ok(None);
    }
    let hole = seek(file, SeekFrom::Hole(data))?;
    Ok(Some((data, hole.min(end))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::{layout, plain};

    #[test]
    fn zeroes_take_no_room_and_everything_comes_back() {
        // With a hole in the addresses, too.
        let size = layout::LOW_RAM_END + (64 << 20);
        let (ram, file) = (plain(size), tempfile::tempfile().unwrap());
        let places = [
            0,
            PAGE as u64 * 3 - 1,
            CHUNK as u64 - 1,
            layout::LOW_RAM_END - 8,
            layout::HIGH_RAM_4G + 5,
            layout::HIGH_RAM_4G + (64 << 20) - 2,
        ];
        for (at, value) in places.into_iter().zip(0xbeef_u16..) {
            ram.write_obj(value, GuestAddress(at)).unwrap();
        }
        save(&ram, &file).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), size);
        assert!(metadata.blocks() * 512 < 1 << 20, "{}", metadata.blocks());

        let again = plain(size);
        load(&again, &file).unwrap();
        for (at, value) in places.into_iter().zip(0xbeef_u16..) {
            assert_eq!(again.read_obj::<u16>(GuestAddress(at)).unwrap(), value);
        }
        for (at, _) in places.into_iter().zip(0..4) {
            let beside = GuestAddress(at + 2);
            if let Ok(word) = again.read_obj::<u32>(beside) {
                assert_eq!(word, 0);
            }
        }
    }

    #[test]
    fn a_file_of_another_length_is_refused() {
        let (ram, file) = (plain(4 << 20), tempfile::tempfile().unwrap());
        ram.write_slice(&[1; 4 << 20], GuestAddress(0)).unwrap();
        save(&ram, &file).unwrap();
        load(&plain(4 << 20), &file).unwrap();
        for length in [0, (4 << 20) - 1, (4 << 20) + 1] {
            file.set_len(length).unwrap();
            let error = load(&plain(4 << 20), &file).unwrap_err();
            assert!(error.to_string().contains(&length.to_string()), "{error}");
        }
    }
}
