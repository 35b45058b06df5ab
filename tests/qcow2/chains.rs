//! Backing files and data files.

use std::fs;
use std::path::Path;

use testkit::daemon::run;

use super::support::{
    check, compare, connect, create, directory, expected, qemu_img, qemu_io, raw, serve_writable,
};

const FOLLOW: &[&str] = &["--follow-names"];

/// Makes an overlay of `base` with this size.
fn overlay(dir: &Path, name: &str, base: (&str, &str), options: &str, size: &str) {
    let (file, format) = base;
    create(dir, options, &["-b", file, "-F", format, name, size]);
}

/// Returns the error of the daemon for an image.
fn refusal(dir: &Path, options: &[&str]) -> String {
    let args = [
        "--socket-path",
        "s",
        "--blk-file",
        "top",
        "--format",
        "qcow2",
        "--read-only",
    ];
    let exit = run(&[&args, options].concat(), dir);
    assert!(!exit.status.success(), "{}", exit.output);
    exit.output
}

#[test]
fn short_raw_backing_files_are_read() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    for len in [0, 1, 100, 511, 700] {
        fs::write(dir.join("base"), vec![7; len]).expect("write the backing file");
        overlay(dir, "top", ("base", "raw"), "cluster_size=512", "64k");
        qemu_io(dir, "top", &["write -P 1 8k 4k"]);
        let content = expected(dir, "top");
        assert_eq!(content.iter().filter(|byte| **byte == 7).count(), len);
        for more in [&["--follow-names", "--read-only"][..], FOLLOW] {
            let (_daemon, mut frontend) = serve_writable(dir, "top", more);
            compare(&mut frontend, &content);
        }
    }
}

#[test]
fn chains_of_twenty_images_are_read() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    raw(dir, "base", (3 << 20) + 512);
    let mut below = ("base".to_owned(), "raw");
    for number in 0..20 {
        let name = format!("layer{number}");
        let options = [
            "cluster_size=64k",
            "cluster_size=512",
            "extended_l2=on",
            "compat=0.10",
        ][number % 4];
        // Some are smaller than the image below, and some larger.
        let size = ["4M", "3000k", "5M"][number % 3];
        overlay(dir, &name, (&below.0, below.1), options, size);
        let (at, zero) = (number * 130, number * 97 + 11);
        qemu_io(
            dir,
            &name,
            &[
                &format!("write -P {} {at}k 20k", number + 1),
                &format!("write -z {zero}k 9k"),
            ],
        );
        below = (name, "qcow2");
    }
    check(dir, "layer19", FOLLOW);
    check(dir, "layer18", FOLLOW);
}

#[test]
fn backing_files_can_be_named_by_nodes() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    raw(dir, "base", 2 << 20);
    overlay(dir, "middle", ("base", "raw"), "cluster_size=4k", "2M");
    qemu_io(dir, "middle", &["write -P 1 100k 100k"]);
    overlay(dir, "top", ("middle", "qcow2"), "cluster_size=64k", "2M");
    qemu_io(dir, "top", &["write -P 2 150k 100k"]);
    let expected = expected(dir, "top");
    let path = |name: &str| dir.join(name).display().to_string();
    let nodes = [
        format!("file,node-name=base,filename={},read-only=on", path("base")),
        format!(
            "qcow2,node-name=middle,file.driver=file,file.filename={},backing=base,read-only=on",
            path("middle")
        ),
        format!("file,node-name=file,filename={},read-only=on", path("top")),
        "qcow2,node-name=top,file=file,backing=middle,read-only=on".to_owned(),
        "raw,node-name=part,file=top,offset=64k,size=1M,read-only=on".to_owned(),
    ];
    for (node, part) in [
        ("top", 0..expected.len()),
        ("part", 64 << 10..(64 << 10) + (1 << 20)),
    ] {
        let mut args: Vec<&str> = nodes.iter().flat_map(|node| ["--blockdev", node]).collect();
        let export = format!("vhost-user-blk,id=e,node-name={node},addr.type=unix,addr.path=s");
        args.extend(["--export", &export]);
        let (_daemon, mut frontend) = connect(&args);
        compare(&mut frontend, &expected[part]);
    }
    // Without the backing file, what it has reads as zeroes.
    let alone = format!(
        "qcow2,node-name=top,file.driver=file,file.filename={},backing=,read-only=on",
        path("top")
    );
    let export = "vhost-user-blk,id=e,node-name=top,addr.type=unix,addr.path=s";
    let (_daemon, mut frontend) = connect(&["--blockdev", &alone, "--export", export]);
    let mut zeroes = vec![0; 2 << 20];
    // A copy of the whole cluster was made when it was written.
    zeroes[128 << 10..256 << 10].copy_from_slice(&expected[128 << 10..256 << 10]);
    compare(&mut frontend, &zeroes);
}

#[test]
fn names_in_images_are_followed_only_on_request() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    raw(dir, "base", 1 << 20);
    overlay(dir, "top", ("base", "raw"), "cluster_size=64k", "1M");
    let told = refusal(dir, &[]);
    assert!(told.contains("names the backing file 'base'"), "{told}");
    check(dir, "top", FOLLOW);
    // Relative names begin where the image is, not where the daemon is.
    fs::create_dir(dir.join("sub")).expect("make a directory");
    overlay(dir, "sub/top", ("../base", "raw"), "cluster_size=64k", "1M");
    check(dir, "sub/top", FOLLOW);
}

#[test]
fn wrong_backing_files_are_refused_by_name() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    let base = |name: &str, format: &str| {
        let mut args = vec!["-u", "-b", name];
        if !format.is_empty() {
            args.extend(["-F", format]);
        }
        // An image without the format of its backing file cannot be made any more, so the name is removed later.
        create(dir, "", &[&args[..], &["top", "1M"]].concat());
    };
    for (name, format, words) in [
        ("missing", "raw", "cannot open"),
        ("./top", "qcow2", "is its own backing file"),
        ("nbd://localhost/x", "raw", "is not the path of a file"),
        (
            "json:{\"driver\":\"null-co\"}",
            "raw",
            "is not the path of a file",
        ),
        ("/dev/null", "raw", "/dev/null"),
        ("missing", "vmdk", "format 'vmdk'"),
    ] {
        base(name, format);
        let told = refusal(dir, FOLLOW);
        assert!(told.contains(words), "{name}: {told}");
    }
    // The type of the extension that has the format becomes one that is unknown, and so ignored.
    base("missing", "raw");
    let mut image = fs::read(dir.join("top")).expect("read");
    let at = image
        .windows(4)
        .position(|bytes| bytes == [0xe2, 0x79, 0x2a, 0xca])
        .expect("the format");
    image[at] = 0xff;
    fs::write(dir.join("top"), image).expect("write");
    let told = refusal(dir, FOLLOW);
    assert!(
        told.contains("does not tell the format of its backing file"),
        "{told}"
    );
}

#[test]
fn loops_and_deep_chains_are_refused() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    for (name, base) in [("top", "second"), ("second", "third"), ("third", "top")] {
        create(dir, "", &["-u", "-b", base, "-F", "qcow2", name, "1M"]);
    }
    let told = refusal(dir, FOLLOW);
    assert!(told.contains("is its own backing file"), "{told}");
    for number in 0..70 {
        let (name, base) = (format!("d{number}"), format!("d{}", number + 1));
        create(dir, "", &["-u", "-b", &base, "-F", "qcow2", &name, "1M"]);
    }
    fs::rename(dir.join("d0"), dir.join("top")).expect("rename");
    let told = refusal(dir, FOLLOW);
    assert!(told.contains("more than 63 backing files"), "{told}");
}

#[test]
fn data_files_are_read() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    raw(dir, "source.raw", 3 << 20);
    for options in [
        "data_file=data",
        "data_file=data,data_file_raw=on",
        "data_file=data,extended_l2=on",
    ] {
        let args = ["convert", "-n", "-f", "raw", "-O", "qcow2", "source.raw", "top"];
        create(dir, options, &["top", "3M"]);
        qemu_img(dir, &args);
        let told = refusal(dir, &[]);
        assert!(told.contains("names the data file 'data'"), "{told}");
        check(dir, "top", FOLLOW);
        let expected = expected(dir, "top");
        let path = |name: &str| dir.join(name).display().to_string();
        let data = format!("file,node-name=data,filename={},read-only=on", path("data"));
        let top = format!(
            "qcow2,node-name=top,file.driver=file,file.filename={},data-file=data,read-only=on",
            path("top")
        );
        let export = "vhost-user-blk,id=e,node-name=top,addr.type=unix,addr.path=s";
        let (_daemon, mut frontend) = connect(&["--blockdev", &data, "--blockdev", &top, "--export", export]);
        compare(&mut frontend, &expected);
    }
}
