//! The daemon on NBD servers.

use std::path::PathBuf;

use tempfile::TempDir;
use testkit::daemon::{Daemon, IMAGE};
use testkit::frontend::{Frontend, Op, all_features};

pub(crate) use testkit::nbd::{
    SOCKET, directory, has, nbdkit, nbdkit_on, qemu_nbd, qemu_nbd_on_tcp, qemu_nbd_over,
};

/// The daemon's socket.
pub(crate) const DISK: &str = "vhost-user-blk.sock";
pub(crate) const URI: &str = "nbd+unix:///disk?socket=nbd.sock";
pub(crate) const BLOCK: usize = 4096;

/// The options of the long form for a disk on the server in the daemon's directory.
pub(crate) fn long_form(node: &str) -> Vec<String> {
    [
        "--blockdev".to_owned(),
        format!("driver=nbd,node-name=n,export=disk,server.type=unix,server.path=nbd.sock{node}"),
        "--export".to_owned(),
        format!("vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={DISK},writable=on"),
    ]
    .into()
}

/// Starts a daemon with the long form's options.
pub(crate) fn start(dir: TempDir, node: &str, more: &[&str]) -> Daemon {
    start_after(dir, &[], node, more)
}

/// Starts a daemon with the long form's options after others.
pub(crate) fn start_after(dir: TempDir, before: &[&str], node: &str, more: &[&str]) -> Daemon {
    let args = long_form(node);
    let args = args.iter().map(String::as_str);
    let args: Vec<&str> = before
        .iter()
        .copied()
        .chain(args)
        .chain(more.iter().copied())
        .collect();
    Daemon::start_with(dir, &args)
}

pub(crate) fn image(daemon: &Daemon) -> PathBuf {
    daemon.dir().join(IMAGE)
}

pub(crate) fn connect(daemon: &Daemon, queues: usize, depth: usize) -> Frontend {
    Frontend::connect(&daemon.dir().join(DISK), queues, depth, all_features()).expect("connect")
}

pub(crate) fn read(frontend: &mut Frontend, offset: u64) -> Result<Vec<u8>, i32> {
    let done = frontend.queue(0).run(&Op::Read { offset, len: BLOCK });
    if done.ret == 0 {
        Ok(done.data)
    } else {
        Err(done.ret)
    }
}

pub(crate) fn write(frontend: &mut Frontend, offset: u64, byte: u8) -> i32 {
    let data = vec![byte; BLOCK];
    frontend.queue(0).run(&Op::Write { offset, data }).ret
}
