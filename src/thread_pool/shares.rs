//! The queues of a pool, one for each share, and the order in which the shares get workers.
//!
//! Each disk has a share, because jobs of one disk may block for ever. Shares take turns. While there are several, some
//! workers stay free for the others: see [`Shares::may_run`].

use std::collections::VecDeque;

use super::pace::Pace;

/// A queued job.
#[derive(Debug)]
pub(super) struct Queued<W> {
    pub(super) id: u64,
    pub(super) work: W,
}

/// Identifies a share of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ShareId(usize);

impl ShareId {
    /// The share that every pool has.
    pub(super) const FIRST: Self = Self(0);
}

/// A share may occupy this many times as many workers as are free.
const GREED: usize = 2;

/// The number of quick rounds that must follow a slower job before workers take several jobs at once again. With only
/// an occasional miss of the page cache, no job then waits for another job's miss.
pub(super) const CAUTION: u8 = 64;

#[derive(Debug)]
struct Share<W> {
    queue: VecDeque<Queued<W>>,
    /// Workers that run its jobs.
    running: usize,
    /// Quick rounds left until workers may take several of its jobs at once.
    caution: u8,
    /// The most workers that may run its jobs. Falls while these only keep CPUs busy.
    most: usize,
    /// The owner is gone. The share is reused once no worker runs its jobs.
    closed: bool,
}

impl<W> Share<W> {
    fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            running: 0,
            caution: 0,
            most: usize::MAX,
            closed: false,
        }
    }
}

#[derive(Debug)]
pub(super) struct Shares<W> {
    /// Indexed by [`ShareId`]. The first one is never removed.
    list: Vec<Option<Share<W>>>,
    /// The shares that have queued jobs, in the order of their turns.
    turns: VecDeque<ShareId>,
    /// Shares that were added and not removed. The first one does not count.
    added: usize,
    queued: usize,
    /// Workers that run jobs.
    busy: usize,
}

impl<W> Shares<W> {
    pub(super) fn new() -> Self {
        Self {
            list: vec![Some(Share::new())],
            turns: VecDeque::new(),
            added: 0,
            queued: 0,
            busy: 0,
        }
    }

    /// Returns the number of queued jobs.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Returns the number of workers beyond `max_threads` that may be needed, so that each share can have one.
    pub(super) fn extra_workers(&self) -> usize {
        self.added.saturating_sub(1)
    }

    pub(super) fn add(&mut self) -> ShareId {
        self.added += 1;
        let free = self.list.iter().position(Option::is_none);
        let place = free.unwrap_or(self.list.len());
        if free.is_none() {
            self.list.push(None);
        }
        self.list[place] = Some(Share::new());
        ShareId(place)
    }

    /// Removes a share, which has no queued jobs.
    pub(super) fn remove(&mut self, id: ShareId) {
        debug_assert!(
            self.share(id).queue.is_empty(),
            "a share is removed with its jobs done"
        );
        self.added -= 1;
        self.share_mut(id).closed = true;
        self.reuse(id);
    }

    fn reuse(&mut self, id: ShareId) {
        let share = self.share(id);
        if share.closed && share.running == 0 && share.queue.is_empty() {
            self.list[id.0] = None;
        }
    }

    fn share(&self, id: ShareId) -> &Share<W> {
        self.list[id.0]
            .as_ref()
            .expect("an id is used until the share is removed")
    }

    fn share_mut(&mut self, id: ShareId) -> &mut Share<W> {
        self.list[id.0]
            .as_mut()
            .expect("an id is used until the share is removed")
    }

    /// Queues jobs of a share.
    pub(super) fn queue(&mut self, id: ShareId, jobs: impl Iterator<Item = Queued<W>>) {
        let queue = &mut self.share_mut(id).queue;
        let before = queue.len();
        queue.extend(jobs);
        let added = queue.len() - before;
        self.queued += added;
        if before == 0 && added > 0 {
            self.turns.push_back(id);
        }
    }

    /// Returns whether a worker may run a job of this share, in a pool of at most `max` workers.
    ///
    /// The only share may occupy all workers, unless its jobs keep CPUs busy. Among several, each may always have one
    /// worker. It may have more as long as there are free workers in proportion. So the shares whose jobs block leave
    /// some workers to the others, the fewer of them there are, the more. Shares whose jobs do not block hardly notice.
    fn may_run(&self, id: ShareId, max: usize) -> bool {
        let Share { running, most, .. } = *self.share(id);
        let fair = self.added <= 1 || running < GREED * max.saturating_sub(self.busy);
        running == 0 || (fair && running < most)
    }

    /// Returns whether jobs are queued only because their shares' other jobs keep CPUs busy.
    pub(super) fn is_limited(&self) -> bool {
        self.turns.iter().any(|id| {
            let share = self.share(*id);
            share.running > 0 && share.running >= share.most
        })
    }

    /// Lets the shares whose jobs are queued have more workers: those that they have may be blocked.
    pub(super) fn widen(&mut self) {
        for id in &self.turns {
            let share = self.list[id.0].as_mut();
            let share = share.expect("an id is used until the share is removed");
            share.most = share.most.saturating_mul(2);
        }
    }

    /// Returns whether a worker may take a job now, in a pool of at most `max` workers.
    pub(super) fn has_next(&self, max: usize) -> bool {
        self.turns.iter().any(|id| self.may_run(*id, max))
    }

    /// Returns whether there are jobs of a share for which no worker runs.
    pub(super) fn is_starved(&self) -> bool {
        self.turns.iter().any(|id| self.share(*id).running == 0)
    }

    /// Moves jobs of the next share to `batch`, for one worker. `count` gets the number of rounds for which the share
    /// is cautious and the number of its jobs, and returns how many to take.
    ///
    /// Returns the share, or `None` if no share may have another worker. `max` is the number of workers, or `None` if it
    /// does not matter.
    pub(super) fn take(
        &mut self,
        max: Option<usize>,
        batch: &mut VecDeque<Queued<W>>,
        count: impl FnOnce(u8, usize) -> usize,
    ) -> Option<ShareId> {
        let may_run = |id: &ShareId| max.is_none_or(|max| self.may_run(*id, max));
        let turn = self.turns.iter().position(may_run)?;
        let id = self.turns.remove(turn)?;
        let share = self.share_mut(id);
        let taken = count(share.caution, share.queue.len()).min(share.queue.len());
        batch.extend(share.queue.drain(..taken));
        share.running += 1;
        let more = !share.queue.is_empty();
        self.queued -= taken;
        self.busy += 1;
        if more {
            self.turns.push_back(id);
        }
        Some(id)
    }

    /// Takes some jobs of one share, for a thread that is not a worker.
    pub(super) fn take_some(&mut self, most: usize, jobs: &mut impl Extend<W>) {
        let Some(id) = self.turns.pop_front() else { return };
        let queue = &mut self.share_mut(id).queue;
        let taken = most.min(queue.len());
        jobs.extend(queue.drain(..taken).map(|job| job.work));
        let more = !queue.is_empty();
        self.queued -= taken;
        if more {
            self.turns.push_back(id);
        }
    }

    /// A worker has finished jobs of a share. A share whose jobs keep CPUs busy gets fewer workers each time, down to
    /// the number of CPUs.
    pub(super) fn finished(&mut self, id: ShareId, pace: Pace, cpus: usize) {
        let share = self.share_mut(id);
        share.caution = match pace {
            Pace::Quick => share.caution.saturating_sub(1),
            Pace::Busy | Pace::Blocking => CAUTION,
        };
        share.most = match pace {
            Pace::Quick => share.most,
            Pace::Busy => share.most.min(share.running).saturating_sub(1).max(cpus),
            Pace::Blocking => share.most.saturating_add(1),
        };
    }

    /// A worker does no longer run jobs of this share.
    pub(super) fn leave(&mut self, id: ShareId) {
        self.share_mut(id).running -= 1;
        self.busy -= 1;
        self.reuse(id);
    }

    /// Puts back a job that was taken and not started. The queue stays in the order of submission.
    pub(super) fn give_back(&mut self, id: ShareId, job: Queued<W>) {
        let queue = &mut self.share_mut(id).queue;
        // Other workers may have given jobs back too.
        let place = queue.partition_point(|other| other.id < job.id);
        queue.insert(place, job);
        let first = queue.len() == 1;
        self.queued += 1;
        if first {
            self.turns.push_back(id);
        }
    }

    /// Removes a queued job.
    pub(super) fn cancel(&mut self, id: u64) -> Option<W> {
        let mut shares = self.list.iter_mut().enumerate();
        let (share, queue, place) = shares.find_map(|(share, place)| {
            let queue = &mut place.as_mut()?.queue;
            let place = queue.binary_search_by_key(&id, |job| job.id).ok()?;
            Some((ShareId(share), queue, place))
        })?;
        let job = queue.remove(place)?;
        if queue.is_empty() {
            self.turns.retain(|turn| *turn != share);
        }
        self.queued -= 1;
        Some(job.work)
    }

    /// Returns the queued jobs of a share. For tests.
    #[cfg(all(test, not(loom)))]
    pub(super) fn jobs(&self, id: ShareId) -> impl Iterator<Item = &Queued<W>> {
        self.share(id).queue.iter()
    }

    /// Returns the number of workers that run jobs of a share. For tests.
    #[cfg(all(test, not(loom)))]
    pub(super) fn running(&self, id: ShareId) -> usize {
        self.share(id).running
    }
}
