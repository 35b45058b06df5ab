//! Processes on the socket for take-overs that are silent, slow or wrong delay neither QMP clients nor signals.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::daemon::{Daemon, HAND_OVER, binary};
use testkit::frontend::Op;
use testkit::process::{DEADLINE, Process, state, wait_for};
use testkit::qmp::Qmp;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::take_over::{EARLY, LATE, Service};

/// The longest wait of a process that takes over properly. Nobody else may wait that long.
const SLOW: Duration = Duration::from_secs(3);
const MONITOR: [&str; 4] = [
    "--chardev",
    "socket,id=m,path=qmp.sock,server=on,wait=off",
    "--monitor",
    "m",
];
/// Maximum number of descriptors that the kernel passes with one message.
const MAX_FDS: usize = 253;
const FULL_HELLO: &str = r#"{"hello": {"newest": 2, "oldest": 1, "program": "a test"}}"#;

fn start() -> (Service, Qmp) {
    let service = Service::start(&MONITOR);
    let client = Qmp::connect(&service.dir().join("qmp.sock"));
    (service, client)
}

/// A process that connects to the socket for take-overs.
struct Peer(UnixStream);

impl Peer {
    fn connect(daemon: &Daemon) -> Self {
        let socket = UnixStream::connect(daemon.dir().join(HAND_OVER)).expect("connect");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        Self(socket)
    }

    fn say(&mut self, text: &str) {
        let len = u32::try_from(text.len()).expect("a short text");
        let frame = [b"vubt", &len.to_le_bytes()[..], &[0; 4], text.as_bytes()].concat();
        self.0.write_all(&frame).expect("the daemon reads");
    }

    /// Reads a message. Its descriptors are lost.
    fn hear(&mut self) -> Value {
        let mut header = [0; 12];
        self.0.read_exact(&mut header).expect("the daemon speaks");
        let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| header[at + n]));
        let groups = number(8).div_ceil(200);
        let mut text = vec![0; number(4) as usize];
        self.0.read_exact(&mut text).expect("the daemon speaks");
        self.0
            .read_exact(&mut vec![0; groups as usize])
            .expect("the daemon speaks");
        serde_json::from_slice(&text).expect("the daemon speaks JSON")
    }

    fn hear_refusal(&mut self, reason: &str) {
        let message = self.hear();
        let refusal = message["refused"]["reason"].as_str().unwrap_or_default();
        assert!(refusal.contains(reason), "{message}");
    }

    /// Becomes a process that has received everything, and says no more.
    fn get_everything(&mut self) {
        self.say(FULL_HELLO);
        assert!(self.hear()["hello"].is_object());
        assert!(self.hear()["everything"].is_object());
    }
}

/// Asserts that QMP clients are answered at once, and that the disk is served.
fn assert_served(service: &Service, client: &mut Qmp) {
    let begin = Instant::now();
    client.execute("query-block-exports", &json!({}));
    client.execute(
        "qom-set",
        &json!({"path": "/objects/io", "property": "poll-max-ns", "value": 1}),
    );
    let read = Op::Read { offset: 0, len: 512 };
    assert_eq!(service.connect(1, 1).queue(0).run(&read).ret, 0);
    let waited = begin.elapsed();
    assert!(waited < SLOW, "{waited:?}");
}

/// Asserts that the daemon obeys SIGTERM at once.
fn assert_ends(daemon: &mut Daemon) {
    let begin = Instant::now();
    daemon.signal(libc::SIGTERM);
    let exit = daemon.wait_for_exit();
    assert!(exit.status.success(), "{}", exit.output);
    let waited = begin.elapsed();
    assert!(waited < SLOW, "{waited:?}");
}

#[test]
fn silent_processes_delay_nobody() {
    let (mut service, mut client) = start();
    client.execute("object-add", &json!({"qom-type": "iothread", "id": "io"}));
    let silent = [(); 20].map(|()| Peer::connect(&service.first));
    assert_served(&service, &mut client);
    let begin = Instant::now();
    service.take_over(&[]);
    assert!(begin.elapsed() < SLOW, "{:?}", begin.elapsed());
    let more = Peer::connect(&service.first);
    let last = service.later.last_mut().expect("a process");
    last.signal(libc::SIGTERM);
    let begin = Instant::now();
    assert!(last.wait().success());
    assert!(begin.elapsed() < SLOW, "{:?}", begin.elapsed());
    drop((silent, more));
}

#[test]
fn silent_processes_are_disconnected() {
    let (service, _client) = start();
    let mut silent = Peer::connect(&service.first);
    assert_eq!(silent.0.read(&mut [0]).expect("the end"), 0);
    assert!(service.first.output().contains("said nothing"));
}

#[test]
fn a_process_that_sends_too_many_descriptors_harms_nobody() {
    let (service, mut client) = start();
    client.execute("object-add", &json!({"qom-type": "iothread", "id": "io"}));
    let mut strange = Peer::connect(&service.first);
    let fds = [strange.0.as_raw_fd(); MAX_FDS];
    strange
        .0
        .send_with_fds(&[&b"vubt"[..]], &fds)
        .expect("the daemon reads");
    strange.hear_refusal("file descriptors");
    assert_served(&service, &mut client);
}

#[test]
fn a_process_that_never_gets_ready_delays_nobody() {
    let (mut service, mut client) = start();
    client.execute("object-add", &json!({"qom-type": "iothread", "id": "io"}));
    let mut slow = Peer::connect(&service.first);
    slow.get_everything();
    client.execute("query-block-exports", &json!({}));
    // It is refused before it says anything.
    let mut other = Peer::connect(&service.first);
    other.hear_refusal(&format!("process {} is taking over", std::process::id()));
    assert_served(&service, &mut client);
    // Now it is ready, but has got an old description.
    slow.say(r#""ready""#);
    slow.hear_refusal("changed meanwhile");
    let mut again = Peer::connect(&service.first);
    again.get_everything();
    assert_ends(&mut service.first);
}

#[test]
fn a_process_that_never_takes_over_delays_no_end() {
    let (mut service, mut client) = start();
    let mut frontend = service.connect(1, 1);
    for ends in [false, true] {
        let mut slow = Peer::connect(&service.first);
        slow.get_everything();
        slow.say(r#""ready""#);
        while slow.hear() != "parked" {}
        client.execute("query-block-exports", &json!({}));
        if ends {
            assert_ends(&mut service.first);
            slow.hear_refusal("asked to end");
        } else {
            // A change waits until the disks go on.
            client.execute("object-add", &json!({"qom-type": "iothread", "id": "io"}));
            slow.hear_refusal("not answered in time");
            let read = Op::Read { offset: 0, len: 512 };
            assert_eq!(frontend.queue(0).run(&read).ret, 0);
        }
    }
}

#[test]
fn processes_that_ask_one_that_ends_are_refused() {
    for by_signal in [true, false] {
        let (mut service, mut client) = start();
        let mut silent = Peer::connect(&service.first);
        let mut asked = Peer::connect(&service.first);
        asked.get_everything();
        if by_signal {
            assert_ends(&mut service.first);
        } else {
            client.execute("quit", &json!({}));
            service.first.wait_for_exit();
        }
        asked.hear_refusal("asked to end");
        silent.hear_refusal("asked to end");
    }
}

#[test]
fn processes_that_wait_are_told_who_has_taken_over() {
    let (mut service, _client) = start();
    let mut silent = Peer::connect(&service.first);
    service.take_over(&[]);
    silent.hear_refusal("has taken over");
}

#[test]
fn a_slow_process_does_not_go_on_with_disks_that_went_on() {
    let (mut service, _client) = start();
    let number = service.start_successor(&["--fail-take-over", LATE]);
    let pid = service.later[number].pid();
    wait_for("the new process to stop", || {
        (state(pid) == Some('T')).then_some(())
    });
    assert_ends(&mut service.first);
    service.later[number].signal(libc::SIGCONT);
    let status = service.later[number].wait();
    let log = service.log(number);
    assert!(
        !status.success() && log.contains("asked to end"),
        "{status}: {log}"
    );
}

/// Makes the old process end while the new one gets ready. Returns the new one, which has made everything, and goes on now.
fn end_early(service: &mut Service, end: impl FnOnce(&mut Daemon)) -> usize {
    let number = service.start_successor(&["--fail-take-over", EARLY]);
    let pid = service.later[number].pid();
    wait_for("the new process to stop", || {
        (state(pid) == Some('T')).then_some(())
    });
    end(&mut service.first);
    service.first.wait_for_exit();
    service.later[number].signal(libc::SIGCONT);
    number
}

#[test]
fn a_new_process_serves_what_it_was_told_if_the_old_one_is_killed() {
    let (mut service, _client) = start();
    let number = end_early(&mut service, |old| old.signal(libc::SIGKILL));
    let read = Op::Read { offset: 0, len: 512 };
    assert_eq!(service.connect(1, 1).queue(0).run(&read).ret, 0);
    assert!(service.later[number].ended().is_none(), "{}", service.log(number));
}

#[test]
fn a_new_process_does_not_serve_what_it_was_told_before_a_change() {
    let (mut service, mut client) = start();
    let number = end_early(&mut service, |old| {
        client.execute("object-add", &json!({"qom-type": "iothread", "id": "late"}));
        old.signal(libc::SIGKILL);
    });
    assert!(!service.later[number].wait().success());
    assert!(service.log(number).contains("changed meanwhile"));
}

#[test]
fn a_new_process_does_not_serve_if_the_old_one_was_asked_to_end() {
    for by_signal in [true, false] {
        let (mut service, mut client) = start();
        let number = end_early(&mut service, |old| match by_signal {
            true => old.signal(libc::SIGTERM),
            false => drop(client.execute("quit", &json!({}))),
        });
        assert!(!service.later[number].wait().success());
        // That has removed its sockets as well.
        let log = service.log(number);
        assert!(
            ["was asked to", "any more"].iter().any(|word| log.contains(word)),
            "{log}"
        );
    }
}

/// Listens as the old process of a take-over that goes wrong: it announces `announced` descriptors, and sends `sent`. Returns
/// what the new process says.
fn pass_descriptors(command: &mut Command, dir: &Path, announced: u32, sent: usize) -> String {
    let listener = UnixListener::bind(dir.join(HAND_OVER)).expect("listen");
    command
        .current_dir(dir)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let (mut process, mut log) = Process::start("vhost-user-blk", command, |child| {
        child.stderr.take().expect("a pipe")
    });
    let mut old = Peer(listener.accept().expect("the new process connects").0);
    old.0.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    assert!(old.hear()["hello"].is_object());
    old.say(FULL_HELLO);
    let header = [b"vubt", &2_u32.to_le_bytes()[..], &announced.to_le_bytes(), b"{}"].concat();
    old.0.write_all(&header).expect("the new process reads");
    let fds = vec![old.0.as_raw_fd(); sent];
    old.0
        .send_with_fds(&[&[0][..]], &fds)
        .expect("the new process reads");
    assert!(!process.wait().success());
    let mut text = String::new();
    log.read_to_string(&mut text).expect("UTF-8");
    fs::remove_file(dir.join(HAND_OVER)).expect("remove the socket");
    text
}

#[test]
fn lost_descriptors_have_their_own_causes() {
    let dir = tempfile::tempdir().expect("make a directory");
    let mut plain = Command::new(binary());
    plain.args(["--take-over", HAND_OVER]);
    let told = pass_descriptors(&mut plain, dir.path(), 3, 1);
    assert!(
        told.contains("announced 3 file descriptors, and 1 have come"),
        "{told}"
    );
    assert!(!told.contains("limit"), "{told}");
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 32; exec \"$0\" --take-over \"$1\""]);
    limited.arg(binary()).arg(HAND_OVER);
    let told = pass_descriptors(&mut limited, dir.path(), 100, 100);
    assert!(told.contains("raise its limit of open files"), "{told}");
}

#[test]
fn a_signal_ends_the_wait_for_an_old_process() {
    let dir = tempfile::tempdir().expect("make a directory");
    let silent = UnixListener::bind(dir.path().join(HAND_OVER)).expect("listen");
    let log = dir.path().join("log");
    let mut command = Command::new(binary());
    command
        .args(["--take-over", HAND_OVER])
        .current_dir(dir.path())
        .stderr(fs::File::create(&log).expect("make a log"));
    let mut new = Process::start("the daemon", &mut command, |_| ()).0;
    let mut peer = Peer(silent.accept().expect("a connection").0);
    assert!(peer.hear()["hello"].is_object());
    let sent = Instant::now();
    new.signal(libc::SIGTERM);
    assert_eq!(new.wait().code(), Some(1));
    assert!(sent.elapsed() < SLOW, "{:?}", sent.elapsed());
    let said = fs::read_to_string(&log).expect("read the log");
    assert!(said.contains("this process is asked to end"), "{said}");
}
