//! The table that `disks` prints.

use std::fmt::Write as _;

use super::round::{Life, Round, Row, Speed, Spread};
use crate::args::{DisksArgs, StorageKind};
use crate::stats::{Bounds, median, ratio, spelled};
use crate::units::short;

/// Renders the figures of all backends on one kind of storage.
pub(super) fn table(args: &DisksArgs, storage: StorageKind, rows: &[Row]) -> String {
    let mut out = format!(
        "\n{} disks in one process on one IOThread, {storage:?}: medians of {} (lowest..highest)\n",
        args.disks, args.rounds
    );
    let _ = write!(out, "{:<34}", "");
    for (name, _) in rows {
        let _ = write!(out, " {name:>24}");
    }
    out.push('\n');
    let mut line = |name: &str, cell: &dyn Fn(&[Round]) -> String| {
        let _ = write!(out, "{name:<34}");
        for (_, rounds) in rows {
            let _ = write!(out, " {:>24}", cell(rounds));
        }
        out.push('\n');
    };
    for (name, of) in FIGURES {
        line(name, &|rounds| spread(rounds.iter().map(of)));
    }
    let idle = |at: usize| {
        move |rounds: &[Round]| match rounds[0].many.idle {
            Some(idle) => format!(
                "{:.3} ms, {}",
                idle[at].cpu.as_secs_f64() * 1e3,
                idle[at].switches
            ),
            None => "-".to_owned(),
        }
    };
    let seconds = args.idle;
    line(&format!("CPU, switches in {seconds} idle s: before"), &idle(0));
    line("  with frontends", &idle(1));
    for (name, load) in LOADS {
        let of = |pick: fn(&Speed) -> f64| {
            move |rounds: &[Round]| spread(rounds.iter().map(|round| pick(&round.speeds[&load])))
        };
        line(&format!("{name}: kIOPS"), &of(|speed| speed.iops / 1e3));
        line("  CPU us per I/O", &of(|speed| speed.cpu_us));
        line("  p99 us", &of(|speed| speed.p99_us));
        line("  per notification", &of(|speed| speed.per_notification));
    }
    for (name, load, reference) in RATIOS {
        line(&format!("{name}: IOPS"), &|rounds| {
            compared(rounds, load, reference, |speed| speed.iops)
        });
        line("  CPU per I/O", &|rounds| {
            compared(rounds, load, reference, |speed| speed.cpu_us)
        });
        line("  p99", &|rounds| {
            compared(rounds, load, reference, |speed| speed.p99_us)
        });
    }
    let _ = writeln!(out, "ratios: {}", Bounds::of(args.rounds as usize).label());
    out
}

type Figure = (&'static str, fn(&Round) -> f64);

const FIGURES: [Figure; 17] = [
    ("all sockets listen, ms", |r| r.many.listen.as_secs_f64() * 1e3),
    ("one socket listens, ms", |r| r.one.listen.as_secs_f64() * 1e3),
    ("connect all frontends, ms", |r| {
        r.many.connect.as_secs_f64() * 1e3
    }),
    ("threads before", |r| r.many.before.threads as f64),
    ("  with frontends", |r| r.many.after.threads as f64),
    ("descriptors before", |r| r.many.before.fds as f64),
    ("  with frontends", |r| r.many.after.fds as f64),
    ("resident MiB before", |r| mib(r.many.before.rss)),
    ("  with frontends", |r| mib(r.many.after.rss)),
    ("proportional MiB before", |r| mib(r.many.before.pss)),
    ("  with frontends", |r| mib(r.many.after.pss)),
    ("anonymous MiB before", |r| mib(r.many.before.anonymous)),
    ("  with frontends", |r| mib(r.many.after.anonymous)),
    ("one disk: resident MiB before", |r| mib(r.one.before.rss)),
    ("each further disk, KiB before", |r| {
        per_disk(r, |life| life.before.rss)
    }),
    ("  with frontends", |r| per_disk(r, |life| life.after.rss)),
    ("guest memory touched, MiB", |r| mib(r.many.after.shared)),
];

const LOADS: [(&str, Spread); 4] = [
    ("1 disk, 1 queue", Spread::Alone),
    ("1 busy disk of many", Spread::OneBusy),
    ("1 disk, many queues", Spread::Queues),
    ("many disks", Spread::Disks),
];

const RATIOS: [(&str, Spread, Spread); 3] = [
    ("1 busy of many / 1 alone", Spread::OneBusy, Spread::Alone),
    ("many disks / many queues", Spread::Disks, Spread::Queues),
    ("many disks / 1 queue", Spread::Disks, Spread::Alone),
];

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// Returns what each disk after the first one adds.
fn per_disk(round: &Round, of: fn(&Life) -> u64) -> f64 {
    let more = of(&round.many) as f64 - of(&round.one) as f64;
    more / f64::from(round.disks - 1)
}

fn spread(values: impl Iterator<Item = f64>) -> String {
    let values: Vec<f64> = values.collect();
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    format!("{} ({}..{})", short(median(&values)), short(low), short(high))
}

fn compared(rounds: &[Round], load: Spread, reference: Spread, pick: fn(&Speed) -> f64) -> String {
    let of = |spread| {
        rounds
            .iter()
            .map(|round| pick(&round.speeds[&spread]))
            .collect::<Vec<_>>()
    };
    spelled(ratio(&of(load), &of(reference)))
}
