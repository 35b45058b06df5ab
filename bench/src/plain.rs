//! The plain backend: a minimal disk on the `vhost-user-backend` framework, to compare with.
//!
//! The backend reads and writes the file in the framework's thread, where the kick arrives. It supports only the
//! features that the benchmark needs (reads, writes, a capacity) and is not hardened against bad requests.

use std::fs::File;
use std::io::{self, Error, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result, anyhow};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringMutex, VringT};
use virtio_bindings::bindings::{virtio_blk as blk, virtio_config, virtio_ring};
use virtio_queue::{DescriptorChain, QueueOwnedT};
use vm_memory::{
    Address, Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap,
};
use vmm_sys_util::epoll::EventSet;

type Memory = GuestMemoryMmap<()>;
type Vring = VringMutex<GuestMemoryAtomic<Memory>>;
type Chain = DescriptorChain<GuestMemoryLoadGuard<Memory>>;

/// Serves connections one after the other until it is killed.
///
/// `args` are the socket, the image, the number of queues and, optionally, `each` for a notification per completion.
pub(crate) fn serve(args: &[String]) -> Result<()> {
    let [socket, image, queues, notify @ ..] = args else {
        return Err(anyhow!("--plain takes a socket, an image and a number of queues"));
    };
    let queues = queues.parse().context("parse the number of queues")?;
    loop {
        let (file, size) = open(image)?;
        let memory = GuestMemoryAtomic::new(Memory::new());
        let backend = Arc::new(Plain {
            sectors: size / 512,
            file,
            queues,
            each: !notify.is_empty(),
            event_idx: AtomicBool::new(false),
            memory: RwLock::new(memory.clone()),
        });
        let daemon = VhostUserDaemon::new("plain".to_owned(), backend, memory);
        daemon
            .map_err(|error| anyhow!("{error}"))?
            .serve(socket)
            .map_err(|error| anyhow!("{error}"))?;
    }
}

/// Opens the image and returns its size. `null:SIZE` has no file.
fn open(image: &str) -> Result<(Option<File>, u64)> {
    if let Some(size) = image.strip_prefix("null:") {
        return Ok((None, size.parse().context("parse the size")?));
    }
    let file = File::options().read(true).write(true).open(image);
    let file = file.with_context(|| format!("open {image}"))?;
    let size = file.metadata()?.len();
    Ok((Some(file), size))
}

struct Plain {
    file: Option<File>,
    sectors: u64,
    queues: u16,
    each: bool,
    event_idx: AtomicBool,
    memory: RwLock<GuestMemoryAtomic<Memory>>,
}

impl Plain {
    /// Handles all available requests. Returns whether there were any.
    fn process(&self, vring: &Vring) -> io::Result<bool> {
        let memory = self
            .memory
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .memory();
        let chains: Vec<Chain> = vring
            .get_mut()
            .get_queue_mut()
            .iter(memory.clone())
            .map_err(Error::other)?
            .collect();
        let any = !chains.is_empty();
        for chain in chains {
            let head = chain.head_index();
            let len = self.request(&memory, chain).map_err(Error::other)?;
            vring.add_used(head, len).map_err(Error::other)?;
            if self.each {
                notify(vring)?;
            }
        }
        if any && !self.each {
            notify(vring)?;
        }
        Ok(any)
    }

    /// Executes one request and returns the number of bytes written into the chain.
    fn request(&self, memory: &Memory, chain: Chain) -> Result<u32> {
        let descs: Vec<_> = chain.collect();
        let [header, data @ .., status] = &descs[..] else {
            return Err(anyhow!("a chain has a single descriptor"));
        };
        let kind: u32 = memory.read_obj(header.addr())?;
        let sector: u64 = memory.read_obj(
            header
                .addr()
                .checked_add(8)
                .context("the header's address overflows")?,
        )?;
        let (mut offset, mut written) = (sector * 512, 1);
        for desc in data {
            let is_read = kind == blk::VIRTIO_BLK_T_IN;
            if let Some(file) = &self.file {
                let mut buffer = vec![0; usize::try_from(desc.len())?];
                if is_read {
                    file.read_exact_at(&mut buffer, offset)?;
                    memory.write_slice(&buffer, desc.addr())?;
                } else {
                    memory.read_slice(&mut buffer, desc.addr())?;
                    file.write_all_at(&buffer, offset)?;
                }
            }
            written += if is_read { desc.len() } else { 0 };
            offset += u64::from(desc.len());
        }
        memory.write_obj(0_u8, status.addr())?;
        Ok(written)
    }
}

fn notify(vring: &Vring) -> io::Result<()> {
    if vring.needs_notification().map_err(Error::other)? {
        vring.signal_used_queue()
    } else {
        Ok(())
    }
}

impl VhostUserBackend for Plain {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.queues.into()
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        let bit = |number: u32| 1_u64 << number;
        bit(virtio_config::VIRTIO_F_VERSION_1)
            | bit(virtio_ring::VIRTIO_RING_F_EVENT_IDX)
            | bit(blk::VIRTIO_BLK_F_MQ)
            | vhost::vhost_user::message::VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&self, enabled: bool) {
        self.event_idx.store(enabled, Ordering::Relaxed);
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut space = vec![0; 256];
        space[..8].copy_from_slice(&self.sectors.to_le_bytes());
        space[34..36].copy_from_slice(&self.queues.to_le_bytes());
        let range = || Some(usize::try_from(offset).ok()?..usize::try_from(offset.checked_add(size)?).ok()?);
        range()
            .and_then(|range| space.get(range))
            .unwrap_or_default()
            .to_vec()
    }

    fn update_memory(&self, memory: GuestMemoryAtomic<Memory>) -> io::Result<()> {
        *self.memory.write().unwrap_or_else(PoisonError::into_inner) = memory;
        Ok(())
    }

    fn handle_event(&self, event: u16, _: EventSet, vrings: &[Vring], _: usize) -> io::Result<()> {
        let vring = vrings.get(usize::from(event)).ok_or(ErrorKind::NotFound)?;
        if !self.event_idx.load(Ordering::Relaxed) {
            return self.process(vring).map(drop);
        }
        loop {
            vring.disable_notification().map_err(Error::other)?;
            self.process(vring)?;
            // Returns true if requests arrived while notifications were off.
            if !vring.enable_notification().map_err(Error::other)? {
                return Ok(());
            }
        }
    }
}
