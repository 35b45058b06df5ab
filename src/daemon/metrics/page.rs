//! The page of metrics. docs/metrics.md has the same list of names.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text, text};
use prometheus_client::registry::Registry;

use super::disks::{disks, queues};
use super::family::{Families, Labels, Value};
use super::iothreads::iothreads;
use crate::daemon::roster::Roster;
use crate::metrics::Format;
use crate::sys;

/// The metrics of a moment.
#[derive(Debug)]
struct Page {
    roster: Roster,
    start: SystemTime,
}

/// Returns the page of a process that has started at `start`.
pub(super) fn page(roster: &Roster, start: SystemTime, format: Format) -> String {
    let mut registry = Registry::default();
    let roster = roster.clone();
    registry.register_collector(Box::new(Page { roster, start }));
    let mut page = String::new();
    // Writing to a string never fails.
    let _ = match format {
        Format::OpenMetrics => text::encode(&mut page, &registry),
        Format::Prometheus => prometheus_text::encode(&mut page, &registry),
    };
    page
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families::new(encoder);
        process(&mut families, self.start)?;
        let all = self.roster.disks();
        disks(&mut families, &all)?;
        queues(&mut families, &all)?;
        iothreads(&mut families, &self.roster.iothreads())
    }
}

fn process(families: &mut Families<'_>, start: SystemTime) -> fmt::Result {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    families.info(
        "vhost_user_blk_build",
        "The version of the daemon.",
        [vec![("version", version)]],
    )?;
    let start = start.duration_since(UNIX_EPOCH).unwrap_or_default();
    families.gauge(
        "process_start_time_seconds",
        "The time when the process started, since 1970.",
        [(Labels::new(), Value::Float(start.as_secs_f64()))],
    )?;
    let cpu = sys::clock::process_nanos().unwrap_or_default();
    families.counter(
        "process_cpu_seconds",
        "CPU time of all threads.",
        [(Labels::new(), Value::Nanos(cpu))],
    )
}
