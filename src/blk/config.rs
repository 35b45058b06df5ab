//! Features and configuration space (VIRTIO 1.3, 5.2.3 and 5.2.4).

use virtio_bindings::bindings::{virtio_blk as blk, virtio_config, virtio_ring};

use crate::storage::Limits;

/// Feature bits, as masks.
pub mod features {
    use super::{blk, virtio_config, virtio_ring};

    /// The device announces the maximum number of segments in a request.
    pub const SEG_MAX: u64 = 1 << blk::VIRTIO_BLK_F_SEG_MAX;
    /// The disk is read-only.
    pub const RO: u64 = 1 << blk::VIRTIO_BLK_F_RO;
    /// The device announces its logical block size.
    pub const BLK_SIZE: u64 = 1 << blk::VIRTIO_BLK_F_BLK_SIZE;
    /// The device supports FLUSH.
    pub const FLUSH: u64 = 1 << blk::VIRTIO_BLK_F_FLUSH;
    /// The device announces its physical block size and preferred request sizes.
    pub const TOPOLOGY: u64 = 1 << blk::VIRTIO_BLK_F_TOPOLOGY;
    /// The driver may switch the write cache.
    pub const CONFIG_WCE: u64 = 1 << blk::VIRTIO_BLK_F_CONFIG_WCE;
    /// The device may have several queues.
    pub const MQ: u64 = 1 << blk::VIRTIO_BLK_F_MQ;
    /// The device supports DISCARD.
    pub const DISCARD: u64 = 1 << blk::VIRTIO_BLK_F_DISCARD;
    /// The device supports WRITE_ZEROES.
    pub const WRITE_ZEROES: u64 = 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES;
    /// Descriptor chains may be in separate tables.
    pub const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
    /// Notifications are suppressed by index.
    pub const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    /// The device follows VIRTIO 1.0 or later.
    pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
}

/// Bytes of configuration space that are used. The rest reads as zero.
const CONFIG_LEN: usize = 60;
/// Size of the configuration space in the vhost-user protocol.
const CONFIG_SPACE: usize = 256;
/// Until 2026, Cloud Hypervisor sent offsets from the start of the MMIO window.
const MMIO_CONFIG_OFFSET: u32 = 0x100;
const WRITEBACK_OFFSET: usize = 32;

/// Maximum number of ranges in a discard or write-zeroes request.
pub const MAX_RANGES: u32 = 32;
/// Maximum number of 512-byte sectors in one range of a discard: 2 GiB less one sector, as in QEMU.
pub const MAX_DISCARD_SECTORS: u32 = (1 << 22) - 1;
/// Maximum number of 512-byte sectors in one range of a write-zeroes: 128 MiB, which limits the time of a slow
/// fallback.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 18;
/// Maximum number of data segments to announce, as in QEMU. Queues below this size announce fewer.
const SEG_MAX: u16 = 126;

/// The properties that a device announces. Except for the capacity, they are fixed at its start.
#[derive(Clone, Copy, Debug)]
pub struct BlkConfig {
    /// Limits and abilities of the storage.
    pub limits: Limits,
    /// Every write is stable before it completes.
    pub write_through: bool,
    /// Number of queues, at least 1.
    pub num_queues: u16,
    /// Maximum queue size: a power of two, at least 4.
    pub queue_size: u16,
}

/// The reason why an access to the configuration space was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The access ends past the configuration space.
    #[error("configuration space access at {offset:#x}, {len} bytes, is outside its {CONFIG_SPACE} bytes")]
    OutOfRange {
        /// First byte, as the frontend gave it.
        offset: u32,
        /// Number of bytes.
        len: usize,
    },
    /// The driver may only read this field.
    #[error(
        "configuration space write at {offset:#x}, {len} bytes: only writeback, one byte at 0x20, can be written"
    )]
    ReadOnly {
        /// First byte, as the frontend gave it.
        offset: u32,
        /// Number of bytes.
        len: usize,
    },
    /// The driver wrote a value other than 0 and 1 to `writeback`.
    #[error("writeback is 0 or 1, not {0}")]
    BadWriteback(u8),
}

impl BlkConfig {
    /// Returns the virtio features that the device offers.
    pub fn features(&self) -> u64 {
        use features::*;
        let mut all = VERSION_1 | INDIRECT_DESC | EVENT_IDX | SEG_MAX | BLK_SIZE | TOPOLOGY | MQ;
        if !self.write_through {
            all |= FLUSH | CONFIG_WCE;
        }
        if self.limits.read_only {
            return all | RO;
        }
        if self.limits.discard_granularity > 0 {
            all |= DISCARD;
        }
        if self.limits.write_zeroes {
            all |= WRITE_ZEROES;
        }
        all
    }

    /// Returns the maximum number of data segments in a request.
    pub fn seg_max(&self) -> u16 {
        SEG_MAX.min(self.queue_size.saturating_sub(2)).max(1)
    }

    /// Returns the configuration space of a disk of `size` bytes.
    fn space(&self, size: u64, writeback: bool) -> [u8; CONFIG_SPACE] {
        let mut space = [0; CONFIG_SPACE];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        let limits = &self.limits;
        let block = limits.logical_block_size;
        let physical_blocks = (limits.physical_block_size / block).max(1);
        put(0, &(size / 512).to_le_bytes());
        put(12, &u32::from(self.seg_max()).to_le_bytes());
        put(20, &block.to_le_bytes());
        put(24, &physical_blocks.ilog2().to_le_bytes()[..1]);
        put(
            26,
            &u16::try_from(physical_blocks).unwrap_or(u16::MAX).to_le_bytes(),
        );
        put(28, &(limits.optimal_io_size / block).to_le_bytes());
        put(WRITEBACK_OFFSET, &[u8::from(writeback && !self.write_through)]);
        put(34, &self.num_queues.to_le_bytes());
        if self.features() & features::DISCARD != 0 {
            put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
            put(40, &MAX_RANGES.to_le_bytes());
            put(44, &(limits.discard_granularity.max(block) / 512).to_le_bytes());
        }
        if self.features() & features::WRITE_ZEROES != 0 {
            put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
            put(52, &MAX_RANGES.to_le_bytes());
            put(56, &[1]);
        }
        debug_assert!(space[CONFIG_LEN..].iter().all(|&b| b == 0));
        space
    }

    /// Reads `len` bytes at `offset` (GET_CONFIG).
    ///
    /// # Errors
    /// The range is outside the configuration space.
    pub fn read(&self, size: u64, writeback: bool, offset: u32, len: usize) -> Result<Vec<u8>, ConfigError> {
        let at = range(offset, len)?;
        Ok(self.space(size, writeback)[at].to_vec())
    }

    /// Returns the value that the driver writes to `writeback`, the only writable field, with `data` at `offset`
    /// (SET_CONFIG).
    ///
    /// # Errors
    /// The range is not exactly `writeback`, or the value is neither 0 nor 1.
    pub fn written_writeback(offset: u32, data: &[u8]) -> Result<bool, ConfigError> {
        let at = range(offset, data.len())?;
        match *data {
            [value @ (0 | 1)] if at.start == WRITEBACK_OFFSET => Ok(value == 1),
            [value] if at.start == WRITEBACK_OFFSET => Err(ConfigError::BadWriteback(value)),
            _ => Err(ConfigError::ReadOnly {
                offset,
                len: data.len(),
            }),
        }
    }
}

fn range(offset: u32, len: usize) -> Result<std::ops::Range<usize>, ConfigError> {
    let start = offset.checked_sub(MMIO_CONFIG_OFFSET).unwrap_or(offset) as usize;
    match start.checked_add(len) {
        Some(end) if end <= CONFIG_SPACE => Ok(start..end),
        _ => Err(ConfigError::OutOfRange { offset, len }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> BlkConfig {
        let limits = Limits {
            logical_block_size: 512,
            physical_block_size: 4096,
            optimal_io_size: 65536,
            request_alignment: 1,
            memory_alignment: 1,
            discard_granularity: 4096,
            write_zeroes: true,
            read_only: false,
        };
        BlkConfig {
            write_through: false,
            limits,
            num_queues: 4,
            queue_size: 256,
        }
    }

    fn read(config: &BlkConfig, offset: u32, len: usize) -> Vec<u8> {
        config.read(1 << 30, true, offset, len).unwrap()
    }

    #[test]
    fn fields_have_the_specified_offsets() {
        let config = config();
        assert_eq!(read(&config, 0, 8), (1u64 << 21).to_le_bytes());
        assert_eq!(read(&config, 12, 4), 126u32.to_le_bytes());
        assert_eq!(read(&config, 20, 4), 512u32.to_le_bytes());
        assert_eq!(read(&config, 24, 8), [3, 0, 8, 0, 128, 0, 0, 0]);
        assert_eq!(read(&config, 32, 4), [1, 0, 4, 0]);
        assert_eq!(read(&config, 44, 4), 8u32.to_le_bytes());
        assert_eq!(read(&config, 56, 4), [1, 0, 0, 0]);
        assert_eq!(read(&config, 60, 196), [0; 196]);
    }

    #[test]
    fn cloud_hypervisors_offset_reads_the_same_bytes() {
        let config = config();
        assert_eq!(read(&config, 0x100, 60), read(&config, 0, 60));
        assert_eq!(read(&config, 0x120, 1), [1]);
    }

    #[test]
    fn reads_outside_the_space_are_refused() {
        let config = config();
        for (offset, len) in [
            (0, 257),
            (255, 2),
            (0x1ff, 2),
            (0x300, 1),
            (u32::MAX, 1),
            (1, usize::MAX),
        ] {
            assert!(config.read(0, true, offset, len).is_err(), "{offset:#x} {len}");
        }
    }

    #[test]
    fn only_writeback_can_be_written() {
        assert_eq!(BlkConfig::written_writeback(32, &[0]), Ok(false));
        assert_eq!(BlkConfig::written_writeback(0x120, &[1]), Ok(true));
        for (offset, len) in [(0, 60), (0, 32), (31, 2), (32, 2), (32, 0), (33, 1), (100, 1)] {
            let refused = BlkConfig::written_writeback(offset, &vec![0; len]);
            assert_eq!(refused, Err(ConfigError::ReadOnly { offset, len }));
        }
        assert_eq!(
            BlkConfig::written_writeback(32, &[2]),
            Err(ConfigError::BadWriteback(2))
        );
    }

    #[test]
    fn a_read_only_disk_offers_no_writes() {
        let mut config = config();
        config.limits.read_only = true;
        let all = config.features();
        assert_ne!(all & features::RO, 0);
        assert_eq!(all & (features::DISCARD | features::WRITE_ZEROES), 0);
        assert_eq!(read(&config, 36, 24), [0; 24]);
    }

    #[test]
    fn a_request_of_seg_max_segments_fits_its_queue() {
        for queue_size in [4, 8, 64, 128, 1024] {
            let config = BlkConfig {
                queue_size,
                ..config()
            };
            assert!(config.seg_max() + 2 <= queue_size);
        }
    }
}
