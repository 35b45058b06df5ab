//! Slices of L2 tables in memory. Any thread.
//!
//! The place of a slice follows from the guest offset, so a disk whose slices all fit has no conflicts. All places share
//! one piece of memory, which is as large as the budget allows, and which the kernel provides when it is used.
//!
//! There are three ways to use a slice. Reads look at it and take no lock: the place has a version, which changes when
//! entries lose their clusters or the slice is replaced, and whoever has read data checks it afterwards. Writes of data
//! hold the slice, because data that was written to the wrong place would be a disaster. Whoever takes clusters away
//! uses the slice alone.

use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use rustix::mm::{Advice, madvise};

use super::read_whole::read_whole;
use crate::qcow2::{Slice, SliceLayout};
use crate::storage::RawFile;

/// Unit in which memory is given back to the kernel.
const PAGE: usize = 4096;
/// Smallest number of slices in memory, as in QEMU.
const PLACES_MIN: u64 = 2;

/// The slices of an image.
#[derive(Debug)]
pub(super) struct Cache {
    layout: SliceLayout,
    /// The entries of all places, one after the other, from word `first` on.
    memory: Box<[AtomicU64]>,
    /// The first word that begins a page.
    first: usize,
    places: Box<[Place]>,
}

/// The place of a slice.
#[derive(Debug, Default)]
struct Place {
    /// Odd while the slice is being replaced or its entries may lose clusters.
    version: AtomicU64,
    /// The offset of the slice in the image, or 0. Written under the lock for writing.
    offset: AtomicU64,
    /// The slice was used since the last cleaning.
    used: AtomicBool,
    /// Locked for reading while data is written to clusters, and for writing while the version is odd.
    lock: RwLock<()>,
}

/// A slice in memory that may change meanwhile.
#[derive(Debug)]
pub(super) struct Look<'a> {
    slice: Slice<'a>,
    place: &'a Place,
    version: u64,
}

/// A slice in memory. While this exists, the slice stays there, and no entry loses the cluster that it has. So whoever
/// writes data to a cluster holds this meanwhile, and waits for nothing but that I/O. So do workers that read.
#[derive(Debug)]
pub(super) struct HeldSlice<'a> {
    slice: Slice<'a>,
    _lock: RwLockReadGuard<'a, ()>,
}

/// A slice in memory that nobody else uses, so entries may lose their clusters.
#[derive(Debug)]
pub(super) struct SliceAlone<'a> {
    slice: Slice<'a>,
    // Dropped before the lock.
    _change: Change<'a>,
    _lock: RwLockWriteGuard<'a, ()>,
}

/// A change of a place. Its version is odd as long as this exists.
#[derive(Debug)]
struct Change<'a>(&'a Place);

impl<'a> Change<'a> {
    /// The caller has locked the place for writing.
    fn begin(place: &'a Place) -> Self {
        let version = place.version.load(Ordering::Relaxed);
        place.version.store(version + 1, Ordering::Relaxed);
        // Release: whoever sees one of our changes, or the next owner's data in a cluster that was taken away, also sees
        // the version. Pairs with the fence in `Look::is_right`.
        fence(Ordering::Release);
        Self(place)
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let version = self.0.version.load(Ordering::Relaxed);
        // Release: pairs with the load in `Cache::look`, which then sees all changes.
        self.0.version.store(version + 1, Ordering::Release);
    }
}

impl<'a> Deref for HeldSlice<'a> {
    type Target = Slice<'a>;

    fn deref(&self) -> &Slice<'a> {
        &self.slice
    }
}

impl<'a> Deref for SliceAlone<'a> {
    type Target = Slice<'a>;

    fn deref(&self) -> &Slice<'a> {
        &self.slice
    }
}

impl<'a> Deref for Look<'a> {
    type Target = Slice<'a>;

    fn deref(&self) -> &Slice<'a> {
        &self.slice
    }
}

impl Look<'_> {
    /// Returns whether all that was seen so far is right: neither was the slice replaced, nor did an entry lose its
    /// cluster.
    pub(super) fn is_right(&self) -> bool {
        // Acquire: pairs with the fence in `Change::begin`. The kernel's reads of data are ordered by it as well.
        fence(Ordering::Acquire);
        self.place.version.load(Ordering::Relaxed) == self.version
    }
}

impl Cache {
    /// Makes an empty cache of at most `budget` bytes of L2 tables for a disk of `size` bytes.
    pub(super) fn new(layout: SliceLayout, size: u64, budget: u64) -> Self {
        let slices = size.div_ceil(layout.bytes_per_slice());
        let places = slices.min((budget / layout.slice_bytes() as u64).max(PLACES_MIN));
        let places = usize::try_from(places).expect("there is memory for the budget");
        let words = places * layout.slice_bytes() / 8 + PAGE / 8;
        // Memory that is zeroed like this costs nothing until it is used.
        let zeroed = Box::into_raw(vec![0_u64; words].into_boxed_slice());
        // SAFETY: a box of numbers, which have the size and the alignment of atomic numbers here, and which nobody else
        // knows.
        let memory = unsafe { Box::from_raw(zeroed as *mut [AtomicU64]) };
        Self {
            first: memory.as_ptr().align_offset(PAGE),
            memory,
            places: (0..places).map(|_| Place::default()).collect(),
            layout,
        }
    }

    fn number(&self, guest: u64) -> usize {
        let (number, places) = (self.layout.slice_number(guest), self.places.len() as u64);
        // Divisions are slow, and most caches have room for all slices.
        let number = if number < places { number } else { number % places };
        usize::try_from(number).expect("an index")
    }

    fn slice_at(&self, number: usize) -> Slice<'_> {
        let words = self.layout.slice_bytes() / 8;
        let start = self.first + number * words;
        Slice::new(self.layout, &self.memory[start..start + words])
    }

    /// Returns the slice for a guest offset, which begins at `offset` in the image, unless that would have to wait.
    pub(super) fn look(&self, guest: u64, offset: u64) -> Option<Look<'_>> {
        let number = self.number(guest);
        let place = &self.places[number];
        // Acquire: pairs with the store in the drop of `Change`.
        let version = place.version.load(Ordering::Acquire);
        if version % 2 == 1 || place.offset.load(Ordering::Relaxed) != offset {
            return None;
        }
        place.mark_as_used();
        Some(Look {
            slice: self.slice_at(number),
            place,
            version,
        })
    }

    /// Returns the slice for a guest offset, which begins at `offset` in the image, unless that would have to wait.
    pub(super) fn try_hold(&self, guest: u64, offset: u64) -> Option<HeldSlice<'_>> {
        let number = self.number(guest);
        let place = &self.places[number];
        let lock = match place.lock.try_read() {
            Ok(lock) => lock,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        self.held(number, offset, lock)
    }

    fn held<'a>(
        &'a self,
        number: usize,
        offset: u64,
        lock: RwLockReadGuard<'a, ()>,
    ) -> Option<HeldSlice<'a>> {
        let place = &self.places[number];
        // Relaxed: the lock orders this.
        if place.offset.load(Ordering::Relaxed) != offset {
            return None;
        }
        place.mark_as_used();
        Some(HeldSlice {
            slice: self.slice_at(number),
            _lock: lock,
        })
    }

    /// Returns the slice for a guest offset, which begins at `offset` in the image. Reads it if it is not in memory.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn hold(&self, file: &RawFile, guest: u64, offset: u64) -> io::Result<HeldSlice<'_>> {
        let number = self.number(guest);
        loop {
            let lock = &self.places[number].lock;
            let lock = lock.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(held) = self.held(number, offset, lock) {
                return Ok(held);
            }
            // Another thread may replace it before it is locked again.
            drop(self.alone(file, guest, offset)?);
        }
    }

    /// Waits until nobody writes data where the slice for a guest offset says, and returns it. It begins at `offset` in
    /// the image.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn alone(&self, file: &RawFile, guest: u64, offset: u64) -> io::Result<SliceAlone<'_>> {
        let number = self.number(guest);
        let place = &self.places[number];
        let lock = place.lock.write().unwrap_or_else(PoisonError::into_inner);
        let (change, slice) = (Change::begin(place), self.slice_at(number));
        place.mark_as_used();
        if place.offset.load(Ordering::Relaxed) != offset {
            // Under the lock, so that no entry is changed in the image meanwhile.
            place.offset.store(0, Ordering::Relaxed);
            let mut bytes = vec![0; self.layout.slice_bytes()];
            read_whole(file, &mut bytes, offset)?;
            slice.load(&bytes);
            place.offset.store(offset, Ordering::Relaxed);
        }
        Ok(SliceAlone {
            slice,
            _change: change,
            _lock: lock,
        })
    }

    /// Gives up the slices that were not used since the last call, and their memory.
    pub(super) fn clean(&self) {
        let together = (PAGE / self.layout.slice_bytes()).max(1);
        for (number, group) in (0..).zip(self.places.chunks(together)) {
            let are_used = group.iter().fold(false, |used, place| {
                used | place.used.swap(false, Ordering::Relaxed)
            });
            let are_empty = group
                .iter()
                .all(|place| place.offset.load(Ordering::Relaxed) == 0);
            if are_used || are_empty {
                continue;
            }
            let locks: Option<Vec<_>> = group.iter().map(|place| place.lock.try_write().ok()).collect();
            if locks.is_none() {
                continue;
            }
            let _changes: Vec<_> = group.iter().map(Change::begin).collect();
            for place in group {
                place.offset.store(0, Ordering::Relaxed);
            }
            self.give_back(number, together);
        }
    }

    /// Gives the memory of a group of places back to the kernel.
    fn give_back(&self, number: usize, together: usize) {
        let len = (self.layout.slice_bytes() * together).max(PAGE);
        let start = self.first + number * len / 8;
        let Some(words) = self.memory.get(start..start + len / 8) else {
            return;
        };
        // SAFETY: these are whole pages of our own memory, whose words become zero, which is a valid number. Nobody
        // writes to them, because the places are locked.
        let _ = unsafe { madvise(words.as_ptr().cast_mut().cast(), len, Advice::LinuxDontNeed) };
    }

    /// Returns the number of slices in memory.
    #[cfg(test)]
    fn len(&self) -> usize {
        let places = self.places.iter();
        places
            .filter(|place| place.offset.load(Ordering::Relaxed) != 0)
            .count()
    }
}

impl Place {
    fn mark_as_used(&self) {
        // Relaxed: a hint. It is only written once per cleaning, so that CPUs can share it.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
