//! The process that hands over: converses with a successor, parks its disks, and ends or goes on.
//!
//! Hand-over thread. The main thread answers everybody until the disks are parked; then their guests wait, and it waits for
//! this thread.

use std::os::fd::AsFd;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use super::fail::FailPoint;
use super::heir::{Heir, Outcome};
use super::lobby::{Caller, Lobby};
use super::message::{DRAIN, Hello, LONG, Message, RESTORE, SHORT};
use super::refusal::Refusal;
use super::steps::{ParkedDisk, Step};
use crate::daemon::handle::Handle;
use crate::error_chain::chain;
use crate::succession::{Bundle, Line, LineError};

/// Time for a process that has begun to speak to say the first message, while others wait.
const FIRST_WORDS: Duration = Duration::from_secs(1);

/// Asks the main thread.
pub(super) struct MainThread(pub(super) Handle);

impl MainThread {
    /// Asks for a step and waits for its result.
    ///
    /// # Errors
    /// The process is ending.
    pub(super) fn ask<T>(&self, step: impl FnOnce(Sender<T>) -> Step) -> Result<T, Refusal> {
        let (reply, result) = mpsc::channel();
        self.0.hand_over(step(reply));
        result
            .recv()
            .map_err(|_| Refusal("the process is ending".to_owned()))
    }

    /// Tells the end.
    pub(super) fn tell(&self, outcome: Outcome) {
        self.0.hand_over(Step::End(outcome));
    }
}

/// Hands over to the processes that ask.
pub(super) struct Predecessor {
    pub(super) main: MainThread,
    pub(super) fail_point: Option<FailPoint>,
}

impl Predecessor {
    /// Serves the processes in the lobby until one has taken over. When this process is asked to end, it refuses them, and
    /// drops `waiting`.
    pub(super) fn run(self, mut lobby: Lobby, waiting: Sender<()>) {
        while let Some(caller) = lobby.next() {
            if self.serve(caller, &mut lobby) {
                return;
            }
        }
        lobby.refuse_all(waiting);
    }

    /// Hands over to a process, or refuses. Returns whether it has taken over.
    fn serve(&self, caller: Caller, lobby: &mut Lobby) -> bool {
        let Caller { pid, line, .. } = caller;
        let hello = match line.receive(Instant::now() + FIRST_WORDS) {
            // It only wanted to know whether somebody listens.
            Err(LineError::Closed) => return false,
            hello => hello.map(|(message, _)| message),
        };
        tracing::info!(pid, "a process asks to take over");
        FailPoint::Asked.reached(self.fail_point);
        let handed_over = hello
            .map_err(Refusal::from)
            .and_then(|hello| self.hand_over(hello, pid, &line, lobby));
        match handed_over {
            Ok(()) => {
                // Before this process ends.
                lobby.dismiss(pid);
                self.main.tell(Outcome::HandedOver(Heir { pid, line }));
                true
            }
            Err(Refusal(reason)) => {
                let goes_on = if lobby.is_closed() {
                    ""
                } else {
                    ", and this process goes on"
                };
                tracing::warn!(pid, "nothing is handed over{goes_on}: {reason}");
                let refused = Message::Refused { reason };
                // The other process may have ended.
                let _ = line.send(&refused, &Bundle::default(), Instant::now());
                self.main.tell(Outcome::GoesOn);
                false
            }
        }
    }

    fn hand_over(&self, hello: Message, pid: u32, line: &Line, lobby: &Lobby) -> Result<(), Refusal> {
        let none = Bundle::default();
        let soon = || Instant::now() + SHORT;
        let Message::Hello(hello) = hello else {
            return Err(Refusal::unexpected());
        };
        let format = hello.format().map_err(Refusal)?;
        line.send(&Message::Hello(Hello::new()), &none, soon())?;
        let (everything, bundle) = self.main.ask(|reply| Step::Describe { format, reply })??;
        line.send(&Message::Everything(everything), &bundle, soon())?;
        drop(bundle);
        FailPoint::Passed.reached(self.fail_point);
        let deadline = Instant::now() + LONG;
        while !line.wait_for_either(lobby.listener().as_fd(), deadline)? {
            lobby.turn_away(pid);
        }
        let Message::Ready = receive(line, deadline)? else {
            return Err(Refusal::unexpected());
        };
        self.flush_ahead()?;
        self.hand_over_disks(line, format)
    }

    /// Flushes the disks that will flush once their guests wait. Failures show then.
    fn flush_ahead(&self) -> Result<(), Refusal> {
        let flushes = self.main.ask(|reply| Step::FlushAhead { reply })?;
        let deadline = Instant::now() + SHORT;
        for flush in flushes {
            let _ = flush.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    /// Parks all disks and passes them. The disks go on unless the other process has taken them.
    fn hand_over_disks(&self, line: &Line, format: u32) -> Result<(), Refusal> {
        FailPoint::Parking.reached(self.fail_point);
        let begin = Instant::now();
        let deadline = begin + DRAIN;
        let disks = self.main.ask(|reply| Step::Park { deadline, reply })??;
        let parked = wait_for_disks(&disks, deadline, format)?;
        FailPoint::Parked.reached(self.fail_point);
        let deadline = Instant::now() + RESTORE;
        for (message, bundle) in parked {
            line.send(&message, &bundle, deadline)?;
        }
        line.send(&Message::Parked, &Bundle::default(), deadline)?;
        let milliseconds = begin.elapsed().as_millis();
        tracing::debug!(milliseconds, "disks parked");
        taken(line, deadline)?;
        FailPoint::HandedOver.reached(self.fail_point);
        match line.receive::<Message>(Instant::now() + SHORT) {
            // The other process is alive, and the owner of the disks.
            Ok(_) | Err(LineError::Late | LineError::Interrupted) => {
                // Dropping them would let the disks go on.
                disks
                    .into_iter()
                    .for_each(|(_, parking)| std::mem::forget(parking));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Waits until all disks are parked. Returns the messages for the other process.
fn wait_for_disks(
    disks: &[ParkedDisk],
    drained: Instant,
    format: u32,
) -> Result<Vec<(Message, Bundle)>, Refusal> {
    let message = |(id, parking): &ParkedDisk| {
        // A control thread that is busy with a message answers later.
        let disk = parking.wait(drained + DRAIN).and_then(|(disk, bundle)| {
            let disk = if format < 2 { disk.for_format_1()? } else { disk };
            Ok((disk, bundle))
        });
        let (disk, bundle) = disk.map_err(|error| Refusal(format!("export '{id}': {}", chain(&error))))?;
        let message = Message::Disk {
            export: id.clone(),
            disk: Box::new(disk),
        };
        Ok((message, bundle))
    };
    disks.iter().map(message).collect()
}

/// Waits until the other process says that it takes over. After an error it cannot say so any more.
fn taken(line: &Line, deadline: Instant) -> Result<(), Refusal> {
    let first = receive(line, deadline);
    let message = match first {
        Ok(message) => message,
        Err(refusal) => {
            let told = Message::Refused {
                reason: refusal.0.clone(),
            };
            // It has read all that was sent before, so there is room. If it finds this message, it does not go on, even if
            // this process ends at once.
            let _ = line.send(&told, &Bundle::default(), Instant::now());
            line.close();
            match line.receive::<Message>(Instant::now()) {
                Ok((message, _)) => message,
                Err(_) => return Err(refusal),
            }
        }
    };
    match message {
        Message::Taken => Ok(()),
        _ => Err(Refusal::unexpected()),
    }
}

fn receive(line: &Line, deadline: Instant) -> Result<Message, Refusal> {
    match line.receive(deadline)?.0 {
        Message::Refused { reason } => Err(Refusal(reason)),
        message => Ok(message),
    }
}
