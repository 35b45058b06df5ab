//! Images and options that are refused, each by name.

use std::fs;
use std::path::Path;

use testkit::daemon::run;
use testkit::frontend::Op;

use super::support::{create, directory, qemu_img, qemu_io, serve, try_run};

fn refusal(dir: &Path, args: &[&str]) -> String {
    let exit = run(
        &[&["--socket-path", "s", "--blk-file", "image"], args].concat(),
        dir,
    );
    assert!(!exit.status.success(), "{}", exit.output);
    exit.output
}

const READ: &[&str] = &["--format", "qcow2", "--read-only"];

#[test]
fn formats_are_never_guessed() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    create(dir, "", &["image", "1M"]);
    let told = refusal(dir, &[]);
    assert!(
        told.contains("looks like a qcow2 image") && told.contains("--format qcow2"),
        "{told}"
    );
    fs::write(dir.join("image"), vec![0; 1 << 20]).expect("write");
    let told = refusal(dir, READ);
    assert!(told.contains("has no qcow2 header"), "{told}");
}

#[test]
fn missing_files_are_named_with_their_image() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    let told = refusal(dir, READ);
    assert!(
        told.contains("'qemu-img create -f qcow2 image 10G' makes one"),
        "{told}"
    );
    for format in ["raw", "qcow2"] {
        qemu_img(dir, &["create", "-q", "-f", format, "base", "1M"]);
        create(dir, "", &["-b", "base", "-F", format, "image"]);
        fs::remove_file(dir.join("base")).expect("remove the backing file");
        let told = refusal(dir, &["--format", "qcow2", "--follow-names"]);
        assert!(
            told.contains(
                "image names 'base': cannot open base: No such file or directory; put that file back"
            ) && !told.contains("truncate"),
            "{told}"
        );
        fs::remove_file(dir.join("image")).expect("remove the image");
    }
}

#[test]
fn empty_files_are_no_images() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    for len in [0, 100, 1000] {
        fs::write(dir.join("image"), vec![0; len]).expect("write");
        let told = refusal(dir, READ);
        assert!(
            told.contains("has no qcow2 header") && !told.contains("truncate"),
            "{told}"
        );
    }
}

#[test]
fn large_images_of_version_2_are_not_called_unclosed() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    let options = "compat=0.10,cluster_size=512";
    create(dir, options, &["image", "1M"]);
    let image = fs::File::options().write(true).open(dir.join("image"));
    let image = image.expect("open the image");
    // More clusters than are counted. The file is sparse.
    image
        .set_len((512 << 28) + (1 << 20))
        .expect("make the file longer");
    let told = refusal(dir, &["--format", "qcow2"]);
    assert!(
        told.contains("version 2") && told.contains("compat=1.1"),
        "{told}"
    );
    assert!(!told.contains("was not closed"), "{told}");
}

#[test]
fn raw_images_name_no_files() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    let told = refusal(dir, &["--format", "raw", "--follow-names"]);
    assert!(told.contains("--follow-names"), "{told}");
}

#[test]
fn encrypted_images_are_refused() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    let secret = "secret,id=s,data=abc";
    let luks = ["create", "--object", secret, "-q", "-f", "qcow2"];
    let options = [
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        "image",
        "1M",
    ];
    if try_run(dir, "qemu-img", &[&luks[..], &options].concat()).is_err() {
        return testkit::skip::skipped("qemu-img cannot encrypt");
    }
    let told = refusal(dir, READ);
    assert!(told.contains("encrypted (LUKS"), "{told}");
}

#[test]
fn features_that_are_unknown_are_refused_by_name() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    create(dir, "", &["image", "1M"]);
    let image = fs::read(dir.join("image")).expect("read");
    for (byte, value, words) in [
        (72, 0x80, "bit 63"),
        (78, 0x01, "bit 8"),
        (35, 1, "AES"),
        (35, 7, "crypt_method 7"),
        (7, 4, "version 4"),
        (23, 8, "2^8"),
        (23, 22, "2^22"),
        (99, 7, "refcount order"),
        (103, 9, "header length"),
        (24, 0x7f, "L1 table of more than 32 MiB"),
        (39, 0, "L1 table is too small"),
        (47, 1, "L1 table is wrong"),
        (79, 8, "incompatible feature bit 3"),
    ] {
        let mut wrong = image.clone();
        wrong[byte] = value;
        fs::write(dir.join("image"), wrong).expect("write");
        let told = refusal(dir, READ);
        assert!(told.contains(words), "{words}: {told}");
    }
}

#[test]
fn corrupt_tables_fail_the_requests_that_need_them() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    qemu_img(
        dir,
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "cluster_size=4k",
            "image",
            "8M",
        ],
    );
    // A table of 4 KiB maps 2 MiB.
    qemu_io(dir, "image", &["write -P 1 0 4M"]);
    let mut image = fs::read(dir.join("image")).expect("read");
    let word = |image: &[u8], at: usize| u64::from_be_bytes(image[at..at + 8].try_into().expect("8 bytes"));
    let l1 = usize::try_from(word(&image, 40)).expect("small");
    let second = l1 + 8;
    let table = word(&image, l1) & !(1 << 63);
    // The second L2 table is past the end, and the second cluster has a wrong offset. The corrupt bit is set.
    image[second..second + 8].copy_from_slice(&(1_u64 << 40).to_be_bytes());
    let entry = usize::try_from(table).expect("small") + 8;
    image[entry + 6] |= 2;
    image[79] |= 2;
    fs::write(dir.join("image"), image).expect("write");
    let (_daemon, mut disk) = serve(dir, "image", &[]);
    let mut read = |offset, len| disk.queue(0).run(&Op::Read { offset, len }).ret;
    assert_eq!(read(0, 4096), 0);
    assert_ne!(read(4096, 4096), 0);
    assert_eq!(read(8192, 65536), 0);
    assert_ne!(read(2 << 20, 512), 0);
    assert_eq!(read(4 << 20, 512), 0);
}
