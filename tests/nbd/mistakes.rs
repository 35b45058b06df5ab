//! Each mistake gives one clear line.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use testkit::daemon::{Daemon, run};
use testkit::process::Process;

use crate::server::{DISK, URI, connect, directory, has, long_form, nbdkit, qemu_nbd, read};

/// Starts a daemon that must end with one line about an error. Returns the line.
pub(crate) fn refused(args: &[&str], dir: &Path) -> String {
    refused_with(args, dir).1
}

/// Returns the exit status as well.
fn refused_with(args: &[&str], dir: &Path) -> (i32, String) {
    let exit = run(args, dir);
    let line = exit.refusal().to_owned();
    let status = exit.status.code().expect("it was not killed");
    (status, line)
}

#[test]
fn trouble_with_a_server_is_no_wrong_command_line() {
    let dir = directory(512);
    let dir = dir.path();
    // Nobody listens: as after a reboot, before the server has started. The next start may succeed.
    let uri = "nbd+unix:///?socket=nobody.sock";
    let (status, told) = refused_with(&["--socket-path", DISK, "--blk-file", uri], dir);
    assert_eq!(status, 1, "{told}");
    let (status, told) = refused_with(&["--socket-path", DISK, "--blk-file", URI, "--direct"], dir);
    assert_eq!(status, 2, "{told}");
}

fn short(uri: &str, more: &[&str], dir: &Path) -> String {
    refused(&[&["--socket-path", DISK, "--blk-file", uri], more].concat(), dir)
}

fn long(node: &str, dir: &Path) -> String {
    let args = long_form(node);
    refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), dir)
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let dir = directory(512);
    let dir = dir.path();
    for (uri, more, why) in [
        (
            "nbds://host/x",
            &[][..],
            "TLS needs --blockdev driver=nbd with tls-creds",
        ),
        ("nbd+unix:///x", &[], "a path is missing"),
        (
            "nbd+tcp://host/x",
            &[],
            "nbd+tcp is unknown: use nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH",
        ),
        ("nbd+vsock://2/x", &[], "nbd+vsock is unknown"),
        ("nbd://host:99999/", &[], "port"),
        (URI, &["--aio=threads"], "no engine"),
        (URI, &["--direct"], "--direct"),
        (URI, &["--format=qcow2"], "--format qcow2"),
        (URI, &["--format=qcow2", "--follow-names"], "--format qcow2"),
        (URI, &["--follow-names"], "--follow-names"),
        ("nbd+unix:///?socket=/none/here", &[], "No such file or directory"),
        ("nbd:host:10809", &[], "write nbd://host:10809/ ("),
        (
            "nbd:unix:nbd.sock:exportname=disk",
            &[],
            "write nbd+unix:///disk?socket=nbd.sock (",
        ),
        (
            &format!("nbd+unix:///?socket=/{}", "p".repeat(107)),
            &[],
            "longer than 107 bytes",
        ),
        (
            &format!("nbd://host/{}", "e".repeat(4097)),
            &[],
            "longer than 4096 bytes",
        ),
    ] {
        let told = short(uri, more, dir);
        assert!(told.contains(why), "{told}");
    }
    for (node, why) in [
        (",filename=x", "filename"),
        (",aio=threads", "aio"),
        (",server.host=h", "server.path"),
        (",reconnect-delay=x", "reconnect-delay"),
    ] {
        let told = long(node, dir);
        assert!(told.contains(why), "{told}");
    }
}

#[test]
fn a_missing_server_is_named() {
    let dir = directory(512);
    let told = short(URI, &[], dir.path());
    assert!(
        told.contains("nbd.sock: cannot connect: No such file or directory"),
        "{told}"
    );
    drop(UnixListener::bind(dir.path().join("nbd.sock")).expect("a stale socket"));
    let told = short(URI, &[], dir.path());
    assert!(
        told.contains("nbd.sock: cannot connect: Connection refused"),
        "{told}"
    );
    // Not before the server is there or the time is over.
    let told = long(",open-timeout=1", dir.path());
    assert!(told.contains("Connection refused"), "{told}");
}

#[test]
fn a_signal_ends_the_wait_for_a_server() {
    let dir = directory(512);
    let server = UnixListener::bind(dir.path().join("nbd.sock")).expect("listen");
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut command = Command::new(testkit::daemon::binary());
        command
            .args(long_form(",open-timeout=300"))
            .current_dir(dir.path());
        let (mut daemon, ()) = Process::start("the daemon", &mut command, |_| ());
        // This server never answers.
        let _silent = server.accept().expect("a connection");
        let sent = Instant::now();
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(1));
        assert!(sent.elapsed() < Duration::from_secs(5), "{:?}", sent.elapsed());
    }
}

#[test]
fn the_open_timeout_covers_the_handshake() {
    let dir = directory(512);
    // This server never answers.
    let _server = UnixListener::bind(dir.path().join("nbd.sock")).expect("listen");
    let begin = Instant::now();
    let told = long(",open-timeout=1", dir.path());
    assert!(told.contains("the server does not answer"), "{told}");
    let took = begin.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(5),
        "{took:?}"
    );
}

#[test]
fn refusals_of_real_servers_are_named() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(1 << 20);
    let _server = qemu_nbd(dir.path(), &["-r"]);
    let told = short("nbd+unix:///other?socket=nbd.sock", &[], dir.path());
    assert!(told.contains("the server has no export 'other'"), "{told}");
    let told = short("nbd+unix:///two%0Alines?socket=nbd.sock", &[], dir.path());
    assert!(told.contains(r"the server has no export 'two\nlines'"), "{told}");
    let told = short(URI, &[], dir.path());
    assert!(told.contains("export 'disk' is read-only there"), "{told}");
}

/// Starts a server whose disk begins or ends like this.
fn server_with(dir: &Path, header: &[u8], footer: &[u8]) -> Process {
    let mut disk = vec![0; 1 << 20];
    disk[..header.len()].copy_from_slice(header);
    let end = disk.len() - 512;
    disk[end..end + footer.len()].copy_from_slice(footer);
    fs::write(dir.join("disk.img"), disk).expect("write the image");
    qemu_nbd(dir, &[])
}

#[test]
fn images_of_another_format_are_refused() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(1 << 20);
    let dir = dir.path();
    for (header, footer, name) in [
        (&b"QFI\xfb\0\0\0\x03"[..], &b""[..], "qcow2"),
        (b"", b"conectix", "VHD"),
    ] {
        let _server = server_with(dir, header, footer);
        let told = short(URI, &[], dir);
        assert!(told.contains(&format!("looks like a {name} image")), "{told}");
        assert!(
            told.contains("qemu-nbd -f FORMAT") && told.contains("add --format raw"),
            "{told}"
        );
    }
}

#[test]
fn an_image_of_another_format_is_served_as_raw_if_that_is_said() {
    if !has("qemu-nbd") {
        return;
    }
    let header = b"QFI\xfb\0\0\0\x03";
    for args in [
        ["--socket-path", DISK, "--blk-file", URI, "--format=raw"]
            .map(str::to_owned)
            .to_vec(),
        long_form(""),
    ] {
        let dir = directory(1 << 20);
        let _server = server_with(dir.path(), header, b"");
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let daemon = Daemon::start_with(dir, &args);
        let first = read(&mut connect(&daemon, 1, 16), 0).expect("read");
        assert!(first.starts_with(header));
        let told = "the disk has a qcow2 header and is served as raw data";
        assert!(daemon.output().contains(told), "{}", daemon.output());
    }
}

#[test]
fn several_iothreads_need_multi_conn() {
    if !has("nbdkit") {
        return;
    }
    let dir = directory(1 << 20);
    let options = ["--filter=multi-conn", "memory", "1M", "multi-conn-mode=disable"];
    let _server = nbdkit(dir.path(), &options);
    let told = short(URI, &["--iothreads=2", "--num-queues=2"], dir.path());
    assert!(told.contains("multi-conn"), "{told}");
}

#[test]
fn old_and_foreign_servers_are_named() {
    let dir = directory(512);
    let listener = UnixListener::bind(dir.path().join("nbd.sock")).expect("a socket");
    let greetings: [(&[u8], &str); 3] = [
        (b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53", "old server"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "not an NBD server"),
        (b"NBDMAGIC", "closed the connection"),
    ];
    let says = greetings.map(|(says, _)| says.to_vec());
    let server = thread::spawn(move || {
        for says in says {
            let (mut client, _) = listener.accept().expect("a client");
            client.write_all(&says).expect("speak");
        }
    });
    for (_, why) in greetings {
        let told = short(URI, &[], dir.path());
        assert!(told.contains(why), "{told}");
    }
    server.join().expect("the server");
}

#[test]
fn old_handshakes_of_nbdkit_are_named() {
    if !has("nbdkit") {
        return;
    }
    let dir = directory(512);
    let _server = nbdkit(dir.path(), &["--oldstyle", "memory", "1M"]);
    let told = short(URI, &[], dir.path());
    assert!(told.contains("old server"), "{told}");
}
