use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::storage::{ImageLock, OpenOptions};

/// A disk with a turn.
struct Disk {
    turn: Turn,
    below: Below,
}

impl Disk {
    fn take(&mut self, run: impl FnOnce(IoOp) -> io::Result<()>) -> Result<bool, TakeError> {
        self.turn.take(&self.below, run)
    }

    fn hand_over(&mut self, run: impl FnOnce(IoOp) -> io::Result<()>) -> io::Result<()> {
        self.turn.hand_over(&self.below.view().node, run)
    }
}

fn open(path: &std::path::Path) -> Disk {
    let options = OpenOptions {
        path: path.to_owned(),
        ..OpenOptions::default()
    };
    let node = Arc::new(BlockNode::open(&options).unwrap());
    Disk {
        turn: Turn::new(true),
        below: Below::new(DiskView::whole(node)),
    }
}

/// Succeeds without doing anything.
fn ready(_op: IoOp) -> io::Result<()> {
    Ok(())
}

fn in_use(turn: &mut Disk) -> bool {
    matches!(turn.take(ready), Err(TakeError::Lock(LockError::InUse { .. })))
}

#[test]
fn two_disks_use_an_image_in_turns() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(4096).unwrap();
    let [mut source, mut destination] = [open(image.path()), open(image.path())];
    source.take(ready).unwrap();
    source.take(ready).unwrap();
    assert!(in_use(&mut destination));
    source.hand_over(ready).unwrap();
    destination.take(ready).unwrap();
    assert!(in_use(&mut source));
    source.hand_over(ready).unwrap();
    assert!(in_use(&mut source));
    drop(destination);
    source.take(ready).unwrap();
}

#[test]
fn a_predecessor_has_time_to_unlock_the_image() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(4096).unwrap();
    let [mut old, mut new] = [open(image.path()), open(image.path())];
    old.take(ready).unwrap();
    let start = Instant::now();
    assert!(new.take(ready).is_err());
    assert!(start.elapsed() >= ImageLock::PATIENCE);
}

#[test]
fn an_unflushed_image_outlives_its_disk_locked() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(4096).unwrap();
    let [mut old, mut new] = [open(image.path()), open(image.path())];
    old.take(ready).unwrap();
    old.hand_over(|_| Err(io::ErrorKind::Other.into())).unwrap_err();
    let node = Arc::clone(&old.below.view().node);
    drop(old);
    let kept = |result| matches!(result, Err(TakeError::Lock(LockError::Kept { .. })));
    assert!(kept(new.take(ready)), "another node");
    let mut again = Disk {
        turn: Turn::new(true),
        below: Below::new(DiskView::whole(node)),
    };
    assert!(kept(again.take(ready)), "the same node");
}

#[test]
fn a_second_flush_that_succeeds_releases_the_image() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(4096).unwrap();
    let [mut old, mut new] = [open(image.path()), open(image.path())];
    old.take(ready).unwrap();
    old.hand_over(|_| Err(io::ErrorKind::Other.into())).unwrap_err();
    old.hand_over(ready).unwrap();
    drop(old);
    new.take(ready).unwrap();
}

#[test]
fn a_waived_turn_leaves_the_image_alone() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(4096).unwrap();
    let [mut waiting, mut other] = [open(image.path()), open(image.path())];
    waiting.turn.waive(true);
    waiting.take(|_| panic!("nothing is looked at")).unwrap();
    other.take(ready).unwrap();
    other.hand_over(ready).unwrap();
    waiting.turn.waive(false);
    waiting.take(ready).unwrap();
    assert!(in_use(&mut other));
}

#[test]
fn a_thread_waits_for_its_turn() {
    let shared = SharedTurn::new(true);
    let mut first = shared.get();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| shared.get().waived);
        first.waive(true);
        drop(first);
        assert!(waiter.join().unwrap());
    });
}
