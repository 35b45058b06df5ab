//! A disk in a qcow2 image. Any thread.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::backing::Backing;
use super::error::OpenError;
use super::tables::Tables;
use crate::storage::{ImageLock, Limits, LockError, LockMode, RawFile};

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
    /// Replaced as a whole when another process has used the image.
    tables: RwLock<Arc<Tables>>,
}

impl Qcow2Disk {
    pub(super) fn new(
        file: Arc<RawFile>,
        data_file: Option<Arc<RawFile>>,
        backing: Backing,
        tables: Tables,
    ) -> Self {
        let limits = Limits {
            logical_block_size: 512,
            physical_block_size: file.limits().physical_block_size,
            optimal_io_size: 0,
            request_alignment: 1,
            memory_alignment: 1,
            discard_granularity: 0,
            write_zeroes: false,
            read_only: true,
        };
        Self {
            file,
            data_file,
            backing,
            limits,
            size: AtomicU64::new(tables.header.size),
            tables: RwLock::new(Arc::new(tables)),
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

    /// Returns the file that has the data clusters.
    pub(in crate::engine) fn data(&self) -> &Arc<RawFile> {
        self.data_file.as_ref().unwrap_or(&self.file)
    }

    /// Returns the number of images below each other, with this one.
    pub(super) fn depth(&self) -> usize {
        1 + self.backing.depth()
    }

    /// Returns all files of this image and of those below.
    pub(in crate::engine) fn files(&self) -> Vec<&Arc<RawFile>> {
        let mut files = vec![&self.file];
        files.extend(&self.data_file);
        files.extend(self.backing.files());
        files
    }

    /// Returns whether both have the same image.
    pub(in crate::engine) fn is_same_image(&self, other: &Self) -> bool {
        self.file.is_same_image(&other.file)
    }

    pub(super) fn tables(&self) -> Arc<Tables> {
        Arc::clone(&self.tables.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the header and the tables again, here and in the backing files, because another process has used them.
    ///
    /// # Errors
    /// A file cannot be read, its header is refused now, or it names other files.
    pub(in crate::engine) fn look_anew(&self) -> io::Result<()> {
        self.backing.look_anew()?;
        let data_file = self.data_file.as_ref();
        data_file.map_or(Ok(false), |file| file.look_anew())?;
        self.file.look_anew()?;
        let new = Tables::read(&self.file).map_err(|error| match error {
            OpenError::Read { source, .. } => source,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        })?;
        let before = self.tables();
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
        *self.tables.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(())
    }

    /// Locks all files of the image and of its backing files, as QEMU does.
    ///
    /// # Errors
    /// See [`LockError`]. No lock is kept then.
    pub(in crate::engine) fn lock(&self, mode: LockMode) -> Result<Option<ImageLock>, LockError> {
        let mode = match mode {
            LockMode::ReadForceShare => LockMode::ReadForceShare,
            _ => LockMode::ReadFormat,
        };
        let mut first: Option<ImageLock> = None;
        for file in self.files() {
            if !file.locks() {
                continue;
            }
            let lock = ImageLock::acquire_soon(file, mode)?;
            match &mut first {
                None => first = Some(lock),
                Some(first) => first.add(lock),
            }
        }
        Ok(first)
    }
}
