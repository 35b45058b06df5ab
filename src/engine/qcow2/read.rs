//! Reads: from a guest offset to the files, through all backing files. Workers only.

use std::io;

use super::disk::Qcow2Disk;
use super::tables::Tables;
use crate::io::IoVecs;
use crate::qcow2::Place;

/// Size of the pieces of a salvage in bytes.
const SALVAGE_PIECE: usize = 4096;

impl Qcow2Disk {
    /// Fills `iov` from a guest offset on.
    ///
    /// # Errors
    /// The range is not on the disk, the image is corrupt, or a file cannot be read.
    pub fn read(&self, iov: &IoVecs, guest: u64) -> io::Result<()> {
        let len = iov.len() as u64;
        if guest.checked_add(len).is_none_or(|end| end > self.size()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the range ends past the end of the disk",
            ));
        }
        self.read_part(iov, 0, iov.len(), guest)?;
        lost(iov)
    }

    /// Fills `iov` from a guest offset on, with zeroes in place of the data that cannot be read.
    ///
    /// # Errors
    /// EFAULT: the memory of `iov` is lost.
    pub(super) fn salvage(&self, iov: &IoVecs, guest: u64) -> io::Result<()> {
        for at in (0..iov.len()).step_by(SALVAGE_PIECE) {
            let len = SALVAGE_PIECE.min(iov.len() - at);
            if self
                .read_part(iov, at, len, guest.saturating_add(at as u64))
                .is_err()
            {
                iov.zero_at(at, len);
            }
        }
        lost(iov)
    }

    /// Fills `len` bytes of `iov` from byte `at` on, with the data from a guest offset on. What is past the end of the
    /// disk is zero.
    pub(super) fn read_part(&self, iov: &IoVecs, at: usize, len: usize, guest: u64) -> io::Result<()> {
        self.read_from(&self.tables(), iov, at, len, guest)
    }

    /// As [`read_part`](Self::read_part), with `tables` that the caller has locked.
    pub(super) fn read_from(
        &self,
        tables: &Tables,
        iov: &IoVecs,
        at: usize,
        len: usize,
        guest: u64,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let (at, guest, left) = (at + done, guest + done as u64, len - done);
            let on_disk = tables.header.size.saturating_sub(guest).min(left as u64);
            if on_disk == 0 {
                iov.zero_at(at, left);
                break;
            }
            // Held while the data is read, so that the place stays that of the data.
            let (extent, held) = tables.find(&self.file, guest, on_disk)?;
            let len = usize::try_from(extent.len).expect("at most the length of the request");
            match extent.place {
                Place::Data(offset) => self.data().read_part(iov, at, len, offset)?,
                Place::Zero => iov.zero_at(at, len),
                Place::Backing => {
                    drop(held);
                    self.backing.read(iov, at, len, guest)?;
                }
                Place::Compressed(compressed, within) => {
                    let cluster = tables.decompressed(&self.file, compressed)?;
                    let within = usize::try_from(within).expect("within a cluster");
                    iov.write_at(at, &cluster[within..within + len]);
                }
            }
            done += len;
        }
        Ok(())
    }
}

/// Fails if memory was lost while we wrote to it.
fn lost(iov: &IoVecs) -> io::Result<()> {
    match iov.has_lost() {
        false => Ok(()),
        true => Err(io::Error::from_raw_os_error(libc::EFAULT)),
    }
}
