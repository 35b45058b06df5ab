//! Disks that become longer or shorter.

use std::io;

use super::disk::Qcow2Disk;

impl Qcow2Disk {
    /// Makes the disk `bytes` long.
    ///
    /// # Errors
    /// The image is read-only.
    pub(in crate::engine) fn resize(&self, bytes: u64) -> io::Result<()> {
        let _ = bytes;
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "qcow2 images keep their size so far",
        ))
    }
}
