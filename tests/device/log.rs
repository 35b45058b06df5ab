//! Log lines that a frontend can cause again and again are written once for each disk.

use std::fs::File;
use std::io::{Read, Seek};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vhost_user_blk::engine::Choice;
use vhost_user_blk::virtqueue::RingFeatures;

use super::vm::{Disk, Vm};

const FEATURES: RingFeatures = RingFeatures {
    event_idx: false,
    indirect: true,
};

/// Runs `body` and returns its log lines on this thread.
fn logged(body: impl FnOnce()) -> String {
    let mut file = tempfile::tempfile().unwrap();
    let writer = Arc::new(file.try_clone().unwrap());
    let subscriber = tracing_subscriber::fmt().with_writer(writer).finish();
    tracing::subscriber::with_default(subscriber, body);
    let mut log = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut log).unwrap();
    log
}

/// Returns a file that nothing can be written to.
fn full() -> Option<Arc<File>> {
    Some(File::options().write(true).open("/dev/full").unwrap().into())
}

fn use_what_cannot_be_used(vm: &mut Vm) {
    let (kick, mut other) = UnixStream::pair().unwrap();
    other.shutdown(Shutdown::Write).unwrap();
    other.set_nonblocking(true).unwrap();
    let kick = File::from(OwnedFd::from(kick)).into();
    vm.run(|queue| queue.set_kick(Some(kick)).unwrap());
    // The queue closes the descriptor that it cannot read.
    vm.poll_until(|_| other.read(&mut [0]).is_ok());
    vm.replace_kick();
    vm.run(|queue| queue.set_call(full()));
    vm.read(0, 0);
    vm.run(|queue| queue.set_err(full()));
    // The table has no descriptor 99.
    vm.offer(99);
    vm.kick();
    vm.poll_until(|vm| vm.stats.broken.get() == 1);
}

#[test]
fn each_unusable_eventfd_is_logged_once() {
    let disk = Disk::new(&[7; 4096], Choice::Threads);
    let log = logged(|| (0..5).for_each(|_| use_what_cannot_be_used(&mut Vm::on(&disk, 64, 0, FEATURES))));
    for line in [
        "kick eventfd cannot be read",
        "call eventfd cannot be written",
        "error eventfd cannot be written",
    ] {
        assert_eq!(log.matches(line).count(), 1, "{log}");
    }
}

#[test]
fn one_disks_log_lines_hide_no_others() {
    let disks = [0; 2].map(|_| Disk::new(&[7; 4096], Choice::Threads));
    let log = logged(|| {
        for disk in &disks {
            use_what_cannot_be_used(&mut Vm::on(disk, 64, 0, FEATURES));
        }
    });
    for line in [
        "kick eventfd cannot be read",
        "call eventfd cannot be written",
        "virtqueue is broken",
    ] {
        assert_eq!(log.matches(line).count(), 2, "{log}");
    }
    let lines = log.lines().filter(|line| line.contains("queue="));
    assert!(
        lines.into_iter().all(|line| line.contains("disk=\"test\"")),
        "{log}"
    );
}
