//! The frontend truncates shared files while they are in use: only requests in the lost pages fail.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::thread;

use tempfile::TempDir;
use testkit::daemon::{Daemon, IMAGE};
use testkit::holdings::Holdings;
use testkit::inflight::Inflight;
use testkit::memory::{PATIENCE, SharedMemory, memfd, wait_readable};
use testkit::raw::{Answer, LOG_ALL, PROTOCOL_FEATURES, Region, VERSION_1, mem_table, msg};
use testkit::target::{Disks, assert_serves, assert_unharmed, image, options, start, start_with};
use testkit::vm::{
    DATA, GUEST, HEADER, MEMORY, Outcome, REGION, Ring, STATUS, USER, Vm, header, readable, writable,
};

const PAGE: u64 = 4096;
const IN: u32 = 0;
const OUT: u32 = 1;

/// Waits for the error eventfd of a queue.
fn assert_broken(vm: &Vm, queue: usize) {
    assert!(
        wait_readable(&vm.rings[queue].err, PATIENCE),
        "queue {queue} does not break"
    );
}

fn truncate(memory: &SharedMemory, len: u64) {
    memory.file().set_len(len).expect("cut the memory short");
}

/// Sets everything up again on the same connection, as a frontend may do after its rings broke.
fn recover(vm: &mut Vm) {
    for queue in [0, 1] {
        vm.client.stop_ring(queue).expect("GET_VRING_BASE");
    }
    vm.memory = SharedMemory::new(MEMORY);
    vm.share_memory();
    vm.rings.clear();
    for queue in [0, 1] {
        vm.start_ring(queue, Ring::new(queue, 16));
        assert_eq!(vm.read_sector(queue, 3), [3; 512]);
    }
}

#[test]
fn rings_in_truncated_memory_break_and_can_restart() {
    let (daemon, baseline) = start();
    for len in [0, PAGE, 0x5000, 0x8000] {
        let mut vm = Vm::start(&daemon, 2);
        vm.read_sector(0, 1);
        vm.read_sector(1, 2);
        truncate(&vm.memory, len);
        // The test has lost the ring as well: only its eventfds are left.
        (0..2).for_each(|queue| vm.kick(queue));
        (0..2).for_each(|queue| assert_broken(&vm, queue));
        recover(&mut vm);
    }
    assert!(daemon.output().contains("memory of the ring is gone"));
    assert_unharmed(daemon, &baseline);
}

#[test]
fn a_partly_truncated_header_is_not_used() {
    // The header's type is a write, and its sector lies past the cut. The daemon must not write to sector 0.
    let (daemon, baseline) = start();
    let mut vm = Vm::start(&daemon, 2);
    let at = GUEST + 0x9_0000 - 8;
    vm.poke(at, &header(OUT, 7));
    vm.poke(HEADER, &[0x99; 512]);
    let chain = [readable(at, 16), readable(HEADER, 512), writable(STATUS, 1)];
    truncate(&vm.memory, 0x9_0000);
    assert_eq!(vm.request(0, &chain), Some((1, 1)));
    drop(vm);
    assert_unharmed(daemon, &baseline);
}

#[test]
fn truncated_data_fails_its_request() {
    for extra in [
        &[][..],
        &["--aio", "threads"],
        &["--aio", "io_uring"],
        &["--aio", "native", "--direct"],
    ] {
        let mut args = options();
        args.extend(extra);
        let (daemon, baseline) = start_with(&args);
        for (kind, addr) in [(0, DATA), (OUT, DATA), (0, DATA + 100), (OUT, DATA + 100)] {
            let mut vm = Vm::start(&daemon, 2);
            vm.poke(HEADER, &header(kind, 40));
            let data = if kind == OUT {
                readable(addr, 8192)
            } else {
                writable(addr, 8192)
            };
            truncate(&vm.memory, 0x9_1000);
            let answer = vm.request(0, &[readable(HEADER, 16), data, writable(STATUS, 1)]);
            assert_eq!(answer, Some((1, 1)), "{extra:?}");
            drop(vm);
            assert_serves(&daemon);
        }
        let mut expected = image();
        let now = daemon.image();
        // The part of a write that is in intact memory may have been written, and nothing else.
        expected[40 * 512..56 * 512].copy_from_slice(&now[40 * 512..56 * 512]);
        assert!(now == expected, "{extra:?}: bytes outside of the request changed");
        fs::write(daemon.image_path(), image()).expect("restore the image");
        assert_unharmed(daemon, &baseline);
    }
}

#[test]
fn lost_memory_never_reaches_an_image_on_tmpfs() {
    let disks = Disks {
        dir: TempDir::new_in("/dev/shm").expect("make a directory"),
        ..Disks::new(&options())
    };
    fs::write(disks.dir.path().join(IMAGE), image()).expect("write the image");
    let mut daemon = disks.serve();
    let baseline = daemon.idle_holdings(assert_serves);
    let mut vm = Vm::start(&daemon, 2);
    vm.poke(HEADER, &header(OUT, 40));
    vm.poke(DATA, &image()[40 * 512..56 * 512]);
    let write = [readable(HEADER, 16), readable(DATA, 8192), writable(STATUS, 1)];
    // From the second write on, the daemon copies the data itself.
    for _ in 0..3 {
        assert_eq!(vm.request(0, &write), Some((0, 1)));
    }
    truncate(&vm.memory, DATA - GUEST + PAGE);
    assert_eq!(vm.request(0, &write), Some((1, 1)));
    drop(vm);
    assert_unharmed(daemon, &baseline);
}

#[test]
fn only_the_truncated_region_is_lost() {
    let (daemon, baseline) = start();
    let mut vm = Vm::start(&daemon, 2);
    let extra = SharedMemory::new(MEMORY);
    let region = Region {
        guest_addr: 1 << 32,
        size: MEMORY as u64,
        user_addr: USER << 1,
        mmap_offset: 0,
    };
    let added = vm.client.mem_region(msg::ADD_MEM_REG, region, &[extra.fd()]);
    assert_eq!(added, Answer::Ack);
    truncate(&extra, 0);
    vm.poke(HEADER, &header(0, 7));
    // The daemon reads the header in user space.
    let chain = [readable(1 << 32, 16), writable(DATA, 512), writable(STATUS, 1)];
    assert_eq!(vm.request(0, &chain), Some((1, 1)));
    (0..2).for_each(|queue| assert_eq!(vm.read_sector(queue, 3), [3; 512]));
    drop(vm);
    assert_unharmed(daemon, &baseline);
}

#[test]
fn memory_may_be_truncated_while_requests_run() {
    let (daemon, baseline) = start();
    for round in 0..40_u64 {
        let vm = Vm::start_with(&daemon, 2, 256, 0);
        for queue in [0, 1] {
            vm.poke(HEADER, &header(0, round));
            let chain = [readable(HEADER, 16), writable(DATA, 4096), writable(STATUS, 1)];
            vm.put_descs(queue, 0, &testkit::vm::linked(0, &chain));
        }
        let memory = vm.memory.clone();
        let cutter = thread::spawn(move || truncate(&memory, round * 0x4000));
        let kicks = [0, 1].map(|queue| vm.rings[queue].kick.try_clone().expect("clone an eventfd"));
        for _ in 0..50 {
            kicks.iter().for_each(|kick| kick.write(1).expect("kick"));
        }
        cutter.join().expect("it was cut");
    }
    assert_unharmed(daemon, &baseline);
}

/// Starts a daemon that executes a write two seconds after taking it: time enough to cut the memory in between.
fn start_slow(aio: &[&'static str]) -> (Daemon, Holdings) {
    let mut args = options();
    args.extend(["--inject", "write:delay=2s"]);
    args.extend(aio);
    start_with(&args)
}

/// Sends a write of `data` to sector 40, with its header at `header_at`, and returns when the daemon has it.
fn begin_write(vm: &mut Vm, header_at: u64, data: u64) {
    vm.poke(header_at, &header(OUT, 40));
    let write = [readable(header_at, 16), readable(data, 512), writable(STATUS, 1)];
    vm.put_descs(0, 8, &testkit::vm::linked(8, &write));
    vm.publish(0, 8);
    // Requests are taken in order.
    let at = GUEST + 0x8_8000;
    vm.poke(at, &header(IN, 1));
    vm.send(
        0,
        &[
            readable(at, 16),
            writable(at + 0x200, 512),
            writable(at + 0x400, 1),
        ],
    );
    assert_eq!(vm.outcome(0), Outcome::Used { id: 0, len: 513 });
}

/// Waits for the write of `begin_write` and for a chain at head 0, in either order. The device wrote one byte to each.
fn assert_both_complete(vm: &mut Vm) {
    let outcomes = [vm.outcome(0), vm.outcome(0)];
    for id in [0, 8] {
        let expected = Outcome::Used { id, len: 1 };
        assert!(
            outcomes.contains(&expected),
            "{expected:?} is missing in {outcomes:?}"
        );
    }
}

#[test]
fn a_waiting_write_fails_when_its_memory_goes() {
    let direct: &[&str] = &["--direct"];
    for (aio, data) in [(&[][..], DATA), (direct, DATA), (direct, DATA + 100)] {
        let (daemon, baseline) = start_slow(aio);
        let mut vm = Vm::start(&daemon, 2);
        begin_write(&mut vm, HEADER, data);
        truncate(&vm.memory, DATA - GUEST);
        // Another request detects the loss, because its header is gone.
        vm.send(
            0,
            &[
                readable(DATA + PAGE, 16),
                writable(HEADER + 0x200, 512),
                writable(STATUS + 8, 1),
            ],
        );
        assert_both_complete(&mut vm);
        assert_eq!(vm.peek(STATUS, 1), [1]);
        drop(vm);
        assert_unharmed(daemon, &baseline);
    }
}

#[test]
fn a_write_fails_when_its_page_is_replaced() {
    let (daemon, baseline) = start_slow(&[]);
    let mut vm = Vm::start(&daemon, 2);
    begin_write(&mut vm, HEADER, DATA);
    truncate(&vm.memory, DATA - GUEST);
    // Reading this header makes the daemon replace the page that held the write's data.
    let read = [
        readable(DATA + 0x800, 16),
        writable(HEADER + 0x200, 512),
        writable(STATUS + 8, 1),
    ];
    vm.send(0, &read);
    assert_both_complete(&mut vm);
    assert_eq!(vm.peek(STATUS, 1), [1]);
    drop(vm);
    assert_unharmed(daemon, &baseline);
}

#[test]
fn only_requests_in_lost_pages_fail() {
    let (daemon, baseline) = start();
    let mut vm = Vm::start(&daemon, 2);
    let last = GUEST + MEMORY as u64 - PAGE;
    truncate(&vm.memory, MEMORY as u64 - PAGE);
    vm.poke(HEADER, &header(IN, 7));
    let good = [readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)];
    for chain in [
        [readable(last, 16), writable(DATA, 512), writable(STATUS, 1)],
        [readable(HEADER, 16), writable(last, 512), writable(STATUS, 1)],
        [readable(last + 8, 16), writable(last, 512), writable(STATUS, 1)],
    ] {
        for queue in [0, 1] {
            assert_eq!(vm.request(queue, &chain), Some((1, 1)));
            assert_eq!(vm.request(queue, &good), Some((0, 513)));
            assert_eq!(vm.peek(DATA, 512), [7; 512]);
        }
    }
    assert!(
        daemon.output().contains("guest memory is gone"),
        "{}",
        daemon.output()
    );
    drop(vm);
    assert_unharmed(daemon, &baseline);
}

#[test]
fn many_lost_pages_of_a_write_leave_the_rings_alone() {
    let mut args = options();
    args.push("--direct");
    let (daemon, baseline) = start_with(&args);
    let mut vm = Vm::start(&daemon, 2);
    let gone = DATA + 0x1_0000;
    truncate(&vm.memory, gone - GUEST);
    vm.poke(HEADER, &header(OUT, 0));
    let size: u32 = 8 * 4096;
    for lost in (0..8).map(|request| request * u64::from(size)) {
        // O_DIRECT cannot use data at this address, so the daemon copies all of it.
        let data = readable(gone + lost + 496, size);
        let chain = [readable(HEADER, 16), data, writable(STATUS, 1)];
        assert_eq!(vm.request(0, &chain), Some((1, 1)));
    }
    (0..2).for_each(|queue| assert_eq!(vm.read_sector(queue, 3), [3; 512]));
    drop(vm);
    assert_unharmed(daemon, &baseline);
}

#[test]
fn a_lost_table_breaks_only_its_ring() {
    let (daemon, baseline) = start();
    let mut vm = Vm::start(&daemon, 2);
    let last = GUEST + MEMORY as u64 - PAGE;
    truncate(&vm.memory, MEMORY as u64 - PAGE);
    vm.send(0, &[testkit::vm::indirect(last, 48)]);
    assert_broken(&vm, 0);
    assert_eq!(vm.read_sector(1, 5), [5; 512]);
    drop(vm);
    assert_unharmed(daemon, &baseline);
}

#[test]
fn a_truncated_inflight_region_breaks_its_ring() {
    let (daemon, baseline) = start();
    let mut vm = Vm::connect(&daemon, 0);
    let made = Inflight::get(&mut vm.client, 2, 16);
    assert!(made.file.set_len(0).is_err(), "ours is sealed");
    // A frontend may pass back another file, which nobody can seal.
    let file = tempfile::tempfile_in("/dev/shm").expect("make a file in memory");
    file.set_len(made.size).expect("size it");
    let region = Inflight { file, ..made };
    vm.share_memory();
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    vm.start_ring(0, Ring::new(0, 16));
    vm.read_sector(0, 1);
    region.file.set_len(0).expect("cut it short");
    vm.poke(HEADER, &header(0, 1));
    vm.send(
        0,
        &[readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)],
    );
    assert_broken(&vm, 0);
    assert!(daemon.output().contains("the in-flight region is gone"));
    drop((vm, region));
    assert_unharmed(daemon, &baseline);
}

#[test]
fn an_inflight_region_truncated_before_start_is_harmless() {
    let (daemon, baseline) = start();
    let mut vm = Vm::connect(&daemon, 0);
    let made = Inflight::get(&mut vm.client, 2, 16);
    let file = tempfile::tempfile_in("/dev/shm").expect("make a file in memory");
    file.set_len(made.size).expect("size it");
    let region = Inflight { file, ..made };
    vm.share_memory();
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    region.file.set_len(0).expect("cut it short");
    let ring = Ring::new(0, 16);
    vm.set_up_ring(0, &ring);
    vm.client.vring_state(msg::SET_VRING_ENABLE, 0, 1);
    ring.kick.write(1).expect("kick");
    vm.rings.push(ring);
    assert_broken(&vm, 0);
    drop((vm, region));
    assert_unharmed(daemon, &baseline);
}

#[test]
fn a_truncated_dirty_log_breaks_its_ring() {
    let (daemon, baseline) = start();
    let mut vm = Vm::start(&daemon, 2);
    let log = tempfile::tempfile_in("/dev/shm").expect("make a file in memory");
    log.set_len(PAGE).expect("size it");
    assert!(vm.client.set_log(PAGE, 0, log.as_raw_fd()).is_some());
    let features = VERSION_1 | PROTOCOL_FEATURES | LOG_ALL;
    let set = vm.client.ask(msg::SET_FEATURES, &features.to_le_bytes(), &[]);
    assert_eq!(set, Answer::Ack);
    vm.read_sector(0, 1);
    log.set_len(0).expect("cut it short");
    vm.poke(HEADER, &header(0, 1));
    vm.send(
        0,
        &[readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)],
    );
    assert_broken(&vm, 0);
    assert!(daemon.output().contains("the dirty log is gone"));
    drop((vm, log));
    assert_unharmed(daemon, &baseline);
}

#[test]
fn a_file_shorter_than_its_region_is_refused() {
    let (daemon, baseline) = start();
    for len in [0, 1, PAGE, MEMORY as u64 - 1] {
        let mut vm = Vm::connect(&daemon, 0);
        truncate(&vm.memory, len);
        let fds = [vm.memory.fd()];
        assert!(
            vm.client
                .ask(msg::SET_MEM_TABLE, &mem_table(&[REGION]), &fds)
                .is_refusal()
        );
        let added = vm.client.mem_region(msg::ADD_MEM_REG, REGION, &fds);
        assert!(added.is_refusal());
    }
    assert_unharmed(daemon, &baseline);
}

#[test]
fn holes_punched_into_memory_read_as_zero() {
    let (daemon, baseline) = start();
    let mut vm = Vm::start(&daemon, 2);
    vm.read_sector(0, 1);
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no memory is involved.
    let punched = unsafe { libc::fallocate(vm.memory.fd(), punch, 0x8_0000, 0x8_0000) };
    assert_eq!(punched, 0);
    assert_eq!(vm.read_sector(0, 4), [4; 512]);
    assert_eq!(vm.read_sector(1, 5), [5; 512]);
    drop(vm);
    assert_unharmed(daemon, &baseline);
}

#[test]
fn read_only_memory_is_refused() {
    let (daemon, baseline) = start();
    let sealed = memfd(MEMORY as u64);
    let fd = sealed.as_raw_fd();
    // SAFETY: no memory is involved.
    let added = unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
    assert_eq!(added, 0);
    let mut client = testkit::target::client(&daemon);
    assert!(
        client
            .ask(msg::SET_MEM_TABLE, &mem_table(&[REGION]), &[fd])
            .is_refusal()
    );
    drop((client, sealed));
    assert_unharmed(daemon, &baseline);
}

#[test]
fn an_unrelated_sigbus_still_ends_the_process() {
    let (mut daemon, _) = start();
    // The first signal goes on to Rust's own handler, which restores the default action; the next one ends the process.
    let exit = testkit::process::wait_for("the end", || {
        daemon.signal(libc::SIGBUS);
        (!daemon.is_alive()).then(|| daemon.wait_for_exit())
    });
    assert_eq!(exit.status.signal(), Some(libc::SIGBUS));
}
