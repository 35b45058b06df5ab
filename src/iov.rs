//! Scatter-gather lists of memory that the kernel reads and writes.
//!
//! The lowest layer: storage and engines see these lists and nothing of the guest. Guest memory never becomes a
//! `&[u8]`, because the guest may change it at any time; it is handed to the kernel as an iovec.

use smallvec::SmallVec;

/// A list of memory ranges of one I/O request, in order.
///
/// Up to eight ranges are stored in place; a recycled list keeps its capacity, so the request path does not allocate.
///
/// The list holds addresses, not references. Whoever fills it ([`IoVecs::push`]) vouches for the memory until the
/// list is cleared or dropped; in exchange every reader of the list is safe code.
#[derive(Default, Debug)]
pub struct IoVecs {
    vecs: SmallVec<[IoVec; 8]>,
    len: usize,
}

/// One range; the layout of `struct iovec`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
struct IoVec(libc::iovec);

// SAFETY: an address and a length; what they point to is vouched for by the caller of `IoVecs::push`, on every thread.
unsafe impl Send for IoVec {}
// SAFETY: as above; the struct has no interior mutability.
unsafe impl Sync for IoVec {}

impl IoVecs {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `len` bytes at `base`; an empty range is left out.
    ///
    /// # Safety
    /// The range must stay mapped and writable (readable only, for a list that is only written from), and must not be
    /// referenced by any Rust reference, until this list is cleared or dropped. Its total length must stay below
    /// `isize::MAX`.
    pub unsafe fn push(&mut self, base: *mut u8, len: usize) {
        if len == 0 {
            return;
        }
        self.len += len;
        self.vecs.push(IoVec(libc::iovec {
            iov_base: base.cast(),
            iov_len: len,
        }));
    }

    /// Forgets all ranges, keeps the capacity.
    pub fn clear(&mut self) {
        self.vecs.clear();
        self.len = 0;
    }

    /// Bytes in all ranges together.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is no byte in the list.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The ranges, as the kernel takes them.
    pub fn as_slice(&self) -> &[libc::iovec] {
        let vecs: &[IoVec] = &self.vecs;
        // SAFETY: IoVec is repr(transparent) over libc::iovec.
        unsafe { std::slice::from_raw_parts(vecs.as_ptr().cast(), vecs.len()) }
    }

    /// True if every range starts at a multiple of `base` bytes and is a multiple of `len` bytes long (powers of two).
    pub fn is_aligned(&self, base: usize, len: usize) -> bool {
        self.vecs
            .iter()
            .all(|v| v.0.iov_base.addr() & (base - 1) == 0 && v.0.iov_len & (len - 1) == 0)
    }
}
