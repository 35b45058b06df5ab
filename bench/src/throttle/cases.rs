//! The cases: limits, loads, and the figures that are compared with the limits.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::drive::{Timeline, drive};
use super::process::{Run, Setup, Wish};
use crate::args::Pattern;
use crate::usage::Usage;

/// One load on a process.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) setup: Setup,
    pub(super) measure: fn(&Case, &mut Run, Duration) -> Result<Vec<Figure>>,
}

/// A figure of a case, beside the value that it should have.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    pub(super) name: String,
    pub(super) set: f64,
    pub(super) measured: f64,
    /// CPU time of the backend, as a share of one CPU.
    pub(super) cpu: f64,
}

const fn reads(depth: u16, block: u64) -> Wish {
    Wish {
        depth,
        block,
        rw: Pattern::Randread,
    }
}

const WRITES: Wish = Wish {
    depth: 64,
    block: 4096,
    rw: Pattern::Randwrite,
};

const fn rate(name: &'static str, limits: &'static str, disks: &'static [Wish]) -> Case {
    Case {
        name,
        setup: Setup {
            limits,
            disks,
            apart: false,
        },
        measure: steady,
    }
}

const fn share(name: &'static str, limits: &'static str, disks: &'static [Wish], apart: bool) -> Case {
    Case {
        name,
        setup: Setup { limits, disks, apart },
        measure: shares,
    }
}

/// A load to fill the buckets, before the steady rate is measured.
const WARMUP: Duration = Duration::from_millis(500);

const ONE: &[Wish] = &[reads(64, 4096)];
const ALIKE: &[Wish] = &[reads(64, 4096), reads(64, 4096)];

pub(super) const CASES: &[Case] = &[
    rate("1 k IOPS", "iops-total=1000", ONE),
    rate("10 k IOPS", "iops-total=10000", ONE),
    rate("100 k IOPS", "iops-total=100000", ONE),
    rate("100 MiB/s", "bps-total=104857600", &[reads(64, 65536)]),
    share("two disks", "iops-total=10000", ALIKE, false),
    share("two disks, two IOThreads", "iops-total=10000", ALIKE, true),
    share(
        "depth 1 and 64",
        "iops-total=2000",
        &[reads(1, 4096), reads(64, 4096)],
        false,
    ),
    share(
        "depth 1 and 64, two IOThreads",
        "iops-total=2000",
        &[reads(1, 4096), reads(64, 4096)],
        true,
    ),
    share(
        "reads and writes",
        "iops-total=10000",
        &[reads(64, 4096), WRITES],
        false,
    ),
    share(
        "4 KiB and 64 KiB",
        "bps-total=104857600",
        &[reads(64, 4096), reads(16, 65536)],
        false,
    ),
    Case {
        name: "burst",
        setup: Setup {
            limits: "iops-total=1000,limits.iops-total-max=5000",
            disks: &[reads(64, 4096)],
            apart: false,
        },
        measure: burst,
    },
    Case {
        name: "burst with a length",
        setup: Setup {
            limits: "iops-total=1000,limits.iops-total-max=5000,limits.iops-total-max-length=2",
            disks: &[reads(64, 4096)],
            apart: false,
        },
        measure: long_burst,
    },
    Case {
        name: "change",
        setup: Setup {
            limits: "iops-total=1000",
            disks: ONE,
            apart: false,
        },
        measure: change,
    },
];

/// Measures the rate of all disks together, and compares it with the limit.
fn steady(case: &Case, run: &mut Run, runtime: Duration) -> Result<Vec<Figure>> {
    let (timeline, cpu) = timeline(run, runtime)?;
    let (bytes, limit) = limit(case);
    let per_request = if bytes {
        case.setup.disks[0].block as f64
    } else {
        1.0
    };
    let measured = timeline.rate(0, WARMUP, WARMUP + runtime) * per_request;
    Ok(vec![figure(case.name, limit, measured, cpu)])
}

/// Measures how two disks share a limit.
fn shares(case: &Case, run: &mut Run, runtime: Duration) -> Result<Vec<Figure>> {
    let (timeline, cpu) = timeline(run, runtime)?;
    let (bytes, limit) = limit(case);
    let amount = |disk: usize| {
        let per_request = if bytes {
            case.setup.disks[disk].block as f64
        } else {
            1.0
        };
        timeline.rate(disk, WARMUP, WARMUP + runtime) * per_request
    };
    Ok(vec![
        figure(
            &format!("{}: together", case.name),
            limit,
            amount(0) + amount(1),
            cpu,
        ),
        figure(
            &format!("{}: first / second", case.name),
            1.0,
            amount(0) / amount(1),
            cpu,
        ),
    ])
}

/// Requests that may go at once after a pause, and the rate after that.
fn burst(case: &Case, run: &mut Run, _: Duration) -> Result<Vec<Figure>> {
    let (timeline, cpu) = timeline(run, Duration::from_secs(2))?;
    let at_once = timeline.count(0, Duration::ZERO, Duration::from_millis(500));
    let after = timeline.rate(0, Duration::from_millis(500), Duration::from_millis(2500));
    // The bucket holds 5,000, and leaks 1,000 a second.
    Ok(vec![
        figure(
            &format!("{}: requests in the first 0.5 s", case.name),
            5500.0,
            at_once,
            cpu,
        ),
        figure(&format!("{}: rate after it", case.name), 1000.0, after, cpu),
    ])
}

/// The rate of a burst, the requests of all of it, and the rate after that.
fn long_burst(case: &Case, run: &mut Run, _: Duration) -> Result<Vec<Figure>> {
    let (timeline, cpu) = timeline(run, Duration::from_secs(5))?;
    let during = timeline.rate(0, Duration::from_millis(200), Duration::from_millis(2200));
    let all = timeline.count(0, Duration::ZERO, Duration::from_secs(3));
    let after = timeline.rate(0, Duration::from_secs(3), Duration::from_secs(5));
    // The bucket holds what two seconds of the burst bring, and leaks 1,000 a second.
    Ok(vec![
        figure(&format!("{}: rate of the burst", case.name), 5000.0, during, cpu),
        figure(
            &format!("{}: requests in the first 3 s", case.name),
            13_000.0,
            all,
            cpu,
        ),
        figure(&format!("{}: rate after it", case.name), 1000.0, after, cpu),
    ])
}

/// The rate from 0.1 s after a change of the limit.
fn change(case: &Case, run: &mut Run, _: Duration) -> Result<Vec<Figure>> {
    const SETTLE: Duration = Duration::from_millis(100);
    const WATCH: Duration = Duration::from_secs(2);
    let cpu = Usage::of_all(&[run.pid()])?.cpu;
    let (lanes, qmp) = run.parts();
    let (timeline, changes) = thread::scope(|scope| {
        let driver = scope.spawn(|| drive(lanes, 2 * (SETTLE + WATCH) + 2 * WARMUP));
        let mut changes = Vec::new();
        for limit in [5000, 1000] {
            thread::sleep(WARMUP);
            let sent = Instant::now();
            let limits = json!({"path": "/objects/g", "property": "limits", "value": {"iops-total": limit}});
            if let Err(error) = qmp.run("qom-set", &limits) {
                changes.push(Err(error));
                break;
            }
            changes.push(Ok((limit, sent, sent.elapsed())));
            thread::sleep(SETTLE + WATCH);
        }
        (driver.join().expect("the driver does not panic"), changes)
    });
    let timeline = timeline?;
    let cpu = Usage::of_all(&[run.pid()])?.cpu.saturating_sub(cpu);
    let cpu = cpu.as_secs_f64() / timeline.length().as_secs_f64();
    let mut figures = Vec::new();
    for changed in changes {
        let (limit, sent, took) = changed?;
        let from = sent.duration_since(timeline.start()) + SETTLE;
        let name = format!("{} to {limit}, 0.1 s after qom-set ({took:.1?})", case.name);
        let rate = timeline.rate(0, from, from + WATCH);
        figures.push(figure(&name, f64::from(limit), rate, cpu));
    }
    Ok(figures)
}

fn timeline(run: &mut Run, runtime: Duration) -> Result<(Timeline, f64)> {
    let pid = [run.pid()];
    let before = Usage::of_all(&pid)?.cpu;
    let timeline = drive(run.parts().0, WARMUP + runtime)?;
    let cpu = Usage::of_all(&pid)?.cpu.saturating_sub(before);
    Ok((timeline, cpu.as_secs_f64() / (WARMUP + runtime).as_secs_f64()))
}

fn figure(name: &str, set: f64, measured: f64, cpu: f64) -> Figure {
    Figure {
        name: name.to_owned(),
        set,
        measured,
        cpu,
    }
}

/// Returns whether the only limit of a case is one of bytes, and its value.
fn limit(case: &Case) -> (bool, f64) {
    let value = case
        .setup
        .limits
        .rsplit('=')
        .next()
        .and_then(|value| value.parse().ok());
    (case.setup.limits.starts_with("bps"), value.unwrap_or_default())
}
