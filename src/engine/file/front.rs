//! The first part of the path of a queue's requests to storage: detect zeroes, merge requests, try them without waiting,
//! and share them with a worker.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::inline::Inline;
use super::merge::Merger;
use super::share::Sharing;
use super::threads::ThreadsEngine;
use crate::affinity::own_cpus;
use crate::aio::busy_wait::Crowd;
use crate::engine::DetectZeroes;
use crate::engine::job::TryExecute;
use crate::engine::plan::Plan;
use crate::engine::resources::{Resources, Turns};
use crate::io::{Completer, Requests};

/// The shared state of the channels to a disk on one IOThread.
#[derive(Debug)]
pub(in crate::engine) struct FrontShared<E> {
    plan: Plan,
    disk: Arc<E>,
    /// The pool whose workers may help.
    threads: Option<Rc<ThreadsEngine<E>>>,
    turns: Rc<Turns>,
    crowd: Crowd,
}

impl<E: TryExecute> FrontShared<E> {
    /// `threads`: the engine, if it is the thread pool.
    pub(in crate::engine) fn new(
        resources: &Resources,
        plan: Plan,
        disk: Arc<E>,
        threads: Option<Rc<ThreadsEngine<E>>>,
    ) -> Self {
        Self {
            plan,
            disk,
            threads,
            turns: Rc::clone(resources.turns()),
            crowd: resources.ctx().crowd(),
        }
    }

    /// Makes the first part of a channel.
    pub(in crate::engine) fn front(&self) -> Front<E> {
        Front {
            zeroes: DetectZeroes::Off,
            number: self.turns.number(),
            merger: self.plan.merges().then(|| Merger::new(self.disk.nowait())),
            inline: self.plan.inline.then(|| Inline::new(Arc::clone(&self.disk))),
            sharing: match &self.threads {
                Some(threads) if self.plan.shares() && own_cpus() > 1 => {
                    Some(Sharing::new(Rc::clone(threads), self.crowd.clone()))
                }
                _ => None,
            },
            done: RefCell::default(),
            turns: Rc::clone(&self.turns),
            crowd: self.crowd.clone(),
        }
    }
}

/// The first part of a channel of one queue. IOThread only.
#[derive(Debug)]
pub(in crate::engine) struct Front<E: TryExecute> {
    zeroes: DetectZeroes,
    /// Identifies the channel among those of the IOThread.
    number: usize,
    merger: Option<Merger>,
    inline: Option<Inline<E>>,
    sharing: Option<Rc<Sharing<E>>>,
    /// Recycled between batches.
    done: RefCell<Requests>,
    turns: Rc<Turns>,
    crowd: Crowd,
}

impl<E: TryExecute> Front<E> {
    /// Detects writes of zeroes from now on.
    pub(in crate::engine) fn with_zero_detection(self, zeroes: DetectZeroes) -> Self {
        Self { zeroes, ..self }
    }

    /// Returns whether writes of zeroes are detected.
    pub(in crate::engine) fn zero_detection(&self) -> DetectZeroes {
        self.zeroes
    }

    /// Merges requests, executes those that need not wait, and gives the others to `executor`, which empties the list.
    /// Returns the number of requests that were merged into another one.
    pub(in crate::engine) fn submit(
        &self,
        batch: &mut Requests,
        completer: &Rc<dyn Completer>,
        executor: impl FnOnce(&mut Requests),
    ) -> usize {
        if self.zeroes != DetectZeroes::Off {
            self.zeroes.apply(batch);
        }
        let alone = self.turns.take(self.number);
        let before = batch.len();
        if let Some(merger) = &self.merger {
            merger.merge(batch);
        }
        let merged = before - batch.len();
        if let Some(inline) = &self.inline {
            self.execute_here(inline, batch, completer, alone);
        }
        if !batch.is_empty() {
            for request in batch.iter_mut() {
                request.set_completer(Rc::clone(completer));
            }
            executor(batch);
        }
        merged
    }

    /// Executes requests that need not wait, perhaps with the help of a worker. `alone`: no other queue uses the
    /// IOThread.
    fn execute_here(
        &self,
        inline: &Inline<E>,
        batch: &mut Requests,
        completer: &Rc<dyn Completer>,
        alone: bool,
    ) {
        if let Some(sharing) = &self.sharing
            && sharing.is_worthwhile(batch.len(), inline.cost())
        {
            sharing.share(batch, completer);
        }
        let lone = inline.is_in_memory() && alone && batch.len() == 1 && !self.crowd.is_shared();
        let (mut done, mut next) = (self.done.take(), 0);
        loop {
            while next < batch.len() {
                next = inline.execute(batch, next, &mut done, lone);
                completer.complete_batch(&mut done, alone && next < batch.len());
            }
            let Some(sharing) = &self.sharing else { break };
            if !sharing.take_back(batch, &mut done) {
                break;
            }
            completer.complete_batch(&mut done, false);
        }
        self.done.replace(done);
    }

    /// See [`Channel::shares`](crate::engine::Channel::shares).
    pub(in crate::engine) fn shares(&self) -> bool {
        self.sharing.as_ref().is_some_and(|sharing| sharing.pays())
    }

    /// Returns whether a worker is still helping with a batch.
    pub(in crate::engine) fn is_sharing(&self) -> bool {
        self.sharing.as_ref().is_some_and(|sharing| sharing.is_sharing())
    }
}
