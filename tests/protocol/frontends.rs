//! Frontends are told about their errors. The log names frontends that connect or wait, and recovered requests.

use std::os::fd::AsRawFd;

use testkit::daemon::Daemon;
use testkit::inflight::Inflight;
use testkit::process::wait_for;
use testkit::raw::{Answer, Client, msg};
use testkit::target::{image, start};
use testkit::vm::{DATA, HEADER, Outcome, Ring, STATUS, Vm, header, readable, writable};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A queue size that is not supported.
fn bad_size() -> Vec<u8> {
    [0u32, 3].map(u32::to_le_bytes).concat()
}

fn lines<'a>(output: &'a str, what: &str) -> Vec<&'a str> {
    output.lines().filter(|line| line.contains(what)).collect()
}

#[test]
fn a_refusal_without_an_answer_disconnects() {
    let (mut daemon, _) = start();
    // Nothing is negotiated.
    let mut client = Client::new(daemon.connect());
    client
        .send(msg::SET_VRING_NUM, 0, &bad_size(), &[])
        .expect("send");
    client.wait_for_end();
    // Without the protocol feature, asking for an answer does not help.
    let mut client = Client::new(daemon.connect());
    assert_eq!(client.ask(msg::SET_VRING_NUM, &bad_size(), &[]), Answer::Closed);
    // Negotiating the feature without asking for an answer does not help either.
    let mut client = Client::new(daemon.connect());
    client.negotiate(0).expect("negotiate");
    client
        .send(msg::SET_VRING_NUM, 0, &bad_size(), &[])
        .expect("send");
    client.wait_for_end();
    // The `vhost` crate itself refuses this message.
    let mut client = Client::new(daemon.connect());
    client.send(msg::SET_MEM_TABLE, 0, &[0; 8], &[]).expect("send");
    client.wait_for_end();
    daemon.wait_for(
        |daemon| {
            daemon
                .output()
                .contains("only this can tell the frontend (no REPLY_ACK): queue size 3")
        },
        "say why",
    );
}

#[test]
fn an_answered_refusal_keeps_the_connection() {
    let (daemon, _) = start();
    let mut vm = Vm::connect(&daemon, 0);
    for _ in 0..3 {
        let answer = vm.client.ask(msg::SET_VRING_NUM, &bad_size(), &[]);
        assert_eq!(answer, Answer::Nak);
    }
    vm.share_memory();
    vm.start_ring(0, Ring::new(0, 16));
    vm.read_sector(0, 3);
}

#[test]
fn a_waiting_frontend_is_logged_and_then_served() {
    let (mut daemon, _) = start();
    let mut first = Vm::start(&daemon, 1);
    let waits = "another frontend has connected and waits";
    assert_eq!(lines(&daemon.output(), waits).len(), 0);
    let second = daemon.connect();
    daemon.wait_for(|daemon| daemon.output().contains(waits), "notice it");
    first.read_sector(0, 3);
    let third = daemon.connect();
    daemon.wait_for(
        |daemon| lines(&daemon.output(), waits).len() == 2,
        "notice the third",
    );
    drop(third);
    drop(first);
    let mut second = Vm::on(second, 0);
    second.share_memory();
    second.start_ring(0, Ring::new(0, 16));
    second.read_sector(0, 3);
    let output = daemon.output();
    let me = format!("pid={}", std::process::id());
    for what in [waits, "frontend connected"] {
        assert!(lines(&output, what)[0].contains(&me), "{output}");
    }
}

#[test]
fn recovery_logs_the_number_of_requests() {
    let (delay, options) = (["--inject", "write:delay=60s"], ["--num-queues", "2"]);
    let mut daemon = Daemon::start(&image(), &[options, delay].concat());
    let mut vm = Vm::connect(&daemon, 0);
    let region = Inflight::get(&mut vm.client, 2, 16);
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    vm.share_memory();
    vm.start_ring(0, Ring::new(0, 16));
    vm.start_ring(1, Ring::new(1, 16));
    restart_without_requests(&mut vm);
    vm.poke(HEADER, &header(1, 5));
    vm.send(
        0,
        &[readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)],
    );
    wait_for("the write to be taken", || {
        (region.marked(0) == [0]).then_some(())
    });
    assert_eq!(lines(&daemon.output(), "ring resumed").len(), 0);

    daemon.stop_with(libc::SIGKILL);
    daemon.start_again(&options);
    vm.reconnect(daemon.connect(), 0);
    vm.share_memory();
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    vm.restart_rings();
    assert_eq!(vm.outcome(0), Outcome::Used { id: 0, len: 1 });
    vm.read_sector(1, 3);
    restart_without_requests(&mut vm);
    let output = daemon.output();
    let resumed = lines(&output, "ring resumed");
    assert_eq!(resumed.len(), 2, "{output}");
    assert!(resumed[0].contains("queue=0 requests=1"), "{output}");
    assert!(resumed[1].contains("queue=1 requests=0"), "{output}");
}

/// Stops and starts the second of two rings: nothing is taken over from a predecessor.
fn restart_without_requests(vm: &mut Vm) {
    vm.read_sector(1, 3);
    vm.client.stop_ring(1).expect("stop");
    let ring = vm.rings.pop().expect("two");
    vm.start_ring(1, ring);
    vm.read_sector(1, 3);
}

fn flags(event: &EventFd) -> i32 {
    // SAFETY: no memory is involved.
    unsafe { libc::fcntl(event.as_raw_fd(), libc::F_GETFL) }
}

#[test]
fn flags_of_shared_eventfds_stay_as_they_are() {
    let (daemon, _) = start();
    for kind in [0, EFD_NONBLOCK] {
        let mut vm = Vm::connect(&daemon, 0);
        vm.share_memory();
        let mut ring = Ring::new(0, 16);
        for place in [&mut ring.kick, &mut ring.call, &mut ring.err] {
            *place = EventFd::new(kind).expect("make an eventfd");
        }
        let before = [&ring.kick, &ring.call, &ring.err].map(flags);
        vm.start_ring(0, ring);
        for sector in 0..3 {
            vm.read_sector(0, sector);
        }
        vm.client.stop_ring(0).expect("stop");
        let ring = &vm.rings[0];
        assert_eq!([&ring.kick, &ring.call, &ring.err].map(flags), before);
    }
}

#[test]
fn a_call_eventfd_that_is_set_wakes_nobody() {
    let (daemon, _) = start();
    let mut vm = Vm::connect(&daemon, 0);
    let event = EventFd::new(0).expect("make an eventfd");
    let epoll = Epoll::new().expect("make an epoll");
    // A write of 0 wakes a waiter too, and an edge-triggered epoll reports each wakeup.
    let all = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
    epoll
        .ctl(ControlOperation::Add, event.as_raw_fd(), EpollEvent::new(all, 0))
        .expect("watch it");
    let woken = || epoll.wait(0, &mut [EpollEvent::default()]).expect("look");
    assert_eq!(woken(), 1, "it can be written to");
    for request in [msg::SET_VRING_CALL, msg::SET_VRING_ERR, msg::SET_VRING_KICK] {
        let answer = vm.client.vring_fd(request, 0, Some(event.as_raw_fd()));
        assert_eq!((answer, woken()), (Answer::Ack, 0), "request {request}");
    }
}
