//! Single requests at the moments when the IOThread begins to poll, ends, and drops a ring that is idle.
//!
//! Whoever misses a kick or a notification then waits for ever, because nothing else happens. The driver prints where the
//! rings stand if that is the case.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::SetAtEnd;
use testkit::random::Random;
use virtio_driver::VirtioFeatureFlags;

const QUEUES: usize = 4;
const BLOCK: usize = 512;
/// No request takes that long, even on a busy machine.
const STUCK: Duration = Duration::from_secs(30);

const READ: Op = Op::Read {
    offset: 0,
    len: BLOCK,
};

struct Driver {
    daemon: Daemon,
    frontend: Frontend,
    random: Random,
    requests: u64,
}

impl Driver {
    fn start(options: &[&str], event_idx: bool, seed: u64) -> Self {
        let queues = QUEUES.to_string();
        let options = [&["--num-queues", &queues], options].concat();
        let daemon = Daemon::start(&[0; 1 << 16], &options);
        let mask = match event_idx {
            true => 0,
            false => VirtioFeatureFlags::RING_EVENT_IDX.bits(),
        };
        let features = all_features() & !mask;
        let frontend = Frontend::connect(&daemon.socket(), QUEUES, 4, features).expect("connect");
        Self {
            daemon,
            frontend,
            random: Random::new(seed),
            requests: 0,
        }
    }

    fn submit(&mut self, queue: usize) {
        let queue = self.frontend.queue(queue);
        queue.submit(&READ, 0);
        queue.kick();
        self.requests += 1;
    }

    /// Waits for all requests of a queue: asleep, as most drivers do, or looking at the used ring.
    fn wait(&mut self, queue: usize) {
        let (sleeps, start) = (self.random.below(4) > 0, Instant::now());
        while self.frontend.queue(queue).in_flight() > 0 {
            let done = match sleeps {
                true => self.frontend.queue(queue).wait_at_most(STUCK).is_some(),
                false => !self.frontend.queue(queue).reap().is_empty(),
            };
            if !done && start.elapsed() >= STUCK {
                let statistics = self.daemon.statistics();
                panic!(
                    "a request of queue {queue} was not answered after {} others; slept: {sleeps}\n{statistics}",
                    self.requests - 1
                );
            }
        }
    }

    /// Lets a time between these pass, in microseconds: asleep, or looking at the clock if it is short.
    fn pause(&mut self, from: u64, to: u64) {
        let time = Duration::from_micros(from + self.random.next() % (to - from));
        if time > Duration::from_millis(1) {
            return thread::sleep(time);
        }
        let start = Instant::now();
        while start.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    /// One request after a time that is about as long as the IOThread polls.
    fn shortly(&mut self) {
        self.pause(0, 100);
        let queue = self.random.below(QUEUES);
        self.submit(queue);
        self.wait(queue);
    }

    /// One request after a time in which nothing happens, or in which another queue is busy, so that the queue is no longer
    /// polled at about the same moment.
    fn after_idling(&mut self) {
        let (idle, busy) = (self.random.below(QUEUES), self.random.below(QUEUES));
        if self.random.below(4) == 0 {
            self.pause(45_000, 110_000);
        } else {
            let time = Duration::from_micros(45_000 + self.random.next() % 65_000);
            let start = Instant::now();
            while start.elapsed() < time {
                self.submit(busy);
                self.wait(busy);
            }
        }
        // Both orders, so that the IOThread works or polls at the moment of the request.
        let first = self.random.below(3);
        if first == 0 {
            self.submit(busy);
        }
        self.submit(idle);
        if first == 1 {
            self.submit(busy);
        }
        self.wait(idle);
        self.wait(busy);
    }

    fn run(&mut self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            (0..200).for_each(|_| self.shortly());
            (0..2).for_each(|_| self.after_idling());
        }
    }
}

#[test]
fn single_requests_are_answered_whenever_they_come() {
    for event_idx in [false, true] {
        Driver::start(&[], event_idx, 1).run(Duration::from_millis(500));
    }
}

/// Takes `WAKEUPS_SECONDS`, or a minute. Prints the number of requests, and how many had to be found without a kick. A few
/// may be those of a driver whose CPU was taken before it could kick.
#[test]
#[ignore = "takes minutes: for a search for lost wakeups"]
fn single_requests_are_answered_beside_busy_threads() {
    let seconds = std::env::var("WAKEUPS_SECONDS").map(|seconds| seconds.parse().expect("a number"));
    let time = Duration::from_secs(seconds.unwrap_or(60));
    let variants: [(&[&str], bool); 4] = [
        (&["--iothreads", "1"], true),
        (&["--iothreads", "1"], false),
        (&["--iothreads", "2"], true),
        (&["--iothreads", "1", "--poll-max-ns", "0"], true),
    ];
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = SetAtEnd(&stop);
        // Each is busy for some time, and then sleeps.
        for hog in 0..2 {
            let stop = &stop;
            scope.spawn(move || be_busy(stop, hog));
        }
        let drivers: Vec<_> = (0..)
            .zip(variants)
            .map(|(seed, (options, event_idx))| {
                scope.spawn(move || {
                    let mut driver = Driver::start(options, event_idx, seed);
                    driver.run(time);
                    let (requests, missed) = (driver.requests, driver.daemon.count("total", "missed_kicks"));
                    eprintln!(
                        "{options:?} event_idx={event_idx}: {requests} requests, {missed} missed kicks"
                    );
                })
            })
            .collect();
        drivers
            .into_iter()
            .for_each(|driver| driver.join().expect("no request was lost"));
    });
}

/// Keeps a CPU busy, with pauses of random lengths.
fn be_busy(stop: &AtomicBool, seed: u64) {
    let mut random = Random::new(seed);
    while !stop.load(Ordering::Relaxed) {
        let (busy, idle) = (random.below(200), random.below(50));
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(busy as u64) {
            std::hint::spin_loop();
        }
        thread::sleep(Duration::from_millis(idle as u64));
    }
}
