//! Finds out whether guest memory is all zero.
//!
//! Most memory is not. A look at its start, middle and end shows that, and costs a few cycles, however long the memory
//! is.

use super::volatile::read_volatile_16;

/// Number of bytes that are read between two decisions.
const BLOCK: usize = 64;

/// Returns whether `len` bytes at `ptr` are zero. They may change meanwhile; then either answer is right.
///
/// # Safety
/// `ptr` is valid for reads of `len` bytes, and everybody who writes to them does so in other processes or by volatile
/// accesses.
pub(super) unsafe fn is_zero(ptr: *const u8, len: usize) -> bool {
    if len < BLOCK {
        // SAFETY: within the range that the caller vouches for.
        return (0..len).all(|at| unsafe { ptr.add(at).read_volatile() } == 0);
    }
    let last = len - BLOCK;
    // SAFETY: blocks at these offsets lie within the range, because `last` is the offset of the last one.
    let block = |at: usize| unsafe { block_is_zero(ptr.add(at)) };
    // The last block is read with the first ones. It may overlap the one before.
    block(0) && block(last / 2) && block(last) && (BLOCK..last).step_by(BLOCK).all(block)
}

/// Returns whether a block is zero.
///
/// # Safety
/// `ptr` is valid for reads of [`BLOCK`] bytes.
#[inline]
unsafe fn block_is_zero(ptr: *const u8) -> bool {
    // SAFETY: the caller's promise.
    let word = |at: usize| u128::from_ne_bytes(unsafe { read_volatile_16(ptr.add(at)) });
    (word(0) | word(16)) | (word(32) | word(48)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_is_found() {
        for len in [1, 15, 63, 64, 65, 127, 128, 130, 512, 1000] {
            for skew in [0, 1, 7] {
                let mut memory = vec![0xff; len + skew + 9];
                memory[skew..skew + len].fill(0);
                // SAFETY: within the vector.
                let zero = |memory: &[u8]| unsafe { is_zero(memory.as_ptr().add(skew), len) };
                assert!(zero(&memory), "{len} bytes at {skew}");
                for at in skew..skew + len {
                    memory[at] = 0x80;
                    assert!(!zero(&memory), "byte {at} of {len} at {skew}");
                    memory[at] = 0;
                }
            }
        }
    }

    #[test]
    fn no_bytes_are_zero() {
        // SAFETY: no byte is read.
        assert!(unsafe { is_zero(std::ptr::dangling(), 0) });
    }
}
