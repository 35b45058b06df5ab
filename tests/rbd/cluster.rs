//! The daemon on images of a cluster.

use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};

pub(crate) use testkit::ceph::{Cluster, DISK, cluster};

pub(crate) const BLOCK: usize = 4096;
const MIB: u64 = 1 << 20;

pub(crate) fn connect(daemon: &Daemon, queues: usize, depth: usize) -> Frontend {
    Frontend::connect(&daemon.dir().join(DISK), queues, depth, all_features()).expect("connect")
}

pub(crate) fn read(frontend: &mut Frontend, offset: u64) -> Result<Vec<u8>, i32> {
    let done = frontend.queue(0).run(&Op::Read { offset, len: BLOCK });
    match done.ret {
        0 => Ok(done.data),
        error => Err(error),
    }
}

pub(crate) fn write(frontend: &mut Frontend, offset: u64, byte: u8) -> i32 {
    let data = vec![byte; BLOCK];
    frontend.queue(0).run(&Op::Write { offset, data }).ret
}

pub(crate) const fn mib(number: u64) -> u64 {
    number * MIB
}
