//! The refcount blocks of an image. One thread at a time.

use std::io;
use std::ops::Range;

use super::read_whole::read_whole;
use crate::qcow2::{ClusterSize, Field, Header, RefcountWidth, Refcounts};
use crate::storage::RawFile;

/// Bits of the offset of a refcount block.
const OFFSET: u64 = 0xffff_ffff_ffff_fe00;
/// Largest refcount table in bytes, as in QEMU.
const TABLE_MAX: u64 = 8 << 20;
/// Number of refcounts that are read at once.
const CHUNK: u64 = 4096;

/// The refcount table in memory. The blocks are read and written in place.
#[derive(Debug)]
pub(super) struct RefcountBlocks {
    width: RefcountWidth,
    cluster: ClusterSize,
    /// The place of the table in the image: numbers of clusters.
    pub(super) table_clusters: Range<u64>,
    /// The offsets of the blocks, or 0.
    table: Vec<u64>,
}

impl RefcountBlocks {
    /// Reads the refcount table.
    ///
    /// # Errors
    /// The file cannot be read, or the table is invalid.
    pub(super) fn read(file: &RawFile, header: &Header) -> io::Result<Self> {
        let cluster = header.cluster;
        let len = u64::from(header.refcount_table_clusters) << cluster.bits();
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        read_whole(file, &mut bytes, header.refcount_table_offset)?;
        let (entries, _) = bytes.as_chunks::<8>();
        let table: Vec<u64> = entries
            .iter()
            .map(|entry| u64::from_be_bytes(*entry) & OFFSET)
            .collect();
        if table.is_empty() || table.iter().any(|offset| !cluster.divides(*offset)) {
            return Err(invalid("the refcount table is invalid"));
        }
        // A small file could claim endless clusters as used, and searching them for a free one would take hours.
        let mut blocks: Vec<u64> = table.iter().copied().filter(|offset| *offset != 0).collect();
        blocks.sort_unstable();
        if blocks.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(invalid("the refcount table has the same block twice"));
        }
        let start = header.refcount_table_offset >> cluster.bits();
        Ok(Self {
            width: RefcountWidth::from_order(header.refcount_order).expect("checked with the header"),
            cluster,
            table_clusters: start..start + u64::from(header.refcount_table_clusters),
            table,
        })
    }

    /// Returns the number of clusters whose refcounts are in one block.
    pub(super) fn per_block(&self) -> u64 {
        self.width.per_block(self.cluster)
    }

    /// Returns the largest refcount.
    pub(super) fn max(&self) -> u64 {
        self.width.max()
    }

    /// Returns the numbers of the clusters that are refcount blocks.
    pub(super) fn blocks(&self) -> impl Iterator<Item = u64> + '_ {
        let blocks = self.table.iter().filter(|offset| **offset != 0);
        blocks.map(|offset| offset >> self.cluster.bits())
    }

    /// Returns the end of the clusters for which the table has entries.
    pub(super) fn end(&self) -> u64 {
        self.table.len() as u64 * self.per_block()
    }

    /// Returns whether there is a block with the refcount of a cluster.
    pub(super) fn covers(&self, cluster: u64) -> bool {
        self.block(cluster).is_some()
    }

    fn block(&self, cluster: u64) -> Option<u64> {
        let number = usize::try_from(cluster / self.per_block()).ok()?;
        self.table.get(number).copied().filter(|offset| *offset != 0)
    }

    /// Returns the end of the clusters from `first` on whose refcounts are handled at once.
    pub(super) fn chunk_end(&self, first: u64) -> u64 {
        let block_end = (first / self.per_block() + 1) * self.per_block();
        block_end.min(first + CHUNK)
    }

    /// Reads the refcounts of clusters that are in one block.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn load(&self, file: &RawFile, clusters: &Range<u64>) -> io::Result<Loaded> {
        let block = self
            .block(clusters.start)
            .ok_or_else(|| invalid("a refcount block is missing"))?;
        let base = clusters.start / self.per_block() * self.per_block();
        let (first, end) = (clusters.start - base, clusters.end - base);
        let range = self.width.bytes(first, end);
        let mut bytes = vec![0; usize::try_from(range.end - range.start).map_err(io::Error::other)?];
        read_whole(file, &mut bytes, block + range.start)?;
        Ok(Loaded {
            counts: Refcounts::new(self.width, first, bytes),
            base,
            offset: block + range.start,
        })
    }

    /// Replaces the refcounts of clusters by what `change` makes of them. All have blocks.
    ///
    /// # Errors
    /// The file cannot be read or written, or `change` refuses.
    pub(super) fn change(
        &self,
        file: &RawFile,
        clusters: Range<u64>,
        mut change: impl FnMut(u64, u64) -> io::Result<u64>,
    ) -> io::Result<()> {
        let mut first = clusters.start;
        while first < clusters.end {
            let end = self.chunk_end(first).min(clusters.end);
            let mut loaded = self.load(file, &(first..end))?;
            for cluster in first..end {
                let new = change(cluster, loaded.get(cluster))?;
                loaded.set(cluster, new);
            }
            loaded.store(file)?;
            first = end;
        }
        Ok(())
    }

    /// Makes sure that there is a block with the refcount of a cluster. Returns the end of the clusters that were written
    /// for it, or 0.
    ///
    /// # Errors
    /// The file cannot be written, or the table would be too large.
    pub(super) fn cover(&mut self, file: &RawFile, cluster: u64) -> io::Result<u64> {
        let number = usize::try_from(cluster / self.per_block()).map_err(io::Error::other)?;
        let mut written = 0;
        if number >= self.table.len() {
            self.grow(file, number + 1)?;
            written = self.table_clusters.end;
        }
        if self.table[number] != 0 {
            return Ok(written);
        }
        // No cluster of this block's part is in use, so the block is the first of them.
        let first = number as u64 * self.per_block();
        if first == 0 {
            return Err(invalid("the first refcount block is missing"));
        }
        let offset = first << self.cluster.bits();
        self.write_block(file, offset, 1)?;
        file.flush()?;
        let entry = (self.table_clusters.start << self.cluster.bits()) + number as u64 * 8;
        file.write_bytes(&offset.to_be_bytes(), entry)?;
        self.table[number] = offset;
        Ok(written.max(first + 1))
    }

    /// Writes a block whose first `used` refcounts are 1.
    fn write_block(&self, file: &RawFile, offset: u64, used: u64) -> io::Result<()> {
        let mut counts = Refcounts::new(self.width, 0, vec![0; self.cluster.in_memory()]);
        (0..used.min(self.per_block())).for_each(|number| counts.set(number, 1));
        file.write_bytes(counts.bytes(), offset)
    }

    /// Moves the table to a larger place, with at least `needed` entries. The place is past all clusters that have
    /// refcounts so far, and so are the blocks for it.
    fn grow(&mut self, file: &RawFile, needed: usize) -> io::Result<()> {
        let (bits, old) = (self.cluster.bits(), self.table_clusters.clone());
        let entries = (needed as u64).max(self.table.len() as u64 * 2);
        let clusters = (entries * 8).div_ceil(self.cluster.bytes());
        if clusters << bits > TABLE_MAX {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the refcount table of the qcow2 image cannot grow",
            ));
        }
        let (first, per_block) = (self.table.len() as u64 * self.per_block(), self.per_block());
        let mut blocks = 1;
        while blocks * per_block < blocks + clusters {
            blocks += 1;
        }
        for number in 0..blocks {
            let used = (blocks + clusters).saturating_sub(number * per_block);
            self.write_block(file, (first + number) << bits, used)?;
        }
        let mut table = self.table.clone();
        table.extend((first..first + blocks).map(|block| block << bits));
        table.resize(
            usize::try_from(clusters << bits).map_err(io::Error::other)? / 8,
            0,
        );
        let start = first + blocks;
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        file.write_bytes(&bytes, start << bits)?;
        file.flush()?;
        let length = u32::try_from(clusters).map_err(io::Error::other)?;
        let field = [&(start << bits).to_be_bytes()[..], &length.to_be_bytes()].concat();
        file.write_bytes(&field, Field::RefcountTable.offset())?;
        file.flush()?;
        (self.table, self.table_clusters) = (table, start..start + clusters);
        self.change(file, old, |_, count| Ok(count.saturating_sub(1)))
    }
}

/// Refcounts in memory.
#[derive(Debug)]
pub(super) struct Loaded {
    counts: Refcounts,
    /// The first cluster of the block.
    base: u64,
    /// The place of the bytes in the image.
    offset: u64,
}

impl Loaded {
    pub(super) fn get(&self, cluster: u64) -> u64 {
        self.counts.get(cluster - self.base)
    }

    pub(super) fn set(&mut self, cluster: u64, count: u64) {
        self.counts.set(cluster - self.base, count);
    }

    pub(super) fn store(&self, file: &RawFile) -> io::Result<()> {
        file.write_bytes(self.counts.bytes(), self.offset)
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::other(crate::qcow2::Corruption::Refcounts(what))
}
