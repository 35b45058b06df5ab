//! Parses options whose values have a notation of their own.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use crate::blk::request::ID_LEN;
use crate::daemon::options::bytes;

/// A serial number, padded with NULs.
pub type Serial = [u8; ID_LEN];

/// Maximum length of a Unix socket's path: `sun_path` has 108 bytes, including a final NUL.
pub const SOCKET_PATH_MAX: usize = 107;

/// Parses a number within `range`. All errors have the same text, which names the range.
pub(super) fn number<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync
where
    T: Copy + FromStr + PartialOrd + Display + Send + Sync + 'static,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("not a number from {} to {}", range.start(), range.end()))
    }
}

pub(super) fn parse_serial(text: &str) -> Result<Serial, String> {
    let mut serial = [0; ID_LEN];
    let bytes = text.as_bytes();
    let room = serial.get_mut(..bytes.len()).ok_or(format!(
        "{} bytes long, but a serial number has at most {ID_LEN}",
        bytes.len()
    ))?;
    if bytes.contains(&0) {
        return Err("contains a NUL byte".to_owned());
    }
    room.copy_from_slice(bytes);
    Ok(serial)
}

pub(super) fn parse_queue_size(text: &str) -> Result<u16, String> {
    power_of_two(text, 4..=1024)
}

pub(super) fn parse_block_size(text: &str) -> Result<u32, String> {
    power_of_two(text, 512..=32768)
}

fn power_of_two<T: Copy + Into<u32> + FromStr + PartialOrd + Display>(
    text: &str,
    range: RangeInclusive<T>,
) -> Result<T, String> {
    let size: Option<T> = text.parse().ok();
    size.filter(|&size| range.contains(&size) && size.into().is_power_of_two())
        .ok_or_else(|| format!("not a power of two from {} to {}", range.start(), range.end()))
}

/// Parses a file descriptor that can be passed to this process: 0 to 2 are taken.
pub(super) fn parse_fd(text: &str) -> Result<i32, String> {
    match text.parse() {
        Ok(fd @ 3..) => Ok(fd),
        Ok(0..=2) => {
            Err("0, 1 and 2 are standard input, output and error: pass the socket as 3 or above".to_owned())
        }
        _ => Err("not the number of a file descriptor, 3 or above".to_owned()),
    }
}

/// Parses the path of a Unix socket.
pub(super) fn parse_socket_path(text: &OsStr) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.as_os_str().len() {
        0 => Err("empty".to_owned()),
        1..=SOCKET_PATH_MAX => Ok(path),
        len => Err(format!(
            "{len} bytes long, but a socket's path has at most {SOCKET_PATH_MAX}: choose a shorter or a relative path"
        )),
    }
}

/// Parses the path of a directory.
#[allow(clippy::needless_pass_by_value, reason = "the form that clap calls")]
pub(super) fn parse_directory(text: OsString) -> Result<PathBuf, String> {
    match text.is_empty() {
        true => Err("empty".to_owned()),
        false => Ok(text.into()),
    }
}

/// Parses permission bits in octal.
pub(super) fn parse_mode(text: &str) -> Result<u32, String> {
    let octal = !text.is_empty() && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8)
        .ok()
        .filter(|&mode| octal && mode <= 0o777);
    mode.ok_or_else(|| "not an octal number from 0000 to 0777, as in 0660".to_owned())
}

/// Parses a size with an optional suffix. It must be a whole number of sectors.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    bytes(text)
        .filter(|&size| size > 0 && size % 512 == 0 && i64::try_from(size).is_ok())
        .ok_or(
            "not a size such as 512M or 10G (units K, M, G, T), a multiple of 512 bytes below 8 EiB"
                .to_owned(),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_up_to_twenty_bytes_are_padded() {
        assert_eq!(
            parse_serial("12345678901234567890").unwrap(),
            *b"12345678901234567890"
        );
        assert_eq!(parse_serial("a").unwrap()[..3], [b'a', 0, 0]);
    }

    #[test]
    fn socket_mode_is_octal() {
        for (text, mode) in [("0600", 0o600), ("660", 0o660), ("0", 0), ("0777", 0o777)] {
            assert_eq!(parse_mode(text), Ok(mode), "{text}");
        }
        for text in ["", "8", "+600", "-1", "01000", "0x1ff"] {
            assert!(parse_mode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_suffixes_and_whole_sectors() {
        for (text, size) in [
            ("512", 512),
            ("4k", 4096),
            ("1M", 1 << 20),
            ("3G", 3 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in [
            "",
            "G",
            "0",
            "-1",
            "100",
            "1.5G",
            "1Gi",
            "1P",
            "16777216T",
            "99999999T",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
