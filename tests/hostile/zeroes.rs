//! Memory that is looked at for zeroes (`detect-zeroes`), and that its frontend takes away.

use std::fs;

use testkit::daemon::{Daemon, IMAGE, SOCKET};
use testkit::target::{SECTORS, image};
use testkit::vm::{DATA, HEADER, SECTOR, STATUS, Vm, header, readable, writable};

const OUT: u32 = 1;

#[test]
fn lost_memory_does_not_count_as_zero() {
    let dir = tempfile::tempdir().expect("make a directory");
    fs::write(dir.path().join(IMAGE), image()).expect("write the image");
    let node = format!("file,node-name=f,filename={IMAGE},detect-zeroes=on");
    let export =
        format!("vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={SOCKET},num-queues=2,writable=on");
    let daemon = Daemon::start_with(dir, &["--blockdev", &node, "--export", &export]);
    let write = |vm: &mut Vm, len: u32| {
        vm.poke(HEADER, &header(OUT, 40));
        vm.request(
            0,
            &[readable(HEADER, 16), readable(DATA, len), writable(STATUS, 1)],
        )
    };
    let mut vm = Vm::start(&daemon, 2);
    vm.poke(DATA, &[0; 8192]);
    assert_eq!(write(&mut vm, 512), Some((0, 1)));
    assert_eq!(daemon.image()[40 * SECTOR..41 * SECTOR], [0; SECTOR]);
    fs::write(daemon.image_path(), image()).expect("restore the image");
    // The first of the two pages stays.
    vm.memory
        .file()
        .set_len(DATA_OFFSET + 4096)
        .expect("cut the memory short");
    assert_eq!(write(&mut vm, 8192), Some((1, 1)));
    let now = daemon.image();
    // What is in the first page may have been written.
    assert!(
        now[48 * SECTOR..] == image()[48 * SECTOR..SECTORS * SECTOR],
        "lost memory reached the disk"
    );
}

/// The place of [`DATA`] in the memory's file.
const DATA_OFFSET: u64 = 0x9_0000;
