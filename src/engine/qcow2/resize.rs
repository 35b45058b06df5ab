//! Disks that become longer or shorter. One thread; requests wait meanwhile.

use std::io;

use super::disk::{Backing, Qcow2Disk};
use super::read_whole::read_whole;
use super::tables::Tables;
use crate::qcow2::{Field, Header};
use crate::storage::LockMode;

/// Number of attempts to find clusters side by side for an L1 table.
const ATTEMPTS: u32 = 64;

impl Qcow2Disk {
    /// Makes the disk `bytes` long. What is new reads as zeroes. Any thread but an IOThread.
    ///
    /// # Errors
    /// The image is read-only or corrupt, or has snapshots and version 2; the size is not a positive multiple of the
    /// logical block size, or needs too large an L1 table; a file cannot be read or written.
    pub(in crate::engine) fn resize(&self, bytes: u64) -> io::Result<()> {
        if self.limits().read_only {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the image is read-only",
            ));
        }
        if self.state.in_use() {
            return self.resize_locked(bytes);
        }
        let _lock = self.lock(LockMode::Write).map_err(io::Error::other)?;
        self.look_anew()?;
        let resized = self.resize_locked(bytes);
        self.flush_at_rest()?;
        resized
    }

    /// As [`resize`](Self::resize), with the image locked.
    fn resize_locked(&self, bytes: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut tables = self.tables_alone();
        self.check_size(&tables.header, bytes)?;
        let before = tables.header.size;
        let resized = self.change_size(&mut tables, bytes);
        let size = if resized.is_ok() { bytes } else { before };
        // Read again in any case, because slices in memory may be old.
        *tables = tables.resized(&self.file, size)?;
        self.set_size(size);
        resized
    }

    fn change_size(&self, tables: &mut Tables, bytes: u64) -> io::Result<()> {
        let before = tables.header.size;
        if bytes > before {
            self.grow(tables, bytes)?;
        } else {
            let cluster = tables.header.cluster.bytes();
            self.forget(tables, bytes.next_multiple_of(cluster)..before)?;
            self.flush_with(tables)?;
        }
        self.file
            .write_bytes(&bytes.to_be_bytes(), Field::Size.offset())?;
        self.file.flush()
    }

    fn check_size(&self, header: &Header, bytes: u64) -> io::Result<()> {
        let refused = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        if header.version == 2 && header.snapshots > 0 {
            return refused("an image of version 2 that has snapshots keeps its size");
        }
        if bytes == 0 || !bytes.is_multiple_of(self.limits().logical_block_size.into()) {
            return refused("the new size is not a multiple of the logical block size");
        }
        let tables = bytes.div_ceil(header.slices().bytes_per_table());
        match tables > Header::L1_ENTRIES_MAX.into() {
            true => refused("the new size needs an L1 table of more than 32 MiB"),
            false => Ok(()),
        }
    }

    /// Makes room in the L1 table, and makes the new part of the disk read as zeroes.
    fn grow(&self, tables: &mut Tables, bytes: u64) -> io::Result<()> {
        let before = tables.header.size;
        let needed = bytes.div_ceil(tables.layout.bytes_per_table());
        if needed > u64::from(tables.header.l1_size) {
            let header = self.move_l1(tables, needed)?;
            *tables = tables.moved(&self.file, header)?;
        }
        let longer = tables.resized(&self.file, bytes)?;
        let cluster = tables.header.cluster.bytes();
        // An earlier end may have left something in the rest of its cluster.
        self.zero_part(&longer, before..bytes.min(before.next_multiple_of(cluster)))?;
        let below = match &self.backing {
            Backing::None => 0,
            Backing::Raw(file) => file.end()?,
            Backing::Qcow2(disk) => disk.size(),
        };
        let rest = before.next_multiple_of(cluster)..bytes;
        if below > before && !rest.is_empty() {
            self.zero_part(&longer, rest)?;
        }
        if let Some(data) = &self.data_file {
            data.set_end(bytes, false)?;
        }
        self.flush_with(&longer)
    }

    /// Moves the L1 table to a place for `needed` entries. Returns the new header.
    fn move_l1(&self, tables: &Tables, needed: u64) -> io::Result<Header> {
        let (header, bits) = (&tables.header, tables.header.cluster.bits());
        let old = header.l1_table_offset >> bits;
        let old_len = u64::from(header.l1_size) * 8;
        let mut table = vec![0; usize::try_from(old_len).map_err(io::Error::other)?];
        read_whole(&self.file, &mut table, header.l1_table_offset)?;
        let clusters = (needed * 8).div_ceil(header.cluster.bytes());
        table.resize(usize::try_from(clusters << bits).map_err(io::Error::other)?, 0);
        let mut new = None;
        for _ in 0..ATTEMPTS {
            let run = self.allocate(tables, clusters)?;
            if run.count == clusters {
                new = Some(run.first << bits);
                break;
            }
            let clusters = run.first..run.first + run.count;
            self.release(tables, vec![clusters])?;
        }
        let new = new.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        self.file.write_bytes(&table, new)?;
        self.file.flush()?;
        let entries = u32::try_from(needed).map_err(io::Error::other)?;
        let field = [&entries.to_be_bytes()[..], &new.to_be_bytes()].concat();
        self.file.write_bytes(&field, Field::L1Table.offset())?;
        self.file.flush()?;
        let old_clusters = old_len.div_ceil(header.cluster.bytes());
        let old = old..old + old_clusters;
        self.release(tables, vec![old])?;
        Ok(Header {
            l1_size: entries,
            l1_table_offset: new,
            ..header.clone()
        })
    }
}
