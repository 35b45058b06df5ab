//! Daemons of different versions take over from each other.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use testkit::daemon::{Daemon, HAND_OVER, SOCKET};
use testkit::frontend::Op;
use testkit::skip::skipped;

use crate::take_over::{Service, under_load, wait_for_more};

#[test]
fn versions_without_a_common_format_are_told() {
    let mut service = Service::start(&[]);
    let refusal = ask(&service, &hello(7, 9));
    for words in [
        "refused",
        "hands over in formats 1 to 2",
        "9.9.9 takes over in formats 7 to 9",
    ] {
        assert!(refusal.contains(words), "{refusal}");
    }
    let output = service.first.output();
    assert_eq!(output.matches("nothing is handed over").count(), 1, "{output}");
    for foreign in [r#"{"hello":{}}"#, r#"{"colour":"green"}"#, "{", r#""ready""#] {
        assert!(ask(&service, foreign).contains("refused"), "{foreign}");
    }
    service.take_over(&[]);
}

#[test]
fn a_version_that_knows_no_images_in_a_format_is_refused() {
    let image = tempfile::NamedTempFile::new().expect("make a file");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(image.path())
        .arg("1M")
        .status();
    if !made.is_ok_and(|status| status.success()) {
        return skipped("qemu-img makes the image");
    }
    let dir = tempfile::tempdir().expect("make a directory");
    let path = image.path().to_str().expect("the path is UTF-8");
    let disk = ["--socket-path", SOCKET, "--blk-file", path, "--format", "qcow2"];
    let first = Daemon::start_with(dir, &[&disk[..], &["--hand-over", HAND_OVER]].concat());
    let mut service = Service {
        first,
        later: Vec::new(),
    };
    let [hello, refusal] = answers(&service, &hello(1, 1));
    assert!(hello.contains("hello"), "{hello}");
    assert!(
        refusal.contains("driver 'qcow2', which cannot be handed over"),
        "{refusal}"
    );
    let mut frontend = service.connect(1, 1);
    service.take_over(&[]);
    assert_eq!(frontend.queue(0).run(&Op::Read { offset: 0, len: 512 }).ret, 0);
}

#[test]
fn format_1_has_no_fields_of_format_2() {
    let service = Service::start(&[]);
    let [_, everything] = answers(&service, &hello(1, 1));
    assert!(everything.contains("\"node"), "{everything}");
    assert!(!everything.contains("files"), "{everything}");
}

#[test]
#[ignore = "needs a program of another version: scripts/test-versions"]
fn an_older_version_takes_over_and_hands_back() {
    let other = std::env::var_os("OTHER_VERSION").map(PathBuf::from);
    let other = other.expect("OTHER_VERSION is the path of the other version's program");
    let mut service = Service::start(&[]);
    under_load(&mut service, |service, completed| {
        for _ in 0..5 {
            wait_for_more(completed);
            service.take_over_by(&other, &[]);
            wait_for_more(completed);
            service.take_over(&[]);
        }
        wait_for_more(completed);
    });
}

/// What a program with these formats says first.
fn hello(oldest: u32, newest: u32) -> String {
    format!(
        r#"{{"hello":{{"newest":{newest},"oldest":{oldest},"program":"vhost-user-blk 9.9.9","more":[]}}}}"#
    )
}

/// Sends a message as another version does. Returns the first answer.
fn ask(service: &Service, text: &str) -> String {
    let [answer] = answers(service, text);
    answer
}

/// Sends a message as another version does. Returns the first answers.
fn answers<const NUMBER: usize>(service: &Service, text: &str) -> [String; NUMBER] {
    let mut stream = UnixStream::connect(service.dir().join(HAND_OVER)).expect("connect");
    let len = u32::try_from(text.len()).expect("a short text");
    let frame = [b"vubt", &len.to_le_bytes()[..], &[0; 4], text.as_bytes()].concat();
    stream.write_all(&frame).expect("send");
    [(); NUMBER].map(|()| {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("receive");
        let len = u32::from_le_bytes([4, 5, 6, 7].map(|at: usize| answer[at]));
        let mut text = vec![0; len as usize];
        stream.read_exact(&mut text).expect("receive");
        String::from_utf8(text).expect("the answer is text")
    })
}
