//! Descriptor chains of every shape, good and impossible.
//!
//! A chain that can be answered is answered. Any other chain breaks its ring, and nothing else.

use testkit::daemon::Daemon;
use testkit::target::{image, serve};
use testkit::vm::{
    DATA, Desc, FILL, GUEST, HEADER, INDIRECT, MEMORY, NEXT, Outcome, SECTOR, SEGMENTS, STATUS, TABLE, Vm,
    header, indirect, linked, readable, writable,
};

const OK: u8 = 0;
const IOERR: u8 = 1;

/// The guest address just past the memory.
const END: u64 = GUEST + MEMORY as u64;

fn start() -> (Daemon, Vm) {
    let daemon = serve(&image(), &["--num-queues", "2"]);
    let vm = Vm::start(&daemon, 2);
    (daemon, vm)
}

/// Prepares the header of a read of sectors 3 and 4.
fn put_read_header(vm: &Vm) {
    vm.poke(HEADER, &header(0, 3));
}

fn sectors_3_and_4() -> Vec<u8> {
    image()[3 * SECTOR..5 * SECTOR].to_vec()
}

#[test]
fn a_header_may_be_spread_over_descriptors() {
    let (_daemon, mut vm) = start();
    put_read_header(&vm);
    for cuts in [
        vec![8, 8],
        vec![4, 4, 8],
        vec![1; 13].into_iter().chain([3]).collect(),
        vec![15, 1],
    ] {
        let mut at = HEADER;
        let mut chain: Vec<Desc> = Vec::new();
        for len in &cuts {
            chain.push(readable(at, *len));
            at += u64::from(*len);
        }
        chain.extend([writable(DATA, 1024), writable(STATUS, 1)]);
        vm.poke(DATA, &[FILL; 1024]);
        assert_eq!(vm.request(0, &chain), Some((OK, 1025)), "{cuts:?}");
        assert_eq!(vm.peek(DATA, 1024), sectors_3_and_4(), "{cuts:?}");
    }
}

#[test]
fn write_data_may_share_the_headers_descriptor() {
    let (mut daemon, mut vm) = start();
    vm.poke(HEADER, &[header(1, 5), vec![0x77; SECTOR]].concat());
    let chain = [readable(HEADER, 16 + 512), writable(STATUS, 1)];
    assert_eq!(vm.request(0, &chain), Some((OK, 1)));
    let mut expected = image();
    expected[5 * SECTOR..6 * SECTOR].fill(0x77);
    assert!(daemon.terminate().status.success());
    assert!(daemon.image() == expected);
}

#[test]
fn status_may_be_the_datas_last_byte() {
    let (_daemon, mut vm) = start();
    put_read_header(&vm);
    vm.send(0, &[readable(HEADER, 16), writable(DATA, 1025)]);
    assert_eq!(vm.outcome(0), Outcome::Used { id: 0, len: 1025 });
    assert_eq!(vm.peek(DATA, 1026), [sectors_3_and_4(), vec![OK, FILL]].concat());
}

#[test]
fn data_may_be_cut_at_any_byte() {
    let (_daemon, mut vm) = start();
    put_read_header(&vm);
    for cut in [1, 2, 511, 512, 513, 1023] {
        vm.poke(DATA, &[FILL; 1024]);
        let data = [writable(DATA, cut), writable(DATA + u64::from(cut), 1024 - cut)];
        let chain = [readable(HEADER, 16), data[0], data[1], writable(STATUS, 1)];
        assert_eq!(vm.request(0, &chain), Some((OK, 1025)), "cut at {cut}");
        assert_eq!(vm.peek(DATA, 1024), sectors_3_and_4(), "cut at {cut}");
    }
}

#[test]
fn descriptors_of_no_length_hold_nothing() {
    let (_daemon, mut vm) = start();
    put_read_header(&vm);
    let chain = [
        readable(GUEST, 0),
        readable(HEADER, 16),
        readable(HEADER, 0),
        writable(DATA, 0),
        writable(DATA, 1024),
        writable(DATA, 0),
        writable(STATUS, 1),
    ];
    // A driver must not make empty descriptors. They are skipped or break the ring, and do no harm.
    if let Some(answer) = vm.request(0, &chain) {
        assert_eq!(answer, (OK, 1025));
        assert_eq!(vm.peek(DATA, 1024), sectors_3_and_4());
    }
    vm.read_sector(1, 0);
}

#[test]
fn a_chain_may_lie_in_an_indirect_table() {
    let (_daemon, mut vm) = start();
    put_read_header(&vm);
    let chain = [readable(HEADER, 16), writable(DATA, 1024), writable(STATUS, 1)];
    vm.put_table(TABLE, &linked(0, &chain));
    assert_eq!(vm.request(0, &[indirect(TABLE, 48)]), Some((OK, 1025)));
    assert_eq!(vm.peek(DATA, 1024), sectors_3_and_4());
}

#[test]
fn a_chain_may_continue_in_an_indirect_table() {
    let (_daemon, mut vm) = start();
    put_read_header(&vm);
    vm.put_table(TABLE, &linked(0, &[writable(DATA, 1024), writable(STATUS, 1)]));
    assert_eq!(
        vm.request(0, &[readable(HEADER, 16), indirect(TABLE, 32)]),
        Some((OK, 1025))
    );
    assert_eq!(vm.peek(DATA, 1024), sectors_3_and_4());
}

#[test]
fn an_indirect_table_may_fill_the_queue() {
    let (_daemon, mut vm) = start();
    put_read_header(&vm);
    let data = (0..14).map(|i| writable(DATA + i * 64, 64));
    let tail = writable(DATA + 14 * 64, 128 + 1);
    let chain: Vec<Desc> = [readable(HEADER, 16)]
        .into_iter()
        .chain(data)
        .chain([tail])
        .collect();
    assert_eq!(chain.len(), 16);
    vm.put_table(TABLE, &linked(0, &chain));
    vm.send(0, &[indirect(TABLE, 256)]);
    assert_eq!(vm.outcome(0), Outcome::Used { id: 0, len: 1025 });
    assert_eq!(vm.peek(DATA, 1025), [sectors_3_and_4(), vec![OK]].concat());
}

/// Puts a chain into the descriptor table at index 0 and makes a head available.
struct Impossible {
    name: &'static str,
    descs: Vec<Desc>,
    table: Vec<Desc>,
    head: u16,
}

fn impossible(name: &'static str, descs: &[Desc]) -> Impossible {
    Impossible {
        name,
        descs: linked(0, descs),
        table: Vec::new(),
        head: 0,
    }
}

fn unlinked(name: &'static str, descs: &[Desc]) -> Impossible {
    Impossible {
        name,
        descs: descs.to_vec(),
        table: Vec::new(),
        head: 0,
    }
}

fn in_table(name: &'static str, len: u32, table: &[Desc]) -> Impossible {
    Impossible {
        name,
        descs: vec![indirect(TABLE, len)],
        table: table.to_vec(),
        head: 0,
    }
}

const HEAD: Desc = readable(HEADER, 16);
const BODY: Desc = writable(DATA, 1024);
const TAIL: Desc = writable(STATUS, 1);

fn direct_cases() -> Vec<Impossible> {
    vec![
        impossible("nothing to write the status to", &[HEAD]),
        impossible("a write without a status", &[HEAD, readable(DATA, 512)]),
        impossible("an empty status", &[HEAD, BODY.len(0), writable(STATUS, 0)]),
        unlinked("a descriptor that follows itself", &[HEAD.next(0)]),
        unlinked("a loop of two", &[HEAD.next(1), BODY.next(0)]),
        unlinked(
            "a loop behind the status",
            &[HEAD.next(1), BODY.next(2), TAIL.next(1)],
        ),
        unlinked("a next index just out of range", &[HEAD.next(16)]),
        unlinked(
            "a next index far out of range",
            &[HEAD.next(1), BODY.next(u16::MAX)],
        ),
        impossible("a status behind the memory", &[HEAD, BODY, writable(END, 1)]),
        impossible(
            "a status before the memory",
            &[HEAD, BODY, writable(GUEST - 1, 1)],
        ),
        impossible(
            "a status at the frontend's address",
            &[HEAD, BODY, writable(testkit::vm::USER, 1)],
        ),
        impossible(
            "a status at the end of the address space",
            &[HEAD, BODY, writable(u64::MAX, 1)],
        ),
        Impossible {
            name: "a head just out of range",
            descs: vec![],
            table: vec![],
            head: 16,
        },
        Impossible {
            name: "a head far out of range",
            descs: vec![],
            table: vec![],
            head: u16::MAX,
        },
    ]
}

fn indirect_cases() -> Vec<Impossible> {
    let good = linked(0, &[HEAD, BODY, TAIL]);
    vec![
        in_table("a table of no length", 0, &good),
        in_table("a table of half an entry", 8, &good),
        in_table("a table and a byte", 49, &good),
        in_table(
            "a table longer than any queue",
            1025 * 16,
            &linked(0, &[HEAD; 17]),
        ),
        in_table("a table as long as a length can say", !15, &good),
        in_table(
            "a table inside of a table",
            48,
            &linked(0, &[HEAD, BODY, indirect(SEGMENTS, 16)]),
        ),
        in_table("a table that refers to itself", 16, &[indirect(TABLE, 16)]),
        in_table(
            "a loop inside of a table",
            48,
            &[HEAD.next(1), BODY.next(0), TAIL],
        ),
        in_table(
            "an index out of the table",
            48,
            &[HEAD.next(3), BODY.next(2), TAIL],
        ),
        in_table(
            "an index that only the queue has",
            32,
            &[HEAD.next(1), BODY.next(4)],
        ),
        in_table("no status in the table", 16, &[HEAD]),
        Impossible {
            name: "a table and a next descriptor",
            descs: vec![indirect(TABLE, 48).flag(NEXT).next(1), TAIL],
            table: good.clone(),
            head: 0,
        },
        impossible("a table behind the memory", &[indirect(END, 48)]),
        impossible("a table over the end of the memory", &[indirect(END - 32, 48)]),
        impossible(
            "a table at the end of the address space",
            &[indirect(u64::MAX - 15, 48)],
        ),
        Impossible {
            name: "a table inside of a table behind direct descriptors",
            descs: linked(0, &[HEAD, indirect(TABLE, 16)]),
            table: vec![Desc {
                addr: SEGMENTS,
                len: 16,
                flags: INDIRECT,
                next: 0,
            }],
            head: 0,
        },
    ]
}

#[test]
fn impossible_chains_break_only_their_ring() {
    break_rings(direct_cases());
}

#[test]
fn impossible_indirect_tables_break_only_their_ring() {
    break_rings(indirect_cases());
}

fn break_rings(cases: Vec<Impossible>) {
    let mut daemon = serve(&image(), &["--num-queues", "2"]);
    for Impossible {
        name,
        descs,
        table,
        head,
    } in cases
    {
        let mut vm = Vm::start(&daemon, 2);
        vm.read_sector(0, 1);
        vm.poke(HEADER, &header(0, 3));
        vm.poke(STATUS, &[FILL]);
        vm.poke(DATA, &[FILL; 1024]);
        vm.put_table(TABLE, &table);
        vm.put_descs(0, 0, &descs);
        vm.publish(0, head);
        vm.kick(0);
        assert_eq!(vm.outcome(0), Outcome::Broken, "{name}");
        assert_eq!(vm.peek(STATUS, 1), [FILL], "{name}: a status was written");
        assert_eq!(vm.peek(DATA, 1024), [FILL; 1024], "{name}: data was written");
        // The other ring still works, and the broken one can be stopped.
        assert_eq!(vm.read_sector(1, 2), image()[2 * SECTOR..3 * SECTOR], "{name}");
        vm.client
            .stop_ring(0)
            .unwrap_or_else(|error| panic!("{name}: GET_VRING_BASE: {error}"));
        assert!(daemon.is_alive(), "{name}");
    }
    let mut vm = Vm::start(&daemon, 1);
    assert_eq!(vm.read_sector(0, 9), image()[9 * SECTOR..10 * SECTOR]);
    assert!(daemon.image() == image(), "the image changed");
}

#[test]
fn data_outside_memory_fails_or_breaks_the_ring() {
    let mut daemon = serve(&image(), &["--num-queues", "2"]);
    for (name, addr, len) in [
        ("behind the memory", END, 512),
        ("over the end of the memory", END - 256, 512),
        ("before the memory", GUEST - 512, 512),
        ("at zero", 0, 512),
        ("wrapping around", u64::MAX - 255, 512),
        ("at the frontend's address", testkit::vm::USER + 0x9_0000, 512),
        ("as long as can be", DATA, u32::MAX - 511),
    ] {
        for (kind, data) in [(0, writable(addr, len)), (1, readable(addr, len))] {
            let mut vm = Vm::start(&daemon, 2);
            vm.poke(HEADER, &header(kind, 3));
            let answer = vm.request(0, &[HEAD, data, TAIL]);
            assert!(
                matches!(answer, None | Some((IOERR, _))),
                "{name}: type {kind} got {answer:?}"
            );
            vm.read_sector(1, 0);
        }
    }
    for (name, addr) in [("behind the memory", END), ("wrapping around", u64::MAX - 7)] {
        let mut vm = Vm::start(&daemon, 2);
        let answer = vm.request(0, &[readable(addr, 16), BODY, TAIL]);
        assert!(
            matches!(answer, None | Some((IOERR, 1))),
            "header {name}: {answer:?}"
        );
        vm.read_sector(1, 0);
    }
    assert!(daemon.is_alive());
    assert!(daemon.image() == image(), "the image changed");
}

#[test]
fn a_readable_after_a_writable_is_harmless() {
    let (daemon, mut vm) = start();
    vm.poke(HEADER, &header(1, 3));
    vm.poke(DATA, &[0x99; 1024]);
    let answer = vm.request(0, &[HEAD, TAIL, readable(DATA, 512)]);
    assert!(matches!(answer, None | Some((OK | IOERR, 1))), "{answer:?}");
    vm.read_sector(1, 0);
    let disk = daemon.image();
    let mut others = disk.clone();
    others[3 * SECTOR..4 * SECTOR].copy_from_slice(&image()[3 * SECTOR..4 * SECTOR]);
    assert!(others == image(), "something beside sector 3 changed");
}
