//! The format of an image, recognised by its first or last bytes, as the daemon does it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use crate::qcow2::MAGIC;

/// Number of bytes at the start and at the end: the size of a VHD's footer.
const LEN: usize = 512;
/// The mark of a VHD's footer. A VHD of fixed size has nothing else.
const VHD: &[u8] = b"conectix";
/// The offset of each format's mark, the mark, and the name of the format.
const MARKS: [(usize, &[u8], &str); 12] = [
    (0, MAGIC, QCOW2),
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

/// The format that is served besides raw.
pub(super) const QCOW2: &str = "qcow2";

/// Returns the format that an image seems to have, or `None` if it is raw.
///
/// # Errors
/// It cannot be read.
pub(super) fn of(mut image: &File) -> io::Result<Option<&'static str>> {
    let start = read(image, 0)?;
    let begins = |(at, mark, _): &(usize, &[u8], _)| start[*at..].starts_with(mark);
    if let Some((_, _, name)) = MARKS.iter().find(|mark| begins(mark)) {
        return Ok(Some(name));
    }
    // The size of a block device is not in its metadata.
    let size = image.seek(SeekFrom::End(0))?;
    let footer = read(image, size.saturating_sub(LEN as u64))?;
    Ok(footer.starts_with(VHD).then_some("VHD"))
}

/// Reads up to [`LEN`] bytes. The rest is zero.
fn read(image: &File, offset: u64) -> io::Result<[u8; LEN]> {
    let mut bytes = [0; LEN];
    let mut len = 0;
    while len < LEN {
        match image.read_at(&mut bytes[len..], offset + len as u64) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}
