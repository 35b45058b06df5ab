//! One process takes over from another while guests run, and no frontend notices.
//!
//! The old process ([`predecessor`]) listens on a socket for the new one ([`successor`]), on a thread of its own
//! ([`lobby`]). They exchange the messages of [`message`]:
//!
//! 1. Both agree on a format. The old process describes its registry and passes images, sockets and the rest.
//! 2. The new process makes all that, confines itself, and waits. Until now the old one has served and obeyed as ever. If
//!    something has changed, it refuses.
//! 3. The old process parks all disks: it takes no more requests and waits for those in flight. It passes the sessions of
//!    the frontends. From here on its main thread changes nothing.
//! 4. The new process restores the sessions, and then says that it takes over. With this message the disks are its own.
//! 5. It says that it starts the rings, and does so.
//! 6. It closes the line. The old process names it to the service manager, and ends.
//!
//! Whatever fails before the message of step 4, the old process goes on. It also goes on if the new one ends between
//! steps 4 and 5. If the old one ends after it has passed its disks, the new one goes on with them. If it ends earlier, but
//! after step 1, the new one waits until the last request of the old one has ended ([`lifeline`](crate::lifeline)), and
//! serves the disks as a process does that has just been started: frontends connect again. If it is killed before, the new one
//! makes what its own options describe.

mod asking;
mod describe;
mod fail;
mod heir;
mod lobby;
mod message;
mod predecessor;
mod refusal;
mod socket;
mod steps;
mod successor;

use std::path::Path;

pub(super) use describe::{Rest, describe, flush_ahead, park};
pub use fail::FailPoint;
pub(super) use heir::{Heir, Outcome};
pub(super) use refusal::Refusal;
pub(super) use socket::HandOverSocket;
pub(super) use steps::{Described, Step};
pub(super) use successor::{Left, Successor};

/// The reason why nothing is taken over.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TakeOverError(String);

impl TakeOverError {
    /// The old process was killed before it had described its disks, and the options of this one describe none.
    pub(super) fn killed(path: &Path) -> Self {
        Self(format!(
            "cannot take over at {}: the old process was killed before it had described its disks: start the service again",
            path.display()
        ))
    }
}
