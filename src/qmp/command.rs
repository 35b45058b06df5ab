//! The commands: each has a name, its types, and the code that runs it.

use std::os::fd::OwnedFd;

use serde_json::{Map, Value};

use super::error::{ErrorClass, Outcome, QmpError};
use super::fdsets::FdSets;
use super::mailbox::Reply;
use super::schema::{Object, Type};
use super::session::{Request, Session};

/// A command. `C` is what commands act on.
pub struct Command<C> {
    /// The name of the command.
    pub name: &'static str,
    /// The type of its arguments.
    pub arguments: &'static Object,
    /// The type of its result.
    pub returns: Type,
    /// The code that runs the command. It gets arguments that have been checked against their type.
    pub run: Run<C>,
}

/// The code of a command.
pub enum Run<C> {
    /// Answers at once, and never waits.
    Now(fn(&mut Scope<'_, C>, Map<String, Value>) -> Outcome),
    /// Answers later, from any thread.
    Later(RunLater<C>),
}

/// Starts to run a command, and never waits.
pub type RunLater<C> = Box<dyn Fn(&mut Scope<'_, C>, Map<String, Value>, Reply) + Send>;

/// The context of a running command.
pub struct Scope<'a, C> {
    /// The subject of the commands.
    pub context: &'a mut C,
    /// The sets of descriptors of all clients.
    pub fdsets: &'a FdSets,
    pub(super) session: &'a mut Session,
    pub(super) table: &'a [Command<C>],
    pub(super) quit: &'a mut bool,
}

impl<C> Scope<'_, C> {
    /// Takes the descriptor with this name from the client.
    ///
    /// # Errors
    /// The client has no descriptor with this name.
    pub fn take_named(&mut self, name: &str) -> Result<OwnedFd, QmpError> {
        self.session.take_named(name)
    }

    /// Checks and runs a command. Returns its outcome, or `None` if the answer comes later through the reply.
    pub(super) fn run(&mut self, request: Request, reply: impl FnOnce() -> Reply) -> Option<Outcome> {
        let Request { command, arguments } = request;
        if let Err(refusal) = super::session::check_mode(&command, self.session.negotiated) {
            return Some(Err(refusal));
        }
        let Some(command) = self.table.iter().find(|known| known.name == command) else {
            let desc = format!("The command '{command}' does not exist");
            return Some(Err(QmpError::new(ErrorClass::CommandNotFound, desc)));
        };
        if let Err(refusal) = super::arguments::check(command.arguments, &arguments) {
            return Some(Err(refusal));
        }
        match &command.run {
            Run::Now(run) => Some(run(self, arguments)),
            Run::Later(run) => {
                run(self, arguments, reply());
                None
            }
        }
    }
}
