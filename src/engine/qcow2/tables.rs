//! The tables of one image that are in memory. Any thread.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::cache::{Cache, HeldSlice, Look, SliceAlone};
use super::cache_options::{CacheOptions, CacheSizes};
use super::error::OpenError;
use super::read_whole::read_whole;
use crate::qcow2::{CompressedCluster, Extent, HEADER_MAX, Header, L1Entry, Place, SliceLayout, decompress};
use crate::storage::RawFile;

/// Memory for decompressed clusters in bytes. One is kept in any case.
const DECOMPRESSED: usize = 1 << 20;

/// The header, the L1 table and the caches of an image.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) header: Header,
    pub(super) layout: SliceLayout,
    sizes: CacheSizes,
    l1: Box<[AtomicU64]>,
    slices: Cache,
    /// The last clusters that were decompressed, the newest last.
    clusters: Mutex<Vec<(u64, Arc<[u8]>)>>,
}

impl Tables {
    /// Reads the header and the L1 table of an image.
    ///
    /// # Errors
    /// The header or a size of the cache is refused, or the file cannot be read.
    pub(super) fn read(file: &RawFile, read_only: bool, cache: &CacheOptions) -> Result<Self, OpenError> {
        let path = || file.path().to_owned();
        let failed = |source| OpenError::Read { path: path(), source };
        let mut bytes = vec![0; HEADER_MAX];
        let len = file.read_bytes(&mut bytes, 0).map_err(failed)?;
        let header = Header::parse(&bytes[..len], read_only)
            .map_err(|source| OpenError::Header { path: path(), source })?;
        drop(bytes);
        let sizes = cache.sizes(&header)?;
        Self::with_header(file, header, sizes).map_err(failed)
    }

    /// Makes the tables of the same image with another size of the disk, for which its L1 table has room.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn resized(&self, file: &RawFile, size: u64) -> io::Result<Self> {
        let entries = size.div_ceil(self.layout.bytes_per_table());
        let header = Header {
            size,
            l1_entries: u32::try_from(entries).map_err(io::Error::other)?,
            ..self.header.clone()
        };
        Self::with_header(file, header, self.sizes)
    }

    /// Makes the tables of the same image with another header, which has the L1 table in another place.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn moved(&self, file: &RawFile, header: Header) -> io::Result<Self> {
        Self::with_header(file, header, self.sizes)
    }

    /// Makes tables with an empty cache.
    fn with_header(file: &RawFile, header: Header, sizes: CacheSizes) -> io::Result<Self> {
        let mut table = vec![0; header.l1_entries as usize * 8];
        read_whole(file, &mut table, header.l1_table_offset)?;
        let (entries, _) = table.as_chunks::<8>();
        let entries = entries.iter().map(|entry| u64::from_be_bytes(*entry));
        Ok(Self {
            l1: entries.map(AtomicU64::new).collect(),
            slices: Cache::new(sizes.layout, header.size, sizes.budget),
            clusters: Mutex::default(),
            layout: sizes.layout,
            sizes,
            header,
        })
    }

    /// Finds the place of up to `len` bytes from a guest offset on, which is on the disk. Returns the slice that says so,
    /// if there is one.
    ///
    /// # Errors
    /// The tables are corrupt or cannot be read.
    pub(super) fn find(
        &self,
        file: &RawFile,
        guest: u64,
        len: u64,
    ) -> io::Result<(Extent, Option<HeldSlice<'_>>)> {
        let Some(offset) = self.slice_offset(guest)? else {
            return Ok((self.unallocated(guest, len), None));
        };
        let slice = self.slice(file, guest, offset)?;
        Ok((slice.find(guest, len).map_err(corrupt)?, Some(slice)))
    }

    /// Like [`find`](Self::find), but returns `None` if the tables are not in memory, are being changed, or are corrupt.
    /// The place is right if the slice is after the data was read.
    pub(super) fn find_cached(&self, guest: u64, len: u64) -> Option<(Extent, Option<Look<'_>>)> {
        let Some(offset) = self.slice_offset(guest).ok()? else {
            return Some((self.unallocated(guest, len), None));
        };
        let slice = self.slices.look(guest, offset)?;
        let extent = slice.find(guest, len).ok()?;
        // Wrong places are not even read.
        slice.is_right().then_some((extent, Some(slice)))
    }

    /// Returns the L1 entry for a guest offset.
    pub(super) fn l1_entry(&self, guest: u64) -> L1Entry {
        // Acquire: pairs with the store in `set_l1_entry`.
        self.l1
            .get(self.l1_index(guest))
            .map_or(L1Entry(0), |entry| L1Entry(entry.load(Ordering::Acquire)))
    }

    /// Replaces the L1 entry for a guest offset. The image has the new one already.
    pub(super) fn set_l1_entry(&self, guest: u64, entry: L1Entry) {
        if let Some(place) = self.l1.get(self.l1_index(guest)) {
            // Release: the L2 table was written before.
            place.store(entry.0, Ordering::Release);
        }
    }

    /// Returns the index in the L1 table for a guest offset.
    pub(super) fn l1_index(&self, guest: u64) -> usize {
        usize::try_from(self.layout.table_number(guest)).expect("in the L1 table")
    }

    /// Returns all L1 entries that the disk needs.
    pub(super) fn l1_entries(&self) -> impl Iterator<Item = L1Entry> + '_ {
        self.l1.iter().map(|entry| L1Entry(entry.load(Ordering::Acquire)))
    }

    /// Returns the offset of the slice for a guest offset, or `None` if there is no L2 table.
    pub(super) fn slice_offset(&self, guest: u64) -> io::Result<Option<u64>> {
        let table = self
            .l1_entry(guest)
            .l2_table(self.header.cluster)
            .map_err(corrupt)?;
        Ok(table.map(|table| table + self.layout.slice_in_table(guest)))
    }

    /// Returns what a missing L2 table says.
    fn unallocated(&self, guest: u64, len: u64) -> Extent {
        let table = self.layout.bytes_per_table();
        Extent {
            len: len.min(table - guest % table),
            place: Place::Backing,
        }
    }

    /// Returns the slice for a guest offset, which begins at `offset` in the image, unless that would have to wait.
    pub(super) fn try_slice(&self, guest: u64, offset: u64) -> Option<HeldSlice<'_>> {
        self.slices.try_hold(guest, offset)
    }

    /// Returns the slice for a guest offset, which begins at `offset` in the image. Reads it if it is not in memory.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn slice(&self, file: &RawFile, guest: u64, offset: u64) -> io::Result<HeldSlice<'_>> {
        self.slices.hold(file, guest, offset)
    }

    /// Waits until nobody uses the slice for a guest offset, which begins at `offset` in the image, and returns it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn slice_alone(&self, file: &RawFile, guest: u64, offset: u64) -> io::Result<SliceAlone<'_>> {
        self.slices.alone(file, guest, offset)
    }

    /// Returns the interval after which what was not used is given up.
    pub(super) fn clean_interval(&self) -> Option<Duration> {
        self.sizes.clean_interval
    }

    /// Gives up what was not used since the last call.
    pub(super) fn clean(&self) {
        self.slices.clean();
    }

    /// Returns a decompressed cluster.
    ///
    /// # Errors
    /// Its data is damaged or cannot be read.
    pub(super) fn decompressed(
        &self,
        file: &RawFile,
        compressed: CompressedCluster,
    ) -> io::Result<Arc<[u8]>> {
        let clusters = || self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |(offset, _): &&(u64, Arc<[u8]>)| *offset == compressed.offset;
        if let Some((_, cluster)) = clusters().iter().find(known) {
            return Ok(Arc::clone(cluster));
        }
        let mut data = vec![0; compressed.len];
        // The last sector may be cut off by the end of the file.
        let len = file.read_bytes(&mut data, compressed.offset)?;
        let mut cluster = vec![0; self.header.cluster.in_memory()];
        decompress(self.header.compression, &data[..len], &mut cluster).map_err(corrupt)?;
        let cluster: Arc<[u8]> = cluster.into();
        let mut clusters = clusters();
        while clusters.len() >= (DECOMPRESSED / cluster.len()).clamp(1, 16) {
            clusters.remove(0);
        }
        clusters.push((compressed.offset, Arc::clone(&cluster)));
        Ok(cluster)
    }
}

pub(super) fn corrupt(error: crate::qcow2::Corruption) -> io::Error {
    io::Error::other(error)
}
