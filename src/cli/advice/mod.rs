//! Gives advice in the words of the command line: the option to change for each error.

use super::config::place::Place;
use super::socket_advice::{metrics_advice, server_advice};
use crate::account;
use crate::blk::device::TakeError;
use crate::ceph;
use crate::daemon::options::Driver;
use crate::daemon::registry::OperationError;
use crate::daemon::{Error, MetricsError, Verb};
use crate::engine::{self, Qcow2OpenError};
use crate::error_chain::chain;
use crate::holders::holders;
use crate::sandbox;
use crate::storage::{self, LockError};

/// Exit status for a wrong command line: another start cannot help.
pub const WRONG_OPTION: u8 = 2;
/// Exit status for all other failures, such as a missing image.
const FAILURE: u8 = 1;

/// The forms in which disks can be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One disk, with an option for each of its properties.
    Short,
    /// Objects, nodes and exports, as qemu-storage-daemon has them.
    Long,
}

/// The advice, in the words of one form.
struct Words {
    read_only: &'static str,
    smaller_block: &'static str,
    other_block: &'static str,
    no_direct: &'static str,
    threads: &'static str,
    native_needs: &'static str,
    no_aio: &'static str,
    no_registration: &'static str,
    registration_needs: &'static str,
    socket: &'static str,
    access: &'static str,
    incoming: &'static str,
    raw: &'static str,
    no_look: &'static str,
    qcow2: &'static str,
}

const SHORT: Words = Words {
    read_only: "serve it with --read-only",
    smaller_block: "choose a smaller --logical-block-size",
    other_block: "choose another --logical-block-size",
    no_direct: "leave --direct out",
    threads: "choose --aio threads or auto",
    native_needs: "--aio native needs --direct",
    no_aio: "leave --aio out",
    no_registration: "leave --register-memory out",
    registration_needs: "--register-memory needs --direct or --aio io_uring",
    socket: "choose another --socket-path",
    access: "leave --socket-mode and --socket-group out, they are for --socket-path",
    incoming: "use --incoming",
    raw: "add --format raw",
    no_look: "add --format raw",
    qcow2: "add --format qcow2 to serve the disk inside",
};

const LONG: Words = Words {
    read_only: "open it with read-only=on or auto-read-only=on",
    smaller_block: "choose a smaller logical-block-size",
    other_block: "choose another logical-block-size",
    no_direct: "leave cache.direct out",
    threads: "choose aio=threads, or leave aio out",
    native_needs: "aio=native needs cache.direct=on",
    no_aio: "leave aio out",
    no_registration: "leave register-memory out",
    registration_needs: "register-memory=on needs a file node with cache.direct=on or aio=io_uring",
    socket: "choose another addr.path",
    access: "leave addr.mode and addr.group out",
    incoming: "add active=off to the node and allow-inactive=on to the export",
    raw: "use driver=raw",
    no_look: "leave x-probe out",
    qcow2: "use driver=qcow2 to serve the disk inside",
};

impl Form {
    fn words(self) -> &'static Words {
        match self {
            Self::Short => &SHORT,
            Self::Long => &LONG,
        }
    }
}

/// Explains why an engine cannot be used.
pub(super) fn explain_engine(error: &engine::Error) -> String {
    with_advice(chain(error), engine_advice(error, &SHORT).map(str::to_owned))
}

/// Explains in one line what failed and what to do. `place` is the table of a configuration file that asked for the
/// operation that failed. Returns the exit status.
pub(super) fn explain(error: &Error, form: Form, place: Option<&Place>) -> (String, u8) {
    let advice = match (error, operation(error)) {
        (_, Some(operation)) => operation_advice(operation, form.words()),
        (Error::User(account::Error::Become { .. }), _) | (Error::Sandbox(sandbox::Error::Account(_)), _) => {
            Some("start as root, or as that user without --user".to_owned())
        }
        (Error::Sandbox(sandbox::Error::Missing(_)), _) => {
            Some("--sandbox on does not start without all of it, --sandbox auto would".to_owned())
        }
        (Error::MetricsSocket(error), _) => metrics_advice(error),
        _ => None,
    };
    let text = with_advice(chain(error), advice);
    let option = match place {
        Some(place) => Some(place.told(key(error))),
        None => option(error, form).map(str::to_owned),
    };
    match option {
        Some(option) => (format!("{option}: {text}"), status(error)),
        None => (text, status(error)),
    }
}

/// Returns the key whose value is wrong, if it is known.
fn key(error: &Error) -> &str {
    match operation(error) {
        Some(OperationError::Value(error)) => error.path(),
        _ => "",
    }
}

fn with_advice(text: String, advice: Option<String>) -> String {
    match advice {
        Some(advice) => format!("{text}; {advice}"),
        None => text,
    }
}

/// Returns the error of a registry operation, if one has failed.
fn operation(error: &Error) -> Option<&OperationError> {
    match error {
        Error::Operation { source, .. } => Some(source),
        Error::Serve(source) => Some(source),
        _ => None,
    }
}

fn status(error: &Error) -> u8 {
    let unknown =
        |error: &account::Error| matches!(error, account::Error::Unknown { .. } | account::Error::NoGroup(_));
    let wrong = match error {
        Error::Descriptor(_) => true,
        Error::User(error) | Error::MetricsSocket(MetricsError::Group(error)) => unknown(error),
        _ => match operation(error) {
            Some(OperationError::Group(error)) => unknown(error),
            Some(error) => is_wrong_option(error),
            None => false,
        },
    };
    if wrong { WRONG_OPTION } else { FAILURE }
}

/// Returns whether the command line is wrong on any machine.
fn is_wrong_option(error: &OperationError) -> bool {
    if let OperationError::Image(storage::Error::BlockSize { .. }) = error {
        return true;
    }
    !matches!(
        error,
        OperationError::Format { .. }
            | OperationError::Image(_)
            | OperationError::Qcow2(_)
            | OperationError::Take(_)
            | OperationError::Engine(_)
            | OperationError::Server(_)
            | OperationError::Secret { .. }
            | OperationError::Activation(_)
            | OperationError::IoThread { .. }
            | OperationError::Gone(_)
            | OperationError::Pin { .. }
            | OperationError::Device(_)
            | OperationError::Sandbox(_)
            | OperationError::Add(_)
            | OperationError::Ceph(_)
            | OperationError::Connector(_)
            | OperationError::Nbd(_)
            | OperationError::Thread { .. }
    )
}

/// Returns the option whose value is wrong.
fn option(error: &Error, form: Form) -> Option<&'static str> {
    match (error, form) {
        (Error::User(_), _) => Some("--user"),
        (Error::PidFile { .. }, _) => Some("--pidfile"),
        (Error::MetricsSocket(_), _) => Some("--metrics"),
        (Error::Opener(_), _) => Some("--sandbox-path"),
        (Error::Descriptor(_), Form::Short) => Some("--fd"),
        (Error::Descriptor(_), Form::Long) => Some("--export"),
        (Error::Operation { verb, .. }, Form::Long) => Some(match verb {
            Verb::Object => "--object",
            Verb::Blockdev => "--blockdev",
            Verb::Export => "--export",
        }),
        (_, Form::Short) => match operation(error)? {
            OperationError::Descriptor(_) => Some("--fd"),
            OperationError::NoActivation(_) => Some("--socket-path missing"),
            OperationError::Group(_) => Some("--socket-group"),
            OperationError::Pin { .. } => Some("--iothread-cpus"),
            _ => None,
        },
        _ => None,
    }
}

fn operation_advice(error: &OperationError, words: &Words) -> Option<String> {
    let told = match error {
        OperationError::NoActivation(_) => "name the socket to listen on, e.g. --socket-path disk.sock",
        OperationError::ActivationAccess => words.access,
        OperationError::Image(error) => return storage_advice(error, words),
        OperationError::Qcow2(Qcow2OpenError::Named { source, .. }) => {
            return match source {
                storage::Error::Missing { .. } => Some("put that file back".to_owned()),
                error => storage_advice(error, words),
            };
        }
        OperationError::Format {
            driver: Driver::Nbd, ..
        } => {
            return Some(format!(
                "let the server serve the disk inside ('qemu-nbd -f FORMAT'), or {} if it is a raw disk whose guest has \
                 written that",
                words.raw
            ));
        }
        OperationError::Format {
            path,
            driver: Driver::Rbd,
            ..
        } => {
            return Some(format!(
                "convert it ('qemu-img convert -O raw {}' takes such names too), or {} if it is a raw disk whose guest has \
                 written that",
                path.display(),
                words.raw
            ));
        }
        OperationError::Format { format: "qcow2", .. } => {
            return Some(format!(
                "{}, or {} if it is a raw disk whose guest has written that",
                words.qcow2, words.raw
            ));
        }
        OperationError::Format { path, .. } => {
            let (path, raw) = (path.display(), words.raw);
            return Some(format!(
                "convert it ('qemu-img convert -O raw {path} {path}.raw'), serve it with qemu-storage-daemon, or {raw} if \
                 it is a raw disk whose guest has written that"
            ));
        }
        OperationError::Nbd(engine::NbdOpenError::Unread { .. })
        | OperationError::Ceph(ceph::Error::Unread { .. }) => {
            return Some(unread_advice(words));
        }
        OperationError::Take(TakeError::Lock(error)) => return lock_advice(error, words),
        OperationError::Engine(error) => engine_advice(error, words)?,
        OperationError::Server(error) => return server_advice(error, words.socket),
        _ => return None,
    };
    Some(told.to_owned())
}

/// The advice for an image of unknown format.
fn unread_advice(words: &Words) -> String {
    format!("try again, or {} if it is a raw disk", words.no_look)
}

fn storage_advice(error: &storage::Error, words: &Words) -> Option<String> {
    Some(match error {
        storage::Error::Denied { .. } => {
            "change that (chmod, chgrp, setfacl) or start the daemon as another user".to_owned()
        }
        storage::Error::Unread { .. } => unread_advice(words),
        storage::Error::NotWritable { .. } => format!("change that, or {}", words.read_only),
        storage::Error::DeviceSize { .. } => words.smaller_block.to_owned(),
        storage::Error::BlockSize { .. } => words.other_block.to_owned(),
        storage::Error::BlockSizeTooSmall { least, .. } => {
            format!("leave the logical block size out or make it {least}")
        }
        storage::Error::Direct { .. } => words.no_direct.to_owned(),
        _ => return None,
    })
}

fn engine_advice(error: &engine::Error, words: &Words) -> Option<&'static str> {
    Some(match error {
        engine::Error::IoUring(_) | engine::Error::Native(_) | engine::Error::NoFile => words.threads,
        engine::Error::NativeBuffered => words.native_needs,
        engine::Error::Timer => words.no_aio,
        engine::Error::NothingRegistered => words.registration_needs,
        engine::Error::NoMemoryTable => words.no_registration,
        _ => return None,
    })
}

fn lock_advice(error: &LockError, words: &Words) -> Option<String> {
    let (path, how, image) = match error {
        LockError::InUse { path, how, image } => (path, how, image),
        LockError::Kept { .. } => {
            return Some(
                "see the log for the error of the flush, end this process, and check the image".to_owned(),
            );
        }
        _ => return None,
    };
    if *how == LockError::OURSELVES {
        return Some("give it one export, or make all of its nodes and exports read-only".to_owned());
    }
    let who = match holders(path) {
        Some(processes) => format!("it is open in {processes}"),
        None => {
            let path = path.display();
            format!(
                "most likely a virtual machine, qemu-img or another vhost-user-blk ('fuser -v {path}' as root shows it)"
            )
        }
    };
    let beside = match *how {
        LockError::READER => format!(", or {} beside that", words.read_only),
        _ => String::new(),
    };
    let migration = match image {
        // A disk in a qcow2 image cannot be inactive.
        Some(_) => String::new(),
        None => format!(
            ", or {} if it is the source of a live migration to here",
            words.incoming
        ),
    };
    Some(format!("{who}: end that first{beside}{migration}"))
}

#[cfg(test)]
mod tests;
