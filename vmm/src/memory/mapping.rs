//! One range of this process's memory that a guest sees as RAM.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use rustix::fs::OFlags;
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::Result as MemoryResult;
use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize,
    MemoryRegionAddress, VolatileSlice,
};

use crate::host_file::{Purpose, open_with};

/// Second-level page tables map 2 MiB at a time when guest and host address
/// agree modulo 2 MiB; guest ranges start on such a boundary, so host ranges
/// have to.
const ALIGNMENT: usize = 2 << 20;

/// How the host backs a range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backing {
    /// Other processes can map it: a file in memory instead of anonymous
    /// pages.
    pub shared: bool,
    /// Pages come from the host's huge page pool.
    pub hugepages: bool,
    /// Their size, the host's default if absent. A power of two.
    pub hugepage_size: Option<u64>,
    /// Ask for transparent huge pages.
    pub thp: bool,
    /// The host may merge equal pages.
    pub mergeable: bool,
    /// Touch every page before the guest runs.
    pub prefault: bool,
    /// Count the memory against the host's limits at once.
    pub reserve: bool,
    /// A file that holds it, or a folder to make a nameless one in. Only when
    /// also [`shared`](Self::shared) does the guest's writing reach the file.
    pub file: Option<PathBuf>,
    /// The host's NUMA node to take pages from.
    pub host_numa_node: Option<u32>,
}

impl Backing {
    fn page_size_flag(&self) -> libc::c_int {
        match self.hugepage_size {
            Some(size) if size.is_power_of_two() => {
                (size.trailing_zeros() as libc::c_int) << libc::MAP_HUGE_SHIFT
            }
            _ => 0,
        }
    }
}

/// What `size` bytes of memory come from, if not from anonymous pages.
pub(super) fn open_file(size: u64, backing: &Backing) -> io::Result<Option<File>> {
    match &backing.file {
        Some(path) => file_at(path, size).map(Some),
        None if backing.shared => memory_file(size, backing).map(Some),
        None => Ok(None),
    }
}

/// The file at `path`, made as long as needed; a nameless one if `path` is a
/// folder.
fn file_at(path: &Path, size: u64) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let file = if path.is_dir() {
        options.custom_flags(libc::O_TMPFILE).open(path)?
    } else {
        options.create(true).truncate(false);
        open_with(path, Purpose::Content, &mut options, OFlags::empty())?
    };
    if file.metadata()?.len() < size {
        file.set_len(size)?;
    }
    Ok(file)
}

fn memory_file(size: u64, backing: &Backing) -> io::Result<File> {
    let mut flags = libc::MFD_CLOEXEC;
    if backing.hugepages {
        // The size is encoded as for mmap.
        flags |= libc::MFD_HUGETLB | backing.page_size_flag() as libc::c_uint;
    }
    // SAFETY: the name is a constant with a terminating zero; the call has no
    // other pointer.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else knows it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file)
}

/// A region of guest RAM that owns its mapping: the mapping goes when the last
/// holder of the region does.
#[derive(Debug)]
pub struct RamRegion {
    guest: GuestAddress,
    host: NonNull<u8>,
    length: usize,
    source: Source,
}

/// Where the pages of a region come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The host's memory.
    Anonymous,
    /// A file, which the guest's writing reaches.
    SharedFile,
    /// A file, whose pages are copied when the guest writes.
    PrivateFile,
}

// SAFETY:
// - The mapping is owned by this value and unmapped only when it is dropped.
// - Its bytes are accessed through volatile or atomic operations only, as
//   vm-memory does, because the guest changes them at any time.
unsafe impl Send for RamRegion {}
// SAFETY: as above.
unsafe impl Sync for RamRegion {}

impl RamRegion {
    /// Maps `length` bytes for the guest address `guest`; from `offset` of
    /// `file` if there is one.
    pub(super) fn map(
        guest: u64,
        length: usize,
        file: Option<(&File, u64)>,
        backing: &Backing,
    ) -> io::Result<Self> {
        let alignment = backing
            .hugepage_size
            .map_or(ALIGNMENT, |size| ALIGNMENT.max(size as usize));
        // A zone of odd size moves the ones behind it off the boundary; the
        // host's addresses follow, except where its pages are large.
        let residue = if backing.hugepages {
            0
        } else {
            guest as usize % alignment
        };
        let host = reserve_aligned(length, alignment, residue)?;
        let source = match (&file, backing.shared) {
            (None, _) => Source::Anonymous,
            (Some(_), true) => Source::SharedFile,
            (Some(_), false) => Source::PrivateFile,
        };
        let mut flags = libc::MAP_FIXED;
        flags |= match source {
            Source::Anonymous => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            Source::SharedFile => libc::MAP_SHARED,
            Source::PrivateFile => libc::MAP_PRIVATE,
        };
        if backing.hugepages && file.is_none() {
            flags |= libc::MAP_HUGETLB | backing.page_size_flag();
        }
        // Without a page of the pool the guest's first touch would be the end of
        // the process, so huge pages are always set aside.
        if !backing.reserve && !backing.hugepages {
            flags |= libc::MAP_NORESERVE;
        }
        let (fd, offset) = match file {
            Some((file, offset)) => (file.as_raw_fd(), offset as libc::off_t),
            None => (-1, 0),
        };
        // SAFETY:
        // - `host..host + length` is a reservation just made for this purpose,
        //   so MAP_FIXED replaces nothing else.
        // - The descriptor, if any, is open for the duration of the call.
        let address = unsafe {
            libc::mmap(
                host.as_ptr().cast(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            // SAFETY: the reservation is ours and nothing refers to it.
            unsafe { libc::munmap(host.as_ptr().cast(), length) };
            return Err(error);
        }
        let region = Self {
            guest: GuestAddress(guest),
            host,
            length,
            source,
        };
        region.advise(backing)?;
        Ok(region)
    }

    /// What the pages come from, for people.
    #[must_use]
    pub fn backing_name(&self) -> &'static str {
        match self.source {
            Source::Anonymous => "anonymous memory",
            Source::SharedFile => "shared file",
            Source::PrivateFile => "private file",
        }
    }

    fn advise(&self, backing: &Backing) -> io::Result<()> {
        if let Some(node) = backing.host_numa_node {
            self.bind_to_node(node)?;
        }
        // Hints: a host without the feature runs the guest all the same.
        if backing.thp && !backing.hugepages {
            let _ = self.madvise(libc::MADV_HUGEPAGE);
        }
        if backing.mergeable {
            let _ = self.madvise(libc::MADV_MERGEABLE);
        }
        let _ = self.madvise(libc::MADV_DONTDUMP);
        if backing.prefault {
            self.madvise(libc::MADV_POPULATE_WRITE)?;
        }
        Ok(())
    }

    /// Takes the pages from one NUMA node of the host: mbind(2).
    fn bind_to_node(&self, node: u32) -> io::Result<()> {
        const NODES: usize = 1024;
        let mut mask = [0u64; NODES / 64];
        match mask.get_mut(node as usize / 64) {
            Some(word) => *word |= 1 << (node % 64),
            None => return Err(io::ErrorKind::InvalidInput.into()),
        }
        // The kernel takes one bit less than it is told.
        let bits = NODES + 1;
        // SAFETY:
        // - The range is this region's own mapping; its content stays.
        // - The mask is NODES bits long and read during the call only.
        let outcome = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.host.as_ptr(),
                self.length,
                libc::MPOL_BIND,
                mask.as_ptr(),
                bits,
                0,
            )
        };
        match outcome {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn madvise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is this region's own mapping, and none of the
        // advices used above discards or moves its content.
        match unsafe { libc::madvise(self.host.as_ptr().cast(), self.length, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Gives the pages of a range back to the host; they read as zeroes
    /// afterwards. Only whole pages can be given back.
    pub(super) fn discard(&self, offset: u64, length: usize) -> io::Result<()> {
        let end = offset.checked_add(length as u64);
        if end.is_none_or(|end| end > self.length as u64) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let advice = match self.source {
            Source::Anonymous => libc::MADV_DONTNEED,
            // The pages have to go and not only the mapping of them.
            Source::SharedFile => libc::MADV_REMOVE,
            // What would show is the file's content.
            Source::PrivateFile => return Err(io::ErrorKind::Unsupported.into()),
        };
        let start = self.host.as_ptr().wrapping_add(offset as usize);
        // SAFETY:
        // - The range lies within the mapping, which this value owns.
        // - Its bytes change to zeroes, as a guest could change them at any
        //   time; everybody accesses them as volatile.
        match unsafe { libc::madvise(start.cast(), length, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The range in this process's memory, for the hypervisor.
    pub(super) fn host_range(&self) -> (*mut u8, usize) {
        (self.host.as_ptr(), self.length)
    }
}

impl Drop for RamRegion {
    fn drop(&mut self) {
        // SAFETY: the mapping is owned by this value, and slices of it borrow
        // the value, so none is left.
        unsafe {
            libc::munmap(self.host.as_ptr().cast(), self.length);
        }
    }
}

/// Reserves address space without memory behind it, `residue` bytes behind a
/// multiple of `alignment`.
fn reserve_aligned(length: usize, alignment: usize, residue: usize) -> io::Result<NonNull<u8>> {
    let padded = length
        .checked_add(alignment + residue)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            padded,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = start as usize;
    let aligned = start.next_multiple_of(alignment) + residue;
    let tail = aligned + length;
    let page = 4096;
    let tail_end = (start + padded).next_multiple_of(page);
    let tail = tail.next_multiple_of(page);
    // SAFETY: both ranges lie within the reservation and outside of
    // `aligned..aligned + length`, which is all that is kept.
    unsafe {
        if aligned > start {
            libc::munmap(start as *mut libc::c_void, aligned - start);
        }
        if tail_end > tail {
            libc::munmap(tail as *mut libc::c_void, tail_end - tail);
        }
    }
    NonNull::new(aligned as *mut u8).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.length as GuestUsize
    }

    fn start_addr(&self) -> GuestAddress {
        self.guest
    }

    fn bitmap(&self) -> BS<'_, Self::B> {}

    fn get_host_address(&self, addr: MemoryRegionAddress) -> MemoryResult<*mut u8> {
        self.check_address(addr)
            .map(|addr| self.host.as_ptr().wrapping_add(addr.0 as usize))
            .ok_or(GuestMemoryError::InvalidBackendAddress)
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> MemoryResult<VolatileSlice<'_, BS<'_, Self::B>>> {
        let start =
            usize::try_from(offset.0).map_err(|_| GuestMemoryError::InvalidBackendAddress)?;
        match start.checked_add(count) {
            // SAFETY:
            // - `start + count` does not exceed the mapping, checked here.
            // - The slice borrows `self`, which keeps the mapping.
            // - VolatileSlice makes no reference to the bytes.
            Some(end) if end <= self.length => Ok(unsafe {
                VolatileSlice::with_bitmap(self.host.as_ptr().add(start), count, (), None)
            }),
            _ => Err(GuestMemoryError::InvalidBackendAddress),
        }
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const SIZE: usize = 4 << 20;

    #[test]
    fn regions_start_on_a_2_mib_boundary_of_the_host() {
        for _ in 0..4 {
            let region = RamRegion::map(0, SIZE, None, &Backing::default()).unwrap();
            assert_eq!(region.host_range().0 as usize % ALIGNMENT, 0);
        }
    }

    #[test]
    fn accesses_past_the_end_are_errors() {
        let region = RamRegion::map(0, SIZE, None, &Backing::default()).unwrap();
        let end = MemoryRegionAddress(SIZE as u64);
        assert!(region.get_slice(end, 0).is_ok());
        assert!(region.get_slice(end, 1).is_err());
        assert!(
            region
                .get_slice(MemoryRegionAddress(1), usize::MAX)
                .is_err()
        );
        assert!(region.get_host_address(end).is_err());
        assert!(
            region
                .write_obj(1u32, MemoryRegionAddress(SIZE as u64 - 2))
                .is_err()
        );
    }

    #[test]
    fn shared_regions_show_what_the_file_holds() {
        let backing = Backing {
            shared: true,
            ..Default::default()
        };
        let file = memory_file(2 * SIZE as u64, &backing).unwrap();
        let first = RamRegion::map(0, SIZE, Some((&file, SIZE as u64)), &backing).unwrap();
        let second = RamRegion::map(0, SIZE, Some((&file, SIZE as u64)), &backing).unwrap();
        first
            .write_obj(0x1234_5678u32, MemoryRegionAddress(64))
            .unwrap();
        assert_eq!(
            second.read_obj::<u32>(MemoryRegionAddress(64)).unwrap(),
            0x1234_5678
        );
    }

    #[test]
    fn what_a_guest_writes_reaches_a_file_only_if_it_is_shared() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        for shared in [false, true] {
            let backing = Backing {
                shared,
                file: Some(path.clone()),
                ..Default::default()
            };
            let file = open_file(SIZE as u64, &backing).unwrap().unwrap();
            let region = RamRegion::map(0, SIZE, Some((&file, 0)), &backing).unwrap();
            region.write_obj(9u8, MemoryRegionAddress(5)).unwrap();
            let kept = std::fs::read(&path).unwrap();
            assert_eq!((kept.len(), kept[5] == 9), (SIZE, shared));
            assert_eq!(region.discard(0, 4096).is_ok(), shared);
        }
        let nameless = Backing {
            file: Some(folder.path().to_owned()),
            ..Default::default()
        };
        assert!(open_file(SIZE as u64, &nameless).unwrap().is_some());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn memory_lies_in_regular_files_only() {
        use crate::host_file::testing::{fifo, within_time};

        let (_folder, path) = fifo();
        let backing = Backing {
            file: Some(path),
            ..Default::default()
        };
        let error = within_time(move || open_file(SIZE as u64, &backing).unwrap_err());
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn regions_off_the_boundary_are_so_on_the_host_too() {
        let guest = 0x40_3000;
        let region = RamRegion::map(guest, SIZE, None, &Backing::default()).unwrap();
        let host = region.host_range().0 as usize;
        assert_eq!(host % ALIGNMENT, guest as usize % ALIGNMENT);
    }

    #[test]
    fn a_numa_node_that_is_missing_is_an_error() {
        let on = |node| Backing {
            host_numa_node: Some(node),
            ..Default::default()
        };
        assert!(RamRegion::map(0, SIZE, None, &on(0)).is_ok());
        assert!(RamRegion::map(0, SIZE, None, &on(1023)).is_err());
        assert!(RamRegion::map(0, SIZE, None, &on(1 << 20)).is_err());
    }

    #[test]
    fn pages_given_back_read_as_zeroes_and_others_stay() {
        for shared in [false, true] {
            let backing = Backing {
                shared,
                ..Default::default()
            };
            let file = memory_file(SIZE as u64, &backing).unwrap();
            let source = shared.then_some((&file, 0));
            let region = RamRegion::map(0, SIZE, source, &backing).unwrap();
            for page in [0, 1, 2] {
                region
                    .write_obj(7u8, MemoryRegionAddress(page * 4096))
                    .unwrap();
            }
            region.discard(4096, 4096).unwrap();
            let read = |page: u64| region.read_obj::<u8>(MemoryRegionAddress(page * 4096));
            let bytes: Vec<u8> = (0..3).map(|page| read(page).unwrap()).collect();
            assert_eq!(bytes, [7, 0, 7], "shared: {shared}");
            assert!(region.discard(1, 4096).is_err());
            assert!(region.discard(SIZE as u64 - 4096, 8192).is_err());
            assert!(region.discard(u64::MAX, 4096).is_err());
        }
    }

    #[test]
    fn a_huge_page_size_that_no_host_has_is_an_error() {
        for reserve in [false, true] {
            let backing = Backing {
                hugepages: true,
                hugepage_size: Some(1 << 46),
                reserve,
                ..Default::default()
            };
            assert!(RamRegion::map(0, SIZE, None, &backing).is_err());
        }
    }
}
