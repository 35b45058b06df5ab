//! One run: connects to the backends, drives all queues for a while, and returns the counts.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use virtio_driver::{
    VhostUser, VirtioBlkConfig, VirtioBlkQueue, VirtioBlkReqBuf, VirtioFeatureFlags, VirtioTransport,
};
use vm_memory::{FileOffset, MmapRegion};

use crate::backend::Backend;
use crate::control::{Outcome, measure};
use crate::driver::drive;
use crate::lane::{Lane, Parts, Slot};
use crate::load::{Load, Work};

/// Time limit for answers: a backend that completes nothing for so long has stalled.
const STALL: Duration = Duration::from_secs(5);

/// Drives all disks of `backends` with `load`.
///
/// # Errors
/// A backend does not answer, stalls, fails a request or ends, or `interrupted` is set.
pub(crate) fn run(backends: &mut [Backend], load: &Load, interrupted: &AtomicBool) -> Result<Outcome> {
    let mut connected = Connected::default();
    for backend in backends.iter_mut() {
        connected.extend(connect_all(backend, load, interrupted)?);
    }
    let Connected {
        mut lanes,
        transports,
    } = connected;
    let per_thread = lanes.len().div_ceil(usize::from(load.driver_threads));
    let pids: Vec<u32> = backends.iter().map(Backend::pid).collect();
    let mut outcome = measure(
        load,
        lanes.chunks_mut(per_thread).collect(),
        |lanes, control| drive(lanes, load.wait, control),
        &pids,
        watcher(backends, interrupted),
    )?;
    let event_idx = VirtioFeatureFlags::RING_EVENT_IDX.bits();
    outcome.negotiated_event_idx = transports.iter().all(|one| one.get_features() & event_idx != 0);
    let counts = &outcome.counts;
    if counts.errors > 0 {
        let what = format!("{} of {} requests failed", counts.errors, counts.completions);
        return Err(backends[0].failure(&what));
    }
    if counts.completions == 0 {
        return Err(backends[0].failure("completed nothing during the measurement"));
    }
    Ok(outcome)
}

/// Connections with their queues.
#[derive(Default)]
pub(crate) struct Connected<'a> {
    // Dropped first: the rings are in the transports' memory.
    pub(crate) lanes: Vec<Lane<'a>>,
    transports: Vec<Transport>,
}

impl<'a> Connected<'a> {
    fn extend(&mut self, mut other: Self) {
        self.lanes.append(&mut other.lanes);
        self.transports.append(&mut other.transports);
    }
}

/// Connects a frontend to each disk of a backend, and sets up its queues for `load`.
///
/// # Errors
/// The backend does not answer, or refuses the set-up, or `interrupted` is set.
pub(crate) fn connect_all<'a>(
    backend: &mut Backend,
    load: &Load,
    interrupted: &AtomicBool,
) -> Result<Connected<'a>> {
    let loads = vec![vec![*load]; backend.sockets().len()];
    connect_each(backend, &loads, interrupted)
}

/// As [`connect_all`], with loads for each disk, each on queues of its own. Disks beyond the list get no frontend.
///
/// # Errors
/// The same.
pub(crate) fn connect_each<'a>(
    backend: &mut Backend,
    loads: &[Vec<Load>],
    interrupted: &AtomicBool,
) -> Result<Connected<'a>> {
    let mut all = Connected::default();
    for (socket, loads) in backend.sockets().to_vec().into_iter().zip(loads) {
        let connected = within(STALL, interrupted, backend, || connect(&socket, loads))?;
        let Some((transport, lanes)) = connected else {
            return Err(backend.failure("did not finish the set-up of the connection within 5 seconds"));
        };
        all.transports.push(transport);
        all.lanes.extend(lanes);
    }
    Ok(all)
}

/// Returns a function that checks the backends while they are driven. On an error it first kills all backends, so that
/// no thread keeps waiting for them.
pub(crate) fn watcher<'a>(
    backends: &'a mut [Backend],
    interrupted: &'a AtomicBool,
) -> impl FnMut(u64) -> Result<()> + 'a {
    let (mut progress, mut moved) = (0, Instant::now());
    move |seen| {
        let mut fault = None;
        if interrupted.load(Ordering::Relaxed) {
            fault = Some(anyhow::anyhow!("interrupted"));
        }
        if let Some(ended) = backends.iter_mut().position(Backend::has_ended) {
            fault = Some(backends[ended].failure("ended during the run"));
        }
        if seen != progress {
            (progress, moved) = (seen, Instant::now());
        } else if moved.elapsed() > STALL {
            fault = Some(backends[0].failure("stalled: no completion for 5 seconds"));
        }
        let Some(fault) = fault else { return Ok(()) };
        backends.iter_mut().for_each(Backend::kill);
        Err(fault)
    }
}

/// Runs `work`, which may block on the backend. If it takes longer than `limit`, kills the backend and returns `None`.
fn within<T: Send>(
    limit: Duration,
    interrupted: &AtomicBool,
    backend: &mut Backend,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<Option<T>> {
    let end = Instant::now() + limit;
    let mut killed = false;
    let result = thread::scope(|scope| {
        let worker = scope.spawn(work);
        while !worker.is_finished() {
            if Instant::now() > end || interrupted.load(Ordering::Relaxed) {
                // A read that blocks on the connection gets an end of file and returns.
                backend.kill();
                killed = true;
            }
            thread::sleep(Duration::from_millis(1));
        }
        worker.join().expect("the set-up does not panic")
    });
    ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
    if killed {
        return Ok(None);
    }
    result
        .map(Some)
        .map_err(|error| backend.failure(&format!("{error:#}")))
}

pub(crate) type Transport = VhostUser<VirtioBlkConfig, VirtioBlkReqBuf>;

/// Connects, and sets up the queues of all loads.
fn connect<'a>(socket: &Path, loads: &[Load]) -> Result<(Transport, Vec<Lane<'a>>)> {
    let socket = socket.to_str().context("the socket's path is not UTF-8")?;
    let first = loads.first().context("there is no load")?;
    let mut transport = open(socket, first.features())?;
    let queues: Vec<&Load> = loads
        .iter()
        .flat_map(|load| vec![load; load.shape.queues.into()])
        .collect();
    // Three descriptors per request, and at least 256 entries, which is common in QEMU.
    let entries = |load: &&Load| (load.shape.iodepth * 3).next_power_of_two().max(256);
    let size = queues.iter().map(entries).max().unwrap_or(256);
    let rings = VirtioBlkQueue::<Slot>::setup_queues(&mut transport, queues.len(), size)
        .with_context(|| format!("set up {} queues of {size} entries", queues.len()))?;
    let buffers: Vec<usize> = queues
        .iter()
        .map(|load| buffers_of(load))
        .collect::<Result<_>>()?;
    let memory = shared_memory(&mut transport, buffers.iter().sum())?;
    let config = transport
        .get_config()
        .context("read the device's configuration")?;
    let bytes = config.capacity.to_native() * 512;
    let (mut lanes, mut first_buffer) = (Vec::new(), 0);
    for (i, ring) in rings.into_iter().enumerate() {
        let load = queues[i];
        let blocks = bytes / load.block_size;
        ensure!(
            blocks > 0,
            "the disk has {bytes} bytes, which is less than one block"
        );
        let parts = Parts {
            kick: transport.get_submission_notifier(i),
            call: transport.get_completion_fd(i),
            memory: Arc::clone(&memory),
            first_buffer,
            work: Work::new(load, blocks, i as u64, queues.len() as u64),
            suppress: load.suppress,
            iodepth: load.shape.iodepth,
        };
        first_buffer += buffers[i];
        lanes.push(Lane::new(ring, parts));
    }
    Ok((transport, lanes))
}

/// Returns the size of the buffers of one queue.
fn buffers_of(load: &Load) -> Result<usize> {
    Ok(usize::from(load.shape.iodepth) * usize::try_from(load.block_size)?)
}

/// Connects, and retries while the socket exists but the backend does not listen on it yet.
pub(crate) fn open(socket: &str, features: u64) -> Result<Transport> {
    let end = Instant::now() + STALL;
    loop {
        match VhostUser::new(socket, features) {
            Ok(transport) => return Ok(transport),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused && Instant::now() < end => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => bail!("connect: {error}"),
        }
    }
}

/// Allocates memory for the requests' data and shares it with the backend.
pub(crate) fn shared_memory(transport: &mut Transport, len: usize) -> Result<Arc<MmapRegion>> {
    let file = tempfile::tempfile_in("/dev/shm").context("create shared memory")?;
    file.set_len(len as u64)?;
    let region = MmapRegion::from_file(FileOffset::new(file, 0), len).context("map shared memory")?;
    let file = region.file_offset().context("the region has a file")?.file();
    transport
        .map_mem_region(region.as_ptr() as usize, len, file.as_raw_fd(), 0)
        .context("share memory with the backend")?;
    Ok(Arc::new(region))
}
