//! Moves the daemon to the background. The process that was started ends once its child serves, or with the child's
//! exit status if the start fails.
//!
//! Runs on the main thread before there are other threads.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use rustix::fs::{FileType, fstat};
use rustix::process::{getppid, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

/// A background process whose parent still waits.
#[derive(Debug)]
pub(super) struct Background {
    parent: io::PipeWriter,
    null: File,
    /// The parent's number.
    pid: Option<rustix::process::Pid>,
}

/// Time for the parent to end.
const END: Duration = Duration::from_secs(1);

impl Background {
    /// Continues in a child with a session of its own. The parent never returns.
    ///
    /// # Errors
    /// The process or the pipe cannot be created.
    pub(super) fn detach() -> io::Result<Self> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let (child_is_ready, parent) = io::pipe()?;
        // SAFETY: there is one thread, so the child finds no lock held.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => {
                drop(parent);
                std::process::exit(wait(child_is_ready, child));
            }
            ForkResult::Child => {
                setsid()?;
                let pid = getppid();
                Ok(Self { parent, null, pid })
            }
        }
    }

    /// Lets the parent end, waits for that, and closes the terminal. Logging continues if stderr is a file.
    ///
    /// Afterwards this process is a child of systemd if a service runs it. systemd kills a main process at once that is not
    /// its child, when the service stops.
    pub(super) fn announce(mut self) -> io::Result<()> {
        dup2_stdin(&self.null)?;
        dup2_stdout(&self.null)?;
        let to_file = fstat(io::stderr().as_fd()).map(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
        if !to_file.unwrap_or(false) {
            dup2_stderr(&self.null)?;
        }
        self.parent.write_all(&[0])?;
        let end = Instant::now() + END;
        while getppid() == self.pid && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Waits until the child serves or ends, and returns the exit status for the parent.
fn wait(mut child_is_ready: PipeReader, child: Pid) -> i32 {
    if child_is_ready.read_exact(&mut [0]).is_ok() {
        return 0;
    }
    match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, status)) => status,
        _ => 1,
    }
}
