//! Guest memory that is registered with io_uring, while the memory table changes.

use std::fs;

use testkit::daemon::Daemon;
use testkit::memory::SharedMemory;
use testkit::process::wait_for;
use testkit::raw::{Answer, Region, mem_table, msg};
use testkit::skip::skipped;
use testkit::target::{SECTORS, image};
use testkit::vm::{DATA, GUEST, HEADER, MEMORY, Ring, SECTOR, STATUS, USER, Vm, header, readable, writable};
use vhost_user_blk::engine::{BlockNode, Choice};
use vhost_user_blk::storage::OpenOptions;

const OPTIONS: [&str; 3] = ["--register-memory", "--aio", "io_uring"];
const OUT: u32 = 1;
/// Rings, headers and status bytes are below, data is above.
const SPLIT: u64 = DATA - GUEST;

/// Starts a daemon whose engine is given the memory of its guest, unless the kernel cannot do this.
fn start() -> Option<Daemon> {
    let daemon = Daemon::start(&image(), &[]);
    let options = OpenOptions {
        path: daemon.image_path(),
        ..OpenOptions::default()
    };
    let plan = BlockNode::open(&options)
        .expect("open the image")
        .plan(Choice::IoUring);
    drop(daemon);
    match plan.and_then(|plan| plan.with_registered_memory(true)) {
        Ok(_) => Some(Daemon::start(&image(), &OPTIONS)),
        Err(error) => {
            skipped(format_args!("no registered memory: {error}"));
            None
        }
    }
}

/// Returns the memory in bytes that the kernel keeps pinned for a daemon.
fn pinned(daemon: &Daemon) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("the daemon lives");
    let kib = status.lines().find_map(|line| line.strip_prefix("VmPin:"));
    let kib = kib.and_then(|kib| kib.trim().strip_suffix(" kB")).expect("VmPin");
    kib.parse::<usize>().expect("a number") << 10
}

fn wait_until_pinned(daemon: &Daemon, bytes: usize) {
    wait_for("memory to be pinned", || (pinned(daemon) == bytes).then_some(()));
}

/// The two regions that the memory of a guest consists of.
fn halves() -> [Region; 2] {
    let part = |at: u64, size: u64| Region {
        guest_addr: GUEST + at,
        size,
        user_addr: USER + at,
        mmap_offset: at,
    };
    [part(0, SPLIT), part(SPLIT, MEMORY as u64 - SPLIT)]
}

/// Connects a guest with memory in two regions and two rings.
fn connect(daemon: &Daemon) -> Vm {
    let mut vm = Vm::connect(daemon, 0);
    let fds = [vm.memory.fd(); 2];
    let answer = vm.client.ask(msg::SET_MEM_TABLE, &mem_table(&halves()), &fds);
    assert_eq!(answer, Answer::Ack);
    vm.start_ring(0, Ring::new(0, 16));
    vm
}

/// Reads a sector into the data of a guest whose data is in `memory`.
fn read(vm: &mut Vm, memory: &SharedMemory, sector: u8) {
    let at = usize::try_from(SPLIT).expect("small");
    memory.write(at, &[0xee; SECTOR]);
    vm.poke(HEADER, &header(0, sector.into()));
    let chain = [readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)];
    assert_eq!(vm.request(0, &chain), Some((0, 513)));
    assert_eq!(memory.read(at, SECTOR), [sector; SECTOR]);
}

#[test]
fn registered_memory_is_released_with_the_connection() {
    let Some(mut daemon) = start() else { return };
    for _ in 0..3 {
        let mut vm = Vm::start(&daemon, 1);
        wait_until_pinned(&daemon, MEMORY);
        for sector in 0..SECTORS {
            assert_eq!(vm.read_sector(0, sector as u64)[0], sector.to_le_bytes()[0]);
        }
        vm.client.leave();
        wait_until_pinned(&daemon, 0);
    }
    let exit = daemon.terminate();
    assert!(exit.status.success(), "{}", exit.output);
}

#[test]
fn queues_share_registered_memory() {
    let Some(daemon) = start() else { return };
    drop(daemon);
    let daemon = Daemon::start(&image(), &[&OPTIONS[..], &["--num-queues", "2"]].concat());
    let mut vm = Vm::start(&daemon, 2);
    wait_until_pinned(&daemon, MEMORY);
    assert_eq!(vm.read_sector(0, 3), [3; SECTOR]);
    assert_eq!(vm.read_sector(1, 4), [4; SECTOR]);
    assert_eq!(pinned(&daemon), MEMORY);
}

#[test]
fn writes_from_registered_memory_store_the_data() {
    let Some(daemon) = start() else { return };
    let mut vm = Vm::start(&daemon, 1);
    wait_until_pinned(&daemon, MEMORY);
    // In one range, and in several, which become a list.
    for (sector, ranges) in [(5_u8, 1_u32), (9, 3)] {
        vm.poke(HEADER, &header(OUT, sector.into()));
        vm.poke(DATA, &[sector; 3 * 512]);
        let len = 3 * 512 / ranges;
        let mut chain = vec![readable(HEADER, 16)];
        chain.extend((0..ranges).map(|i| readable(DATA + u64::from(i * len), len)));
        chain.push(writable(STATUS, 1));
        assert_eq!(vm.request(0, &chain), Some((0, 1)));
        let at = usize::from(sector) * SECTOR;
        assert_eq!(daemon.image()[at..][..3 * SECTOR], [sector; 3 * SECTOR]);
    }
}

/// The kernel would write to the old pages if they stayed registered.
#[test]
fn memory_in_place_of_removed_memory_gets_the_data() {
    let Some(daemon) = start() else { return };
    let mut vm = connect(&daemon);
    wait_until_pinned(&daemon, MEMORY);
    let [_, data] = halves();
    let mut memory = vm.memory.clone();
    for round in 0..8 {
        read(&mut vm, &memory, round);
        assert_eq!(vm.client.mem_region(msg::REM_MEM_REG, data, &[]), Answer::Ack);
        wait_until_pinned(&daemon, halves()[0].size.try_into().expect("small"));
        memory = SharedMemory::new(MEMORY);
        let answer = vm.client.mem_region(msg::ADD_MEM_REG, data, &[memory.fd()]);
        assert_eq!(answer, Answer::Ack);
        // Whether or not it is registered yet.
        read(&mut vm, &memory, round + 8);
        wait_until_pinned(&daemon, MEMORY);
        read(&mut vm, &memory, round + 16);
    }
    // A whole new table.
    memory = SharedMemory::new(MEMORY);
    let fds = [vm.memory.fd(), memory.fd()];
    assert_eq!(
        vm.client.ask(msg::SET_MEM_TABLE, &mem_table(&halves()), &fds),
        Answer::Ack
    );
    read(&mut vm, &memory, 42);
    wait_until_pinned(&daemon, MEMORY);
    read(&mut vm, &memory, 43);
}
