//! `blockdev-snapshot`: overlays take the place of nodes while requests are in flight.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};
use testkit::daemon::{Daemon, HAND_OVER};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::SetAtEnd;
use testkit::qmp::Qmp;
use testkit::random::Random;

use super::killed::{Model, check_no_errors, finish, load};
use super::support::{
    MONITOR, check_clean, create, directory_in_memory, expected, manage, qemu_img, raw, serve_node, try_run,
};

const SIZE: usize = 16 << 20;

/// Serves an image of a format as the node `n0`, and connects a frontend and a QMP client.
pub(crate) fn serve(dir: &Path, image: &str, format: &str) -> (Daemon, Frontend, Qmp) {
    let path = dir.join(image).display().to_string();
    let node = match format {
        "raw" => format!("file,filename={path}"),
        _ => format!("qcow2,file.driver=file,file.filename={path},follow-names=on"),
    };
    let dir = dir.to_str().expect("a name in UTF-8");
    serve_node("n0", &node, &["--sandbox-path", dir, "--hand-over", HAND_OVER])
}

/// Makes an overlay above an image, and a node of it.
pub(crate) fn add_overlay(
    dir: &Path,
    client: &mut Qmp,
    (below, format): (&str, &str),
    (image, name): (&str, &str),
) {
    create(dir, "", &["-b", below, "-F", format, image]);
    let file = json!({"driver": "file", "filename": dir.join(image)});
    let node = json!({
        "driver": "qcow2", "node-name": name, "discard": "unmap", "backing": null, "file": file
    });
    client.execute("blockdev-add", &node);
}

pub(crate) fn snapshot(node: &str, overlay: &str) -> Value {
    json!({"node": node, "overlay": overlay})
}

/// Takes snapshots under load. Returns the content of each layer below the last one at the time when it was replaced.
fn take_snapshots(
    dir: &Path,
    (frontend, client): (&mut Frontend, &mut Qmp),
    model: &mut Model,
    format: &str,
) -> Vec<(String, Vec<u8>)> {
    let mut random = Random::new(7);
    let mut layers = Vec::new();
    let mut below = ("layer0".to_owned(), format.to_owned(), "n0".to_owned());
    for number in 1..=4 {
        let (image, name) = (format!("layer{number}"), format!("n{number}"));
        add_overlay(dir, client, (&below.0, &below.1), (&image, &name));
        thread::scope(|scope| {
            let taken = scope.spawn(|| client.execute("blockdev-snapshot", &snapshot(&below.2, &name)));
            load(frontend, model, &mut random, |done| done < 250);
            finish(frontend, model);
            taken.join().expect("the snapshot");
        });
        layers.push((below.0.clone(), fs::read(dir.join(&below.0)).expect("read")));
        load(frontend, model, &mut random, |done| done < 50);
        if number < 4 {
            finish(frontend, model);
        }
        below = (image, "qcow2".to_owned(), name);
    }
    layers
}

pub(crate) fn make_image(dir: &Path, format: &str) -> Model {
    raw(dir, "source", SIZE);
    qemu_img(dir, &["convert", "-f", "raw", "-O", format, "source", "layer0"]);
    Model::of(&fs::read(dir.join("source")).expect("read"))
}

#[test]
fn snapshots_under_load_lose_nothing() {
    let Some(dir) = directory_in_memory() else { return };
    for format in ["qcow2", "raw"] {
        let dir = tempfile::tempdir_in(dir.path()).expect("make a directory");
        let dir = dir.path();
        let mut model = make_image(dir, format);
        let (mut daemon, mut frontend, mut client) = serve(dir, "layer0", format);
        let layers = take_snapshots(dir, (&mut frontend, &mut client), &mut model, format);
        finish(&mut frontend, &mut model);
        let exports = client.execute("query-block-exports", &json!({}));
        assert_eq!(exports[0]["node-name"], "n4", "{exports}");
        drop(frontend);
        let exit = daemon.terminate();
        assert!(exit.status.success(), "{}", exit.output);
        for (image, content) in layers {
            let now = fs::read(dir.join(&image)).expect("read");
            assert!(now == content, "{image} has changed after its snapshot");
            if format == "qcow2" || image != "layer0" {
                check_clean(dir, &image);
            }
        }
        check_clean(dir, "layer4");
        model.compare(&expected(dir, "layer4"));
    }
}

#[test]
fn snapshots_survive_kills() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    let mut model = make_image(dir, "qcow2");
    let (mut daemon, mut frontend, mut client) = serve(dir, "layer0", "qcow2");
    let layers = take_snapshots(dir, (&mut frontend, &mut client), &mut model, "qcow2");
    daemon.signal(libc::SIGKILL);
    daemon.wait_for_exit();
    for (image, content) in layers {
        check_clean(dir, &image);
        assert!(fs::read(dir.join(&image)).expect("read") == content, "{image}");
    }
    check_no_errors(dir, "layer4");
    model.compare(&expected(dir, "layer4"));
}

#[test]
fn snapshots_are_taken_over_under_load() {
    let Some(dir) = directory_in_memory() else { return };
    for format in ["qcow2", "raw"] {
        let dir = tempfile::tempdir_in(dir.path()).expect("make a directory");
        let dir = dir.path();
        let mut model = make_image(dir, format);
        let (mut daemon, mut frontend, mut client) = serve(dir, "layer0", format);
        let mut random = Random::new(11);
        let (mut below, mut below_format, mut layers) = ("layer0".to_owned(), format, Vec::new());
        for number in 1..=3 {
            let (image, name) = (format!("layer{number}"), format!("n{number}"));
            add_overlay(dir, &mut client, (&below, below_format), (&image, &name));
            let arguments = snapshot(&format!("n{}", number - 1), &name);
            client.execute("blockdev-snapshot", &arguments);
            layers.push((below.clone(), fs::read(dir.join(&below)).expect("read")));
            let dir_name = dir.to_str().expect("a name in UTF-8");
            let options = [&MONITOR[..], &["--sandbox-path", dir_name]].concat();
            let exit = daemon.fail_take_over(&["--fail-take-over", "restored"]);
            assert!(exit.output.contains("restored"), "{}", exit.output);
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                let _end = SetAtEnd(&stop);
                // A daemon ends with the thread that has started it, so the other one makes the load.
                let worker = scope.spawn(|| {
                    load(&mut frontend, &mut model, &mut random, |done| {
                        done < 100 || !stop.load(Ordering::Relaxed)
                    });
                    finish(&mut frontend, &mut model);
                });
                daemon.take_over(&options);
                stop.store(true, Ordering::Relaxed);
                worker.join().expect("the load");
            });
            client = manage(&daemon);
            let exports = client.execute("query-block-exports", &json!({}));
            assert_eq!(exports[0]["node-name"], name, "{exports}");
            (below, below_format) = (image, "qcow2");
        }
        drop(frontend);
        let exit = daemon.terminate();
        assert!(exit.status.success(), "{}", exit.output);
        for (image, content) in layers {
            let now = fs::read(dir.join(&image)).expect("read");
            assert!(now == content, "{image} has changed after its snapshot");
        }
        check_clean(dir, "layer3");
        model.compare(&expected(dir, "layer3"));
    }
}

/// Returns the number of layers below each node.
fn depths(client: &mut Qmp, flat: bool) -> Vec<(String, u64)> {
    let nodes = client.execute("query-named-block-nodes", &json!({"flat": flat}));
    let nodes = nodes.as_array().expect("a list").iter().map(|node| {
        let name = node["node-name"].as_str().expect("a name").to_owned();
        (name, node["backing_file_depth"].as_u64().expect("a number"))
    });
    nodes.filter(|(name, _)| name.starts_with(['n', 't'])).collect()
}

#[test]
fn nodes_tell_how_many_layers_are_below() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    make_image(dir, "raw");
    let (mut daemon, frontend, mut client) = serve(dir, "layer0", "raw");
    add_overlay(dir, &mut client, ("layer0", "raw"), ("layer1", "n1"));
    client.execute("blockdev-snapshot", &snapshot("n0", "n1"));
    add_overlay(dir, &mut client, ("layer1", "qcow2"), ("layer2", "n2"));
    let expected = |depths: &[u64]| -> Vec<(String, u64)> {
        let names = ["n0", "n1", "n2", "t"].map(str::to_owned);
        names.into_iter().zip(depths.iter().copied()).collect()
    };
    assert_eq!(depths(&mut client, false), expected(&[0, 1, 0]));
    client.execute("blockdev-snapshot", &snapshot("n1", "n2"));
    let group = json!({"qom-type": "throttle-group", "id": "g"});
    client.execute("object-add", &group);
    let throttle = json!({"driver": "throttle", "node-name": "t", "throttle-group": "g", "file": "n2"});
    client.execute("blockdev-add", &throttle);
    // As QEMU counts: a filter is a layer as well.
    assert_eq!(depths(&mut client, false), expected(&[0, 1, 2, 3]));
    assert_eq!(depths(&mut client, true), expected(&[0, 0, 0, 0]));
    drop(frontend);
    assert!(daemon.terminate().status.success());
}

#[test]
fn old_layers_are_shared_with_readers() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    make_image(dir, "qcow2");
    let (mut daemon, mut frontend, mut client) = serve(dir, "layer0", "qcow2");
    let write = Op::Write {
        offset: 0,
        data: vec![1; 4096],
    };
    assert_eq!(frontend.queue(0).run(&write).ret, 0);
    let tool =
        |image, options: &[&str]| try_run(dir, "qemu-io", &[&["-f", "qcow2"], options, &[image]].concat());
    let read = ["-r", "-c", "read -P 1 0 4k"];
    tool("layer0", &read).expect_err("it is written to");
    add_overlay(dir, &mut client, ("layer0", "qcow2"), ("layer1", "n1"));
    client.execute("blockdev-snapshot", &snapshot("n0", "n1"));
    tool("layer0", &read).expect("it is only read");
    let told = tool("layer0", &["-c", "write 0 4k"]).expect_err("the overlay needs it");
    assert!(told.contains("lock"), "{told}");
    let told = tool("layer1", &["-c", "write 0 4k"]).expect_err("it is in use");
    assert!(told.contains("lock"), "{told}");
    let write = Op::Write {
        offset: 0,
        data: vec![2; 4096],
    };
    assert_eq!(frontend.queue(0).run(&write).ret, 0);
    tool("layer0", &read).expect("it is as it was");
    drop(frontend);
    assert!(daemon.terminate().status.success());
    tool("layer1", &["-c", "read -P 2 0 4k", "-c", "write 0 4k"]).expect("nobody uses the image");
}

#[test]
fn overlays_that_do_not_suit_are_refused() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    make_image(dir, "qcow2");
    let (mut daemon, frontend, mut client) = serve(dir, "layer0", "qcow2");
    add_overlay(dir, &mut client, ("layer0", "qcow2"), ("layer1", "n1"));
    qemu_img(dir, &["create", "-q", "-f", "raw", "plain", "16M"]);
    create(dir, "", &["other", "16M"]);
    for (name, image) in [("plain", "plain"), ("base", "other")] {
        let node = json!({"driver": "file", "node-name": name, "filename": dir.join(image)});
        client.execute("blockdev-add", &node);
    }
    create(dir, "", &["based", "16M"]);
    let file = json!({"driver": "file", "filename": dir.join("based")});
    let based = json!({"driver": "qcow2", "node-name": "based", "backing": "plain", "file": file});
    client.execute("blockdev-add", &based);
    let mut refusal = |node, overlay| {
        let refused = client.try_execute("blockdev-snapshot", &snapshot(node, overlay));
        let error = refused.expect_err("it is refused");
        error["desc"].as_str().unwrap_or_default().to_owned()
    };
    for (node, overlay, words) in [
        ("n0", "n0", "The overlay is already in use"),
        ("n1", "n0", "The overlay is already in use"),
        ("n0", "base", "The overlay does not support backing images"),
        ("n0", "based", "The overlay already has a backing image"),
        ("plain", "n1", "node 'based'"),
        ("nobody", "n1", "nobody"),
        ("n0", "nobody", "nobody"),
    ] {
        let told = refusal(node, overlay);
        assert!(told.contains(words), "{node} {overlay}: {told}");
    }
    client.execute("blockdev-snapshot", &snapshot("n0", "n1"));
    drop(frontend);
    assert!(daemon.terminate().status.success());
}

#[test]
fn events_name_the_node_above_after_a_snapshot() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    make_image(dir, "raw");
    let (_daemon, frontend, mut client) = serve(dir, "layer0", "raw");
    drop(frontend);
    let export = json!({
        "type": "vhost-user-blk", "id": "failing", "node-name": "f", "inject": ["read:eio"],
        "addr": {"type": "unix", "path": dir.join("failing.sock")}
    });
    raw(dir, "below", SIZE);
    let file = json!({"driver": "file", "node-name": "f", "filename": dir.join("below")});
    client.execute("blockdev-add", &file);
    client.execute("block-export-add", &export);
    create(dir, "", &["above", &SIZE.to_string()]);
    let file = json!({"driver": "file", "filename": dir.join("above")});
    let above = json!({"driver": "qcow2", "node-name": "above", "backing": null, "file": file});
    client.execute("blockdev-add", &above);
    client.execute("blockdev-snapshot", &snapshot("f", "above"));
    let mut frontend = Frontend::connect(&dir.join("failing.sock"), 1, 8, all_features()).expect("connect");
    assert_ne!(frontend.queue(0).run(&Op::Read { offset: 0, len: 4096 }).ret, 0);
    let failed = client.event("BLOCK_IO_ERROR");
    assert_eq!(failed["data"]["node-name"], "above", "{failed}");
}
