//! Lists that hold another request's memory.
//!
//! The addresses in an [`IoVecs`] are valid until that list is cleared or dropped, so copies of them must be gone
//! before. Ownership guarantees this:
//! - A *group* owns its members. The leader's own list and the followers' boxes move in here. Nothing else can reach
//!   them until [`IoRequest::disband`] has cleared the group's list.
//! - A *part* owns a reference to its parent request. The parent stays in its slot until the part's list is cleared
//!   (see `split`).

use super::IoVecs;
use super::request::{IoRequest, Parent};

impl IoRequest {
    /// Returns whether the request has followers.
    pub fn is_merged(&self) -> bool {
        self.lists
            .as_ref()
            .is_some_and(|lists| !lists.followers.is_empty())
    }

    /// Returns the memory of a read or write, including that of the followers.
    #[inline]
    pub fn whole(&self) -> &IoVecs {
        match &self.lists {
            None => &self.iov,
            Some(lists) if !lists.followers.is_empty() => &lists.group,
            Some(_) => self.alone(),
        }
    }

    /// Returns the memory of a read or write, without that of the followers.
    pub fn alone(&self) -> &IoVecs {
        match &self.lists {
            Some(lists) if lists.parent.is_some() => &lists.part,
            Some(lists) if !lists.followers.is_empty() => &lists.leader,
            _ => &self.iov,
        }
    }

    /// Returns the requests that were merged into this one.
    pub fn followers(&self) -> &[Box<Self>] {
        self.lists.as_ref().map_or(&[], |lists| &lists.followers)
    }

    /// Merges `next`, which covers the bytes right after this request's, into this request as a follower.
    pub fn absorb(&mut self, next: Box<Self>) {
        debug_assert!(!next.is_merged());
        let lists = self.lists.get_or_insert_default();
        if lists.followers.is_empty() {
            std::mem::swap(&mut lists.leader, &mut self.iov);
            let own = match lists.parent {
                Some(_) => &lists.part,
                None => &lists.leader,
            };
            // SAFETY: only `disband` releases the leader's list, and it clears this one first. `Parent` outlives both.
            unsafe { lists.group.append(own) };
        }
        // SAFETY: `next` moves in below, and only `disband` releases it, after it has cleared this list.
        unsafe { lists.group.append(next.alone()) };
        lists.followers.push(next);
    }

    /// Passes the followers, and then the request itself, to `taker`.
    pub fn disband(mut self: Box<Self>, mut taker: impl FnMut(Box<Self>)) {
        if self.is_merged()
            && let Some(lists) = &mut self.lists
        {
            lists.group.clear();
            std::mem::swap(&mut lists.leader, &mut self.iov);
            lists.leader.clear();
            if let Some(stages) = &self.stages {
                // The storage had them at the same time. All were taken in one visit.
                for follower in &mut lists.followers {
                    follower.stages = Some(stages.clone());
                }
            }
            lists.followers.drain(..).for_each(&mut taker);
        }
        taker(self);
    }

    /// Sets the results of the request and of its followers. `result` is called for each, in the order of their
    /// offsets.
    pub fn set_results(&mut self, mut result: impl FnMut(&Self) -> std::io::Result<()>) {
        self.result = result(self);
        if let Some(lists) = &mut self.lists {
            for follower in &mut lists.followers {
                follower.result = result(follower);
            }
        }
    }

    /// Makes this request a child of `parent`, with `len` bytes of `memory` from byte `at` on.
    ///
    /// # Safety
    /// `memory` is the list of the request that waits in `parent`, and stays as it is while `parent` exists.
    pub(super) unsafe fn become_part(&mut self, parent: Parent, memory: &IoVecs, at: usize, len: usize) {
        let lists = self.lists.get_or_insert_default();
        debug_assert!(lists.parent.is_none() && lists.followers.is_empty());
        // SAFETY: `parent` keeps the list in place (the caller's promise), and the part is cleared or dropped before
        // it.
        unsafe { lists.part.append_part(memory, at, len) };
        lists.parent = Some(parent);
    }

    /// Undoes [`become_part`](Self::become_part).
    pub(super) fn leave_parent(&mut self) -> Option<Parent> {
        assert!(!self.is_merged(), "followers leave first");
        // A follower, or a child that was executed at once, still has it. The splitter keeps the child, so each would keep
        // the other for ever.
        self.completer = None;
        let lists = self.lists.as_mut()?;
        lists.part.clear();
        lists.parent.take()
    }
}
