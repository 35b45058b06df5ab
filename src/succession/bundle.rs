//! File descriptors beside a message, which names each of them by its place.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The descriptors of one message.
#[derive(Debug, Default)]
pub(crate) struct Bundle(Vec<Option<OwnedFd>>);

/// A message names a descriptor that did not come with it, or names one twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("file descriptor {0} of the message is missing")]
pub(crate) struct MissingFile(usize);

impl From<Vec<OwnedFd>> for Bundle {
    fn from(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }
}

impl Bundle {
    /// Adds a duplicate of a descriptor. Returns its place.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub(crate) fn add(&mut self, fd: impl AsFd) -> io::Result<usize> {
        self.0.push(Some(fd.as_fd().try_clone_to_owned()?));
        Ok(self.0.len() - 1)
    }

    /// Takes the descriptor at a place.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn take(&mut self, place: usize) -> Result<OwnedFd, MissingFile> {
        let fd = self.0.get_mut(place).and_then(Option::take);
        fd.ok_or(MissingFile(place))
    }

    /// As [`take`](Self::take), for a descriptor that may be absent.
    ///
    /// # Errors
    /// It is named, but there is none.
    pub(crate) fn take_file(&mut self, place: Option<usize>) -> Result<Option<File>, MissingFile> {
        place.map(|place| self.take(place).map(File::from)).transpose()
    }

    /// Returns the descriptors in order.
    pub(super) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().flatten().map(AsFd::as_fd).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_taken_once() {
        let mut bundle = Bundle::default();
        let place = bundle.add(io::stdin()).unwrap();
        assert!(bundle.take(place).is_ok());
        assert_eq!(bundle.take(place).unwrap_err(), MissingFile(0));
        assert_eq!(bundle.take_file(Some(7)).unwrap_err(), MissingFile(7));
        assert!(bundle.take_file(None).unwrap().is_none());
    }
}
