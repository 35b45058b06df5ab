//! Encrypted connections (x509).

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use serde_json::json;
use testkit::certificates::Authority;
use testkit::daemon::Daemon;
use testkit::frontend::Op;
use testkit::process::Process;
use testkit::qmp::Qmp;

use crate::data::{verify, verify_two_queues};
use crate::killed::survives;
use crate::mistakes::refused;
use crate::server::{
    BLOCK, DISK, connect, directory, has, image, long_form, qemu_nbd, qemu_nbd_on_tcp, read, start_after,
    write,
};

const MIB: u64 = 1 << 20;
/// The node option for the credentials, and the object before.
const NODE: &str = ",tls-creds=tls0,tls-hostname=localhost";
const OBJECT: [&str; 2] = ["--object", "tls-creds-x509,id=tls0,dir=tls,endpoint=client"];
/// The directory with all files.
const FILES: &str = "tls";

/// Makes the files for a server and a client in a directory.
fn fill(dir: &Path) -> Authority {
    let authority = Authority::new();
    authority.fill(&dir.join(FILES), &["localhost", "127.0.0.1"]);
    authority
}

/// The options of a server that has its files in `files`, and asks clients for a certificate. It does not look whether its
/// own one is right.
fn server_options(dir: &Path, files: &str) -> [String; 3] {
    let files = dir.join(files).display().to_string();
    [
        "--object".to_owned(),
        format!("tls-creds-x509,id=s,dir={files},endpoint=server,verify-peer=on,sanity-check=off"),
        "--tls-creds=s".to_owned(),
    ]
}

/// Starts qemu-nbd that demands TLS.
fn server(dir: &Path, files: &str) -> Process {
    let options = server_options(dir, files);
    qemu_nbd(dir, &options.each_ref().map(String::as_str))
}

fn contents(daemon: &Daemon) -> Vec<u8> {
    fs::read(image(daemon)).expect("read the image")
}

#[test]
fn an_encrypted_disk_keeps_what_the_guest_writes() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(4 * MIB);
    fill(dir.path());
    let _server = server(dir.path(), FILES);
    let daemon = start_after(dir, &OBJECT, NODE, &["--sandbox", "auto"]);
    let mut frontend = connect(&daemon, 1, 16);
    verify(&mut frontend, || contents(&daemon));
}

#[test]
fn the_host_is_checked_over_tcp() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(4 * MIB);
    fill(dir.path());
    let options = server_options(dir.path(), FILES);
    let (_server, port) = qemu_nbd_on_tcp(dir.path(), &options.each_ref().map(String::as_str));
    let args = |name: &str| {
        let node = format!(
            "driver=nbd,node-name=n,export=disk,server.type=inet,server.host=127.0.0.1,server.port={port},tls-creds=tls0{name}"
        );
        let export = format!("vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={DISK},writable=on");
        [OBJECT[0], OBJECT[1], "--blockdev", &node, "--export", &export].map(str::to_owned)
    };
    let told = refused(
        &args(",tls-hostname=other").each_ref().map(String::as_str),
        dir.path(),
    );
    assert!(
        told.contains("its certificate is not for 'other' but for"),
        "{told}"
    );
    let args = args("");
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args.extend(["--sandbox", "auto"]);
    let daemon = Daemon::start_with(dir, &args);
    let mut frontend = connect(&daemon, 1, 16);
    verify(&mut frontend, || contents(&daemon));
}

#[test]
fn iothreads_have_an_encrypted_connection_each() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(4 * MIB);
    fill(dir.path());
    let options = server_options(dir.path(), FILES);
    let _server = qemu_nbd(
        dir.path(),
        &[&options.each_ref().map(String::as_str)[..], &["-e", "4"]].concat(),
    );
    let node = format!("driver=nbd,node-name=n,export=disk,server.type=unix,server.path=nbd.sock{NODE}");
    let export = format!(
        "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={DISK},writable=on,num-queues=2,iothread.0=a,iothread.1=b"
    );
    let args = [
        "--object",
        "iothread,id=a",
        "--object",
        "iothread,id=b",
        "--blockdev",
        &node,
        "--export",
        &export,
        "--sandbox",
        "auto",
    ];
    let daemon = Daemon::start_with(dir, &[&OBJECT[..], &args].concat());
    verify_two_queues(&daemon);
}

#[test]
fn a_killed_daemon_loses_nothing_over_tls() {
    if has("qemu-nbd") {
        survives(20, NODE, &OBJECT, |dir| {
            fill(dir);
            server(dir, FILES)
        });
    }
}

#[test]
fn a_killed_server_is_reached_again_over_tls() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    fill(dir.path());
    let mut running = server(dir.path(), FILES);
    let node = format!("{NODE},reconnect-delay=100");
    let daemon = start_after(dir, &OBJECT, &node, &["--sandbox", "auto"]);
    let mut frontend = connect(&daemon, 1, 16);
    for round in 1..10_u8 {
        for slot in 0..16 {
            let (offset, data) = (slot * BLOCK as u64, vec![round; BLOCK]);
            frontend.queue(0).submit(&Op::Write { offset, data }, 0);
        }
        frontend.queue(0).kick();
        running.signal(libc::SIGKILL);
        running.wait();
        running = server(daemon.dir(), FILES);
        assert!(frontend.queue(0).drain().iter().all(|done| done.ret == 0));
        assert!(contents(&daemon)[..16 * BLOCK].iter().all(|byte| *byte == round));
    }
}

#[test]
fn the_end_of_a_server_is_noticed_without_requests() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    fill(dir.path());
    let mut running = server(dir.path(), FILES);
    let mut daemon = start_after(dir, &OBJECT, NODE, &["--sandbox", "auto"]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    running.signal(libc::SIGKILL);
    running.wait();
    let told = |what: &'static str| move |daemon: &Daemon| daemon.output().contains(what);
    daemon.wait_for(told("lost the connection to the server"), "notice it");
    running = server(daemon.dir(), FILES);
    daemon.wait_for(told("connected to the server"), "connect again");
    assert_eq!(read(&mut frontend, 0), Ok(vec![1; BLOCK]));
    drop(running);
}

#[test]
fn a_silent_server_does_not_keep_an_encrypted_disk() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    fill(dir.path());
    let server = server(dir.path(), FILES);
    let node = format!("{NODE},reconnect-delay=100");
    let mut daemon = start_after(dir, &OBJECT, &node, &[]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    server.signal(libc::SIGSTOP);
    let data = vec![2; BLOCK];
    frontend.queue(0).submit(&Op::Write { offset: 0, data }, 0);
    frontend.queue(0).kick();
    drop(frontend);
    let told = "the disk has to stop";
    daemon.wait_for(|daemon| daemon.output().contains(told), "give the request up");
    server.signal(libc::SIGCONT);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 9), 0);
    assert_eq!(read(&mut frontend, 0), Ok(vec![9; BLOCK]));
}

/// Starts a daemon on the server in a directory, which it must refuse with one line. `object` are further properties of
/// the credentials.
fn told(dir: &Path, files: &str, object: &str, node: &str) -> String {
    let object = format!("tls-creds-x509,id=tls0,dir={files}{object}");
    let args = long_form(node);
    let args: Vec<&str> = ["--object", &object]
        .into_iter()
        .chain(args.iter().map(String::as_str))
        .collect();
    refused(&args, dir)
}

#[test]
fn wrong_credentials_are_named() {
    let dir = directory(512);
    let authority = fill(dir.path());
    let at = |name: &str| dir.path().join(name);
    Authority::new().trust(&at("lonely"));
    authority.certify(&at("lonely"), "client", &["x"], 2090);
    fs::remove_file(at("lonely/client-key.pem")).expect("remove the key");
    authority.trust(&at("foreign-key"));
    authority.certify(&at("foreign-key"), "client", &["x"], 2090);
    fs::copy(at("tls/client-key.pem"), at("foreign-key/client-key.pem")).expect("copy a key");
    authority.trust(&at("damaged"));
    fs::write(at("damaged/ca-cert.pem"), "none").expect("write a file");
    fs::create_dir(at("empty")).expect("make a directory");
    for (files, object, node, why) in [
        ("none", "", NODE, "directory none of tls-creds-x509 'tls0'"),
        ("empty", "", NODE, "cannot read empty/ca-cert.pem: No such file"),
        ("damaged", "", NODE, "ca-cert.pem has no certificate"),
        (
            "lonely",
            "",
            NODE,
            "cannot read lonely/client-key.pem: No such file",
        ),
        (
            "foreign-key",
            "",
            NODE,
            "the private key is not the key of this certificate",
        ),
        (FILES, ",endpoint=server", NODE, "endpoint=server"),
        (FILES, ",verify-peer=perhaps", NODE, "verify-peer"),
        (FILES, ",priority=NORMAL", NODE, "priority"),
        (FILES, "", ",tls-creds=other", "no tls-creds-x509 object 'other'"),
        (FILES, "", ",tls-creds=tls0", "needs tls-hostname=NAME"),
        (FILES, "", ",tls-hostname=h", "tls-hostname needs tls-creds"),
        (
            FILES,
            "",
            ",tls-creds=tls0,tls-hostname=a b",
            "'a b' cannot be the name of a host",
        ),
    ] {
        let told = told(dir.path(), files, object, node);
        assert!(told.contains(why), "{told}");
    }
    let told = refused(&["--object", "tls-creds-psk,id=p,dir=tls"], dir.path());
    assert!(told.contains("tls-creds-psk is not supported"), "{told}");
}

#[test]
fn servers_that_demand_or_lack_tls_are_named() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let dir = dir.path();
    fill(dir);
    let demanding = server(dir, FILES);
    let args = long_form("");
    let told_plain = refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), dir);
    assert!(
        told_plain.contains("it demands TLS: give tls-creds="),
        "{told_plain}"
    );
    drop(demanding);
    let _plain = qemu_nbd(dir, &[]);
    let told = told(dir, FILES, "", NODE);
    assert!(told.contains("TLS"), "{told}");
    assert!(
        told.contains("it refuses TLS: its policy") || told.contains("it has no TLS"),
        "{told}"
    );
}

#[test]
fn a_server_that_only_claims_tls_is_named() {
    let dir = directory(512);
    fill(dir.path());
    let listener = UnixListener::bind(dir.path().join("nbd.sock")).expect("a socket");
    let server = thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let greeting = b"NBDMAGICIHAVEOPT\0\x03";
        let consent = [
            &0x0003_e889_0455_65a9_u64.to_be_bytes()[..],
            &[0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0],
            b"no TLS at all, but an answer",
        ];
        client
            .write_all(&[greeting, &consent.concat()[..]].concat())
            .expect("speak");
        // The client ends the connection.
        let _ = std::io::copy(&mut client, &mut std::io::sink());
    });
    let told = told(dir.path(), FILES, "", NODE);
    assert!(told.contains("it does not speak TLS"), "{told}");
    server.join().expect("the server");
}

#[test]
fn wrong_certificates_are_named() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let dir = dir.path();
    let authority = fill(dir);
    let (other, at) = (Authority::new(), |name: &str| dir.join(name));
    // Servers.
    authority.fill(&at("expired"), &["localhost"]);
    authority.certify(&at("expired"), "server", &["localhost"], 2021);
    authority.fill(&at("foreign"), &["localhost"]);
    other.certify(&at("foreign"), "server", &["localhost"], 2090);
    // Clients.
    authority.trust(&at("anonymous"));
    authority.trust(&at("stranger"));
    other.certify(&at("stranger"), "client", &["x"], 2090);
    let host = NODE;
    for (servers, clients, node, why) in [
        (
            FILES,
            FILES,
            ",tls-creds=tls0,tls-hostname=elsewhere",
            "not for 'elsewhere' but for",
        ),
        ("expired", FILES, host, "its certificate has expired"),
        (
            "foreign",
            FILES,
            host,
            "none of the authorities in tls/ca-cert.pem has signed its certificate",
        ),
        (FILES, "anonymous", host, "There is no anonymous/client-cert.pem"),
        (
            FILES,
            "stranger",
            host,
            "does it accept stranger/client-cert.pem?",
        ),
    ] {
        let _server = server(dir, servers);
        let told = told(dir, clients, "", node);
        assert!(told.contains(why), "{told}");
    }
}

#[test]
fn the_server_is_anybody_if_it_is_not_verified() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let authority = fill(dir.path());
    authority.trust(&dir.path().join("foreign"));
    Authority::new().certify(&dir.path().join("foreign"), "server", &["x"], 2021);
    let files = dir.path().join("foreign").display().to_string();
    let object = format!("tls-creds-x509,id=s,dir={files},endpoint=server,sanity-check=off,verify-peer=off");
    let _server = qemu_nbd(dir.path(), &["--object", &object, "--tls-creds=s"]);
    let object = ["--object", "tls-creds-x509,id=tls0,dir=tls,verify-peer=off"];
    let daemon = start_after(dir, &object, ",tls-creds=tls0", &[]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 4), 0);
    assert_eq!(read(&mut frontend, 0), Ok(vec![4; BLOCK]));
}

#[test]
fn clients_add_disks_with_credentials_they_made() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    fill(dir.path());
    let _server = server(dir.path(), FILES);
    let monitor = "socket,id=m,path=qmp.sock,server=on,wait=off";
    // In the sandbox, files of credentials cannot be read any more.
    let args = ["--chardev", monitor, "--monitor", "chardev=m", "--sandbox", "off"];
    let daemon = start_after(dir, &OBJECT, NODE, &args);
    let mut qmp = Qmp::connect(&daemon.dir().join("qmp.sock"));
    let files = daemon.dir().join(FILES).display().to_string();
    qmp.execute(
        "object-add",
        &json!({"qom-type": "tls-creds-x509", "id": "later", "dir": files, "verify-peer": false}),
    );
    let node = |name: &str, creds: &str| json!({"driver": "nbd", "node-name": name, "export": "disk", "tls-creds": creds, "server": {"type": "unix", "path": "nbd.sock"}});
    qmp.execute("blockdev-add", &node("second", "later"));
    for id in ["tls0", "later"] {
        let refused = qmp.try_execute("object-del", &json!({"id": id}));
        let told = refused.expect_err("refused").to_string();
        assert!(told.contains("is in use"), "{told}");
    }
    qmp.execute("blockdev-del", &json!({"node-name": "second"}));
    qmp.execute("object-del", &json!({"id": "later"}));
    let refused = qmp.try_execute("blockdev-add", &node("third", "later"));
    let told = refused.expect_err("refused").to_string();
    assert!(told.contains("no tls-creds-x509 object 'later'"), "{told}");
}
