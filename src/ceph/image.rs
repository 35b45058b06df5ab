//! Open images: what is asked of them once in a while. `operation` has what IOThreads do.

use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::ptr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::api::{Api, FEATURE_EXCLUSIVE_LOCK, LOCK_EXCLUSIVE, Pointer};
use super::cluster::{Cluster, c_string};
use super::end;
use super::error::{Error, text};
use super::image_name::ImageName;
use crate::interrupt;

/// The longest wait for an image to open.
const OPEN_TIME: Duration = Duration::from_secs(30);
/// The largest value of an image's metadata that is read.
const METADATA_MAX: usize = 1024;

/// An open image. Any thread.
pub struct Image {
    cluster: Arc<Cluster>,
    name: String,
    pub(super) handles: Handles,
    /// The image has the feature `exclusive-lock`.
    pub has_lock: bool,
    watch: OnceLock<Watch>,
}

/// A registration for news of the image.
struct Watch {
    number: u64,
    /// librbd has its address until the registration ends.
    listener: Box<Listener>,
}

type Listener = Box<dyn Fn() + Send + Sync>;

/// A `rados_ioctx_t`, and a `rbd_image_t` that was opened with it.
#[derive(Clone, Copy)]
pub(super) struct Handles {
    context: Pointer,
    pub(super) image: Pointer,
}

// SAFETY: librbd locks what its threads share.
unsafe impl Send for Handles {}
// SAFETY: as above.
unsafe impl Sync for Handles {}

impl Image {
    /// Opens an image, and waits for that with a limit. Any thread but an IOThread.
    ///
    /// # Errors
    /// See [`enum@Error`].
    pub fn open(cluster: &Arc<Cluster>, name: &ImageName, read_only: bool) -> Result<Arc<Self>, Error> {
        let (owner, described) = (Arc::clone(cluster), name.clone());
        let opened = cluster
            .threads
            .run_unless_interrupted(OPEN_TIME, move || Self::open_here(owner, &described, read_only));
        opened.unwrap_or_else(|| {
            let image = name.to_string();
            Err(match interrupt::is_requested() {
                true => Error::Open {
                    image,
                    why: interrupt::TOLD.to_owned(),
                },
                false => Error::Silent { image },
            })
        })
    }

    fn open_here(cluster: Arc<Cluster>, name: &ImageName, read_only: bool) -> Result<Arc<Self>, Error> {
        cluster.connect()?;
        let api = cluster.api;
        let image_name = c_string("image", &name.image)?;
        let snapshot = name.snapshot.as_deref();
        let snapshot = snapshot
            .map(|snapshot| c_string("snapshot", snapshot))
            .transpose()?;
        let context = cluster.pool(&name.pool, name.namespace.as_deref().unwrap_or_default())?;
        let mut image = ptr::null_mut();
        let open = match read_only || snapshot.is_some() {
            true => api.rbd_open_read_only,
            false => api.rbd_open,
        };
        // SAFETY: the context is open, and the pointers are valid.
        let code = unsafe { open(context, image_name.as_ptr(), &raw mut image, ptr::null()) };
        let failed = |why: String| Error::Open {
            image: name.to_string(),
            why,
        };
        if code < 0 {
            // SAFETY: nobody else has the context.
            unsafe { (api.rados_ioctx_destroy)(context) };
            return Err(failed(match -code {
                libc::ENOENT => "there is no such image".to_owned(),
                _ => text(code),
            }));
        }
        end::opened();
        let mut opened = Self {
            cluster,
            name: name.to_string(),
            handles: Handles { context, image },
            has_lock: false,
            watch: OnceLock::new(),
        };
        if let Some(snapshot) = snapshot {
            // SAFETY: the image is open.
            let code = unsafe { (api.rbd_snap_set)(image, snapshot.as_ptr()) };
            if code < 0 {
                return Err(failed(match -code {
                    libc::ENOENT => "there is no such snapshot".to_owned(),
                    _ => text(code),
                }));
            }
        }
        let mut features = 0;
        // SAFETY: the image is open.
        let code = unsafe { (api.rbd_get_features)(image, &raw mut features) };
        if code < 0 {
            return Err(failed(text(code)));
        }
        opened.has_lock = features & FEATURE_EXCLUSIVE_LOCK != 0;
        Ok(Arc::new(opened))
    }

    /// Returns the name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread that may wait for the cluster. Returns `None` if it takes longer than `limit`.
    pub fn run<T: Send + 'static>(
        self: &Arc<Self>,
        limit: Duration,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let image = Arc::clone(self);
        self.cluster.threads.run(limit, move || work(&image))
    }

    /// Like [`run`](Self::run), but returns `None` soon after a signal has asked the process to end.
    pub fn run_unless_interrupted<T: Send + 'static>(
        self: &Arc<Self>,
        limit: Duration,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let image = Arc::clone(self);
        let work = move || work(&image);
        self.cluster.threads.run_unless_interrupted(limit, work)
    }

    /// Runs `work` on a thread that may wait for the cluster. Does not wait.
    pub fn run_later(self: &Arc<Self>, work: impl FnOnce(&Self) + Send + 'static) {
        let image = Arc::clone(self);
        self.cluster.threads.start_job(move || work(&image));
    }

    /// Reads the size in bytes. Only within [`run`](Self::run), as all calls below.
    ///
    /// # Errors
    /// A negative error number.
    pub fn size(&self) -> Result<u64, i32> {
        let mut size = 0;
        // SAFETY: the image is open.
        let code = unsafe { (self.api().rbd_get_size)(self.handles.image, &raw mut size) };
        checked(code).map(|()| size)
    }

    /// Changes the size.
    ///
    /// # Errors
    /// A negative error number.
    pub fn resize(&self, size: u64) -> Result<(), i32> {
        // SAFETY: the image is open.
        checked(unsafe { (self.api().rbd_resize)(self.handles.image, size) })
    }

    /// Calls `listener` on a thread of librbd, where it must not wait, when another client has changed the image.
    ///
    /// # Errors
    /// A negative error number.
    pub fn watch(&self, listener: impl Fn() + Send + Sync + 'static) -> Result<(), i32> {
        let listener: Box<Listener> = Box::new(Box::new(listener));
        let (mut number, argument) = (0, (&raw const *listener).cast_mut().cast());
        // SAFETY: the image is open, and the listener stays where it is until the registration ends.
        let code =
            unsafe { (self.api().rbd_update_watch)(self.handles.image, &raw mut number, changed, argument) };
        checked(code)?;
        if let Err(second) = self.watch.set(Watch { number, listener }) {
            // SAFETY: the image is open, and this is its second registration.
            unsafe { (self.api().rbd_update_unwatch)(self.handles.image, second.number) };
            drop(second.listener);
        }
        Ok(())
    }

    /// Returns the client that has the lock, if any.
    ///
    /// # Errors
    /// A negative error number.
    pub fn owner(&self) -> Result<Option<String>, i32> {
        let (mut mode, mut owner, mut len) = (0, ptr::null_mut::<c_char>(), 1);
        // SAFETY: the image is open, and there is room for one owner, which an exclusive lock has at most.
        let code = unsafe {
            (self.api().rbd_lock_get_owners)(self.handles.image, &raw mut mode, &raw mut owner, &raw mut len)
        };
        match checked(code) {
            Err(error) if error == -libc::ENOENT => return Ok(None),
            Err(error) => return Err(error),
            Ok(()) => {}
        }
        if len == 0 || owner.is_null() {
            return Ok(None);
        }
        // SAFETY: librbd has stored a C string.
        let name = unsafe { CStr::from_ptr(owner) }.to_string_lossy().into_owned();
        // SAFETY: the string was made for us, and is used no more.
        unsafe { (self.api().rbd_lock_get_owners_cleanup)(&raw mut owner, len) };
        Ok(Some(name))
    }

    /// Takes the lock. Waits for an owner that does not answer until the cluster thinks it dead.
    ///
    /// # Errors
    /// A negative error number, `-EROFS` if the owner keeps it.
    pub fn lock(&self) -> Result<(), i32> {
        // SAFETY: the image is open.
        checked(unsafe { (self.api().rbd_lock_acquire)(self.handles.image, LOCK_EXCLUSIVE) })
    }

    /// Releases the lock, after all operations.
    ///
    /// # Errors
    /// A negative error number.
    pub fn unlock(&self) -> Result<(), i32> {
        // SAFETY: the image is open.
        checked(unsafe { (self.api().rbd_lock_release)(self.handles.image) })
    }

    /// Takes the lock away from `owner`. The cluster executes no operation of that client any more.
    ///
    /// # Errors
    /// A negative error number.
    pub fn break_lock(&self, owner: &str) -> Result<(), i32> {
        let owner = c_string("owner", owner).map_err(|_| -libc::EINVAL)?;
        // SAFETY: the image is open, and the name valid.
        checked(unsafe { (self.api().rbd_lock_break)(self.handles.image, LOCK_EXCLUSIVE, owner.as_ptr()) })
    }

    /// Returns a value of the image's metadata.
    pub fn metadata(&self, key: &CStr) -> Option<String> {
        let (mut value, mut len) = (vec![0_u8; METADATA_MAX], METADATA_MAX);
        // SAFETY: the image is open, and the buffer has as many bytes.
        let code = unsafe {
            (self.api().rbd_metadata_get)(
                self.handles.image,
                key.as_ptr(),
                value.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        checked(code).ok()?;
        let text = CStr::from_bytes_until_nul(&value).ok()?;
        text.to_str().ok().map(str::to_owned)
    }

    /// Stores a value in the image's metadata.
    ///
    /// # Errors
    /// A negative error number.
    pub fn set_metadata(&self, key: &CStr, value: &str) -> Result<(), i32> {
        let value = c_string("metadata", value).map_err(|_| -libc::EINVAL)?;
        // SAFETY: the image is open, and the strings are valid.
        checked(unsafe { (self.api().rbd_metadata_set)(self.handles.image, key.as_ptr(), value.as_ptr()) })
    }

    /// Closes the image of a process that is about to end without destructors, so that the cluster need not find out and
    /// no other client waits for this one. Nobody may use the image afterwards.
    pub fn close_at_end(&self) {
        if let Some(watch) = self.watch.get() {
            // SAFETY: the image is open. Afterwards librbd calls the listener no more.
            unsafe { (self.api().rbd_update_unwatch)(self.handles.image, watch.number) };
        }
        // SAFETY: the caller promises that nobody uses the image any more.
        unsafe { (self.api().rbd_close)(self.handles.image) };
    }

    pub(super) fn api(&self) -> &'static Api {
        self.cluster.api
    }
}

/// The callback of librbd for news.
unsafe extern "C" fn changed(argument: *mut c_void) {
    // SAFETY: `Image::watch` has made the argument, which lives as long as the registration.
    let listener = unsafe { &*argument.cast::<Listener>() };
    listener();
}

fn checked(code: i32) -> Result<(), i32> {
    match code {
        code if code < 0 => Err(code),
        _ => Ok(()),
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // A thread of librbd may be the last user, and closing waits for its own threads.
        let (api, handles, watch) = (self.api(), self.handles, self.watch.take());
        self.cluster.threads.start_job(move || {
            let handles = handles;
            if let Some(watch) = watch {
                // SAFETY: the image is open. Afterwards librbd calls the listener no more.
                unsafe { (api.rbd_update_unwatch)(handles.image, watch.number) };
                drop(watch.listener);
            }
            // SAFETY: nobody uses the image any more.
            unsafe { (api.rbd_close)(handles.image) };
            // SAFETY: as above.
            unsafe { (api.rados_ioctx_destroy)(handles.context) };
            end::closed();
        });
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
