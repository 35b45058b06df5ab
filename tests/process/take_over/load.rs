//! A frontend that writes and verifies while processes take over.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use testkit::frontend::{Op, Queue};
use testkit::process::{SetAtEnd, wait_for};

use super::service::{BLOCK, DEPTH, QUEUES, Service};

fn block(queue: usize, tag: usize, version: u64) -> Vec<u8> {
    let word = version << 16 | (queue * DEPTH + tag) as u64;
    word.to_le_bytes().repeat(BLOCK / 8)
}

fn offset(queue: usize, tag: usize) -> u64 {
    ((queue * DEPTH + tag) * BLOCK) as u64
}

/// Writes and verifies with all requests that the queue takes, until `stop`. Each place of the queue has a block of its
/// own, which it writes and reads in turns. Returns the last version of each.
fn work(number: usize, queue: &mut Queue, stop: &AtomicBool, completed: &AtomicUsize) -> Vec<u64> {
    let mut versions = vec![0; DEPTH];
    let mut writing = [true; DEPTH];
    let write = |tag: usize, version: u64| Op::Write {
        offset: offset(number, tag),
        data: block(number, tag, version),
    };
    for (tag, version) in versions.iter_mut().enumerate() {
        *version = 1;
        queue.submit(&write(tag, 1), tag);
    }
    queue.kick();
    while queue.in_flight() > 0 {
        for done in queue.wait().0 {
            let tag = done.tag;
            assert_eq!(done.ret, 0, "queue {number}, tag {tag}");
            completed.fetch_add(1, Ordering::Relaxed);
            let was_write = writing[tag];
            writing[tag] = !was_write;
            if !was_write {
                assert!(
                    done.data == block(number, tag, versions[tag]),
                    "queue {number}, tag {tag}"
                );
            }
            match (was_write, stop.load(Ordering::Relaxed)) {
                (true, _) => {
                    let (offset, len) = (offset(number, tag), BLOCK);
                    queue.submit(&Op::Read { offset, len }, tag);
                }
                (false, true) => {}
                (false, false) => {
                    versions[tag] += 1;
                    queue.submit(&write(tag, versions[tag]), tag);
                }
            }
        }
        queue.kick();
    }
    versions
}

/// Runs `change` while all queues work, and checks the image afterwards.
pub(crate) fn under_load(service: &mut Service, change: impl FnOnce(&mut Service, &AtomicUsize)) {
    let mut frontend = service.connect(QUEUES, DEPTH);
    let (stop, completed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let image = service.first.image_path();
    let versions: Vec<Vec<u64>> = thread::scope(|scope| {
        let (stop, completed) = (&stop, &completed);
        let _end = SetAtEnd(stop);
        let queues = frontend.queues().iter_mut().enumerate();
        let workers: Vec<_> = queues
            .map(|(number, queue)| scope.spawn(move || work(number, queue, stop, completed)))
            .collect();
        change(service, completed);
        stop.store(true, Ordering::Relaxed);
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker"))
            .collect()
    });
    let image = File::open(image).expect("open the image");
    let mut found = vec![0; BLOCK];
    for (queue, versions) in versions.iter().enumerate() {
        for (tag, version) in versions.iter().enumerate() {
            image
                .read_exact_at(&mut found, offset(queue, tag))
                .expect("read the image");
            assert!(found == block(queue, tag, *version), "queue {queue}, tag {tag}");
        }
    }
}

pub(crate) fn wait_for_more(completed: &AtomicUsize) {
    let before = completed.load(Ordering::Relaxed);
    wait_for("completions", || {
        (completed.load(Ordering::Relaxed) > before + 1000).then_some(())
    });
}
