//! Greeting, negotiation, order, ids, errors.

use std::net::Shutdown;

use serde_json::{Value, json};

use crate::client::Client;
use crate::server::Server;

fn class(answer: &Value) -> &str {
    answer["error"]["class"].as_str().unwrap_or("no error")
}

#[test]
fn commands_wait_for_negotiation() {
    let server = Server::start();
    let (mut client, greeting) = Client::greeted(&server.path());
    assert_eq!(greeting["QMP"]["version"]["qemu"]["major"], 10);
    assert_eq!(greeting["QMP"]["capabilities"], json!([]));
    let version = json!({"execute": "query-version"});
    assert_eq!(class(&client.ask(&version)), "CommandNotFound");
    let oob = json!({"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}});
    assert_eq!(class(&client.ask(&oob)), "GenericError");
    let negotiate = json!({"execute": "qmp_capabilities", "arguments": {"enable": []}, "id": 1});
    assert_eq!(client.ask(&negotiate), json!({"return": {}, "id": 1}));
    assert_eq!(class(&client.ask(&negotiate)), "CommandNotFound");
    assert_eq!(client.ask(&version)["return"], greeting["QMP"]["version"]);
}

#[test]
fn answers_keep_order_and_ids() {
    let server = Server::start();
    let mut client = server.connect();
    for id in [
        json!(null),
        json!(1.5),
        json!("é\u{1F600}\0"),
        json!({"any": ["json", 1]}),
    ] {
        let answer = client.ask(&json!({"execute": "x-echo", "arguments": {"value": 1}, "id": id}));
        assert_eq!(answer, json!({"return": 1, "id": id}));
        let answer = client.ask(&json!({"execute": "nonsense", "id": id}));
        assert_eq!((class(&answer), &answer["id"]), ("CommandNotFound", &id));
    }
    let several: String = (0..1000)
        .map(|n| format!("{{'execute': 'x-echo', 'arguments': {{'value': {n}}}, 'id': {n}}}"))
        .collect();
    client.send(several);
    for n in 0..1000 {
        assert_eq!(client.next(), json!({"return": n, "id": n}));
    }
}

#[test]
fn a_command_in_any_number_of_parts() {
    let server = Server::start();
    let mut client = server.connect();
    for byte in br#"{"execute": "x-echo", "arguments": {"value": "}{"}}"# {
        client.send([*byte]);
    }
    assert_eq!(client.next(), json!({"return": "}{"}));
}

#[test]
fn messages_that_are_no_commands_are_errors() {
    let server = Server::start();
    let mut client = server.connect();
    for message in [
        "{\"execute\":}\n",
        "{\"execute\": 1}\n",
        "{\"exec\": \"query-version\"}\n",
        "{\"execute\": \"query-version\", \"more\": 1}\n",
        "{\"exec-oob\": \"query-version\"}\n",
        "{\"execute\": \"query-version\", \"arguments\": []}\n",
        "{\"execute\": \"query-version\", \"arguments\": {\"x\": 1}}\n",
        "[1]\n",
        "\"text\"\n",
        "complete and utter garbage\n",
    ] {
        client.send(message);
        assert_eq!(class(&client.next()), "GenericError", "{message}");
    }
    assert_eq!(client.run("x-echo", &json!({"value": 1})), 1);
}

#[test]
fn slow_commands_delay_only_their_client() {
    let server = Server::start();
    let (mut first, mut second) = (server.connect(), server.connect());
    first.send(
        "{'execute': 'x-later', 'id': 'a'} {'execute': 'x-echo', 'arguments': {'value': 2}, 'id': 'b'}",
    );
    let reply = server.replies.recv().expect("the command runs");
    // The other client is answered meanwhile.
    assert_eq!(second.run("x-echo", &json!({"value": 1})), 1);
    reply.send(Ok(json!("done")));
    assert_eq!(first.next(), json!({"return": "done", "id": "a"}));
    assert_eq!(first.next(), json!({"return": 2, "id": "b"}));
}

#[test]
fn abandoned_commands_are_answered() {
    let server = Server::start();
    let mut client = server.connect();
    client.send("{'execute': 'x-later', 'id': 1}");
    drop(server.replies.recv());
    let answer = client.next();
    assert_eq!((class(&answer), &answer["id"]), ("GenericError", &json!(1)));
}

#[test]
fn answers_to_clients_that_left_are_dropped() {
    let server = Server::start();
    let mut client = server.connect();
    client.send("{'execute': 'x-later'}");
    let reply = server.replies.recv().expect("the command runs");
    drop(client);
    server.check();
    reply.send(Ok(json!({})));
    server.check();
}

#[test]
fn clients_may_stop_sending_before_they_read() {
    let server = Server::start();
    let mut client = server.connect();
    client.send("{'execute': 'x-echo', 'arguments': {'value': 1}}{'execute': 'x-later'}");
    client
        .socket()
        .shutdown(Shutdown::Write)
        .expect("still connected");
    let reply = server.replies.recv().expect("the command runs");
    assert_eq!(client.next(), json!({"return": 1}));
    reply.send(Ok(json!(2)));
    assert_eq!(client.next(), json!({"return": 2}));
    assert_eq!(client.try_next(), None);
}

#[test]
fn commands_run_even_if_nobody_reads_the_answer() {
    let server = Server::start();
    let mut client = server.connect();
    client.send("{'execute': 'x-echo', 'arguments': {'value': 1}}{'execute': 'quit'}");
    drop(client);
    server.quits.recv().expect("quit was executed");
}
