//! Image formats other than raw, recognised by their first or last bytes.
//!
//! Used only at start-up. A guest can write these bytes to its raw disk as well: see `--format` in docs/trouble.md.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

/// Number of bytes that are examined at the start and at the end: the size of a VHD's footer.
const HEADER: usize = 512;

/// The mark of a VHD's footer. A VHD of fixed size has nothing else: it begins like a raw image.
const VHD: &[u8] = b"conectix";

/// The mark of qcow2.
pub(super) const QCOW2: &[u8] = b"QFI\xfb";

/// The offset of each format's magic bytes, the bytes, and the name of the format.
///
/// LUKS is left out on purpose: a guest that encrypts its whole disk writes that header itself.
const MARKS: [(usize, &[u8], &str); 12] = [
    (0, QCOW2, "qcow2"),
    (0, b"QED\0", "QED"),
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, VHD, "VHD"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"Bochs Virtual HD Image", "Bochs"),
    (0, b"#!/bin/sh\n#V2.0 Format", "cloop"),
];

/// Returns the format that the file or block device at `path` seems to have, or `None` if it is raw or cannot be opened.
///
/// # Errors
/// It can be opened, but not read.
pub fn foreign_format(path: &Path) -> io::Result<Option<&'static str>> {
    let kind = fs::metadata(path).map(|metadata| metadata.file_type());
    // Opening any other kind of file may have side effects.
    if !kind.is_ok_and(|kind| kind.is_file() || kind.is_block_device()) {
        return Ok(None);
    }
    File::open(path).map_or(Ok(None), |file| foreign_format_of(&file))
}

/// Like [`foreign_format`], for an open file or block device. It may be open for O_DIRECT.
///
/// # Errors
/// It cannot be read.
pub fn foreign_format_of(file: &File) -> io::Result<Option<&'static str>> {
    let mut bytes = Aligned::new();
    let begins = bytes.read(file, 0).map(format_of_header);
    let format = match begins {
        Ok(None) => footer(file, &mut bytes).map(|bytes| bytes.and_then(format_of_footer)),
        begins => begins,
    };
    format.or_else(|error| match error.raw_os_error() {
        // Not open for reading, which gets an error of its own, or open for O_DIRECT with larger blocks.
        Some(libc::EBADF | libc::EINVAL) => Ok(None),
        _ => Err(error),
    })
}

/// Returns the format of an image that begins like this, or `None` if it seems to be raw. 512 bytes are enough.
pub fn format_of_header(bytes: &[u8]) -> Option<&'static str> {
    let has = |(at, mark, _): &(usize, &[u8], _)| bytes.get(*at..).is_some_and(|rest| rest.starts_with(mark));
    MARKS.iter().find(|format| has(format)).map(|(_, _, name)| *name)
}

/// Returns the format of an image that ends with these 512 bytes or more, or `None` if it seems to be raw.
pub fn format_of_footer(bytes: &[u8]) -> Option<&'static str> {
    let at = bytes.len().checked_sub(HEADER)?;
    bytes[at..].starts_with(VHD).then_some("VHD")
}

/// Returns whether a file begins like a qcow2 image. The file may be open for O_DIRECT.
pub(super) fn is_qcow2(file: &File) -> bool {
    let mut bytes = Aligned::new();
    bytes.read(file, 0).is_ok_and(|bytes| bytes.starts_with(QCOW2))
}

/// Returns the last bytes of an image, unless it is too short.
fn footer<'a>(mut file: &File, bytes: &'a mut Aligned) -> io::Result<Option<&'a [u8]>> {
    // The size of a block device is not in its metadata.
    let size = file.seek(SeekFrom::End(0))?;
    match size.checked_sub(HEADER as u64) {
        Some(last) => bytes.read(file, last - last % ALIGN as u64).map(Some),
        None => Ok(None),
    }
}

/// Bytes of a file that is perhaps open for O_DIRECT.
struct Aligned([u8; 3 * ALIGN]);

/// Alignment that O_DIRECT accepts everywhere.
const ALIGN: usize = 4096;

impl Aligned {
    fn new() -> Self {
        Self([0; 3 * ALIGN])
    }

    /// Reads up to two blocks.
    fn read(&mut self, file: &File, offset: u64) -> io::Result<&[u8]> {
        let skip = self.0.as_ptr().align_offset(ALIGN);
        let bytes = &mut self.0[skip..skip + 2 * ALIGN];
        let len = read_at(file, bytes, offset)?;
        Ok(&bytes[..len])
    }
}

/// Reads until the buffer is full or the file ends.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read_at(&mut buffer[len..], offset + len as u64) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // With O_DIRECT, the end of a file may have no alignment.
            Err(_) if len > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_cannot_be_read_may_have_any_format() {
        // Nothing is mapped at address 0.
        let error = foreign_format(Path::new("/proc/self/mem")).expect_err("address 0 is read");
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert_eq!(foreign_format(Path::new("/none/here")).expect("no error"), None);
    }
}
