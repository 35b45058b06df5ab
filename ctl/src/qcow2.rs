//! The part of a qcow2 header that names other files, or says that the image cannot be served.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// First bytes of an image.
pub(crate) const MAGIC: &[u8] = b"QFI\xfb";
/// Bytes of the file that have the header, its extensions and the name of the backing file.
const HEADER_MAX: u64 = 64 << 10;
/// Length of the header of version 2, and the least one of version 3.
const LENGTHS: [usize; 2] = [72, 104];
/// Extensions of the header.
const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE: u32 = 0x4441_5441;
/// Incompatible features: lazy refcounts that are not written, an external data file, and the types of compression and
/// L2 entries.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 2;
const EXTERNAL_DATA: u64 = 4;
const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | 8 | 16;

/// The facts in a header.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) backing: Option<String>,
    pub(crate) backing_format: Option<String>,
    pub(crate) data_file: Option<String>,
    pub(crate) encrypted: bool,
    pub(crate) corrupt: bool,
    pub(crate) unknown_features: bool,
}

impl Header {
    /// Reads the header of the image at `path`.
    ///
    /// # Errors
    /// The file cannot be read, or is no qcow2 image of version 2 or 3.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let shown = || format!("cannot read the header of {}", path.display());
        let file = File::open(path).with_context(shown)?;
        let mut bytes = Vec::new();
        file.take(HEADER_MAX)
            .read_to_end(&mut bytes)
            .with_context(shown)?;
        Self::parse(&bytes).with_context(shown)
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        ensure!(bytes.starts_with(MAGIC), "it has no qcow2 header");
        let version = number(bytes, 4)?;
        let incompatible = match version {
            2 => 0,
            3 => long(bytes, 72)?,
            other => bail!("version {other} is not known"),
        };
        let end = match version {
            2 => LENGTHS[0],
            _ => (number(bytes, 100)? as usize).max(LENGTHS[1]),
        };
        let mut header = Self {
            encrypted: number(bytes, 32)? != 0,
            corrupt: incompatible & CORRUPT != 0,
            unknown_features: incompatible & !KNOWN != 0,
            ..Self::default()
        };
        let (offset, len) = (long(bytes, 8)?, number(bytes, 16)?);
        if offset != 0 && len > 0 {
            header.backing = Some(text(bytes, usize::try_from(offset)?, len)?);
        }
        header.read_extensions(bytes, end)?;
        ensure!(
            incompatible & EXTERNAL_DATA == 0 || header.data_file.is_some(),
            "it does not name its external data file"
        );
        if incompatible & EXTERNAL_DATA == 0 {
            header.data_file = None;
        }
        Ok(header)
    }

    fn read_extensions(&mut self, bytes: &[u8], mut at: usize) -> Result<()> {
        while let (Ok(kind), Ok(len)) = (number(bytes, at), number(bytes, at + 4))
            && kind != 0
        {
            match kind {
                BACKING_FORMAT => self.backing_format = Some(text(bytes, at + 8, len)?),
                DATA_FILE => self.data_file = Some(text(bytes, at + 8, len)?),
                _ => {}
            }
            at = at.saturating_add(8 + (len as usize).next_multiple_of(8));
        }
        Ok(())
    }
}

/// Returns the path that `name` in the image at `image` means: a relative one begins in the directory of the image.
///
/// # Errors
/// The name begins with a protocol.
pub(crate) fn path_of(image: &Path, name: &str) -> Result<PathBuf> {
    let path = name.strip_prefix("file:").unwrap_or(name);
    let before_slash = path.split('/').next().unwrap_or_default();
    ensure!(
        !path.is_empty() && !before_slash.contains(':'),
        "{} names '{name}', which is not the path of a file",
        image.display()
    );
    Ok(image.parent().unwrap_or(Path::new("")).join(path))
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().context("the header is cut off")
}

fn number(bytes: &[u8], at: usize) -> Result<u32> {
    bytes_at(bytes, at).map(u32::from_be_bytes)
}

fn long(bytes: &[u8], at: usize) -> Result<u64> {
    bytes_at(bytes, at).map(u64::from_be_bytes)
}

fn text(bytes: &[u8], at: usize, len: u32) -> Result<String> {
    let text = at.checked_add(len as usize).and_then(|end| bytes.get(at..end));
    let text = text.context("the header is cut off")?;
    String::from_utf8(text.to_vec()).context("a name in the header is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: u8) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[7] = version;
        bytes[103] = 104;
        bytes
    }

    fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
        bytes[at..at + what.len()].copy_from_slice(what);
    }

    #[test]
    fn names_in_headers_are_found() {
        let mut bytes = header(3);
        put(&mut bytes, 8, &400_u64.to_be_bytes());
        put(&mut bytes, 16, &6_u32.to_be_bytes());
        put(&mut bytes, 400, b"b.base");
        put(&mut bytes, 72, &(CORRUPT | EXTERNAL_DATA).to_be_bytes());
        put(&mut bytes, 104, b"\xe2\x79\x2a\xca\0\0\0\x03raw\0\0\0\0\0");
        put(&mut bytes, 120, b"DATA\0\0\0\x01d");
        let parsed = Header::parse(&bytes).unwrap();
        let expected = Header {
            backing: Some("b.base".to_owned()),
            backing_format: Some("raw".to_owned()),
            data_file: Some("d".to_owned()),
            corrupt: true,
            ..Header::default()
        };
        assert_eq!(parsed, expected);
    }

    #[test]
    fn wrong_headers_are_refused() {
        assert_eq!(Header::parse(&header(2)).unwrap(), Header::default());
        let mut cut_off = header(3);
        put(&mut cut_off, 8, &500_u64.to_be_bytes());
        put(&mut cut_off, 16, &60_u32.to_be_bytes());
        for bad in [&header(4)[..], &header(3)[..80], &cut_off, b"QFI", &[0; 512]] {
            assert!(Header::parse(bad).is_err());
        }
    }
}
