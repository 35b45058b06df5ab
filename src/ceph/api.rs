//! The functions of librados and librbd, as their C headers (`rados/librados.h`, `rbd/librbd.h`) declare them.
//!
//! The libraries are loaded when the first RBD disk is opened, so nobody else needs them. Any thread.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use super::error::Error;

/// `rados_t`, `rados_ioctx_t`, `rbd_image_t` and `rbd_completion_t`: opaque pointers.
pub(super) type Pointer = *mut c_void;

/// `rbd_callback_t`: runs on a thread of librbd.
pub(super) type Callback = unsafe extern "C" fn(completion: Pointer, argument: *mut c_void);

/// `rbd_update_callback_t`: runs on a thread of librbd.
pub(super) type UpdateCallback = unsafe extern "C" fn(argument: *mut c_void);

/// `rbd_lock_mode_t`: one client has the lock until it gives it back.
pub(super) const LOCK_EXCLUSIVE: c_int = 0;
/// A flag of `rbd_aio_write_zeroes`: the space stays allocated.
pub(super) const ZEROES_ALLOCATED: c_int = 1;
/// `RBD_FEATURE_EXCLUSIVE_LOCK`.
pub(super) const FEATURE_EXCLUSIVE_LOCK: u64 = 1 << 2;

macro_rules! api {
    ($($library:literal: { $($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)* })*) => {
        /// The functions. The libraries stay loaded.
        #[allow(missing_docs, reason = "the names of the C headers")]
        pub(super) struct Api {
            $($(pub(super) $name: unsafe extern "C" fn($($argument: $type),*) -> $result,)*)*
        }

        fn load() -> Result<Api, String> {
            $(let library = open($library)?;
            $(let $name = find(library, concat!(stringify!($name), "\0"))?;)*)*
            Ok(Api {
                $($(
                    // SAFETY: the header of the library declares this type for the function of this name.
                    $name: unsafe {
                        std::mem::transmute::<Pointer, unsafe extern "C" fn($($argument: $type),*) -> $result>($name)
                    },
                )*)*
            })
        }
    };
}

api! {
    c"librados.so.2": {
        rados_create2(cluster: *mut Pointer, name: *const c_char, user: *const c_char, flags: u64) -> c_int;
        rados_conf_read_file(cluster: Pointer, path: *const c_char) -> c_int;
        rados_conf_set(cluster: Pointer, option: *const c_char, value: *const c_char) -> c_int;
        rados_conf_get(cluster: Pointer, option: *const c_char, buffer: *mut c_char, len: usize) -> c_int;
        rados_connect(cluster: Pointer) -> c_int;
        rados_ioctx_create(cluster: Pointer, pool: *const c_char, context: *mut Pointer) -> c_int;
        rados_ioctx_set_namespace(context: Pointer, namespace: *const c_char) -> ();
        rados_ioctx_destroy(context: Pointer) -> ();
    }
    c"librbd.so.1": {
        rbd_open(context: Pointer, name: *const c_char, image: *mut Pointer, snapshot: *const c_char) -> c_int;
        rbd_open_read_only(
            context: Pointer, name: *const c_char, image: *mut Pointer, snapshot: *const c_char
        ) -> c_int;
        rbd_close(image: Pointer) -> c_int;
        rbd_snap_set(image: Pointer, snapshot: *const c_char) -> c_int;
        rbd_get_size(image: Pointer, size: *mut u64) -> c_int;
        rbd_get_features(image: Pointer, features: *mut u64) -> c_int;
        rbd_resize(image: Pointer, size: u64) -> c_int;
        rbd_update_watch(
            image: Pointer, watch: *mut u64, callback: UpdateCallback, argument: *mut c_void
        ) -> c_int;
        rbd_update_unwatch(image: Pointer, watch: u64) -> c_int;
        rbd_lock_acquire(image: Pointer, mode: c_int) -> c_int;
        rbd_lock_release(image: Pointer) -> c_int;
        rbd_lock_get_owners(
            image: Pointer, mode: *mut c_int, owners: *mut *mut c_char, len: *mut usize
        ) -> c_int;
        rbd_lock_get_owners_cleanup(owners: *mut *mut c_char, len: usize) -> ();
        rbd_lock_break(image: Pointer, mode: c_int, owner: *const c_char) -> c_int;
        rbd_metadata_get(image: Pointer, key: *const c_char, value: *mut c_char, len: *mut usize) -> c_int;
        rbd_metadata_set(image: Pointer, key: *const c_char, value: *const c_char) -> c_int;
        rbd_aio_create_completion(argument: *mut c_void, callback: Callback, completion: *mut Pointer) -> c_int;
        rbd_aio_get_return_value(completion: Pointer) -> isize;
        rbd_aio_release(completion: Pointer) -> ();
        rbd_aio_read(
            image: Pointer, offset: u64, len: usize, buffer: *mut c_char, completion: Pointer
        ) -> c_int;
        rbd_aio_writev(
            image: Pointer, iov: *const libc::iovec, count: c_int, offset: u64, completion: Pointer
        ) -> c_int;
        rbd_aio_discard(image: Pointer, offset: u64, len: u64, completion: Pointer) -> c_int;
        rbd_aio_write_zeroes(
            image: Pointer, offset: u64, len: usize, completion: Pointer, zero_flags: c_int, op_flags: c_int
        ) -> c_int;
        rbd_aio_flush(image: Pointer, completion: Pointer) -> c_int;
    }
}

static API: OnceLock<Result<Api, String>> = OnceLock::new();

impl Api {
    /// Returns whether the libraries are loaded.
    pub(super) fn is_loaded() -> bool {
        API.get().is_some_and(Result::is_ok)
    }

    /// Returns the functions, and loads the libraries if nobody has done so yet.
    ///
    /// # Errors
    /// A library, or a function of it, is missing.
    pub(super) fn get() -> Result<&'static Self, Error> {
        let api = API.get_or_init(load);
        api.as_ref().map_err(|why| Error::Library { why: why.clone() })
    }
}

fn open(name: &CStr) -> Result<Pointer, String> {
    // SAFETY: the name is a C string. The code that this runs are the constructors of an installed library.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    match library.is_null() {
        true => Err(last_error()),
        false => Ok(library),
    }
}

fn find(library: Pointer, name: &str) -> Result<Pointer, String> {
    // SAFETY: the library is open, and the name ends with a zero byte.
    let function = unsafe { libc::dlsym(library, name.as_ptr().cast()) };
    match function.is_null() {
        true => Err(last_error()),
        false => Ok(function),
    }
}

fn last_error() -> String {
    // SAFETY: the text stays valid until the next call of this thread.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "unknown error".to_owned();
    }
    // SAFETY: as above; it is a C string.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
