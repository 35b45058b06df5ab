//! The metrics of IOThreads and their thread pools.

use std::fmt;
use std::sync::Arc;

use super::family::{Families, Labels, Value};
use crate::iothread::IoThreadFigures;
use crate::thread_pool::PoolTotals;

type IoThreads = [(String, Arc<IoThreadFigures>)];

/// Writes the metrics of the IOThreads.
pub(super) fn iothreads(families: &mut Families<'_>, iothreads: &IoThreads) -> fmt::Result {
    let cpu = iothreads.iter().filter_map(|(id, figures)| {
        let nanos = figures.cpu_nanos()?;
        Some((labels(id), Value::Nanos(nanos)))
    });
    families.counter(
        "vhost_user_blk_iothread_cpu_seconds",
        "CPU time of the IOThread, without its workers.",
        cpu,
    )?;
    waits(families, iothreads)?;
    pools(families, iothreads)
}

fn labels(id: &str) -> Labels {
    vec![("iothread", id.to_owned())]
}

fn waits(families: &mut Families<'_>, iothreads: &IoThreads) -> fmt::Result {
    type Read = fn(&IoThreadFigures) -> u64;
    let counters: [(&str, &str, Read); 3] = [
        ("polls", "Waits that began with busy polling.", |f| {
            f.waits().polls.get()
        }),
        ("poll_hits", "Waits that ended during busy polling.", |f| {
            f.waits().poll_hits.get()
        }),
        ("sleeps", "Waits in the kernel.", |f| f.waits().sleeps.get()),
    ];
    for (name, help, read) in counters {
        let metric = |(id, figures): &(String, Arc<_>)| (labels(id), Value::Count(read(figures)));
        let name = format!("vhost_user_blk_iothread_{name}");
        families.counter(&name, help, iothreads.iter().map(metric))?;
    }
    Ok(())
}

fn pools(families: &mut Families<'_>, iothreads: &IoThreads) -> fmt::Result {
    type Read = fn(&PoolTotals) -> u64;
    let totals: Vec<_> = iothreads.iter().map(|(id, f)| (id, f.pools())).collect();
    let gauges: [(&str, &str, Read); 4] = [
        (
            "threads",
            "Workers, including those that are being created.",
            |p| p.threads,
        ),
        ("idle_threads", "Workers that wait for jobs.", |p| p.idle),
        ("queued_jobs", "Jobs that no worker has taken.", |p| p.queued),
        ("active_jobs", "Jobs that workers have taken.", |p| p.active),
    ];
    for (name, help, read) in gauges {
        let metric = |(id, pool): &(&String, PoolTotals)| (labels(id), Value::Count(read(pool)));
        let name = format!("vhost_user_blk_thread_pool_{name}");
        families.gauge(&name, help, totals.iter().map(metric))?;
    }
    let failures = totals
        .iter()
        .map(|(id, pool)| (labels(id), Value::Count(pool.spawn_failures)));
    families.counter(
        "vhost_user_blk_thread_pool_spawn_failures",
        "Failed attempts to create a worker.",
        failures,
    )
}
