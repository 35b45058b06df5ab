//! Images of every kind that qemu-img makes.

use super::support::{check, convert, create, directory, qemu_img, qemu_io, raw};

/// No multiple of a cluster of any size.
const LEN: usize = (5 << 20) + (3 << 9);

/// Makes an image with each of the options, and compares what it has.
fn each(options: &[&str], more: &[&str]) {
    let Some(dir) = directory() else { return };
    raw(dir.path(), "source.raw", LEN);
    for options in options {
        convert(dir.path(), options, more);
        check(dir.path(), "image", &[]);
    }
}

#[test]
fn all_versions_and_cluster_sizes_are_read() {
    each(
        &[
            "compat=0.10,cluster_size=512",
            "compat=0.10",
            "compat=0.10,cluster_size=2M",
            "cluster_size=512",
            "cluster_size=1k",
            "cluster_size=4k",
            "cluster_size=64k",
            "cluster_size=2M",
            "refcount_bits=1",
            "refcount_bits=64,lazy_refcounts=on",
        ],
        &[],
    );
}

#[test]
fn subclusters_are_read() {
    each(
        &[
            "extended_l2=on,cluster_size=16k",
            "extended_l2=on,cluster_size=64k",
            "extended_l2=on,cluster_size=2M",
        ],
        &[],
    );
}

#[test]
fn compressed_clusters_are_read() {
    each(
        &[
            "compat=0.10",
            "cluster_size=512",
            "compression_type=zlib",
            "cluster_size=2M,compression_type=zlib",
            "compression_type=zstd",
            "cluster_size=4k,compression_type=zstd",
            "cluster_size=2M,compression_type=zstd",
            "compression_type=zstd,extended_l2=on",
        ],
        &["-c"],
    );
}

#[test]
fn preallocated_images_are_read() {
    each(
        &[
            "preallocation=metadata",
            "preallocation=falloc",
            "preallocation=full",
            "preallocation=metadata,extended_l2=on",
        ],
        &[],
    );
}

#[test]
fn direct_reads_need_no_alignment_in_the_image() {
    let Some(dir) = directory() else { return };
    raw(dir.path(), "source.raw", LEN);
    for (options, more) in [("cluster_size=512", &[][..]), ("compression_type=zstd", &["-c"])] {
        convert(dir.path(), options, more);
        check(dir.path(), "image", &["--direct"]);
    }
}

#[test]
fn zero_and_discarded_clusters_are_read() {
    let Some(dir) = directory() else { return };
    raw(dir.path(), "source.raw", LEN);
    for options in [
        "compat=0.10",
        "cluster_size=4k",
        "cluster_size=64k",
        "extended_l2=on",
    ] {
        convert(dir.path(), options, &[]);
        qemu_io(
            dir.path(),
            "image",
            &[
                "write -z 64k 256k",
                "write -z -u 640k 6k",
                "discard 1M 512k",
                "write -P 5 1100k 3k",
                "write -z 3M 2k",
            ],
        );
        check(dir.path(), "image", &[]);
    }
}

#[test]
fn the_active_layer_is_read_above_internal_snapshots() {
    let Some(dir) = directory() else { return };
    raw(dir.path(), "source.raw", LEN);
    convert(dir.path(), "cluster_size=64k", &[]);
    for (snapshot, write) in [("one", "write -P 1 100k 300k"), ("two", "write -P 2 200k 1M")] {
        qemu_img(dir.path(), &["snapshot", "-c", snapshot, "image"]);
        qemu_io(dir.path(), "image", &[write]);
    }
    check(dir.path(), "image", &[]);
}

#[test]
fn resized_images_are_read() {
    let Some(dir) = directory() else { return };
    raw(dir.path(), "source.raw", LEN);
    convert(dir.path(), "cluster_size=512", &[]);
    for size in ["9M", "3000k"] {
        qemu_img(dir.path(), &["resize", "--shrink", "-f", "qcow2", "image", size]);
        check(dir.path(), "image", &[]);
    }
}

#[test]
fn an_image_in_use_after_a_crash_is_read() {
    let Some(dir) = directory() else { return };
    raw(dir.path(), "source.raw", LEN);
    convert(dir.path(), "lazy_refcounts=on", &[]);
    // The dirty bit stays.
    let abort = ["write -P 9 1M 1M", "abort"];
    let args = ["-f", "qcow2", "-c", abort[0], "-c", abort[1], "image"];
    assert!(super::support::try_run(dir.path(), "qemu-io", &args).is_err());
    check(dir.path(), "image", &[]);
}

#[test]
fn a_large_image_is_opened_quickly() {
    let Some(dir) = directory() else { return };
    create(dir.path(), "", &["image", "1T"]);
    qemu_io(dir.path(), "image", &["write -P 3 1023G 1M"]);
    let (_daemon, mut frontend) = super::support::serve(dir.path(), "image", &[]);
    let done = frontend.queue(0).run(&testkit::frontend::Op::Read {
        offset: (1023 << 30) - 512,
        len: 1024,
    });
    assert_eq!((done.ret, done.data), (0, [[0; 512], [3; 512]].concat()));
}
