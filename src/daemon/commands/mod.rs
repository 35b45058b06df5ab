//! The QMP commands that change and query the registry, and the events of its disks.
//!
//! The monitor thread checks arguments and hands each command to the main thread, which answers it. A command that
//! takes time is answered when it has ended; neither thread waits for it.

mod blockstats;
mod command;
mod convert;
mod disk_events;
mod export_types;
mod exports;
mod limit_types;
mod node_types;
mod nodes;
mod object_types;
mod objects;
mod qom;
mod words;

pub(super) use disk_events::tell_of_disk;

use super::handle::Handle;
use super::registry::Notice;
use crate::qmp::events::BLOCK_EXPORT_DELETED;
use crate::qmp::{Command, Events};

/// Sends the notices of the registry to clients as events.
pub(super) fn tell(clients: &Events, notice: &Notice) {
    match notice {
        Notice::ExportDeleted { id } => {
            let data = [("id".to_owned(), id.clone().into())];
            clients.emit(&BLOCK_EXPORT_DELETED, data.into_iter().collect());
        }
    }
}

/// Returns the commands of the registry.
pub(super) fn commands() -> Vec<Command<Handle>> {
    let all = [objects::commands(), nodes::commands(), exports::commands()];
    all.into_iter().flatten().collect()
}
