//! Commands that need a thread, while the daemon may have no more.

use std::os::unix::process::CommandExt;
use std::process::Command;

use serde_json::json;
use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::skip::skipped;

use crate::client::Client;
use crate::daemon::start;

/// The user that the daemon becomes, because the limit does not hold for root.
const USER: u32 = 23456;

/// Sets the soft limit of the number of threads, as the daemon's user: not every root may do that.
fn limit_threads(daemon: &Daemon, most: &str) -> bool {
    let mut command = Command::new("prlimit");
    command
        .arg(format!("--pid={}", daemon.pid()))
        .arg(format!("--nproc={most}:"))
        .uid(USER)
        .gid(USER);
    command.status().is_ok_and(|status| status.success())
}

#[test]
fn a_command_without_a_thread_is_refused() {
    // SAFETY: takes nothing and always succeeds.
    if unsafe { libc::geteuid() } != 0 {
        return skipped("only root can become other users");
    }
    let (daemon, socket) = start(&["--user", &format!("{USER}:{USER}")]);
    let mut client = Client::connect(&socket);
    let mut frontend = Frontend::connect(&daemon.socket(), 1, 4, all_features()).expect("connect");
    let mut read = || {
        let done = frontend.queue(0).run(&Op::Read { offset: 0, len: 512 });
        assert_eq!(done.ret, 0);
    };
    let node = json!({"driver": "null-co", "node-name": "n", "size": 1 << 20});
    read();
    if !limit_threads(&daemon, "1") {
        return skipped("prlimit cannot set the limit");
    }
    for _ in 0..2 {
        let (class, text) = client.refusal("blockdev-add", &node);
        assert_eq!(class, "GenericError");
        assert!(text.starts_with("cannot create a thread: "), "{text}");
        read();
    }
    assert!(limit_threads(&daemon, "1000"));
    client.run("blockdev-add", &node);
    client.run("blockdev-del", &json!({"node-name": "n"}));
    read();
}
