//! A disk on an NBD server: its properties, and how connections to it are made. Any thread.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::look::{self, Unread};
use crate::engine::error::Error;
use crate::engine::remote_disk::{Look, RemoteOptions, foreign_format};
use crate::engine::size_listener::SizeListeners;
use crate::interrupt;
use crate::nbd::{Connected, Export, Line, Remote};
use crate::storage::Limits;

/// The largest block that a disk can have.
const BLOCK_MAX: u32 = 32768;

/// The longest time for a look at the image.
const LOOK_TIME: Duration = Duration::from_secs(5);

/// How a disk is opened.
#[derive(Clone, Debug, Default)]
pub struct NbdOptions {
    /// Time that requests wait while the server is away.
    pub reconnect_delay: Duration,
    /// Limit for the opening, in which the first connection is tried again. Zero: one attempt.
    pub open_timeout: Duration,
    /// The options that all disks on other machines have.
    pub remote: RemoteOptions,
}

/// The reason why a disk cannot be opened.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
#[non_exhaustive]
pub enum OpenError {
    #[error("NBD server {server}: {why}")]
    Connect { server: String, why: String },
    #[error("NBD server {server}: export '{export}' is read-only there")]
    ReadOnly { server: String, export: String },
    #[error("NBD server {server}: export '{export}' is empty")]
    Empty { server: String, export: String },
    #[error(
        "NBD server {server}: the size of export '{export}', {size} bytes, is not a multiple of its block size, {block} bytes"
    )]
    Size {
        server: String,
        export: String,
        size: u64,
        block: u32,
    },
    #[error("NBD server {server}: the blocks of export '{export}' are larger than {BLOCK_MAX} bytes")]
    Block { server: String, export: String },
    #[error(
        "NBD server {server}: the format of the image in export '{export}' is not given, and cannot be looked for: {why}"
    )]
    Unread {
        server: String,
        export: String,
        why: String,
    },
}

/// A disk on an NBD server.
#[derive(Debug)]
pub struct NbdDisk {
    /// The name in messages.
    name: PathBuf,
    line: Line,
    options: NbdOptions,
    /// The export when the disk was opened.
    export: Export,
    limits: Limits,
    /// The format of the image on the disk when it was opened, unless it seemed to be raw.
    format: Option<&'static str>,
    size: AtomicU64,
    /// The connection with which the disk was opened, for the first IOThread.
    first: Mutex<Option<Connected>>,
    /// The number of IOThreads that use the disk.
    users: AtomicUsize,
    listeners: SizeListeners,
}

impl NbdDisk {
    /// Connects to the server of `line`, and waits for that.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(line: &Line, mut options: NbdOptions) -> Result<Self, OpenError> {
        let server = || line.remote().server.to_string();
        let timeout = options.open_timeout;
        let end = (!timeout.is_zero()).then(|| Instant::now() + timeout);
        let connected = line.connect(end);
        let connected = connected.map_err(|why| OpenError::Connect {
            server: server(),
            why,
        })?;
        let export = connected.export;
        let block = export.min_block.max(512);
        check(&export, block, line.remote(), &options)?;
        options.remote.read_only |= export.is_read_only();
        let name = {
            let (scheme, remote) = (scheme_of(line), line.remote());
            format!("{scheme}://{}/{}", remote.server, remote.export)
        };
        let (first, format) = match (options.remote.look, looked(&connected, &options, block, end)) {
            (_, Ok(format)) => (Some(connected), format),
            (_, Err(Unread::Interrupted)) => {
                return Err(OpenError::Connect {
                    server: server(),
                    why: interrupt::TOLD.to_owned(),
                });
            }
            (Look::Insist, Err(why)) => {
                return Err(OpenError::Unread {
                    server: server(),
                    export: line.remote().export.clone(),
                    why: why.to_string(),
                });
            }
            (_, Err(why)) => {
                tracing::warn!(disk = name, %why, "cannot look for the format of the image: the disk is served as raw");
                (matches!(why, Unread::Refused(_)).then_some(connected), None)
            }
        };
        Ok(Self {
            name: name.into(),
            line: line.share().map_err(|error| OpenError::Connect {
                server: server(),
                why: error.to_string(),
            })?,
            limits: limits(&export, &options.remote),
            format,
            options,
            export,
            size: AtomicU64::new(export.size),
            first: Mutex::new(first),
            users: AtomicUsize::new(0),
            listeners: SizeListeners::default(),
        })
    }

    pub(in crate::engine) fn path(&self) -> &Path {
        &self.name
    }

    pub(in crate::engine) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(in crate::engine) fn foreign_format(&self) -> Option<&'static str> {
        self.format
    }

    pub(in crate::engine) fn size(&self) -> u64 {
        // Relaxed: no other data depends on this number.
        self.size.load(Ordering::Relaxed)
    }

    pub(super) fn options(&self) -> &NbdOptions {
        &self.options
    }

    pub(super) fn export(&self) -> &Export {
        &self.export
    }

    /// Returns whether a flush over one connection covers the others.
    pub(in crate::engine) fn is_multi_conn(&self) -> bool {
        self.export.is_multi_conn()
    }

    pub(super) fn line(&self) -> &Line {
        &self.line
    }

    /// Takes the connection with which the disk was opened.
    pub(super) fn take_first(&self) -> Option<Connected> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Checks whether an export can replace the first one, and takes over its size. Returns whether that has changed.
    pub(super) fn accept(&self, export: &Export) -> Result<bool, &'static str> {
        if let Some(why) = export.misses(&self.export) {
            return Err(why);
        }
        if export.size < self.size() {
            return Err("it is smaller");
        }
        if !export.size.is_multiple_of(self.limits.logical_block_size.into()) {
            return Err("its size is not a multiple of its block size");
        }
        Ok(self.size.swap(export.size, Ordering::Relaxed) != export.size)
    }

    pub(in crate::engine) fn size_listeners(&self) -> &SizeListeners {
        &self.listeners
    }

    /// Another IOThread uses the disk.
    ///
    /// # Errors
    /// There is one already, and the server does not cover several connections with one flush.
    pub(super) fn join(&self) -> Result<(), Error> {
        // Relaxed: only the number counts.
        let before = self.users.fetch_add(1, Ordering::Relaxed);
        if before == 0 || self.export.is_multi_conn() {
            return Ok(());
        }
        self.leave();
        Err(Error::OneConnection)
    }

    pub(super) fn leave(&self) {
        self.users.fetch_sub(1, Ordering::Relaxed);
    }
}

fn scheme_of(line: &Line) -> &'static str {
    match line.remote().tls {
        Some(_) => "nbds",
        None => "nbd",
    }
}

/// Checks whether an export with blocks of this size can be served.
fn check(export: &Export, block: u32, remote: &Remote, options: &NbdOptions) -> Result<(), OpenError> {
    let (size, options) = (export.size, &options.remote);
    let (server, name) = (remote.server.to_string(), remote.export.clone());
    if export.is_read_only() && !options.read_only && !options.auto_read_only {
        return Err(OpenError::ReadOnly { server, export: name });
    }
    if size == 0 {
        return Err(OpenError::Empty { server, export: name });
    }
    if block > BLOCK_MAX {
        return Err(OpenError::Block { server, export: name });
    }
    if !size.is_multiple_of(block.into()) {
        return Err(OpenError::Size {
            server,
            export: name,
            size,
            block,
        });
    }
    Ok(())
}

/// Looks for the format of the image on a disk, if the options say so. Ends at `end` at the latest.
fn looked(
    connected: &Connected,
    options: &NbdOptions,
    block: u32,
    end: Option<Instant>,
) -> Result<Option<&'static str>, Unread> {
    if options.remote.look == Look::Skip {
        return Ok(None);
    }
    let limit = Instant::now() + LOOK_TIME;
    let end = end.map_or(limit, |end| end.min(limit));
    foreign_format(connected.export.size, block, |offset, len| {
        look::read(connected, offset, len, end)
    })
}

fn limits(export: &Export, options: &RemoteOptions) -> Limits {
    let block = export.min_block.max(512);
    let limits = Limits {
        logical_block_size: block,
        physical_block_size: match export.preferred_block {
            preferred if preferred > block && preferred <= BLOCK_MAX => preferred,
            _ => block,
        },
        optimal_io_size: 0,
        request_alignment: export.min_block,
        memory_alignment: 1,
        discard_granularity: match export.trims() && options.unmap {
            true => block,
            false => 0,
        },
        write_zeroes: export.writes_zeroes(),
        read_only: false,
    };
    options.apply(limits)
}
