//! A daemon under attack, and the check that it took no harm.

use crate::daemon::{Daemon, Holdings};
use crate::raw::Client;
use crate::vm::{DATA, HEADER, SECTOR, STATUS, Vm, header, readable, writable};

pub const SECTORS: usize = 64;
const OUT: u32 = 1;

/// The image: each sector holds its own number.
pub fn image() -> Vec<u8> {
    (0..SECTORS * SECTOR)
        .map(|i| (i / SECTOR).to_le_bytes()[0])
        .collect()
}

/// Starts a daemon with two queues and a pool of fixed size. Also returns its holdings without a connection.
pub fn start() -> (Daemon, Holdings) {
    start_with(&options())
}

pub fn options() -> Vec<&'static str> {
    "--num-queues 2 --thread-pool-min 1 --thread-pool-max 1"
        .split(' ')
        .collect()
}

/// Starts a daemon with other options.
pub fn start_with(options: &[&str]) -> (Daemon, Holdings) {
    let mut daemon = Daemon::start(&image(), options);
    let baseline = daemon.idle_holdings(assert_serves);
    (daemon, baseline)
}

/// Checks that an ordinary frontend is served.
pub fn assert_serves(daemon: &Daemon) {
    let mut vm = Vm::start(daemon, 2);
    for (queue, sector) in [(0, 9_u8), (1, 5)] {
        assert_eq!(vm.read_sector(queue, u64::from(sector)), [sector; SECTOR]);
        // The expected data is on the disk already. This also makes sure that a worker, if any, has started.
        vm.poke(HEADER, &header(OUT, u64::from(sector)));
        let write = [readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)];
        assert_eq!(vm.request(queue, &write), Some((0, 1)));
    }
}

/// Checks that nothing is left of the bad connections, and that good ones work.
pub fn assert_unharmed(mut daemon: Daemon, baseline: &Holdings) {
    assert!(daemon.is_alive());
    assert_serves(&daemon);
    daemon.wait_for_holdings(baseline);
    assert!(daemon.image() == image(), "the image changed");
}

/// A client that has negotiated everything.
pub fn client(daemon: &Daemon) -> Client {
    Vm::connect(daemon, 0).client
}
