//! A disk in a Ceph cluster: its properties and its size. Any thread.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::look;
use super::owner;
use crate::ceph::{Cluster, Error, Image, ImageName};
use crate::engine::remote_disk::{Look, RemoteOptions, foreign_format};
use crate::engine::size_listener::SizeListeners;
use crate::interrupt;
use crate::storage::Limits;

/// The longest wait for an answer of the cluster.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// The longest wait for an image to be closed at the end.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// The logical block size.
const BLOCK: u32 = 512;

/// The size of a disk, and who wants to know of changes.
#[derive(Debug)]
struct Size {
    bytes: AtomicU64,
    listeners: SizeListeners,
}

/// A disk in a Ceph cluster.
#[derive(Debug)]
pub struct RbdDisk {
    /// The name in messages.
    path: PathBuf,
    image: Arc<Image>,
    options: RemoteOptions,
    limits: Limits,
    /// The format of the image on the disk when it was opened, unless it seemed to be raw.
    format: Option<&'static str>,
    size: Arc<Size>,
    /// There is a lock.
    pub(super) locked: AtomicBool,
}

impl RbdDisk {
    /// Opens an image, and waits for that.
    ///
    /// # Errors
    /// See [`enum@Error`].
    pub fn open(cluster: &Arc<Cluster>, name: &ImageName, mut options: RemoteOptions) -> Result<Self, Error> {
        let failed = |why: String| Error::Open {
            image: name.to_string(),
            why,
        };
        if name.snapshot.is_some() && !options.read_only {
            if !options.auto_read_only {
                return Err(failed("a snapshot is read-only".to_owned()));
            }
            options.read_only = true;
        }
        // While that can still be found out.
        let _ = owner::ourselves();
        let image = Image::open(cluster, name, options.read_only)?;
        let size = image.run(ANSWER_TIME, Image::size);
        let size = size.ok_or_else(|| failed("the cluster does not answer".to_owned()))?;
        let size = size.map_err(|code| failed(io::Error::from_raw_os_error(-code).to_string()))?;
        if size == 0 || !size.is_multiple_of(BLOCK.into()) {
            return Err(failed(format!(
                "its size, {size} bytes, is not a positive multiple of 512"
            )));
        }
        let format = format_of(&image, size, options.look)?;
        let size = Arc::new(Size {
            bytes: AtomicU64::new(size),
            listeners: SizeListeners::default(),
        });
        watch(&image, &size);
        Ok(Self {
            path: format!("rbd:{name}").into(),
            image,
            limits: limits(&options),
            format,
            options,
            size,
            locked: AtomicBool::new(false),
        })
    }

    /// Returns a disk with other options on the same open image. `None`: the image is open for reading only, and the disk
    /// would write.
    pub fn reopened(&self, options: RemoteOptions) -> Option<Self> {
        let read_only = options.read_only || (options.auto_read_only && self.options.read_only);
        if self.options.read_only && !read_only {
            return None;
        }
        let options = RemoteOptions { read_only, ..options };
        Some(Self {
            path: self.path.clone(),
            image: Arc::clone(&self.image),
            limits: limits(&options),
            format: self.format,
            options,
            size: Arc::clone(&self.size),
            locked: AtomicBool::new(false),
        })
    }

    pub(in crate::engine) fn path(&self) -> &Path {
        &self.path
    }

    pub(in crate::engine) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(in crate::engine) fn foreign_format(&self) -> Option<&'static str> {
        self.format
    }

    pub(in crate::engine) fn size(&self) -> u64 {
        // Relaxed: no other data depends on this number.
        self.size.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn options(&self) -> &RemoteOptions {
        &self.options
    }

    pub(super) fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Reads the size again.
    pub(in crate::engine) fn look_anew(&self) -> io::Result<()> {
        let size = answer(self.image.run(ANSWER_TIME, Image::size))?;
        self.accept(size);
        Ok(())
    }

    /// Closes the image of a process that ends now, because another one has taken over. It has no requests.
    pub(in crate::engine) fn close_at_end(&self) {
        // Without an answer, the cluster finds out by itself.
        let _ = self.image.run(CLOSE_TIME, Image::close_at_end);
    }

    /// Changes the size.
    pub(in crate::engine) fn resize(&self, bytes: u64) -> io::Result<()> {
        answer(self.image.run(ANSWER_TIME, move |image| image.resize(bytes)))?;
        self.accept(bytes);
        Ok(())
    }

    /// Takes over the size that the cluster has.
    pub(super) fn accept(&self, size: u64) {
        self.size.accept(size);
    }

    pub(in crate::engine) fn size_listeners(&self) -> &SizeListeners {
        &self.size.listeners
    }
}

impl Size {
    /// Takes over the size that the cluster has. Returns whether it has changed.
    fn accept(&self, size: u64) -> bool {
        let is_valid = size > 0 && size.is_multiple_of(BLOCK.into());
        is_valid && self.bytes.swap(size, Ordering::Relaxed) != size
    }
}

/// Looks for the format of an image's contents. Returns `None` if it seems to be raw.
fn format_of(image: &Arc<Image>, size: u64, look: Look) -> Result<Option<&'static str>, Error> {
    if look == Look::Skip {
        return Ok(None);
    }
    foreign_format(size, BLOCK, |offset, len| look::read(image, offset, len)).or_else(|why| {
        let disk = image.name();
        if interrupt::is_requested() {
            let image = disk.to_owned();
            return Err(Error::Open { image, why });
        }
        if look == Look::Insist {
            let image = disk.to_owned();
            return Err(Error::Unread { image, why });
        }
        tracing::warn!(
            disk,
            why,
            "cannot look for the format of the image: the disk is served as raw"
        );
        Ok(None)
    })
}

/// Looks at the size when another client has changed the image.
fn watch(image: &Arc<Image>, size: &Arc<Size>) {
    let (weak, size) = (Arc::downgrade(image), Arc::clone(size));
    let look = move || {
        let size = Arc::clone(&size);
        if let Some(image) = weak.upgrade() {
            image.run_later(move |image| {
                if image.size().is_ok_and(|bytes| size.accept(bytes)) {
                    size.listeners.tell();
                }
            });
        }
    };
    let watched = image.run(ANSWER_TIME, |image| image.watch(look));
    if !matches!(watched, Some(Ok(()))) {
        tracing::warn!(
            disk = image.name(),
            "cannot watch the size of the image: SIGHUP looks at it"
        );
    }
}

fn answer<T>(result: Option<Result<T, i32>>) -> io::Result<T> {
    match result {
        Some(result) => result.map_err(|code| io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the cluster does not answer",
        )),
    }
}

fn limits(options: &RemoteOptions) -> Limits {
    let limits = Limits {
        logical_block_size: BLOCK,
        physical_block_size: BLOCK,
        optimal_io_size: 0,
        request_alignment: 1,
        memory_alignment: 1,
        discard_granularity: if options.unmap { 65536 } else { 0 },
        write_zeroes: true,
        read_only: false,
    };
    options.apply(limits)
}
