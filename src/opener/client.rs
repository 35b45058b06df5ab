//! The daemon's side of the helper. Main thread only, except for removals.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::{ForkResult, fork};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};

use super::message::{Answer, FileRequest, Outcome, Refusal, Request, SocketRequest};
use super::place::{Directory, Names, Place};
use super::{StartError, helper};
use crate::account::Account;
use crate::packet::{receive, send};
use crate::sandbox::Mode;
use crate::sys::process::ignore_signal;
use crate::vhost_user::path::SocketFile;

/// Asks the helper for images and sockets. Never waits, except at the start and at the end.
#[derive(Debug)]
pub(crate) struct Opener {
    socket: Arc<OwnedFd>,
    names: Names,
    /// The sockets that were asked for and not answered yet, and `None` for images.
    asked: VecDeque<Option<(u64, PathBuf)>>,
    /// The sockets that have a file.
    made: Vec<(u64, PathBuf)>,
    next: u64,
}

/// An answer, with the file of its socket.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) answer: Answer,
    /// The file, if a socket was made. Dropping it asks the helper to remove it.
    pub(crate) file: Option<SocketFile>,
}

impl Answered {
    const REMOVED: Self = Self {
        answer: Answer::Removed,
        file: None,
    };
}

impl Opener {
    /// Starts the helper, which leaves these directories open, and becomes this user.
    ///
    /// The process must have one thread. It should have opened nothing yet.
    ///
    /// # Errors
    /// A directory cannot be opened, or the process cannot be created or confined.
    pub(crate) fn start(
        directories: &[PathBuf],
        mode: Mode,
        account: Option<&Account>,
    ) -> Result<Self, StartError> {
        let directories = directories.iter().map(|path| Directory::open(path));
        let directories: Vec<Directory> = directories.collect::<Result<_, _>>()?;
        let names = Names::of(&directories);
        let (socket, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(io::Error::from)?;
        // Nobody waits for the helper. Without this, its number would stay in use if it is killed.
        ignore_signal(libc::SIGCHLD);
        // SAFETY: there is one thread, so the child finds no lock held.
        match unsafe { fork() }.map_err(io::Error::from)? {
            ForkResult::Child => helper::run(&theirs, directories, mode, account),
            ForkResult::Parent { .. } => drop(theirs),
        }
        match receive(&socket, RecvFlags::empty())? {
            Some((Outcome::Ready(Ok(())), _)) => Ok(Self {
                socket: Arc::new(socket),
                names,
                asked: VecDeque::new(),
                made: Vec::new(),
                next: 0,
            }),
            Some((Outcome::Ready(Err(told)), _)) => Err(StartError::Setup(told)),
            _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    }

    /// Returns the socket, which becomes readable with each answer and when the helper ends.
    pub(crate) fn socket(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.socket)
    }

    /// Returns the place of a path beneath the directories, if it seems to be beneath one.
    pub(crate) fn place(&self, path: &Path) -> Option<Place> {
        self.names.place(path)
    }

    /// Asks for an image.
    ///
    /// # Errors
    /// The helper has ended, or has not read earlier requests.
    pub(crate) fn ask_for_file(&mut self, place: &Place, file: FileRequest) -> io::Result<()> {
        let (directory, rest) = (place.directory, place.rest.clone());
        self.send(&Request::Open {
            directory,
            rest,
            file,
        })?;
        self.asked.push_back(None);
        Ok(())
    }

    /// Asks for a socket.
    ///
    /// # Errors
    /// As [`ask_for_file`](Self::ask_for_file).
    pub(crate) fn ask_for_socket(&mut self, place: &Place, socket: SocketRequest) -> io::Result<()> {
        self.next += 1;
        let asked = (self.next, socket.path.clone());
        self.send(&Request::Listen {
            directory: place.directory,
            rest: place.rest.clone(),
            number: self.next,
            socket,
        })?;
        self.asked.push_back(Some(asked));
        Ok(())
    }

    fn send(&self, request: &Request) -> io::Result<()> {
        send(self.socket.as_fd(), request, &[], SendFlags::DONTWAIT)
    }

    /// Returns whether there is still a file of a socket that the helper has made at `path`.
    pub(crate) fn has_socket(&self, path: &Path) -> bool {
        self.made.iter().any(|(_, made)| made == path)
    }

    /// Returns the next answer, or `None` if the helper has not answered yet. Answers come in the order of the requests.
    ///
    /// # Errors
    /// The helper has ended.
    pub(crate) fn answer(&mut self) -> io::Result<Option<Answered>> {
        let answer = self.next_answer();
        if answer.is_err() {
            // What is left is left.
            self.made.clear();
        }
        answer
    }

    fn next_answer(&mut self) -> io::Result<Option<Answered>> {
        let (outcome, fds) = match receive(&*self.socket, RecvFlags::DONTWAIT) {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        if let Outcome::Removed(removed) = outcome {
            self.made.retain(|(number, _)| *number != removed);
            return Ok(Some(Answered::REMOVED));
        }
        let mut fds = fds.into_iter();
        let file = match self.asked.pop_front().flatten() {
            Some((number, path)) if matches!(outcome, Outcome::Socket) => {
                self.made.push((number, path.clone()));
                Some(self.file(number, &path))
            }
            _ => None,
        };
        let answer = match (outcome, fds.next()) {
            (Outcome::File, Some(image)) => Answer::File(image, fds.next()),
            (Outcome::Socket, Some(socket)) => Answer::Socket(socket),
            (Outcome::Refused(refusal), _) => Answer::Refused(refusal),
            // No descriptor was free in this process.
            (Outcome::File | Outcome::Socket, None) => Answer::Refused(Refusal::Os(libc::EMFILE)),
            (Outcome::Ready(_) | Outcome::Removed(_), _) => return Err(io::ErrorKind::InvalidData.into()),
        };
        Ok(Some(Answered { answer, file }))
    }

    /// Returns the file of a socket that the helper has made. Any thread may drop it.
    fn file(&self, number: u64, path: &Path) -> SocketFile {
        let (socket, shown) = (Arc::clone(&self.socket), path.to_owned());
        SocketFile::elsewhere(path, move || {
            let request = Request::Remove { number };
            if let Err(error) = send(socket.as_fd(), &request, &[], SendFlags::DONTWAIT) {
                tracing::warn!(path = %shown.display(), %error, "cannot remove the socket file");
            }
        })
    }

    /// Ends the helper, which removes the files of its sockets first. Waits for that at most for `time`.
    pub(crate) fn end(self, time: Duration) {
        let deadline = Instant::now() + time;
        if self.send(&Request::End).is_err() {
            return;
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut polled = [PollFd::new(&*self.socket, PollFlags::IN)];
            match poll(&mut polled, left.try_into().ok().as_ref()) {
                Ok(0) => {
                    return tracing::warn!(
                        "the process that removes sockets does not answer: leaving without it"
                    );
                }
                Err(rustix::io::Errno::INTR) => continue,
                _ => {}
            }
            // Answers that nobody waits for may precede the end.
            match receive::<Outcome>(&*self.socket, RecvFlags::DONTWAIT) {
                Ok(Some(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}
