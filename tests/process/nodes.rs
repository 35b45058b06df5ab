//! Block nodes on the command line: parts of images, zeroes, shared images.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tempfile::TempDir;
use testkit::daemon::{Daemon, run};
use testkit::frontend::{Frontend, Op, all_features};

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;
const EXPORT: &str = "vhost-user-blk,id=e,node-name=top,addr.type=unix,addr.path=e.sock,writable=on";

/// Returns the byte of the image at this offset.
fn pattern(at: usize) -> u8 {
    u8::try_from(at / 512 % 251).expect("a byte")
}

/// Makes a directory with an image.
fn image() -> TempDir {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
    let content: Vec<u8> = (0..MIB).map(pattern).collect();
    fs::write(dir.path().join("img"), content).expect("write an image");
    dir
}

/// Serves the node `top`, the last of `nodes`.
fn serve(dir: TempDir, nodes: &[&str], export: &str) -> (Daemon, Frontend) {
    let mut args = Vec::new();
    for node in nodes {
        args.extend(["--blockdev", node]);
    }
    args.extend(["--export", export]);
    let daemon = Daemon::start_with(dir, &args);
    let frontend = Frontend::connect(&daemon.dir().join("e.sock"), 1, 8, all_features()).expect("connect");
    (daemon, frontend)
}

fn run_op(frontend: &mut Frontend, op: &Op) -> i32 {
    frontend.queue(0).run(op).ret
}

#[test]
fn a_part_of_an_image_is_a_disk_of_its_own() {
    let (start, len) = (12800, 65536);
    let part = format!("raw,node-name=top,file=f,offset={start},size={len},discard=unmap");
    for file in [
        "file,node-name=f,filename=img,discard=unmap",
        "file,node-name=f,filename=img,aio=io_uring,discard=unmap",
    ] {
        let (daemon, mut disk) = serve(image(), &[file, &part], EXPORT);
        let mut expected: Vec<u8> = (0..MIB).map(pattern).collect();
        assert_eq!(disk.config().capacity.to_native(), (len / 512) as u64);
        let done = disk.queue(0).run(&Op::Read {
            offset: 512,
            len: BLOCK,
        });
        assert_eq!(
            (done.ret, done.data),
            (0, expected[start + 512..][..BLOCK].to_vec())
        );
        // The last sector is the disk's, and the next one is not.
        for (op, range, byte, fits) in [
            (
                Op::Write {
                    offset: (len - 512) as u64,
                    data: vec![0xee; 512],
                },
                len - 512..len,
                0xee,
                true,
            ),
            (
                Op::Write {
                    offset: len as u64,
                    data: vec![0xee; 512],
                },
                0..0,
                0,
                false,
            ),
            (
                Op::WriteZeroes {
                    offset: 0,
                    len: 1024,
                    unmap: false,
                },
                0..1024,
                0,
                true,
            ),
            (
                Op::WriteZeroes {
                    offset: (len - 512) as u64,
                    len: 1024,
                    unmap: true,
                },
                0..0,
                0,
                false,
            ),
            (
                Op::Discard {
                    offset: 2048,
                    len: 4096,
                },
                2048..6144,
                0,
                true,
            ),
            (
                Op::Discard {
                    offset: len as u64,
                    len: 512,
                },
                0..0,
                0,
                false,
            ),
        ] {
            assert_eq!(run_op(&mut disk, &op) == 0, fits, "{op:?}");
            expected[start + range.start..start + range.end].fill(byte);
        }
        assert!(
            run_op(
                &mut disk,
                &Op::Read {
                    offset: len as u64,
                    len: 512
                }
            ) != 0
        );
        assert!(fs::read(daemon.dir().join("img")).expect("read the image") == expected);
    }
}

#[test]
fn faults_count_sectors_of_the_part() {
    let export = format!("{EXPORT},inject.0=read:eio:sector=8");
    let nodes = [
        "file,node-name=f,filename=img",
        "raw,node-name=top,file=f,offset=8192",
    ];
    let (daemon, mut disk) = serve(image(), &nodes, &export);
    assert_eq!(
        run_op(
            &mut disk,
            &Op::Read {
                offset: 0,
                len: BLOCK
            }
        ),
        0
    );
    assert!(
        run_op(
            &mut disk,
            &Op::Read {
                offset: 4096,
                len: 512
            }
        ) != 0
    );
    assert!(daemon.output().contains("sector=8 "), "{}", daemon.output());
}

#[test]
fn a_part_without_size_follows_the_image() {
    let nodes = [
        "file,node-name=f,filename=img",
        "raw,node-name=top,file=f,offset=4096",
    ];
    let (mut daemon, disk) = serve(image(), &nodes, EXPORT);
    assert_eq!(disk.config().capacity.to_native(), (MIB - 4096) as u64 / 512);
    fs::OpenOptions::new()
        .write(true)
        .open(daemon.dir().join("img"))
        .and_then(|image| image.set_len(2 * MIB as u64))
        .expect("extend the image");
    daemon.signal(libc::SIGHUP);
    daemon.wait_for(
        |daemon| daemon.output().contains("disk resized"),
        "see the new size",
    );
    assert_eq!(disk.config().capacity.to_native(), (2 * MIB - 4096) as u64 / 512);
}

/// Writes zeroes over the first half of an image. Returns whether that frees space.
fn zeroes_free_space(nodes: &[&str]) -> bool {
    let (daemon, mut disk) = serve(image(), nodes, EXPORT);
    let path = daemon.dir().join("img");
    for offset in (0..MIB as u64 / 2).step_by(65536) {
        let data = vec![0; 65536];
        assert_eq!(run_op(&mut disk, &Op::Write { offset, data }), 0);
    }
    assert_eq!(run_op(&mut disk, &Op::Flush), 0);
    let content = fs::read(&path).expect("read the image");
    assert!(content[..MIB / 2].iter().all(|byte| *byte == 0));
    assert!((MIB / 2..MIB).all(|at| content[at] == pattern(at)));
    let allocated = fs::metadata(&path).expect("the image").blocks() * 512;
    allocated < MIB as u64 * 3 / 4
}

#[test]
fn zeroes_are_detected_as_in_qemu() {
    let file = "file,node-name=f,filename=img,discard=unmap";
    let with = |options: &str| format!("file,node-name=top,filename=img,{options}");
    let raw = |options: &str| format!("raw,node-name=top,file=f,{options}");
    for (nodes, expected) in [
        (vec![with("discard=unmap,detect-zeroes=unmap")], true),
        (vec![with("discard=unmap,detect-zeroes=on")], false),
        (vec![with("discard=unmap,detect-zeroes=off")], false),
        (
            vec![file.to_owned(), raw("discard=unmap,detect-zeroes=unmap")],
            true,
        ),
        // The node below must allow it, too.
        (
            vec![
                "file,node-name=f,filename=img".to_owned(),
                raw("discard=unmap,detect-zeroes=unmap"),
            ],
            false,
        ),
        // The first node from above decides.
        (
            vec![format!("{file},detect-zeroes=unmap"), raw("detect-zeroes=on")],
            false,
        ),
        (
            vec![format!("{file},detect-zeroes=unmap"), raw("detect-zeroes=off")],
            true,
        ),
    ] {
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        assert_eq!(zeroes_free_space(&nodes), expected, "{nodes:?}");
    }
}

/// Returns whether a disk discards: each node on the way down must allow it.
fn discards(nodes: &[&str]) -> bool {
    let (daemon, mut disk) = serve(image(), nodes, EXPORT);
    let discard = Op::Discard {
        offset: 0,
        len: MIB as u64,
    };
    assert_eq!(run_op(&mut disk, &discard), 0);
    assert_eq!(run_op(&mut disk, &Op::Flush), 0);
    fs::metadata(daemon.dir().join("img"))
        .expect("the image")
        .blocks()
        == 0
}

#[test]
fn discards_need_the_consent_of_each_node() {
    let file = "file,node-name=f,filename=img,discard=unmap";
    assert!(discards(&["file,node-name=top,filename=img,discard=unmap"]));
    assert!(!discards(&["file,node-name=top,filename=img"]));
    assert!(discards(&[file, "raw,node-name=top,file=f,discard=unmap"]));
    assert!(!discards(&[file, "raw,node-name=top,file=f"]));
    // A node that is made with its parent leaves the decision to that.
    assert!(discards(&[
        "raw,node-name=top,discard=unmap,file.driver=file,file.filename=img"
    ]));
}

/// Starts a second daemon beside one that may write. Returns its error.
fn second_reader(dir: &Path, options: &str) -> Result<(), String> {
    let node = format!("file,node-name=top,filename=img,{options}");
    let export = "vhost-user-blk,id=e,node-name=top,addr.type=unix,addr.path=dir/none.sock";
    // The socket cannot be made, which is found out after the lock.
    let exit = run(&["--blockdev", &node, "--export", export], dir);
    match exit.output.contains("in use") {
        true => Err(exit.output),
        false if exit.output.contains("none.sock") => Ok(()),
        false => panic!("{}", exit.output),
    }
}

#[test]
fn force_share_reads_what_another_writes() {
    let (daemon, _disk) = serve(image(), &["file,node-name=top,filename=img"], EXPORT);
    second_reader(daemon.dir(), "read-only=on").expect_err("another process writes");
    second_reader(daemon.dir(), "read-only=on,force-share=on").expect("it was told that others may write");
    let exit = run(
        &[
            "--blockdev",
            "file,node-name=top,filename=img,force-share=on",
            "--export",
            EXPORT,
        ],
        daemon.dir(),
    );
    let refusal = "force-share=on can only be used with read-only images";
    assert!(
        exit.status.code() == Some(2) && exit.output.contains(refusal),
        "{}",
        exit.output
    );
}

#[test]
fn impossible_nodes_are_refused_in_qemus_words() {
    let dir = image();
    for (node, words) in [
        (
            "raw,node-name=top,file=f,offset=2M",
            "Offset (2097152) cannot be greater than size of the containing file (1048576)",
        ),
        (
            "raw,node-name=top,file=f,offset=512,size=1M",
            "has to be smaller or equal to the actual size",
        ),
        (
            "raw,node-name=top,file=f,size=1000",
            "Specified size is not multiple of 512",
        ),
        (
            "raw,node-name=top,file=f,offset=1M",
            "node 'top' has no whole block",
        ),
        (
            "raw,node-name=top,file=f,detect-zeroes=unmap",
            "without setting discard operation to unmap",
        ),
        (
            "raw,node-name=top,file=off",
            "Inactive 'off' can't be a file child of active 'top'",
        ),
    ] {
        let args = [
            "--blockdev",
            "file,node-name=f,filename=img",
            "--blockdev",
            "file,node-name=off,filename=img,active=off",
            "--blockdev",
            node,
            "--export",
            EXPORT,
        ];
        let exit = run(&args, dir.path());
        assert!(
            exit.status.code() == Some(2) && exit.output.contains(words),
            "{node}: {}",
            exit.output
        );
    }
    let direct = [
        "--blockdev",
        "file,node-name=f,filename=img,cache.direct=on",
        "--blockdev",
        "raw,node-name=top,file=f,offset=100",
        "--export",
        EXPORT,
    ];
    let exit = run(&direct, dir.path());
    assert!(
        exit.output.contains("offset 100 is not a multiple of"),
        "{}",
        exit.output
    );
    let large_blocks = [
        "--blockdev",
        "file,node-name=f,filename=img",
        "--blockdev",
        "raw,node-name=top,file=f,size=1536",
        "--export",
        &format!("{EXPORT},logical-block-size=1024"),
    ];
    let exit = run(&large_blocks, dir.path());
    assert!(
        exit.output
            .contains("is not a multiple of the logical block size, 1024 bytes"),
        "{}",
        exit.output
    );
}
