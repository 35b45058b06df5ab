//! The daemon: starts, serves its disks, obeys signals, and ends.
//!
//! [`run`] is the main thread. `start` does everything that needs rights, then gives them up. [`registry`] has the
//! objects, nodes and exports, and the operations that the command line and QMP share. [`disks`] has the served disks,
//! which can be added and removed while others work.

mod background;
mod commands;
pub mod disks;
mod error;
mod hand_over;
mod handle;
mod metrics;
mod monitor;
pub mod options;
mod pid_file;
mod refresh;
pub mod registry;
mod report;
mod roster;
mod settings;
mod signals;
mod start;
mod succession;

use std::sync::Arc;
use std::time::Duration;

use background::Background;
use disks::Disk;
pub use error::Error;
use hand_over::{HandingOver, Next};
pub use handle::Handle;
use handle::{Message, QUIT};
pub use metrics::MetricsError;
use refresh::refresh;
use report::{print_iothreads, print_report, print_statistics};
pub use settings::{MetricsAddress, Operation, Settings, Verb};
pub use signals::ignore_early_signals;
use signals::{Event, Events};
use start::Started;
pub use succession::FailPoint;
use succession::Heir;
pub use succession::TakeOverError;

use crate::kernel;
use crate::sandbox::ThreadKind;
use crate::sys::process::exit_now;

/// Time for requests in flight once the process is asked to end.
const SHUTDOWN_TIME: Duration = Duration::from_millis(800);

/// Time for the opener to remove sockets at the end.
const OPENER_TIME: Duration = Duration::from_millis(150);

/// Serves what `settings` describe, until a signal or the end of the last disk.
///
/// # Errors
/// See [`enum@Error`]. After [`Error::Abandoned`] other threads still run, and the process must exit.
pub fn run(settings: &Settings) -> Result<(), Error> {
    let background = match settings.daemonize {
        true => Some(Background::detach().map_err(Error::Background)?),
        false => None,
    };
    kernel::check()?;
    // Before anything is opened, so that no descriptor of our own is mistaken for one that was handed over.
    let handed = start::handed_over(settings)?;
    // As early as possible, so that no signal takes its default action.
    let mut events = Events::new().map_err(Error::Signals)?;
    let (of_disks, of_monitor) = (events.caller(), events.caller());
    let on_end = Arc::new(move |_: &str| of_disks.send(Message::DiskEnded));
    let mut started = start::start(settings, handed, on_end, Handle::new(of_monitor))?;
    events.watch(started.registry.opener_socket());
    if let Some(background) = background {
        background.announce().map_err(Error::Background)?;
    }
    if let Some(old) = started.old.take() {
        old.end();
    }
    let disks = started.registry.disks().count();
    started.service_manager.ready(disks);
    let entered = started.sandbox.enter(match started.monitor {
        None => ThreadKind::Main,
        Some(_) => ThreadKind::Manager,
    });
    let reason = match entered {
        Ok(()) => obey(&mut events, &mut started, settings.print_statistics),
        Err(_) => "the sandbox",
    };
    let end = end(started, reason, settings.print_statistics);
    // Checked after the disks have ended, so that their sockets are removed.
    entered?;
    end
}

/// Handles signals and calls until the process has to end, or nothing is left to serve. Returns the reason.
///
/// A process with QMP sockets waits for further disks.
fn obey(events: &mut Events<Message>, started: &mut Started, print_at_end: bool) -> &'static str {
    let managed = started.monitor.is_some();
    let mut handing_over = HandingOver::default();
    loop {
        let (registry, service_manager) = (&mut started.registry, &mut started.service_manager);
        service_manager.disks(registry.disks().count());
        service_manager.feed();
        let deadlines = registry.deadline().into_iter().chain(service_manager.deadline());
        let event = events.next(deadlines.min());
        handing_over.look(&event);
        match event {
            Event::Print => print_statistics(registry),
            Event::Refresh => refresh(registry, service_manager),
            Event::End(signal) => return signal,
            Event::Call(Message::Query(query)) => query(registry),
            Event::Call(Message::Call(call)) => call(registry),
            Event::Call(Message::Quit) => return QUIT,
            Event::Call(Message::DiskEnded) => {
                registry.follow_up();
                if registry.is_idle() && !managed {
                    return "the frontend left";
                }
            }
            Event::Call(Message::HandOver(step)) => match handing_over.take(step, events, started) {
                Next::GoOn => {}
                Next::End(reason) => return reason,
                Next::Leave(heir) => leave(started, &heir, print_at_end),
            },
            Event::Readable => {
                if !registry.take_answers() {
                    events.watch(None);
                }
            }
            Event::Deadline => registry.follow_up(),
        }
    }
}

/// Ends the process without touching what another process serves from now on.
fn leave(started: &Started, heir: &Heir, print_at_end: bool) -> ! {
    let pid = heir.pid;
    started.registry.leave();
    heir.wait();
    started.service_manager.main_process(pid);
    if print_at_end {
        print_statistics(&started.registry);
    }
    tracing::info!(pid, "everything is handed over");
    exit_now(0)
}

/// Ends all disks, and then the process. Waits for requests in flight as [`Disks::end`](disks::Disks::end) says.
fn end(started: Started, reason: &'static str, print_at_end: bool) -> Result<(), Error> {
    let Started {
        mut registry,
        monitor,
        metrics,
        service_manager,
        hand_over,
        ..
    } = started;
    service_manager.stopping(reason);
    if let Some(socket) = &hand_over {
        socket.refuse_all();
    }
    if let Some(monitor) = &monitor {
        monitor.announce_end(match reason {
            QUIT => "host-qmp-quit",
            reason if reason.starts_with("SIG") => "host-signal",
            _ => "host-error",
        });
    }
    let ended = registry.end(SHUTDOWN_TIME);
    if let Some(monitor) = monitor {
        monitor.end();
    }
    if let Some(metrics) = metrics {
        metrics.end();
    }
    registry.end_opener(OPENER_TIME);
    if print_at_end {
        print_iothreads(registry.roster());
        ended.all().for_each(print_report);
    }
    if !ended.busy.is_empty() {
        registry.abandon();
        return Err(abandon(&ended.busy, reason));
    }
    let lost = registry.lost_writes();
    let names: Vec<String> = ended.all().map(|disk| disk.name().to_owned()).collect();
    // The disks' parts on the IOThreads end with them: servers hear of it.
    drop(ended);
    // Joins the IOThreads.
    drop(registry);
    for disk in &names {
        tracing::info!(disk = disk.as_str(), reason, "stopped");
    }
    if names.is_empty() {
        tracing::info!(reason, "stopped, without a disk");
    }
    match lost {
        None => Ok(()),
        Some(path) => Err(Error::LostWrites { path }),
    }
}

/// Leaves disks behind whose control threads still wait for requests in flight.
fn abandon(disks: &[Disk], reason: &'static str) -> Error {
    for disk in disks {
        tracing::error!(
            disk = disk.name(),
            reason,
            "stopped, but requests are still in flight: leaving without them"
        );
        if let Some(path) = disk.socket_path() {
            // The control thread would do this, but it still waits.
            let _ = std::fs::remove_file(path);
        }
    }
    Error::Abandoned {
        disks: disks.iter().map(|disk| disk.name().to_owned()).collect(),
    }
}
