//! Two disks with sockets of their own in one process, on shared IOThreads. One is added and removed again and again
//! while the other one works.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testkit::frontend::{Frontend, Op, all_features};
use testkit::holdings::Holdings;
use testkit::memory::PATIENCE;
use testkit::process::{SetAtEnd, run_alone};
use testkit::random::Random;
use virtio_driver::VirtioTransport;

use vhost_user_blk::blk::device::{BlkDevice, DeviceParams};
use vhost_user_blk::blk::error_policy::ErrorPolicy;
use vhost_user_blk::daemon::disks::{Disk, Disks};
use vhost_user_blk::engine::{BlockNode, Choice};
use vhost_user_blk::iothread::{IoThread, IoThreadParams};
use vhost_user_blk::sandbox::{Keep, Mode, Sandbox};
use vhost_user_blk::storage::OpenOptions;
use vhost_user_blk::thread_pool::ThreadPoolParams;
use vhost_user_blk::vhost_user::path::SocketAccess;
use vhost_user_blk::vhost_user::server::Server;

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;
const QUEUES: u16 = 2;
/// Workers of each IOThread's pool.
const WORKERS: usize = 2;
const ROUNDS: usize = 1000;

fn iothreads() -> Vec<Arc<IoThread>> {
    let params = IoThreadParams {
        thread_pool: ThreadPoolParams {
            min_threads: 0,
            max_threads: WORKERS,
        },
        ..IoThreadParams::default()
    };
    (0..QUEUES)
        .map(|n| IoThread::spawn(&format!("iothread{n}"), &params).expect("start an IOThread"))
        .map(Arc::new)
        .collect()
}

fn open(path: &Path, direct: bool) -> BlockNode {
    let options = OpenOptions {
        path: path.to_owned(),
        direct,
        ..OpenOptions::default()
    };
    BlockNode::open(&options).expect("open the image")
}

/// Time limit for removing a disk that has nothing in flight.
const SOON: Duration = PATIENCE;

fn registry() -> Disks {
    let keep = Keep::default();
    let sandbox = Sandbox::new(Mode::Off, keep).expect("no sandbox");
    Disks::new(sandbox, Arc::new(|_: &str| ()))
}

/// Serves a disk with each queue on an IOThread of its own.
fn serve(disks: &mut Disks, name: &str, node: BlockNode, socket: &Path, iothreads: &[Arc<IoThread>]) {
    let params = DeviceParams {
        name: name.to_owned(),
        limits: *node.limits(),
        write_through: false,
        serial: [0; 20],
        num_queues: QUEUES,
        queue_size: 256,
        engine: node.plan(Choice::Auto).expect("an engine"),
        queue_iothreads: (0..QUEUES).collect(),
        batch_notifications: true,
        error_policy: ErrorPolicy::default(),
        faults: None,
        throttle: None,
    };
    let device = BlkDevice::new(Arc::new(node), params, iothreads).expect("make a disk");
    let server = Server::bind(socket, &SocketAccess::default()).expect("listen");
    disks
        .add(name, device, server, iothreads.to_vec())
        .expect("serve");
}

fn remove(disks: &mut Disks, name: &str) {
    let disk = disks.remove(name).expect("it is there");
    assert!(disk.wait(SOON), "{name} does not leave");
    disk.join();
}

/// Blocks of random content, written and read on both queues.
struct Work {
    frontend: Frontend,
    random: Random,
    model: Vec<u8>,
}

impl Work {
    fn new(socket: &Path, model: Vec<u8>) -> Self {
        let frontend = Frontend::connect(socket, QUEUES.into(), 8, all_features()).expect("connect");
        Self {
            frontend,
            random: Random::new(1),
            model,
        }
    }

    fn step(&mut self) {
        let queue = self.random.below(QUEUES.into());
        let at = self.random.below(self.model.len() / BLOCK) * BLOCK;
        let queue = self.frontend.queue(queue);
        if self.random.below(2) == 0 {
            let data = self.random.bytes(BLOCK);
            self.model[at..at + BLOCK].copy_from_slice(&data);
            let offset = at as u64;
            assert_eq!(queue.run(&Op::Write { offset, data }).ret, 0);
        } else {
            let done = queue.run(&Op::Read {
                offset: at as u64,
                len: BLOCK,
            });
            assert!(
                done.ret == 0 && done.data == self.model[at..at + BLOCK],
                "at {at}"
            );
        }
    }
}

fn image(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let mut file = std::fs::File::create(&path).expect("make an image");
    file.write_all(&vec![7; MIB]).expect("fill it");
    path
}

/// Adds a disk, uses it, and removes it again.
fn come_and_go(disks: &mut Disks, round: usize, dir: &Path, iothreads: &[Arc<IoThread>]) {
    let (path, socket) = (dir.join("coming.img"), dir.join("coming.sock"));
    let node = match round % 4 {
        0 => open(&path, false),
        1 => open(&path, true),
        2 => BlockNode::null_aio(MIB as u64, Duration::from_micros(100)),
        _ => BlockNode::null(MIB as u64),
    };
    let stores = matches!(&node, BlockNode::File(_));
    serve(disks, "coming", node, &socket, iothreads);
    let mut frontend = Frontend::connect(&socket, QUEUES.into(), 4, all_features()).expect("connect");
    let byte = u8::try_from(round % 256).expect("a byte");
    for (queue, offset) in frontend.queues().iter_mut().zip([0, BLOCK as u64]) {
        let data = vec![byte; BLOCK];
        assert_eq!(queue.run(&Op::Write { offset, data }).ret, 0);
        let done = queue.run(&Op::Read { offset, len: BLOCK });
        assert!(
            done.ret == 0 && (!stores || done.data == [byte; BLOCK]),
            "{round}"
        );
    }
    let total = disks.get("coming").expect("it is there").report().total;
    assert_eq!((total.reads, total.writes), (2, 2));
    if round.is_multiple_of(2) {
        drop(frontend);
        remove(disks, "coming");
    } else {
        remove(disks, "coming");
        assert!(frontend.transport.get_config().is_err(), "its frontend is told");
    }
    assert!(!socket.exists(), "its socket is gone");
}

fn holdings() -> Holdings {
    Holdings::of(std::process::id())
}

#[test]
fn adding_and_removing_a_disk_leaks_nothing() {
    run_alone("two_disks::body_of_adding_and_removing");
}

#[test]
#[ignore = "counts what its process holds"]
fn body_of_adding_and_removing() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
    let (staying, socket) = (image(dir.path(), "staying.img"), dir.path().join("staying.sock"));
    image(dir.path(), "coming.img");
    let iothreads = iothreads();
    let mut disks = registry();
    serve(&mut disks, "staying", open(&staying, false), &socket, &iothreads);
    let stop = AtomicBool::new(false);
    let model = thread::scope(|scope| {
        let _stop = SetAtEnd(&stop);
        let worker = scope.spawn(|| {
            let mut work = Work::new(&socket, vec![7; MIB]);
            let mut steps = 0;
            while !stop.load(Ordering::Relaxed) {
                work.step();
                steps += 1;
            }
            (work.model, steps)
        });
        // After these rounds, everything that outlives a disk exists: rings, pools, the C library's caches.
        (0..20).for_each(|round| come_and_go(&mut disks, round, dir.path(), &iothreads));
        let limit = holdings();
        (0..ROUNDS).for_each(|round| come_and_go(&mut disks, round, dir.path(), &iothreads));
        let deadline = Instant::now() + PATIENCE;
        while !holdings().is_within(&limit) {
            assert!(
                Instant::now() < deadline,
                "{:#?} are left, and not {limit:#?}",
                holdings()
            );
            thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        let (model, steps) = worker.join().expect("the other disk works");
        assert!(steps > ROUNDS / 10, "it worked meanwhile: {steps}");
        model
    });
    assert_eq!(disks.iter().count(), 1);
    remove(&mut disks, "staying");
    assert!(std::fs::read(&staying).expect("read the image") == model);
}

#[test]
fn removing_a_disk_waits_for_no_other() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
    image(dir.path(), "coming.img");
    let (iothreads, socket) = (iothreads(), dir.path().join("slow.sock"));
    let latency = Duration::from_secs(2);
    let mut disks = registry();
    let node = BlockNode::null_aio(MIB as u64, latency);
    serve(&mut disks, "slow", node, &socket, &iothreads);
    let mut frontend = Frontend::connect(&socket, QUEUES.into(), 1, all_features()).expect("connect");
    for queue in frontend.queues() {
        let op = Op::Read {
            offset: 0,
            len: BLOCK,
        };
        queue.submit(&op, 0);
        queue.kick();
    }
    (0..8).for_each(|round| come_and_go(&mut disks, round, dir.path(), &iothreads));
    for queue in frontend.queues() {
        assert_eq!(queue.in_flight(), 1, "the slow disk is still at it");
        assert!(queue.drain().iter().all(|done| done.ret == 0));
    }
    drop(frontend);
    remove(&mut disks, "slow");
}

#[test]
fn the_end_reports_disks_that_are_busy() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
    let (iothreads, mut disks) = (iothreads(), registry());
    let sockets = ["idle", "busy"].map(|name| dir.path().join(name));
    let latency = Duration::from_secs(2);
    let nodes = [
        BlockNode::null(MIB as u64),
        BlockNode::null_aio(MIB as u64, latency),
    ];
    for ((name, node), socket) in ["idle", "busy"].into_iter().zip(nodes).zip(&sockets) {
        serve(&mut disks, name, node, socket, &iothreads);
    }
    let mut frontend = Frontend::connect(&sockets[1], QUEUES.into(), 1, all_features()).expect("connect");
    let op = Op::Read {
        offset: 0,
        len: BLOCK,
    };
    let queue = frontend.queue(0);
    queue.submit(&op, 0);
    queue.kick();
    let reads = || disks.get("busy").map(|disk| disk.report().total.kicks);
    testkit::process::wait_for("the request to be taken", || reads().filter(|kicks| *kicks > 0));
    let ended = disks.end(Vec::new(), Duration::from_millis(100));
    let names = |disks: &[Disk]| {
        disks
            .iter()
            .map(|disk| disk.name().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (names(&ended.finished), names(&ended.busy)),
        (vec!["idle".to_owned()], vec!["busy".to_owned()])
    );
    for disk in ended.busy {
        assert!(disk.wait(PATIENCE), "it answers after all");
        disk.join();
    }
}

#[test]
fn a_slow_null_disk_can_be_resized() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
    let (iothreads, socket, mut disks) = (iothreads(), dir.path().join("slow.sock"), registry());
    let node = BlockNode::null_aio(MIB as u64, Duration::from_millis(5));
    let BlockNode::NullAio(null, _) = &node else {
        unreachable!("made just now")
    };
    let null = Arc::clone(null);
    serve(&mut disks, "slow", node, &socket, &iothreads);
    let mut frontend = Frontend::connect(&socket, QUEUES.into(), 1, all_features()).expect("connect");
    for size in [2 * MIB, MIB / 2] {
        null.set_len(size as u64);
        let disk = disks.get("slow").expect("it is there");
        disk.resizer().refresh().expect("the IOThread runs");
        testkit::process::wait_for("the new size", || {
            let config = frontend.transport.get_config().expect("the configuration");
            (config.capacity.to_native() == (size / 512) as u64).then_some(())
        });
        for (offset, works) in [(size - BLOCK, true), (size, false)] {
            let op = Op::Read {
                offset: offset as u64,
                len: BLOCK,
            };
            assert_eq!(frontend.queue(1).run(&op).ret == 0, works, "{offset} of {size}");
        }
    }
    drop(frontend);
    remove(&mut disks, "slow");
}
