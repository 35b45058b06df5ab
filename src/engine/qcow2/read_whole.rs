//! Reads tables of an image. Any thread.

use std::io;

use crate::storage::RawFile;

/// Reads a table, all of which must be in the file.
pub(super) fn read_whole(file: &RawFile, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    match file.read_bytes(bytes, offset)? == bytes.len() {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "a table of the qcow2 image is past the end of the file",
        )),
    }
}
