//! Daemons of different versions take over from each other.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
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
        "hands over in formats 1 to 3",
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

/// The names of all fields that the first program with format 1 knew. It refuses all others.
const FORMAT_1: &str = "active addr aio aio-max-batch allow-inactive anonymous auto-read-only cache child conf cpu-affinity \
    data data-file detect-zeroes dir direct discard display-name driver endpoint everything export exports file filename \
    fixed-iothread follow-names force-share format group id image inject io-timeout iothread iothread-vq-mapping key-secret \
    latency-ns limits locking logical-block-size metrics mmap mode monitors name namespace no-flush node-name nodes notify \
    num-queues objects offset open-timeout options owned parents path pid-file poll-grow poll-max-ns poll-shrink pool \
    qom-type queue-size read-only read-zeroes reconnect-delay registry request-merging rerror rest serial server \
    service-manager size snapshot socket socket-name socket-path str successors thread-pool-max thread-pool-min \
    throttle-group tls-creds tls-hostname type user verify-peer vqs werror writable writethrough";

#[test]
fn format_1_has_no_later_fields() {
    let service = Service::start(&[]);
    let [_, everything] = answers(&service, &hello(1, 1));
    let everything = serde_json::from_str(&everything).expect("JSON");
    let mut found = BTreeSet::new();
    fields(&everything, &mut found);
    assert!(found.contains("nodes"), "{everything}");
    let known: BTreeSet<&str> = FORMAT_1.split(' ').collect();
    let later: Vec<_> = found.difference(&known).collect();
    assert!(later.is_empty(), "{later:?}");
}

/// Collects the names of all fields.
fn fields<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                found.insert(name);
                fields(member, found);
            }
        }
        Value::Array(members) => members.iter().for_each(|member| fields(member, found)),
        _ => {}
    }
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
