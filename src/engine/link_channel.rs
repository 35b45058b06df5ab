//! The channel of a queue to a disk on another machine. IOThread only.

use std::rc::Rc;

use super::DetectZeroes;
use crate::io::{Completer, Requests};

/// The part of such a disk that an IOThread has: the connection, and the requests that wait for its answers.
pub(in crate::engine) trait RemoteLink {
    /// Returns a number for a new channel.
    fn number(&self) -> u64;

    /// Starts requests of a channel. Returns at once.
    fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>, channel: u64);

    /// Ends the requests of a channel with ECANCELED soon, if nobody answers them.
    fn give_up_soon(&self, channel: u64);

    /// Returns whether requests wait for the other side.
    fn waits_for_others(&self) -> bool;

    /// Returns whether the other side can write zeroes without their data.
    fn writes_zeroes(&self) -> bool;
}

/// A channel. All channels to a disk on one IOThread share a link.
#[derive(Debug)]
pub(in crate::engine) struct LinkChannel<L> {
    link: Rc<L>,
    number: u64,
    zeroes: DetectZeroes,
}

impl<L: RemoteLink> LinkChannel<L> {
    pub(in crate::engine) fn new(link: Rc<L>) -> Self {
        let number = link.number();
        Self {
            link,
            number,
            zeroes: DetectZeroes::Off,
        }
    }

    pub(in crate::engine) fn sibling(&self) -> Self {
        Self::new(Rc::clone(&self.link)).with_zero_detection(self.zeroes)
    }

    /// Detects writes of zeroes on this channel, and on siblings made from it, if the other side can write zeroes.
    pub(in crate::engine) fn with_zero_detection(self, zeroes: DetectZeroes) -> Self {
        match self.link.writes_zeroes() {
            true => Self { zeroes, ..self },
            false => self,
        }
    }

    pub(in crate::engine) fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) {
        if self.zeroes != DetectZeroes::Off {
            self.zeroes.apply(batch);
        }
        self.link.submit(batch, completer, self.number);
    }

    /// Ends the requests of this channel with ECANCELED soon, if nobody answers them.
    pub(in crate::engine) fn give_up_soon(&self) {
        self.link.give_up_soon(self.number);
    }

    /// Returns whether requests of any channel to the disk on this IOThread wait for the other side.
    pub(in crate::engine) fn waits_for_others(&self) -> bool {
        self.link.waits_for_others()
    }
}
