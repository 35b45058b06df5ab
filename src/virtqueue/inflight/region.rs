//! The in-flight region as a whole: a sealed memfd, mapped, with a part for each queue.
//!
//! The frontend asks for parts of `queue_size` descriptors. The driver may choose larger rings all the same: QEMU lets it
//! take up to 1024 entries over virtio-mmio, and over PCI, too, since 10.0.13. A region that was made here has a second,
//! large part for each queue, after all that the protocol knows of; rings that are too large for the first part use it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU8, Ordering};

use super::{ENTRY_LEN, HEADER_LEN, InflightArea, InflightError};
use crate::memory::{MappedArea, keep_length, memfd};
use crate::virtqueue::MAX_QUEUE_SIZE;

/// Each queue's part starts at a multiple of this.
const ALIGNMENT: usize = 64;
/// Bytes behind the queues' parts, in regions that were made here.
const TRAILER_LEN: usize = 64;
/// First bytes of the trailer; the next one holds the state, and those after it are spare. All of them are zero at first,
/// also where a predecessor does not know them.
const TRAILER_MAGIC: [u8; 8] = *b"vublk-01";
/// A state was recorded.
const RECORDED: u8 = 0x80;

/// What the two messages say about a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionLayout {
    /// Bytes.
    pub size: u64,
    /// First byte in the file.
    pub offset: u64,
    /// Number of queues.
    pub queues: u16,
    /// Largest number of descriptors in a queue.
    pub queue_size: u16,
}

/// Why an in-flight region cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// Queues that cannot be served.
    #[error("in-flight region for {queues} queues of {queue_size} descriptors")]
    Queues {
        /// How many.
        queues: u16,
        /// How large.
        queue_size: u16,
    },
    /// Less than all queues need.
    #[error("in-flight region of {size} bytes, and {needed} are needed")]
    TooSmall {
        /// As the frontend says.
        size: u64,
        /// For all queues.
        needed: u64,
    },
    /// The file ends before the region does.
    #[error("in-flight region of {size} bytes at {offset:#x} is beyond the end of its file")]
    BeyondEof {
        /// Bytes.
        size: u64,
        /// First byte in the file.
        offset: u64,
    },
    /// The file has become shorter while it was looked at.
    #[error("in-flight region was cut short")]
    Lost,
    /// It could not be made or mapped.
    #[error("in-flight region: {0}")]
    Io(#[from] io::Error),
    /// A queue that the region has no part for.
    #[error("in-flight region is for {queues} queues, queue {queue} is none of them")]
    NoPart {
        /// The queue.
        queue: usize,
        /// How many there are.
        queues: u16,
    },
    /// The part of a queue is corrupt.
    #[error("queue {queue}: {source}")]
    Corrupt {
        /// Whose part.
        queue: u16,
        /// What is wrong with it.
        source: InflightError,
    },
}

impl RegionLayout {
    /// Bytes of one queue's part, with the padding after it.
    fn stride(queue_size: u16) -> usize {
        (HEADER_LEN + ENTRY_LEN * usize::from(queue_size)).next_multiple_of(ALIGNMENT)
    }

    /// Bytes of all queues' parts, as the protocol has them.
    fn needed(&self) -> u64 {
        (usize::from(self.queues) * Self::stride(self.queue_size)) as u64
    }

    /// Offset of the large parts.
    fn large_parts(&self) -> u64 {
        self.needed() + TRAILER_LEN as u64
    }

    /// Bytes of the large parts; none where the queues can be no larger anyway.
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
    /// Bytes that are no queue's.
    trailer: Option<MappedArea>,
    /// Offset of the parts for rings of more than `queue_size` descriptors.
    large_parts: Option<usize>,
    layout: RegionLayout,
}

impl InflightRegion {
    /// Makes a region that nobody has used yet, for the frontend to keep (GET_INFLIGHT_FD).
    ///
    /// # Errors
    /// Impossible queues; no memory.
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
    /// A file that is too short; contents that make no sense.
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

    /// Whether a ring of `ring_size` descriptors has a part: not if it is larger than was asked for, and the region was
    /// made elsewhere.
    pub fn has_room_for(&self, ring_size: u32) -> bool {
        ring_size <= self.layout.queue_size.into() || self.large_parts.is_some()
    }

    /// The part of a queue with a ring of `ring_size` descriptors.
    ///
    /// # Errors
    /// Contents that make no sense, or a queue that the region was not made for.
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

    /// What the device has recorded: below 128.
    pub fn device_state(&self) -> Option<u8> {
        let state = self.byte(0)?.get();
        (state & RECORDED != 0).then_some(state & !RECORDED)
    }

    /// Records a few bits (below 128) that a driver has set on the device and no frontend sets again after a crash.
    ///
    /// A region that was made elsewhere has no place for them.
    pub fn set_device_state(&self, state: u8) {
        if let Some(byte) = self.byte(0) {
            byte.set(state | RECORDED);
        }
    }

    /// A spare byte for the device, from 0 on.
    ///
    /// A region that was made elsewhere has none.
    pub fn spare(&self, index: usize) -> Option<SpareByte> {
        self.byte(1 + index)
    }

    fn byte(&self, index: usize) -> Option<SpareByte> {
        Some(SpareByte(self.trailer.as_ref()?.part(index, 1)))
    }

    /// A queue's part among those for rings of `queue_size` descriptors, of which the first is at `parts`.
    fn part(&self, queue: u16, parts: usize, queue_size: u16) -> Result<InflightArea, RegionError> {
        let stride = RegionLayout::stride(queue_size);
        let area = self.area.part(parts + usize::from(queue) * stride, stride);
        InflightArea::new(area, queue_size).map_err(|source| RegionError::Corrupt { queue, source })
    }
}

/// A byte of a region that is no queue's. Any thread.
#[derive(Debug)]
pub struct SpareByte(MappedArea);

impl SpareByte {
    /// Its value.
    pub fn get(&self) -> u8 {
        // Acquire: pairs with the release store of a predecessor, which has ended.
        self.atomic().load(Ordering::Acquire)
    }

    /// Changes it.
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
