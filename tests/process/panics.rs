//! A panic ends the process, so that it can be restarted. A worker's panic fails only its request.

use std::fs::File;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::{env, thread};

use testkit::daemon::{Daemon, IMAGE, SOCKET, binary};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::inflight::Inflight;
use testkit::process::{Process, wait_for};
use testkit::raw::Answer;
use testkit::target::image;
use testkit::vm::{DATA, HEADER, Outcome as Answered, Ring, STATUS, Vm, header, readable, writable};
use vhost_user_blk::aio::{AioContext, IoThread, IoThreadConfig};
use vhost_user_blk::panics;
use vhost_user_blk::thread_pool::{Outcome, ThreadPool, ThreadPoolParams, Work};

/// The exit status after a panic of a Rust program's main thread.
const STATUS_OF_A_PANIC: i32 = 101;

#[test]
fn a_successor_finishes_what_a_panicking_iothread_left() {
    let args = ["--inject", "write:panic", "--num-queues", "2"];
    let mut daemon = Daemon::start(&image(), &args);
    let mut vm = Vm::connect(&daemon, 0);
    let region = Inflight::get(&mut vm.client, 2, 16);
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    vm.share_memory();
    vm.start_ring(0, Ring::new(0, 16));
    vm.read_sector(0, 3);
    vm.poke(HEADER, &header(1, 5));
    vm.poke(DATA, &[7; 512]);
    vm.send(
        0,
        &[readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)],
    );

    let exit = daemon.wait_for_exit();
    assert_eq!(exit.status.code(), Some(STATUS_OF_A_PANIC), "{}", exit.output);
    assert!(
        exit.output.contains("thread iothread0 has panicked"),
        "{}",
        exit.output
    );
    assert_eq!(region.marked(0), [0], "the write is in flight");

    daemon.start_again(&["--num-queues", "2"]);
    vm.reconnect(daemon.connect(), 0);
    vm.share_memory();
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    vm.restart_rings();
    assert_eq!(vm.outcome(0), Answered::Used { id: 0, len: 1 });
    assert_eq!(vm.peek(STATUS, 1), [0]);
    assert_eq!(daemon.image()[5 * 512..6 * 512], [7; 512]);
    vm.read_sector(0, 3);
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let dir = tempfile::tempdir().expect("make a directory");
    std::fs::write(dir.path().join(IMAGE), image()).expect("write an image");
    let (reader, gone) = std::io::pipe().expect("make a pipe");
    drop(reader);
    let full = File::options()
        .write(true)
        .open("/dev/full")
        .expect("open /dev/full");
    for log in [Stdio::from(full), Stdio::from(gone)] {
        let mut command = Command::new(binary());
        command.args(["--socket-path", SOCKET, "--blk-file", IMAGE, "--stats"]);
        command.current_dir(dir.path()).stdin(Stdio::null()).stderr(log);
        let (mut process, ()) = Process::start("vhost-user-blk", &mut command, |_| ());
        let socket = dir.path().join(SOCKET);
        let mut frontend = wait_for("the daemon", || {
            assert_eq!(process.ended(), None);
            Frontend::connect(&socket, 1, 1, all_features()).ok()
        });
        assert_eq!(frontend.queue(0).run(&Op::Flush).ret, 0);
        drop(frontend);
        process.signal(libc::SIGTERM);
        assert!(process.wait().success());
    }
}

/// Runs this test in a process of its own, where panics end the process.
fn run_alone(test: &str) -> Output {
    let exe = env::current_exe().expect("the test's file");
    let mut command = Command::new(exe);
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command.env("PANICS_ALONE", "1").output().expect("run it")
}

fn is_alone() -> bool {
    let alone = env::var_os("PANICS_ALONE").is_some();
    if alone {
        panics::end_the_process();
    }
    alone
}

fn assert_panicked(output: &Output, thread: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(STATUS_OF_A_PANIC), "{text}");
    assert!(text.contains("on purpose"), "{text}");
    assert!(text.contains(&format!("thread {thread} has panicked")), "{text}");
}

#[test]
fn a_panic_on_any_thread_ends_the_process() {
    if is_alone() {
        let body = || panic!("on purpose");
        let control = thread::Builder::new().name("control".to_owned()).spawn(body);
        let _ = control.expect("a thread").join();
        return;
    }
    assert_panicked(
        &run_alone("panics::a_panic_on_any_thread_ends_the_process"),
        "control",
    );
}

#[test]
fn a_callback_panic_does_not_unwind() {
    struct Witness;
    impl Drop for Witness {
        fn drop(&mut self) {
            eprintln!("unwound");
        }
    }
    if is_alone() {
        let iothread = IoThread::spawn("iothread0", IoThreadConfig::default()).expect("an IOThread");
        let callback = |_: &AioContext| {
            let _witness = Witness;
            panic!("on purpose");
        };
        iothread.handle().run_on_context(callback).expect("it runs");
        drop(iothread);
        return;
    }
    let output = run_alone("panics::a_callback_panic_does_not_unwind");
    assert_panicked(&output, "iothread0");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("unwound"));
}

struct Panicking(mpsc::Sender<Outcome>);

impl Work for Panicking {
    fn run(&mut self) {
        panic!("on purpose");
    }

    fn complete(self: Box<Self>, _ctx: &AioContext, outcome: Outcome) {
        self.0.send(outcome).expect("the test waits");
    }
}

#[test]
fn a_worker_panic_fails_only_its_own_request() {
    if is_alone() {
        let ctx = AioContext::new().expect("a context");
        let pool = ThreadPool::new(&ctx, ThreadPoolParams::default());
        let (sender, outcome) = mpsc::channel();
        for _ in 0..3 {
            pool.submit(Box::new(Panicking(sender.clone())));
            let outcome = loop {
                match outcome.try_recv() {
                    Ok(outcome) => break outcome,
                    Err(_) => ctx.poll(true),
                };
            };
            assert_eq!(outcome, Outcome::Panicked);
        }
        return;
    }
    let output = run_alone("panics::a_worker_panic_fails_only_its_own_request");
    assert!(output.status.success(), "{output:?}");
}
