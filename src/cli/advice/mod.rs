//! Gives advice in the words of the command line: the option to change for each error.

use super::config::place::Place;
use super::socket_advice::{metrics_advice, server_advice};
use crate::account;
use crate::blk::device::TakeError;
use crate::daemon::registry::OperationError;
use crate::daemon::{Error, MetricsError, Verb};
use crate::engine;
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
    socket: &'static str,
    access: &'static str,
    incoming: &'static str,
    raw: &'static str,
}

const SHORT: Words = Words {
    read_only: "serve it with --read-only",
    smaller_block: "choose a smaller --logical-block-size",
    other_block: "choose another --logical-block-size",
    no_direct: "leave --direct out",
    threads: "choose --aio threads or auto",
    native_needs: "--aio native needs --direct",
    no_aio: "leave --aio out",
    socket: "choose another --socket-path",
    access: "leave --socket-mode and --socket-group out, they are for --socket-path",
    incoming: "use --incoming",
    raw: "add --format raw",
};

const LONG: Words = Words {
    read_only: "open it with read-only=on or auto-read-only=on",
    smaller_block: "choose a smaller logical-block-size",
    other_block: "choose another logical-block-size",
    no_direct: "leave cache.direct out",
    threads: "choose aio=threads, or leave aio out",
    native_needs: "aio=native needs cache.direct=on",
    no_aio: "leave aio out",
    socket: "choose another addr.path",
    access: "leave addr.mode and addr.group out",
    incoming: "add active=off to the node and allow-inactive=on to the export",
    raw: "use driver=raw",
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
        OperationError::Format { path, .. } => {
            let (path, raw) = (path.display(), words.raw);
            return Some(format!(
                "convert it ('qemu-img convert -O raw {path} {path}.raw'), serve it with qemu-storage-daemon, or {raw} if \
                 it is a raw disk whose guest has written that"
            ));
        }
        OperationError::Take(TakeError::Lock(error)) => return lock_advice(error, words),
        OperationError::Engine(error) => engine_advice(error, words)?,
        OperationError::Server(error) => return server_advice(error, words.socket),
        _ => return None,
    };
    Some(told.to_owned())
}

fn storage_advice(error: &storage::Error, words: &Words) -> Option<String> {
    Some(match error {
        storage::Error::Denied { .. } => {
            "change that (chmod, chgrp, setfacl) or start the daemon as another user".to_owned()
        }
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
        _ => return None,
    })
}

fn lock_advice(error: &LockError, words: &Words) -> Option<String> {
    let LockError::InUse { path, how } = error else {
        return None;
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
    let incoming = words.incoming;
    Some(format!(
        "{who}: end that first{beside}, or {incoming} if it is the source of a live migration to here"
    ))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use super::*;
    use crate::vhost_user::server::ServerError;

    fn told(error: impl Into<OperationError>, form: Form) -> String {
        let error = Error::Operation {
            verb: Verb::Blockdev,
            number: 0,
            source: Box::new(error.into()),
        };
        let (text, status) = explain(&error, form, None);
        assert!(!text.contains('\n'), "{text}");
        let expected = match text.contains("logical block size 1000") {
            true => WRONG_OPTION,
            false => FAILURE,
        };
        assert_eq!(status, expected, "{text}");
        text
    }

    fn os(errno: i32) -> io::Error {
        io::Error::from_raw_os_error(errno)
    }

    #[test]
    fn causes_come_before_advice() {
        let text = told(engine::Error::IoUring(os(libc::EPERM)), Form::Short);
        assert!(text.starts_with("no io_uring: it is disabled"), "{text}");
        assert!(
            text.ends_with("(os error 1); choose --aio threads or auto"),
            "{text}"
        );
        let text = told(engine::Error::IoUring(os(libc::EPERM)), Form::Long);
        assert!(text.starts_with("--blockdev: no io_uring: "), "{text}");
        assert!(text.ends_with("; choose aio=threads, or leave aio out"), "{text}");
    }

    #[test]
    fn errors_name_the_options_that_mend_them() {
        let path = || PathBuf::from("disk.img");
        let device = || storage::Error::DeviceSize {
            path: path(),
            size: 2560,
            block: 4096,
        };
        let direct = || storage::Error::Direct {
            path: path(),
            source: os(libc::EINVAL),
        };
        let denied = || storage::Error::NotWritable {
            path: path(),
            why: "no".to_owned(),
            source: os(libc::EACCES),
        };
        let read = || LockError::InUse {
            path: path(),
            how: LockError::READER,
        };
        let block = || storage::Error::BlockSize { size: 1000 };
        for (short, long, option) in [
            (
                told(engine::Error::Native(os(libc::EAGAIN)), Form::Short),
                told(engine::Error::Native(os(libc::EAGAIN)), Form::Long),
                ["--aio threads", "aio=threads"],
            ),
            (
                told(engine::Error::NoFile, Form::Short),
                told(engine::Error::NoFile, Form::Long),
                ["--aio threads", "aio=threads"],
            ),
            (
                told(engine::Error::NativeBuffered, Form::Short),
                told(engine::Error::NativeBuffered, Form::Long),
                ["needs --direct", "cache.direct=on"],
            ),
            (
                told(engine::Error::Timer, Form::Short),
                told(engine::Error::Timer, Form::Long),
                ["leave --aio out", "leave aio out"],
            ),
            (
                told(direct(), Form::Short),
                told(direct(), Form::Long),
                ["leave --direct out", "cache.direct"],
            ),
            (
                told(device(), Form::Short),
                told(device(), Form::Long),
                ["smaller --logical-block-size", "smaller logical-block-size"],
            ),
            (
                told(block(), Form::Short),
                told(block(), Form::Long),
                ["--logical-block-size", "logical-block-size"],
            ),
            (
                told(denied(), Form::Short),
                told(denied(), Form::Long),
                ["--read-only", "auto-read-only=on"],
            ),
            (
                told(read(), Form::Short),
                told(read(), Form::Long),
                ["--read-only", "read-only=on"],
            ),
            (
                told(ServerError::NotASocket(path()), Form::Short),
                told(ServerError::NotASocket(path()), Form::Long),
                ["--socket-path", "addr.path"],
            ),
        ] {
            assert!(short.contains(option[0]), "{short}");
            assert!(long.contains(option[1]), "{long}");
        }
        let missing = Error::Sandbox(sandbox::Error::Missing("no Landlock".to_owned()));
        assert!(explain(&missing, Form::Short, None).0.contains("--sandbox auto"));
    }

    #[test]
    fn wrong_options_have_their_own_status() {
        let unknown = account::Error::NoGroup("7".to_owned());
        let (text, status) = explain(&Error::User(unknown), Form::Short, None);
        assert_eq!(status, WRONG_OPTION);
        assert!(text.starts_with("--user: user 7"), "{text}");
        let missing = Error::Operation {
            verb: Verb::Export,
            number: 0,
            source: Box::new(OperationError::NoActivation(String::new())),
        };
        let (text, status) = explain(&missing, Form::Short, None);
        assert_eq!(status, WRONG_OPTION);
        assert!(text.starts_with("--socket-path missing"), "{text}");
    }
}
