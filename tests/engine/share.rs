//! Long batches, which the IOThread and a worker execute together.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use vhost_user_blk::aio::AioContext;
use vhost_user_blk::engine::Choice;
use vhost_user_blk::io::IoOp;
use vhost_user_blk::storage::{OpenOptions, RawFile};

use crate::disk::Disk;
use crate::support::{Buffers, Image, On};
use testkit::skip::skipped;

const BLOCK: usize = 4096;
const BATCH: u16 = 64;

/// Reads the whole image in one batch of short requests, which may be `merged`. Returns whether a worker was asked to
/// help.
fn read_all(disk: &Disk, image: &Image, merged: bool) -> bool {
    let mut buffers: Vec<Buffers> = (0..BATCH).map(|_| Buffers::new(0, &[BLOCK])).collect();
    let batch = (0..BATCH).zip(&mut buffers).map(|(token, buffers)| {
        let offset = u64::from(token) * BLOCK as u64;
        disk.request(token, IoOp::Read, offset, buffers)
    });
    let batch = batch.collect();
    if merged {
        assert!(disk.submit_merged(batch) > 0);
    } else {
        disk.submit(batch);
    }
    let shared = disk.is_sharing();
    let done = disk.wait(usize::from(BATCH));
    assert!(
        done.iter().map(|request| request.token).eq(0..BATCH),
        "each exactly once"
    );
    assert!(done.iter().all(|request| request.result.is_ok()));
    drop(done);
    let content = image.contents();
    for (block, buffers) in content.chunks(BLOCK).zip(&buffers) {
        assert!(buffers.bytes() == block);
    }
    shared
}

/// Opens an image to be read with system calls. Copies may be too quick to be shared.
fn open(image: &Image) -> RawFile {
    let options = OpenOptions {
        map: false,
        ..image.options()
    };
    RawFile::open(&options).unwrap()
}

/// Reads until workers were asked to help `times` times. Every batch must be complete.
fn read_until_shared(on: On, times: usize) {
    if thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1) {
        return skipped("this needs two CPUs");
    }
    let ctx = AioContext::new().unwrap();
    ctx.poll_on_crowded_cpus();
    let image = Image::filled(on, u64::from(BATCH) * BLOCK as u64, 5);
    if !image.open().try_readv(&Buffers::new(0, &[BLOCK]).iov(), 0) {
        return skipped(format_args!("{on:?} refuses RWF_NOWAIT (overlay)"));
    }
    let disk = Disk::on(&ctx, open(&image), Choice::Auto).unwrap();
    let (start, mut shared, mut merged) = (Instant::now(), 0, false);
    while shared < times {
        assert!(
            start.elapsed() < Duration::from_secs(300),
            "{shared} batches were shared"
        );
        shared += usize::from(read_all(&disk, &image, merged));
        merged = !merged;
        while disk.is_sharing() {
            ctx.poll(true);
        }
    }
}

#[test]
fn a_single_cpu_is_not_shared_with_a_worker() {
    let pinned = thread::spawn(|| {
        let mut one = CpuSet::new();
        one.set(sched_getcpu());
        sched_setaffinity(None, &one).unwrap();
        let ctx = AioContext::new().unwrap();
        let image = Image::filled(On::Tmpfs, u64::from(BATCH) * BLOCK as u64, 5);
        let disk = Disk::on(&ctx, open(&image), Choice::Auto).unwrap();
        assert!((0..200).all(|_| !read_all(&disk, &image, false)));
    });
    pinned.join().unwrap();
}

/// Makes the kernel drop its cache of a clean file.
fn evict(file: &File) {
    file.sync_all().unwrap();
    // SAFETY: takes numbers only.
    let result = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(result, 0);
}

#[test]
fn a_shared_batch_completes_every_request() {
    read_until_shared(On::Tmpfs, 200);
    read_until_shared(On::Disk, 200);
}

#[test]
fn a_shared_batch_reads_uncached_data_too() {
    let ctx = AioContext::new().unwrap();
    let image = Image::filled(On::Disk, u64::from(BATCH) * BLOCK as u64, 6);
    let disk = Disk::on(&ctx, image.open(), Choice::Auto).unwrap();
    for n in 0..50 {
        read_all(&disk, &image, n % 2 == 0);
        evict(&image.file());
    }
}
