use super::*;
use std::os::fd::{BorrowedFd, RawFd};

use vmm_sys_util::eventfd::EventFd;

use super::super::merge::Merger;
use super::super::writers::Writers;
use crate::io::Completer;
use crate::thread_pool::{ThreadPool, ThreadPoolParams};

/// A kernel queue that the test controls.
struct Fake(Rc<RefCell<Script>>);

struct Script {
    event: EventFd,
    capacity: usize,
    /// Number of requests that can be prepared before they must be submitted.
    room: usize,
    prepared: Vec<u64>,
    /// Number of submissions that will fail.
    failures: usize,
    taken: Vec<u64>,
    most_taken: usize,
    submissions: usize,
    finished: Vec<Completion>,
}

const CAPACITY: usize = 4;

impl KernelQueue for Fake {
    const COMMON_THREADS: bool = false;

    fn capacity(&self) -> usize {
        self.0.borrow().capacity
    }

    fn event_fd(&self) -> RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.0.borrow().event)
    }

    fn add_file(&mut self, _file: BorrowedFd<'_>) -> io::Result<u32> {
        Ok(0)
    }

    fn remove_file(&mut self, _file: u32) {}

    unsafe fn prepare(&mut self, _request: &IoRequest, _file: u32, data: u64) -> bool {
        let script = &mut *self.0.borrow_mut();
        let fits = script.prepared.len() < script.room;
        if fits {
            script.prepared.push(data);
        }
        fits
    }

    fn submit(&mut self) -> io::Result<()> {
        let script = &mut *self.0.borrow_mut();
        if script.failures > 0 {
            script.failures -= 1;
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        script.submissions += 1;
        script.taken.append(&mut script.prepared);
        script.most_taken = script.most_taken.max(script.taken.len());
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.0.borrow_mut().finished);
    }

    fn wait(&mut self) -> io::Result<()> {
        self.0.borrow_mut().finish(4096);
        Ok(())
    }

    fn set_signalled(&mut self, _on: bool) {}
}

impl Script {
    /// Completes all requests in the kernel with this result.
    fn finish(&mut self, result: i64) {
        let finished = self.taken.drain(..).map(|data| Completion { data, result });
        self.finished.extend(finished);
        self.event.write(1).unwrap();
    }
}

#[derive(Default)]
struct Done(RefCell<Vec<io::Result<()>>>);

impl Completer for Done {
    fn complete(&self, request: Box<IoRequest>) {
        self.0.borrow_mut().push(request.result);
    }
}

struct Setup {
    engine: KernelFile<Fake>,
    script: Rc<RefCell<Script>>,
    done: Rc<Done>,
    memory: Vec<u8>,
    ctx: AioContext,
}

impl Setup {
    fn new(room: usize, failures: usize) -> Self {
        Self::with_max_batch(room, failures, 0)
    }

    fn with_max_batch(room: usize, failures: usize, max_batch: u64) -> Self {
        let ctx = AioContext::new().unwrap();
        let file = super::super::testing::file();
        let script = Rc::new(RefCell::new(Script {
            event: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            capacity: CAPACITY,
            room,
            prepared: Vec::new(),
            failures,
            taken: Vec::new(),
            most_taken: 0,
            submissions: 0,
            finished: Vec::new(),
        }));
        let pool = ThreadPool::new(&ctx, ThreadPoolParams::default());
        let writer = || Writers::default().take(&ctx, &pool);
        let threads = Rc::new(ThreadsEngine::new(file, pool.clone(), writer));
        let engine = Rc::new(KernelEngine::new(&ctx, Fake(Rc::clone(&script))).unwrap());
        let engine = KernelFile::new(
            engine,
            threads,
            MaxBatch {
                of_disk: max_batch,
                ..MaxBatch::default()
            },
        )
        .unwrap();
        let (done, memory) = (Rc::default(), vec![0; 4096]);
        Self {
            engine,
            script,
            done,
            memory,
            ctx,
        }
    }

    /// Submits reads of 4096 bytes.
    fn submit(&mut self, count: usize) {
        let mut batch = self.batch(count);
        self.engine.submit(&mut batch);
    }

    /// Submits three such reads as one merged request. Their results are errors until they complete.
    fn submit_merged(&mut self) {
        let mut batch = self.batch(3);
        for (request, block) in batch.iter_mut().zip(0..) {
            request.offset = block * 4096;
            request.result = Err(io::ErrorKind::Other.into());
        }
        Merger::up_to(64 << 10).merge(&mut batch);
        assert_eq!(batch.len(), 1);
        self.engine.submit(&mut batch);
    }

    fn batch(&mut self, count: usize) -> Requests {
        let mut batch = Requests::new();
        for _ in 0..count {
            let mut request = IoRequest::new();
            // SAFETY: the memory outlives the engine, and no reference to it exists meanwhile.
            unsafe {
                request
                    .iov
                    .push(self.memory.as_ptr().cast_mut(), self.memory.len())
            };
            request.set_completer(Rc::clone(&self.done) as Rc<dyn Completer>);
            batch.push(request);
        }
        batch
    }

    fn done(&self) -> usize {
        self.done
            .0
            .borrow()
            .iter()
            .filter(|result| result.is_ok())
            .count()
    }
}

#[test]
fn submissions_never_exceed_the_kernels_capacity() {
    for room in [1, 3, 100] {
        let mut setup = Setup::new(room, 0);
        setup.submit(30);
        while setup.done() < 30 {
            setup.script.borrow_mut().finish(4096);
            setup.ctx.poll(true);
        }
        assert_eq!(setup.script.borrow().most_taken, CAPACITY, "room {room}");
    }
}

#[test]
fn stuck_files_leave_room_to_others() {
    let mut setup = Setup::new(100, 0);
    setup.script.borrow_mut().capacity = 64;
    let engine = Rc::clone(&setup.engine.engine);
    let file = |_| {
        let threads = Rc::clone(&setup.engine.file.threads);
        KernelFile::new(Rc::clone(&engine), threads, MaxBatch::default()).unwrap()
    };
    let others: Vec<_> = (0..7).map(file).collect();
    // No request completes.
    let mut taken = 0;
    for index in 0..8 {
        let mut batch = setup.batch(100);
        let file = if index == 0 {
            &setup.engine
        } else {
            &others[index - 1]
        };
        file.submit(&mut batch);
        let now = setup.script.borrow().taken.len();
        assert!(now - taken >= 2, "file {index} has a share");
        assert!(now - taken <= 32, "file {index} leaves room");
        taken = now;
    }
    while setup.done() < 800 {
        setup.script.borrow_mut().finish(4096);
        setup.ctx.poll(true);
    }
    drop(others);
    setup.submit(100);
    assert_eq!(
        setup.script.borrow().taken.len(),
        64,
        "a single file may use all room"
    );
    while setup.done() < 900 {
        setup.script.borrow_mut().finish(4096);
        setup.ctx.poll(true);
    }
}

#[test]
fn a_batch_is_submitted_in_parts_of_its_maximum() {
    for (max_batch, submissions) in [(1, 4), (2, 2), (3, 2), (4, 1), (0, 1)] {
        let mut setup = Setup::with_max_batch(100, 0, max_batch);
        setup.submit(CAPACITY);
        assert_eq!(setup.script.borrow().submissions, submissions, "{max_batch}");
        setup.script.borrow_mut().finish(4096);
        while setup.done() < CAPACITY {
            setup.ctx.poll(true);
        }
    }
}

#[test]
fn failed_submissions_are_retried() {
    for room in [1, 100] {
        let mut setup = Setup::new(room, 3);
        setup.submit(CAPACITY);
        // No request is in flight whose completion could trigger the retry.
        assert!(setup.script.borrow().taken.is_empty());
        while setup.script.borrow().taken.len() < CAPACITY {
            setup.ctx.poll(true);
        }
        setup.script.borrow_mut().finish(4096);
        while setup.done() < CAPACITY {
            setup.ctx.poll(true);
        }
    }
}

#[test]
fn a_worker_repeats_partial_transfers() {
    for part in [0, 512, -i64::from(libc::EINTR), -i64::from(libc::EAGAIN)] {
        let mut setup = Setup::new(100, 0);
        setup.submit(1);
        setup.script.borrow_mut().finish(part);
        while setup.done() < 1 {
            setup.ctx.poll(true);
        }
    }
}

#[test]
fn a_kernel_error_becomes_the_requests_result() {
    let mut setup = Setup::new(100, 0);
    setup.submit(1);
    setup.script.borrow_mut().finish(-i64::from(libc::ENOSPC));
    while setup.done.0.borrow().is_empty() {
        setup.ctx.poll(true);
    }
    let errno = setup.done.0.take().remove(0).unwrap_err().raw_os_error();
    assert_eq!(errno, Some(libc::ENOSPC));
}

#[test]
fn a_completed_merged_request_completes_each_member() {
    let mut setup = Setup::new(100, 0);
    setup.submit_merged();
    setup.script.borrow_mut().finish(3 * 4096);
    // Only the kernel was involved.
    setup.ctx.poll(true);
    assert_eq!(setup.done(), 3);
}

#[test]
fn a_worker_repeats_failed_merged_requests_individually() {
    for result in [-i64::from(libc::ENOSPC), -i64::from(libc::EAGAIN), 0, 4096] {
        let mut setup = Setup::new(100, 0);
        setup.submit_merged();
        setup.script.borrow_mut().finish(result);
        while setup.done.0.borrow().len() < 3 {
            setup.ctx.poll(true);
        }
        // The disk itself accepts all of them.
        assert_eq!(setup.done(), 3, "{result}");
    }
}

#[test]
fn dropping_an_engine_completes_its_requests() {
    let mut setup = Setup::new(2, 1);
    setup.submit(10);
    drop(setup.engine);
    assert_eq!(setup.done.0.borrow().len(), 10);
}
