//! The header of an image.

use super::cluster::ClusterSize;
use super::compressed::CompressionType;
use super::error::HeaderError;
use super::extension::{Extensions, text};
use super::l2::SliceLayout;

/// The first bytes of an image.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Number of bytes at the start of an image that suffice for [`Header::parse`]: the largest cluster.
pub const HEADER_MAX: usize = 2 << 20;

/// Largest L1 table in bytes, as in QEMU.
const L1_MAX: u64 = 32 << 20;
/// Largest refcount table in bytes, as in QEMU.
const REFCOUNT_TABLE_MAX: u64 = 8 << 20;
/// Largest number of internal snapshots, as in QEMU.
const SNAPSHOTS_MAX: u32 = 65536;
/// Largest name of a backing file in bytes.
const NAME_MAX: usize = 1023;
/// Length of the header of version 2.
const LENGTH_2: usize = 72;
/// Least length of the header of version 3.
const LENGTH_3: usize = 104;

/// Incompatible features.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// The header of an image, checked. All offsets are multiples of the cluster size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The size of a cluster.
    pub cluster: ClusterSize,
    /// The size of the disk in bytes: a positive multiple of 512.
    pub size: u64,
    /// The offset of the active L1 table.
    pub l1_table_offset: u64,
    /// The number of L1 entries that the disk needs.
    pub l1_entries: u32,
    /// The number of L1 entries that the image has: at least as many.
    pub l1_size: u32,
    /// The offset of the refcount table.
    pub refcount_table_offset: u64,
    /// The size of the refcount table in clusters.
    pub refcount_table_clusters: u32,
    /// The width of a refcount is 2^`refcount_order` bits.
    pub refcount_order: u32,
    /// The number of internal snapshots.
    pub snapshots: u32,
    /// The offset of the snapshot table.
    pub snapshots_offset: u64,
    /// All incompatible features.
    pub incompatible: u64,
    /// All autoclear features.
    pub autoclear: u64,
    /// Refcounts may be wrong.
    pub dirty: bool,
    /// The image is marked as corrupt.
    pub corrupt: bool,
    /// Data clusters are in another file.
    pub external_data: bool,
    /// L2 entries have subclusters.
    pub extended_l2: bool,
    /// The method of compression.
    pub compression: CompressionType,
    /// The name of the backing file. It comes from the image, so it is not to be trusted.
    pub backing_file: Option<String>,
    /// The header extensions.
    pub extensions: Extensions,
}

/// Fields of the header that change while the image is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The size of the disk in bytes.
    Size,
    /// The number of L1 entries (32 bits), and the offset of the L1 table (64 bits).
    L1Table,
    /// The offset of the refcount table (64 bits), and its number of clusters (32 bits).
    RefcountTable,
    /// The incompatible features. Only in version 3.
    Incompatible,
    /// The autoclear features. Only in version 3.
    Autoclear,
}

impl Field {
    /// Returns the offset of the field in the image.
    pub fn offset(self) -> u64 {
        match self {
            Self::Size => 24,
            Self::L1Table => 36,
            Self::RefcountTable => 48,
            Self::Incompatible => 72,
            Self::Autoclear => 88,
        }
    }
}

impl Header {
    /// Incompatible feature: refcounts may be wrong.
    pub const DIRTY: u64 = DIRTY;
    /// Incompatible feature: the image is corrupt.
    pub const CORRUPT: u64 = CORRUPT;
    /// Largest number of L1 entries.
    pub const L1_ENTRIES_MAX: u32 = 1 << 22;
    /// Autoclear feature: the bitmaps are right.
    pub const BITMAPS: u64 = 1 << 0;
    /// Autoclear feature: the external data file has the disk's bytes as a raw image has them.
    pub const RAW_DATA: u64 = 1 << 1;

    /// Parses the header at the start of an image. `bytes` are the first [`HEADER_MAX`] bytes, or all if the image is
    /// shorter. An image that is marked as corrupt is refused unless it is only read.
    ///
    /// # Errors
    /// The image needs something that is not supported, or its header is wrong.
    pub fn parse(bytes: &[u8], read_only: bool) -> Result<Self, HeaderError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(HeaderError::Magic);
        }
        let fields = Fields(bytes);
        let version = fields.u32(4)?;
        if !(2..=3).contains(&version) {
            return Err(HeaderError::Version(version));
        }
        let cluster_bits = fields.u32(20)?;
        let cluster = ClusterSize::from_bits(cluster_bits).ok_or(HeaderError::ClusterBits(cluster_bits))?;
        check_encryption(fields.u32(32)?)?;
        let length = header_length(fields, version, cluster)?;
        let first = &bytes[..bytes.len().min(cluster.in_memory())];
        let extensions = extensions(first, length, fields)?;
        let features = match version {
            2 => 0,
            _ => fields.u64(72)?,
        };
        check_features(features, &extensions, read_only)?;
        let header = Self {
            version,
            cluster,
            size: fields.u64(24)?,
            l1_table_offset: fields.u64(40)?,
            l1_entries: 0,
            l1_size: fields.u32(36)?,
            refcount_table_offset: fields.u64(48)?,
            refcount_table_clusters: fields.u32(56)?,
            refcount_order: match version {
                2 => 4,
                _ => fields.u32(96)?,
            },
            snapshots: fields.u32(60)?,
            snapshots_offset: fields.u64(64)?,
            incompatible: features,
            autoclear: match version {
                2 => 0,
                _ => fields.u64(88)?,
            },
            dirty: features & DIRTY != 0,
            corrupt: features & CORRUPT != 0,
            external_data: features & EXTERNAL_DATA != 0,
            extended_l2: features & EXTENDED_L2 != 0,
            compression: compression(bytes, length, features)?,
            backing_file: backing_file(first, fields)?,
            extensions,
        };
        header.check()
    }

    /// Checks the values, and computes the number of L1 entries.
    fn check(mut self) -> Result<Self, HeaderError> {
        if self.size == 0 || !self.size.is_multiple_of(512) {
            return Err(HeaderError::DiskSize(self.size));
        }
        if self.extended_l2 && self.cluster.bits() < 14 {
            return Err(HeaderError::ExtendedL2);
        }
        if self.refcount_order > 6 {
            return Err(HeaderError::RefcountOrder(self.refcount_order));
        }
        let needed = self.size.div_ceil(self.slices().bytes_per_table());
        if needed > L1_MAX / 8 {
            return Err(HeaderError::DiskTooLarge(self.size));
        }
        self.l1_entries = u32::try_from(needed).expect("at most 2^22");
        if self.l1_size < self.l1_entries {
            return Err(HeaderError::L1Size);
        }
        self.place("L1 table", self.l1_table_offset, needed * 8)?;
        let refcounts = u64::from(self.refcount_table_clusters) << self.cluster.bits();
        if refcounts > REFCOUNT_TABLE_MAX {
            return Err(HeaderError::Place("refcount table"));
        }
        self.place("refcount table", self.refcount_table_offset, refcounts)?;
        if self.snapshots > SNAPSHOTS_MAX {
            return Err(HeaderError::Place("snapshot table"));
        }
        Ok(self)
    }

    /// Checks the place of a table.
    fn place(&self, what: &'static str, offset: u64, len: u64) -> Result<(), HeaderError> {
        let end = offset.checked_add(len).and_then(|end| i64::try_from(end).ok());
        match self.cluster.divides(offset) && offset > 0 && end.is_some() {
            true => Ok(()),
            false => Err(HeaderError::Place(what)),
        }
    }

    /// Returns the layout of the L2 tables.
    pub fn slices(&self) -> SliceLayout {
        SliceLayout::new(self.cluster, self.extended_l2, self.external_data)
    }
}

/// The fixed part of a header: big-endian numbers.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(self, at: usize) -> Result<u32, HeaderError> {
        let bytes = self.0.get(at..).and_then(<[u8]>::first_chunk);
        bytes
            .map(|bytes| u32::from_be_bytes(*bytes))
            .ok_or(HeaderError::Short)
    }

    fn u64(self, at: usize) -> Result<u64, HeaderError> {
        let bytes = self.0.get(at..).and_then(<[u8]>::first_chunk);
        bytes
            .map(|bytes| u64::from_be_bytes(*bytes))
            .ok_or(HeaderError::Short)
    }
}

fn check_encryption(crypt_method: u32) -> Result<(), HeaderError> {
    match crypt_method {
        0 => Ok(()),
        1 => Err(HeaderError::Aes),
        2 => Err(HeaderError::Luks),
        other => Err(HeaderError::Encryption(other)),
    }
}

fn header_length(fields: Fields<'_>, version: u32, cluster: ClusterSize) -> Result<usize, HeaderError> {
    if version == 2 {
        return Ok(LENGTH_2);
    }
    let length = fields.u32(100)?;
    match usize::try_from(length) {
        Ok(bytes) if (LENGTH_3..=cluster.in_memory()).contains(&bytes) && bytes <= fields.0.len() => {
            Ok(bytes)
        }
        _ => Err(HeaderError::HeaderLength(length)),
    }
}

/// Parses the extensions, which end where the name of the backing file begins.
fn extensions(first: &[u8], length: usize, fields: Fields<'_>) -> Result<Extensions, HeaderError> {
    let name = usize::try_from(fields.u64(8)?).unwrap_or(usize::MAX);
    let end = match name {
        0 => first.len(),
        name => name.min(first.len()),
    };
    Extensions::parse(first.get(length..end).unwrap_or_default())
}

fn check_features(features: u64, extensions: &Extensions, read_only: bool) -> Result<(), HeaderError> {
    let unknown = features & !(DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2);
    if unknown != 0 {
        let bits = (0..64).filter(|bit| unknown & (1 << bit) != 0);
        let names: Vec<_> = bits.map(|bit| extensions.feature(bit)).collect();
        return Err(HeaderError::Features(names.join(", ")));
    }
    match features & CORRUPT != 0 && !read_only {
        true => Err(HeaderError::Corrupt),
        false => Ok(()),
    }
}

fn compression(bytes: &[u8], length: usize, features: u64) -> Result<CompressionType, HeaderError> {
    let kind = match length > LENGTH_3 {
        true => bytes.get(LENGTH_3).copied().ok_or(HeaderError::Short)?,
        false => 0,
    };
    if (kind != 0) != (features & COMPRESSION != 0) {
        return Err(HeaderError::CompressionBit);
    }
    match kind {
        0 => Ok(CompressionType::Zlib),
        1 => Ok(CompressionType::Zstd),
        other => Err(HeaderError::CompressionType(other)),
    }
}

fn backing_file(first: &[u8], fields: Fields<'_>) -> Result<Option<String>, HeaderError> {
    let (offset, len) = (fields.u64(8)?, fields.u32(16)? as usize);
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    let offset = usize::try_from(offset).map_err(|_| HeaderError::BackingName)?;
    let name = first.get(offset..).and_then(|rest| rest.get(..len));
    let name = name.filter(|_| len <= NAME_MAX).ok_or(HeaderError::BackingName)?;
    Ok(Some(text(name, "name of the backing file")?).filter(|name| !name.is_empty()))
}

#[cfg(test)]
mod tests;
