//! Refcounts that are counted again, because the image was not left cleanly. One thread, while nothing uses the image.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::disk::Qcow2Disk;
use super::read_whole::read_whole;
use super::refcounts::RefcountBlocks;
use super::tables::{Tables, corrupt};
use crate::interrupt;
use crate::qcow2::{Corruption, Entry, Field, Header, L1Entry, SnapshotEntry};
use crate::storage::RawFile;

/// Maximum number of clusters of a file whose references are counted: one byte of memory each.
const CLUSTERS_MAX: u64 = 1 << 28;
/// Number of clusters whose count takes long enough to be announced.
const CLUSTERS_MANY: u64 = 1 << 22;
/// Maximum number of bytes of L2 tables that are read. An image can say that thousands of snapshots have large tables.
const TABLES_MAX: u64 = 16 << 30;

/// The number of references to each cluster.
#[derive(Debug)]
struct References {
    bits: u32,
    /// Up to 255, where `more` begins.
    few: Vec<u8>,
    more: BTreeMap<u64, u64>,
}

/// Numbers of refcounts that were wrong.
#[derive(Debug, Default)]
struct Mistakes {
    /// Clusters whose refcount was too high.
    leaked: u64,
    /// Clusters whose refcount was too low.
    low: u64,
}

impl Qcow2Disk {
    /// Prepares an image that was just locked for writing: clears the bits of features that writes do not maintain, and
    /// counts references if the last writer did not leave it cleanly.
    ///
    /// # Errors
    /// The image is corrupt, or cannot be read or written.
    pub(super) fn prepare_for_writes(&self, tables: &Tables) -> io::Result<()> {
        let header = &tables.header;
        self.check_writable()?;
        let kept = match header.external_data {
            true => header.autoclear & Header::RAW_DATA,
            false => 0,
        };
        if header.autoclear != kept {
            if header.autoclear & Header::BITMAPS != 0 {
                tracing::warn!(
                    disk = self.path().display().to_string(),
                    "the bitmaps in the image are not valid any more, because they do not record writes from now on"
                );
            }
            self.file
                .write_bytes(&kept.to_be_bytes(), Field::Autoclear.offset())?;
            self.file.flush()?;
        }
        // Version 2 has no dirty bit.
        if header.dirty || header.version == 2 {
            self.repair(tables)?;
            self.set_dirty(tables, false)?;
            self.file.flush()?;
        }
        Ok(())
    }

    fn repair(&self, tables: &Tables) -> io::Result<()> {
        let blocks = RefcountBlocks::read(&self.file, &tables.header)?;
        let references = References::count(&self.file, tables, &blocks)?;
        let mistakes = references.correct(&self.file, &blocks)?;
        self.file
            .set_end(references.end() << tables.header.cluster.bits(), true)?;
        if mistakes.leaked + mistakes.low > 0 {
            self.file.flush()?;
        }
        // Always, because an earlier repair may have ended between the refcounts and the flags.
        references.correct_flags(&self.file, tables)?;
        self.file.flush()?;
        if mistakes.leaked + mistakes.low > 0 {
            tracing::info!(
                disk = self.path().display().to_string(),
                leaked = mistakes.leaked,
                low = mistakes.low,
                "refcounts repaired: the last writer did not close the image"
            );
        }
        Ok(())
    }
}

impl References {
    /// Counts all references in an image.
    fn count(file: &RawFile, tables: &Tables, blocks: &RefcountBlocks) -> io::Result<Self> {
        let header = &tables.header;
        let bits = header.cluster.bits();
        let clusters = file.end()?.div_ceil(header.cluster.bytes());
        if clusters > CLUSTERS_MAX {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                match header.version {
                    2 => {
                        "the qcow2 image has version 2, which does not tell whether it was closed, and too many clusters for \
                         a check of its refcounts before the first write: give it version 3 (qemu-img amend -o compat=1.1)"
                    }
                    _ => {
                        "the qcow2 image was not closed, and has too many clusters for a repair here: use qemu-img check -r \
                         all"
                    }
                },
            ));
        }
        if clusters >= CLUSTERS_MANY {
            tracing::info!(
                disk = file.path().display().to_string(),
                clusters,
                "counting the references to all clusters: the image was not closed, or has version 2"
            );
        }
        let mut references = Self {
            bits,
            few: vec![0; usize::try_from(clusters).map_err(io::Error::other)?],
            more: BTreeMap::new(),
        };
        references.add(0..1)?;
        references.add(blocks.table_clusters.clone())?;
        blocks
            .blocks()
            .try_for_each(|block| references.add(block..block + 1))?;
        let mut left = TABLES_MAX;
        let active = (header.l1_table_offset, header.l1_size);
        references.add_layer(file, header, active, &mut left)?;
        references.add_snapshots(file, header, &mut left)?;
        Ok(references)
    }

    fn add(&mut self, clusters: Range<u64>) -> io::Result<()> {
        for cluster in clusters {
            let few = usize::try_from(cluster).ok().and_then(|at| self.few.get_mut(at));
            match few {
                None => return Err(past_the_end()),
                Some(few) if *few < u8::MAX => *few += 1,
                Some(_) => *self.more.entry(cluster).or_default() += 1,
            }
        }
        Ok(())
    }

    /// Returns the end of the clusters that are in use.
    fn end(&self) -> u64 {
        let last = self.few.iter().rposition(|count| *count > 0);
        last.map_or(0, |last| last as u64 + 1)
    }

    fn get(&self, cluster: u64) -> u64 {
        let few = usize::try_from(cluster).ok().and_then(|at| self.few.get(at));
        match few.copied() {
            Some(u8::MAX) => u64::from(u8::MAX) + self.more.get(&cluster).copied().unwrap_or(0),
            few => u64::from(few.unwrap_or(0)),
        }
    }

    fn add_bytes(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len).ok_or_else(past_the_end)?;
        self.add(offset >> self.bits..end.div_ceil(1 << self.bits))
    }

    /// Adds the tables and the data of the active layer, or of a snapshot.
    fn add_layer(
        &mut self,
        file: &RawFile,
        header: &Header,
        (offset, entries): (u64, u32),
        left: &mut u64,
    ) -> io::Result<()> {
        let len = u64::from(entries) * 8;
        self.add_bytes(offset, len)?;
        for table in l1_table(file, offset, len)? {
            go_on()?;
            let Some(table) = table.l2_table(header.cluster).map_err(corrupt)? else {
                continue;
            };
            self.add_bytes(table, header.cluster.bytes())?;
            *left = left.checked_sub(header.cluster.bytes()).ok_or_else(|| {
                io::Error::other(Corruption::Refcounts("its snapshots have too many tables"))
            })?;
            for entry in l2_table(file, header, table)? {
                if let Some(reference) = entry.reference(header.slices()).map_err(corrupt)? {
                    self.add(reference.clusters)?;
                }
            }
        }
        Ok(())
    }

    fn add_snapshots(&mut self, file: &RawFile, header: &Header, left: &mut u64) -> io::Result<()> {
        let mut at = header.snapshots_offset;
        for _ in 0..header.snapshots {
            let mut bytes = [0; SnapshotEntry::FIXED];
            read_whole(file, &mut bytes, at)?;
            let entry = SnapshotEntry::parse(&bytes);
            if entry.l1_size > Header::L1_ENTRIES_MAX {
                return Err(io::Error::other(Corruption::Refcounts(
                    "a snapshot has a wrong L1 table",
                )));
            }
            self.add_layer(file, header, (entry.l1_offset, entry.l1_size), left)?;
            at = at.checked_add(entry.len).ok_or_else(past_the_end)?;
        }
        if header.snapshots > 0 {
            self.add_bytes(header.snapshots_offset, at - header.snapshots_offset)?;
        }
        Ok(())
    }

    /// Writes the refcounts that are wrong.
    fn correct(&self, file: &RawFile, blocks: &RefcountBlocks) -> io::Result<Mistakes> {
        let mut mistakes = Mistakes::default();
        let (end, mut first) = (blocks.end().max(self.few.len() as u64), 0);
        while first < end {
            go_on()?;
            let next = blocks.chunk_end(first);
            if !blocks.covers(first) {
                // Everything that is referred to is in the file.
                let end = next.min(self.few.len() as u64);
                if (first..end).any(|cluster| self.get(cluster) > 0) {
                    return Err(io::Error::other(Corruption::Refcounts(
                        "a refcount block is missing",
                    )));
                }
                first = next;
                continue;
            }
            let (mut loaded, mut is_wrong) = (blocks.load(file, &(first..next))?, false);
            for cluster in first..next {
                let (now, right) = (loaded.get(cluster), self.get(cluster));
                if now == right {
                    continue;
                }
                if right > blocks.max() {
                    return Err(io::Error::other(Corruption::Refcounts(
                        "a cluster has more users than its refcount can count",
                    )));
                }
                match now > right {
                    true => mistakes.leaked += 1,
                    false => mistakes.low += 1,
                }
                loaded.set(cluster, right);
                is_wrong = true;
            }
            if is_wrong {
                loaded.store(file)?;
            }
            first = next;
        }
        Ok(mistakes)
    }

    /// Corrects the flags in the active layer which say that nobody else uses a cluster.
    fn correct_flags(&self, file: &RawFile, tables: &Tables) -> io::Result<()> {
        let header = &tables.header;
        let layout = header.slices();
        for (number, l1) in (0..).zip(tables.l1_entries()) {
            go_on()?;
            let Some(table) = l1.l2_table(header.cluster).map_err(corrupt)? else {
                continue;
            };
            let right = l1.with_copied(self.get(table >> self.bits) == 1);
            if right != l1 {
                let place = header.l1_table_offset + number * 8;
                file.write_bytes(&right.0.to_be_bytes(), place)?;
                tables.set_l1_entry(number * layout.bytes_per_table(), right);
            }
            for (number, entry) in (0..).zip(l2_table(file, header, table)?) {
                let Some(reference) = entry.reference(layout).map_err(corrupt)? else {
                    continue;
                };
                let right = entry.with_copied(self.get(reference.clusters.start) == 1);
                if right != entry {
                    let bytes: Vec<u8> = right.to_bytes(layout).collect();
                    file.write_bytes(&bytes, table + number * layout.entry_bytes())?;
                }
            }
        }
        Ok(())
    }
}

fn l1_table(file: &RawFile, offset: u64, len: u64) -> io::Result<Vec<L1Entry>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    read_whole(file, &mut bytes, offset)?;
    let words = bytes.as_chunks::<8>().0.iter();
    Ok(words.map(|word| L1Entry(u64::from_be_bytes(*word))).collect())
}

fn l2_table(file: &RawFile, header: &Header, offset: u64) -> io::Result<Vec<Entry>> {
    let mut bytes = vec![0; header.cluster.in_memory()];
    read_whole(file, &mut bytes, offset)?;
    let words = bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|word| u64::from_be_bytes(*word));
    Ok(match header.extended_l2 {
        false => words.map(|word| Entry { word, bitmap: 0 }).collect(),
        true => {
            let words: Vec<u64> = words.collect();
            let pairs = words.as_chunks::<2>().0.iter();
            pairs.map(|&[word, bitmap]| Entry { word, bitmap }).collect()
        }
    })
}

/// Ends a repair after a signal. It is safe to end it anywhere: the next one begins again.
fn go_on() -> io::Result<()> {
    match interrupt::is_requested() {
        true => Err(io::Error::other(format!(
            "its refcounts are not repaired: {}",
            interrupt::TOLD
        ))),
        false => Ok(()),
    }
}

fn past_the_end() -> io::Error {
    io::Error::other(Corruption::Refcounts(
        "a reference leads past the end of the file",
    ))
}
