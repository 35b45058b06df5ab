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

/// The owner of an operation. It moves to a thread of librbd, which reports the end.
pub trait Completion: Sized + Send + 'static {
    /// Returns the buffer of a read. It stays where it is until the operation is over.
    fn buffer(&mut self) -> &mut [u8];

    /// The operation is over, with a number of bytes or a negative error number. On a thread of librbd.
    fn complete(call: Box<Call<Self>>, result: i64);
}

/// An operation on an image, which may be started again when it is over.
#[derive(Debug)]
pub struct Call<C> {
    /// Open until the operation is over.
    image: Arc<Image>,
    /// The owner.
    pub completion: C,
}

impl<C: Completion> Call<C> {
    /// Prepares an operation.
    pub fn new(image: &Arc<Image>, completion: C) -> Box<Self> {
        Box::new(Self {
            image: Arc::clone(image),
            completion,
        })
    }

    /// Starts the operation, and does not wait. [`Completion::complete`] is called on another thread, unless this fails.
    ///
    /// # Errors
    /// A negative error number, and the call.
    pub fn start(mut self: Box<Self>, operation: Operation<'_>) -> Result<(), (Box<Self>, i32)> {
        let (api, image) = (self.image.api(), self.image.handles.image);
        let buffer: *mut [u8] = self.completion.buffer();
        let argument = Box::into_raw(self);
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
        Err((unsafe { Box::from_raw(argument) }, code))
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
    // SAFETY: `Call::start` has made the argument for this one call.
    let call = unsafe { Box::from_raw(argument.cast::<Call<C>>()) };
    let api = call.image.api();
    // SAFETY: the operation is over.
    let result = unsafe { (api.rbd_aio_get_return_value)(handle) };
    // SAFETY: as above, and nobody else uses the completion.
    unsafe { (api.rbd_aio_release)(handle) };
    C::complete(call, result as i64);
}
