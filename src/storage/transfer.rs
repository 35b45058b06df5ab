//! Loops around system calls that may transfer less than requested: a transfer is complete, or fails.

use std::io;

/// Maximum number of ranges in a `preadv` or `pwritev` (`UIO_MAXIOV`).
pub(super) const IOV_MAX: usize = 1024;

/// Number of retries after EAGAIN, which means a temporary lack of resources on files without O_NONBLOCK.
const EAGAIN_RETRIES: u32 = 1000;

/// Transfers all of `iov`, with as many calls of `io` as needed.
///
/// `io(ranges, offset)` transfers bytes from the front of `ranges` and returns their number. Short transfers are
/// resumed, EINTR and EAGAIN are retried, and lists longer than `IOV_MAX` are split.
///
/// # Errors
/// `io` failed, or it transferred nothing, which is the end of the file (`at_end`). A part may have been transferred.
pub(super) fn transfer(
    mut iov: &[libc::iovec],
    mut offset: u64,
    at_end: io::ErrorKind,
    mut io: impl FnMut(&[libc::iovec], u64) -> io::Result<usize>,
) -> io::Result<()> {
    // Number of bytes of the first range that were transferred already.
    let mut skip = 0;
    while let Some(first) = iov.first() {
        let moved = if skip == 0 {
            retry(|| io(&iov[..iov.len().min(IOV_MAX)], offset))?
        } else {
            // The rest of a range is transferred on its own, so that the list need not be copied.
            let rest = [libc::iovec {
                iov_base: first.iov_base.wrapping_byte_add(skip),
                iov_len: first.iov_len - skip,
            }];
            retry(|| io(&rest, offset))?
        };
        if moved == 0 {
            return Err(at_end.into());
        }
        offset += moved as u64;
        (iov, skip) = advance(iov, skip + moved);
    }
    Ok(())
}

/// Removes `bytes` from the front of `iov`. Returns the remaining ranges, and the number of bytes removed from the
/// first.
fn advance(iov: &[libc::iovec], mut bytes: usize) -> (&[libc::iovec], usize) {
    let whole = iov
        .iter()
        .take_while(|range| {
            let gone = range.iov_len <= bytes;
            if gone {
                bytes -= range.iov_len;
            }
            gone
        })
        .count();
    (&iov[whole..], bytes)
}

/// Repeats `call` while a signal interrupts it, or while resources are short.
pub(super) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut tries = 0;
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && tries < EAGAIN_RETRIES => {
                tries += 1;
                std::thread::yield_now();
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Returns ranges that are never dereferenced: the injected calls only use addresses and lengths.
    fn ranges(lens: &[usize]) -> Vec<libc::iovec> {
        let mut base = 0x1000;
        lens.iter()
            .map(|&iov_len| {
                let range = libc::iovec {
                    iov_base: std::ptr::without_provenance_mut(base),
                    iov_len,
                };
                base += iov_len;
                range
            })
            .collect()
    }

    type Call = (usize, usize, usize, u64);

    /// Runs `transfer` with scripted results. Returns its result, and the arguments of each call:
    /// (first address, number of ranges, number of bytes, offset).
    fn script(lens: &[usize], results: Vec<io::Result<usize>>) -> (io::Result<()>, Vec<Call>) {
        let (iov, mut results, mut calls) = (ranges(lens), VecDeque::from(results), Vec::new());
        let result = transfer(&iov, 100, io::ErrorKind::UnexpectedEof, |iov, offset| {
            let bytes = iov.iter().map(|r| r.iov_len).sum();
            calls.push((iov[0].iov_base.addr(), iov.len(), bytes, offset));
            results.pop_front().expect("no more calls than scripted")
        });
        assert!(results.is_empty(), "calls missing: {results:?}");
        (result, calls)
    }

    fn os(errno: i32) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn a_whole_transfer_is_one_call() {
        let (result, calls) = script(&[512, 4096], vec![Ok(4608)]);
        result.unwrap();
        assert_eq!(calls, [(0x1000, 2, 4608, 100)]);
    }

    #[test]
    fn an_empty_list_makes_no_call() {
        let (result, calls) = script(&[], vec![]);
        result.unwrap();
        assert!(calls.is_empty());
    }

    #[test]
    fn a_short_transfer_is_resumed() {
        let (result, calls) = script(&[100, 200, 300], vec![Ok(150), Ok(50), Ok(100), Ok(200), Ok(100)]);
        result.unwrap();
        let expected = [
            (0x1000, 3, 600, 100),
            (0x1000 + 150, 1, 150, 250),
            (0x1000 + 200, 1, 100, 300),
            (0x1000 + 300, 1, 300, 400),
            (0x1000 + 500, 1, 100, 600),
        ];
        assert_eq!(calls, expected);
    }

    #[test]
    fn interrupted_and_starved_calls_are_repeated() {
        let results = vec![os(libc::EINTR), os(libc::EAGAIN), Ok(8), os(libc::EINTR), Ok(8)];
        let (result, calls) = script(&[16], results);
        result.unwrap();
        assert_eq!(
            calls.iter().map(|c| c.3).collect::<Vec<_>>(),
            [100, 100, 100, 108, 108]
        );
    }

    #[test]
    fn lasting_starvation_is_an_error_not_a_hang() {
        let mut calls = 0u32;
        let result = transfer(&ranges(&[16]), 0, io::ErrorKind::WriteZero, |_, _| {
            calls += 1;
            os(libc::EAGAIN)
        });
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        assert_eq!(calls, EAGAIN_RETRIES + 1);
    }

    #[test]
    fn the_end_of_the_file_is_an_error() {
        let (result, _) = script(&[512], vec![Ok(0)]);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let (result, _) = script(&[512, 512], vec![Ok(700), Ok(0)]);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_error_ends_the_transfer() {
        let (result, _) = script(&[512, 512], vec![Ok(512), os(libc::EIO)]);
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EIO));
    }

    #[test]
    fn long_lists_are_split() {
        let (result, calls) = script(&[1; 2500], vec![Ok(1024), Ok(1024), Ok(452)]);
        result.unwrap();
        assert_eq!(calls.iter().map(|c| c.1).collect::<Vec<_>>(), [1024, 1024, 452]);
    }
}
