//! A new daemon takes over the disk in an image while that changes.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use testkit::daemon::{Daemon, HAND_OVER};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::{SetAtEnd, wait_for};
use testkit::random::Random;

use super::killed::{Model, load};
use super::support::{
    check_clean, connect, create, directory_in_memory, expected, raw, serve_writable, try_run,
};

/// Serves an image for writing, with a socket for successors.
fn serve(dir: &Path, image: &str, options: &[&str]) -> (Daemon, Frontend) {
    serve_writable(dir, image, &[&["--hand-over", HAND_OVER], options].concat())
}

/// Runs `change` while a disk in an image changes, and compares the image with what was written.
fn under_load(dir: &Path, options: &[&str], change: impl FnOnce(&mut Daemon, &AtomicUsize)) {
    let mut model = Model::of(&expected(dir, "image"));
    let (mut daemon, mut frontend) = serve(dir, "image", options);
    let (stop, completed) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let (stop, completed, model, frontend) = (&stop, &completed, &mut model, &mut frontend);
        let _end = SetAtEnd(stop);
        let worker = scope.spawn(move || {
            load(frontend, model, &mut Random::new(1), |done| {
                completed.store(done, Ordering::Relaxed);
                !stop.load(Ordering::Relaxed)
            });
            let queue = frontend.queue(0);
            while queue.in_flight() > 0 {
                queue.wait().0.iter().for_each(|done| model.complete(done.tag));
            }
        });
        change(&mut daemon, completed);
        stop.store(true, Ordering::Relaxed);
        worker.join().expect("the load");
    });
    drop(frontend);
    let exit = daemon.terminate();
    assert!(exit.status.success(), "{}", exit.output);
    for trouble in ["repaired", "ERROR"] {
        assert!(!exit.output.contains(trouble), "{}", exit.output);
    }
    check_clean(dir, "image");
    model.compare(&expected(dir, "image"));
}

fn wait_for_more(completed: &AtomicUsize) {
    let before = completed.load(Ordering::Relaxed);
    wait_for("completions", || {
        (completed.load(Ordering::Relaxed) > before + 200).then_some(())
    });
}

#[test]
fn images_are_taken_over_under_load() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    raw(dir, "base", 16 << 20);
    let base = ["-b", "base", "-F", "raw"];
    // Version 2 has no dirty bit: a process that does not trust the refcounts counts all references.
    for (options, base) in [
        ("compat=0.10", &[][..]),
        ("cluster_size=4k", &base),
        ("extended_l2=on", &base),
    ] {
        create(dir, options, &[base, &["image", "16M"]].concat());
        under_load(dir, &["--follow-names"], |daemon, completed| {
            for _ in 0..4 {
                wait_for_more(completed);
                daemon.take_over(&[]);
                assert!(!daemon.output().contains("repaired"), "{}", daemon.output());
            }
            wait_for_more(completed);
        });
    }
}

#[test]
fn the_old_process_keeps_its_image_if_the_new_one_fails() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    create(dir, "", &["image", "16M"]);
    under_load(dir, &[], |daemon, completed| {
        for point in ["made", "ready", "received", "restored", "taken"] {
            wait_for_more(completed);
            let exit = daemon.fail_take_over(&["--fail-take-over", point]);
            assert!(exit.output.contains(point), "{}", exit.output);
            wait_for_more(completed);
        }
        let locked = try_run(dir, "qemu-io", &["-f", "qcow2", "-c", "write 0 4k", "image"]);
        assert!(locked.expect_err("the image is locked").contains("lock"));
        daemon.take_over(&[]);
        wait_for_more(completed);
    });
}

#[test]
fn the_new_process_repairs_the_image_of_a_killed_one() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    let write = |offset, byte| Op::Write {
        offset,
        data: vec![byte; 4096],
    };
    for point in ["passed", "parking", "parked"] {
        create(dir, "lazy_refcounts=on", &["image", "16M"]);
        let mut contents = vec![0; 16 << 20];
        let (mut daemon, mut frontend) = serve(dir, "image", &["--fail-take-over", point]);
        for place in (0..8).map(|mib| mib << 20) {
            assert_eq!(frontend.queue(0).run(&write(place as u64, 1)).ret, 0);
            contents[place..][..4096].fill(1);
        }
        daemon.take_over_from_killed(&[]);
        drop(frontend);
        let mut frontend = Frontend::connect(&daemon.dir().join("s"), 1, 8, all_features()).expect("connect");
        super::support::compare(&mut frontend, &contents);
        assert_eq!(frontend.queue(0).run(&write(9 << 20, 2)).ret, 0);
        contents[9 << 20..][..4096].fill(2);
        super::support::compare(&mut frontend, &contents);
        drop(frontend);
        let exit = daemon.terminate();
        assert!(exit.status.success(), "{}", exit.output);
        check_clean(dir, "image");
        assert!(expected(dir, "image") == contents, "{point}");
    }
}

#[test]
fn images_of_several_nodes_are_taken_over() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    raw(dir, "base", 2 << 20);
    create(dir, "", &["-F", "raw", "-b", "base", "middle", "2M"]);
    let top = ["-F", "qcow2", "-b", "middle", "top", "2M"];
    create(dir, "data_file=data", &top);
    let before = expected(dir, "top");
    let at = |name: &str| dir.join(name).display().to_string();
    let nodes = [
        format!(
            "qcow2,node-name=middle,read-only=on,backing=base,file.driver=file,file.filename={}",
            at("middle")
        ),
        format!(
            "qcow2,node-name=top,backing=middle,data-file=data,file.driver=file,file.filename={}",
            at("top")
        ),
    ];
    let files = [
        format!("file,node-name=base,read-only=on,filename={}", at("base")),
        format!("file,node-name=data,filename={}", at("data")),
    ];
    let export = "vhost-user-blk,id=e,node-name=top,writable=on,addr.type=unix,addr.path=s";
    let mut args = vec!["--hand-over", HAND_OVER];
    for node in files.iter().chain(&nodes) {
        args.extend(["--blockdev", node]);
    }
    args.extend(["--export", export]);
    let (mut daemon, mut frontend) = connect(&args);
    daemon.take_over(&[]);
    super::support::compare(&mut frontend, &before);
    let data = vec![0x5a; 4096];
    let write = Op::Write {
        offset: 1 << 20,
        data: data.clone(),
    };
    assert_eq!(frontend.queue(0).run(&write).ret, 0);
    daemon.take_over(&[]);
    for file in ["base", "middle", "data", "top"] {
        let format = if file == "base" || file == "data" {
            "raw"
        } else {
            "qcow2"
        };
        let locked = try_run(dir, "qemu-io", &["-f", format, "-c", "write 0 4k", file]);
        assert!(locked.is_err(), "{file} is not locked");
    }
    drop(frontend);
    assert!(daemon.terminate().status.success());
    check_clean(dir, "top");
    let after = expected(dir, "top");
    assert!(after[1 << 20..][..4096] == data && after[..1 << 20] == before[..1 << 20]);
}
