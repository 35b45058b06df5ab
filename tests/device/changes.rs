//! The node below a disk changes while a frontend uses the disk.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::SetAtEnd;

use vhost_user_blk::blk::device::{BlkDevice, DeviceParams};
use vhost_user_blk::blk::error_policy::ErrorPolicy;
use vhost_user_blk::blk::handle::DiskHandle;
use vhost_user_blk::daemon::disks::Disks;
use vhost_user_blk::engine::{BlockNode, Choice, DiskView, NodeControl};
use vhost_user_blk::iothread::{IoThread, IoThreadParams};
use vhost_user_blk::sandbox::{Keep, Mode, Sandbox};
use vhost_user_blk::storage::{ImageLock, OpenOptions, RawFile};
use vhost_user_blk::throttle::{Group, ThrottleLimits};
use vhost_user_blk::vhost_user::path::SocketAccess;
use vhost_user_blk::vhost_user::server::Server;

const BLOCK: usize = 4096;
const BLOCKS: u8 = 16;

/// A disk of two queues on two IOThreads, whose image has its number in each block.
struct Rig {
    disks: Disks,
    handle: Arc<DiskHandle>,
    options: OpenOptions,
    dir: tempfile::TempDir,
    // Dropped last, because the disk uses them.
    _iothreads: Vec<Arc<IoThread>>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..BLOCKS).flat_map(|block| [block; BLOCK]).collect();
        std::fs::write(dir.path().join("img"), content).unwrap();
        let options = OpenOptions {
            path: dir.path().join("img"),
            ..OpenOptions::default()
        };
        let node = Arc::new(BlockNode::open(&options).unwrap());
        let spawn = |_| Arc::new(IoThread::spawn("iothread", &IoThreadParams::default()).unwrap());
        let iothreads: Vec<Arc<IoThread>> = (0..2).map(spawn).collect();
        let params = DeviceParams {
            name: "disk".to_owned(),
            limits: *node.limits(),
            write_through: false,
            serial: [0; 20],
            num_queues: 2,
            queue_size: 64,
            engine: node.plan(Choice::Auto).unwrap(),
            queue_iothreads: vec![0, 1],
            batch_notifications: true,
            error_policy: ErrorPolicy::default(),
            faults: None,
            throttle: None,
        };
        let device = BlkDevice::new(node, params, &iothreads).unwrap();
        device.activate(NodeControl::run).unwrap();
        let handle = Arc::clone(device.handle());
        let sandbox = Sandbox::new(Mode::Off, Keep::default()).unwrap();
        let mut disks = Disks::new(sandbox, Arc::new(|_: &str| ()));
        let server = Server::bind(&socket(dir.path()), &SocketAccess::default()).unwrap();
        disks.add("disk", device, server, iothreads.clone()).unwrap();
        Self {
            disks,
            handle,
            options,
            dir,
            _iothreads: iothreads,
        }
    }

    fn connect(&self) -> Frontend {
        Frontend::connect(&socket(self.dir.path()), 2, 8, all_features()).unwrap()
    }

    /// Returns whether another process could lock the image for writing.
    fn is_unlocked(&self) -> bool {
        ImageLock::acquire(&RawFile::open(&self.options).unwrap()).is_ok()
    }

    /// Ends the disk.
    fn end(mut self) {
        drop(self.handle);
        let disk = self.disks.remove("disk").unwrap();
        disk.join();
    }
}

fn socket(dir: &Path) -> std::path::PathBuf {
    dir.join("sock")
}

fn first_block(frontend: &mut Frontend, queue: usize) -> u8 {
    let done = frontend.queue(queue).run(&Op::Read {
        offset: 0,
        len: BLOCK,
    });
    assert!(
        done.ret == 0 && done.data == [done.data[0]; BLOCK],
        "a torn block"
    );
    done.data[0]
}

#[test]
fn the_node_is_replaced_under_load() {
    let rig = Rig::new();
    let mut frontend = rig.connect();
    let limits = ThrottleLimits {
        iops_total: 1_000_000,
        ..ThrottleLimits::default()
    };
    let group = Group::new("g", limits).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = SetAtEnd(&stop);
        let worker = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                assert!(first_block(&mut frontend, 0) < BLOCKS && first_block(&mut frontend, 1) < BLOCKS);
            }
        });
        for round in 0..100_u8 {
            let quiesced = rig.handle.quiesce().unwrap();
            let view = DiskView {
                start: u64::from(round % BLOCKS) * BLOCK as u64,
                ..(*rig.handle.view()).clone()
            };
            let (plan, group) = (rig.handle.engine(), (round % 3 == 0).then_some(&group));
            let replacement = quiesced.prepare(view, plan, group).unwrap();
            match round % 4 {
                0 => drop(replacement),
                _ => assert!(replacement.commit() || round == 1),
            }
        }
        stop.store(true, Ordering::Relaxed);
        worker.join().unwrap();
    });
    // The last round began at block 99 % 16.
    assert_eq!(
        [first_block(&mut frontend, 0), first_block(&mut frontend, 1)],
        [3, 3]
    );
    drop(frontend);
    rig.end();
}

#[test]
fn an_inactive_disk_leaves_the_image_to_others() {
    let rig = Rig::new();
    let mut frontend = rig.connect();
    let write = Op::Write {
        offset: 0,
        data: vec![0xee; BLOCK],
    };
    assert_eq!(frontend.queue(0).run(&write).ret, 0);
    assert!(!rig.is_unlocked());
    rig.handle.deactivate().unwrap();
    assert!(rig.is_unlocked());
    for queue in [0, 1] {
        assert_ne!(frontend.queue(queue).run(&write).ret, 0);
        assert_ne!(frontend.queue(queue).run(&Op::Flush).ret, 0);
        assert_eq!(first_block(&mut frontend, queue), 0xee);
    }
    // Another frontend does not change that.
    drop(frontend);
    let mut frontend = rig.connect();
    assert_eq!(first_block(&mut frontend, 0), 0xee);
    assert!(rig.is_unlocked());
    rig.handle.activate().unwrap();
    assert!(!rig.is_unlocked());
    assert_eq!(frontend.queue(1).run(&write).ret, 0);
    drop(frontend);
    rig.end();
}
