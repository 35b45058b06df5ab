//! The thread from which all threads of librbd descend, and with it their sandbox.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::error::Error;
use crate::account::Account;
use crate::error_chain::chain;
use crate::interrupt;
use crate::sandbox::{Mode, Sandbox};

/// The time after which a wait looks whether the process has to end.
const GLANCE: Duration = Duration::from_millis(100);

type Job = Box<dyn FnOnce() + Send>;

/// A thread that starts others for calls that may wait for a cluster. Any thread.
#[derive(Debug)]
pub struct Threads {
    jobs: Sender<Job>,
}

impl Threads {
    /// Creates the thread, which confines itself as `mode` says and becomes the user.
    ///
    /// # Errors
    /// The thread cannot be created or confined.
    pub fn start(mode: Mode, account: Option<&Account>) -> Result<Self, Error> {
        let failed = |why: String| Error::Thread { why };
        let ((jobs, take), (reply, confined)) = (mpsc::channel(), mpsc::channel());
        let account = account.cloned();
        let body = move || {
            let entered = Sandbox::confine_ceph(mode, account.as_ref());
            let is_confined = entered.is_ok();
            // Cannot fail: the creator waits for the answer.
            let _ = reply.send(entered.map_err(|error| chain(&error)));
            if is_confined {
                serve(&take);
            }
        };
        let thread = thread::Builder::new().name("ceph".to_owned()).spawn(body);
        thread.map_err(|error| failed(error.to_string()))?;
        confined.recv().expect("the thread answers").map_err(failed)?;
        Ok(Self { jobs })
    }

    /// Runs `work` on a thread of its own, and waits for its result. Returns `None` if that takes longer than `limit`:
    /// `work` goes on then, and its result is dropped on its thread.
    pub fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        self.begin(work).recv_timeout(limit).ok()
    }

    /// Like [`run`](Self::run), but returns `None` soon after a signal has asked the process to end.
    pub(super) fn run_unless_interrupted<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let result = self.begin(work);
        let end = Instant::now() + limit;
        while !interrupt::is_requested() {
            let left = end.saturating_duration_since(Instant::now());
            match result.recv_timeout(left.min(GLANCE)) {
                Ok(result) => return Some(result),
                Err(RecvTimeoutError::Timeout) if !left.is_zero() => {}
                Err(_) => return None,
            }
        }
        None
    }

    fn begin<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
        let (reply, result) = mpsc::sync_channel(1);
        self.start_job(move || {
            // The caller may have stopped waiting.
            let _ = reply.send(work());
        });
        result
    }

    /// Runs `work` on a thread of its own.
    pub(super) fn start_job(&self, work: impl FnOnce() + Send + 'static) {
        // Fails only if the thread has panicked, which ends the process.
        let _ = self.jobs.send(Box::new(work));
    }
}

fn serve(jobs: &Receiver<Job>) {
    for job in jobs {
        // Handed over afterwards, because a thread that cannot be created would drop it.
        let (give, take) = mpsc::channel::<Job>();
        let body = move || {
            if let Ok(job) = take.recv() {
                job();
            }
        };
        match thread::Builder::new().name("ceph-job".to_owned()).spawn(body) {
            Ok(_) => drop(give.send(job)),
            Err(error) => {
                tracing::warn!(%error, "no thread for a call of librbd: others may wait for it");
                job();
            }
        }
    }
}
