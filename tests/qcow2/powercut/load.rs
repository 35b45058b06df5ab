//! Requests on a disk whose writes are traced.

use std::fs;
use std::ops::Range;
use std::path::Path;

use serde_json::json;
use testkit::frontend::{Frontend, Op};
use testkit::qmp::Qmp;
use testkit::random::Random;

use super::BLOCK;

const DEPTH: usize = 4;

/// A request, and the part of the trace while it was in flight.
pub(super) struct Request {
    pub(super) blocks: Range<usize>,
    /// What it makes of each block; `None` for a flush.
    pub(super) value: Option<u32>,
    /// The new number of blocks of the disk.
    pub(super) size: Option<usize>,
    pub(super) from: usize,
    pub(super) to: usize,
}

/// Makes a request on blocks that no other one uses.
fn request(random: &mut Random, blocks: usize, busy: &[Range<usize>], value: u32) -> Option<(Op, Request)> {
    let kind = random.below(16);
    if kind == 0 {
        let request = Request {
            blocks: 0..0,
            value: None,
            size: None,
            from: 0,
            to: 0,
        };
        return Some((Op::Flush, request));
    }
    let (first, len) = match kind {
        1..=3 => (random.below(blocks / 16) * 16, 16 * (1 + random.below(2))),
        _ => (random.below(blocks), 1 + random.below(3)),
    };
    let range = first..(first + len).min(blocks);
    if busy
        .iter()
        .any(|busy| busy.start < range.end && range.start < busy.end)
    {
        return None;
    }
    let (offset, bytes) = ((range.start * BLOCK) as u64, (range.len() * BLOCK) as u64);
    let value = if kind < 5 { 0 } else { value };
    let op = match kind {
        1 => Op::Discard { offset, len: bytes },
        2..=4 => Op::WriteZeroes {
            offset,
            len: bytes,
            unmap: kind == 2,
        },
        _ => Op::Write {
            offset,
            data: value.to_le_bytes().repeat(range.len() * BLOCK / 4),
        },
    };
    let request = Request {
        blocks: range,
        value: Some(value),
        size: None,
        from: 0,
        to: 0,
    };
    Some((op, request))
}

/// A served disk, and its trace so far.
pub(super) struct Disk<'a> {
    pub(super) frontend: &'a mut Frontend,
    pub(super) client: &'a mut Qmp,
    pub(super) journal: &'a Path,
    pub(super) blocks: usize,
}

impl Disk<'_> {
    fn position(&self) -> usize {
        usize::try_from(fs::metadata(self.journal).expect("the trace").len()).expect("small")
    }

    /// Runs requests, and notes which part of the trace each one took.
    pub(super) fn run(&mut self, random: &mut Random, count: usize, resizes: bool) -> Vec<Request> {
        let mut requests: Vec<Request> = Vec::new();
        let mut flying: Vec<usize> = Vec::new();
        while requests.len() < count || !flying.is_empty() {
            if resizes && flying.is_empty() && requests.len() % 20 == 19 {
                requests.push(self.resize(random));
            }
            // Nothing else is in flight during a resize.
            let limit = if resizes {
                (requests.len() / 20 * 20 + 19).min(count)
            } else {
                count
            };
            while flying.len() < DEPTH && requests.len() < limit {
                let busy: Vec<_> = flying.iter().map(|tag| requests[*tag].blocks.clone()).collect();
                let value = u32::try_from(requests.len() + 1).expect("small") | 1 << 24;
                let Some((op, mut request)) = request(random, self.blocks, &busy, value) else {
                    break;
                };
                request.from = self.position();
                self.frontend.queue(0).submit(&op, requests.len());
                flying.push(requests.len());
                requests.push(request);
            }
            self.frontend.queue(0).kick();
            if flying.is_empty() {
                continue;
            }
            for done in self.frontend.queue(0).wait().0 {
                assert_eq!(done.ret, 0);
                requests[done.tag].to = self.position();
                flying.retain(|tag| *tag != done.tag);
            }
        }
        requests
    }

    /// Gives the disk another size. What is cut off or new counts as zeroed, and is stable in the end.
    fn resize(&mut self, random: &mut Random) -> Request {
        let (old, new) = (self.blocks, 400 + random.below(800));
        let from = self.position();
        let arguments = json!({"node-name": "disk", "size": new * BLOCK});
        self.client.execute("block_resize", &arguments);
        self.blocks = new;
        Request {
            blocks: old.min(new)..old.max(new),
            value: Some(0),
            size: Some(new),
            from,
            to: self.position(),
        }
    }
}
