//! The pages, each of which several requests may share.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::request::Format;

/// Shortest time between two pages.
const FRESH: Duration = Duration::from_millis(100);
/// Minimum ratio of the time between two pages to the time that making one takes.
const SHARE: u32 = 20;

/// Makes the pages of both formats. Requests that come at about the same time get the same page, so that a flood of them
/// costs at most a tenth of a CPU.
pub(super) struct Pages {
    make: Box<dyn FnMut(Format) -> String + Send>,
    /// The last page of each format, with the time until which it is fresh.
    last: [Option<(Arc<str>, Instant)>; 2],
}

impl Pages {
    pub(super) fn new(make: impl FnMut(Format) -> String + Send + 'static) -> Self {
        Self {
            make: Box::new(make),
            last: [None, None],
        }
    }

    /// Returns a page that is fresh at `now`.
    pub(super) fn get(&mut self, format: Format, now: Instant) -> Arc<str> {
        self.forget(now);
        let last = &mut self.last[format as usize];
        if let Some((page, _)) = last {
            return Arc::clone(page);
        }
        let start = Instant::now();
        let page: Arc<str> = (self.make)(format).into();
        let end = now + FRESH.max(start.elapsed() * SHARE);
        *last = Some((Arc::clone(&page), end));
        page
    }

    /// Drops pages that are no longer fresh.
    pub(super) fn forget(&mut self, now: Instant) {
        for last in &mut self.last {
            last.take_if(|(_, end)| *end <= now);
        }
    }

    /// Returns the time when the next page can be dropped.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.last.iter().flatten().map(|(_, end)| *end).min()
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_share_a_fresh_page() {
        let mut count = 0;
        let mut pages = Pages::new(move |format| {
            count += 1;
            format!("{format:?}{count}")
        });
        let (start, format) = (Instant::now(), Format::OpenMetrics);
        assert_eq!(&*pages.get(format, start), "OpenMetrics1");
        let end = pages.deadline().unwrap();
        assert_eq!(&*pages.get(format, end - Duration::from_nanos(1)), "OpenMetrics1");
        assert_eq!(&*pages.get(Format::Prometheus, start), "Prometheus2");
        pages.forget(end);
        assert_eq!(&*pages.get(format, end), "OpenMetrics3");
        pages.forget(end + Duration::from_secs(60));
        assert_eq!(pages.deadline(), None);
    }
}
