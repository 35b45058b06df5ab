//! Clients that send too much, too little, or nonsense.

use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::TryRecvError;
use std::thread;

use serde_json::json;
use testkit::daemon::IMAGE;
use testkit::process::DEADLINE;
use testkit::target::Disks;

use crate::client::Client;
use crate::daemon::MONITOR;
use crate::server::Server;

#[test]
fn a_hundred_megabytes_of_garbage_are_one_error() {
    let server = Server::start();
    for (garbage, megabytes) in [(b'x', 100), (b'[', 8), (b'}', 8), (b'{', 8), (b'"', 8)] {
        let mut client = server.connect();
        let chunk = vec![garbage; 1 << 20];
        for _ in 0..megabytes {
            client.send(&chunk);
        }
        // Ends the garbage, whatever it was.
        client.send("\x1f\n{'execute': 'x-echo', 'arguments': {'value': 1}, 'id': 'last'}");
        assert_eq!(client.next()["error"]["class"], "GenericError");
        assert_eq!(client.next(), json!({"return": 1, "id": "last"}));
    }
}

#[test]
fn who_does_not_read_gets_nothing_executed() {
    let server = Server::start();
    let mut client = server.connect();
    let command = b"{'execute': 'query-qmp-schema'}\n";
    client.socket().set_nonblocking(true).expect("a socket");
    let mut sent = 0;
    // The monitor stops reading when enough answers wait, so that the socket fills up.
    loop {
        match (&mut client.socket()).write(command) {
            Ok(length) if length == command.len() => sent += 1,
            Ok(_) => panic!("a short write"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                if server.connect().run("x-echo", &json!({"value": 1})) == 1 && write_fails(&client, command)
                {
                    break;
                }
                sent += 1;
            }
        }
    }
    client.socket().set_nonblocking(false).expect("a socket");
    for _ in 0..sent {
        assert!(client.next()["return"].is_array());
    }
    assert_eq!(client.run("x-echo", &json!({"value": 2})), 2);
}

fn write_fails(client: &Client, command: &[u8]) -> bool {
    match (&mut client.socket()).write(command) {
        Ok(length) => {
            assert_eq!(length, command.len(), "no short write");
            false
        }
        Err(_) => true,
    }
}

#[test]
fn ten_thousand_connections_are_survived() {
    let server = Server::start();
    let mut faithful = server.connect();
    for _ in 0..100 {
        // Some clients leave before the greeting, some are refused, and some send half a message.
        let storm: Vec<_> = (0..100)
            .map_while(|_| UnixStream::connect(server.path()).ok())
            .collect();
        assert_eq!(storm.len(), 100);
        for socket in &storm {
            let _ = (&mut &*socket).write(b"{'execute': ");
        }
        assert_eq!(faithful.run("x-echo", &json!({"value": 1})), 1);
    }
    testkit::process::wait_for("a place for another client", || {
        let mut socket = UnixStream::connect(server.path()).ok()?;
        std::io::Read::read(&mut socket, &mut [0; 16])
            .ok()
            .filter(|length| *length > 0)
    });
    server.check();
}

#[test]
fn silent_clients_do_not_delay_others() {
    let server = Server::start();
    let silent: Vec<_> = (0..20)
        .map(|_| UnixStream::connect(server.path()).expect("connect"))
        .collect();
    thread::scope(|scope| {
        for n in 0..4 {
            let path = server.path();
            scope.spawn(move || {
                let mut client = Client::connect(&path);
                for m in 0..500 {
                    assert_eq!(client.run("x-echo", &json!({"value": n * m})), n * m);
                }
            });
        }
    });
    drop(silent);
}

#[test]
fn commands_of_clients_that_have_gone_delay_nobody() {
    let server = Server::start();
    let gone: Vec<_> = (0..4)
        .map(|_| {
            let mut client = server.connect();
            client.send("{'execute': 'query-qmp-schema'}".repeat(200) + "{'execute': 'quit'}");
            client
        })
        .collect();
    let mut faithful = server.connect();
    drop(gone);
    assert_eq!(faithful.run("x-echo", &json!({"value": 1})), 1);
    assert_eq!(server.quits.try_recv(), Err(TryRecvError::Empty));
    // What they have sent is executed all the same.
    for _ in 0..4 {
        server.quits.recv_timeout(DEADLINE).expect("a quit");
    }
}

#[test]
fn disks_work_while_clients_misbehave() {
    let disks = Disks::new(&[]);
    std::fs::write(disks.dir.path().join(IMAGE), [0; 4096]).expect("write an image");
    let daemon = disks.serve_with(&MONITOR);
    let path = daemon.dir().join("qmp.sock");
    // Each check needs requests of a disk that are served from then on.
    let mut client = Client::connect(&path);
    for garbage in *b"x[}{\"" {
        let chunk = vec![garbage; 1 << 20];
        for _ in 0..20 {
            client.send(&chunk);
            daemon.check_neighbour();
        }
        client.send("\x1f\n");
        assert_eq!(client.next()["error"]["class"], "GenericError");
    }
    for _ in 0..100 {
        let storm: Vec<_> = (0..100).map_while(|_| UnixStream::connect(&path).ok()).collect();
        for socket in &storm {
            let _ = (&mut &*socket).write(b"{'execute': ");
        }
        daemon.check_neighbour();
    }
    client.run("query-version", &json!({}));
}
