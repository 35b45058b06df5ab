//! A stalled file does not hold up the IOThread.

use vhost_user_blk::aio::AioContext;
use vhost_user_blk::engine::{BlockNode, Choice};
use vhost_user_blk::io::IoOp;
use vhost_user_blk::storage::OpenOptions;

use crate::disk::Disk;
use crate::support::{Buffers, Image, On};
use testkit::fuse::StalledFile;
use testkit::skip::skipped;

const MIB: u64 = 1 << 20;

#[test]
fn a_stalled_disk_does_not_stall_its_iothread() {
    let file = match StalledFile::mount(MIB) {
        Ok(file) => file,
        Err(error) => return skipped(format_args!("no FUSE file system can be mounted: {error}")),
    };
    let ctx = AioContext::new().unwrap();
    let options = OpenOptions {
        path: file.path(),
        read_only: true,
        ..OpenOptions::default()
    };
    let stalled = Disk::on(&ctx, BlockNode::open(&options).unwrap(), Choice::Auto).unwrap();
    let image = Image::filled(On::Tmpfs, MIB, 7);
    let other = Disk::on(&ctx, image.open(), Choice::Auto).unwrap();
    let (mut slow, mut fast) = (Buffers::new(0, &[4096]), Buffers::new(0, &[4096]));
    // This would never return if the IOThread itself read.
    stalled.submit(vec![stalled.request(0, IoOp::Read, 0, &mut slow)]);
    while !file.has_reader() {
        // The loop creates the worker.
        ctx.poll(false);
    }
    for _ in 0..100 {
        other.run(other.request(0, IoOp::Read, 0, &mut fast)).unwrap();
    }
    assert!(fast.bytes() == [7; 4096]);
    assert!(stalled.take_done().is_empty());
    file.let_go();
    assert!(stalled.wait(1).remove(0).result.is_ok());
    assert!(slow.bytes() == [1; 4096]);
}
