//! Operations of IOThreads on an open image. They never wait; a thread of librbd reports their end.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use super::api::{Api, Pointer, ZEROES_ALLOCATED};
use super::image::Image;

/// An operation of an IOThread.
#[derive(Clone, Copy, Debug)]
pub enum Operation<'a> {
    /// Reads as many bytes as the buffer of the completion has.
    Read {
        /// First byte.
        offset: u64,
    },
    /// Writes this memory, which is copied before the call returns.
    Write {
        /// First byte.
        offset: u64,
        /// The memory.
        iov: &'a [libc::iovec],
    },
    /// Gives space back.
    Discard {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Makes a range read as zeroes.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// The space may be given back.
        unmap: bool,
    },
    /// Makes all writes that have completed stable.
    Flush,
}

/// The end of an operation. It moves to a thread of librbd, which calls it.
pub trait Completion: Send + 'static {
    /// Returns the buffer of a read.
    fn buffer(&mut self) -> &mut [u8];

    /// The operation is over, with a number of bytes or a negative error number. On a thread of librbd.
    fn complete(self: Box<Self>, result: i64);
}

/// The state of an operation that librbd executes.
struct Call<C> {
    api: &'static Api,
    /// The image stays open until the operation is over.
    _image: Arc<Image>,
    completion: Box<C>,
}

impl Image {
    /// Starts an operation, and does not wait. `completion` is called on another thread, unless this fails.
    ///
    /// # Errors
    /// A negative error number.
    pub fn start<C: Completion>(
        self: &Arc<Self>,
        operation: Operation<'_>,
        completion: Box<C>,
    ) -> Result<(), i32> {
        let (api, image) = (self.api(), self.handles.image);
        let mut call = Box::new(Call {
            api,
            _image: Arc::clone(self),
            completion,
        });
        let buffer: *mut [u8] = call.completion.buffer();
        let argument = Box::into_raw(call);
        let mut handle = ptr::null_mut();
        // SAFETY: librbd calls the function once, with this argument, if the operation starts.
        let created =
            unsafe { (api.rbd_aio_create_completion)(argument.cast(), completed::<C>, &raw mut handle) };
        let code = match created {
            code if code < 0 => code,
            // SAFETY: the image stays open, as the buffer stays valid, until the operation is over.
            _ => unsafe { submit(api, image, operation, buffer, handle) },
        };
        if code >= 0 {
            return Ok(());
        }
        if created >= 0 {
            // SAFETY: the operation has not started.
            unsafe { (api.rbd_aio_release)(handle) };
        }
        // SAFETY: made above; librbd does not use it.
        drop(unsafe { Box::from_raw(argument) });
        Err(code)
    }
}

/// Starts an operation.
///
/// # Safety
/// The image is open, and the memory valid until the operation is over. (That of a write until this returns.)
unsafe fn submit(
    api: &Api,
    image: Pointer,
    operation: Operation<'_>,
    buffer: *mut [u8],
    handle: Pointer,
) -> i32 {
    let too_large = -libc::EINVAL;
    match operation {
        Operation::Read { offset } => {
            let len = buffer.len();
            // SAFETY: the caller's promise.
            unsafe { (api.rbd_aio_read)(image, offset, len, buffer.cast(), handle) }
        }
        Operation::Write { offset, iov } => match iov.len().try_into() {
            // SAFETY: the caller's promise. Writes without a copy are disabled for the cluster.
            Ok(count) => unsafe { (api.rbd_aio_writev)(image, iov.as_ptr(), count, offset, handle) },
            Err(_) => too_large,
        },
        // SAFETY: the caller's promise.
        Operation::Discard { offset, len } => unsafe { (api.rbd_aio_discard)(image, offset, len, handle) },
        Operation::WriteZeroes { offset, len, unmap } => {
            let flags = if unmap { 0 } else { ZEROES_ALLOCATED };
            match len.try_into() {
                // SAFETY: the caller's promise.
                Ok(len) => unsafe { (api.rbd_aio_write_zeroes)(image, offset, len, handle, flags, 0) },
                Err(_) => too_large,
            }
        }
        // SAFETY: the caller's promise.
        Operation::Flush => unsafe { (api.rbd_aio_flush)(image, handle) },
    }
}

/// The callback of librbd.
unsafe extern "C" fn completed<C: Completion>(handle: Pointer, argument: *mut c_void) {
    // SAFETY: `Image::start` has made the argument for this one call.
    let call = unsafe { Box::from_raw(argument.cast::<Call<C>>()) };
    // SAFETY: the operation is over.
    let result = unsafe { (call.api.rbd_aio_get_return_value)(handle) };
    // SAFETY: as above, and nobody else uses the completion.
    unsafe { (call.api.rbd_aio_release)(handle) };
    call.completion.complete(result as i64);
}
