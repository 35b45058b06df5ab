//! Each mistake in the long form of the command line is refused with one line that names the option and the parameter.

use std::path::Path;

use tempfile::TempDir;
use testkit::daemon::run;

use super::exports::images;

/// What is told, and the exit status.
type Told<'a> = (&'a str, i32);

const NODE: [&str; 2] = ["--blockdev", "file,node-name=a,filename=a"];
const EXPORT: &str = "vhost-user-blk,id=e,node-name=a,addr.type=unix,addr.path=s,writable=on";

fn directory() -> TempDir {
    images("ab")
}

fn assert_refused(dir: &Path, args: &[&str], (told, status): Told<'_>) {
    let exit = run(args, dir);
    assert_eq!(exit.output.lines().count(), 1, "{args:?}: {}", exit.output);
    assert!(exit.output.contains(told), "{args:?}: {}", exit.output);
    assert_eq!(exit.status.code(), Some(status), "{args:?}: {}", exit.output);
    assert!(!dir.join("s").exists(), "{args:?} left a socket");
}

#[test]
fn mistakes_in_objects_are_named() {
    let dir = directory();
    for (object, told) in [
        ("iothread", "--object iothread: Parameter 'id' is missing"),
        ("iothread,id=1", "'1' is not a name"),
        ("rng,id=r", "Parameter 'qom-type' does not accept value 'rng'"),
        (
            "iothread,id=i,limits.iops-total=1",
            "Parameter 'limits' is unexpected",
        ),
        (
            "throttle-group,id=t,limits.iops=1",
            "Parameter 'limits.iops' is unexpected",
        ),
        ("throttle-group,id=t,limits.iops-total-max=1", "iops-total"),
    ] {
        assert_refused(dir.path(), &["--object", object], (told, 2));
    }
}

#[test]
fn mistakes_in_nodes_are_named() {
    let dir = directory();
    let nodes: [(&str, Told<'_>); 10] = [
        (
            "vmdk,node-name=q,filename=a",
            ("Parameter 'driver' does not accept value 'vmdk'", 2),
        ),
        ("file,node-name=q", ("Parameter 'filename' is missing", 2)),
        ("file,filename=a", ("'node-name' must be specified", 2)),
        (
            "file,node-name=q,filename=a,nosuch=1",
            ("Parameter 'nosuch' is unexpected", 2),
        ),
        (
            "file,node-name=q,filename=a,read-only=maybe",
            ("Parameter 'read-only' expects", 2),
        ),
        (
            "file,node-name=q,filename=missing",
            ("--blockdev: cannot open missing: ", 1),
        ),
        (
            "host_device,node-name=q,filename=a",
            ("'host_device' driver requires 'a'", 2),
        ),
        (
            "raw,node-name=q,file=nosuch",
            ("Cannot find node-name='nosuch'", 2),
        ),
        (
            "throttle,node-name=q,file=a,throttle-group=no",
            ("Throttle group 'no'", 2),
        ),
        (
            "file,node-name=q,filename=a,detect-zeroes=unmap",
            ("without setting discard operation to unmap", 2),
        ),
    ];
    for (node, told) in nodes {
        assert_refused(dir.path(), &["--blockdev", node], told);
    }
    let told = ("Duplicate nodes with node-name='a'", 2);
    assert_refused(dir.path(), &[NODE, NODE].concat(), told);
}

#[test]
fn mistakes_in_exports_are_named() {
    let dir = directory();
    let parameters: [(&str, Told<'_>); 10] = [
        (
            "num-queues=0",
            ("Parameter 'num-queues' expects a number from 1 to 256", 2),
        ),
        (
            "num-queues=2000",
            ("Parameter 'num-queues' expects a number from 1 to 256", 2),
        ),
        ("num-queues=70000", ("Parameter 'num-queues' expects", 2)),
        ("iothread=nosuch", ("iothread 'nosuch' not found", 2)),
        (
            "iothread=nosuch,fixed-iothread=on",
            ("iothread 'nosuch' not found", 2),
        ),
        ("logical-block-size=1000", ("logical block size 1000", 2)),
        ("addr.type=inet", ("Only socket address types 'unix' and 'fd'", 2)),
        (
            "addr.path=nowhere/s",
            (
                "there is no directory nowhere; correct that, or choose another addr.path",
                1,
            ),
        ),
        (
            "addr.mode=0999",
            ("Parameter 'addr.mode' expects an octal number", 2),
        ),
        (
            "queue-size=3",
            ("Parameter 'queue-size' expects a power of two", 2),
        ),
    ];
    for (parameter, told) in parameters {
        let export = format!("{EXPORT},{parameter}");
        let args = [&NODE[..], &["--export", &export]].concat();
        assert_refused(dir.path(), &args, told);
    }
    let args = [
        &NODE[..],
        &[
            "--export",
            "vhost-user-blk,id=e,node-name=a,addr.type=fd,addr.str=2",
        ],
    ];
    let told = "0, 1 and 2 are standard input, output and error: pass the socket as 3 or above";
    assert_refused(dir.path(), &args.concat(), (told, 2));
    let told = ("Parameter 'type' does not accept value 'nbd'", 2);
    assert_refused(dir.path(), &["--export", "nbd,id=e,node-name=a"], told);
}

#[test]
fn exports_that_conflict_are_refused() {
    let dir = directory();
    let other = EXPORT.replace("=s,", "=s2,");
    let twin = other.replace("id=e", "id=f");
    let reader = other
        .replace("id=e", "id=r")
        .replace("writable=on", "writable=off");
    let same_image = twin.replace("node-name=a", "node-name=b");
    let same_socket = same_image.replace("=s2,", "=./s,");
    let writable = "Node 'a' has a writable export already: 'e'";
    let pairs: [(&str, &str, &str); 4] = [
        (EXPORT, &other, "Block export id 'e' is already in use"),
        (EXPORT, &twin, writable),
        (EXPORT, &reader, writable),
        (
            &reader,
            EXPORT,
            "Node 'a' has an export already, 'r': only one that is alone may be writable",
        ),
    ];
    for (first, second, told) in pairs {
        let args = [&NODE[..], &["--export", first, "--export", second]].concat();
        assert_refused(dir.path(), &args, (told, 2));
    }
    for (node, second, told) in [
        (
            "file,node-name=b,filename=./a",
            &same_image,
            "./a is in use: another disk of this process uses it; give it one export",
        ),
        (
            "file,node-name=b,filename=b",
            &same_socket,
            "--export: this process serves socket ./s already; choose another addr.path",
        ),
    ] {
        let more = ["--blockdev", node, "--export", EXPORT, "--export", second];
        assert_refused(dir.path(), &[&NODE[..], &more].concat(), (told, 1));
    }
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let dir = directory();
    let cases: [(&[&str], &str); 5] = [
        (&["--export", EXPORT], "Cannot find node-name='a'"),
        (
            &[
                "--blockdev",
                "file,node-name=a,filename=a,read-only=on",
                "--export",
                EXPORT,
            ],
            "Cannot export read-only node 'a' as writable",
        ),
        (
            &[NODE[0], NODE[1], "--export", EXPORT, "--num-queues", "4"],
            "--num-queues is for the one disk of --blk-file",
        ),
        (&["-T", "vhost*"], "--trace"),
        (
            &["--nbd-server", "addr.type=unix,addr.path=n"],
            "this daemon serves vhost-user-blk only",
        ),
    ];
    for (args, told) in cases {
        assert_refused(dir.path(), args, (told, 2));
    }
}
