//! Daemons that are killed while an overlay takes the place of a disk under load.
//!
//! `QCOW2_SNAPSHOT_KILLS` is the number of kills, 10 by default.

use std::cell::{Cell, RefCell};
use std::fs;

use testkit::random::Random;

use super::killed::{check_no_errors, load};
use super::snapshot::{add_overlay, make_image, serve, snapshot};
use super::support::{directory_in_memory, expected, qemu_img};

/// Number of layers after which they become one image again.
const LAYERS: usize = 6;

#[test]
fn kills_during_snapshots_lose_nothing() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    let kills = std::env::var("QCOW2_SNAPSHOT_KILLS").ok();
    let kills = kills.map_or(10, |kills| kills.parse().expect("a number of kills"));
    let mut model = make_image(dir, "qcow2");
    let mut random = Random::new(3);
    let mut layer = 0;
    for _ in 0..kills {
        let (below, top) = (format!("layer{layer}"), format!("layer{}", layer + 1));
        let (mut daemon, mut frontend, mut client) = serve(dir, &below, "qcow2");
        add_overlay(dir, &mut client, (&below, "qcow2"), (&top, "n1"));
        let (client, sent) = (RefCell::new(client), Cell::new(false));
        let (begin, end) = (1 + random.below(200), random.below(60));
        load(&mut frontend, &mut model, &mut random, |done| {
            if done >= begin && !sent.replace(true) {
                let arguments = snapshot("n0", "n1");
                client.borrow_mut().send("blockdev-snapshot", &arguments);
            }
            done < begin + end
        });
        daemon.signal(libc::SIGKILL);
        daemon.wait_for_exit();
        drop(frontend);
        // Whether or not the overlay was in use, it shows everything: what it does not have is below.
        check_no_errors(dir, &below);
        check_no_errors(dir, &top);
        model.compare(&expected(dir, &top));
        layer += 1;
        if layer == LAYERS {
            qemu_img(dir, &["convert", "-f", "qcow2", "-O", "qcow2", &top, "flat"]);
            fs::rename(dir.join("flat"), dir.join("layer0")).expect("rename");
            layer = 0;
        }
    }
}
