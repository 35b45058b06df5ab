//! The channel of a queue to a qcow2 disk. IOThread only.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use super::disk::Qcow2Disk;
use crate::engine::DetectZeroes;
use crate::engine::file::inline::{LONGEST, Misses};
use crate::engine::job::Jobs;
use crate::io::{Completer, IoOp, IoRequest, Requests};
use crate::thread_pool::{ThreadPool, Work};

/// Number of requests that are executed here before their driver is told.
const SLICE: usize = 16;

/// A channel: reads and writes whose tables and data are in memory are executed here, and all others in the thread
/// pool.
pub(in crate::engine) struct Qcow2Channel {
    disk: Arc<Qcow2Disk>,
    pool: ThreadPool,
    jobs: Rc<Jobs<Qcow2Disk>>,
    /// Reads may be executed here.
    inline: bool,
    reads: Misses,
    writes: Misses,
    /// Empty lists, kept for their capacity.
    done: RefCell<Requests>,
    works: RefCell<Vec<Box<dyn Work>>>,
    zeroes: DetectZeroes,
}

impl Qcow2Channel {
    pub(in crate::engine) fn new(disk: &Arc<Qcow2Disk>, pool: ThreadPool, inline: bool) -> Self {
        let jobs = Jobs::new(Arc::clone(disk));
        Self::with_jobs(disk, pool, jobs, inline)
    }

    /// Detects writes of zeroes on this channel, and on siblings made from it.
    pub(in crate::engine) fn with_zero_detection(self, zeroes: DetectZeroes) -> Self {
        Self { zeroes, ..self }
    }

    fn with_jobs(disk: &Arc<Qcow2Disk>, pool: ThreadPool, jobs: Rc<Jobs<Qcow2Disk>>, inline: bool) -> Self {
        Self {
            zeroes: DetectZeroes::Off,
            disk: Arc::clone(disk),
            pool,
            jobs,
            inline,
            reads: Misses::default(),
            writes: Misses::default(),
            done: RefCell::default(),
            works: RefCell::default(),
        }
    }

    pub(in crate::engine) fn sibling(&self) -> Self {
        let jobs = Rc::clone(&self.jobs);
        Self::with_jobs(&self.disk, self.pool.clone(), jobs, self.inline).with_zero_detection(self.zeroes)
    }

    pub(in crate::engine) fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) {
        if self.zeroes != DetectZeroes::Off {
            self.zeroes.apply(batch);
        }
        let mut done = self.done.take();
        let mut works = self.works.take();
        for mut request in batch.drain(..) {
            if self.try_here(&request) {
                request.result = Ok(());
                done.push(request);
                if done.len() == SLICE {
                    completer.complete_batch(&mut done, false);
                }
                continue;
            }
            request.set_completer(Rc::clone(completer));
            works.push(self.jobs.job(request));
        }
        if !works.is_empty() {
            self.pool.submit_batch(&mut works);
        }
        if !done.is_empty() {
            completer.complete_batch(&mut done, false);
        }
        self.done.replace(done);
        self.works.replace(works);
    }

    /// Executes a read, or a write that changes no tables, unless it would have to wait.
    fn try_here(&self, request: &IoRequest) -> bool {
        let misses = match request.op {
            _ if !self.inline => return false,
            IoOp::Read => &self.reads,
            IoOp::Write { durable: false } => &self.writes,
            _ => return false,
        };
        let memory = request.alone();
        if memory.len() > LONGEST || !misses.is_worth_trying() {
            return false;
        }
        let done = match request.op {
            IoOp::Read => self.disk.try_read(memory, request.offset),
            _ => self.disk.try_write(memory, request.offset),
        };
        misses.tell(done);
        done
    }
}

impl fmt::Debug for Qcow2Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qcow2Channel")
            .field("disk", &self.disk)
            .field("inline", &self.inline)
            .finish_non_exhaustive()
    }
}
