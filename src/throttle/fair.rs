//! Shares a limit between members: the member that has used least of it goes next. Pure logic.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::ticket::{LaneId, MemberId, Ticket};

/// Nanoseconds for which a member's requests would have used up the limit.
pub(super) type Used = u64;

/// A member that comes back may go before others until it has made up for this much of what it missed, and has to wait at
/// most for this much of what it had more. This bridges the time between a completion and the driver's next request.
const MEMORY: Used = 100_000_000;

/// The place of a member in the order. Members that have used equal amounts go in the order of their requests.
type Place = (Used, u64, MemberId);

/// Waiting requests for which the same limits count.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    members: BTreeMap<MemberId, Share>,
    /// Members that have tickets. The first member goes next.
    order: BTreeSet<Place>,
    /// The most that a member had used before it went. A member that comes back starts near this.
    clock: Used,
}

#[derive(Debug, Default)]
struct Share {
    used: Used,
    tickets: VecDeque<Ticket>,
}

impl Share {
    fn place(&self, member: MemberId) -> Option<Place> {
        let ticket = self.tickets.front()?;
        Some((self.used, ticket.number, member))
    }
}

impl FairQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(super) fn push(&mut self, member: MemberId, ticket: Ticket) {
        let share = self.members.entry(member).or_default();
        share.tickets.push_back(ticket);
        if share.tickets.len() == 1 {
            let clock = self.clock;
            share.used = share
                .used
                .clamp(clock.saturating_sub(MEMORY), clock.saturating_add(MEMORY));
            self.order.extend(share.place(member));
        }
    }

    /// Returns the number of tickets that can be taken one after the other without any member running out of tickets.
    pub(super) fn depth(&self) -> usize {
        let tickets =
            |(_, _, member): &Place| self.members.get(member).map_or(0, |share| share.tickets.len());
        let fewest = self.order.iter().map(tickets).min().unwrap_or(0);
        fewest * self.order.len()
    }

    /// Returns the ticket that goes next.
    pub(super) fn first(&self) -> Option<&Ticket> {
        let (_, _, member) = self.order.first()?;
        self.members.get(member)?.tickets.front()
    }

    /// Takes the ticket that goes next, which uses this much of the limit.
    pub(super) fn pop(&mut self, used: Used) -> Option<Ticket> {
        let (before, _, member) = self.order.pop_first()?;
        let share = self.members.get_mut(&member)?;
        let ticket = share.tickets.pop_front();
        share.used = before.saturating_add(used);
        self.order.extend(share.place(member));
        self.clock = self.clock.max(before);
        ticket
    }

    /// Takes all tickets of a lane.
    pub(super) fn remove(&mut self, member: MemberId, lane: LaneId) -> VecDeque<Ticket> {
        let Some(share) = self.members.get_mut(&member) else {
            return VecDeque::new();
        };
        let old = share.place(member);
        let (removed, kept) = std::mem::take(&mut share.tickets)
            .into_iter()
            .partition(|ticket| ticket.lane == lane);
        share.tickets = kept;
        let new = share.place(member);
        old.map(|place| self.order.remove(&place));
        self.order.extend(new);
        removed
    }

    /// Takes all tickets, with their members.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = (MemberId, Ticket)> + use<> {
        let Self { members, .. } = std::mem::take(self);
        members
            .into_iter()
            .flat_map(|(member, share)| share.tickets.into_iter().map(move |ticket| (member, ticket)))
    }

    /// Forgets a member without tickets.
    pub(super) fn forget(&mut self, member: MemberId) {
        if let Some(share) = self.members.remove(&member) {
            share.place(member).map(|place| self.order.remove(&place));
        }
    }
}
