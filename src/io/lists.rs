//! Lists that hold another request's memory.
//!
//! An [`IoVecs`] may be used as long as the list that was filled is neither cleared nor dropped. A copy of its addresses
//! has to end before that. This file keeps the promise with ownership alone:
//! - A *group* owns its members. The leader's own list moves in here, the followers' boxes too, and nobody else reaches
//!   them until [`IoRequest::disband`] has cleared the list of the whole.
//! - A *part* owns a reference to the request that it is a part of, which stays in its slot until the part's list is
//!   cleared (see `split`).

use super::split::Parent;
use super::{IoRequest, IoVecs, Requests};

/// The lists of a request beside its own. Kept for their capacity while they are empty.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// The memory of all members of a group, the leader's first.
    group: IoVecs,
    followers: Requests,
    /// The leader's `iov`, while there are followers.
    leader: IoVecs,
    /// A part of another request's memory.
    part: IoVecs,
    /// Whose, and what keeps it alive. After `part`, which must not outlive it.
    parent: Option<Parent>,
}

impl IoRequest {
    /// Returns whether the request carries followers.
    pub fn is_merged(&self) -> bool {
        self.lists
            .as_ref()
            .is_some_and(|lists| !lists.followers.is_empty())
    }

    /// The memory of a read or write, including that of the followers.
    #[inline]
    pub fn whole(&self) -> &IoVecs {
        match &self.lists {
            None => &self.iov,
            Some(lists) if !lists.followers.is_empty() => &lists.group,
            Some(_) => self.alone(),
        }
    }

    /// The memory of a read or write, without that of the followers.
    pub fn alone(&self) -> &IoVecs {
        match &self.lists {
            Some(lists) if lists.parent.is_some() => &lists.part,
            Some(lists) if !lists.followers.is_empty() => &lists.leader,
            _ => &self.iov,
        }
    }

    /// The requests that it carries beside itself.
    pub fn followers(&self) -> &[Box<Self>] {
        self.lists.as_ref().map_or(&[], |lists| &lists.followers)
    }

    /// Takes `next`, which is about the bytes after this request's, as a follower.
    pub fn absorb(&mut self, next: Box<Self>) {
        debug_assert!(!next.is_merged());
        let lists = self.lists.get_or_insert_default();
        if lists.followers.is_empty() {
            std::mem::swap(&mut lists.leader, &mut self.iov);
            let own = match lists.parent {
                Some(_) => &lists.part,
                None => &lists.leader,
            };
            // SAFETY: only `disband` lets go of the leader's list, and it clears this one before. `Parent` outlives both.
            unsafe { lists.group.append(own) };
        }
        // SAFETY: `next` moves in below, and only `disband` lets it go, after it has cleared this list.
        unsafe { lists.group.append(next.alone()) };
        lists.followers.push(next);
    }

    /// Hands the followers, and then the request itself, to `taker`.
    pub fn disband(mut self: Box<Self>, mut taker: impl FnMut(Box<Self>)) {
        if self.is_merged()
            && let Some(lists) = &mut self.lists
        {
            lists.group.clear();
            std::mem::swap(&mut lists.leader, &mut self.iov);
            lists.leader.clear();
            lists.followers.drain(..).for_each(&mut taker);
        }
        taker(self);
    }

    /// Sets the result of the request and of each follower; `result` gets each in the order of the disk.
    pub fn set_results(&mut self, mut result: impl FnMut(&Self) -> std::io::Result<()>) {
        self.result = result(self);
        if let Some(lists) = &mut self.lists {
            for follower in &mut lists.followers {
                follower.result = result(follower);
            }
        }
    }

    /// Makes this request a child of `parent`, with `len` bytes of its memory from byte `at` on.
    pub(super) fn become_part(&mut self, parent: Parent, at: usize, len: usize) {
        let lists = self.lists.get_or_insert_default();
        debug_assert!(lists.parent.is_none() && lists.followers.is_empty());
        // SAFETY: `Parent` keeps the request, with its list, where it is; the part is cleared, or dropped, before it.
        parent.with_memory(|memory| unsafe { lists.part.append_part(memory, at, len) });
        lists.parent = Some(parent);
    }

    /// Ends what [`become_part`](Self::become_part) has begun.
    pub(super) fn leave_parent(&mut self) -> Option<Parent> {
        assert!(!self.is_merged(), "followers leave first");
        let lists = self.lists.as_mut()?;
        lists.part.clear();
        lists.parent.take()
    }
}
