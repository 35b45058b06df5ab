//! A frontend that sends any message over a real socket to a real server on its own thread.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use testkit::message::{self, msg};
use testkit::raw;
use vhost_user_blk::blk::device::{BlkDevice, DeviceParams};
use vhost_user_blk::blk::error_policy::ErrorPolicy;
use vhost_user_blk::engine::{BlockNode, Choice};
use vhost_user_blk::iothread::{IoThread, IoThreadParams};
use vhost_user_blk::storage::OpenOptions;
use vhost_user_blk::thread_pool::ThreadPoolParams;
use vhost_user_blk::vhost_user::Resizer;
use vhost_user_blk::vhost_user::server::Server;

use crate::guest::memfd;
use crate::queue::SERIAL;

pub const QUEUES: u16 = 2;
/// Initial size of the disk, and the number of further bytes in its file, which must never be written.
pub const DISK: u64 = 64 << 10;
pub const TAIL: u64 = 300;
/// Time limit for anything that does not hang.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A disk that serves one connection after the other for as long as the process lives.
pub struct Backend {
    pub disk: File,
    node: Arc<BlockNode>,
    connections: Sender<OwnedFd>,
    resizers: Receiver<Resizer>,
    done: Receiver<()>,
}

impl Backend {
    pub fn new() -> Self {
        let disk = memfd(DISK);
        let options = OpenOptions {
            path: format!("/proc/self/fd/{}", disk.as_raw_fd()).into(),
            ..OpenOptions::default()
        };
        let node = Arc::new(BlockNode::open(&options).expect("open a memfd"));
        let (connections, incoming) = mpsc::channel::<OwnedFd>();
        let (offer, resizers) = mpsc::channel();
        let (finished, done) = mpsc::channel();
        let served = Arc::clone(&node);
        let control = move || {
            let node = served;
            let threads = IoThreadParams {
                thread_pool: ThreadPoolParams {
                    min_threads: 1,
                    max_threads: 1,
                },
                ..IoThreadParams::default()
            };
            let iothreads = [0, 1].map(|_| IoThread::spawn("fuzz", &threads).expect("create an IOThread"));
            let mut device = BlkDevice::new(Arc::clone(&node), params(&node), &iothreads).expect("a disk");
            for connection in incoming {
                let server = Server::from_fd(connection).expect("a connected socket");
                let _ = offer.send(server.resizer(&device));
                server.run(&mut device);
                let _ = finished.send(());
            }
        };
        thread::Builder::new()
            .name("control".to_owned())
            .spawn(control)
            .expect("create the control thread");
        Self {
            disk,
            node,
            connections,
            resizers,
            done,
        }
    }

    pub fn connect(&self) -> (Client, Resizer) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        self.connections
            .send(theirs.into())
            .expect("the control thread lives");
        let resizer = self
            .resizers
            .recv_timeout(PATIENCE)
            .expect("it accepts the connection");
        (Client(raw::Client::new(ours)), resizer)
    }

    /// Waits until the backend has read the size again and serves a disk of `DISK` bytes.
    pub fn wait_for_size(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.node.size() != DISK {
            assert!(Instant::now() < deadline, "the size is not read again");
            thread::yield_now();
        }
    }

    /// Ends a connection, and waits until the backend has ended it as well.
    pub fn leave(&self, client: Client) {
        drop(client);
        self.done.recv_timeout(PATIENCE).expect("the connection ends");
    }
}

impl Default for Backend {
    fn default() -> Self {
        Self::new()
    }
}

fn params(node: &BlockNode) -> DeviceParams {
    DeviceParams {
        limits: *node.limits(),
        write_through: false,
        name: "fuzz".to_owned(),
        serial: SERIAL,
        num_queues: QUEUES,
        queue_size: 64,
        engine: node.plan(Choice::Auto).expect("it always finds one"),
        queue_iothreads: vec![0, 1],
        batch_notifications: true,
        error_policy: ErrorPolicy::default(),
        faults: None,
        throttle: None,
    }
}

/// The frontend's end of a connection. It accepts any answer of the backend.
pub struct Client(raw::Client);

impl Client {
    /// Sends bytes and descriptors. Returns `false` if the connection has ended.
    pub fn send(&mut self, bytes: &[u8], fds: &[RawFd]) -> bool {
        self.drain();
        self.0.send_bytes(&[bytes], fds).is_ok()
    }

    /// Sends a message with a header. Returns `false` if the connection has ended.
    pub fn message(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) -> bool {
        self.send(&message::message(request, flags, payload), fds)
    }

    /// Drops everything that the backend has sent so far.
    fn drain(&mut self) {
        while self
            .receive(Duration::ZERO)
            .is_ok_and(|(bytes, _)| !bytes.is_empty())
        {}
    }

    /// Reads the bytes that the backend sends next. At the end of the connection these are none.
    ///
    /// # Errors
    /// `WouldBlock`: nothing arrived within `timeout`.
    pub fn receive(&mut self, timeout: Duration) -> io::Result<(Vec<u8>, Option<File>)> {
        self.0.receive_any(timeout)
    }

    /// Asks for the features and waits for the reply, so that all earlier messages are handled. Returns `false` if the
    /// connection has ended.
    pub fn barrier(&mut self) -> bool {
        if !self.message(msg::GET_FEATURES, 0, &[], &[]) {
            return false;
        }
        let (mut rest, mut seen) = (PATIENCE, Vec::new());
        loop {
            match self.receive(Duration::from_millis(50).min(rest)) {
                Ok((bytes, _)) if bytes.is_empty() => return false,
                Ok((bytes, _)) => {
                    seen.extend(bytes);
                    // The reply to GET_FEATURES is the last one.
                    if seen.len() >= 20 && seen[seen.len() - 20..][..4] == msg::GET_FEATURES.to_le_bytes() {
                        return true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    rest = rest.saturating_sub(Duration::from_millis(50));
                    assert!(!rest.is_zero(), "the backend says nothing");
                }
                Err(_) => return false,
            }
        }
    }
}
