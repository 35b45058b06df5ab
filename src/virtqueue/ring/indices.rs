//! The indices of a ring at one moment, for people who look for the reason of a hang.

use std::fmt;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::SplitRing;
use super::used::{NO_INTERRUPT, NO_NOTIFY};

/// The indices of a ring at one moment. They count modulo 2^16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RingIndices {
    /// The number of entries.
    pub size: u16,
    /// The driver's available index. If it stays ahead of `taken` in a ring that runs, a kick was lost.
    pub avail: u16,
    /// The available index up to which chains were taken.
    pub taken: u16,
    /// The used index up to which chains were answered.
    pub answered: u16,
    /// The used index that the driver can see.
    pub published: u16,
    /// The notifications that both sides ask for.
    #[serde(flatten)]
    pub wanted: Wanted,
}

/// The notifications that the two sides of a ring ask for, as their memory has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged, rename_all_fields = "kebab-case")]
pub enum Wanted {
    /// With EVENT_IDX.
    Events {
        /// The device asks for a kick when the driver's index passes this.
        avail_event: u16,
        /// The driver asks for a notification when the device's index passes this.
        used_event: u16,
    },
    /// Without EVENT_IDX.
    Flags {
        /// The device asks for no kicks.
        no_notify: bool,
        /// The driver asks for no notifications.
        no_interrupt: bool,
    },
}

impl SplitRing {
    /// Reads the indices of both sides.
    pub fn indices(&self) -> RingIndices {
        let size = usize::from(self.size);
        // Relaxed: no other memory is read because of these.
        let avail = |offset| u16::from_le(self.avail_u16(offset).load(Ordering::Relaxed));
        let used = |offset| u16::from_le(self.used_u16(offset).load(Ordering::Relaxed));
        let wanted = match self.features.event_idx {
            true => Wanted::Events {
                avail_event: used(4 + 8 * size),
                used_event: avail(4 + 2 * size),
            },
            false => Wanted::Flags {
                no_notify: used(0) & NO_NOTIFY != 0,
                no_interrupt: avail(0) & NO_INTERRUPT != 0,
            },
        };
        RingIndices {
            size: self.size,
            avail: avail(2),
            taken: self.next_avail.0,
            answered: self.next_used.0,
            published: self.published.0,
            wanted,
        }
    }
}

impl fmt::Display for RingIndices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            size,
            avail,
            taken,
            answered,
            published,
            wanted,
        } = self;
        write!(
            f,
            "size={size} avail={avail} taken={taken} answered={answered} published={published} {wanted}"
        )
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Events {
                avail_event,
                used_event,
            } => write!(f, "avail_event={avail_event} used_event={used_event}"),
            Self::Flags {
                no_notify,
                no_interrupt,
            } => write!(
                f,
                "no_notify={} no_interrupt={}",
                u8::from(no_notify),
                u8::from(no_interrupt)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtqueue::inflight::model::Driver;

    #[test]
    fn indices_show_how_far_each_side_has_got() {
        let mut driver = Driver::new(8, 0xffff, true);
        let mut ring = driver.device().ring;
        (0..4).for_each(|_| driver.submit(0));
        let heads = [(); 3].map(|()| ring.pop().unwrap().unwrap());
        ring.push_used(heads[0], 1);
        ring.publish();
        ring.push_used(heads[1], 1);
        driver.set_used_event(7);
        let found = ring.indices();
        let expected = RingIndices {
            size: 8,
            avail: 3,
            taken: 2,
            answered: 1,
            published: 0,
            wanted: Wanted::Events {
                avail_event: 0,
                used_event: 7,
            },
        };
        assert_eq!(found, expected);
        ring.enable_kicks();
        assert_eq!(
            ring.indices().to_string(),
            "size=8 avail=3 taken=2 answered=1 published=0 avail_event=2 used_event=7"
        );
    }

    #[test]
    fn flags_show_which_notifications_are_off() {
        let driver = Driver::new(8, 0, false);
        let mut ring = driver.device().ring;
        for (polled, expected) in [(true, 1), (false, 0)] {
            match polled {
                true => ring.disable_kicks(),
                false => ring.enable_kicks(),
            }
            let text = ring.indices().to_string();
            let end = format!(" no_notify={expected} no_interrupt=0");
            assert!(text.ends_with(&end), "{text}");
        }
    }
}
