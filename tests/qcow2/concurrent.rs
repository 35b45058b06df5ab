//! Several queues on several IOThreads, which write to the same clusters at the same time.

use std::thread;

use testkit::frontend::{Frontend, Op, Queue, all_features};
use testkit::random::Random;

use super::support::{check_clean, create, directory_in_memory, expected, serve_writable};

const BLOCK: usize = 4096;
const BLOCKS: usize = 2048;
const QUEUES: usize = 4;
const DEPTH: usize = 8;

/// Writes to each fourth block. Returns what all of these have in the end.
fn write(queue: &mut Queue, number: usize) -> Vec<u32> {
    let mut random = Random::new(number as u64 + 1);
    let mut values = vec![0; BLOCKS / QUEUES];
    for round in 0..60 {
        let mut chosen = Vec::new();
        for tag in 0..DEPTH {
            let index = random.below(values.len());
            if chosen.contains(&index) {
                continue;
            }
            chosen.push(index);
            let offset = ((index * QUEUES + number) * BLOCK) as u64;
            let value = u32::try_from(round * DEPTH + tag + 1).expect("small") << 8 | 1;
            let op = match random.below(6) {
                0 => {
                    values[index] = 0;
                    let (len, unmap) = (BLOCK as u64, tag % 2 == 0);
                    Op::WriteZeroes { offset, len, unmap }
                }
                _ => {
                    values[index] = value;
                    let data = value.to_le_bytes().repeat(BLOCK / 4);
                    Op::Write { offset, data }
                }
            };
            queue.submit(&op, tag);
        }
        queue.kick();
        assert!(queue.drain().iter().all(|done| done.ret == 0));
        if round % 10 == 9 {
            assert_eq!(queue.run(&Op::Flush).ret, 0);
        }
    }
    values
}

#[test]
fn queues_share_clusters_on_several_iothreads() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    for options in [
        "cluster_size=64k",
        "cluster_size=4k",
        "extended_l2=on",
        "compat=0.10",
    ] {
        create(dir, options, &["image", "8M"]);
        let (mut daemon, frontend) = serve_writable(dir, "image", &["--num-queues", "4", "--iothreads", "2"]);
        drop(frontend);
        let mut frontend =
            Frontend::connect(&daemon.dir().join("s"), QUEUES, DEPTH, all_features()).expect("connect");
        let values: Vec<Vec<u32>> = thread::scope(|scope| {
            let queues = frontend.queues().iter_mut().enumerate();
            let threads: Vec<_> = queues
                .map(|(number, queue)| scope.spawn(move || write(queue, number)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("a queue"))
                .collect()
        });
        drop(frontend);
        assert!(daemon.terminate().status.success());
        check_clean(dir, "image");
        for (block, content) in expected(dir, "image").chunks(BLOCK).enumerate() {
            let value = values[block % QUEUES][block / QUEUES];
            assert!(
                content == value.to_le_bytes().repeat(BLOCK / 4),
                "{options}: block {block} lacks {value:#x}"
            );
        }
    }
}
