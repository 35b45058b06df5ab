//! The tables of one image that are in memory. Any thread.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::qcow2::{CompressedCluster, Extent, HEADER_MAX, Header, L1Entry, Place, Slice, decompress};
use crate::storage::RawFile;

use super::error::OpenError;

/// Largest cache of L2 slices in bytes, as in QEMU.
const CACHE_MAX: u64 = 32 << 20;
/// Memory for decompressed clusters in bytes. One is kept in any case.
const DECOMPRESSED: usize = 1 << 20;

/// The header, the L1 table and the caches of an image.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) header: Header,
    l1: Box<[L1Entry]>,
    /// Slices of L2 tables. The place of a slice follows from the guest offset, so a disk whose slices all fit has no
    /// conflicts.
    slices: Box<[RwLock<Option<Cached>>]>,
    /// The last clusters that were decompressed, the newest last.
    clusters: Mutex<Vec<(u64, Arc<[u8]>)>>,
}

#[derive(Clone, Debug)]
struct Cached {
    /// The offset of the slice in the image.
    offset: u64,
    slice: Arc<Slice>,
}

impl Tables {
    /// Reads the header and the L1 table of an image that is only read.
    ///
    /// # Errors
    /// The header is refused, or the file cannot be read.
    pub(super) fn read(file: &RawFile) -> Result<Self, OpenError> {
        let path = || file.path().to_owned();
        let failed = |source| OpenError::Read { path: path(), source };
        let mut bytes = vec![0; HEADER_MAX];
        let len = file.read_bytes(&mut bytes, 0).map_err(failed)?;
        let header = Header::parse(&bytes[..len], true)
            .map_err(|source| OpenError::Header { path: path(), source })?;
        let mut table = vec![0; header.l1_entries as usize * 8];
        read_whole(file, &mut table, header.l1_table_offset).map_err(failed)?;
        let (entries, _) = table.as_chunks::<8>();
        let slices = header.size.div_ceil(header.slices().bytes_per_slice());
        let places = slices.min(CACHE_MAX / header.slices().slice_bytes() as u64);
        Ok(Self {
            l1: entries
                .iter()
                .map(|entry| L1Entry(u64::from_be_bytes(*entry)))
                .collect(),
            slices: (0..places).map(|_| RwLock::default()).collect(),
            clusters: Mutex::default(),
            header,
        })
    }

    /// Finds the place of up to `len` bytes from a guest offset on, which is on the disk.
    ///
    /// # Errors
    /// The tables are corrupt or cannot be read.
    pub(super) fn find(&self, file: &RawFile, guest: u64, len: u64) -> io::Result<Extent> {
        let Some(offset) = self.slice_offset(guest)? else {
            return Ok(self.unallocated(guest, len));
        };
        let slice = match self.cached(guest, offset) {
            Some(slice) => slice,
            None => self.load(file, guest, offset)?,
        };
        slice.find(guest, len).map_err(corrupt)
    }

    /// Like [`find`](Self::find), but returns `None` if the tables are not in memory, or are corrupt.
    pub(super) fn find_cached(&self, guest: u64, len: u64) -> Option<Extent> {
        match self.slice_offset(guest).ok()? {
            None => Some(self.unallocated(guest, len)),
            Some(offset) => self.cached(guest, offset)?.find(guest, len).ok(),
        }
    }

    /// Returns the offset of the slice for a guest offset, or `None` if there is no L2 table.
    fn slice_offset(&self, guest: u64) -> io::Result<Option<u64>> {
        let layout = self.header.slices();
        let index = usize::try_from(guest / layout.bytes_per_table()).expect("in the L1 table");
        let entry = self.l1.get(index).copied().unwrap_or(L1Entry(0));
        let table = entry.l2_table(self.header.cluster).map_err(corrupt)?;
        Ok(table.map(|table| table + layout.slice_in_table(guest)))
    }

    /// Returns what a missing L2 table says.
    fn unallocated(&self, guest: u64, len: u64) -> Extent {
        let table = self.header.slices().bytes_per_table();
        Extent {
            len: len.min(table - guest % table),
            place: Place::Backing,
        }
    }

    fn place(&self, guest: u64) -> &RwLock<Option<Cached>> {
        let number = guest / self.header.slices().bytes_per_slice() % self.slices.len() as u64;
        &self.slices[usize::try_from(number).expect("an index")]
    }

    fn cached(&self, guest: u64, offset: u64) -> Option<Arc<Slice>> {
        let place = self.place(guest).read().unwrap_or_else(PoisonError::into_inner);
        let cached = place.as_ref().filter(|cached| cached.offset == offset);
        cached.map(|cached| Arc::clone(&cached.slice))
    }

    fn load(&self, file: &RawFile, guest: u64, offset: u64) -> io::Result<Arc<Slice>> {
        let layout = self.header.slices();
        let mut bytes = vec![0; layout.slice_bytes()];
        read_whole(file, &mut bytes, offset)?;
        let slice = Arc::new(Slice::parse(layout, &bytes));
        *self.place(guest).write().unwrap_or_else(PoisonError::into_inner) = Some(Cached {
            offset,
            slice: Arc::clone(&slice),
        });
        Ok(slice)
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

/// Reads a table, all of which must be in the file.
fn read_whole(file: &RawFile, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    match file.read_bytes(bytes, offset)? == bytes.len() {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "a table of the qcow2 image is past the end of the file",
        )),
    }
}

fn corrupt(error: crate::qcow2::Corruption) -> io::Error {
    io::Error::other(error)
}
