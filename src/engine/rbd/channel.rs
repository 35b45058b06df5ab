//! The channel of a queue to a disk in a Ceph cluster. IOThread only.

use std::rc::Rc;

use super::link::Link;
use crate::engine::DetectZeroes;
use crate::io::{Completer, Requests};

/// A channel. Siblings share a link.
#[derive(Debug)]
pub(in crate::engine) struct RbdChannel {
    link: Rc<Link>,
    number: u64,
    zeroes: DetectZeroes,
}

impl RbdChannel {
    pub(in crate::engine) fn new(link: Rc<Link>) -> Self {
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

    /// Detects writes of zeroes on this channel, and on siblings made from it.
    pub(in crate::engine) fn with_zero_detection(self, zeroes: DetectZeroes) -> Self {
        Self { zeroes, ..self }
    }

    pub(in crate::engine) fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) {
        if self.zeroes != DetectZeroes::Off {
            self.zeroes.apply(batch);
        }
        self.link.submit(batch, completer, self.number);
    }

    /// Ends the requests of this channel with ECANCELED soon, if the cluster does not answer them.
    pub(in crate::engine) fn give_up_soon(&self) {
        self.link.give_up_soon(self.number);
    }
}
