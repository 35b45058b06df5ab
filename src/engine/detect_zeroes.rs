//! The treatment of writes of zeroes.

/// The treatment of writes whose memory is all zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// They are like other writes, and no memory is looked at.
    #[default]
    Off,
    /// Makes the range read as zeroes. Its space stays or becomes allocated, if the storage supports that.
    On,
    /// Makes the range read as zeroes, and gives its space back if the storage was opened with
    /// [`unmap`](crate::storage::OpenOptions::unmap).
    Unmap,
}
