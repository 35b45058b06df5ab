//! Options that are a value in a notation of their own.

use crate::blk::request::ID_LEN;

/// A serial number, padded with NULs.
pub type Serial = [u8; ID_LEN];

pub(super) fn parse_serial(text: &str) -> Result<Serial, String> {
    let mut serial = [0; ID_LEN];
    let bytes = text.as_bytes();
    let room = serial
        .get_mut(..bytes.len())
        .ok_or(format!("{} bytes, at most {ID_LEN} fit", bytes.len()))?;
    if bytes.contains(&0) {
        return Err("a NUL byte cannot be part of it".to_owned());
    }
    room.copy_from_slice(bytes);
    Ok(serial)
}

pub(super) fn parse_queue_size(text: &str) -> Result<u16, String> {
    let size: u16 = text.parse().map_err(|e| format!("{e}"))?;
    if (4..=1024).contains(&size) && size.is_power_of_two() {
        Ok(size)
    } else {
        Err("not a power of two from 4 to 1024".to_owned())
    }
}

/// Permission bits in octal.
pub(super) fn parse_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).map_err(|e| format!("{e} (octal, as in 0660)"))?;
    if text.starts_with('+') || mode > 0o777 {
        return Err("not permissions from 0000 to 0777".to_owned());
    }
    Ok(mode)
}

/// A size in bytes of whole sectors, with an optional suffix.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        unit => return Err(format!("unknown unit {unit}: use K, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|e| format!("{e}"))?;
    number
        .checked_mul(1 << shift)
        .filter(|&size| size > 0 && size % 512 == 0 && i64::try_from(size).is_ok())
        .ok_or("not a positive multiple of 512 below 8 EiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_of_twenty_bytes_fits_and_is_padded() {
        assert_eq!(
            parse_serial("12345678901234567890").unwrap(),
            *b"12345678901234567890"
        );
        assert_eq!(parse_serial("a").unwrap()[..3], [b'a', 0, 0]);
    }

    #[test]
    fn the_mode_of_the_socket_is_octal() {
        for (text, mode) in [("0600", 0o600), ("660", 0o660), ("0", 0), ("0777", 0o777)] {
            assert_eq!(parse_mode(text), Ok(mode), "{text}");
        }
        for text in ["", "8", "+600", "-1", "01000", "0x1ff"] {
            assert!(parse_mode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_take_suffixes_and_are_whole_sectors() {
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
