//! The parameters of a disk, from the options of its export.

use std::sync::Arc;
use std::time::Duration;

use super::error::{OperationError, within};
use super::nodes::Resolved;
use super::objects::{IoThreadObject, Objects};
use crate::blk::error_policy::ErrorPolicy;
use crate::blk::request::ID_LEN;
use crate::daemon::options::{ExportOptions, Mapping, NotifyOption, ValueError};
use crate::engine::FaultRule;
use crate::storage::Limits;

/// Maximum number of queues of a disk.
pub(super) const QUEUES_MAX: u16 = 256;
/// Default number of entries of a queue, which is also the maximum.
const QUEUE_SIZE: u16 = 1024;
/// Maximum `io-timeout`: a day.
const TIMEOUT_MAX: u64 = 86_400;

/// The parameters of a disk.
#[derive(Debug)]
pub(super) struct Params {
    pub(super) name: String,
    pub(super) limits: Limits,
    pub(super) queue_iothreads: Vec<u16>,
    pub(super) queue_size: u16,
    pub(super) serial: [u8; ID_LEN],
    pub(super) write_through: bool,
    pub(super) batch_notifications: bool,
    pub(super) merging: bool,
    pub(super) register_memory: bool,
    pub(super) error_policy: ErrorPolicy,
    pub(super) faults: Vec<FaultRule>,
}

impl Params {
    /// Checks the options of an export. Returns its IOThreads as well.
    pub(super) fn of(
        options: &ExportOptions,
        node: &Resolved,
        objects: &Objects,
        writable: bool,
    ) -> Result<(Self, Vec<Arc<IoThreadObject>>), OperationError> {
        let limits = limits(options, node, writable)?;
        let num_queues = within("num-queues", options.num_queues.unwrap_or(1), 1..=QUEUES_MAX)?;
        let (iothreads, queue_iothreads) = assign(options, num_queues, objects)?;
        let io_timeout = within("io-timeout", options.io_timeout.unwrap_or(0), 0..=TIMEOUT_MAX)?;
        let params = Self {
            name: options.display_name.clone().unwrap_or_else(|| options.id.clone()),
            limits,
            queue_iothreads,
            queue_size: queue_size(options.queue_size)?,
            serial: serial(options.serial.as_deref().unwrap_or_default())?,
            write_through: options.writethrough,
            batch_notifications: options.notify.unwrap_or_default() == NotifyOption::Batch,
            merging: options.request_merging.unwrap_or(true),
            register_memory: options.register_memory.unwrap_or(false),
            error_policy: ErrorPolicy {
                read_errors: options.rerror.unwrap_or_default(),
                write_errors: options.werror.unwrap_or_default(),
                io_timeout: Some(Duration::from_secs(io_timeout)).filter(|limit| !limit.is_zero()),
            },
            faults: options.inject.clone(),
        };
        Ok((params, iothreads))
    }

    /// Warns, before anyone can connect, that faults are injected.
    pub(super) fn announce_faults(&self) {
        for rule in &self.faults {
            tracing::warn!(disk = self.name, %rule, "FAULT INJECTION IS ON: this disk will fail on purpose, and may lose data");
        }
    }
}

/// Returns the limits of the disk.
fn limits(options: &ExportOptions, node: &Resolved, writable: bool) -> Result<Limits, OperationError> {
    let limits = node.view.limits_for(options.logical_block_size, !writable)?;
    let (name, size) = (|| options.node_name.clone(), node.view.size());
    let block = limits.logical_block_size;
    if node.is_fixed && !size.is_multiple_of(block.into()) {
        let name = name();
        return Err(OperationError::PartOfBlocks { name, size, block });
    }
    match size < block.into() {
        true => Err(OperationError::NoBlock { name: name() }),
        false => Ok(limits),
    }
}

/// Returns the IOThreads of an export, and each queue's index among them.
fn assign(
    options: &ExportOptions,
    queues: u16,
    objects: &Objects,
) -> Result<(Vec<Arc<IoThreadObject>>, Vec<u16>), OperationError> {
    if let Some(mapping) = &options.iothread_vq_mapping {
        let iothreads = mapping.iter().map(|entry| objects.iothread(&entry.iothread));
        let iothreads = iothreads.collect::<Result<Vec<_>, _>>()?;
        let owners = owners(mapping, queues).map_err(OperationError::Mapping)?;
        return Ok((iothreads, owners));
    }
    let ids = &options.iothread.0;
    let iothreads = ids
        .iter()
        .map(|id| objects.iothread(id))
        .collect::<Result<Vec<_>, _>>()?;
    let count = u16::try_from(iothreads.len().max(1)).unwrap_or(u16::MAX);
    Ok((iothreads, (0..queues).map(|queue| queue % count).collect()))
}

/// Returns the index in `mapping` of each queue's IOThread.
fn owners(mapping: &[Mapping], queues: u16) -> Result<Vec<u16>, String> {
    let count = u16::try_from(mapping.len()).map_err(|_| "too many IOThreads".to_owned())?;
    if count == 0 {
        return Err("an IOThread is missing".to_owned());
    }
    if mapping.iter().all(|entry| entry.vqs.is_none()) {
        return Ok((0..queues).map(|queue| queue % count).collect());
    }
    let mut owners = vec![None; queues.into()];
    for (position, entry) in (0..count).zip(mapping) {
        let vqs = entry.vqs.as_ref();
        for queue in vqs.ok_or("either all IOThreads have 'vqs' or none")? {
            let owner = owners.get_mut(usize::from(*queue)).ok_or_else(|| {
                format!("queue {queue} does not exist: they count from 0, and num-queues is {queues}")
            })?;
            if owner.replace(position).is_some() {
                return Err(format!("queue {queue} is named twice"));
            }
        }
    }
    match owners.iter().position(Option::is_none) {
        Some(queue) => Err(format!(
            "queue {queue} has no IOThread: each of the {queues} queues needs one"
        )),
        None => Ok(owners.into_iter().flatten().collect()),
    }
}

fn queue_size(given: Option<u16>) -> Result<u16, OperationError> {
    let size = given.unwrap_or(QUEUE_SIZE);
    match size.is_power_of_two() && (4..=QUEUE_SIZE).contains(&size) {
        true => Ok(size),
        false => Err(ValueError::Type {
            path: "queue-size".to_owned(),
            expected: format!("a power of two from 4 to {QUEUE_SIZE}"),
        }
        .into()),
    }
}

fn serial(text: &str) -> Result<[u8; ID_LEN], OperationError> {
    let mut serial = [0; ID_LEN];
    match serial.get_mut(..text.len()) {
        Some(room) if !text.contains('\0') => room.copy_from_slice(text.as_bytes()),
        _ => {
            return Err(ValueError::Type {
                path: "serial".to_owned(),
                expected: format!("at most {ID_LEN} bytes without NUL"),
            }
            .into());
        }
    }
    Ok(serial)
}
