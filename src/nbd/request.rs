//! Requests of the client.

use super::export::Replies;
use super::wire;

/// Length of the longest header of a request.
pub const HEADER_LEN_MAX: usize = 32;

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Reads data.
    Read {
        /// The answer comes in one piece.
        whole: bool,
    },
    /// Writes data, which follows the header.
    Write {
        /// The data must be stable before the answer.
        fua: bool,
    },
    /// Makes every write that was answered stable.
    Flush,
    /// Gives space back.
    Trim,
    /// Makes a range read as zeroes.
    WriteZeroes {
        /// The zeroes must be stable before the answer.
        fua: bool,
        /// The space stays allocated.
        no_hole: bool,
    },
    /// Ends the connection. This is not answered.
    Disconnect,
}

/// A request, except for its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The operation.
    pub command: Command,
    /// A number that the answer repeats.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u32,
}

impl Request {
    /// Writes the header to `to`, in the form that goes with `replies`. Returns its length.
    pub fn encode(&self, replies: Replies, to: &mut [u8; HEADER_LEN_MAX]) -> usize {
        let (kind, mut flags) = self.kind();
        let extended = replies == Replies::Extended;
        if extended && matches!(self.command, Command::Write { .. }) {
            flags |= wire::CMD_FLAG_PAYLOAD_LEN;
        }
        let magic = match extended {
            true => wire::EXTENDED_REQUEST_MAGIC,
            false => wire::REQUEST_MAGIC,
        };
        to[..4].copy_from_slice(&magic.to_be_bytes());
        to[4..6].copy_from_slice(&flags.to_be_bytes());
        to[6..8].copy_from_slice(&kind.to_be_bytes());
        to[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        to[16..24].copy_from_slice(&self.offset.to_be_bytes());
        if extended {
            to[24..].copy_from_slice(&u64::from(self.len).to_be_bytes());
            return 32;
        }
        to[24..28].copy_from_slice(&self.len.to_be_bytes());
        28
    }

    fn kind(&self) -> (u16, u16) {
        let flag = |on: bool, flag: u16| if on { flag } else { 0 };
        match self.command {
            Command::Read { whole } => (wire::CMD_READ, flag(whole, wire::CMD_FLAG_DF)),
            Command::Write { fua } => (wire::CMD_WRITE, flag(fua, wire::CMD_FLAG_FUA)),
            Command::Flush => (wire::CMD_FLUSH, 0),
            Command::Trim => (wire::CMD_TRIM, 0),
            Command::WriteZeroes { fua, no_hole } => (
                wire::CMD_WRITE_ZEROES,
                flag(fua, wire::CMD_FLAG_FUA) | flag(no_hole, wire::CMD_FLAG_NO_HOLE),
            ),
            Command::Disconnect => (wire::CMD_DISC, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(command: Command, replies: Replies) -> Vec<u8> {
        let request = Request {
            command,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1112_1314_1516_1718,
            len: 0x2122_2324,
        };
        let mut header = [0; HEADER_LEN_MAX];
        let len = request.encode(replies, &mut header);
        header[..len].to_vec()
    }

    #[test]
    fn headers_are_as_the_protocol_says() {
        let expected = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16,
            0x17, 0x18, 0x21, 0x22, 0x23, 0x24,
        ];
        let write = Command::Write { fua: true };
        assert_eq!(encoded(write, Replies::Simple), expected);
        assert_eq!(encoded(write, Replies::Structured), expected);
        let extended = encoded(write, Replies::Extended);
        assert_eq!(extended[..8], [0x21, 0xe4, 0x1c, 0x71, 0, 0x21, 0, 1]);
        assert_eq!(extended[8..24], expected[8..24]);
        assert_eq!(extended[24..], [0, 0, 0, 0, 0x21, 0x22, 0x23, 0x24]);
    }

    #[test]
    fn each_operation_has_its_number_and_flags() {
        let zeroes = |fua, no_hole| Command::WriteZeroes { fua, no_hole };
        for (command, expected) in [
            (Command::Read { whole: false }, [0, 0, 0, 0]),
            (Command::Read { whole: true }, [0, 4, 0, 0]),
            (Command::Write { fua: false }, [0, 0, 0, 1]),
            (Command::Disconnect, [0, 0, 0, 2]),
            (Command::Flush, [0, 0, 0, 3]),
            (Command::Trim, [0, 0, 0, 4]),
            (zeroes(false, false), [0, 0, 0, 6]),
            (zeroes(true, true), [0, 3, 0, 6]),
        ] {
            assert_eq!(
                encoded(command, Replies::Structured)[4..8],
                expected,
                "{command:?}"
            );
        }
    }
}
