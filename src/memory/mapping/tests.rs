//! Mappings whose pages go away, and mappings that are refused.

use super::*;
use crate::guard::losses;
use crate::memory::quota::Quota;

fn file(len: u64) -> File {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(len).unwrap();
    file
}

fn of_guest(file: &File, offset: u64, len: usize) -> io::Result<Mapping> {
    let place = Quota::default().take().expect("there is room");
    Mapping::of_guest(file, offset, len, place)
}

fn read(mapping: &Mapping, offset: usize) -> u8 {
    // SAFETY: the tests stay in the mapping; volatile because the file may change.
    unsafe { mapping.as_ptr().add(offset).read_volatile() }
}

fn write(mapping: &Mapping, offset: usize, value: u8) {
    // SAFETY: as in `read`.
    unsafe { mapping.as_ptr().add(offset).write_volatile(value) }
}

fn lost(mapping: &Mapping, page: usize) -> bool {
    mapping.has_lost(mapping.as_ptr().wrapping_add(page * 4096), 4096)
}

#[test]
fn only_lost_pages_are_replaced() {
    let (file, other) = (file(4 * PAGE), file(4 * PAGE));
    let mapping = Mapping::new(&file, PAGE, 3 * 4096).unwrap();
    let neighbour = Mapping::new(&other, 0, 4 * 4096).unwrap();
    (0..3).for_each(|page| write(&mapping, page * 4096, 7));
    let before = losses();
    file.set_len(2 * PAGE).unwrap();
    assert!(!lost(&mapping, 2));
    assert_eq!((read(&mapping, 0), read(&mapping, 4096 + 5)), (7, 0));
    assert!(losses() > before);
    assert_eq!([0, 1, 2].map(|page| lost(&mapping, page)), [false, true, false]);
    write(&mapping, 2 * 4096, 9);
    assert_eq!((read(&mapping, 0), read(&mapping, 2 * 4096)), (7, 9));
    assert_eq!(
        mapping.lost(),
        [Range {
            start: 4096,
            end: 12288
        }]
    );
    assert!(neighbour.lost().is_empty());
    drop(mapping);
    let sound = Mapping::new(&other, 0, 4 * 4096).unwrap();
    write(&neighbour, 1, 5);
    assert_eq!((read(&sound, 1), sound.lost().len()), (5, 0));
}

#[test]
fn system_calls_never_see_replaced_pages() {
    use std::io::Write;

    let (file, mut sink) = (file(2 * PAGE), tempfile::tempfile().unwrap());
    let mapping = of_guest(&file, 0, 2 * 4096).unwrap();
    write(&mapping, 4096, 7);
    // SAFETY: the byte is in the mapping, and nothing changes it.
    let kernels = unsafe { std::slice::from_raw_parts(mapping.kernel_ptr().add(4096), 1) };
    assert_eq!(kernels, [7]);
    file.set_len(PAGE).unwrap();
    assert_eq!(read(&mapping, 4096), 0);
    let written = sink.write(kernels).unwrap_err();
    assert_eq!(written.raw_os_error(), Some(libc::EFAULT));
}

#[test]
fn adjoining_lost_pages_are_one_range() {
    let file = file(1024 * PAGE);
    let mapping = Mapping::new(&file, 0, 1024 * 4096).unwrap();
    file.set_len(PAGE).unwrap();
    assert!(
        (100..400)
            .chain((50..100).rev())
            .all(|page| read(&mapping, page * 4096) == 0)
    );
    assert_eq!(
        mapping.lost(),
        [Range {
            start: 50 * 4096,
            end: 400 * 4096
        }]
    );
    assert_eq!(
        [49, 50, 399, 400].map(|page| lost(&mapping, page)),
        [false, true, true, false]
    );
}

#[test]
fn many_lost_ranges_make_the_mapping_lost() {
    let file = file(200 * PAGE);
    let mapping = Mapping::new(&file, 0, 200 * 4096).unwrap();
    file.set_len(PAGE).unwrap();
    assert!((1..65).all(|range| read(&mapping, 2 * range * 4096) == 0));
    assert!(!lost(&mapping, 0) && !lost(&mapping, 199));
    assert_eq!(read(&mapping, 2 * 65 * 4096), 0);
    assert!(lost(&mapping, 0) && lost(&mapping, 199));
}

#[test]
fn many_lost_ranges_of_many_mappings_make_one_lost() {
    testkit::process::run_alone("memory::mapping::tests::body_of_many_mappings");
}

#[test]
#[ignore = "needs all ranges that the process remembers"]
fn body_of_many_mappings() {
    let file = file(130 * PAGE);
    let map = || Mapping::new(&file, 0, 130 * 4096).unwrap();
    // Each mapping remembers 64 ranges, and the process 8192.
    let mut mappings: Vec<_> = (0..129).map(|_| map()).collect();
    file.set_len(0).unwrap();
    let lose = |mapping: &Mapping| (0..64).for_each(|range| assert_eq!(read(mapping, 2 * range * 4096), 0));
    mappings[..128].iter().for_each(lose);
    assert!(mappings[..128].iter().all(|mapping| !lost(mapping, 1)));
    let last = mappings.pop().unwrap();
    assert_eq!(read(&last, 4096), 0);
    assert!(lost(&last, 129), "as a whole");
    drop(mappings);
    let next = map();
    lose(&next);
    assert!(!lost(&next, 1), "there is room again");
}

/// Raises SIGBUS as the kernel does for a poisoned page.
fn raise(code: libc::c_int, addr: *const u8) {
    #[repr(C)]
    struct Info {
        signo: libc::c_int,
        errno: libc::c_int,
        code: libc::c_int,
        addr: *const u8,
        rest: [u64; 13],
    }
    let info = Info {
        signo: libc::SIGBUS,
        errno: 0,
        code,
        addr,
        rest: [0; 13],
    };
    assert_eq!(size_of::<Info>(), size_of::<libc::siginfo_t>());
    // SAFETY: takes numbers only.
    let (process, thread) = unsafe { (libc::getpid(), libc::gettid()) };
    let call = libc::SYS_rt_tgsigqueueinfo;
    // SAFETY: the information is complete, and the handler knows the address.
    let sent = unsafe { libc::syscall(call, process, thread, libc::SIGBUS, &raw const info) };
    assert_eq!(sent, 0);
}

#[test]
fn poisoned_page_is_replaced_only_when_accessed() {
    let file = file(3 * PAGE);
    let mapping = of_guest(&file, 0, 3 * 4096).unwrap();
    (0..3).for_each(|page| write(&mapping, page * 4096, 7));
    let poisoned = mapping.as_ptr().wrapping_add(4096 + 8);
    raise(libc::BUS_MCEERR_AO, poisoned);
    assert_eq!((read(&mapping, 4096), mapping.lost().len()), (7, 0));
    // A system call found the poisoned page: that call fails, and nothing is replaced.
    raise(libc::BUS_MCEERR_AR, mapping.kernel_ptr().wrapping_add(4096));
    assert_eq!((read(&mapping, 4096), mapping.lost().len()), (7, 0));
    raise(libc::BUS_MCEERR_AR, poisoned);
    assert_eq!([0, 1, 2].map(|page| read(&mapping, page * 4096)), [7, 0, 7]);
    assert_eq!(mapping.lost().first(), Some(&(4096..8192)));
}

#[test]
fn any_thread_may_find_pages_lost() {
    let file = file(256 * PAGE);
    let mapping = Mapping::new(&file, 0, 256 * 4096).unwrap();
    let before = losses();
    file.set_len(0).unwrap();
    std::thread::scope(|scope| {
        for start in 0..8 {
            let mapping = &mapping;
            scope.spawn(move || {
                for page in (start..256).rev() {
                    assert_eq!(read(mapping, page * 4096), 0);
                    assert!(
                        losses() > before,
                        "a replaced page was read before its loss was counted"
                    );
                }
            });
        }
    });
    assert!((0..256).all(|page| lost(&mapping, page)));
}

/// Creates a file of huge pages, if enough are free.
fn huge() -> Option<File> {
    let flags = libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
    // SAFETY: the name is a C string, the flags are valid.
    let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), flags) };
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    // SAFETY: the descriptor was just created and nobody else has it.
    let file = (fd >= 0).then(|| unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) });
    file.filter(|_| free.is_ok_and(|free| free.trim().parse().is_ok_and(|free: u32| free >= 4)))
}

#[test]
fn huge_pages_are_mapped_and_lost_as_a_whole() {
    let Some(file) = huge() else {
        return testkit::skip::skipped("too few free huge pages");
    };
    let huge = 2 << 20;
    file.set_len(2 * huge).unwrap();
    // From the middle of the first page to the middle of the second.
    let mapping = Mapping::new(&file, huge / 2, 2 << 20).unwrap();
    write(&mapping, 0, 5);
    write(&mapping, (2 << 20) - 1, 6);
    file.set_len(huge).unwrap();
    assert_eq!((read(&mapping, 0), read(&mapping, (2 << 20) - 1)), (5, 0));
    assert_eq!(mapping.lost().first(), Some(&(1 << 20..3 << 20)));
    file.set_len(0).unwrap();
    assert_eq!(read(&mapping, 0), 0);
}

#[test]
fn large_pages_are_found_by_trying() {
    let found = |file: &File| PAGE_SIZES.into_iter().find(|&page| can_be_mapped_in(file, page));
    assert_eq!(found(&file(PAGE)), Some(PAGE));
    // A device with small pages.
    let zero = File::options().read(true).write(true).open("/dev/zero").unwrap();
    assert_eq!(page_size(&zero).unwrap(), PAGE);
    let terminal = File::options().read(true).write(true).open("/dev/null").unwrap();
    assert!(page_size(&terminal).is_err());
    // Huge pages behave like those of device memory: nothing smaller can be mapped.
    match huge() {
        Some(huge) => assert_eq!(found(&huge), Some(2 << 20)),
        None => testkit::skip::skipped("too few free huge pages"),
    }
}

#[test]
fn huge_page_memory_may_be_split_anywhere() {
    let Some(file) = huge() else {
        return testkit::skip::skipped("too few free huge pages");
    };
    file.set_len(8 << 20).unwrap();
    // As in QEMU's memory on both sides of a hole, one part ends in the middle of a page and the other starts there.
    let low = of_guest(&file, 0, 3 << 20).unwrap();
    let high = of_guest(&file, 3 << 20, 1 << 20).unwrap();
    write(&low, (3 << 20) - 1, 3);
    write(&high, 0, 4);
    assert_eq!((read(&low, (3 << 20) - 1), read(&high, 0)), (3, 4));
    let last = (high.kernel_ptr().addr() - high.as_ptr().addr()) % (1 << 30);
    assert_eq!(last, 0, "both mappings have the same alignment");
}

#[test]
fn invalid_ranges_and_files_are_refused() {
    assert!(Mapping::new(&file(PAGE), 1, 4096).is_err());
    assert!(Mapping::new(&file(PAGE), 0, usize::MAX).is_err());
    assert!(Mapping::new(&file(PAGE), 0, 1 << 62).is_err());
    assert!(Mapping::new(&file(PAGE), u64::MAX - 4095, 4096).is_err());
    let read_only = File::open("/proc/self/exe").unwrap();
    assert!(Mapping::new(&read_only, 0, 4096).is_err());
}
