//! Decides which request goes next: the buckets of a group, and the waiting requests of its members. Pure logic; the
//! caller passes the time.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::bucket::Bucket;
use super::limits::ThrottleLimits;

/// The direction of a request, for the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Reads from the disk.
    Read,
    /// All other limited requests: writes, discards, zeroes.
    Write,
}

impl Direction {
    pub(crate) const ALL: [Self; 2] = [Self::Read, Self::Write];

    pub(crate) fn index(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Write => 1,
        }
    }

    /// Returns the buckets that a request in this direction fills; see `ThrottleLimits::rates`.
    fn buckets(self) -> [usize; 4] {
        match self {
            Self::Read => [0, 1, 3, 4],
            Self::Write => [0, 2, 3, 5],
        }
    }
}

/// Identifies a disk in a group.
pub(super) type MemberId = u64;
/// Identifies a disk on one IOThread.
pub(super) type LaneId = u64;

/// A waiting request. Its lane holds the request itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) lane: LaneId,
    bytes: u64,
}

/// The waiting requests of one direction.
#[derive(Debug, Default)]
struct Waiting {
    /// Members that have tickets. The first member goes next.
    order: VecDeque<MemberId>,
    tickets: BTreeMap<MemberId, VecDeque<Ticket>>,
}

/// The buckets of a group, and the requests that wait for them.
#[derive(Debug)]
pub(super) struct Queue {
    limits: ThrottleLimits,
    buckets: [Bucket; 6],
    /// The time when the buckets leaked last.
    leaked: Instant,
    waiting: [Waiting; 2],
}

impl Queue {
    pub(super) fn new(limits: ThrottleLimits, now: Instant) -> Self {
        Self {
            limits,
            buckets: limits.buckets(),
            leaked: now,
            waiting: Default::default(),
        }
    }

    pub(super) fn limits(&self) -> &ThrottleLimits {
        &self.limits
    }

    /// Sets other limits and empties the buckets. Waiting requests stay in the queue.
    pub(super) fn set_limits(&mut self, limits: ThrottleLimits, now: Instant) {
        (self.limits, self.buckets, self.leaked) = (limits, limits.buckets(), now);
    }

    /// Lets a request go at once, or queues it. Returns true if it goes at once.
    pub(super) fn admit(
        &mut self,
        direction: Direction,
        bytes: u64,
        (member, lane): (MemberId, LaneId),
        now: Instant,
    ) -> bool {
        if self.waiting[direction.index()].order.is_empty() && self.wait(direction, now).is_zero() {
            self.charge(direction, bytes);
            return true;
        }
        self.waiting[direction.index()].push(member, Ticket { lane, bytes });
        false
    }

    /// Returns the next request that may go now.
    pub(super) fn next(&mut self, direction: Direction, now: Instant) -> Option<Ticket> {
        if self.waiting[direction.index()].order.is_empty() || !self.wait(direction, now).is_zero() {
            return None;
        }
        let ticket = self.waiting[direction.index()].pop()?;
        self.charge(direction, ticket.bytes);
        Some(ticket)
    }

    /// Returns the time until the next waiting request may go, or `None` if nothing waits.
    pub(super) fn next_in(&mut self, now: Instant) -> Option<Duration> {
        let waiting = Direction::ALL.into_iter().filter(|d| self.is_waiting(*d));
        let waiting: Vec<Direction> = waiting.collect();
        waiting.into_iter().map(|d| self.wait(d, now)).min()
    }

    /// Removes all tickets of a lane, because their requests go at once. The requests are charged, so others wait
    /// longer.
    pub(super) fn release(&mut self, member: MemberId, lane: LaneId, now: Instant) {
        self.leak(now);
        for direction in Direction::ALL {
            for ticket in self.waiting[direction.index()].remove(member, lane) {
                self.charge(direction, ticket.bytes);
            }
        }
    }

    /// Returns some lane with a waiting request.
    pub(super) fn any_waiting(&self) -> Option<LaneId> {
        self.waiting
            .iter()
            .find_map(Waiting::first)
            .map(|ticket| ticket.lane)
    }

    fn is_waiting(&self, direction: Direction) -> bool {
        !self.waiting[direction.index()].order.is_empty()
    }

    fn wait(&mut self, direction: Direction, now: Instant) -> Duration {
        self.leak(now);
        let waits = direction.buckets().map(|bucket| self.buckets[bucket].wait());
        waits.into_iter().max().unwrap_or_default()
    }

    fn leak(&mut self, now: Instant) {
        // Another IOThread may have taken a later time but locked the group earlier.
        let passed = now.saturating_duration_since(self.leaked);
        if !passed.is_zero() {
            self.leaked = now;
            self.buckets.iter_mut().for_each(|bucket| bucket.leak(passed));
        }
    }

    fn charge(&mut self, direction: Direction, bytes: u64) {
        #[allow(clippy::cast_precision_loss, reason = "far below 2^50")]
        let (bytes, unit) = (bytes as f64, self.limits.iops_size as f64);
        let requests = match unit > 0.0 && bytes > unit {
            true => bytes / unit,
            false => 1.0,
        };
        let [total_iops, iops, total_bytes, transferred] = direction.buckets();
        for (bucket, amount) in [
            (total_iops, requests),
            (iops, requests),
            (total_bytes, bytes),
            (transferred, bytes),
        ] {
            self.buckets[bucket].fill(amount);
        }
    }
}

impl Waiting {
    fn push(&mut self, member: MemberId, ticket: Ticket) {
        let tickets = self.tickets.entry(member).or_default();
        if tickets.is_empty() {
            self.order.push_back(member);
        }
        tickets.push_back(ticket);
    }

    /// Takes the first ticket of the member whose turn it is. The next member gets the next turn.
    fn pop(&mut self) -> Option<Ticket> {
        let member = self.order.pop_front()?;
        let tickets = self.tickets.get_mut(&member)?;
        let ticket = tickets.pop_front();
        if !tickets.is_empty() {
            self.order.push_back(member);
        }
        ticket
    }

    fn first(&self) -> Option<&Ticket> {
        self.tickets.get(self.order.front()?)?.front()
    }

    fn remove(&mut self, member: MemberId, lane: LaneId) -> VecDeque<Ticket> {
        let Some(tickets) = self.tickets.get_mut(&member) else {
            return VecDeque::new();
        };
        let (removed, kept) = std::mem::take(tickets)
            .into_iter()
            .partition(|ticket| ticket.lane == lane);
        *tickets = kept;
        if tickets.is_empty() {
            self.order.retain(|waiting| *waiting != member);
        }
        removed
    }

    /// Removes a member without tickets.
    fn forget(&mut self, member: MemberId) {
        self.tickets.remove(&member);
        self.order.retain(|waiting| *waiting != member);
    }
}

impl Queue {
    /// Removes a member whose lanes are gone.
    pub(super) fn forget(&mut self, member: MemberId) {
        self.waiting.iter_mut().for_each(|waiting| waiting.forget(member));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Read, Write};

    fn iops(total: u64) -> ThrottleLimits {
        ThrottleLimits {
            iops_total: total,
            ..ThrottleLimits::default()
        }
    }

    /// Keeps eight requests of each of members 1 to `members` waiting. Returns the number of requests of each that went
    /// in ten seconds.
    fn race(
        queue: &mut Queue,
        members: u64,
        direction: impl Fn(u64) -> Direction,
        start: Instant,
    ) -> Vec<u64> {
        let (mut went, mut now) = (vec![0; usize::try_from(members).unwrap()], start);
        let mut waiting = went.clone();
        while now < start + Duration::from_secs(10) {
            for member in 1..=members {
                let index = usize::try_from(member).unwrap() - 1;
                while waiting[index] < 8 {
                    match queue.admit(direction(member), 4096, (member, member), now) {
                        true => went[index] += 1,
                        false => waiting[index] += 1,
                    }
                }
            }
            now += queue.next_in(now).expect("somebody waits");
            for direction in Direction::ALL {
                while let Some(ticket) = queue.next(direction, now) {
                    let index = usize::try_from(ticket.lane).unwrap() - 1;
                    waiting[index] -= 1;
                    went[index] += 1;
                }
            }
        }
        went
    }

    #[test]
    fn members_share_evenly() {
        let start = Instant::now();
        let mut queue = Queue::new(iops(1000), start);
        let went = race(&mut queue, 3, |_| Read, start);
        let sum: u64 = went.iter().sum();
        assert!((10_000..10_200).contains(&sum), "{went:?}");
        // The first request found an empty bucket.
        assert!(went.iter().all(|n| n.abs_diff(sum / 3) <= 101), "{went:?}");
    }

    #[test]
    fn readers_and_writers_share_a_total() {
        let start = Instant::now();
        let mut queue = Queue::new(iops(1000), start);
        let went = race(
            &mut queue,
            2,
            |member| if member == 1 { Read } else { Write },
            start,
        );
        assert!((10_000..10_200).contains(&(went[0] + went[1])), "{went:?}");
    }

    #[test]
    fn a_limit_of_writes_leaves_reads_alone() {
        let now = Instant::now();
        let limits = ThrottleLimits {
            iops_write: 10,
            ..ThrottleLimits::default()
        };
        let mut queue = Queue::new(limits, now);
        assert!((0..2).all(|_| queue.admit(Write, 1, (1, 1), now)));
        assert!(!queue.admit(Write, 1, (1, 1), now));
        assert!((0..1000).all(|_| queue.admit(Read, 1, (1, 1), now)));
    }

    #[test]
    fn large_requests_count_as_several() {
        let now = Instant::now();
        let limits = ThrottleLimits {
            iops_total: 100,
            iops_size: 4096,
            ..ThrottleLimits::default()
        };
        let mut queue = Queue::new(limits, now);
        // The bucket holds ten requests.
        assert!(queue.admit(Read, 4096 * 11, (1, 1), now));
        assert!(!queue.admit(Read, 512, (1, 1), now));
        let wait = queue.next_in(now).unwrap();
        assert!(wait.as_micros().abs_diff(10_000) < 2, "{wait:?}");
    }

    #[test]
    fn lifted_limits_let_everything_go() {
        let now = Instant::now();
        let mut queue = Queue::new(iops(10), now);
        let waiting = (0..50).filter(|_| !queue.admit(Read, 1, (1, 7), now)).count();
        assert_eq!(queue.any_waiting(), Some(7));
        queue.set_limits(ThrottleLimits::default(), now);
        assert_eq!(queue.next_in(now), Some(Duration::ZERO));
        let went = std::iter::from_fn(|| queue.next(Read, now)).count();
        assert_eq!((went, queue.next_in(now)), (waiting, None));
    }

    #[test]
    fn released_requests_are_charged() {
        let now = Instant::now();
        let mut queue = Queue::new(iops(10), now);
        // The bucket holds one request. One more passes, and leaves a debt.
        let waiting = (0..3).filter(|_| !queue.admit(Read, 1, (1, 1), now)).count();
        assert_eq!(waiting, 1);
        for lane in [1, 2, 1, 1] {
            assert!(!queue.admit(Read, 1, (1, lane), now));
        }
        assert!(!queue.admit(Read, 1, (2, 3), now));
        queue.release(1, 1, now);
        // Six requests went, and the bucket holds one of them.
        let wait = queue.next_in(now).unwrap();
        assert!((0.49..0.51).contains(&wait.as_secs_f64()), "{wait:?}");
        let later = now + Duration::from_secs(10);
        let rest: Vec<LaneId> = std::iter::from_fn(|| queue.next(Read, later))
            .map(|ticket| ticket.lane)
            .collect();
        assert_eq!(rest, [2, 3]);
    }
}
