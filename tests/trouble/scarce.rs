//! A lack of file descriptors, threads or memory is logged once, and the daemon keeps serving.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::{EIO, connect, read, said, write};
use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::memory::SharedMemory;
use testkit::raw::{Answer, Region, mem_table, msg};
use testkit::skip::skipped;
use testkit::target::{assert_serves, start};
use testkit::vm::Vm;

const MIB: usize = 1 << 20;

/// Sets a soft limit of the daemon, capped at the hard one.
fn limit(daemon: &Daemon, resource: libc::__rlimit_resource_t, value: u64) {
    let pid = libc::pid_t::try_from(daemon.pid()).expect("a pid fits");
    let mut old = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `old` is filled in.
    let result = unsafe { libc::prlimit(pid, resource, std::ptr::null(), &raw mut old) };
    assert_eq!(result, 0, "get the limit");
    old.rlim_cur = value.min(old.rlim_max);
    // SAFETY: `old` is a valid limit.
    let result = unsafe { libc::prlimit(pid, resource, &raw const old, std::ptr::null_mut()) };
    assert_eq!(result, 0, "set the limit");
}

#[test]
fn running_out_of_descriptors_delays_a_connection() {
    let (mut daemon, _) = start();
    let failed = "cannot accept a connection";
    limit(&daemon, libc::RLIMIT_NOFILE, 3);
    let client = daemon.connect();
    daemon.wait_for(|daemon| said(daemon, failed) == 1, "notice");
    for _ in 0..50 {
        thread::sleep(Duration::from_millis(10));
        assert_eq!(said(&daemon, failed), 1);
    }
    assert!(daemon.output().contains("ulimit -n"), "{}", daemon.output());
    drop(client);
    limit(&daemon, libc::RLIMIT_NOFILE, u64::MAX);
    assert_serves(&daemon);
    assert!(daemon.output().contains("accepting connections again"));
}

#[test]
fn an_undeliverable_descriptor_ends_only_its_connection() {
    let (mut daemon, _) = start();
    let mut vm = Vm::connect(&daemon, 0);
    limit(&daemon, libc::RLIMIT_NOFILE, 3);
    let table = mem_table(&[testkit::vm::REGION]);
    let fd = vm.memory.fd();
    assert!(vm.client.ask(msg::SET_MEM_TABLE, &table, &[fd]).is_refusal());
    vm.client.leave();
    daemon.wait_for(
        |daemon| {
            daemon
                .output()
                .contains("connection ended: no file descriptor is left")
        },
        "say why",
    );
    limit(&daemon, libc::RLIMIT_NOFILE, u64::MAX);
    assert_serves(&daemon);
}

#[test]
fn memory_that_cannot_be_mapped_is_refused() {
    let (daemon, _) = start();
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("read /proc");
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let size: u64 = size
        .and_then(|kib| kib.trim().strip_suffix(" kB")?.parse().ok())
        .expect("a size");
    limit(&daemon, libc::RLIMIT_AS, (size << 10) + (64 << 20));
    let mut vm = Vm::connect(&daemon, 0);
    let memory = SharedMemory::new(256 * MIB);
    let region = Region {
        guest_addr: 0,
        size: memory.len() as u64,
        user_addr: 1 << 40,
        mmap_offset: 0,
    };
    let answer = vm
        .client
        .ask(msg::SET_MEM_TABLE, &mem_table(&[region]), &[memory.fd()]);
    assert_eq!(answer, Answer::Nak);
    let log = daemon.output();
    assert!(
        log.contains("cannot be mapped") && log.contains("Cannot allocate memory"),
        "{log}"
    );
    drop(vm);
    assert_serves(&daemon);
}

#[test]
fn exceeding_the_file_size_limit_is_an_error() {
    for options in [&["--aio", "threads"][..], &[], &["--aio", "io_uring"]] {
        let mut daemon = Daemon::start(&vec![1; MIB], options);
        limit(&daemon, libc::RLIMIT_FSIZE, MIB as u64 / 2);
        let mut frontend = connect(&daemon, 1);
        let queue = frontend.queue(0);
        assert_eq!(queue.run(&write(0, &[2; 4096])).ret, 0);
        assert_eq!(queue.run(&write(MIB / 2, &[2; 4096])).ret, EIO, "{options:?}");
        assert_eq!(queue.run(&read(MIB / 2, 4096)).data, [1; 4096]);
        assert!(daemon.is_alive() && daemon.output().contains("File too large"));
    }
}

#[test]
fn a_disk_with_256_queues_works() {
    let image: Vec<u8> = (0..MIB).map(|n| (n / 4096).to_le_bytes()[0]).collect();
    let mut daemon = Daemon::start(&image, &["--num-queues", "256", "--iothreads", "64"]);
    for _ in 0..2 {
        let mut frontend = Frontend::connect(&daemon.socket(), 256, 1, all_features()).expect("connect");
        for (i, queue) in frontend.queues().iter_mut().enumerate() {
            queue.submit(&read(i * 4096, 4096), i);
            queue.kick();
        }
        for (i, queue) in (0u8..=255).zip(frontend.queues()) {
            assert_eq!(queue.drain()[0].data, [i; 4096], "queue {i}");
        }
    }
    let exit = daemon.terminate();
    assert!(
        exit.status.success() && exit.took < Duration::from_secs(5),
        "{exit:?}"
    );
}

/// Creates a control group with one limit. Returns `None` where that is not possible.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(controller: &str, files: &[&str], value: &str) -> Option<Self> {
        for root in [&format!("/sys/fs/cgroup/{controller}"), "/sys/fs/cgroup"] {
            let group = Self(PathBuf::from(root).join(format!("vhost-user-blk-{}", std::process::id())));
            if fs::create_dir(&group.0).is_err() {
                continue;
            }
            if files.iter().any(|file| group.put(file, value)) {
                return Some(group);
            }
        }
        skipped(format_args!("no {controller} control group can be made here"));
        None
    }

    fn put(&self, file: &str, value: &str) -> bool {
        let file = OpenOptions::new().write(true).open(self.0.join(file));
        file.and_then(|mut file| file.write_all(value.as_bytes())).is_ok()
    }

    fn add(&self, daemon: &Daemon) {
        assert!(
            self.put("cgroup.procs", &daemon.pid().to_string()),
            "add the daemon"
        );
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The daemon may be exiting.
        for _ in 0..1000 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_daemon_that_cannot_create_threads_still_serves() {
    let Some(group) = Cgroup::new("pids", &["pids.max"], "max") else {
        return;
    };
    let mut daemon = Daemon::start(&vec![1; MIB], &["--aio", "threads"]);
    group.add(&daemon);
    assert!(group.put("pids.max", "1"));
    let mut frontend = connect(&daemon, 8);
    let queue = frontend.queue(0);
    for i in 0..8 {
        queue.submit(&write(i * 4096, &[2; 4096]), i);
    }
    queue.kick();
    assert!(queue.drain().iter().all(|done| done.ret == 0));
    assert_eq!(queue.run(&Op::Flush).ret, 0);
    // Flushes and writes may use different pools.
    let lines = said(&daemon, "cannot create a worker");
    assert!((1..=2).contains(&lines), "{}", daemon.output());
    assert!(daemon.is_alive());
    drop(daemon);
}

#[test]
fn a_memory_limit_does_not_limit_transfers() {
    let files = ["memory.max", "memory.limit_in_bytes"];
    let Some(group) = Cgroup::new("memory", &files, &(16 * MIB).to_string()) else {
        return;
    };
    // Temporary files may be in memory, which would count against the limit. So the image is on disk.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
    fs::File::create(dir.path().join("disk.img"))
        .and_then(|f| f.set_len(64 << 20))
        .expect("make the image");
    let mut daemon = Daemon::start_in(dir, &[]);
    group.add(&daemon);
    let mut frontend = connect(&daemon, 32);
    let queue = frontend.queue(0);
    for round in 0..32u8 {
        for i in 0..32 {
            let offset = (usize::from(round) * 32 + i) * 65_536;
            queue.submit(&write(offset, &[round + 1; 65_536]), i);
        }
        queue.kick();
        assert!(queue.drain().iter().all(|done| done.ret == 0));
    }
    for round in 0..32u8 {
        let done = queue.run(&read(usize::from(round) * 32 * 65_536, 65_536));
        assert!(done.data == [round + 1; 65_536], "{round}");
    }
    assert!(daemon.is_alive());
    drop(daemon);
}

#[test]
fn memory_that_cannot_be_locked_is_used_anyway() {
    let image = [7; 4096];
    let options = ["--register-memory", "--aio", "io_uring"];
    let probe = Daemon::start(&image, &[]);
    if !crate::engines(&probe.image_path()).contains(&&["--aio", "io_uring"][..]) {
        return;
    }
    drop(probe);
    let mut daemon = Daemon::start(&image, &options);
    limit(&daemon, libc::RLIMIT_MEMLOCK, 0);
    let mut frontend = connect(&daemon, 4);
    let failed = "guest memory cannot be registered";
    daemon.wait_for(|daemon| said(daemon, failed) == 1, "notice");
    assert!(daemon.output().contains("ulimit -l"), "{}", daemon.output());
    let done = frontend.queue(0).run(&read(0, 4096));
    assert_eq!((done.ret, &done.data[..]), (0, &image[..]));
    // Later connections have the same trouble, which is not told again.
    drop(frontend);
    let mut frontend = connect(&daemon, 4);
    assert_eq!(frontend.queue(0).run(&read(0, 4096)).ret, 0);
    assert_eq!(said(&daemon, failed), 1);
}
