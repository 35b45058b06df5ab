//! The daemon: starts, serves its disks, obeys signals, and ends.
//!
//! [`run`] is the main thread. [`start`](self) does everything that needs rights before it gives these up. [`disks`] is
//! the registry of what is served; disks come and go there while others work.

pub mod disks;
mod error;
mod monitor;
mod settings;
mod signals;
mod start;

use std::sync::Arc;
use std::time::Duration;

use disks::{Disk, Disks};
pub use error::{Error, HandedError, SocketError};
pub use settings::{Image, Settings, SocketSource};
use signals::{Event, Events};
use start::Started;

use crate::kernel;
use crate::sandbox::ThreadKind;

/// How long requests in flight may take once the process is asked to end.
const SHUTDOWN_TIME: Duration = Duration::from_millis(800);

/// Serves what `settings` describe, until a signal or the end of a connected socket.
///
/// # Errors
/// See [`enum@Error`]. After [`Error::Abandoned`] other threads still run, and the process must exit.
pub fn run(settings: &Settings) -> Result<(), Error> {
    kernel::check()?;
    // Before anything is opened, so that no descriptor of our own is taken for one that was handed over.
    let handed = start::handed_over(&settings.socket)?;
    // From the start, so that no signal finds its default action.
    let mut events = Events::<Call>::new().map_err(Error::Signals)?;
    let (of_disks, of_monitor) = (events.caller(), events.caller());
    let on_end = Arc::new(move |_: &str| of_disks.send(Call::DiskEnded));
    let on_quit = move || of_monitor.send(Call::Quit);
    let started = start::start(settings, handed, on_end, on_quit)?;
    let entered = started.sandbox.enter(ThreadKind::Main);
    let reason = match entered {
        Ok(()) => obey(&mut events, &started.disks),
        Err(_) => "the sandbox",
    };
    let end = end(started, reason, settings.print_statistics);
    // The disks have ended before: their sockets are removed.
    entered?;
    end
}

/// What other threads tell the main thread.
#[derive(Debug)]
enum Call {
    /// A disk's control thread has ended, because the only frontend of a connected socket has left.
    DiskEnded,
    /// A QMP client asks for the end.
    Quit,
}

/// Why the process ends when a QMP client asks for it.
const QUIT: &str = "quit";

/// Does what signals ask for, until one asks for the end or the disk has ended; returns which.
fn obey(events: &mut Events<Call>, disks: &Disks) -> &'static str {
    loop {
        match events.next() {
            Event::Print => disks.iter().for_each(print_report),
            Event::Refresh => {
                if let Err(error) = disks.refresh_sizes() {
                    tracing::error!(%error, "cannot look at the size of an image");
                }
            }
            Event::End(signal) => return signal,
            Event::Call(Call::DiskEnded) => return "the frontend left",
            Event::Call(Call::Quit) => return QUIT,
        }
    }
}

fn print_report(disk: &Disk) {
    eprint!("{}", disk.report());
}

/// Ends all disks, within [`SHUTDOWN_TIME`].
fn end(started: Started, reason: &'static str, print: bool) -> Result<(), Error> {
    let Started {
        mut disks,
        iothreads,
        monitor,
        ..
    } = started;
    if let Some(monitor) = &monitor {
        monitor.announce_end(match reason {
            QUIT => "host-qmp-quit",
            reason if reason.starts_with("SIG") => "host-signal",
            _ => "host-error",
        });
    }
    let ended = disks.end(SHUTDOWN_TIME);
    if let Some(monitor) = monitor {
        ended
            .finished
            .iter()
            .for_each(|disk| monitor.export_deleted(disk.name()));
        monitor.end();
    }
    if print {
        ended.all().for_each(print_report);
    }
    if !ended.busy.is_empty() {
        // Joining the IOThreads could take for ever.
        std::mem::forget(iothreads);
        return Err(abandon(&ended.busy, reason));
    }
    drop(iothreads);
    let stopped = |disk: &Disk| tracing::info!(disk = disk.name(), reason, "stopped");
    ended.finished.iter().for_each(stopped);
    let mut nodes = ended.finished.iter().map(Disk::node);
    match nodes.find(|node| node.last_flush_failed()) {
        None => Ok(()),
        Some(node) => Err(Error::LostWrites {
            path: node.path().to_owned(),
        }),
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
            // Its owner is the control thread.
            let _ = std::fs::remove_file(path);
        }
    }
    Error::Abandoned {
        disks: disks.iter().map(|disk| disk.name().to_owned()).collect(),
    }
}
