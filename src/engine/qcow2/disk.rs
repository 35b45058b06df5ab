//! A disk in a qcow2 image, and the layers below it. Any thread.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use super::cache_options::CacheOptions;
use super::error::{CorruptBelow, OpenError};
use super::state::State;
use super::tables::Tables;
use crate::io::IoVecs;
use crate::storage::{ImageLock, Limits, LockError, LockMode, RawFile};

/// The place of the data that an image does not have.
#[derive(Clone, Debug)]
pub(super) enum Backing {
    /// It reads as zeroes.
    None,
    Raw(Arc<RawFile>),
    Qcow2(Arc<Qcow2Disk>),
}

/// A disk in a qcow2 image.
#[derive(Debug)]
pub struct Qcow2Disk {
    /// The image.
    pub(super) file: Arc<RawFile>,
    /// The external data file.
    pub(super) data_file: Option<Arc<RawFile>>,
    pub(super) backing: Backing,
    limits: Limits,
    /// Size in bytes.
    size: AtomicU64,
    /// Replaced as a whole when another process has used the image. Requests lock them for reading.
    tables: RwLock<Tables>,
    pub(super) cache: CacheOptions,
    pub(super) state: State,
}

impl Qcow2Disk {
    pub(super) fn new(
        file: Arc<RawFile>,
        data_file: Option<Arc<RawFile>>,
        backing: Backing,
        tables: Tables,
        cache: CacheOptions,
        read_only: bool,
    ) -> Self {
        let data = data_file.as_ref().unwrap_or(&file).limits();
        let cluster = u32::try_from(tables.header.cluster.bytes()).expect("at most 2 MiB");
        let limits = Limits {
            logical_block_size: match read_only {
                true => 512,
                // Requests of parts of blocks would change the same block at the same time.
                false => data.request_alignment.max(512),
            },
            physical_block_size: data.physical_block_size,
            optimal_io_size: 0,
            request_alignment: 1,
            memory_alignment: 1,
            discard_granularity: if read_only { 0 } else { cluster },
            write_zeroes: !read_only,
            read_only,
        };
        Self {
            file,
            data_file,
            backing,
            limits,
            size: AtomicU64::new(tables.header.size),
            tables: RwLock::new(tables),
            cache,
            state: State::default(),
        }
    }

    /// Returns the path of the image, for messages.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Returns the disk's properties.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        // Relaxed: no other data depends on this number.
        self.size.load(Ordering::Relaxed)
    }

    /// Returns the bytes that the image and its data file take, without those of backing files.
    pub(in crate::engine) fn allocated(&self) -> Option<u64> {
        self.own_files().map(|file| file.allocated()).sum()
    }

    /// Returns the file that has the data clusters.
    pub(in crate::engine) fn data(&self) -> &Arc<RawFile> {
        self.data_file.as_ref().unwrap_or(&self.file)
    }

    /// Returns the number of images below each other, with this one.
    pub(super) fn depth(&self) -> usize {
        1 + self.backing_depth()
    }

    /// Returns the number of backing files below each other.
    pub(in crate::engine) fn backing_depth(&self) -> usize {
        self.backing.depth()
    }

    /// Returns all files of this image and of those below.
    pub(in crate::engine) fn files(&self) -> Vec<&Arc<RawFile>> {
        let mut files = vec![&self.file];
        files.extend(&self.data_file);
        files.extend(self.backing.files());
        files
    }

    /// Returns the files that are written to.
    pub(in crate::engine) fn own_files(&self) -> impl Iterator<Item = &Arc<RawFile>> {
        [&self.file].into_iter().chain(&self.data_file)
    }

    /// Returns the files that were opened because the image names them: its data file if `data_file` says so, and its
    /// backing files if `backing` does.
    pub fn named_files(&self, data_file: bool, backing: bool) -> Vec<&Arc<RawFile>> {
        let mut files: Vec<_> = self.data_file.iter().filter(|_| data_file).collect();
        if backing {
            files.extend(self.backing.files());
        }
        files
    }

    /// Returns whether both have the same image.
    pub(in crate::engine) fn is_same_image(&self, other: &Self) -> bool {
        self.file.is_same_image(&other.file)
    }

    /// Locks the tables for reading. A thread that has locked them does not do so again.
    pub(super) fn tables(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no request uses the tables, and locks them.
    pub(super) fn tables_alone(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_size(&self, bytes: u64) {
        self.size.store(bytes, Ordering::Relaxed);
    }

    /// Locks the tables for reading, unless that would have to wait.
    pub(super) fn try_tables(&self) -> Option<RwLockReadGuard<'_, Tables>> {
        self.tables.try_read().ok()
    }

    /// Returns the interval at which unused tables are given up.
    pub(super) fn clean_interval(&self) -> Option<Duration> {
        self.tables().clean_interval()
    }

    /// Gives up tables that were not used since the last call, here and in the backing files.
    pub(super) fn clean(&self) {
        self.tables().clean();
        if let Backing::Qcow2(below) = &self.backing {
            below.clean();
        }
    }

    /// Reads the header and the tables again, here and in the backing files, because another process has used them.
    ///
    /// # Errors
    /// A file cannot be read, its header is refused now, or it names other files.
    pub(in crate::engine) fn look_anew(&self) -> io::Result<()> {
        self.backing.look_anew()?;
        self.look_at_own_files()
    }

    /// As [`look_anew`](Self::look_anew), but leaves the backing files alone.
    pub(in crate::engine) fn look_at_own_files(&self) -> io::Result<()> {
        let data_file = self.data_file.as_ref();
        data_file.map_or(Ok(false), |file| file.look_anew())?;
        self.file.look_anew()?;
        let tables = self.read_again()?;
        match self.state.may_write() {
            true => {
                self.prepare_for_writes(&tables)?;
                self.state.set_in_use(true);
                Ok(())
            }
            false => Ok(()),
        }
    }

    /// Reads the header and the tables again, because a process that has passed its locks has changed them. That process
    /// has settled the image ([`settle`](Self::settle)), and goes on with it if this fails: nothing is written here.
    ///
    /// # Errors
    /// As for [`look_anew`](Self::look_anew), or the image was not settled.
    pub(super) fn inherit(&self) -> io::Result<()> {
        let tables = self.read_again()?;
        if self.state.may_write() {
            if tables.header.dirty {
                return Err(io::Error::other("the old process has left the image dirty"));
            }
            self.state.set_in_use(true);
        }
        Ok(())
    }

    /// Reads the header and the tables again. Returns them locked.
    fn read_again(&self) -> io::Result<RwLockWriteGuard<'_, Tables>> {
        let mut before = self.tables_alone();
        let new =
            Tables::read(&self.file, self.limits.read_only, &self.cache).map_err(|error| match error {
                OpenError::Read { source, .. } => source,
                other => io::Error::new(io::ErrorKind::InvalidData, other),
            })?;
        let named = |tables: &Tables| {
            let header = &tables.header;
            let data_file = header.external_data.then(|| header.extensions.data_file.clone());
            (header.backing_file.clone(), data_file)
        };
        if named(&before) != named(&new) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the qcow2 image has another backing file or data file now",
            ));
        }
        self.size.store(new.header.size, Ordering::Relaxed);
        self.state.look_anew(&new.header);
        *before = new;
        Ok(before)
    }

    /// Locks all files of the image and of its backing files, as QEMU does.
    ///
    /// # Errors
    /// See [`LockError`]. No lock is kept then.
    pub(in crate::engine) fn lock(&self, mode: LockMode) -> Result<Option<ImageLock>, LockError> {
        self.lock_files(mode, ImageLock::acquire_soon)
    }

    /// Uses the locks that another process has passed, in the order of [`ImageLock::files`].
    ///
    /// # Errors
    /// See [`LockError`]. No lock is kept then.
    pub(in crate::engine) fn inherit_locks(
        &self,
        mode: LockMode,
        locks: Vec<Option<OwnedFd>>,
    ) -> Result<Option<ImageLock>, LockError> {
        let mut locks = locks.into_iter();
        self.lock_files(mode, |file, mode| {
            ImageLock::inherit(file, mode, locks.next().flatten())
        })
    }

    fn lock_files(
        &self,
        mode: LockMode,
        lock: impl FnMut(&RawFile, LockMode) -> Result<ImageLock, LockError>,
    ) -> Result<Option<ImageLock>, LockError> {
        let below = match mode {
            LockMode::ReadForceShare => LockMode::ReadForceShare,
            _ => LockMode::ReadFormat,
        };
        let own = match mode {
            LockMode::Write => LockMode::WriteFormat,
            _ => below,
        };
        let files = self.own_files().map(|file| (file, own));
        let below = self.backing.files().into_iter().map(|file| (file, below));
        let lock = lock_all(files.chain(below), lock).map_err(|error| error.of_image(self.path()))?;
        self.state.set_may_write(mode == LockMode::Write);
        Ok(lock)
    }

    /// Locks the image alone for writing, because another disk of this process has locked its backing file.
    ///
    /// # Errors
    /// See [`LockError`]. No lock is kept then.
    pub(in crate::engine) fn lock_own_files(&self) -> Result<Option<ImageLock>, LockError> {
        let files = self.own_files().map(|file| (file, LockMode::WriteFormat));
        let lock = lock_all(files, ImageLock::acquire_soon);
        let lock = lock.map_err(|error| error.of_image(self.path()))?;
        self.state.set_may_write(true);
        Ok(lock)
    }

    /// Says that the disk is only read from now on, because it has become a backing file.
    pub(in crate::engine) fn stop_writing(&self) {
        self.state.set_may_write(false);
    }
}

impl Backing {
    /// Fills `len` bytes of `iov` from byte `at` on, with the data from `guest` on. What is past the end is zero.
    pub(super) fn read(&self, iov: &IoVecs, at: usize, len: usize, guest: u64) -> io::Result<()> {
        match self {
            Self::None => {
                iov.zero_at(at, len);
                Ok(())
            }
            Self::Raw(file) => file.read_part(iov, at, len, guest),
            Self::Qcow2(disk) => disk
                .read_part(iov, at, len, guest)
                .map_err(|error| CorruptBelow::wrap(error, disk.path())),
        }
    }

    /// Returns the number of files below each other.
    pub(super) fn depth(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Raw(_) => 1,
            Self::Qcow2(disk) => disk.depth(),
        }
    }

    /// Returns all files.
    pub(super) fn files(&self) -> Vec<&Arc<RawFile>> {
        match self {
            Self::None => Vec::new(),
            Self::Raw(file) => vec![file],
            Self::Qcow2(disk) => disk.files(),
        }
    }

    /// Reads everything again, because other processes have used the files.
    pub(super) fn look_anew(&self) -> io::Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Raw(file) => file.look_anew().map(drop),
            Self::Qcow2(disk) => disk.look_anew(),
        }
    }
}

/// Locks files. No lock is kept after an error.
fn lock_all<'a>(
    files: impl Iterator<Item = (&'a Arc<RawFile>, LockMode)>,
    mut lock: impl FnMut(&RawFile, LockMode) -> Result<ImageLock, LockError>,
) -> Result<Option<ImageLock>, LockError> {
    let mut first: Option<ImageLock> = None;
    for (file, mode) in files.filter(|(file, _)| file.locks()) {
        let lock = lock(file, mode)?;
        match &mut first {
            None => first = Some(lock),
            Some(first) => first.add(lock),
        }
    }
    Ok(first)
}
