use super::*;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

fn nothing() -> io::Result<()> {
    Ok(())
}

fn eio() -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::EIO))
}

#[test]
fn callers_during_a_flush_share_the_next() {
    let mut state = State::new(true, false);
    let first = state.next();
    assert!(matches!(state.turn(first), Turn::Run));
    // Three callers write and flush while the first flush runs, which may have missed all their writes.
    let late = [(); 3].map(|()| state.next());
    assert!(
        late.iter()
            .all(|&needed| matches!(state.turn(needed), Turn::Wait))
    );
    state.end(&Ok(()));
    assert!(matches!(state.turn(first), Turn::Over(Ok(()))));
    assert!(matches!(state.turn(late[1]), Turn::Run));
    assert!(matches!(state.turn(late[0]), Turn::Wait));
    state.end(&Ok(()));
    assert!(
        late.iter()
            .all(|&needed| matches!(state.turn(needed), Turn::Over(Ok(()))))
    );
    assert_eq!(state.begun, 2);
}

#[test]
fn a_failed_flush_fails_for_all_its_callers() {
    for sticky in [false, true] {
        let mut state = State::new(sticky, false);
        let needed = state.next();
        assert!(matches!(state.turn(needed), Turn::Run));
        state.end(&eio());
        assert!(matches!(state.turn(needed), Turn::Over(Err(_))));
        // A later flush that succeeds does not help the callers that needed this one.
        let next = state.next();
        if !sticky {
            assert!(matches!(state.turn(next), Turn::Run));
            state.end(&Ok(()));
            assert!(matches!(state.turn(next), Turn::Over(Ok(()))));
        }
        assert!(
            matches!(state.turn(needed), Turn::Over(Err(_))),
            "sticky: {sticky}"
        );
    }
}

#[test]
fn through_the_page_cache_a_failure_is_final() {
    let flusher = Flusher::new(true, false);
    assert_eq!(
        flusher.flush(nothing, nothing, eio).unwrap_err().raw_os_error(),
        Some(libc::EIO)
    );
    assert!(flusher.is_over());
    // The kernel has reported the failure, and would now report success.
    assert_eq!(
        flusher
            .flush(nothing, nothing, || Ok(()))
            .unwrap_err()
            .raw_os_error(),
        Some(libc::EIO)
    );
}

#[test]
fn without_a_page_cache_a_flush_can_be_retried() {
    let flusher = Flusher::new(false, false);
    flusher.flush(nothing, nothing, eio).unwrap_err();
    assert!(!flusher.is_over());
    flusher.flush(nothing, nothing, || Ok(())).unwrap();
    flusher.flush(nothing, nothing, eio).unwrap_err();
}

/// Remembers the last event.
#[derive(Debug, Default)]
struct Told(Mutex<&'static str>);

impl Told {
    fn last(&self) -> &'static str {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl FlushWitness for Told {
    fn taking_report(&self) {
        *self.0.lock().unwrap() = "taking";
    }

    fn begun(&self) {
        *self.0.lock().unwrap() = "begun";
    }

    fn succeeded(&self) {
        *self.0.lock().unwrap() = "succeeded";
    }

    fn failed(&self) {
        *self.0.lock().unwrap() = "failed";
    }
}

#[test]
fn the_witness_knows_before_the_caller() {
    let (flusher, told) = (Flusher::new(true, false), Arc::new(Told::default()));
    flusher.replace_witness(None, Some(Arc::clone(&told) as _));
    let sync = || {
        assert_eq!(told.last(), "begun");
        Ok(())
    };
    let check = || {
        assert_eq!(told.last(), "");
        Ok(())
    };
    flusher.flush(check, nothing, sync).unwrap();
    assert_eq!(told.last(), "succeeded");
    flusher
        .flush(eio, nothing, || {
            unreachable!("a flush would consume the kernel's report")
        })
        .unwrap_err();
    assert_eq!(told.last(), "failed");
    flusher.replace_witness(None, Some(Arc::clone(&told) as _));
    assert_eq!(told.last(), "failed", "a new witness");
}

#[test]
fn every_disk_on_a_file_has_a_witness() {
    let flusher = Flusher::new(true, false);
    let [first, second, late] = [(); 3].map(|()| Arc::new(Told::default()));
    let (old, other) = (Arc::clone(&first) as Arc<dyn FlushWitness>, Arc::clone(&second));
    flusher.replace_witness(None, Some(Arc::clone(&old)));
    flusher.replace_witness(None, Some(other));
    flusher.flush(nothing, nothing, nothing).unwrap();
    assert_eq!((first.last(), second.last()), ("succeeded", "succeeded"));
    flusher.replace_witness(Some(&old), None);
    let fails = || {
        flusher.replace_witness(None, Some(Arc::clone(&late) as _));
        eio()
    };
    flusher.flush(nothing, nothing, fails).unwrap_err();
    let told = [first, second, late].map(|witness| witness.last());
    assert_eq!(told, ["", "failed", "failed"]);
}

#[test]
fn only_the_first_flush_takes_a_predecessors_report() {
    let (flusher, told) = (Flusher::new(true, true), Arc::new(Told::default()));
    flusher.replace_witness(None, Some(Arc::clone(&told) as _));
    let take = || {
        assert_eq!(told.last(), "taking");
        Ok(())
    };
    let sync = || {
        assert_eq!(told.last(), "begun");
        Ok(())
    };
    flusher.flush(nothing, take, sync).unwrap();
    assert_eq!(told.last(), "succeeded");
    flusher.flush(nothing, || unreachable!("taken"), sync).unwrap();
}

#[test]
fn a_predecessors_report_fails_all_flushes() {
    let (flusher, told) = (Flusher::new(true, true), Arc::new(Told::default()));
    flusher.replace_witness(None, Some(Arc::clone(&told) as _));
    let sync = || unreachable!("the report says enough");
    flusher.flush(nothing, eio, sync).unwrap_err();
    assert_eq!(told.last(), "failed");
    flusher.flush(nothing, nothing, nothing).unwrap_err();
}

#[test]
fn a_flush_that_can_be_retried_needs_no_witness() {
    let (flusher, told) = (Flusher::new(false, false), Arc::new(Told::default()));
    flusher.replace_witness(None, Some(Arc::clone(&told) as _));
    flusher.flush(nothing, nothing, eio).unwrap_err();
    assert!(flusher.has_failed());
    flusher.flush(nothing, nothing, nothing).unwrap();
    assert!(!flusher.has_failed());
    assert_eq!(told.last(), "");
    flusher.give_up(libc::EIO);
    assert_eq!(told.last(), "failed");
    flusher.flush(nothing, nothing, nothing).unwrap_err();
}

#[test]
fn flushes_cover_earlier_writes_and_never_overlap() {
    let (flusher, written, stable, running) = (
        Flusher::new(true, false),
        AtomicU64::new(0),
        AtomicU64::new(0),
        AtomicU64::new(0),
    );
    let sync = || {
        assert_eq!(running.fetch_add(1, SeqCst), 0);
        let covered = written.load(SeqCst);
        std::thread::yield_now();
        stable.store(covered, SeqCst);
        running.fetch_sub(1, SeqCst);
        Ok(())
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let mine = written.fetch_add(1, SeqCst) + 1;
                    flusher.flush(nothing, nothing, sync).unwrap();
                    assert!(stable.load(SeqCst) >= mine);
                }
            });
        }
    });
}
