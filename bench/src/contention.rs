//! Competition for the CPUs during a run. Used on the main thread, from which backends and driving threads inherit.

use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The longest time for which a busy loop runs, should nobody end it.
const LONGEST_LOOP: Duration = Duration::from_secs(120);

/// The kind of competition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Contention {
    /// The backend and the driver may use all CPUs, and nothing else runs.
    #[default]
    Idle,
    /// The backend and the driver share one CPU.
    OneCpu,
    /// A thread that never sleeps runs on each CPU.
    BusyLoops,
}

/// Contention that lasts until this is dropped.
#[derive(Debug)]
pub(crate) struct Contended {
    /// The CPUs of this thread before it was pinned.
    before: Option<libc::cpu_set_t>,
    stop: Arc<AtomicBool>,
    loops: Vec<JoinHandle<()>>,
}

impl Contended {
    /// Starts the contention. Processes and threads that this thread starts from now on are subject to it.
    ///
    /// # Errors
    /// The calling thread cannot be pinned, or no thread can be created.
    pub(crate) fn start(kind: Contention) -> Result<Self> {
        let mut contended = Self {
            before: None,
            stop: Arc::default(),
            loops: Vec::new(),
        };
        let own = own_cpus().context("find the CPUs of this thread")?;
        match kind {
            Contention::Idle => {}
            Contention::OneCpu => {
                // The last one: many systems handle most interrupts on the first.
                let last = numbers(&own).last().context("this thread has no CPU")?;
                pin(&only(last)).context("pin this thread to a CPU")?;
                contended.before = Some(own);
            }
            Contention::BusyLoops => {
                for cpu in numbers(&own) {
                    let stop = Arc::clone(&contended.stop);
                    let looping = thread::Builder::new().spawn(move || busy_loop(cpu, &stop));
                    contended.loops.push(looping.context("start a busy loop")?);
                }
            }
        }
        Ok(contended)
    }
}

impl Drop for Contended {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for looping in self.loops.drain(..) {
            let _ = looping.join();
        }
        if let Some(before) = &self.before {
            let _ = pin(before);
        }
    }
}

/// Keeps a CPU busy until `stop` is set.
fn busy_loop(cpu: usize, stop: &AtomicBool) {
    // A CPU may have gone offline. The loop then runs on another one.
    let _ = pin(&only(cpu));
    let end = Instant::now() + LONGEST_LOOP;
    while !stop.load(Ordering::Relaxed) && Instant::now() < end {
        std::hint::spin_loop();
    }
}

/// Returns the numbers of the CPUs in a set.
pub(crate) fn numbers(set: &libc::cpu_set_t) -> impl Iterator<Item = usize> {
    let size = usize::try_from(libc::CPU_SETSIZE).unwrap_or_default();
    // SAFETY: the number is within the set.
    (0..size).filter(move |&cpu| unsafe { libc::CPU_ISSET(cpu, set) })
}

fn only(cpu: usize) -> libc::cpu_set_t {
    let mut set = empty();
    insert(&mut set, cpu);
    set
}

/// Adds a CPU of another set to this one.
pub(crate) fn insert(set: &mut libc::cpu_set_t, cpu: usize) {
    // SAFETY: the number comes from a set of this size.
    unsafe { libc::CPU_SET(cpu, set) };
}

pub(crate) fn empty() -> libc::cpu_set_t {
    // SAFETY: a set of bits, for which all bits 0 are a value.
    unsafe { mem::zeroed() }
}

pub(crate) fn own_cpus() -> io::Result<libc::cpu_set_t> {
    let mut set = empty();
    // SAFETY: the kernel writes at most the size of the set.
    match unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) } {
        0 => Ok(set),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Moves the calling thread to these CPUs.
pub(crate) fn pin(set: &libc::cpu_set_t) -> io::Result<()> {
    pin_thread(0, set)
}

/// Moves the thread with this number to these CPUs.
pub(crate) fn pin_thread(id: libc::pid_t, set: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: the kernel reads the set.
    match unsafe { libc::sched_setaffinity(id, size_of_val(set), set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus() -> Vec<usize> {
        numbers(&own_cpus().unwrap()).collect()
    }

    #[test]
    fn one_cpu_is_inherited_and_ends() {
        let before = cpus();
        let contended = Contended::start(Contention::OneCpu).unwrap();
        let inherited = thread::spawn(cpus).join().unwrap();
        assert_eq!(inherited, before[before.len() - 1..]);
        drop(contended);
        assert_eq!(cpus(), before);
    }

    #[test]
    fn each_cpu_has_a_loop_that_ends() {
        let contended = Contended::start(Contention::BusyLoops).unwrap();
        assert_eq!(contended.loops.len(), cpus().len());
        assert!(contended.loops.iter().all(|looping| !looping.is_finished()));
        let stop = Arc::clone(&contended.stop);
        drop(contended);
        assert_eq!(Arc::strong_count(&stop), 1, "a loop still runs");
    }
}
