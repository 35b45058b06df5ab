//! Compressed clusters.

use flate2::{Decompress, FlushDecompress, Status};
use ruzstd::decoding::FrameDecoder;

use super::cluster::ClusterSize;
use super::error::Corruption;

/// Unit of the length of compressed data.
const SECTOR: u64 = 512;
/// Bits of an L2 entry that describe a compressed cluster.
const DESCRIPTOR_BITS: u32 = 62;
/// Largest window of zstd in bytes. A cluster has at most 2 MiB.
const WINDOW_MAX: u64 = 8 << 20;

/// The method of compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionType {
    /// Raw deflate, without zlib's header.
    Zlib,
    /// zstd.
    Zstd,
}

/// The place of compressed data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedCluster {
    /// The offset in the image. It has no alignment.
    pub offset: u64,
    /// The length in bytes up to the end of the last sector, which may also have other data: at most twice the cluster
    /// size.
    pub len: usize,
}

impl CompressedCluster {
    /// Reads the descriptor in an L2 entry.
    pub(super) fn of_entry(entry: u64, cluster: ClusterSize) -> Self {
        let offset_bits = DESCRIPTOR_BITS - (cluster.bits() - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & ((1 << DESCRIPTOR_BITS) - 1)) >> offset_bits;
        let len = (sectors + 1) * SECTOR - offset % SECTOR;
        let len = usize::try_from(len).expect("at most 4 MiB");
        Self { offset, len }
    }
}

/// Decompresses a cluster. `data` begins with its compressed data, and may be longer. `cluster` takes the result, and has
/// the length of a cluster.
///
/// # Errors
/// The data is damaged, or does not fill the cluster.
pub fn decompress(method: CompressionType, data: &[u8], cluster: &mut [u8]) -> Result<(), Corruption> {
    match method {
        CompressionType::Zlib => inflate(data, cluster),
        CompressionType::Zstd => unzstd(data, cluster),
    }
    .ok_or(Corruption::Compressed)
}

fn inflate(data: &[u8], cluster: &mut [u8]) -> Option<()> {
    let mut stream = Decompress::new(false);
    let status = stream.decompress(data, cluster, FlushDecompress::Finish).ok()?;
    let is_full = stream.total_out() == cluster.len() as u64;
    (is_full && matches!(status, Status::StreamEnd | Status::BufError | Status::Ok)).then_some(())
}

fn unzstd(data: &[u8], cluster: &mut [u8]) -> Option<()> {
    let mut decoder = FrameDecoder::new();
    // The decoder allocates the window.
    decoder.set_max_window_size(WINDOW_MAX);
    let (mut data, mut done) = (data, 0);
    decoder.reset(&mut data).ok()?;
    while done < cluster.len() {
        let (read, written) = decoder.decode_from_to(data, &mut cluster[done..]).ok()?;
        if read == 0 && written == 0 {
            return None;
        }
        data = &data[read..];
        done += written;
    }
    Some(())
}

#[cfg(test)]
mod tests;
