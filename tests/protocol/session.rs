//! Connections and daemons leave nothing behind when they end.

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use testkit::daemon::{Daemon, SOCKET, run};
use testkit::frontend::{Frontend, Op, SLOT, all_features};
use testkit::process::SetAtEnd;
use testkit::vm::{MEMORY, Ring, Vm};

const DEPTH: usize = 64;
/// The number of workers is fixed: workers that start and end would hide leaked threads.
const STEADY_POOL: &[&str] = &[
    "--thread-pool-min",
    "2",
    "--thread-pool-max",
    "2",
    "--num-queues",
    "2",
];

fn image() -> Vec<u8> {
    (0..DEPTH * SLOT)
        .map(|i| (i / 512 % 251).to_le_bytes()[0])
        .collect()
}

fn connect(daemon: &Daemon) -> Frontend {
    Frontend::connect(&daemon.socket(), 2, DEPTH, all_features()).expect("connect")
}

fn read_all(frontend: &mut Frontend, queue: usize) {
    let queue = frontend.queue(queue);
    (0..DEPTH).for_each(|i| {
        queue.submit(
            &Op::Read {
                offset: (i * SLOT) as u64,
                len: SLOT,
            },
            i,
        )
    });
    queue.kick();
}

/// Runs one connection with I/O on both queues.
fn session(daemon: &Daemon, image: &[u8]) {
    let mut frontend = connect(daemon);
    for queue in 0..2 {
        read_all(&mut frontend, queue);
        for done in frontend.queue(queue).drain() {
            assert!(
                done.ret == 0 && done.data == image[done.tag * SLOT..][..SLOT],
                "a read brings wrong data"
            );
        }
    }
}

#[test]
fn two_hundred_connections_leak_nothing() {
    let image = image();
    let mut daemon = Daemon::start(&image, STEADY_POOL);
    let baseline = daemon.idle_holdings(|daemon| session(daemon, &image));
    for round in 0..200 {
        if round % 10 == 0 {
            session(&daemon, &image);
        } else {
            drop(connect(&daemon));
        }
    }
    daemon.wait_for_holdings(&baseline);
    session(&daemon, &image);
}

#[test]
fn disconnecting_with_requests_in_flight_leaks_nothing() {
    let image = image();
    let mut daemon = Daemon::start(&image, STEADY_POOL);
    let baseline = daemon.idle_holdings(|daemon| session(daemon, &image));
    for _ in 0..20 {
        let mut frontend = connect(&daemon);
        read_all(&mut frontend, 0);
        read_all(&mut frontend, 1);
    }
    daemon.wait_for_holdings(&baseline);
    session(&daemon, &image);
}

#[test]
fn silent_connections_leave_nothing_behind() {
    let image = image();
    let mut daemon = Daemon::start(&image, STEADY_POOL);
    let baseline = daemon.idle_holdings(|daemon| session(daemon, &image));
    (0..50).for_each(|_| drop(daemon.connect()));
    daemon.wait_for_holdings(&baseline);
    session(&daemon, &image);
}

#[test]
fn sigterm_ends_a_busy_daemon_within_a_second() {
    ends_well_on(libc::SIGTERM);
}

#[test]
fn sigint_ends_a_busy_daemon_within_a_second() {
    ends_well_on(libc::SIGINT);
}

fn ends_well_on(signal: libc::c_int) {
    let mut daemon = Daemon::start(&image(), &[]);
    let mut frontend = Frontend::connect(&daemon.socket(), 1, DEPTH, all_features()).expect("connect");
    let (stop, started) = (AtomicBool::new(false), AtomicBool::new(false));
    let exit = std::thread::scope(|scope| {
        let _stop = SetAtEnd(&stop);
        scope.spawn(|| {
            let queue = frontend.queue(0);
            (0..DEPTH).for_each(|i| {
                queue.submit(
                    &Op::Read {
                        offset: (i * SLOT) as u64,
                        len: SLOT,
                    },
                    i,
                )
            });
            while !stop.load(Ordering::Relaxed) {
                queue.kick();
                for done in queue.reap() {
                    started.store(true, Ordering::Relaxed);
                    queue.submit(
                        &Op::Read {
                            offset: (done.tag * SLOT) as u64,
                            len: SLOT,
                        },
                        done.tag,
                    );
                }
            }
        });
        while !started.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let exit = daemon.stop_with(signal);
        stop.store(true, Ordering::Relaxed);
        exit
    });
    assert!(exit.status.success(), "{}: {}", exit.status, exit.output);
    assert!(exit.took < Duration::from_secs(5), "it took {:?}", exit.took);
    assert!(!daemon.socket().exists(), "the socket is still there");
}

#[test]
fn a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().expect("make a directory");
    std::fs::write(dir.path().join("disk.img"), image()).expect("write the image");
    // A closed listener leaves its file in place, as a killed daemon does.
    drop(UnixListener::bind(dir.path().join(SOCKET)).expect("bind"));
    let daemon = Daemon::start_in(dir, &["--num-queues", "2"]);
    drop(daemon.connect());
    session(&daemon, &image());
}

#[test]
fn a_live_socket_is_not_replaced() {
    let dir = tempfile::tempdir().expect("make a directory");
    std::fs::write(dir.path().join("disk.img"), [0; 4096]).expect("write the image");
    let socket = dir.path().join(SOCKET);
    let _listener = UnixListener::bind(&socket).expect("bind");
    refused(dir.path());
    UnixStream::connect(&socket).expect("the other listener still has its socket");
}

#[test]
fn a_file_at_the_socket_path_survives() {
    let dir = tempfile::tempdir().expect("make a directory");
    std::fs::write(dir.path().join("disk.img"), [0; 4096]).expect("write the image");
    std::fs::write(dir.path().join(SOCKET), "precious").expect("write a file");
    refused(dir.path());
    assert_eq!(
        std::fs::read(dir.path().join(SOCKET)).expect("it is there"),
        b"precious"
    );
}

fn refused(dir: &std::path::Path) {
    let exit = run(&["--socket-path", SOCKET, "--blk-file", "disk.img"], dir);
    assert!(!exit.status.success(), "the daemon started");
    assert_eq!(exit.output.lines().count(), 1, "{}", exit.output);
    assert!(exit.output.contains(SOCKET), "{}", exit.output);
}

/// Kicks an empty ring. `write` gets the guest's memory, which is zero, before the ring starts.
fn kick_nothing(stream: UnixStream, write: impl FnOnce(&Vm)) -> Vm {
    let mut vm = Vm::on(stream, 0);
    vm.memory.write(0, &vec![0; MEMORY]);
    write(&vm);
    vm.share_memory();
    vm.start_ring(0, Ring::new(0, 16));
    vm.kick(0);
    vm
}

fn private(_: &Vm) {}

#[test]
fn a_driver_on_private_memory_is_reported() {
    let mut daemon = Daemon::start(&[0; 4096], &["--num-queues", "2"]);
    let warned = |daemon: &Daemon| daemon.output().contains("share=on");
    // The driver writes to a private copy of its memory: only its kick arrives.
    let vm = kick_nothing(daemon.connect(), private);
    daemon.wait_for(warned, "say that there is nothing in the ring");
    drop(vm);
    assert_eq!(daemon.output().matches("share=on").count(), 1);
    assert!(daemon.is_alive());
}

/// A driver may kick when there is no request, and QEMU kicks each ring that starts.
#[test]
fn a_needless_first_kick_is_not_reported() {
    let disks = ["table", "ring", "guest", "private"];
    let dir = tempfile::tempdir().expect("make a directory");
    let option = |disk: &&str| {
        std::fs::write(dir.path().join(disk), [0; 4096]).expect("write an image");
        let node = format!("driver=file,node-name={disk},filename={disk}");
        let export =
            format!("vhost-user-blk,id={disk},node-name={disk},addr.type=unix,addr.path={disk}.sock");
        ["--blockdev".to_owned(), node, "--export".to_owned(), export]
    };
    let options: Vec<String> = disks.iter().flat_map(option).collect();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let mut daemon = Daemon::start_with(dir, &options);
    let connect = |disk: &str| {
        let socket = daemon.dir().join(format!("{disk}.sock"));
        UnixStream::connect(socket).expect("connect")
    };
    let ring = Ring::new(0, 16);
    let _vms = [
        // A list of free descriptors, as many drivers keep it.
        kick_nothing(connect("table"), |vm| vm.memory.write(ring.desc + 14, &[1])),
        // No interrupts, please.
        kick_nothing(connect("ring"), |vm| vm.memory.write(ring.avail, &[1])),
        // The firmware's data.
        kick_nothing(connect("guest"), |vm| vm.memory.write(MEMORY - 1, &[1])),
        // It is reported last, because its kick is the last one.
        kick_nothing(connect("private"), private),
    ];
    let warned = |daemon: &Daemon| daemon.output().contains("share=on");
    daemon.wait_for(warned, "report private memory");
    let output = daemon.output();
    let warnings: Vec<&str> = output.lines().filter(|line| line.contains("share=on")).collect();
    assert!(
        matches!(warnings[..], [line] if line.contains("private")),
        "{warnings:?}"
    );
}

#[test]
fn a_frontend_that_shares_no_memory_is_reported() {
    let daemon = Daemon::start(&[0; 4096], &["--num-queues", "2"]);
    let mut vm = Vm::connect(&daemon, 0);
    vm.start_ring(0, Ring::new(0, 16));
    assert_eq!(
        daemon.output().matches("share=on").count(),
        1,
        "{}",
        daemon.output()
    );
    // The frontend may still share its memory later.
    vm.share_memory();
    vm.read_sector(0, 1);
}

#[test]
fn a_needless_kick_is_not_reported() {
    let daemon = Daemon::start(&[0; 4096], &["--num-queues", "2"]);
    let mut vm = Vm::start(&daemon, 2);
    vm.kick(1);
    vm.read_sector(0, 1);
    vm.kick(1);
    let start = std::time::Instant::now();
    while start.elapsed() < std::time::Duration::from_millis(2500) {
        vm.read_sector(0, 1);
    }
    assert!(!daemon.output().contains("share=on"), "{}", daemon.output());
}
