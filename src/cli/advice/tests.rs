//! Errors as people read them.

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

/// Makes an error, once for each form.
type Make<'a> = &'a dyn Fn() -> OperationError;

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
        image: None,
    };
    let block = || storage::Error::BlockSize { size: 1000 };
    let rows: [(Make, [&str; 2]); 10] = [
        (
            &|| engine::Error::Native(os(libc::EAGAIN)).into(),
            ["--aio threads", "aio=threads"],
        ),
        (&|| engine::Error::NoFile.into(), ["--aio threads", "aio=threads"]),
        (
            &|| engine::Error::NativeBuffered.into(),
            ["needs --direct", "cache.direct=on"],
        ),
        (
            &|| engine::Error::Timer.into(),
            ["leave --aio out", "leave aio out"],
        ),
        (&|| direct().into(), ["leave --direct out", "cache.direct"]),
        (
            &|| device().into(),
            ["smaller --logical-block-size", "smaller logical-block-size"],
        ),
        (&|| block().into(), ["--logical-block-size", "logical-block-size"]),
        (&|| denied().into(), ["--read-only", "auto-read-only=on"]),
        (&|| read().into(), ["--read-only", "read-only=on"]),
        (
            &|| ServerError::NotASocket(path()).into(),
            ["--socket-path", "addr.path"],
        ),
    ];
    for (error, [short, long]) in rows {
        for (form, option) in [(Form::Short, short), (Form::Long, long)] {
            let text = told(error(), form);
            assert!(text.contains(option), "{text}");
        }
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
