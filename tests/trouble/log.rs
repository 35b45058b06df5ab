//! Events that a guest can repeat: each is logged once, and counted in the statistics.

use std::io::Write;

use crate::{connect, read, said, write};
use testkit::daemon::Daemon;
use testkit::process::wait_for;
use testkit::raw::{mem_table, msg};
use testkit::vm::{DATA, FILL, HEADER, Outcome, Ring, STATUS, Vm, header, readable, writable};

#[test]
fn a_repeatedly_broken_ring_is_logged_once() {
    let mut daemon = Daemon::start(&[0; 4096], &["--num-queues", "2"]);
    let mut vm = Vm::connect(&daemon, 0);
    vm.share_memory();
    vm.start_ring(1, Ring::new(1, 16));
    for round in 1..=20 {
        // The table has no descriptor 99.
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
    // The ring breaks for the same reason each time.
    assert_eq!(
        said(&daemon, "names descriptor 99 of 16"),
        1,
        "{}",
        daemon.output()
    );
}

#[test]
fn a_thousand_identical_failures_are_logged_once() {
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
fn a_hundred_invalid_messages_are_logged_once() {
    let daemon = Daemon::start(&[0; 4096], &[]);
    let mut vm = Vm::connect(&daemon, 0);
    for _ in 0..100 {
        // A message that the `vhost` crate itself refuses: a table of no regions.
        let answer = vm.client.ask(msg::SET_MEM_TABLE, &mem_table(&[]), &[]);
        assert!(answer.is_refusal(), "{answer:?}");
    }
    assert_eq!(said(&daemon, "message refused"), 1, "{}", daemon.output());
}

#[test]
fn each_of_a_few_frontends_is_logged() {
    let mut daemon = Daemon::start(&[0; 4096], &[]);
    for _ in 0..5 {
        drop(Vm::connect(&daemon, 0));
    }
    daemon.wait_for(
        |daemon| said(daemon, "frontend left") == 5,
        "see all of them leave",
    );
    assert_eq!(said(&daemon, "frontend connected"), 5, "{}", daemon.output());
    assert_eq!(said(&daemon, "suppressed"), 0, "{}", daemon.output());
}

#[test]
fn first_and_last_lines_name_disk_and_socket() {
    let mut daemon = Daemon::start(&[0; 4096], &[]);
    drop(Vm::connect(&daemon, 0));
    let exit = daemon.terminate();
    // A daemon without a sandbox says so first.
    let lines = exit.output.lines().filter(|line| !line.contains("no sandbox"));
    let lines: Vec<&str> = lines.collect();
    let named = |line: &str, words: &[&str]| words.iter().all(|word| line.contains(word));
    let first = ["serving", r#"disk="disk.img""#, r#"socket="vhost-user-blk.sock""#];
    assert!(named(lines[0], &first), "{}", exit.output);
    let last = ["stopped", r#"disk="disk.img""#, r#"reason="SIGTERM""#];
    assert!(named(lines[lines.len() - 1], &last), "{}", exit.output);
}

#[test]
fn a_hundred_frontends_make_few_log_lines() {
    let mut daemon = Daemon::start(&[0; 4096], &[]);
    for _ in 0..100 {
        drop(Vm::connect(&daemon, 0));
    }
    daemon.wait_for(|daemon| said(daemon, "frontend left") > 0, "see one leave");
    for _ in 0..100 {
        // The client sends half a header and disconnects.
        let mut stream = daemon.connect();
        stream.write_all(&[0; 6]).expect("send a part");
    }
    daemon.wait_for(|daemon| said(daemon, "connection ended") > 0, "see one leave");
    // The daemon serves one connection at a time, so it has handled all of them by now.
    drop(Vm::connect(&daemon, 0));
    for (line, count) in [
        ("frontend connected", 20),
        ("frontend left", 20),
        ("connection ended", 1),
    ] {
        assert_eq!(said(&daemon, line), count, "{}", daemon.output());
    }
}

#[test]
fn repeated_stops_on_enospc_make_few_lines() {
    let mut daemon = Daemon::start(&[0; 4096], &["--inject", "write:enospc"]);
    let mut vm = Vm::start(&daemon, 1);
    vm.poke(HEADER, &header(1, 0));
    let chain = [readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)];
    vm.poke(STATUS, &[FILL]);
    vm.send(0, &chain);
    for round in 1..=5 {
        wait_for("the write to be held", || {
            (daemon.count("total", "held_ever") == round).then_some(())
        });
        assert_eq!(vm.client.stop_ring(0).expect("stop"), 0);
        vm.restart_rings();
        assert_eq!((vm.take_used(0), vm.peek(STATUS, 1)), (None, vec![FILL]));
    }
    for line in ["ring stops while", "no room on the disk", "no request is held"] {
        assert_eq!(said(&daemon, line), 1, "{line}: {}", daemon.output());
    }
}

#[test]
fn repeated_enospc_makes_few_log_lines() {
    // Each write succeeds at the third try.
    let rules = [0, 1, 2, 3].map(|n| format!("write:enospc:sector={n},count=2"));
    let options: Vec<&str> = rules.iter().flat_map(|rule| ["--inject", rule]).collect();
    let mut daemon = Daemon::start(&[0; 4096], &options);
    let mut frontend = connect(&daemon, 1);
    for sector in 0..rules.len() {
        assert_eq!(frontend.queue(0).run(&write(sector * 512, &[1; 512])).ret, 0);
    }
    assert_eq!(daemon.count("total", "held_ever"), 4);
    let lines = ["disk: held", "still no room", "no request is held"].map(|line| said(&daemon, line));
    assert_eq!(lines, [1, 1, 2], "{}", daemon.output());
}
