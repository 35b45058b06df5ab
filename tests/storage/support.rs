//! Images and buffers.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vhost_user_blk::io::IoVecs;
use vhost_user_blk::storage::{Error, OpenOptions, RawFile};

/// The file system of an image.
#[derive(Clone, Copy, Debug)]
pub(crate) enum On {
    /// The file system of the build directory.
    Disk,
    /// A file system in memory.
    Tmpfs,
}

/// A disk image in a directory of its own. Dropping the image removes the directory.
pub(crate) struct Image {
    dir: TempDir,
    pub(crate) path: PathBuf,
}

impl Image {
    /// Creates a sparse image of `size` bytes.
    pub(crate) fn new(on: On, size: u64) -> Self {
        let parent = match on {
            On::Disk => Path::new(env!("CARGO_TARGET_TMPDIR")),
            On::Tmpfs => Path::new("/dev/shm"),
        };
        let dir = TempDir::new_in(parent).unwrap();
        let path = dir.path().join("disk.img");
        File::create_new(&path).unwrap().set_len(size).unwrap();
        Self { dir, path }
    }

    /// Creates an image filled with `byte`.
    pub(crate) fn filled(on: On, size: u64, byte: u8) -> Self {
        let image = Self::new(on, size);
        let len = usize::try_from(size).unwrap();
        image.file().write_all_at(&vec![byte; len], 0).unwrap();
        image
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns options to open the image for writing, through the page cache.
    pub(crate) fn options(&self) -> OpenOptions {
        options(&self.path)
    }

    pub(crate) fn open(&self) -> RawFile {
        RawFile::open(&self.options()).unwrap()
    }

    pub(crate) fn open_direct(&self) -> RawFile {
        let direct = true;
        RawFile::open(&OpenOptions {
            direct,
            ..self.options()
        })
        .unwrap()
    }

    pub(crate) fn open_read_only(&self) -> RawFile {
        let read_only = true;
        RawFile::open(&OpenOptions {
            read_only,
            ..self.options()
        })
        .unwrap()
    }

    /// Opens the file without the storage layer.
    pub(crate) fn file(&self) -> File {
        File::options().read(true).write(true).open(&self.path).unwrap()
    }

    pub(crate) fn contents(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    /// Returns the number of bytes that the file system has allocated for the image.
    pub(crate) fn allocated(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.file().sync_all().unwrap();
        std::fs::metadata(&self.path).unwrap().blocks() * 512
    }
}

pub(crate) fn options(path: &Path) -> OpenOptions {
    OpenOptions {
        path: path.to_owned(),
        ..OpenOptions::default()
    }
}

/// Returns the message that a user reads: the error and its causes.
pub(crate) fn message(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

/// Returns the error message of a refused open.
pub(crate) fn refusal(options: &OpenOptions) -> String {
    let error: Error = RawFile::open(options).expect_err("opened");
    message(&error)
}

/// Memory of one request: consecutive buffers of `lens` bytes, which start `skew` bytes past a page boundary.
pub(crate) struct Buffers {
    memory: Vec<u8>,
    start: usize,
    lens: Vec<usize>,
}

impl Buffers {
    pub(crate) fn new(skew: usize, lens: &[usize]) -> Self {
        let len: usize = lens.iter().sum();
        let memory = vec![0; skew + len + 4096];
        let start = memory.as_ptr().align_offset(4096) + skew;
        let lens = lens.to_vec();
        Self { memory, start, lens }
    }

    /// Makes one aligned buffer that contains `bytes`.
    pub(crate) fn with(bytes: &[u8]) -> Self {
        let mut buffers = Self::new(0, &[bytes.len()]);
        buffers.bytes_mut().copy_from_slice(bytes);
        buffers
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..][..self.lens.iter().sum()]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.lens.iter().sum()]
    }

    pub(crate) fn iov(&mut self) -> IoVecs {
        let mut iov = IoVecs::new();
        let mut base = self.bytes_mut().as_mut_ptr();
        for &len in &self.lens {
            // SAFETY: part of `memory`; the tests drop the list before they look at the bytes again.
            unsafe { iov.push(base, len) };
            base = base.wrapping_add(len);
        }
        iov
    }
}

pub(crate) fn read(storage: &RawFile, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut buffers = Buffers::new(0, &[len]);
    storage.readv(&buffers.iov(), offset)?;
    Ok(buffers.bytes().to_vec())
}

pub(crate) fn write(storage: &RawFile, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    storage.writev(&Buffers::with(bytes).iov(), offset)
}
