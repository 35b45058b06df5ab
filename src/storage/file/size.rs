//! The size of an image, which may change while it is served.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;

use rustix::fs::{Advice, AtFlags, SeekFrom, StatxFlags, fadvise, fstatfs, seek, statx};

use super::RawFile;
use crate::storage::kind::Kind;
use crate::sys::block_device;

impl RawFile {
    /// Returns the size in bytes, a multiple of the logical block size. Only a part of an image in a format can be empty.
    pub fn size(&self) -> u64 {
        // Relaxed: no other data depends on this number, and the kernel checks the end of the file itself.
        self.size.load(Ordering::Relaxed)
    }

    /// Returns the bytes that the file takes on its file system, as far as the kernel knows without asking a server.
    pub fn allocated(&self) -> Option<u64> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = statx(&self.file, c"", flags, StatxFlags::BLOCKS).ok()?;
        let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BLOCKS);
        known.then(|| stat.stx_blocks.saturating_mul(512))
    }

    /// Reads the size again, and returns it rounded down to whole logical blocks. Any thread.
    ///
    /// # Errors
    /// The size cannot be read, or no whole block is left. The old size stays.
    pub fn refresh_size(&self) -> io::Result<u64> {
        let bytes = self.bytes()?;
        let size = bytes - bytes % u64::from(self.limits.logical_block_size);
        if size == 0 && !self.may_be_empty {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the image has no whole block left",
            ));
        }
        self.size.store(size, Ordering::Relaxed);
        Ok(size)
    }

    /// Makes the file `bytes` long, and the disk with it. Any thread; the file system may take its time to shrink it.
    ///
    /// # Errors
    /// The disk is read-only or a block device, or would not have whole blocks, or there is no room.
    pub fn resize(&self, bytes: u64) -> io::Result<()> {
        let refused = |kind, why| Err(io::Error::new(kind, why));
        if self.limits.read_only {
            return refused(io::ErrorKind::PermissionDenied, "the image is read-only");
        }
        if self.kind == Kind::BlockDevice {
            return refused(
                io::ErrorKind::Unsupported,
                "a block device has a size of its own: change that, then send SIGHUP",
            );
        }
        if bytes == 0 || !bytes.is_multiple_of(self.limits.logical_block_size.into()) {
            return refused(
                io::ErrorKind::InvalidInput,
                "the new size is not a multiple of the logical block size",
            );
        }
        self.file.set_len(bytes)?;
        self.refresh_size().map(drop)
    }

    /// Returns the current size in bytes.
    fn bytes(&self) -> io::Result<u64> {
        match self.kind {
            Kind::Regular => Ok(self.file.metadata()?.len()),
            Kind::BlockDevice => block_device::size(&self.file),
        }
    }

    /// Returns the size of a regular file in bytes. Seeking is harmless, because nothing uses the position.
    pub(super) fn end_of_file(&self) -> io::Result<u64> {
        Ok(seek(&self.file, SeekFrom::End(0))?)
    }

    /// Drops clean cached data and reads the size again, because another process has used the image, perhaps on another
    /// host. Returns whether the size has changed.
    ///
    /// # Errors
    /// The cache cannot be dropped, or the new size is invalid.
    pub fn look_anew(&self) -> io::Result<bool> {
        let before = self.size();
        let shared = self.kind == Kind::BlockDevice || !host_only(&self.file);
        if shared && !self.direct {
            // What is dirty stays.
            fadvise(&self.file, 0, None, Advice::DontNeed)?;
        }
        // If a file of this host has become shorter, it was truncated by mistake. Reads past its end fail until it is
        // extended.
        if shared || self.bytes()? > before {
            self.refresh_size()?;
        }
        Ok(self.size() != before)
    }
}

/// Returns whether a file is on a file system that only this host can use, so that its cache is never stale.
fn host_only(file: &File) -> bool {
    /// `f_type` of ext2, ext3 and ext4; XFS; Btrfs; tmpfs; F2FS; bcachefs; ZFS; overlayfs.
    const MAGIC: [u32; 8] = [
        0xef53,
        0x5846_5342,
        0x9123_683e,
        0x0102_1994,
        0xf2f5_2010,
        0xca45_1a4e,
        0x2fc1_2fc1,
        0x794c_7630,
    ];
    fstatfs(file).is_ok_and(|stat| MAGIC.iter().any(|known| i64::from(*known) == stat.f_type))
}
