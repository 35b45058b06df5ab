//! A daemon to be attacked, and the proof that it took no harm.

use super::daemon::{Daemon, Holdings};
use super::raw::Client;
use super::vm::{DATA, HEADER, SECTOR, STATUS, Vm, header, readable, writable};

pub(crate) const SECTORS: usize = 64;
const OUT: u32 = 1;

/// The image: each sector holds its own number.
pub(crate) fn image() -> Vec<u8> {
    (0..SECTORS * SECTOR)
        .map(|i| (i / SECTOR).to_le_bytes()[0])
        .collect()
}

/// A daemon with two queues and a steady pool, and what it holds when nobody is connected.
pub(crate) fn start() -> (Daemon, Holdings) {
    start_with(&options())
}

pub(crate) fn options() -> Vec<&'static str> {
    "--num-queues 2 --thread-pool-min 1 --thread-pool-max 1"
        .split(' ')
        .collect()
}

/// The same with other options.
pub(crate) fn start_with(options: &[&str]) -> (Daemon, Holdings) {
    let mut daemon = Daemon::start(&image(), options);
    let baseline = daemon.idle_holdings(assert_serves);
    (daemon, baseline)
}

/// An ordinary frontend gets ordinary service.
pub(crate) fn assert_serves(daemon: &Daemon) {
    let mut vm = Vm::start(daemon, 2);
    for (queue, sector) in [(0, 9_u8), (1, 5)] {
        assert_eq!(vm.read_sector(queue, u64::from(sector)), [sector; SECTOR]);
        // What is there already; and so a worker of the pool, if there are any, has been there.
        vm.poke(HEADER, &header(OUT, u64::from(sector)));
        let write = [readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)];
        assert_eq!(vm.request(queue, &write), Some((0, 1)));
    }
}

/// Nothing of the bad connections is left, and good ones work.
pub(crate) fn assert_unharmed(mut daemon: Daemon, baseline: &Holdings) {
    assert!(daemon.is_alive());
    assert_serves(&daemon);
    daemon.wait_for_holdings(baseline);
    assert!(daemon.image() == image(), "the image changed");
}

/// A client that has negotiated everything.
pub(crate) fn client(daemon: &Daemon) -> Client {
    Vm::connect(daemon, 0).client
}
