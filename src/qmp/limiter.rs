//! Limits how often events repeat.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::events::Event;

/// Interval between two limited events of an object, as in QEMU.
const INTERVAL: Duration = Duration::from_secs(1);

/// Passes the first event of an object at once. Of the events that follow within the interval, it passes only the last,
/// when the interval ends.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    /// The open intervals by kind and object: the end of each, and the event to send then.
    open: BTreeMap<(&'static str, String), (Instant, Option<Event>)>,
}

impl Limiter {
    /// Takes an event. Returns it if it must be sent now.
    pub(super) fn pass(&mut self, event: Event, now: Instant) -> Option<Event> {
        let Some(members) = event.spec.limited_by else {
            return Some(event);
        };
        let object: Vec<_> = members.iter().map(|name| event.data.get(*name)).collect();
        let key = (event.spec.name, format!("{object:?}"));
        match self.open.get_mut(&key) {
            Some((_, waiting)) => {
                *waiting = Some(event);
                None
            }
            None => {
                self.open.insert(key, (now + INTERVAL, None));
                Some(event)
            }
        }
    }

    /// Returns the time of the next call to [`expire`](Self::expire), if one is needed.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.open.values().map(|(end, _)| *end).min()
    }

    /// Ends the intervals that are over, and returns the events that were held back until then.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Event> {
        let mut due = Vec::new();
        self.open.retain(|_, (end, waiting)| {
            if *end > now {
                return true;
            }
            *end = now + INTERVAL;
            // After an interval without an event, no further interval follows.
            match waiting.take() {
                Some(event) => {
                    due.push(event);
                    true
                }
                None => false,
            }
        });
        due.sort_by_key(|event| event.time);
        due
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::qmp::events::BLOCK_IO_ERROR;

    fn failure(node: &str, number: u64) -> Event {
        let data = json!({"device": "", "node-name": node, "operation": "read", "number": number});
        let serde_json::Value::Object(data) = data else {
            panic!("an object");
        };
        Event {
            spec: &BLOCK_IO_ERROR,
            data,
            time: Duration::from_secs(number),
        }
    }

    fn numbers(events: impl IntoIterator<Item = Event>) -> Vec<u64> {
        let number = |event: Event| event.data["number"].as_u64().expect("ours");
        events.into_iter().map(number).collect()
    }

    #[test]
    fn repeated_events_are_sent_once_per_second() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let sent: Vec<_> = (0..100)
            .filter_map(|n| limiter.pass(failure("a", n), start))
            .collect();
        assert_eq!(numbers(sent), [0]);
        assert_eq!(limiter.deadline(), Some(start + INTERVAL));
        assert!(limiter.expire(start + INTERVAL / 2).is_empty());
        assert_eq!(numbers(limiter.expire(start + INTERVAL)), [99]);
        assert!(limiter.pass(failure("a", 100), start + INTERVAL).is_none());
        assert_eq!(numbers(limiter.expire(start + 2 * INTERVAL)), [100]);
        assert!(limiter.expire(start + 3 * INTERVAL).is_empty());
        assert_eq!(limiter.deadline(), None);
        assert_eq!(
            numbers(limiter.pass(failure("a", 101), start + 3 * INTERVAL)),
            [101]
        );
    }

    #[test]
    fn no_object_silences_another() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        for (node, number) in [("a", 1), ("b", 2), ("c", 3)] {
            assert_eq!(numbers(limiter.pass(failure(node, number), now)), [number]);
        }
    }
}
