//! Advice in the words of the command line: which option mends which error.

use crate::account;
use crate::blk::device::TakeError;
use crate::daemon::{Error, HandedError};
use crate::engine;
use crate::error_chain::chain;
use crate::holders::holders;
use crate::sandbox;
use crate::storage::{self, LockError};
use crate::vhost_user::server::ServerError;

/// Status for a wrong command line: starting again cannot help.
pub const WRONG_OPTION: u8 = 2;
/// Status for everything else, such as a missing image.
const FAILURE: u8 = 1;

/// Explains in one line what failed and what to do, and returns the exit status for it.
pub fn explain(error: &Error) -> (String, u8) {
    let (option, advice) = (option(error), advice(error));
    let mut text = chain(error);
    if let Some(option) = option {
        text = format!("{option}: {text}");
    }
    if let Some(advice) = advice {
        text = format!("{text}; {advice}");
    }
    (text, status(error))
}

fn status(error: &Error) -> u8 {
    match error {
        Error::Handed(HandedError::Number(_) | HandedError::Access | HandedError::None(_))
        | Error::User(account::Error::Unknown { .. } | account::Error::NoGroup(_))
        | Error::Group(account::Error::Unknown { .. } | account::Error::NoGroup(_)) => WRONG_OPTION,
        _ => FAILURE,
    }
}

/// Returns the option whose value is wrong.
fn option(error: &Error) -> Option<&'static str> {
    Some(match error {
        Error::Handed(HandedError::Number(_)) => "--fd",
        Error::Handed(HandedError::None(_)) => "--socket-path missing",
        Error::User(_) => "--user",
        Error::Group(_) => "--socket-group",
        Error::Pin { .. } => "--iothread-cpus",
        _ => return None,
    })
}

fn advice(error: &Error) -> Option<String> {
    let words = match error {
        Error::Handed(HandedError::None(_)) => "name the socket to listen on, e.g. --socket-path disk.sock",
        Error::Handed(HandedError::Access) => {
            "leave --socket-mode and --socket-group out, they are for --socket-path"
        }
        Error::Image(error) => return storage_advice(error),
        Error::Format { path, .. } => {
            let path = path.display();
            return Some(format!(
                "convert it ('qemu-img convert -O raw {path} {path}.raw'), serve it with qemu-storage-daemon, or add \
                 --format raw if it is a raw disk whose guest has written that"
            ));
        }
        Error::Take(TakeError::Lock(error)) => return lock_advice(error),
        Error::Engine(error) => engine_advice(error)?,
        Error::User(account::Error::Become { .. }) => "start as root, or as that user without --user",
        Error::Server(error) => server_advice(error)?,
        Error::Sandbox(sandbox::Error::Missing(_)) => {
            "--sandbox on does not start without all of it, --sandbox auto would"
        }
        Error::Sandbox(sandbox::Error::Account(_)) => "start as root, or as that user without --user",
        _ => return None,
    };
    Some(words.to_owned())
}

fn storage_advice(error: &storage::Error) -> Option<String> {
    Some(match error {
        storage::Error::NotWritable { .. } => "change that, or serve it with --read-only".to_owned(),
        storage::Error::DeviceSize { .. } => "choose a smaller --logical-block-size".to_owned(),
        storage::Error::BlockSize { .. } => "choose another --logical-block-size".to_owned(),
        storage::Error::BlockSizeTooSmall { least, .. } => {
            format!("leave --logical-block-size out or make it {least}")
        }
        storage::Error::Direct { .. } => "leave --direct out".to_owned(),
        _ => return None,
    })
}

fn engine_advice(error: &engine::Error) -> Option<&'static str> {
    Some(match error {
        engine::Error::IoUring(_) | engine::Error::Native(_) | engine::Error::NoFile => {
            "choose --aio threads or auto"
        }
        engine::Error::NativeBuffered => "--aio native needs --direct",
        engine::Error::Timer => "leave --aio out",
        _ => return None,
    })
}

fn server_advice(error: &ServerError) -> Option<&'static str> {
    Some(match error {
        ServerError::InUse(..) => "end that first, or choose another --socket-path",
        ServerError::NotASocket(_) => "remove it, or choose another --socket-path",
        ServerError::Directory { .. } => "change that, or choose another --socket-path",
        ServerError::Grant { .. } => {
            "only a member of a group may give it a file (--socket-group), and only root may give a file to another \
             user (--user)"
        }
        _ => return None,
    })
}

fn lock_advice(error: &LockError) -> Option<String> {
    let LockError::InUse { path, how } = error else {
        return None;
    };
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
        storage::LockError::READER => ", or serve it beside that with --read-only",
        _ => "",
    };
    Some(format!(
        "{who}: end that first{beside}, or use --incoming if it is the source of a live migration to here"
    ))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn told(error: impl Into<Error>) -> String {
        let (text, status) = explain(&error.into());
        assert!(!text.contains('\n'), "{text}");
        assert_eq!(status, FAILURE);
        text
    }

    fn os(errno: i32) -> io::Error {
        io::Error::from_raw_os_error(errno)
    }

    #[test]
    fn causes_come_before_advice() {
        let text = told(engine::Error::IoUring(os(libc::EPERM)));
        assert!(text.starts_with("no io_uring: it is switched off"), "{text}");
        assert!(
            text.ends_with("(os error 1); choose --aio threads or auto"),
            "{text}"
        );
    }

    #[test]
    fn errors_name_the_options_that_mend_them() {
        let path = std::path::PathBuf::from("disk.img");
        for (text, option) in [
            (told(engine::Error::Native(os(libc::EAGAIN))), "--aio threads"),
            (told(engine::Error::NoFile), "--aio threads"),
            (told(engine::Error::NativeBuffered), "needs --direct"),
            (told(engine::Error::Timer), "leave --aio out"),
            (
                told(storage::Error::Direct {
                    path: path.clone(),
                    source: os(libc::EINVAL),
                }),
                "leave --direct out",
            ),
            (
                told(storage::Error::DeviceSize {
                    path: path.clone(),
                    size: 2560,
                    block: 4096,
                }),
                "smaller --logical-block-size",
            ),
            (
                told(storage::Error::BlockSize { size: 1000 }),
                "--logical-block-size",
            ),
            (
                told(storage::Error::NotWritable {
                    path: path.clone(),
                    why: "no".to_owned(),
                    source: os(libc::EACCES),
                }),
                "--read-only",
            ),
            (
                told(LockError::InUse {
                    path: path.clone(),
                    how: LockError::READER,
                }),
                "--read-only",
            ),
            (told(ServerError::NotASocket(path)), "--socket-path"),
            (
                told(sandbox::Error::Missing("no Landlock".to_owned())),
                "--sandbox auto",
            ),
        ] {
            assert!(text.contains(option), "{text}");
        }
    }

    #[test]
    fn wrong_options_have_their_own_status() {
        let unknown = account::Error::NoGroup("7".to_owned());
        let (text, status) = explain(&Error::User(unknown));
        assert_eq!(status, WRONG_OPTION);
        assert!(text.starts_with("--user: user 7"), "{text}");
        let (text, status) = explain(&HandedError::None(String::new()).into());
        assert_eq!(status, WRONG_OPTION);
        assert!(text.starts_with("--socket-path missing"), "{text}");
    }
}
