//! Operations that wait until the [`opener`](crate::opener) has opened what they name.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::callbacks::Done;
use crate::opener::{FileRequest, Opener, Place, SocketRequest};
use crate::vhost_user::server::Server;

/// The operations on a registry `R` that wait for names.
pub(super) struct Names<R> {
    pub(super) opener: Option<Opener>,
    /// The first operation has asked for the first name that it wants.
    pub(super) waiting: VecDeque<Waiting<R>>,
    /// The advice for names that cannot be opened: what makes them available at the next start.
    pub(super) hint: &'static str,
}

/// Starts an operation, which calls `done` when it has ended.
pub(super) type Run<R> = Box<dyn FnOnce(&mut R, Given, Done) + Send>;

pub(super) struct Waiting<R> {
    pub(super) wanted: VecDeque<Wanted>,
    pub(super) given: Given,
    pub(super) run: Run<R>,
    pub(super) done: Done,
}

/// The files and the socket that the opener has opened for an operation.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) files: Vec<OpenedFile>,
    pub(super) server: Option<Server>,
}

/// A name that an operation needs.
#[derive(Debug)]
pub(super) enum Wanted {
    File(PathBuf, Place, FileRequest),
    Socket(PathBuf, Place, SocketRequest),
}

/// An image that was opened for the next operation.
#[derive(Debug)]
pub(super) struct OpenedFile {
    pub(super) path: PathBuf,
    pub(super) image: File,
    /// The same file, open for O_DIRECT.
    pub(super) direct: Option<File>,
}

impl<R> Names<R> {
    /// Creates an empty queue, without an opener.
    pub(super) fn new() -> Self {
        Self {
            opener: None,
            waiting: VecDeque::new(),
            hint: "",
        }
    }

    /// Returns whether the opener still has to remove the socket with this name.
    pub(super) fn has_socket(&self, name: &str) -> bool {
        self.opener
            .as_ref()
            .is_some_and(|opener| opener.has_socket(Path::new(name)))
    }

    pub(super) fn place(&self, path: &Path) -> Option<Place> {
        self.opener.as_ref()?.place(path)
    }
}
