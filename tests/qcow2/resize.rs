//! Disks that become longer and shorter while they are served.

use std::path::Path;

use serde_json::json;
use testkit::frontend::Op;

use super::support::{check_clean, create, directory_in_memory, expected, qemu_io, raw, serve_node};

const MIB: usize = 1 << 20;

/// Changes the size of a disk, writes to its end, and compares it with what qemu-img reads.
fn resize(dir: &Path, image: &str, more: &str, sizes: &[usize]) {
    let mut model = expected(dir, image);
    let path = dir.join(image).display().to_string();
    let node = format!("qcow2,file.driver=file,file.filename={path}{more}");
    let (mut daemon, mut frontend, mut client) = serve_node("disk", &node, &[]);
    for (number, &size) in (1..).zip(sizes) {
        client.execute("block_resize", &json!({"node-name": "disk", "size": size}));
        model.resize(size, 0);
        assert_eq!(frontend.config().capacity.to_native(), size as u64 / 512);
        let at = size - 5 * 512;
        let data = vec![number; 5 * 512];
        model[at..].copy_from_slice(&data);
        let offset = at as u64;
        assert_eq!(frontend.queue(0).run(&Op::Write { offset, data }).ret, 0);
        for at in (0..size).step_by(32 << 10) {
            let len = (32 << 10).min(size - at);
            let offset = at as u64;
            let done = frontend.queue(0).run(&Op::Read { offset, len });
            assert!(done.ret == 0 && done.data == model[at..at + len], "{size} {at}");
        }
    }
    drop(frontend);
    assert!(daemon.terminate().status.success());
    check_clean(dir, image);
    assert!(expected(dir, image) == model);
}

#[test]
fn disks_become_longer_and_shorter() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    for options in [
        "cluster_size=64k",
        "cluster_size=512",
        "compat=0.10",
        "extended_l2=on",
    ] {
        create(dir, options, &["image", "2M"]);
        qemu_io(dir, "image", &["write -P 7 0 2M"]);
        let sizes = [3 * MIB + 512, 9 * MIB, MIB + 1536, 40 * MIB, 512 * 7, 2 * MIB];
        resize(dir, "image", "", &sizes);
    }
}

#[test]
fn new_parts_hide_the_backing_file() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    raw(dir, "base", 4 * MIB);
    for options in ["cluster_size=64k", "cluster_size=4k", "compat=0.10"] {
        let overlay = ["-b", "base", "-F", "raw", "image", "1500k"];
        create(dir, options, &overlay);
        resize(dir, "image", ",follow-names=on", &[3 * MIB, MIB, 5 * MIB]);
    }
}
