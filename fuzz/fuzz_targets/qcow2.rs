//! A hostile qcow2 image: any bytes as header, tables and data, read through the engine's own code.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vhost_user_blk::engine::{BlockNode, Qcow2Disk, Qcow2Options};
use vhost_user_blk::io::IoVecs;
use vhost_user_blk::qcow2::{CompressionType, Header, decompress};
use vhost_user_blk::storage::OpenOptions;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    /// A whole image.
    Image(&'a [u8]),
    /// Changes of a small image that is right: clusters of 512 bytes, or of 16 KiB with subclusters.
    Changed {
        extended: bool,
        zstd: bool,
        /// The L1 table, an L2 table and data are at the clusters 1, 2 and 3.
        l2: Vec<u64>,
        data: &'a [u8],
        header: Vec<(u8, u8)>,
    },
    Compressed(bool, &'a [u8]),
}

fuzz_target!(|input: Input<'_>| match input {
    Input::Image(bytes) => image(bytes),
    Input::Changed {
        extended,
        zstd,
        l2,
        data,
        header,
    } => image(&changed(extended, zstd, &l2, data, &header)),
    Input::Compressed(zstd, data) => {
        let method = [CompressionType::Zlib, CompressionType::Zstd][usize::from(zstd)];
        let _ = decompress(method, data, &mut [0; 4096]);
    }
});

fn changed(extended: bool, zstd: bool, l2: &[u64], data: &[u8], header: &[(u8, u8)]) -> Vec<u8> {
    let bits: u32 = if extended { 14 } else { 9 };
    let cluster = 1_usize << bits;
    let mut bytes = vec![0; 3 * cluster];
    bytes[..4].copy_from_slice(b"QFI\xfb");
    let features = u32::from(zstd) << 3 | u32::from(extended) << 4;
    // One L2 table, the refcount table is not read.
    let words = [
        (4, 3),
        (20, bits),
        (28, 1 << 15),
        (36, 1),
        (44, 1 << bits),
        (52, 1 << bits),
    ];
    for (at, word) in words
        .into_iter()
        .chain([(56, 0), (76, features), (96, 4), (100, 112)])
    {
        bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
    }
    bytes[104] = u8::from(zstd);
    for (at, byte) in header {
        bytes[usize::from(*at)] = *byte;
    }
    bytes[cluster..cluster + 8].copy_from_slice(&(2_u64 << bits).to_be_bytes());
    for (place, word) in bytes[2 * cluster..].chunks_exact_mut(8).zip(l2) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    bytes.extend(data);
    bytes
}

fn image(bytes: &[u8]) {
    let Some(disk) = open(bytes) else { return };
    let Ok(header) = Header::parse(bytes, true) else {
        panic!("the image was opened");
    };
    assert!(disk.size() == header.size && header.l1_entries <= 1 << 22);
    assert!(
        header.backing_file.is_none() && !header.external_data,
        "a name was followed"
    );
    for (at, len) in [
        (0, 4096),
        (512, 40000),
        (disk.size() / 2, 5000),
        (disk.size().saturating_sub(512), 512),
    ] {
        read(&disk, at, len);
        // The tables are in memory now.
        read(&disk, at, len);
    }
}

fn open(bytes: &[u8]) -> Option<Qcow2Disk> {
    // SAFETY: a call without memory but the name.
    let fd = unsafe { libc::memfd_create(c"image".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: it was just made, and nobody else has it.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(bytes).expect("write");
    let options = OpenOptions {
        path: "image".into(),
        any_size: true,
        ..OpenOptions::default()
    };
    let node = BlockNode::from_file(file, None, &options).ok()?;
    Qcow2Disk::open(&Arc::new(node), &Qcow2Options::default()).ok()
}

fn read(disk: &Qcow2Disk, at: u64, len: usize) {
    let len = len.min(usize::try_from(disk.size().saturating_sub(at)).unwrap_or(len));
    let mut memory = vec![0xaa_u8; len];
    let mut iov = IoVecs::new();
    // SAFETY: the memory outlives the list, and meanwhile only the list is used to access it.
    unsafe { iov.push(memory.as_mut_ptr(), memory.len()) };
    if !disk.try_read(&iov, at) {
        let _ = disk.read(&iov, at);
    }
}
