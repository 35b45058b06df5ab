//! A process with a throttle group, its disks, and a monitor.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::Result;

use crate::args::{Pattern, Wait};
use crate::backend::Backend;
use crate::candidate::{Candidate, Kind, QSD};
use crate::contention::Contention;
use crate::frontend::{Connected, connect_each};
use crate::lane::Lane;
use crate::load::{Frontend, Load};
use crate::qmp::Qmp;
use crate::shape::Shape;

/// A throttle group and its disks.
pub(super) struct Setup {
    /// Limits of the group, as on the command line.
    pub(super) limits: &'static str,
    /// The disks of the group.
    pub(super) disks: &'static [Wish],
    /// Each disk has an IOThread of its own.
    pub(super) apart: bool,
}

/// What a disk is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) depth: u16,
    pub(super) block: u64,
    pub(super) rw: Pattern,
}

/// A process with a frontend for each disk.
pub(super) struct Run {
    frontends: Connected<'static>,
    backend: Backend,
    qmp: Qmp,
}

impl Run {
    pub(super) fn pid(&self) -> u32 {
        self.backend.pid()
    }

    /// Returns the queue of each disk, and the monitor.
    pub(super) fn parts(&mut self) -> (&mut [Lane<'static>], &mut Qmp) {
        (&mut self.frontends.lanes, &mut self.qmp)
    }

    /// # Errors
    /// The process does not end.
    pub(super) fn end(self) -> Result<()> {
        drop(self.frontends);
        self.backend.stop()
    }
}

/// Returns whether a candidate has throttle groups.
pub(super) fn has_groups(candidate: &Candidate) -> bool {
    matches!(candidate.kind, Kind::Ours { .. } | Kind::Qsd { .. })
}

/// Starts a candidate with the disks of a set-up, and connects to each.
///
/// # Errors
/// The candidate does not start, or refuses the set-up.
pub(super) fn start(
    candidate: &Candidate,
    setup: &Setup,
    dir: &Path,
    interrupted: &AtomicBool,
) -> Result<Run> {
    let disks: Vec<PathBuf> = (0..setup.disks.len())
        .map(|i| dir.join(format!("{i}.sock")))
        .collect();
    let monitor = dir.join("qmp.sock");
    let sockets = [&disks[..], std::slice::from_ref(&monitor)].concat();
    for socket in &sockets {
        let _ = std::fs::remove_file(socket);
    }
    let line = command_line(candidate, setup, &disks, &monitor);
    let mut backend = Backend::spawn(&candidate.name, &line, disks, dir.join("log"))?;
    backend.wait_until("listen", |_| crate::disks::all_listen(&sockets))?;
    let loads: Vec<Vec<Load>> = setup.disks.iter().map(|disk| vec![load(disk)]).collect();
    let frontends = connect_each(&mut backend, &loads, interrupted)?;
    Ok(Run {
        frontends,
        backend,
        qmp: Qmp::connect(&monitor)?,
    })
}

fn command_line(candidate: &Candidate, setup: &Setup, disks: &[PathBuf], monitor: &Path) -> Vec<String> {
    let (program, options) = match &candidate.kind {
        Kind::Ours { binary, options, .. } => (binary.display().to_string(), &options[..]),
        _ => (QSD.to_owned(), &[][..]),
    };
    let mut line = vec![program];
    let mut add = |option: &str, value: String| line.extend([option.to_owned(), value]);
    add("--object", format!("throttle-group,id=g,limits.{}", setup.limits));
    for (i, socket) in disks.iter().enumerate() {
        let iothread = if setup.apart { i } else { 0 };
        if iothread == i {
            add("--object", format!("iothread,id=io{i}"));
        }
        add(
            "--blockdev",
            format!("null-co,node-name=n{i},size=67108864,read-zeroes=off"),
        );
        add(
            "--blockdev",
            format!("throttle,node-name=t{i},throttle-group=g,file=n{i}"),
        );
        add(
            "--export",
            format!(
                "vhost-user-blk,id=e{i},node-name=t{i},addr.type=unix,addr.path={},writable=on,iothread=io{iothread}",
                socket.display()
            ),
        );
    }
    add(
        "--chardev",
        format!("socket,id=qmp,path={},server=on,wait=off", monitor.display()),
    );
    add("--monitor", "chardev=qmp".to_owned());
    line.extend_from_slice(options);
    line
}

fn load(wish: &Wish) -> Load {
    Load {
        frontend: Frontend::Native,
        shape: Shape::new(1, wish.depth, 1),
        one_process: true,
        rw: wish.rw,
        block_size: wish.block,
        wait: Wait::Sleep,
        contention: Contention::Idle,
        event_idx: true,
        suppress: false,
        driver_threads: 1,
        warmup: std::time::Duration::ZERO,
        runtime: std::time::Duration::ZERO,
    }
}
