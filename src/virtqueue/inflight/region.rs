//! The whole in-flight region: a mapped, sealed memfd with a part for each queue.
//!
//! The frontend asks for parts of `queue_size` descriptors. The driver may still choose larger rings: QEMU allows up to
//! 1024 entries over virtio-mmio, and since 10.0.13 over PCI as well. So a region made by this program has a second,
//! larger part for each queue, after everything that the protocol defines. Rings that are too large for the first part
//! use the second one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU8, Ordering};

use super::{ENTRY_LEN, HEADER_LEN, InflightArea, InflightError};
use crate::memory::{MappedArea, keep_length, memfd};
use crate::virtqueue::MAX_QUEUE_SIZE;

/// The alignment of each queue's part.
const ALIGNMENT: usize = 64;
/// Length of the trailer after the queues' parts, in regions made by this program.
const TRAILER_LEN: usize = 64;
/// First bytes of the trailer. The next byte holds the device state, and the rest are spare bytes. All of these are
/// initially zero, also in regions made by a predecessor that does not use them.
const TRAILER_MAGIC: [u8; 8] = *b"vublk-01";
/// Set in the state byte once a state was recorded.
const RECORDED: u8 = 0x80;

/// The description of a region in the two in-flight messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionLayout {
    /// Size in bytes.
    pub size: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Number of queues.
    pub queues: u16,
    /// Maximum number of descriptors in a queue.
    pub queue_size: u16,
}

/// The reason why an in-flight region cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The number or the size of the queues is invalid.
    #[error("in-flight region cannot be for {queues} queues of {queue_size} descriptors")]
    Queues {
        /// Number of queues.
        queues: u16,
        /// Number of descriptors in a queue.
        queue_size: u16,
    },
    /// The region is too small for its queues.
    #[error("in-flight region has {size} bytes, but its queues need {needed}")]
    TooSmall {
        /// Size in bytes, as the frontend gave it.
        size: u64,
        /// Number of bytes that all queues need.
        needed: u64,
    },
    /// The file ends before the region does.
    #[error("in-flight region of {size} bytes at {offset:#x} is beyond the end of its file")]
    BeyondEof {
        /// Size in bytes.
        size: u64,
        /// Offset in the file.
        offset: u64,
    },
    /// The file was truncated while its contents were checked.
    #[error("in-flight region was truncated while it was checked")]
    Lost,
    /// The region could not be created, read or mapped.
    #[error("cannot create, read or map the in-flight region")]
    Io(#[from] io::Error),
    /// The region has no part for a queue.
    #[error("in-flight region is for {queues} queues and has no part for queue {queue}")]
    NoPart {
        /// Index of the queue.
        queue: usize,
        /// Number of queues in the region.
        queues: u16,
    },
    /// The part of a queue is corrupt.
    #[error("queue {queue}")]
    Corrupt {
        /// Index of the queue.
        queue: u16,
        /// The defect that was found.
        source: InflightError,
    },
}

impl RegionLayout {
    /// Size of one queue's part in bytes, including the padding after it.
    fn stride(queue_size: u16) -> usize {
        (HEADER_LEN + ENTRY_LEN * usize::from(queue_size)).next_multiple_of(ALIGNMENT)
    }

    /// Size in bytes of the queues' parts that the protocol defines.
    fn needed(&self) -> u64 {
        (usize::from(self.queues) * Self::stride(self.queue_size)) as u64
    }

    /// Offset of the large parts.
    fn large_parts(&self) -> u64 {
        self.needed() + TRAILER_LEN as u64
    }

    /// Size of the large parts in bytes; 0 if `queue_size` is already the maximum.
    fn large_len(&self) -> u64 {
        if self.queue_size == MAX_QUEUE_SIZE {
            return 0;
        }
        (usize::from(self.queues) * Self::stride(MAX_QUEUE_SIZE)) as u64
    }

    fn check_queues(&self) -> Result<(), RegionError> {
        let Self {
            queues, queue_size, ..
        } = *self;
        if queues == 0 || !queue_size.is_power_of_two() || queue_size > MAX_QUEUE_SIZE {
            return Err(RegionError::Queues { queues, queue_size });
        }
        Ok(())
    }
}

/// A mapped region.
#[derive(Debug)]
pub struct InflightRegion {
    area: MappedArea,
    /// Bytes that belong to no queue, from the state byte on.
    trailer: Option<MappedArea>,
    /// Offset of the parts for rings of more than `queue_size` descriptors.
    large_parts: Option<usize>,
    layout: RegionLayout,
}

impl InflightRegion {
    /// Makes an unused region for the frontend to keep (GET_INFLIGHT_FD).
    ///
    /// # Errors
    /// The number or the size of the queues is invalid, or the memory cannot be allocated.
    pub fn create(queues: u16, queue_size: u16) -> Result<(RegionLayout, File), RegionError> {
        let mut layout = RegionLayout {
            size: 0,
            offset: 0,
            queues,
            queue_size,
        };
        layout.check_queues()?;
        let trailer = layout.needed();
        layout.size = layout.large_parts() + layout.large_len();
        let file = memfd(c"vhost-user-blk-inflight", layout.size)?;
        file.write_all_at(&TRAILER_MAGIC, trailer)?;
        Ok((layout, file))
    }

    /// Maps a region that the frontend has kept (SET_INFLIGHT_FD).
    ///
    /// # Errors
    /// The file is too short, cannot be mapped, or has invalid contents.
    pub fn map(file: &File, layout: RegionLayout) -> Result<Self, RegionError> {
        layout.check_queues()?;
        let RegionLayout { size, offset, .. } = layout;
        let needed = layout.needed();
        if size < needed {
            return Err(RegionError::TooSmall { size, needed });
        }
        keep_length(file);
        let len = file.metadata()?.len();
        if offset.checked_add(size).is_none_or(|end| end > len) {
            return Err(RegionError::BeyondEof { size, offset });
        }
        let trailer = size >= needed + TRAILER_LEN as u64 && has_trailer(file, offset + needed)?;
        let needed = usize::try_from(needed).map_err(io::Error::other)?;
        let large = trailer && size >= layout.large_parts() + layout.large_len() && layout.large_len() > 0;
        let mapped = match (trailer, large) {
            (false, _) => needed,
            (true, false) => needed + TRAILER_LEN,
            (true, true) => {
                usize::try_from(layout.large_parts() + layout.large_len()).map_err(io::Error::other)?
            }
        };
        let area = MappedArea::map(file, offset, mapped)?;
        let (start, len) = (needed + TRAILER_MAGIC.len(), TRAILER_LEN - TRAILER_MAGIC.len());
        let trailer = trailer.then(|| area.part(start, len));
        let large_parts = large.then_some(needed + TRAILER_LEN);
        let region = Self {
            area,
            trailer,
            large_parts,
            layout,
        };
        for queue in 0..layout.queues {
            region.part(queue, 0, layout.queue_size)?;
        }
        if region.area.is_lost() {
            return Err(RegionError::Lost);
        }
        Ok(region)
    }

    /// Returns whether a ring of `ring_size` descriptors has a part. Only regions made by this program have parts for
    /// rings larger than the frontend asked for.
    pub fn has_room_for(&self, ring_size: u32) -> bool {
        ring_size <= self.layout.queue_size.into() || self.large_parts.is_some()
    }

    /// Returns the part of a queue with a ring of `ring_size` descriptors.
    ///
    /// # Errors
    /// The contents are invalid, or the region has no such queue.
    pub fn queue(&self, queue: usize, ring_size: u32) -> Result<InflightArea, RegionError> {
        let RegionLayout {
            queues, queue_size, ..
        } = self.layout;
        match (u16::try_from(queue), self.large_parts) {
            (Ok(queue), Some(parts)) if queue < queues && ring_size > queue_size.into() => {
                self.part(queue, parts, MAX_QUEUE_SIZE)
            }
            (Ok(queue), _) if queue < queues => self.part(queue, 0, queue_size),
            _ => Err(RegionError::NoPart { queue, queues }),
        }
    }

    /// Returns the state that the device recorded (below 128), if any.
    pub fn device_state(&self) -> Option<u8> {
        let state = self.byte(0)?.get();
        (state & RECORDED != 0).then_some(state & !RECORDED)
    }

    /// Records a few bits of device state (below 128) that the driver has set and no frontend restores after a crash.
    ///
    /// Does nothing in regions made by other programs, which have no room for the state.
    pub fn set_device_state(&self, state: u8) {
        if let Some(byte) = self.byte(0) {
            byte.set(state | RECORDED);
        }
    }

    /// Returns one of the device's spare bytes, counted from 0.
    ///
    /// Regions made by other programs have none.
    pub fn spare(&self, index: usize) -> Option<SpareByte> {
        self.byte(1 + index)
    }

    fn byte(&self, index: usize) -> Option<SpareByte> {
        Some(SpareByte(self.trailer.as_ref()?.part(index, 1)))
    }

    /// Returns a queue's part for rings of `queue_size` descriptors. The parts for this ring size begin at `parts`.
    fn part(&self, queue: u16, parts: usize, queue_size: u16) -> Result<InflightArea, RegionError> {
        let stride = RegionLayout::stride(queue_size);
        let area = self.area.part(parts + usize::from(queue) * stride, stride);
        InflightArea::new(area, queue_size).map_err(|source| RegionError::Corrupt { queue, source })
    }
}

/// A byte of a region that belongs to no queue. Any thread.
#[derive(Debug)]
pub struct SpareByte(MappedArea);

impl SpareByte {
    /// Returns the byte.
    pub fn get(&self) -> u8 {
        // Acquire: pairs with the release store of a predecessor, which has ended.
        self.atomic().load(Ordering::Acquire)
    }

    /// Sets the byte.
    pub fn set(&self, value: u8) {
        // Release: pairs with the Acquire of a successor in `get`.
        self.atomic().store(value, Ordering::Release);
    }

    fn atomic(&self) -> &AtomicU8 {
        // SAFETY: one byte, mapped as long as the area lives; shared with the frontend, hence atomic.
        unsafe { AtomicU8::from_ptr(self.0.as_ptr()) }
    }
}

fn has_trailer(file: &File, offset: u64) -> io::Result<bool> {
    let mut magic = [0; TRAILER_MAGIC.len()];
    file.read_exact_at(&mut magic, offset)?;
    Ok(magic == TRAILER_MAGIC)
}
