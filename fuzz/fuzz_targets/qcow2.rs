//! A hostile qcow2 image: any bytes as header, tables and data, read and written through the engine's own code.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vhost_user_blk::engine::{BlockNode, Qcow2Disk, Qcow2Options};
use vhost_user_blk::io::IoVecs;
use vhost_user_blk::qcow2::{CompressionType, Header, decompress};
use vhost_user_blk::storage::{Content, LockMode, OpenOptions};

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
    /// Writes to a small image with any L2 entries and refcounts.
    Written {
        extended: bool,
        dirty: bool,
        l2: Vec<u64>,
        refcounts: &'a [u8],
        header: Vec<(u8, u8)>,
        actions: Vec<Action>,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Action {
    Write { at: u16, sectors: u8 },
    Discard { at: u16, sectors: u8 },
    Zero { at: u16, sectors: u8, unmap: bool },
    Resize { sectors: u16 },
    Flush,
}

/// Largest number of actions.
const ACTIONS: usize = 24;
/// Largest number of bytes of space that a file takes beyond its size before: tables and data.
const GROWTH: u64 = 64 << 20;

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
    Input::Written {
        extended,
        dirty,
        l2,
        refcounts,
        header,
        actions,
    } => {
        let mut bytes = changed(extended, false, &l2, &[], &[]);
        add_refcounts(&mut bytes, extended, refcounts);
        bytes[79] |= u8::from(dirty);
        for (at, byte) in header {
            bytes[usize::from(at)] = byte;
        }
        written(&bytes, &actions);
    }
});

/// Adds a refcount table, a refcount block and a few clusters of data.
fn add_refcounts(bytes: &mut Vec<u8>, extended: bool, refcounts: &[u8]) {
    let bits: u32 = if extended { 14 } else { 9 };
    let cluster = 1_usize << bits;
    bytes.resize(5 * cluster, 0);
    bytes[48..56].copy_from_slice(&(3_u64 << bits).to_be_bytes());
    bytes[56..60].copy_from_slice(&1_u32.to_be_bytes());
    bytes[3 * cluster..3 * cluster + 8].copy_from_slice(&(4_u64 << bits).to_be_bytes());
    let block = &mut bytes[4 * cluster..];
    // The tables are in use, unless the input says something else.
    block[..10].copy_from_slice(&[0, 1, 0, 1, 0, 1, 0, 1, 0, 1]);
    let len = refcounts.len().min(block.len());
    block[..len].copy_from_slice(&refcounts[..len]);
    bytes.resize(8 * cluster, 7);
}

/// Writes to an image as a disk does it, and reads everything.
fn written(bytes: &[u8], actions: &[Action]) {
    let Some((file, disk)) = open_file(bytes) else {
        return;
    };
    let node = BlockNode::from(disk);
    let BlockNode::Qcow2(disk) = &node else {
        panic!("it is a qcow2 disk");
    };
    let Ok(_lock) = node.lock(LockMode::Write) else {
        return;
    };
    if node.look_anew().is_err() {
        return;
    }
    for action in actions.iter().take(ACTIONS) {
        let place = |at: u16, sectors: u8| (u64::from(at) * 512, usize::from(sectors) * 512);
        match *action {
            Action::Write { at, sectors } => {
                let (at, len) = place(at, sectors);
                with_memory(len, |iov| drop(disk.write(iov, at)));
            }
            Action::Discard { at, sectors } => {
                let (at, len) = place(at, sectors);
                let _ = disk.discard(at, len as u64);
            }
            Action::Zero { at, sectors, unmap } => {
                let (at, len) = place(at, sectors);
                let _ = disk.write_zeroes(at, len as u64, unmap);
            }
            Action::Resize { sectors } => drop(node.resize(u64::from(sectors) * 512)),
            Action::Flush => drop(disk.flush()),
        }
    }
    for at in (0..disk.size().min(1 << 20)).step_by(32 << 10) {
        read(disk, at, 32 << 10);
    }
    // Entries may lead anywhere, so the file may have a far end, but there is a hole before it.
    let space = file.metadata().expect("the space").blocks() * 512;
    assert!(
        space <= bytes.len() as u64 + GROWTH,
        "the file takes {space} bytes"
    );
}

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
    open_file(bytes).map(|(_, disk)| disk)
}

/// Opens an image. Returns the file, too.
fn open_file(bytes: &[u8]) -> Option<(File, Qcow2Disk)> {
    // SAFETY: a call without memory but the name.
    let fd = unsafe { libc::memfd_create(c"image".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: it was just made, and nobody else has it.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(bytes).expect("write");
    let other = file.try_clone().expect("another descriptor");
    let options = OpenOptions {
        path: "image".into(),
        content: Content::Image,
        ..OpenOptions::default()
    };
    let node = BlockNode::from_file(file, None, &options).ok()?;
    let disk = Qcow2Disk::open(&Arc::new(node), &Qcow2Options::default()).ok()?;
    Some((other, disk))
}

/// Runs `work` with memory of this length.
fn with_memory(len: usize, work: impl FnOnce(&IoVecs)) {
    let mut memory = vec![0xaa_u8; len];
    let mut iov = IoVecs::new();
    // SAFETY: the memory outlives the list, and meanwhile only the list is used to access it.
    unsafe { iov.push(memory.as_mut_ptr(), memory.len()) };
    work(&iov);
}

fn read(disk: &Qcow2Disk, at: u64, len: usize) {
    let len = len.min(usize::try_from(disk.size().saturating_sub(at)).unwrap_or(len));
    with_memory(len, |iov| {
        if !disk.try_read(iov, at) {
            let _ = disk.read(iov, at);
        }
    });
}
