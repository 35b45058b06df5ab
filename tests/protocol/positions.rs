//! The indices of rings in the statistics.

use testkit::daemon::Daemon;
use testkit::process::wait_for;
use testkit::raw::{Answer, msg};
use testkit::vm::{EVENT_IDX, Vm};

/// Returns the line of the ring. A busy IOThread may not say in time where the ring stands.
fn ring(daemon: &mut Daemon) -> String {
    wait_for("the ring's position", || {
        let statistics = daemon.statistics();
        let mut lines = statistics.lines();
        let line = lines.find_map(|line| line.strip_prefix("stats: queue 0 ring: "));
        let line = line.expect("a line for each ring");
        line.contains(" avail=").then(|| line.to_owned())
    })
}

#[test]
fn statistics_show_a_request_that_waits() {
    for (features, wanted) in [
        (0, "no_notify=0 no_interrupt=0"),
        (EVENT_IDX, "avail_event=3 used_event=0"),
    ] {
        let mut daemon = Daemon::start(&[0; 1 << 16], &["--poll-max-ns", "0"]);
        let stopped = daemon.statistics();
        assert!(
            stopped.contains("stats: queue 0 ring: state=stopped broken=0\n"),
            "{stopped}"
        );
        let mut vm = Vm::start_with(&daemon, 1, 16, features);
        (0..3).for_each(|sector| drop(vm.read_sector(0, sector)));
        let expected = |avail| {
            format!(
                "state=running broken=0 size=16 avail={avail} taken=3 answered=3 published=3 {wanted} polled=0"
            )
        };
        assert_eq!(ring(&mut daemon), expected(3));
        let disabled = vm.client.vring_state(msg::SET_VRING_ENABLE, 0, 0);
        assert_eq!(disabled, Answer::Ack);
        vm.publish(0, 0);
        assert_eq!(ring(&mut daemon), expected(4));
    }
}
