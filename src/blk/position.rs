//! The positions of a disk's rings. Only an IOThread knows those of its rings, so others ask it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Instant;

use serde::Serialize;

use crate::virtqueue::RingIndices;

/// The position of a ring at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RingPosition {
    /// The indices of the driver and of the device.
    #[serde(flatten)]
    pub indices: RingIndices,
    /// The IOThread polls the ring, so the driver need not kick.
    pub polled: bool,
}

impl fmt::Display for RingPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} polled={}", self.indices, u8::from(self.polled))
    }
}

/// The positions of rings, by queue.
pub type Positions = BTreeMap<u16, RingPosition>;

/// The positions that IOThreads were asked for. Any thread.
#[derive(Debug)]
pub struct AskedPositions(Receiver<Positions>);

impl AskedPositions {
    /// Returns the sender for the IOThreads' answers, and the receiver.
    pub(super) fn new() -> (Sender<Positions>, Self) {
        let (sender, receiver) = mpsc::channel();
        (sender, Self(receiver))
    }

    /// Waits until all IOThreads have answered, until `deadline` at most. The positions on IOThreads that have not are
    /// missing.
    pub fn wait_until(self, deadline: Instant) -> Positions {
        let mut positions = Positions::new();
        // Ends when every IOThread has dropped its sender, or at the deadline.
        while let Ok(some) = self
            .0
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            positions.extend(some);
        }
        positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtqueue::Wanted;

    #[test]
    fn the_answers_that_came_in_time_count() {
        let position = RingPosition {
            indices: RingIndices {
                size: 8,
                avail: 5,
                taken: 4,
                answered: 3,
                published: 2,
                wanted: Wanted::Flags {
                    no_notify: true,
                    no_interrupt: false,
                },
            },
            polled: true,
        };
        let (sender, asked) = AskedPositions::new();
        let stuck = sender.clone();
        sender.send([(3, position)].into()).unwrap();
        drop(sender);
        assert_eq!(asked.wait_until(Instant::now()), [(3, position)].into());
        drop(stuck);
        let text = "size=8 avail=5 taken=4 answered=3 published=2 no_notify=1 no_interrupt=0 polled=1";
        assert_eq!(position.to_string(), text);
        let json = serde_json::to_value(position).unwrap();
        assert_eq!((&json["avail"], &json["no-notify"]), (&5.into(), &true.into()));
    }
}
