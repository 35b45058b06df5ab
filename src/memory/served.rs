//! File systems whose pages come from a server.
//!
//! An access to a mapped page may read it from its file system first. If that is a server (a FUSE process, another
//! host), the thread waits for as long as the server likes, and no signal ends the wait. An IOThread must not wait, so
//! memory is not shared through such files.

use std::io;

/// `f_type` of file systems with a server, and their names.
const SERVED: [(u32, &str); 12] = [
    (0x6573_5546, "FUSE"),
    (0x6969, "NFS"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0xff53_4d42, "SMB"),
    (0xfe53_4d42, "SMB"),
    (0x517b, "SMB"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x0bd0_0bd0, "Lustre"),
    (0x786f_4256, "vboxsf"),
];

/// Refuses a file on a file system with a server.
///
/// # Errors
/// The file system of this type has a server.
pub(super) fn refuse(f_type: i64) -> io::Result<()> {
    match SERVED.iter().find(|(known, _)| i64::from(*known) == f_type) {
        None => Ok(()),
        Some((_, name)) => Err(io::Error::other(format!(
            "the file is on {name}, and each access could wait for its server: use memory of this host, such as a memfd \
             or a file in /dev/shm or hugetlbfs"
        ))),
    }
}
