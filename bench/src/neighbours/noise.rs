//! What a hostile or slow disk, or another queue, does beside a well-behaved queue. Runs on a thread of its own.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testkit::raw::msg;
use testkit::vm::{Ring, Vm};

use crate::args::{Pattern, Wait};
use crate::candidate::{Candidate, Kind};
use crate::contention::Contention;
use crate::frontend::open;
use crate::lane::Lane;
use crate::load::{Frontend, Load};
use crate::shape::Shape;

/// Time limit for the next answer of the noisy disk. A queue full of large writes may take this long in all, and a busy
/// file system may hold up a single one for seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The place of the noise. The well-behaved disk's file is in memory, unless it has the noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Another disk of the process.
    OtherDisk,
    /// Another queue of the well-behaved disk, whose file is in the page cache.
    PageCache,
    /// The same, with O_DIRECT.
    Direct,
}

/// One kind of noise.
pub(super) struct Noise {
    pub(super) name: &'static str,
    /// Where the noise is.
    pub(super) place: Place,
    /// The noisy disk's node, without a name.
    pub(super) node: &'static str,
    /// More options of the export.
    pub(super) export: &'static str,
    /// The disk's queues. Without it nothing connects.
    pub(super) load: Option<Load>,
    pub(super) make: fn(&mut [Lane<'static>], &Path, &AtomicBool) -> Result<()>,
}

impl Noise {
    /// Returns whether the noisy disk is an export of a qemu-nbd.
    pub(super) fn is_served(&self) -> bool {
        self.node.starts_with("nbd,")
    }

    /// Returns whether a candidate knows the options.
    pub(super) fn suits(&self, candidate: &Candidate) -> bool {
        self.export.is_empty()
            || self.export.starts_with(",num-queues")
            || matches!(candidate.kind, Kind::Ours { .. })
    }
}

const NULL: &str = "null-co,size=67108864,read-zeroes=off";

pub(super) const NOISES: &[Noise] = &[
    Noise {
        name: "64 requests on a queue",
        place: Place::OtherDisk,
        node: NULL,
        export: "",
        load: Some(load(Shape::new(1, 64, 1), 4096, Pattern::Randread)),
        make: requests,
    },
    Noise {
        name: "64 queues",
        place: Place::OtherDisk,
        node: NULL,
        export: ",num-queues=64",
        load: Some(load(Shape::new(64, 8, 1), 4096, Pattern::Randread)),
        make: requests,
    },
    Noise {
        name: "reads of 1 MiB",
        place: Place::OtherDisk,
        node: "file,filename={dir}/noisy.img",
        export: "",
        load: Some(load(Shape::new(1, 64, 1), 1 << 20, Pattern::Randread)),
        make: requests,
    },
    Noise {
        name: "an NBD server's disk",
        place: Place::OtherDisk,
        node: "nbd,server.type=unix,server.path={dir}/nbd.sock,export=disk",
        export: "",
        load: Some(load(Shape::new(1, 64, 1), 4096, Pattern::Randread)),
        make: requests,
    },
    Noise {
        name: "storage that takes 20 ms",
        place: Place::OtherDisk,
        node: "null-aio,size=67108864,latency-ns=20000000,read-zeroes=off",
        export: "",
        load: Some(load(Shape::new(1, 64, 1), 4096, Pattern::Randread)),
        make: requests,
    },
    Noise {
        name: "a storm of kicks",
        place: Place::OtherDisk,
        node: NULL,
        export: "",
        load: Some(load(Shape::new(1, 1, 1), 4096, Pattern::Randread)),
        make: kicks,
    },
    Noise {
        name: "connections",
        place: Place::OtherDisk,
        node: NULL,
        export: "",
        load: None,
        make: connections,
    },
    Noise {
        name: "a storm of messages",
        place: Place::OtherDisk,
        node: NULL,
        export: "",
        load: None,
        make: messages,
    },
    Noise {
        name: "broken rings",
        place: Place::OtherDisk,
        node: NULL,
        export: "",
        load: None,
        make: broken_rings,
    },
    Noise {
        name: "writes, page cache",
        place: Place::PageCache,
        node: NULL,
        export: "",
        load: Some(load(Shape::new(1, 32, 1), 1 << 20, Pattern::Randwrite)),
        make: requests,
    },
    Noise {
        name: "writes, O_DIRECT",
        place: Place::Direct,
        node: NULL,
        export: "",
        load: Some(load(Shape::new(1, 32, 1), 1 << 20, Pattern::Randwrite)),
        make: requests,
    },
];

/// Returns a load for one of the disks.
pub(super) const fn load(shape: Shape, block_size: u64, rw: Pattern) -> Load {
    Load {
        frontend: Frontend::Native,
        shape,
        one_process: true,
        rw,
        block_size,
        wait: Wait::Sleep,
        contention: Contention::Idle,
        event_idx: true,
        suppress: false,
        driver_threads: 1,
        warmup: Duration::ZERO,
        runtime: Duration::ZERO,
    }
}

fn goes_on(stop: &AtomicBool) -> bool {
    !stop.load(Ordering::Relaxed)
}

/// Keeps all queues full.
fn requests(lanes: &mut [Lane<'static>], _: &Path, stop: &AtomicBool) -> Result<()> {
    while goes_on(stop) {
        let mut reaped = 0;
        for lane in lanes.iter_mut() {
            lane.submit()?;
            reaped += lane.reap();
        }
        if reaped == 0 {
            // Leaves the CPU to the others, as a driver does that waits for interrupts.
            thread::sleep(Duration::from_micros(50));
        }
    }
    lanes.iter_mut().try_for_each(finish)
}

/// Kicks without requests.
fn kicks(lanes: &mut [Lane<'static>], _: &Path, stop: &AtomicBool) -> Result<()> {
    while goes_on(stop) {
        lanes.iter().try_for_each(Lane::kick)?;
        thread::yield_now();
    }
    Ok(())
}

/// Connects, negotiates, and leaves.
fn connections(_: &mut [Lane<'static>], socket: &Path, stop: &AtomicBool) -> Result<()> {
    let socket = socket.to_str().context("the socket's path is not UTF-8")?;
    while goes_on(stop) {
        drop(open(
            socket,
            load(Shape::new(1, 1, 1), 4096, Pattern::Randread).features(),
        )?);
    }
    Ok(())
}

/// Asks for the features, and shares its memory anew, as fast as the backend answers.
fn messages(_: &mut [Lane<'static>], socket: &Path, stop: &AtomicBool) -> Result<()> {
    let mut vm = Vm::on(UnixStream::connect(socket)?, 0);
    while goes_on(stop) {
        for _ in 0..8 {
            vm.client.get_u64(msg::GET_FEATURES)?;
        }
        vm.share_memory();
    }
    Ok(())
}

/// Connects, starts a ring, breaks it, and leaves.
fn broken_rings(_: &mut [Lane<'static>], socket: &Path, stop: &AtomicBool) -> Result<()> {
    while goes_on(stop) {
        let mut vm = Vm::on(UnixStream::connect(socket)?, 0);
        vm.share_memory();
        vm.start_ring(0, Ring::new(0, 16));
        // The index runs ahead of the ring.
        vm.rings[0].advance(&vm.memory, 1000);
        vm.rings[0].kick.write(1)?;
        let end = Instant::now() + PATIENCE;
        while vm.rings[0].err.read().is_err() {
            ensure!(
                Instant::now() < end,
                "the backend does not report the broken ring"
            );
            thread::sleep(Duration::from_micros(50));
        }
    }
    Ok(())
}

/// Waits for the requests in flight.
fn finish(lane: &mut Lane<'static>) -> Result<()> {
    let mut last = Instant::now();
    while lane.in_flight() > 0 {
        if lane.reap() > 0 {
            last = Instant::now();
            continue;
        }
        ensure!(
            last.elapsed() < PATIENCE,
            "the noisy disk has not answered any of {} requests for {} s",
            lane.in_flight(),
            PATIENCE.as_secs()
        );
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}
