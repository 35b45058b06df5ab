//! The marks in the header of an image: dirty and corrupt. Any thread.

use std::io;
use std::sync::atomic::Ordering;

use super::disk::Qcow2Disk;
use super::tables::Tables;
use crate::qcow2::{Corruption, Field, Header};

impl Qcow2Disk {
    /// Fails unless the image can be written to.
    ///
    /// # Errors
    /// It was opened for reading (EROFS), or is corrupt (EIO).
    pub(super) fn check_writable(&self) -> io::Result<()> {
        if self.limits().read_only {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        match self.state.is_corrupt.load(Ordering::Relaxed) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }

    /// Sets or clears the dirty bit. A set bit is stable before this returns.
    pub(super) fn set_dirty(&self, tables: &Tables, dirty: bool) -> io::Result<()> {
        let old = self.state.features.load(Ordering::Relaxed);
        let new = match dirty {
            true => old | Header::DIRTY,
            false => old & !Header::DIRTY,
        };
        if tables.header.version < 3 || old == new {
            return Ok(());
        }
        self.write_features(new)?;
        if dirty { self.file.flush() } else { Ok(()) }
    }

    fn write_features(&self, features: u64) -> io::Result<()> {
        self.file
            .write_bytes(&features.to_be_bytes(), Field::Incompatible.offset())?;
        self.state.features.store(features, Ordering::Relaxed);
        Ok(())
    }

    /// Marks the image as corrupt if an error of a request says so. Nothing is written to it from then on.
    ///
    /// Compressed data that is damaged is no mistake in the tables: writes are safe, and qemu-img check finds nothing.
    pub(super) fn watch(&self, result: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &result
            && let Some(corruption) = error
                .get_ref()
                .and_then(|source| source.downcast_ref::<Corruption>())
            && *corruption != Corruption::Compressed
            && self.state.may_write()
            && !self.state.is_corrupt.swap(true, Ordering::Relaxed)
        {
            tracing::error!(
                disk = self.path().display().to_string(), error = %corruption,
                "the image is marked as corrupt, and nothing is written to it any more: repair it with qemu-img check -r all"
            );
            let version = self.tables().header.version;
            let features = self.state.features.load(Ordering::Relaxed) | Header::CORRUPT;
            let marked = match version {
                2 => Ok(()),
                _ => self.write_features(features).and_then(|()| self.file.flush()),
            };
            if let Err(error) = marked {
                tracing::error!(%error, "the image cannot be marked as corrupt");
            }
        }
        result
    }
}
