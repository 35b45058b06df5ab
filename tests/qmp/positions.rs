//! The indices of rings in `query-blockstats`.

use serde_json::{Value, json};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::wait_for;

use crate::client::Client;
use crate::daemon::start;

fn position(client: &mut Client) -> Value {
    let mut disks = client.run("query-blockstats", &json!({}));
    disks[0]["x-export"]["queues"][0]["position"].take()
}

#[test]
fn each_queue_shows_its_indices() {
    let (daemon, socket) = start(&[]);
    let mut client = Client::connect(&socket);
    assert_eq!(position(&mut client), Value::Null, "there is no ring");
    let mut frontend = Frontend::connect(&daemon.socket(), 1, 4, all_features()).expect("connect");
    let read = Op::Read { offset: 0, len: 512 };
    (0..5).for_each(|_| assert_eq!(frontend.queue(0).run(&read).ret, 0));
    // A busy IOThread may not answer in time.
    let position = wait_for("the ring's position", || {
        let position = position(&mut client);
        position.is_object().then_some(position)
    });
    for name in ["avail", "taken", "answered", "published"] {
        assert_eq!(position[name], 5, "{name}");
    }
    assert!(position["avail-event"].is_u64() && position["polled"].is_boolean());
}
