//! Decides which request goes next: the buckets of a group, and the waiting requests of its members. Pure logic; the
//! caller passes the time.

use std::time::{Duration, Instant};

use super::bucket::Bucket;
use super::fair::{FairQueue, Used};
use super::limits::ThrottleLimits;
use super::ticket::{Direction, LaneId, MemberId, Ticket};

/// The most time that a request waits for others, so that they go together.
const TOGETHER: Duration = Duration::from_micros(400);

/// The buckets of a group, and the requests that wait for them.
#[derive(Debug)]
pub(super) struct Queue {
    limits: ThrottleLimits,
    buckets: [Bucket; 6],
    /// The time when the buckets leaked last.
    leaked: Instant,
    /// If only totals are limited, all requests wait in the first queue. Otherwise each direction has a queue.
    waiting: [FairQueue; 2],
    /// The queue whose turn it is, if requests of both may go.
    turn: usize,
    tickets: u64,
}

impl Queue {
    pub(super) fn new(limits: ThrottleLimits, now: Instant) -> Self {
        Self {
            limits,
            buckets: limits.buckets(),
            leaked: now,
            waiting: Default::default(),
            turn: 0,
            tickets: 0,
        }
    }

    pub(super) fn limits(&self) -> &ThrottleLimits {
        &self.limits
    }

    /// Sets other limits and empties the buckets. Waiting requests stay, in the order of their arrival.
    pub(super) fn set_limits(&mut self, limits: ThrottleLimits, now: Instant) {
        (self.limits, self.buckets, self.leaked) = (limits, limits.buckets(), now);
        let waiting = self.waiting.iter_mut().flat_map(FairQueue::take_all);
        let mut waiting: Vec<_> = waiting.collect();
        waiting.sort_unstable_by_key(|(_, ticket)| ticket.number);
        for (member, ticket) in waiting {
            let queue = self.queue_of(ticket.direction);
            self.waiting[queue].push(member, ticket);
        }
    }

    /// Lets a request go at once, or queues it. Returns true if it goes at once.
    pub(super) fn admit(
        &mut self,
        direction: Direction,
        bytes: u64,
        (member, lane): (MemberId, LaneId),
        now: Instant,
    ) -> bool {
        if self.is_first(direction) && self.wait(direction, now).is_zero() {
            self.charge(direction, bytes);
            return true;
        }
        self.tickets += 1;
        let ticket = Ticket {
            lane,
            direction,
            number: self.tickets,
            bytes,
        };
        let queue = self.queue_of(direction);
        self.waiting[queue].push(member, ticket);
        false
    }

    /// Returns the next request that may go now.
    pub(super) fn next(&mut self, now: Instant) -> Option<Ticket> {
        for queue in [self.turn, 1 - self.turn] {
            let Some(ticket) = self.waiting[queue].first().copied() else {
                continue;
            };
            if self.wait(ticket.direction, now).is_zero() {
                let used = self.charge(ticket.direction, ticket.bytes);
                self.turn = 1 - queue;
                return self.waiting[queue].pop(used);
            }
        }
        None
    }

    /// Returns the time after which to let waiting requests go, or `None` if nothing waits.
    ///
    /// It is later than the moment at which the next one may go, if others are about to follow: each wakeup costs CPU
    /// time. The buckets have room for what could have gone meanwhile, so the limits are still reached. Nobody waits
    /// longer whose requests would have run out, because these come one by one.
    pub(super) fn next_in(&mut self, now: Instant) -> Option<Duration> {
        let waits = [0, 1].map(|queue| {
            let ticket = *self.waiting[queue].first()?;
            let wait = self.wait(ticket.direction, now);
            let followers = self.waiting[queue].depth().saturating_sub(1);
            let each = self.cost(ticket.direction, ticket.bytes);
            let all = each.saturating_mul(u32::try_from(followers).unwrap_or(u32::MAX));
            Some(wait + all.min(TOGETHER))
        });
        waits.into_iter().flatten().min()
    }

    /// Removes all tickets of a lane, because their requests go at once. The requests are charged, so others wait
    /// longer.
    pub(super) fn release(&mut self, member: MemberId, lane: LaneId, now: Instant) {
        self.leak(now);
        for queue in 0..self.waiting.len() {
            for ticket in self.waiting[queue].remove(member, lane) {
                self.charge(ticket.direction, ticket.bytes);
            }
        }
    }

    /// Returns some lane with a waiting request.
    pub(super) fn any_waiting(&self) -> Option<LaneId> {
        self.waiting
            .iter()
            .find_map(FairQueue::first)
            .map(|ticket| ticket.lane)
    }

    /// Forgets what a member has used. It has no tickets.
    pub(super) fn forget(&mut self, member: MemberId) {
        self.waiting.iter_mut().for_each(|queue| queue.forget(member));
    }

    fn queue_of(&self, direction: Direction) -> usize {
        match self.limits.distinguish_directions() {
            true => direction.index(),
            false => 0,
        }
    }

    /// Returns whether no waiting request may have to go before a new one in this direction.
    fn is_first(&self, direction: Direction) -> bool {
        match self.limits.have_total() {
            true => self.waiting.iter().all(FairQueue::is_empty),
            false => self.waiting[self.queue_of(direction)].is_empty(),
        }
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

    /// Fills the buckets, and returns what the request uses of the limit that it uses most of.
    fn charge(&mut self, direction: Direction, bytes: u64) -> Used {
        let used = self
            .amounts(direction, bytes)
            .map(|(bucket, amount)| self.buckets[bucket].fill(amount));
        let used = used.into_iter().max().unwrap_or_default().as_nanos();
        Used::try_from(used).unwrap_or(Used::MAX).max(1)
    }

    /// Returns the time in which a request of this size leaks from all buckets.
    fn cost(&self, direction: Direction, bytes: u64) -> Duration {
        let costs = self
            .amounts(direction, bytes)
            .map(|(bucket, amount)| self.buckets[bucket].cost(amount));
        costs.into_iter().max().unwrap_or_default()
    }

    /// Returns the buckets that a request fills, with the amounts.
    fn amounts(&self, direction: Direction, bytes: u64) -> [(usize, f64); 4] {
        #[allow(clippy::cast_precision_loss, reason = "far below 2^50")]
        let (bytes, unit) = (bytes as f64, self.limits.iops_size as f64);
        let requests = match unit > 0.0 && bytes > unit {
            true => bytes / unit,
            false => 1.0,
        };
        let [total_iops, iops, total_bytes, transferred] = direction.buckets();
        [
            (total_iops, requests),
            (iops, requests),
            (total_bytes, bytes),
            (transferred, bytes),
        ]
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

    /// The load of a member: direction and size of its requests, and the number that it keeps waiting.
    type Wish = (Direction, u64, usize);

    /// Returns the number of requests of each member that went in ten seconds.
    fn race(limits: ThrottleLimits, wishes: &[Wish]) -> Vec<usize> {
        let start = Instant::now();
        let (mut queue, mut now) = (Queue::new(limits, start), start);
        let (mut went, mut waiting) = (vec![0; wishes.len()], vec![0; wishes.len()]);
        while now < start + Duration::from_secs(10) {
            for (index, &(direction, bytes, depth)) in wishes.iter().enumerate() {
                let member = index as u64;
                while waiting[index] < depth {
                    match queue.admit(direction, bytes, (member, member), now) {
                        true => went[index] += 1,
                        false => waiting[index] += 1,
                    }
                }
            }
            now += queue.next_in(now).expect("somebody waits");
            while let Some(ticket) = queue.next(now) {
                let index = usize::try_from(ticket.lane).unwrap();
                waiting[index] -= 1;
                went[index] += 1;
            }
        }
        went
    }

    /// Requires shares of a sum. The first member found an empty bucket, which holds a hundredth of ten seconds.
    fn assert_shares(went: &[usize], shares: &[usize]) {
        let all: usize = shares.iter().sum();
        for (went, share) in went.iter().zip(shares) {
            assert!(went.abs_diff(*share) <= all / 90, "{went:?} is not {shares:?}");
        }
    }

    #[test]
    fn members_share_evenly() {
        let went = race(iops(1000), &[(Read, 4096, 8); 3]);
        let sum: usize = went.iter().sum();
        assert!((10_000..10_200).contains(&sum), "{went:?}");
        assert_shares(&went, &[3333; 3]);
    }

    #[test]
    fn the_depth_of_a_queue_gains_nothing() {
        let went = race(iops(1000), &[(Read, 4096, 1), (Read, 4096, 64), (Write, 4096, 8)]);
        assert_shares(&went, &[3333; 3]);
    }

    #[test]
    fn readers_and_writers_share_a_total() {
        let went = race(iops(1000), &[(Read, 4096, 8), (Write, 4096, 8)]);
        assert_shares(&went, &[5000; 2]);
        let mixed = ThrottleLimits {
            bps_write: 1 << 40,
            ..iops(1000)
        };
        assert_shares(&race(mixed, &[(Read, 4096, 8), (Write, 4096, 8)]), &[5000; 2]);
    }

    #[test]
    fn members_share_bytes_whatever_their_sizes() {
        let limits = ThrottleLimits {
            bps_total: 10 << 20,
            ..ThrottleLimits::default()
        };
        let went = race(limits, &[(Read, 4096, 8), (Write, 65536, 8)]);
        // 50 MiB each.
        assert_shares(&[went[0], went[1] * 16], &[12_800; 2]);
    }

    /// Lets this number of requests go as time passes. Returns their lanes.
    fn let_go(queue: &mut Queue, now: &mut Instant, count: usize) -> Vec<LaneId> {
        let one = |_| {
            *now += queue.next_in(*now).expect("somebody waits");
            queue.next(*now).expect("it may go").lane
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn a_member_does_not_make_up_for_idle_time() {
        let mut now = Instant::now();
        let mut queue = Queue::new(iops(1000), now);
        while queue.admit(Read, 1, (1, 1), now) {}
        assert!((0..1999).all(|_| !queue.admit(Read, 1, (1, 1), now)));
        let_go(&mut queue, &mut now, 500);
        assert!((0..1999).all(|_| !queue.admit(Read, 1, (2, 2), now)));
        let went = let_go(&mut queue, &mut now, 1000);
        let idle = went.iter().filter(|lane| **lane == 2).count();
        // What is made up for is a tenth of a second of the limit, half of it at the cost of each.
        assert!((545..=555).contains(&idle), "{idle}");
    }

    #[test]
    fn a_member_that_comes_back_at_once_loses_nothing() {
        let mut now = Instant::now();
        let mut queue = Queue::new(iops(1000), now);
        while queue.admit(Read, 1, (1, 1), now) {}
        assert!((0..2999).all(|_| !queue.admit(Read, 1, (1, 1), now)));
        let mut went = [0; 3];
        for _ in 0..100 {
            // The second member's next requests come when the first one has had two turns.
            went[1] += let_go(&mut queue, &mut now, 2).len();
            assert!((0..4).all(|_| !queue.admit(Read, 1, (2, 2), now)));
            while went[2] < went[1] {
                let lane = let_go(&mut queue, &mut now, 1)[0];
                went[usize::try_from(lane).unwrap()] += 1;
                assert!(went[1].abs_diff(went[2]) <= 4, "{went:?}");
            }
            queue.release(2, 2, now);
        }
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
        let went = std::iter::from_fn(|| queue.next(now)).count();
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
        let rest: Vec<LaneId> = std::iter::from_fn(|| queue.next(later))
            .map(|ticket| ticket.lane)
            .collect();
        assert_eq!(rest, [2, 3]);
    }
}
