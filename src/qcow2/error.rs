//! Reasons not to open an image, and mistakes that are found while it is read.

/// The reason why the header of an image is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
#[non_exhaustive]
pub enum HeaderError {
    #[error("it has no qcow2 header")]
    Magic,
    #[error("its header is cut off")]
    Short,
    #[error("version {0} of qcow2 is not supported")]
    Version(u32),
    #[error("it is encrypted (AES, crypt_method 1), which is not supported")]
    Aes,
    #[error("it is encrypted (LUKS, crypt_method 2), which is not supported")]
    Luks,
    #[error("its encryption (crypt_method {0}) is not supported")]
    Encryption(u32),
    #[error("its clusters of 2^{0} bytes are not supported: 512 bytes to 2 MiB are")]
    ClusterBits(u32),
    #[error("it needs incompatible features that are not supported: {0}")]
    Features(String),
    #[error(
        "it is marked as corrupt (incompatible feature bit 1): it can be opened with read-only=on, or repaired with qemu-img check -r all"
    )]
    Corrupt,
    #[error("its header length {0} is wrong")]
    HeaderLength(u32),
    #[error("its refcount order {0} is larger than 6")]
    RefcountOrder(u32),
    #[error("its compression type {0} is not supported")]
    CompressionType(u8),
    #[error("its compression type contradicts incompatible feature bit 3")]
    CompressionBit,
    #[error("extended L2 entries need clusters of at least 16 KiB")]
    ExtendedL2,
    #[error("its disk size of {0} bytes is not a positive multiple of 512")]
    DiskSize(u64),
    #[error("its disk size of {0} bytes needs an L1 table of more than 32 MiB")]
    DiskTooLarge(u64),
    #[error("its L1 table is too small for its disk size")]
    L1Size,
    #[error("the place of its {0} is wrong")]
    Place(&'static str),
    #[error("the name of its backing file is too long or not in the first cluster")]
    BackingName,
    #[error("the {0} in its header is not text")]
    Text(&'static str),
    #[error("its header extension {0:#010x} does not fit into the first cluster")]
    Extension(u32),
    #[error("it has no name of its external data file")]
    NoDataFile,
}

/// A mistake in the tables of an image. Requests that need the place fail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
#[non_exhaustive]
pub enum Corruption {
    #[error("the qcow2 image is corrupt: L1 entry {0:#x} has a wrong offset")]
    L1Entry(u64),
    #[error("the qcow2 image is corrupt: L2 entry {0:#x} is invalid")]
    L2Entry(u64),
    #[error("the qcow2 image is corrupt: the subcluster bitmap {0:#x} is invalid")]
    Bitmap(u64),
    #[error("the qcow2 image is corrupt: {0}")]
    Refcounts(&'static str),
    #[error("the qcow2 image is corrupt: a compressed cluster cannot be decompressed")]
    Compressed,
}
