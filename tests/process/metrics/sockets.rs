//! The sockets for metrics: TCP and Unix, their rights, and addresses that cannot be used.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;

use testkit::daemon::{Daemon, run};
use testkit::metrics::scrape;
use testkit::skip::skipped;
use testkit::target::image;

use super::{addresses, connect, connect_to, start};

#[test]
fn metrics_are_at_every_address() {
    let v6 = TcpListener::bind("[::1]:0").is_ok();
    let mut options = vec!["--metrics", "127.0.0.1:0", "--metrics", "unix:metrics.sock"];
    match v6 {
        true => options.extend(["--metrics", "[::1]:0"]),
        false => skipped("no IPv6"),
    }
    let mut daemon = Daemon::start(&image(), &options);
    let addresses = addresses(&daemon);
    assert_eq!(addresses.len(), 1 + usize::from(v6));
    for address in addresses {
        assert_ne!(address.port(), 0);
        assert!(!scrape(connect_to(address)).families.is_empty());
    }
    assert!(!scrape(connect(&daemon)).families.is_empty());
    let socket = daemon.dir().join("metrics.sock");
    assert_eq!(fs::metadata(&socket).expect("the socket").mode() & 0o777, 0o600);
    let exit = daemon.terminate();
    assert!(exit.status.success(), "{}", exit.output);
    assert!(!socket.exists());
}

#[test]
fn nothing_listens_without_the_option() {
    let daemon = Daemon::start(&image(), &[]);
    assert!(!daemon.output().contains("metrics"));
    let names = testkit::process::threads(daemon.pid());
    assert!(names.iter().all(|thread| thread["Name"] != "metrics"));
}

#[test]
fn unix_sockets_have_the_mode_and_group_asked_for() {
    let group = fs::metadata("/proc/self")
        .expect("our own process")
        .gid()
        .to_string();
    let option = format!("unix:m.sock,mode=0660,group={group}");
    let daemon = Daemon::start(&image(), &["--metrics", &option]);
    let metadata = fs::metadata(daemon.dir().join("m.sock")).expect("the socket");
    assert_eq!(
        (metadata.mode() & 0o777, metadata.gid().to_string()),
        (0o660, group)
    );
}

#[test]
fn a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().expect("make a directory");
    fs::write(dir.path().join("disk.img"), image()).expect("write an image");
    drop(UnixListener::bind(dir.path().join("metrics.sock")).expect("listen"));
    let daemon = Daemon::start_in(dir, &super::UNIX);
    assert!(!scrape(connect(&daemon)).families.is_empty());
}

#[test]
fn addresses_that_cannot_be_used_are_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("listen");
    let taken: SocketAddr = taken.local_addr().expect("an address");
    let dir = tempfile::tempdir().expect("make a directory");
    fs::write(dir.path().join("disk.img"), image()).expect("write an image");
    let _listening = UnixListener::bind(dir.path().join("used")).expect("listen");
    let taken = taken.to_string();
    // Reserved for documentation: no machine has it.
    let foreign = "192.0.2.1:9108";
    for (address, status, words) in [
        (taken.as_str(), 1, vec![taken.as_str(), "choose another port"]),
        (foreign, 1, vec![foreign, "choose an address of this machine"]),
        (
            "unix:used",
            1,
            vec!["socket used is in use", "choose another --metrics"],
        ),
        (
            "unix:disk.img",
            1,
            vec!["not a socket", "choose another --metrics"],
        ),
        (
            "unix:no/m.sock",
            1,
            vec!["there is no directory no", "choose another --metrics"],
        ),
        (
            "unix:m.sock,group=no-such-group",
            2,
            vec!["--metrics", "no-such-group"],
        ),
        ("localhost:9108", 2, vec!["--metrics", "127.0.0.1:9108"]),
    ] {
        let args = [
            "--socket-path",
            "s",
            "--blk-file",
            "disk.img",
            "--metrics",
            address,
        ];
        let exit = run(&args, dir.path());
        assert_eq!(exit.status.code(), Some(status), "{address}: {}", exit.output);
        for word in words {
            assert!(exit.output.contains(word), "{address}: {}", exit.output);
        }
        assert!(exit.output.contains("--metrics"), "{address}: {}", exit.output);
        assert!(
            !dir.path().join("s").exists(),
            "{address}: the disk's socket stays"
        );
    }
    drop(start(&[]));
}
