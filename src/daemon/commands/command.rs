//! Commands that run on the main thread, with access to the registry.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::convert::typed;
use crate::daemon::handle::Handle;
use crate::daemon::registry::{Done, Registry};
use crate::qmp::schema::{Object, Type};
use crate::qmp::{Command, Outcome, QmpError, Reply, Run, Scope};

/// The result of a command that has nothing to report.
pub(super) const NOTHING: Type = Type::Object(Object::EMPTY);

/// Makes a command that reads its arguments and asks the main thread, without changing anything.
pub(super) fn query<T: DeserializeOwned + Send + 'static>(
    name: &'static str,
    arguments: &'static Object,
    returns: Type,
    run: fn(&Registry, T) -> Outcome,
) -> Command<Handle> {
    later(
        name,
        arguments,
        returns,
        move |scope, arguments, reply| match typed(arguments) {
            Ok(arguments) => scope
                .context
                .query(move |registry| reply.send(run(registry, arguments))),
            Err(refusal) => reply.send(Err(refusal)),
        },
    )
}

/// Makes a command that reads its arguments, and does the rest on the main thread.
pub(super) fn on_registry<T: DeserializeOwned + Send + 'static>(
    name: &'static str,
    arguments: &'static Object,
    returns: Type,
    run: fn(&mut Registry, T) -> Outcome,
) -> Command<Handle> {
    with_registry(name, arguments, returns, move |registry, arguments, reply| {
        reply.send(run(registry, arguments));
    })
}

/// Makes a command that the main thread answers when it has ended, and that has nothing to report.
pub(super) fn in_time<T: DeserializeOwned + Send + 'static>(
    name: &'static str,
    arguments: &'static Object,
    run: fn(&mut Registry, T, Done),
) -> Command<Handle> {
    with_registry(name, arguments, NOTHING, move |registry, arguments, reply| {
        run(registry, arguments, done(reply));
    })
}

fn with_registry<T: DeserializeOwned + Send + 'static>(
    name: &'static str,
    arguments: &'static Object,
    returns: Type,
    run: impl Fn(&mut Registry, T, Reply) + Copy + Send + 'static,
) -> Command<Handle> {
    later(
        name,
        arguments,
        returns,
        move |scope, arguments, reply| match typed(arguments) {
            Ok(arguments) => scope
                .context
                .call(move |registry| run(registry, arguments, reply)),
            Err(refusal) => reply.send(Err(refusal)),
        },
    )
}

/// Answers a command that has nothing to report.
pub(super) fn done(reply: Reply) -> Done {
    Box::new(move |outcome| reply.send(outcome.map(|()| json!({})).map_err(QmpError::from)))
}

/// Makes a command that answers through its reply, once the main thread has done the work.
pub(super) fn later(
    name: &'static str,
    arguments: &'static Object,
    returns: Type,
    run: impl Fn(&mut Scope<'_, Handle>, Map<String, Value>, Reply) + Send + 'static,
) -> Command<Handle> {
    Command {
        name,
        arguments,
        returns,
        run: Run::Later(Box::new(run)),
    }
}
