//! Opens images and sockets by name after the sandbox has taken all names away.
//!
//! The [`opener`](crate::opener) opens those beneath its directories, before the operation that needs them runs. Such
//! operations run one after the other, each when all that it names is open. No thread waits for them.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::error::OperationError;
use super::waiting::{Given, OpenedFile, Waiting, Wanted};
use super::{Done, Registry};
use crate::account::Groups;
use crate::daemon::options::{BlockdevOptions, ExportOptions};
use crate::opener::{Answer, Answered, FileRequest, Opener, Refusal};
use crate::storage;
use crate::vhost_user::path::is_ours;
use crate::vhost_user::server::{Server, ServerError};

impl Registry {
    /// Opens names through `opener` once the sandbox takes them away. `hint` is the advice for all other names.
    pub(in crate::daemon) fn set_opener(&mut self, opener: Option<Opener>, hint: &'static str) {
        if opener.is_some() {
            self.sockets.groups = Groups::remember();
        }
        self.names.opener = opener;
        self.names.hint = hint;
    }

    /// Returns the descriptor that becomes readable with each answer of the opener.
    pub(in crate::daemon) fn opener_socket(&self) -> Option<Arc<OwnedFd>> {
        self.names.opener.as_ref().map(Opener::socket)
    }

    /// Ends the opener, which removes the sockets that are left.
    pub(in crate::daemon) fn end_opener(&mut self, time: Duration) {
        self.names.waiting.clear();
        if let Some(opener) = self.names.opener.take() {
            opener.end(time);
        }
    }

    /// Returns the images that these nodes need by name.
    pub(super) fn wanted_files<'a>(
        &self,
        list: impl IntoIterator<Item = &'a BlockdevOptions>,
    ) -> Result<VecDeque<Wanted>, OperationError> {
        let files = list
            .into_iter()
            .filter_map(|options| self.nodes.named_file(options));
        let wanted = |(path, request): (PathBuf, FileRequest)| match self.names.place(&path) {
            Some(place) => Ok(Wanted::File(path, place, request)),
            None => Err(OperationError::Confined {
                path,
                hint: self.names.hint,
            }),
        };
        files.map(wanted).collect()
    }

    /// Returns the socket that an export needs by name.
    pub(super) fn wanted_socket(&self, options: &ExportOptions) -> Result<VecDeque<Wanted>, OperationError> {
        let Some((path, request)) = self.sockets.named(&options.addr)? else {
            return Ok(VecDeque::new());
        };
        // Before a socket is made, because most mistakes show here.
        self.check_export(options)?;
        if is_ours(&path) {
            return Err(ServerError::Ours(path).into());
        }
        match self.names.place(&path) {
            Some(place) => Ok([Wanted::Socket(path, place, request)].into()),
            None => Err(OperationError::ConfinedSocket {
                path,
                hint: self.names.hint,
            }),
        }
    }

    /// Starts an operation when everything that it wants is open: at once, if it wants nothing.
    pub(super) fn run_with(
        &mut self,
        wanted: Result<VecDeque<Wanted>, OperationError>,
        done: Done,
        run: impl FnOnce(&mut Self, Given, Done) + Send + 'static,
    ) {
        match wanted {
            Err(refusal) => done(Err(refusal)),
            Ok(wanted) if wanted.is_empty() => run(self, Given::default(), done),
            Ok(wanted) => {
                self.names.waiting.push_back(Waiting {
                    wanted,
                    given: Given::default(),
                    run: Box::new(run),
                    done,
                });
                if self.names.waiting.len() == 1 {
                    self.go_on();
                }
            }
        }
    }

    /// Asks for the next name that the first operation wants, or runs it.
    fn go_on(&mut self) {
        while let Some(first) = self.names.waiting.front() {
            let asked = match (first.wanted.front(), &mut self.names.opener) {
                (Some(Wanted::File(_, place, request)), Some(opener)) => opener.ask_for_file(place, *request),
                (Some(Wanted::Socket(_, place, request)), Some(opener)) => {
                    opener.ask_for_socket(place, request.clone())
                }
                (Some(_), None) => Err(io::ErrorKind::NotConnected.into()),
                (None, _) => {
                    self.run_first();
                    continue;
                }
            };
            match asked {
                Ok(()) => return,
                Err(_) => self.fail_first(OperationError::NoOpener),
            }
        }
    }

    fn run_first(&mut self) {
        let Some(first) = self.names.waiting.pop_front() else {
            return;
        };
        (first.run)(self, first.given, first.done);
    }

    fn fail_first(&mut self, error: OperationError) {
        if let Some(first) = self.names.waiting.pop_front() {
            (first.done)(Err(error));
        }
    }

    /// Takes the answers of the opener. Returns false if it has ended: then there will be no more.
    pub(in crate::daemon) fn take_answers(&mut self) -> bool {
        loop {
            match self.names.opener.as_mut().map(Opener::answer) {
                Some(Ok(Some(Answered {
                    answer: Answer::Removed,
                    ..
                }))) => self.follow_up(),
                Some(Ok(Some(answered))) => {
                    if let Err(refusal) = self.take(answered) {
                        self.fail_first(refusal);
                    }
                    self.go_on();
                }
                Some(Ok(None)) => return true,
                Some(Err(error)) => {
                    tracing::error!(
                        %error,
                        "the process that opens files beneath the sandbox's directories has ended: until this daemon \
                         is restarted, disks can be added only by descriptors"
                    );
                    // Its directories are still known, and each further request fails.
                    self.go_on();
                    self.follow_up();
                    return false;
                }
                None => return false,
            }
        }
    }

    /// Keeps an answer for the first operation.
    fn take(&mut self, answered: Answered) -> Result<(), OperationError> {
        let hint = self.names.hint;
        let first = self.names.waiting.front_mut();
        let Some((first, wanted)) = first
            .and_then(|first| Some((first.wanted.pop_front()?, first)))
            .map(swap)
        else {
            return Ok(());
        };
        match (wanted, answered.answer) {
            (Wanted::File(path, ..), Answer::File(image, direct)) => {
                first.given.files.push(OpenedFile {
                    path,
                    image: image.into(),
                    direct: direct.map(File::from),
                });
                Ok(())
            }
            (Wanted::Socket(path, ..), Answer::Socket(socket)) => {
                let file = answered.file.ok_or(OperationError::NoOpener)?;
                tracing::debug!(path = %path.display(), "the opener has made a socket");
                first.given.server = Some(Server::on(UnixListener::from(socket), file)?);
                Ok(())
            }
            (Wanted::File(path, ..), Answer::Refused(refusal)) => Err(no_file(path, refusal, hint)),
            (Wanted::Socket(path, ..), Answer::Refused(refusal)) => Err(no_socket(path, refusal, hint)),
            (_, Answer::File(..) | Answer::Socket(_) | Answer::Removed) => Err(OperationError::NoOpener),
        }
    }
}

fn swap<A, B>((a, b): (A, B)) -> (B, A) {
    (b, a)
}

fn no_file(path: PathBuf, refusal: Refusal, hint: &'static str) -> OperationError {
    match refusal {
        Refusal::LeadsOut => OperationError::LeadsOut { path, hint },
        Refusal::Kind => storage::Error::Kind {
            path,
            kind: "special file",
        }
        .into(),
        Refusal::Os(errno) => {
            let source = io::Error::from_raw_os_error(errno);
            storage::Error::Open { path, source }.into()
        }
        Refusal::Told(told) => {
            let source = io::Error::other(told);
            storage::Error::Open { path, source }.into()
        }
    }
}

fn no_socket(path: PathBuf, refusal: Refusal, hint: &'static str) -> OperationError {
    match refusal {
        Refusal::LeadsOut | Refusal::Kind => OperationError::LeadsOut { path, hint },
        Refusal::Os(errno) => {
            let source = io::Error::from_raw_os_error(errno);
            ServerError::Bind { path, source }.into()
        }
        Refusal::Told(why) => ServerError::Directory { path, why }.into(),
    }
}
