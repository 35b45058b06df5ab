//! A second load generator, to check the figures of `vhost-user-blk-bench`.
//!
//! It uses the hand-made frontend of the tests, which shares no code with the benchmark's frontend: it does without
//! `virtio-driver` and writes rings byte by byte.
//!
//! `cargo bench --bench second_frontend -- QUEUES IODEPTH SECONDS batch|each [event_idx]` starts the daemon on an
//! image in the page cache. One thread keeps the queues full of random reads of 4 KiB and sleeps on the call
//! eventfds. At the end it prints its counts. Without arguments it does nothing.

#![allow(missing_docs, reason = "a program")]

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use testkit::daemon::Daemon;
use testkit::random::Random;
use testkit::vm::{EVENT_IDX, GUEST, Vm, header, linked, readable, writable};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

const IMAGE: usize = 256 << 20;
const BLOCK: u32 = 4096;
/// Guest addresses of the headers and status bytes (a pair per request), and of the data.
const HEADERS: u64 = GUEST + 0x8_0000;
const DATA: u64 = GUEST + 0x9_0000;
/// Number of data buffers. Requests share them, because nobody checks the data.
const BUFFERS: u64 = 64;

/// A load in progress, and the number of its completions.
struct Load {
    vm: Vm,
    event_idx: bool,
    random: Random,
    completions: u64,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [queues, iodepth, seconds, notify, rest @ ..] = args.as_slice() else {
        return;
    };
    let number = |text: &String| text.parse::<u16>().expect("a number");
    let (queues, iodepth) = (number(queues), number(iodepth));
    assert!(queues <= 8 && iodepth <= 64, "memory is for 8 queues x 64");
    let image: Vec<u8> = (0..IMAGE).map(|i| (i % 251).to_le_bytes()[0]).collect();
    let options = ["--num-queues", &queues.to_string(), "--notify", notify];
    let daemon = Daemon::start(&image, &options);
    drop(image);
    let event_idx = rest.iter().any(|arg| arg == "event_idx");
    let features = if event_idx { EVENT_IDX } else { 0 };
    let mut load = Load {
        vm: Vm::start_with(&daemon, queues.into(), 256, features),
        event_idx,
        random: Random::new(1),
        completions: 0,
    };
    let heads = |queue: u16| (0..iodepth).map(move |slot| (queue, slot));
    for (queue, slot) in (0..queues).flat_map(heads) {
        load.prepare(queue, slot, iodepth);
        load.submit(queue, slot * 3);
    }
    let epoll = load.watch();
    (0..queues).for_each(|queue| load.vm.kick(queue.into()));
    load.run(&epoll, Duration::from_millis(500));
    load.calls();
    let (completions, start) = (load.completions, Instant::now());
    load.run(&epoll, Duration::from_secs(number(seconds).into()));
    let (elapsed, completions) = (start.elapsed(), load.completions - completions);
    let notifications = load.calls();
    println!(
        "{queues}x{iodepth} {notify}: {:.1} kIOPS, {:.2} completions per notification",
        completions as f64 / elapsed.as_secs_f64() / 1e3,
        completions as f64 / notifications.max(1) as f64
    );
}

impl Load {
    /// Writes the descriptors of a request once; only its sector changes later.
    fn prepare(&mut self, queue: u16, slot: u16, iodepth: u16) {
        let number = u64::from(queue) * u64::from(iodepth) + u64::from(slot);
        let data = DATA + number % BUFFERS * u64::from(BLOCK);
        let at = Self::header(queue, slot * 3);
        let chain = [readable(at, 16), writable(data, BLOCK), writable(at + 16, 1)];
        self.vm
            .put_descs(queue.into(), slot * 3, &linked(slot * 3, &chain));
    }

    fn header(queue: u16, head: u16) -> u64 {
        HEADERS + (u64::from(queue) * 64 + u64::from(head / 3)) * 32
    }

    /// Makes a request for another random block available.
    fn submit(&mut self, queue: u16, head: u16) {
        let block = self.random.below(IMAGE / BLOCK as usize) as u64;
        let request = header(0, block * u64::from(BLOCK / 512));
        self.vm.poke(Self::header(queue, head), &request);
        self.vm.publish(queue.into(), head);
    }

    fn watch(&self) -> Epoll {
        let epoll = Epoll::new().expect("make an epoll");
        for (i, ring) in self.vm.rings.iter().enumerate() {
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, i as u64);
            epoll
                .ctl(ControlOperation::Add, ring.call.as_raw_fd(), event)
                .expect("watch a call eventfd");
        }
        epoll
    }

    fn run(&mut self, epoll: &Epoll, time: Duration) {
        let end = Instant::now() + time;
        let mut events = vec![EpollEvent::default(); self.vm.rings.len()];
        while Instant::now() < end {
            let ready = epoll.wait(20, &mut events).expect("wait for the call eventfds");
            for event in &events[..ready] {
                self.turn(u16::try_from(event.data()).expect("it was a queue"));
            }
        }
    }

    /// Answers each completion of a queue with another request, and kicks once if the device asks for it.
    fn turn(&mut self, queue: u16) {
        let index = usize::from(queue);
        let old = self.vm.rings[index].avail_idx;
        loop {
            while let Some((head, _)) = self.vm.take_used(index) {
                self.completions += 1;
                self.submit(queue, u16::try_from(head).expect("it was a head"));
            }
            let ring = &self.vm.rings[index];
            let used_idx = ring.used_idx;
            if self.event_idx {
                ring.set_used_event(&self.vm.memory, used_idx);
            }
            if self.vm.published(index) == used_idx {
                break;
            }
        }
        if self.vm.rings[index].wants_kick(&self.vm.memory, old, self.event_idx) {
            self.vm.kick(index);
        }
    }

    /// Resets the call eventfds and returns the sum of their counts.
    fn calls(&self) -> u64 {
        // The eventfds do not block: reading an empty one is an error.
        let rings = self.vm.rings.iter();
        rings.map(|ring| ring.call.read().unwrap_or(0)).sum()
    }
}
