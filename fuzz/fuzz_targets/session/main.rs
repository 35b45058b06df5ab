//! Runs whole sessions over a real socket: messages with descriptors, rings, requests, disconnects, in any order.
//!
//! The daemon's code must not panic, hang or leak descriptors and threads. It must write only where a ring or a request
//! points.
#![no_main]

mod frontend;
mod play;
mod steps;

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vhost_user_blk::memory::RegionInfo;
use vhost_user_blk_fuzz::frontend::{Backend, DISK, QUEUES, TAIL};
use vhost_user_blk_fuzz::guest::{FILE_LEN, Guest, Image, REGIONS, eventfd};
use vhost_user_blk_fuzz::holdings::{Holdings, descriptors};

use frontend::Frontend;
use steps::{Start, Step};

#[derive(Arbitrary, Debug)]
struct Input {
    /// Begins with the set-up of an ordinary frontend.
    set_up: Option<Start>,
    steps: Vec<Step>,
}

/// The state that lives as long as the process.
struct World {
    backend: Backend,
    idle: Holdings,
}

thread_local! {
    /// Never dropped: the backend's threads end with the process.
    static WORLD: RefCell<Option<ManuallyDrop<World>>> = const { RefCell::new(None) };
}

fuzz_target!(|input: Input| {
    WORLD.with_borrow_mut(|world| {
        let world = world.get_or_insert_with(|| ManuallyDrop::new(World::new()));
        world.run(input.set_up, &input.steps);
    });
});

impl World {
    fn new() -> Self {
        let mut world = Self {
            backend: Backend::new(),
            idle: Holdings::now(),
        };
        // A first session creates the threads and files that stay.
        let start = Start {
            event_idx: true,
            indirect: true,
            log: true,
            inflight: true,
            size: 4,
            base: 0,
        };
        world.session(Some(start), &[Step::Kick(false), Step::Barrier]);
        thread::sleep(Duration::from_millis(200));
        world.idle = Holdings::now();
        world
    }

    fn run(&mut self, start: Option<Start>, steps: &[Step]) {
        self.session(start, steps);
        let begin = Instant::now();
        while Holdings::now() != self.idle {
            assert!(
                begin.elapsed() < Duration::from_secs(2),
                "left behind: {:?}, before the session {:?}; now {:?}",
                Holdings::now(),
                self.idle,
                descriptors()
            );
            thread::yield_now();
        }
    }

    fn session(&mut self, start: Option<Start>, steps: &[Step]) {
        let tail = [0x5a; TAIL as usize];
        self.backend.disk.set_len(DISK + TAIL).expect("size the disk");
        self.backend
            .disk
            .write_all_at(&tail, DISK)
            .expect("write the tail");
        let (client, resizer) = self.backend.connect();
        resizer.refresh().expect("the IOThread runs");
        self.backend.wait_for_size();
        let mut frontend = Frontend {
            backend: &self.backend,
            client: Some(client),
            resizer,
            guest: Guest::new(),
            kicks: [eventfd(), eventfd()],
            sizes: [32; QUEUES as usize],
            inflight: None,
            whole: true,
            odd_memory: false,
            resized: false,
        };
        if let Some(start) = start {
            frontend.start(&start);
        }
        for step in steps.iter().take(40) {
            frontend.step(step);
        }
        frontend.end();
        let (odd_memory, resized) = (frontend.odd_memory, frontend.resized);
        let image = frontend.guest.image();
        drop(frontend);
        if !odd_memory {
            check_guards(&image);
        }
        if !resized {
            let mut now = tail;
            self.backend
                .disk
                .read_exact_at(&mut now, DISK)
                .expect("read the tail");
            assert!(now == tail, "what is behind the disk was written");
        }
    }
}

/// Checks that no byte outside the regions was written.
fn check_guards(image: &Image) {
    let fresh = Image::new();
    let in_region = |at: usize| {
        let covers = |r: &RegionInfo| (r.file_offset..r.file_offset + r.len).contains(&(at as u64));
        REGIONS.iter().any(covers)
    };
    let changed = (0..FILE_LEN).find(|&at| image.0[at] != fresh.0[at] && !in_region(at));
    assert_eq!(changed, None, "a guard page was written");
}
