//! Sets up the dirty log from any file, marks any ranges, and compares the log with a check of every page.
#![no_main]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vhost_user_blk::memory::{DirtyLog, LogError};
use vhost_user_blk_fuzz::guest::memfd;

#[derive(Arbitrary, Debug)]
struct Input {
    file: Backing,
    pages: u8,
    odd: u16,
    offset: Number,
    size: Number,
    covers: Vec<Number>,
    marks: Vec<(Number, Number)>,
    clear_at: u8,
}

#[derive(Arbitrary, Debug)]
enum Backing {
    Memfd,
    Sealed,
    /// A file that cannot be sealed against shrinking.
    NullDevice,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Small(u8),
    Pages(u8),
    Medium(u16),
    /// Counted down from `u64::MAX`.
    Huge(u16),
    Any(u64),
}

impl Number {
    fn get(self) -> u64 {
        match self {
            Self::Small(n) => n.into(),
            Self::Pages(n) => u64::from(n) * 4096,
            Self::Medium(n) => u64::from(n) * 256,
            Self::Huge(n) => u64::MAX - u64::from(n),
            Self::Any(n) => n,
        }
    }
}

impl Backing {
    fn file(&self, len: u64) -> File {
        match self {
            Self::NullDevice => File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .expect("it is there"),
            Self::Memfd => memfd(len),
            Self::Sealed => {
                let file = memfd(len);
                // SAFETY: F_ADD_SEALS takes an int.
                let sealed = unsafe {
                    libc::fcntl(
                        file.as_raw_fd(),
                        libc::F_ADD_SEALS,
                        libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL,
                    )
                };
                assert_eq!(sealed, 0);
                file
            }
        }
    }
}

fuzz_target!(|input: Input| {
    let len = u64::from(input.pages % 8) * 4096 + u64::from(input.odd % 4096);
    let file = input.file.file(len);
    let (offset, size) = (input.offset.get(), input.size.get());
    let log = DirtyLog::map(&file, offset, size);
    let sealable = !matches!(input.file, Backing::NullDevice);
    let inside = u128::from(offset) + u128::from(size) <= u128::from(len);
    let good = sealable && inside && size > 0 && offset % 4096 == 0;
    assert_eq!(log.is_ok(), good, "{log:?}");
    let Ok(log) = log else { return };
    let mut expected = vec![0; len as usize];
    for (i, (guest, len)) in input.marks.iter().take(64).enumerate() {
        let (guest, len) = (guest.get(), len.get());
        log.mark(guest, len);
        mark(
            &mut expected[offset as usize..(offset + size) as usize],
            guest,
            len,
        );
        if i == usize::from(input.clear_at) {
            // The frontend may clear the bits at any time.
            expected.fill(0);
            file.write_all_at(&expected, 0).expect("clear the log");
        }
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).expect("read the log");
    assert!(bytes == expected, "the log is {bytes:x?} and not {expected:x?}");
    for end in input.covers.iter().take(16).map(|end| end.get()) {
        let pages = u128::from(end).div_ceil(4096);
        let covered = log.check_covers(end);
        assert_eq!(covered.is_ok(), pages <= u128::from(size) * 8, "{end:#x}");
        assert!(matches!(covered, Ok(()) | Err(LogError::TooSmall { .. })));
    }
});

/// Marks the range in the expected log: tests each page that has a bit.
fn mark(log: &mut [u8], guest: u64, len: u64) {
    let (first, end) = (u128::from(guest), u128::from(guest) + u128::from(len));
    for page in 0..log.len() * 8 {
        let (start, behind) = (page as u128 * 4096, (page as u128 + 1) * 4096);
        if len > 0 && start < end && first < behind {
            log[page / 8] |= 1 << (page % 8);
        }
    }
}
