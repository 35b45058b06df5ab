//! Events reach every client that has negotiated, in order with answers.

use serde_json::{Map, Value, json};
use vhost_user_blk::qmp::events::{BLOCK_EXPORT_DELETED, BLOCK_IO_ERROR, SHUTDOWN};

use crate::client::Client;
use crate::server::Server;

fn data(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(data) => data,
        other => panic!("not an object: {other}"),
    }
}

#[test]
fn events_reach_every_negotiated_client() {
    let server = Server::start();
    let mut clients = [server.connect(), server.connect()];
    let (mut silent, _) = Client::greeted(&server.path());
    server
        .events
        .emit(&BLOCK_EXPORT_DELETED, data(json!({"id": "e"})));
    for client in &mut clients {
        let event = client.next();
        assert_eq!(
            (&event["event"], &event["data"]),
            (&json!("BLOCK_EXPORT_DELETED"), &json!({"id": "e"}))
        );
        let time = &event["timestamp"];
        assert!(time["seconds"].as_u64() > Some(1_700_000_000), "{event}");
        assert!(time["microseconds"].as_u64() < Some(1_000_000), "{event}");
    }
    // The next line is the answer, not the event.
    assert_eq!(
        silent.ask(&json!({"execute": "qmp_capabilities"})),
        json!({"return": {}})
    );
}

#[test]
fn an_event_precedes_the_return_of_its_command() {
    let server = Server::start();
    let mut client = server.connect();
    for _ in 0..100 {
        client.send("{'execute': 'x-later'}");
        let reply = server.replies.recv().expect("the command runs");
        server
            .events
            .emit(&BLOCK_EXPORT_DELETED, data(json!({"id": "e"})));
        reply.send(Ok(json!({})));
        assert_eq!(client.next()["event"], "BLOCK_EXPORT_DELETED");
        assert_eq!(client.next(), json!({"return": {}}));
    }
}

#[test]
fn a_flood_of_one_event_is_limited() {
    let server = Server::start();
    let mut client = server.connect();
    for n in 0..10_000 {
        let failure = json!({"device": "", "node-name": "n", "operation": "read", "reason": n.to_string()});
        server.events.emit(&BLOCK_IO_ERROR, data(failure));
    }
    assert_eq!(client.next()["data"]["reason"], "0");
    // The last event follows when the interval is over. The events in between are dropped.
    let last = client.next()["data"]["reason"].clone();
    assert!(
        last.as_str().and_then(|n| n.parse::<u32>().ok()) > Some(100),
        "{last}"
    );
}

#[test]
fn the_end_is_announced() {
    let server = Server::start();
    let mut client = server.connect();
    client.send("{'execute': 'quit'}");
    assert_eq!(client.next(), json!({"return": {}}));
    server.quits.recv().expect("quit was executed");
    server.events.emit(
        &SHUTDOWN,
        data(json!({"guest": false, "reason": "host-qmp-quit"})),
    );
    server.events.stop();
    assert_eq!(client.next()["data"]["reason"], "host-qmp-quit");
    assert_eq!(client.try_next(), None);
}

#[test]
fn a_client_that_reads_no_events_is_ended() {
    let server = Server::start();
    let (mut lazy, mut diligent) = (server.connect(), server.connect());
    let id = "x".repeat(1 << 16);
    for n in 0..64 {
        server
            .events
            .emit(&BLOCK_EXPORT_DELETED, data(json!({"id": id, "n": n})));
        assert_eq!(diligent.next()["data"]["n"], n);
    }
    assert!(lazy.drain() < 2 << 20);
    server.check();
}
