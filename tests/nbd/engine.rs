//! Channels to a server, without a guest: long requests and memory of any shape.

use std::cell::RefCell;
use std::rc::Rc;

use tempfile::TempDir;
use testkit::process::Process;
use vhost_user_blk::aio::AioContext;
use vhost_user_blk::connector;
use vhost_user_blk::defer::DeferScope;
use vhost_user_blk::engine::{BlockNode, Channel, Choice, NbdDisk, NbdOptions, RemoteOptions, Resources};
use vhost_user_blk::io::{Completer, IoOp, IoRange, IoRequest, Requests};
use vhost_user_blk::nbd::{Remote, Server};
use vhost_user_blk::thread_pool::{ThreadPool, ThreadPoolParams};

use crate::server::{SOCKET, directory, has, nbdkit, qemu_nbd};

const MIB: usize = 1 << 20;

#[derive(Default)]
struct Done(RefCell<Requests>);

impl Completer for Done {
    fn complete(&self, request: Box<IoRequest>) {
        self.0.borrow_mut().push(request);
    }
}

struct Disk {
    ctx: AioContext,
    node: BlockNode,
    channel: Channel,
    done: Rc<Done>,
    _server: Process,
    _dir: TempDir,
}

impl Disk {
    fn on(server: Process, dir: TempDir, export: &str) -> Self {
        let ctx = AioContext::new().expect("a context");
        let remote = Remote {
            server: Server::Unix(dir.path().join(SOCKET)),
            export: export.to_owned(),
            tls: None,
        };
        let line = connector::start_thread(&remote).expect("a line");
        let remote = RemoteOptions {
            unmap: true,
            ..RemoteOptions::default()
        };
        let options = NbdOptions {
            remote,
            ..NbdOptions::default()
        };
        let node = BlockNode::from(NbdDisk::open(&line, options).expect("a disk"));
        let resources = Resources::new(&ctx, ThreadPool::new(&ctx, ThreadPoolParams::default()));
        let plan = node.plan(Choice::Auto).expect("a plan");
        let channel = node.open_channel(&resources, plan).expect("a channel");
        Self {
            ctx,
            node,
            channel,
            done: Rc::default(),
            _server: server,
            _dir: dir,
        }
    }

    /// Runs requests together. Returns them in the order of their tokens.
    fn run(&self, requests: Requests) -> Requests {
        let (count, mut batch) = (requests.len(), requests);
        let completer = Rc::clone(&self.done) as Rc<dyn Completer>;
        {
            let _scope = DeferScope::enter();
            self.channel.submit(&mut batch, &completer);
        }
        while self.done.0.borrow().len() < count {
            self.ctx.poll(true);
        }
        let mut done = self.done.0.take();
        done.sort_by_key(|request| request.token);
        done
    }
}

/// Makes a transfer whose memory is in pieces of `piece` bytes.
fn transfer(op: IoOp, offset: u64, memory: &mut [u8], piece: usize) -> Box<IoRequest> {
    let mut request = IoRequest::new();
    (request.op, request.offset) = (op, offset);
    for part in memory.chunks_mut(piece) {
        // SAFETY: the memory outlives the request, and only the request uses it.
        unsafe { request.iov.push(part.as_mut_ptr(), part.len()) };
    }
    request
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7 + i / 4096 + seed) as u8).collect()
}

fn long_transfers(disk: &Disk) {
    for (seed, (len, piece)) in [(3 * MIB, 5000), (MIB, 512), (70_000 / 512 * 512, MIB), (512, 1)]
        .into_iter()
        .enumerate()
    {
        let mut data = pattern(len, seed);
        let expected = data.clone();
        let write = transfer(
            IoOp::Write {
                durable: seed % 2 == 0,
            },
            MIB as u64,
            &mut data,
            piece,
        );
        assert!(disk.run(vec![write])[0].result.is_ok());
        let mut halves = vec![0; len];
        let (first, second) = halves.split_at_mut(len / 1024 * 512);
        let at = MIB as u64 + first.len() as u64;
        let mut reads = vec![transfer(IoOp::Read, at, second, piece)];
        if !first.is_empty() {
            reads.push(transfer(IoOp::Read, MIB as u64, first, piece));
        }
        assert!(disk.run(reads).iter().all(|read| read.result.is_ok()));
        assert!(halves == expected, "{len} {piece}");
    }
}

#[test]
fn long_requests_of_any_shape_are_exact() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(8 * MIB as u64);
    let server = qemu_nbd(dir.path(), &[]);
    long_transfers(&Disk::on(server, dir, "disk"));
}

#[test]
fn long_requests_are_cut_for_servers_with_limits() {
    if !has("nbdkit") {
        return;
    }
    let dir = directory(512);
    let policy = [
        "--filter=blocksize-policy",
        "memory",
        "8M",
        "blocksize-error-policy=error",
    ];
    let sizes = [
        "blocksize-minimum=1",
        "blocksize-preferred=4096",
        "blocksize-maximum=65536",
    ];
    let server = nbdkit(dir.path(), &[&policy[..], &sizes].concat());
    long_transfers(&Disk::on(server, dir, ""));
}

#[test]
fn hundreds_of_requests_are_exact() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(8 * MIB as u64);
    let server = qemu_nbd(dir.path(), &[]);
    let disk = Disk::on(server, dir, "disk");
    let mut data = pattern(4 * MIB, 3);
    let expected = data.clone();
    let writes = data.chunks_mut(8192).enumerate();
    let write = |(i, part): (usize, &mut [u8])| {
        let mut write = transfer(IoOp::Write { durable: false }, (i * 8192) as u64, part, 4096);
        write.token = i as u16;
        write
    };
    let done = disk.run(writes.map(write).collect());
    assert!(done.len() == 512 && done.iter().all(|write| write.result.is_ok()));
    // In another order, and several times, because answers gather only when the speed of the server is known.
    for round in 0..4 {
        let mut read = vec![0; expected.len()];
        let parts = read.chunks_mut(4096).enumerate();
        let mut reads: Requests = parts
            .map(|(i, part)| transfer(IoOp::Read, (i * 4096) as u64, part, 4096))
            .collect();
        reads.reverse();
        assert!(disk.run(reads).iter().all(|read| read.result.is_ok()));
        assert!(read == expected, "round {round}");
    }
}

#[test]
fn ranges_without_data_are_exact() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(8 * MIB as u64);
    let server = qemu_nbd(dir.path(), &[]);
    let disk = Disk::on(server, dir, "disk");
    let mut data = pattern(MIB, 1);
    let mut expected = data.clone();
    disk.run(vec![transfer(IoOp::Write { durable: false }, 0, &mut data, MIB)]);
    let mut zeroes = IoRequest::new();
    zeroes.op = IoOp::WriteZeroes { durable: true };
    for (offset, len) in [(4096, 8192), (65_536, 512)] {
        expected[offset as usize..][..len as usize].fill(0);
        zeroes.ranges.push(IoRange {
            offset,
            len,
            unmap: len > 512,
        });
    }
    let mut flush = IoRequest::new();
    flush.op = IoOp::Flush;
    assert!(
        disk.run(vec![zeroes, flush])
            .iter()
            .all(|done| done.result.is_ok())
    );
    let mut read = vec![1; MIB];
    disk.run(vec![transfer(IoOp::Read, 0, &mut read, MIB)]);
    assert!(read == expected);
    let mut past = vec![0; 4096];
    let past = disk.run(vec![transfer(IoOp::Read, disk.node.size(), &mut past, 4096)]);
    assert!(past[0].result.is_err());
}
