//! A CPU for the disk that is measured, and others for what happens beside it.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::contention::{empty, insert, numbers, own_cpus, pin, pin_thread};

/// Two groups of CPUs.
#[derive(Clone, Copy)]
pub(super) struct Apart {
    /// For the load and the IOThread that serves it.
    load: libc::cpu_set_t,
    /// For everything else.
    rest: libc::cpu_set_t,
}

impl Apart {
    /// Takes the last CPU for the load. The calling thread, and threads that it starts, get the others.
    ///
    /// # Errors
    /// There is only one CPU.
    pub(super) fn new() -> Result<Self> {
        let own = own_cpus().context("find the CPUs of this thread")?;
        let (mut load, mut rest) = (empty(), empty());
        let last = numbers(&own).last().context("this thread has no CPU")?;
        insert(&mut load, last);
        numbers(&own)
            .filter(|&cpu| cpu != last)
            .for_each(|cpu| insert(&mut rest, cpu));
        ensure!(numbers(&rest).next().is_some(), "--apart needs two CPUs");
        let apart = Self { load, rest };
        pin(&apart.rest).context("pin this thread to CPUs")?;
        Ok(apart)
    }

    /// Moves the calling thread to the CPU of the load.
    pub(super) fn pin_load(&self) -> Result<()> {
        pin(&self.load).context("pin the load to a CPU")
    }

    /// Moves the IOThread of a process to the CPU of the load. The other threads stay where they were started.
    pub(super) fn pin_io_thread(&self, pid: u32) -> Result<()> {
        let tasks = format!("/proc/{pid}/task");
        for task in fs::read_dir(&tasks).context("list the threads of a backend")? {
            let task = task?;
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            // qsd has QEMU's names of threads.
            if matches!(name.trim_end(), "io" | "IO io") {
                let id = task.file_name().to_string_lossy().parse()?;
                return pin_thread(id, &self.load).context("pin the IOThread to a CPU");
            }
        }
        anyhow::bail!("{tasks} has no IOThread");
    }
}
