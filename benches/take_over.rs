//! Measures the longest time without a completion, as a frontend sees it, around each of many take-overs.
//!
//! Run it with `cargo bench --bench take_over`, with an image in the page cache. The frontend reads with 8 queues and 64
//! requests in each. `NUMBER` in the environment sets the number of take-overs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testkit::daemon::{Daemon, HAND_OVER};
use testkit::frontend::{Frontend, Op, Queue, all_features};

const QUEUES: usize = 8;
const DEPTH: usize = 64;
const BLOCK: usize = 4096;
/// Time between two take-overs.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest gap since the last look, and the time of the last completion.
struct Gap {
    last: Instant,
    longest: Duration,
}

impl Gap {
    fn completed(&mut self, now: Instant) {
        self.longest = self.longest.max(now.saturating_duration_since(self.last));
        self.last = now;
    }

    fn take(&mut self) -> Duration {
        std::mem::take(&mut self.longest)
    }
}

fn work(number: usize, queue: &mut Queue, stop: &AtomicBool, gap: &Mutex<Gap>) {
    let read = |tag: usize| Op::Read {
        offset: ((number * DEPTH + tag) * BLOCK) as u64,
        len: BLOCK,
    };
    (0..DEPTH).for_each(|tag| queue.submit(&read(tag), tag));
    queue.kick();
    while queue.in_flight() > 0 {
        let done = queue.wait().0;
        gap.lock().expect("no panic").completed(Instant::now());
        for done in done {
            assert_eq!(done.ret, 0);
            if !stop.load(Ordering::Relaxed) {
                queue.submit(&read(done.tag), done.tag);
            }
        }
        queue.kick();
    }
}

fn main() {
    let number = std::env::var("NUMBER").map_or(100, |text| text.parse().expect("NUMBER is a number"));
    let image = vec![0; QUEUES * DEPTH * BLOCK];
    let mut daemon = Daemon::start(&image, &["--hand-over", HAND_OVER, "--num-queues", "8"]);
    let mut frontend = Frontend::connect(&daemon.socket(), QUEUES, DEPTH, all_features()).expect("connect");
    let stop = AtomicBool::new(false);
    let gap = Mutex::new(Gap {
        last: Instant::now(),
        longest: Duration::ZERO,
    });
    let (mut during, mut between) = (Vec::new(), Vec::new());
    thread::scope(|scope| {
        for (number, queue) in frontend.queues().iter_mut().enumerate() {
            let (stop, gap) = (&stop, &gap);
            scope.spawn(move || work(number, queue, stop, gap));
        }
        let longest = || gap.lock().expect("no panic").take();
        for _ in 0..number {
            longest();
            thread::sleep(PAUSE);
            between.push(longest());
            daemon.take_over(&[]);
            thread::sleep(PAUSE / 2);
            during.push(longest());
        }
        stop.store(true, Ordering::Relaxed);
    });
    for (name, gaps) in [("around a take-over", &mut during), ("otherwise", &mut between)] {
        gaps.sort_unstable();
        let (median, worst) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
        println!("longest time without a completion {name}: median {median:.1?}, worst {worst:.1?}");
    }
}
