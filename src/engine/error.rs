//! Why an engine cannot be had.

use std::io;

use crate::aio;

/// Why an engine cannot be had. What to do about it depends on the words in which it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel gives no ring.
    #[error("no io_uring: {}", io_uring_reason(.0))]
    IoUring(#[source] io::Error),

    /// The kernel gives no AIO context.
    #[error("no Linux AIO: {}", native_reason(.0))]
    Native(#[source] io::Error),

    /// Linux AIO was asked for where its submission blocks.
    #[error("without O_DIRECT, Linux AIO would block the IOThread for each request")]
    NativeBuffered,

    /// There is nothing that the kernel could do I/O on.
    #[error("io_uring and Linux AIO need a file")]
    NoFile,

    /// A disk that a timer completes has no engine to choose.
    #[error("a null disk with a latency is completed by a timer, and not by an engine")]
    Timer,

    /// The completion eventfd cannot be watched.
    #[error("completions cannot be watched")]
    Watch(#[from] aio::Error),
}

fn io_uring_reason(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel has none",
        Some(libc::EPERM | libc::EACCES) => {
            "it is switched off (sysctl kernel.io_uring_disabled) or not allowed here"
        }
        Some(libc::ENOMEM) => "its memory exceeds the limit (ulimit -l)",
        Some(libc::EMFILE | libc::ENFILE) => "no file descriptor is left for it (ulimit -n)",
        Some(libc::EINVAL) | None => "the kernel's is too old",
        _ => "it cannot be set up",
    }
}

fn native_reason(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel has none",
        Some(libc::EPERM | libc::EACCES) => "it is not allowed here",
        Some(libc::EMFILE | libc::ENFILE) => "no file descriptor is left for it (ulimit -n)",
        Some(libc::EAGAIN) => "the system's limit is used up (sysctl fs.aio-max-nr)",
        _ => "it cannot be set up",
    }
}
