//! Reads of guest memory that may change meanwhile.

/// Copies sixteen bytes, each once, that the guest may write at the same time.
///
/// # Safety
/// `ptr` is valid for sixteen bytes (it may be unaligned).
#[inline]
pub(crate) unsafe fn read_volatile_16(ptr: *const u8) -> [u8; 16] {
    // A volatile read of an array would be one read per byte.
    #[derive(Clone, Copy)]
    #[repr(C, packed)]
    struct Unaligned(u128);
    // SAFETY: valid (the caller's promise), and the type needs no alignment.
    let Unaligned(word) = unsafe { ptr.cast::<Unaligned>().read_volatile() };
    word.to_ne_bytes()
}

/// Returns whether all bytes are zero, although the guest may write them at the same time.
///
/// # Safety
/// `ptr` is valid for `len` bytes.
pub(crate) unsafe fn is_zero(ptr: *const u8, len: usize) -> bool {
    // SAFETY: both parts are within the range (the caller's promise).
    let words = |at: usize| unsafe { read_volatile_16(ptr.add(at)) } == [0; 16];
    // SAFETY: as above.
    let bytes = |at: usize| unsafe { ptr.add(at).read_volatile() } == 0;
    let whole = len - len % 16;
    (0..whole).step_by(16).all(words) && (whole..len).all(bytes)
}
