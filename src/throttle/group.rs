//! A throttle group, shared by IOThreads.
//!
//! One lock protects everything. It is held for a few instructions per batch. One lane keeps the time for the whole
//! group: when its timer fires, it decides which requests go, and wakes up the IOThreads of the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::limits::{LimitsError, ThrottleLimits};
use super::queue::Queue;
use super::ticket::{Direction, LaneId, MemberId};
use crate::aio::BhHandle;
use crate::sync::{Mutex, MutexGuard, lock};

/// A throttle group. Any thread.
#[derive(Debug)]
pub struct Group {
    name: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    lanes: BTreeMap<LaneId, LaneState>,
    /// The lane whose timer is armed while requests wait, and the time when it fires.
    keeper: Option<(LaneId, Instant)>,
    next_id: u64,
    members: usize,
}

#[derive(Debug)]
struct LaneState {
    /// Requests that may go, by direction.
    granted: [usize; 2],
    wake: BhHandle,
}

/// A disk in a group. Members have equal shares of the limits. Any thread.
#[derive(Debug)]
pub struct Member {
    group: Arc<Group>,
    id: MemberId,
}

/// A disk in a group, on one IOThread. Its requests wait in order of arrival.
#[derive(Debug)]
pub struct Lane {
    member: Arc<Member>,
    id: LaneId,
}

/// The result of a turn: what a lane may do now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Requests that may go, by [`Direction::index`].
    pub(crate) granted: [usize; 2],
    /// The delay to set the timer to, if this lane keeps the time for the group.
    pub(crate) timer: Option<Duration>,
}

impl Group {
    /// Makes a group without members.
    ///
    /// # Errors
    /// The limits contradict each other.
    pub fn new(name: &str, limits: ThrottleLimits) -> Result<Arc<Self>, LimitsError> {
        limits.check()?;
        let state = State {
            queue: Queue::new(limits, Instant::now()),
            lanes: BTreeMap::new(),
            keeper: None,
            next_id: 0,
            members: 0,
        };
        Ok(Arc::new(Self {
            name: name.to_owned(),
            state: Mutex::new(state),
        }))
    }

    /// The group's id.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the limits in force.
    pub fn limits(&self) -> ThrottleLimits {
        *self.lock().queue.limits()
    }

    /// Returns the number of disks in the group.
    pub fn members(&self) -> usize {
        self.lock().members
    }

    /// Replaces the limits. Waiting requests follow the new limits at once.
    ///
    /// # Errors
    /// The limits contradict each other. The old limits stay.
    pub fn set_limits(&self, limits: ThrottleLimits) -> Result<(), LimitsError> {
        limits.check()?;
        let mut state = self.lock();
        state.queue.set_limits(limits, Instant::now());
        state.wake_keeper();
        Ok(())
    }

    /// Adds a disk.
    pub fn join(self: &Arc<Self>) -> Arc<Member> {
        let mut state = self.lock();
        state.members += 1;
        Arc::new(Member {
            id: state.new_id(),
            group: Arc::clone(self),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Grants all requests that may go now, and wakes up their lanes, except for `me`.
    fn dispatch(&mut self, me: LaneId, now: Instant) {
        while let Some(ticket) = self.queue.next(now) {
            let Some(lane) = self.lanes.get_mut(&ticket.lane) else {
                continue;
            };
            lane.granted[ticket.direction.index()] += 1;
            if ticket.lane != me {
                lane.wake.schedule();
            }
        }
    }

    /// Takes the requests granted to `me`. If requests wait, and no lane's timer fires in time, `me` keeps the time from
    /// now on.
    fn turn(&mut self, me: LaneId, now: Instant) -> Turn {
        let wait = self.queue.next_in(now);
        self.keeper = self.keeper.filter(|_| wait.is_some());
        let is_mine = |due: Instant| {
            // A timer that should have fired belongs to a busy IOThread.
            self.keeper
                .is_none_or(|(keeper, fires)| keeper == me || due < fires || fires < now)
        };
        let timer = wait.filter(|wait| is_mine(now + *wait));
        if let Some(wait) = timer {
            self.keeper = Some((me, now + wait));
        }
        let granted = self
            .lanes
            .get_mut(&me)
            .map(|lane| std::mem::take(&mut lane.granted));
        Turn {
            granted: granted.unwrap_or_default(),
            timer,
        }
    }

    fn wake_keeper(&self) {
        if let Some(lane) = self.keeper.and_then(|(id, _)| self.lanes.get(&id)) {
            lane.wake.schedule();
        }
    }
}

impl Member {
    /// The group.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// Adds an IOThread of the disk. `wake` makes that thread look which of its requests may go.
    pub fn lane(self: &Arc<Self>, wake: BhHandle) -> Lane {
        let mut state = self.group.lock();
        let id = state.new_id();
        state.lanes.insert(
            id,
            LaneState {
                granted: [0; 2],
                wake,
            },
        );
        Lane {
            member: Arc::clone(self),
            id,
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.group.lock();
        state.members -= 1;
        state.queue.forget(self.id);
    }
}

impl Lane {
    /// Decides for each request, in order, whether it goes at once, and calls `take` with the answer.
    pub(crate) fn admit<T>(
        &self,
        requests: impl Iterator<Item = (Option<(Direction, u64)>, T)>,
        mut take: impl FnMut(bool, T),
    ) -> Turn {
        let now = Instant::now();
        let mut state = self.member.group.lock();
        for (request, handle) in requests {
            let goes = request.is_none_or(|(direction, bytes)| {
                state
                    .queue
                    .admit(direction, bytes, (self.member.id, self.id), now)
            });
            take(goes, handle);
        }
        // A request of another lane may be due, too, and the lane that keeps the time may be busy.
        state.dispatch(self.id, now);
        state.turn(self.id, now)
    }

    /// Checks which requests may go now. Called when the timer has fired, or another lane has woken up this one.
    pub(crate) fn turn(&self) -> Turn {
        let now = Instant::now();
        let mut state = self.member.group.lock();
        state.dispatch(self.id, now);
        state.turn(self.id, now)
    }

    /// Removes all waiting requests of the lane from the queue. They go at once, because a caller waits until they end.
    pub(crate) fn release(&self) {
        let now = Instant::now();
        let mut state = self.member.group.lock();
        state.queue.release(self.member.id, self.id, now);
        if let Some(lane) = state.lanes.get_mut(&self.id) {
            lane.granted = [0; 2];
        }
        state.give_up_keeping(self.id, now);
    }
}

impl State {
    /// Lets another lane keep the time, if this lane did.
    fn give_up_keeping(&mut self, me: LaneId, now: Instant) {
        if self.keeper.is_some_and(|(keeper, _)| keeper == me) {
            self.keeper = self.queue.any_waiting().map(|lane| (lane, now));
            self.wake_keeper();
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.member.group.lock();
        state.queue.release(self.member.id, self.id, now);
        state.lanes.remove(&self.id);
        state.give_up_keeping(self.id, now);
    }
}
