//! The daemon on a disk that loses all unsynced data: data that the driver was told is stable must survive.
//!
//! The disk is a file, and `lose.c` is preloaded into the daemon. The tests are skipped without a C compiler.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use testkit::daemon::binary;
use testkit::inflight::Inflight;
use testkit::preload;
use testkit::process::{Process, wait_for};
use testkit::random::Random;
use testkit::raw::{Answer, Client, PROTOCOL_FEATURES, VERSION_1, msg};
use testkit::vm::{
    BLK, DATA, Desc, HEADER, Outcome, Ring, SECTOR, SEGMENTS, STATUS, Vm, header, linked, readable, writable,
};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const WRITE_ZEROES: u32 = 13;
const BLOCK: usize = 4096;
const BLOCKS: usize = 64;
/// The offset of `writeback` in the configuration space.
const WRITEBACK: u32 = 32;

/// A daemon on a disk that loses all unsynced data.
struct Lossy {
    daemon: Process,
    dir: TempDir,
}

impl Lossy {
    fn start(options: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().expect("make a directory");
        let library = preload::build("tests/trouble/durability/lose.c", dir.path())?;
        fs::write(dir.path().join("disk.img"), vec![0; BLOCKS * BLOCK]).expect("write the image");
        let mut command = Command::new(binary());
        command
            .args(["--socket-path", "sock", "--blk-file", "disk.img"])
            // The preloaded library writes its journal with system calls that the daemon itself does not make.
            .args(["--sandbox", "off"])
            .args(options)
            .current_dir(dir.path())
            .env("LD_PRELOAD", library)
            .env("LOSE_JOURNAL", dir.path().join("journal"))
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let (daemon, ()) = Process::start("vhost-user-blk", &mut command, |_| ());
        Some(Self { daemon, dir })
    }

    fn connect(&self, features: u64) -> Vm {
        let connect = || UnixStream::connect(self.dir.path().join("sock")).ok();
        let mut vm = Vm::on(wait_for("the daemon's socket", connect), features);
        vm.share_memory();
        vm.start_ring(0, Ring::new(0, 16));
        vm
    }

    /// Makes all flushes fail.
    fn break_flushes(&self) {
        fs::write(self.dir.path().join("broken"), "").expect("break it");
    }

    /// Makes flushes work again.
    fn mend_flushes(&self) {
        fs::remove_file(self.dir.path().join("broken")).expect("mend it");
    }

    /// Cuts the power. Returns the content of the disk.
    fn lose(mut self) -> Vec<u8> {
        self.daemon.signal(libc::SIGKILL);
        self.daemon.wait();
        let path = self.dir.path().join("disk.img");
        let disk = OpenOptions::new()
            .write(true)
            .open(&path)
            .expect("open the image");
        let journal = fs::read(self.dir.path().join("journal")).expect("read the journal");
        for (offset, old) in records(&journal).iter().rev() {
            disk.write_all_at(old, *offset).expect("take a write back");
        }
        fs::read(path).expect("read the image")
    }
}

/// Reads the journal: the data that each write replaced, in order.
fn records(mut journal: &[u8]) -> Vec<(u64, &[u8])> {
    let mut records = Vec::new();
    while let Some((head, rest)) = journal.split_at_checked(16) {
        let [offset, len] = [0, 8].map(|at| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight")));
        let len = usize::try_from(len).expect("it fits");
        // The last record may be incomplete: its write never started.
        let Some((old, rest)) = rest.split_at_checked(len) else {
            break;
        };
        records.push((offset, old));
        journal = rest;
    }
    records
}

fn write(vm: &mut Vm, block: usize, fill: u8) {
    vm.poke(HEADER, &header(OUT, (block * BLOCK / 512) as u64));
    vm.poke(DATA, &[fill; BLOCK]);
    let chain = [readable(HEADER, 16), readable(DATA, 4096), writable(STATUS, 1)];
    assert_eq!(vm.request(0, &chain), Some((0, 1)), "write");
}

/// Returns a segment of one block for write-zeroes.
fn segment(block: usize) -> Vec<u8> {
    let sector = (block * BLOCK / 512) as u64;
    [&sector.to_le_bytes()[..], &8u32.to_le_bytes(), &[0; 4]].concat()
}

fn write_zeroes(vm: &mut Vm, block: usize) {
    vm.poke(HEADER, &header(WRITE_ZEROES, 0));
    vm.poke(SEGMENTS, &segment(block));
    let chain = [readable(HEADER, 16), readable(SEGMENTS, 16), writable(STATUS, 1)];
    assert_eq!(vm.request(0, &chain), Some((0, 1)), "write zeroes");
}

fn flush(vm: &mut Vm) {
    vm.poke(HEADER, &header(FLUSH, 0));
    let chain = [readable(HEADER, 16), writable(STATUS, 1)];
    assert_eq!(vm.request(0, &chain), Some((0, 1)), "flush");
}

fn blocks(image: &[u8]) -> Vec<u8> {
    let whole = |block: &[u8]| {
        assert!(block.iter().all(|byte| *byte == block[0]), "half a block is lost");
        block[0]
    };
    image.chunks(BLOCK).map(whole).collect()
}

/// Options that select engines whose I/O the preloaded library sees.
const OPTIONS: [&[&str]; 3] = [&["--aio", "threads"], &[], &["--aio", "threads", "--direct"]];

#[test]
fn only_flushed_writes_survive_a_power_cut() {
    for (options, seed) in OPTIONS.into_iter().zip(1..) {
        let Some(lossy) = Lossy::start(options) else {
            return;
        };
        let mut vm = lossy.connect(0);
        let mut random = Random::new(seed);
        let (mut now, mut kept) = (vec![0; BLOCKS], vec![0; BLOCKS]);
        for i in 1..=120 {
            let (block, fill) = (random.below(BLOCKS), i);
            match random.below(12) {
                0 => {
                    flush(&mut vm);
                    kept.clone_from(&now);
                }
                1 => {
                    write_zeroes(&mut vm, block);
                    now[block] = 0;
                }
                _ => {
                    write(&mut vm, block, fill);
                    now[block] = fill;
                }
            }
        }
        assert_ne!(now, kept, "there is something to lose");
        assert_eq!(blocks(&lossy.lose()), kept, "{options:?}");
    }
}

#[test]
fn without_a_write_cache_every_write_is_kept() {
    for options in OPTIONS {
        let Some(lossy) = Lossy::start(options) else {
            return;
        };
        let mut vm = lossy.connect(0);
        write(&mut vm, 0, 1);
        assert_eq!(vm.client.set_config(WRITEBACK, &[0]), Answer::Ack);
        (1..20).for_each(|block| write(&mut vm, block, 2));
        write_zeroes(&mut vm, 1);
        let expected = [&[1, 0][..], &[2; 18], &[0; BLOCKS - 20]].concat();
        assert_eq!(blocks(&lossy.lose()), expected, "{options:?}");
    }
}

#[test]
fn switching_the_write_cache_off_flushes_it() {
    let Some(lossy) = Lossy::start(&[]) else { return };
    let mut vm = lossy.connect(0);
    write(&mut vm, 0, 1);
    assert_eq!(vm.client.set_config(WRITEBACK, &[0]), Answer::Ack);
    assert_eq!(blocks(&lossy.lose())[0], 1);
}

#[test]
fn a_reenabled_cache_needs_flushes_again() {
    let Some(lossy) = Lossy::start(&[]) else { return };
    let mut vm = lossy.connect(0);
    assert_eq!(vm.client.set_config(WRITEBACK, &[0]), Answer::Ack);
    write(&mut vm, 0, 1);
    assert_eq!(vm.client.set_config(WRITEBACK, &[1]), Answer::Ack);
    write(&mut vm, 1, 2);
    assert_eq!(blocks(&lossy.lose())[..2], [1, 0]);
}

/// Restarts with a driver that has neither FLUSH nor CONFIG_WCE.
fn restart_without_flush(vm: &mut Vm) {
    vm.client.stop_ring(0).expect("stop");
    vm.rings.clear();
    let features = VERSION_1 | PROTOCOL_FEATURES;
    let answer = vm.client.ask(msg::SET_FEATURES, &features.to_le_bytes(), &[]);
    assert_eq!(answer, Answer::Ack, "SET_FEATURES");
    vm.memory.store_u16(0x5000 + 2, 0);
    vm.memory.store_u16(0x8000 + 2, 0);
    vm.start_ring(0, Ring::new(0, 16));
}

#[test]
fn a_driver_without_flush_keeps_every_write() {
    let Some(lossy) = Lossy::start(&[]) else { return };
    let mut vm = lossy.connect(0);
    restart_without_flush(&mut vm);
    write(&mut vm, 5, 7);
    assert_eq!(blocks(&lossy.lose())[5], 7);
}

#[test]
fn stopping_the_last_ring_makes_writes_stable() {
    let Some(lossy) = Lossy::start(&[]) else { return };
    let mut vm = lossy.connect(0);
    write(&mut vm, 3, 9);
    vm.client.stop_ring(0).expect("stop");
    assert_eq!(
        blocks(&lossy.lose())[3],
        9,
        "the destination of a migration would miss it"
    );
}

/// Makes the daemon take the chain at index 0, and switches the write cache off before the chain is executed.
fn overtake(vm: &mut Vm, chain: &[Desc]) {
    // A read that nothing delays follows the chain. Its answer proves that the chain was taken as well.
    let at = HEADER + 0x800;
    vm.poke(at, &header(IN, 0));
    let read = [
        readable(at, 16),
        writable(DATA + 0x1000, 512),
        writable(at + 16, 1),
    ];
    vm.put_descs(0, 0, &linked(0, chain));
    vm.put_descs(0, 8, &linked(8, &read));
    vm.publish(0, 0);
    vm.publish(0, 8);
    vm.kick(0);
    assert_eq!(vm.outcome(0), Outcome::Used { id: 8, len: 513 });
    assert_eq!(vm.client.set_config(WRITEBACK, &[0]), Answer::Ack);
    assert_eq!(vm.outcome(0), Outcome::Used { id: 0, len: 1 });
    assert_eq!(vm.peek(STATUS, 1), [0]);
}

#[test]
fn disabling_the_cache_keeps_writes_in_flight() {
    for options in OPTIONS {
        let delay = [options, &["--inject", "write:delay=500ms,sector=8-15"]].concat();
        let Some(lossy) = Lossy::start(&delay) else { return };
        let mut vm = lossy.connect(0);
        vm.poke(HEADER, &header(OUT, 8));
        vm.poke(DATA, &[3; BLOCK]);
        let chain = [readable(HEADER, 16), readable(DATA, 4096), writable(STATUS, 1)];
        overtake(&mut vm, &chain);
        assert_eq!(blocks(&lossy.lose())[..3], [0, 3, 0], "{options:?}");

        let delay = [options, &["--inject", "write-zeroes:delay=500ms"]].concat();
        let Some(lossy) = Lossy::start(&delay) else { return };
        let mut vm = lossy.connect(0);
        write(&mut vm, 1, 3);
        flush(&mut vm);
        vm.poke(HEADER, &header(WRITE_ZEROES, 0));
        vm.poke(SEGMENTS, &segment(1));
        let chain = [readable(HEADER, 16), readable(SEGMENTS, 16), writable(STATUS, 1)];
        overtake(&mut vm, &chain);
        assert_eq!(blocks(&lossy.lose())[1], 0, "{options:?}");
    }
}

/// With O_DIRECT a failed flush can be retried.
const DIRECT: &[&str] = OPTIONS[2];

#[test]
fn a_failed_cache_switch_forces_stable_writes() {
    let Some(lossy) = Lossy::start(DIRECT) else { return };
    let mut vm = lossy.connect(0);
    write(&mut vm, 0, 1);
    lossy.break_flushes();
    assert_eq!(vm.client.set_config(WRITEBACK, &[0]), Answer::Nak);
    assert_eq!(vm.client.config(WRITEBACK, 1).expect("a byte"), [1]);
    write(&mut vm, 1, 2);
    assert_eq!(blocks(&lossy.lose())[..2], [0, 2]);
}

#[test]
fn the_next_cache_switch_retries_a_failed_flush() {
    let Some(lossy) = Lossy::start(DIRECT) else { return };
    let mut vm = lossy.connect(0);
    write(&mut vm, 0, 1);
    lossy.break_flushes();
    assert_eq!(vm.client.set_config(WRITEBACK, &[0]), Answer::Nak);
    lossy.mend_flushes();
    assert_eq!(vm.client.set_config(WRITEBACK, &[0]), Answer::Ack);
    assert_eq!(vm.client.config(WRITEBACK, 1).expect("a byte"), [0]);
    assert_eq!(blocks(&lossy.lose())[0], 1);
}

#[test]
fn writes_the_page_cache_lost_stay_unstable() {
    let Some(lossy) = Lossy::start(&[]) else { return };
    let mut vm = lossy.connect(0);
    write(&mut vm, 0, 1);
    lossy.break_flushes();
    assert_eq!(vm.client.set_config(WRITEBACK, &[0]), Answer::Nak);
    lossy.mend_flushes();
    assert_eq!(vm.client.set_config(WRITEBACK, &[0]), Answer::Nak);
    assert_eq!(vm.client.config(WRITEBACK, 1).expect("a byte"), [1]);
    assert_eq!(vm.client.set_config(WRITEBACK, &[1]), Answer::Ack);
    write(&mut vm, 1, 2);
    vm.poke(HEADER, &header(FLUSH, 0));
    let chain = [readable(HEADER, 16), writable(STATUS, 1)];
    assert_eq!(vm.request(0, &chain), Some((1, 1)), "a flush");
}

#[test]
fn a_failed_flush_still_admits_flushless_drivers() {
    let Some(lossy) = Lossy::start(DIRECT) else { return };
    let mut vm = lossy.connect(0);
    write(&mut vm, 0, 1);
    lossy.break_flushes();
    restart_without_flush(&mut vm);
    write(&mut vm, 5, 7);
    assert_eq!(blocks(&lossy.lose())[..6], [0, 0, 0, 0, 0, 7]);
}

#[test]
fn cacheless_drivers_region_is_accepted_despite_flush_errors() {
    let Some(lossy) = Lossy::start(&[]) else { return };
    let mut vm = lossy.connect(0);
    let region = Inflight::get(&mut vm.client, 1, 16);
    vm.client.stop_ring(0).expect("stop");
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    assert_eq!(vm.client.set_config(WRITEBACK, &[0]), Answer::Ack);
    vm.restart_rings();
    lossy.break_flushes();
    vm.poke(HEADER, &header(FLUSH, 0));
    let chain = [readable(HEADER, 16), writable(STATUS, 1)];
    assert_eq!(vm.request(0, &chain), Some((1, 1)), "a flush");

    for features_first in [true, false] {
        let stream = UnixStream::connect(lossy.dir.path().join("sock")).expect("connect");
        if features_first {
            vm.reconnect(stream, 0);
            assert_eq!(region.set(&mut vm.client), Answer::Ack);
        } else {
            vm.client.leave();
            vm.client = Client::new(stream);
            vm.client.negotiate_protocol().expect("negotiate");
            assert_eq!(region.set(&mut vm.client), Answer::Ack, "before SET_FEATURES");
            vm.client.accept(VERSION_1 | BLK).expect("negotiate");
        }
        assert_eq!(vm.client.config(WRITEBACK, 1).expect("a byte"), [0]);
        vm.share_memory();
        vm.restart_rings();
        assert_eq!(vm.read_sector(0, 0), [0; SECTOR]);
        vm.poke(HEADER, &header(FLUSH, 0));
        assert_eq!(vm.request(0, &chain), Some((1, 1)), "a flush");
    }
}
