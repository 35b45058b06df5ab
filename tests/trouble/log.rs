//! What a guest can have the daemon say, again and again: it is said once, and shown in the statistics.

use crate::common::daemon::Daemon;
use crate::common::raw::{mem_table, msg};
use crate::common::vm::{Outcome, Ring, Vm};
use crate::{connect, read, said};

#[test]
fn a_ring_that_breaks_again_and_again_is_one_line_and_a_figure() {
    let mut daemon = Daemon::start(&[0; 4096], &["--num-queues", "2"]);
    let mut vm = Vm::connect(&daemon, 0);
    vm.share_memory();
    vm.start_ring(1, Ring::new(1, 16));
    for round in 1..=20 {
        // No such descriptor.
        vm.publish(0, 99);
        vm.kick(0);
        assert_eq!(vm.outcome(0), Outcome::Broken);
        assert_eq!(daemon.count("queue 1 ring", "broken"), round);
        assert!(daemon.output().contains("stats: queue 1 ring: state=broken"));
        vm.client.stop_ring(1).expect("stop");
        let mut ring = vm.rings.pop().expect("it is there");
        vm.memory.store_u16(ring.avail + 2, 0);
        ring.avail_idx = 0;
        ring.err.read().expect("reset the eventfd");
        vm.start_ring(1, ring);
    }
    assert_eq!(said(&daemon, "virtqueue is broken"), 1, "{}", daemon.output());
    assert_eq!(
        said(&daemon, "more than this queue takes"),
        1,
        "{}",
        daemon.output()
    );
}

#[test]
fn a_thousand_failures_of_one_kind_are_one_line() {
    let rules = [
        "--inject",
        "read:eio:sector=0",
        "--inject",
        "read:estale:sector=1",
    ];
    let mut daemon = Daemon::start(&[0; 4096], &rules);
    let mut frontend = connect(&daemon, 1);
    for _ in 0..500 {
        for sector in [0, 1] {
            frontend.queue(0).run(&read(sector * 512, 512));
        }
    }
    assert_eq!(said(&daemon, "request failed"), 2, "{}", daemon.output());
    assert_eq!(daemon.count("total", "errors"), 1000);
}

#[test]
fn a_hundred_messages_that_make_no_sense_are_one_line() {
    let daemon = Daemon::start(&[0; 4096], &[]);
    let mut vm = Vm::connect(&daemon, 0);
    for _ in 0..100 {
        // One that the `vhost` crate finds wrong by itself: a table of no regions.
        let answer = vm.client.ask(msg::SET_MEM_TABLE, &mem_table(&[]), &[]);
        assert!(answer.is_refusal(), "{answer:?}");
    }
    assert_eq!(said(&daemon, "message refused"), 1, "{}", daemon.output());
}
