//! Errors of choosing or setting up an engine.

use std::io;

use crate::aio;

/// The reason why an engine is not available. The command line adds advice, because only it knows the options.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No io_uring can be created.
    #[error("no io_uring: {}", io_uring_reason(.0))]
    IoUring(#[source] io::Error),

    /// No Linux AIO context can be created.
    #[error("no Linux AIO: {}", native_reason(.0))]
    Native(#[source] io::Error),

    /// Linux AIO was chosen for buffered I/O, where its submission blocks.
    #[error("without O_DIRECT, Linux AIO would block the IOThread for each request")]
    NativeBuffered,

    /// A kernel engine was chosen for a disk without a file.
    #[error("io_uring and Linux AIO need a file")]
    NoFile,

    /// An engine was chosen for a disk whose requests a timer completes.
    #[error("a null disk with a latency is completed by a timer and has no engine")]
    Timer,

    /// An engine was chosen for a disk on an NBD server.
    #[error("a disk on an NBD server is served over its connection and has no engine")]
    Network,

    /// An engine was chosen for a disk in a Ceph cluster.
    #[error("a disk in a Ceph cluster is served by librbd and has no engine")]
    Cluster,

    /// A kernel engine was chosen for a disk in an image format.
    #[error("a disk in a qcow2 image is read by the thread pool, not by io_uring or Linux AIO")]
    Format,

    /// Memory is to be registered with an engine other than io_uring.
    #[error("guest memory can only be registered with io_uring")]
    NothingRegistered,

    /// The kernel's io_uring has no table of memory that can change.
    #[error("guest memory cannot be registered: the kernel is too old for it (Linux 5.19)")]
    NoMemoryTable,

    /// Several IOThreads use a disk whose server does not cover several connections with one flush.
    #[error(
        "the NBD server does not announce multi-conn, so one IOThread only can serve the disk (qemu-nbd: --shared=0)"
    )]
    OneConnection,

    /// The completion eventfd cannot be watched.
    #[error("cannot watch the eventfd of the engine's completions")]
    Watch(#[from] aio::Error),
}

fn io_uring_reason(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel does not support it",
        Some(libc::EPERM | libc::EACCES) => {
            "it is disabled (sysctl kernel.io_uring_disabled) or not allowed here"
        }
        Some(libc::ENOMEM) => "its memory exceeds the limit (ulimit -l)",
        Some(libc::EMFILE | libc::ENFILE) => "no file descriptor is left for it (ulimit -n)",
        Some(libc::EINVAL) | None => "the kernel is too old for it",
        _ => "it cannot be set up",
    }
}

fn native_reason(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel does not support it",
        Some(libc::EPERM | libc::EACCES) => "it is not allowed here",
        Some(libc::EMFILE | libc::ENFILE) => "no file descriptor is left for it (ulimit -n)",
        Some(libc::EAGAIN) => "the system's limit is reached (sysctl fs.aio-max-nr)",
        _ => "it cannot be set up",
    }
}
