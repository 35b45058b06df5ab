//! Size, block sizes and limits of a file or block device, determined when it is opened.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{ioctl_blkpbszget, ioctl_blksszget, major, minor};

use super::direct::{self, DioAlign};
use super::error::Error;
use super::format;
use super::kind::Kind;
use super::limits::{BLOCK_MAX, Limits, SECTOR};
use super::options::OpenOptions;
use super::zero::is_unsupported;
use crate::sys::block_device;
use crate::sys::file::fallocate;

/// Block size of the page cache and of most file systems. Smaller writes need a read first.
const FILE_BLOCK: u32 = 4096;
/// Distance past the end of a file at which it is safe to try to punch a hole.
const FAR_PAST: u64 = 1 << 40;

/// Size and limits of a disk.
#[derive(Debug)]
pub(super) struct Geometry {
    pub(super) size: u64,
    pub(super) limits: Limits,
}

impl Geometry {
    /// Examines `file`, which was opened with `options`.
    pub(super) fn of(
        file: &File,
        meta: &fs::Metadata,
        kind: Kind,
        options: &OpenOptions,
    ) -> Result<Self, Error> {
        let query = |what| move |source| options.query_error(what, source);
        let (size, device_block) = match kind {
            Kind::Regular => (meta.len(), None),
            Kind::BlockDevice => (
                block_device::size(file).map_err(query("size"))?,
                Some(logical_block(file).map_err(query("logical block size"))?),
            ),
        };
        let dio = direct_alignment(file, device_block, options)?;
        let block = logical_block_size(device_block, dio, options)?;
        let size = match kind == Kind::Regular
            && (options.content.may_end_anywhere() || may_end_anywhere(file, size, block))
        {
            true => size - size % u64::from(block),
            false => check_size(size, block, kind, options).map(|()| size)?,
        };
        let limits = Limits {
            logical_block_size: block,
            physical_block_size: match kind {
                Kind::Regular => FILE_BLOCK,
                // Some drives report nonsense. Their physical blocks are taken to be as small as possible.
                Kind::BlockDevice => Some(physical_block(file).map_err(query("physical block size"))?)
                    .filter(|bytes| bytes.is_power_of_two())
                    .unwrap_or(block),
            }
            .max(block),
            optimal_io_size: match kind {
                Kind::Regular => 0,
                Kind::BlockDevice => {
                    block_device::optimal_io_size(file).map_err(query("optimal I/O size"))?
                }
            },
            request_alignment: dio.map_or(1, |dio| dio.offset),
            memory_alignment: dio.map_or(1, |dio| dio.memory),
            discard_granularity: match options.read_only {
                true => 0,
                false => discard_granularity(file, meta, kind, size).map_err(query("discard granularity"))?,
            },
            write_zeroes: !options.read_only,
            read_only: options.read_only,
        };
        Ok(Self { size, limits })
    }
}

fn direct_alignment(
    file: &File,
    device_block: Option<u32>,
    options: &OpenOptions,
) -> Result<Option<DioAlign>, Error> {
    if !options.direct {
        return Ok(None);
    }
    let align = direct::alignment(file, device_block).map_err(|source| match source.kind() {
        io::ErrorKind::Unsupported => options.direct_error(source),
        _ => options.query_error("alignment of direct I/O", source),
    })?;
    Ok(Some(align))
}

/// Returns the logical block size: the chosen one, or else the smallest possible one.
fn logical_block_size(
    device_block: Option<u32>,
    dio: Option<DioAlign>,
    options: &OpenOptions,
) -> Result<u32, Error> {
    let device = (device_block.unwrap_or(SECTOR), "the device has logical blocks");
    let direct = (dio.map_or(SECTOR, |dio| dio.offset), "direct I/O needs multiples");
    let (least, reason) = if direct.0 > device.0 { direct } else { device };
    match options.logical_block_size {
        None => Ok(least),
        Some(size) if !size.is_power_of_two() || !(SECTOR..=BLOCK_MAX).contains(&size) => {
            Err(Error::BlockSize { size })
        }
        Some(size) if size < least => Err(Error::BlockSizeTooSmall {
            path: options.path.clone(),
            size,
            least,
            reason,
        }),
        Some(size) => Ok(size),
    }
}

/// Returns whether a file that has no whole number of blocks is a qcow2 image: qemu-img makes such files.
fn may_end_anywhere(file: &File, size: u64, block: u32) -> bool {
    !size.is_multiple_of(block.into()) && format::is_qcow2(file)
}

fn check_size(size: u64, block: u32, kind: Kind, options: &OpenOptions) -> Result<(), Error> {
    let path = options.path.clone();
    match kind {
        Kind::Regular if size == 0 => Err(Error::EmptyFile { path }),
        Kind::BlockDevice if size == 0 => Err(Error::EmptyDevice { path }),
        _ if size.is_multiple_of(u64::from(block)) => Ok(()),
        Kind::Regular => Err(Error::FileSize { path, size, block }),
        Kind::BlockDevice => Err(Error::DeviceSize { path, size, block }),
    }
}

/// Returns the granularity in bytes in which discards free space, or 0 if they free none.
fn discard_granularity(file: &File, meta: &fs::Metadata, kind: Kind, size: u64) -> io::Result<u32> {
    match kind {
        Kind::Regular => {
            // No data is past the end of the file, and this is too far past it for another process to be writing there.
            let nowhere = size.saturating_add(FAR_PAST);
            match fallocate(file, libc::FALLOC_FL_PUNCH_HOLE, nowhere, u64::from(SECTOR)) {
                Err(e) if is_unsupported(&e) => Ok(0),
                // Other errors say nothing about discards in general, which are tried when the guest requests them.
                _ => Ok(file_system_block(meta)),
            }
        }
        Kind::BlockDevice => {
            let block = logical_block(file)?;
            Ok(match queue_limit(meta.rdev(), "discard_max_bytes") {
                Some(0) => 0,
                _ => queue_limit(meta.rdev(), "discard_granularity").map_or(block, |bytes| bytes.max(block)),
            })
        }
    }
}

/// Returns the logical block size of a block device.
fn logical_block(device: &File) -> io::Result<u32> {
    Ok(ioctl_blksszget(device)?)
}

/// Returns the physical block size of a block device.
fn physical_block(device: &File) -> io::Result<u32> {
    Ok(ioctl_blkpbszget(device)?)
}

/// Returns `st_blksize` if it can be an allocation unit. (On network file systems it is a transfer size.)
fn file_system_block(meta: &fs::Metadata) -> u32 {
    match u32::try_from(meta.blksize()) {
        Ok(bytes @ 512..=65536) if bytes.is_power_of_two() => bytes,
        _ => FILE_BLOCK,
    }
}

/// Returns a limit from `/sys/dev/block/<device>/queue`. A partition has those of its disk.
fn queue_limit(device: u64, name: &str) -> Option<u32> {
    let device = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let text = ["queue", "../queue"]
        .iter()
        .find_map(|queue| fs::read_to_string(format!("{device}/{queue}/{name}")).ok())?;
    let bytes: u64 = text.trim().parse().ok()?;
    Some(u32::try_from(bytes).unwrap_or(u32::MAX))
}
