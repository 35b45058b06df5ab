//! Paths of objects: absolute and partial ones, as in QEMU.

use serde_json::{Value, json};
use testkit::daemon::Daemon;

use crate::client::Client;
use crate::daemon::start;

fn start_with_objects() -> (Daemon, Client) {
    let (daemon, socket) = start(&[]);
    let mut client = Client::connect(&socket);
    for (kind, id) in [("throttle-group", "tg1"), ("throttle-group", "objects")] {
        client.run("object-add", &json!({"qom-type": kind, "id": id}));
    }
    (daemon, client)
}

fn property(path: &str) -> Value {
    json!({"path": path, "property": "type"})
}

#[test]
fn partial_paths_and_doubled_slashes_lead_to_objects() {
    let (_daemon, mut client) = start_with_objects();
    for path in [
        "/objects/tg1",
        "//objects//tg1/",
        "objects/tg1",
        "objects//tg1",
        "tg1",
        "tg1/",
        "/objects/objects",
        "objects/objects",
    ] {
        assert_eq!(client.run("qom-get", &property(path)), "throttle-group", "{path}");
    }
    for path in ["/", "//", "/objects", "//objects//"] {
        assert_eq!(client.run("qom-get", &property(path)), "container", "{path}");
    }
    let limits = json!({"path": "tg1", "property": "limits", "value": {"iops-total": 7}});
    client.run("qom-set", &limits);
    let list = client.run("qom-list", &json!({"path": "tg1"}));
    assert!(list.as_array().expect("a list").len() > 1, "{list}");
    let limit = json!({"path": "//objects/tg1", "property": "x-iops-total"});
    assert_eq!(client.run("qom-get", &limit), 7);
}

#[test]
fn wrong_and_ambiguous_paths_are_refused() {
    let (_daemon, mut client) = start_with_objects();
    for path in [
        "/tg1",
        "tg2",
        "tg1/x",
        "objects/tg2",
        "x/tg1",
        "/objects/tg1/type",
    ] {
        let refused = client.refusal("qom-get", &property(path));
        let expected = ("DeviceNotFound", format!("Device '{path}' not found"));
        assert_eq!((refused.0.as_str(), refused.1), expected, "{path}");
    }
    for path in ["objects", ""] {
        let (class, desc) = client.refusal("qom-list", &json!({"path": path}));
        assert_eq!(
            (class.as_str(), desc),
            ("GenericError", format!("Path '{path}' is ambiguous"))
        );
    }
    for (property, reason) in [
        ("type", "Property 'container.type' is not writable"),
        ("limits", "Property 'container.limits' not found"),
    ] {
        let set = json!({"path": "/objects", "property": property, "value": 1});
        assert_eq!(client.refusal("qom-set", &set).1, reason);
    }
}
