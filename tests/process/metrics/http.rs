//! The HTTP server: methods, paths, sizes, and clients that misbehave.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::metrics::{answer, request, scrape};
use testkit::process::{SetAtEnd, threads};

use super::{connect, start};

/// More connections than the daemon keeps open.
const MANY: usize = 40;

fn status(daemon: &Daemon, text: &str) -> u16 {
    request(connect(daemon), text).status
}

#[test]
fn only_metrics_can_be_read() {
    let daemon = start(&[]);
    let get = request(connect(&daemon), "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n");
    let head = request(connect(&daemon), "HEAD /metrics HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!((get.status, head.status), (200, 200));
    assert_eq!(
        (get.fields["connection"].as_str(), head.body.as_str()),
        ("close", "")
    );
    assert_eq!(get.fields["content-length"], get.body.len().to_string());
    assert!(
        head.fields["content-length"]
            .parse::<usize>()
            .is_ok_and(|length| length > 1000)
    );
    let post = request(
        connect(&daemon),
        "POST /metrics HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
    );
    assert_eq!((post.status, post.fields["allow"].as_str()), (405, "GET, HEAD"));
    assert_eq!(status(&daemon, "GET / HTTP/1.1\r\n\r\n"), 404);
    assert_eq!(
        status(&daemon, "GET /metrics/../etc/passwd HTTP/1.1\r\n\r\n"),
        404
    );
    assert_eq!(status(&daemon, "complete and utter garbage\r\n\r\n"), 400);
    let long = format!("GET /metrics HTTP/1.1\r\nA: {}", "b".repeat(1 << 16));
    // The daemon need not read all of that before it refuses.
    let mut client = connect(&daemon);
    let sent = client.write_all(long.as_bytes());
    assert!(sent.is_ok() || sent.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe));
    assert_eq!(answer(client).status, 431);
}

#[test]
fn requests_may_come_in_pieces() {
    let daemon = start(&[]);
    let mut client = connect(&daemon);
    for piece in ["GE", "T /met", "rics HTTP/1.1\r\n", "Host: h\r", "\n\r"] {
        client.write_all(piece.as_bytes()).expect("send a piece");
        // The daemon has seen the piece when it has answered another client.
        assert_eq!(status(&daemon, "GET / HTTP/1.1\r\n\r\n"), 404);
    }
    assert_eq!(request(client, "\n").status, 200);
}

#[test]
fn half_a_request_gets_no_answer() {
    let daemon = start(&[]);
    let mut client = connect(&daemon);
    client.write_all(b"GET /metrics").expect("send");
    client.shutdown(Shutdown::Write).expect("shut down");
    assert_eq!(client.read(&mut [0]).expect("the connection ends"), 0);
}

#[test]
fn slow_clients_make_room_for_others() {
    let mut daemon = start(&["--sandbox", "on"]);
    let slow: Vec<UnixStream> = (0..MANY)
        .map(|_| {
            let mut client = connect(&daemon);
            client
                .write_all(b"GET /metrics HTTP/1.1\r\nA: ")
                .expect("send a part");
            client
        })
        .collect();
    // The oldest connections have to go, however many there are.
    scrape(connect(&daemon));
    let mut oldest = &slow[0];
    oldest.set_nonblocking(true).expect("a socket");
    let end = oldest.read(&mut [0]);
    assert!(matches!(end, Ok(0)) || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    assert!(
        daemon.output().contains("too many connections for metrics"),
        "{}",
        daemon.output()
    );
    assert!(daemon.is_alive());
}

#[test]
fn clients_that_read_nothing_delay_nobody() {
    let daemon = start(&["--num-queues", "256"]);
    let deaf: Vec<UnixStream> = (0..20)
        .map(|_| {
            let mut client = connect(&daemon);
            client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("send");
            client
        })
        .collect();
    let page = scrape(connect(&daemon));
    assert_eq!(page.values("vhost_user_blk_kicks_total", &[]).len(), 256);
    // An answer is larger than a socket's buffer, so the rest was kept for its client.
    let late = deaf.into_iter().next().expect("a client");
    assert_eq!(answer(late).status, 200);
}

#[test]
fn floods_disturb_no_disk() {
    let mut daemon = start(&["--sandbox", "on"]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = SetAtEnd(&stop);
        let flood = || {
            while !stop.load(Ordering::Relaxed) {
                // Fails while the queue of connections is full.
                let client = UnixStream::connect(daemon.dir().join("metrics.sock"));
                if let Ok(mut client) = client {
                    let _ = client.write(b"GET /metrics HTTP/1.1\r\n\r\n");
                }
            }
        };
        let floods = [scope.spawn(flood), scope.spawn(flood)];
        let mut frontend = Frontend::connect(&daemon.socket(), 1, 4, all_features()).expect("connect");
        for round in 0..200 {
            let data = vec![round; 4096];
            let write = Op::Write {
                offset: 0,
                data: data.clone(),
            };
            assert_eq!(frontend.queue(0).run(&write).ret, 0);
            let read = frontend.queue(0).run(&Op::Read { offset: 0, len: 4096 });
            assert_eq!((read.ret, read.data), (0, data));
        }
        stop.store(true, Ordering::Relaxed);
        floods
            .into_iter()
            .for_each(|flood| flood.join().expect("it only connects"));
    });
    scrape(connect(&daemon));
    let metrics = threads(daemon.pid())
        .into_iter()
        .find(|thread| thread["Name"] == "metrics");
    assert_eq!(metrics.expect("a thread")["Seccomp"], "2");
    assert!(daemon.terminate().status.success());
}
