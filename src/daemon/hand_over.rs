//! The main thread's part of a take-over by another process: describes everything, parks the disks, and waits.
//!
//! Until the disks are parked, the main thread obeys signals and calls as ever. While they are parked, it answers queries;
//! changes wait until the disks go on. A signal that asks for the end cuts the wait short.

use super::handle::{Message, QUIT};
use super::refresh::refresh;
use super::report::print_statistics;
use super::signals::{Event, Events};
use super::start::Started;
use super::succession::{Described, Heir, Outcome, Refusal, Rest, Step, describe, flush_ahead, park};
use crate::lifeline::Promise;

/// The state of a take-over between two steps.
#[derive(Debug, Default)]
pub(super) struct HandingOver {
    /// Nothing has changed since the other process has got its description. If this process is killed now, that one serves
    /// what was described.
    as_described: Option<Promise>,
}

/// The next action after a step.
#[derive(Debug)]
pub(super) enum Next {
    /// This process goes on.
    GoOn,
    /// This process has to end, for this reason.
    End(&'static str),
    /// Another process serves the disks.
    Leave(Heir),
}

impl HandingOver {
    /// Notes an event that may change objects, nodes, exports or disks.
    pub(super) fn look(&mut self, event: &Event<Message>) {
        match event {
            Event::Refresh
            | Event::Readable
            | Event::End(_)
            | Event::Call(Message::Call(_) | Message::DiskEnded | Message::Quit) => self.as_described = None,
            Event::Print | Event::Deadline | Event::Call(_) => {}
        }
    }

    /// Takes a step that the hand-over thread asks for. That thread may have given up by then.
    pub(super) fn take(&mut self, step: Step, events: &mut Events<Message>, started: &mut Started) -> Next {
        match step {
            Step::Describe { format, reply } => {
                let described = describe_all(format, started);
                let _ = reply.send(described.map(|(described, promise)| {
                    self.as_described = Some(promise);
                    described
                }));
            }
            Step::FlushAhead { reply } => {
                let _ = reply.send(flush_ahead(&started.registry));
            }
            Step::Park { reply, .. } if self.as_described.is_none() => {
                let reason = "the disks were changed meanwhile: try again";
                let _ = reply.send(Err(Refusal(reason.to_owned())));
            }
            Step::Park { deadline, reply } => {
                if reply.send(Ok(park(&started.registry, deadline))).is_ok() {
                    let next = wait(events, started);
                    self.as_described = None;
                    return next;
                }
            }
            Step::End(_) => self.as_described = None,
        }
        Next::GoOn
    }
}

fn describe_all(format: u32, started: &Started) -> Result<(Described, Promise), Refusal> {
    let rest = Rest {
        monitor: started.monitor.as_ref(),
        metrics: started.metrics.as_ref(),
        pid_file: started.pid_file.as_ref(),
        service_manager: &started.service_manager,
    };
    let ended = || Refusal("there is no socket for take-overs any more".to_owned());
    let socket = started.hand_over.as_ref().ok_or_else(ended)?;
    describe(format, &started.registry, &rest, socket)
}

/// Waits, with all disks parked, for the end of the take-over.
fn wait(events: &mut Events<Message>, started: &mut Started) -> Next {
    // Answers of the opener wait.
    let watched = events.watch(None);
    let (mut later, mut refreshes, mut end) = (Vec::new(), false, None);
    let outcome = loop {
        let service_manager = &mut started.service_manager;
        service_manager.feed();
        match events.next(service_manager.deadline()) {
            Event::Call(Message::HandOver(Step::End(outcome))) => break outcome,
            Event::Call(Message::Query(query)) => query(&started.registry),
            Event::Call(Message::Quit) => end = Some(QUIT),
            Event::Call(other) => later.push(other),
            Event::End(signal) => end = Some(signal),
            Event::Refresh => refreshes = true,
            Event::Print => print_statistics(&started.registry),
            Event::Readable | Event::Deadline => {}
        }
        if end.is_some()
            && let Some(socket) = &started.hand_over
        {
            socket.interrupt();
        }
    };
    events.watch(watched);
    events.put_back(later);
    match (outcome, end) {
        (Outcome::HandedOver(heir), _) => Next::Leave(heir),
        (Outcome::GoesOn, Some(reason)) => Next::End(reason),
        (Outcome::GoesOn, None) => {
            if refreshes {
                refresh(&mut started.registry, &mut started.service_manager);
            }
            Next::GoOn
        }
    }
}
