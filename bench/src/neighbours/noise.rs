//! What a hostile or slow disk does beside a well-behaved one. Runs on a thread of its own.

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

/// Time limit for the answers of the noisy disk.
const PATIENCE: Duration = Duration::from_secs(3);

/// One kind of noise.
pub(super) struct Noise {
    pub(super) name: &'static str,
    /// The disk's node, without a name.
    pub(super) node: &'static str,
    /// More options of the export.
    pub(super) export: &'static str,
    /// The disk's queues. Without it nothing connects.
    pub(super) load: Option<Load>,
    pub(super) make: fn(&mut [Lane<'static>], &Path, &AtomicBool) -> Result<()>,
}

impl Noise {
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
        node: NULL,
        export: "",
        load: Some(load(Shape::new(1, 64, 1), 4096)),
        make: requests,
    },
    Noise {
        name: "64 queues",
        node: NULL,
        export: ",num-queues=64",
        load: Some(load(Shape::new(64, 8, 1), 4096)),
        make: requests,
    },
    Noise {
        name: "reads of 1 MiB",
        node: "file,filename={dir}/noisy.img",
        export: "",
        load: Some(load(Shape::new(1, 64, 1), 1 << 20)),
        make: requests,
    },
    Noise {
        name: "storage that takes 20 ms",
        node: "null-aio,size=67108864,latency-ns=20000000,read-zeroes=off",
        export: "",
        load: Some(load(Shape::new(1, 64, 1), 4096)),
        make: requests,
    },
    Noise {
        name: "a storm of kicks",
        node: NULL,
        export: "",
        load: Some(load(Shape::new(1, 1, 1), 4096)),
        make: kicks,
    },
    Noise {
        name: "connections",
        node: NULL,
        export: "",
        load: None,
        make: connections,
    },
    Noise {
        name: "a storm of messages",
        node: NULL,
        export: "",
        load: None,
        make: messages,
    },
    Noise {
        name: "broken rings",
        node: NULL,
        export: "",
        load: None,
        make: broken_rings,
    },
];

/// Reads at random places.
pub(super) const fn load(shape: Shape, block_size: u64) -> Load {
    Load {
        frontend: Frontend::Native,
        shape,
        one_process: true,
        rw: Pattern::Randread,
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
        drop(open(socket, load(Shape::new(1, 1, 1), 4096).features())?);
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
    let end = Instant::now() + PATIENCE;
    while lane.in_flight() > 0 {
        ensure!(Instant::now() < end, "the noisy disk does not answer");
        if lane.reap() == 0 {
            thread::sleep(Duration::from_micros(100));
        }
    }
    Ok(())
}
