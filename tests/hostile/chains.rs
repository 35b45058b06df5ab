//! Each type of request in each shape of chain.
//!
//! With every shape, the request is answered or its ring breaks, and the other ring is served. Nothing changes on the
//! disk or in guest memory except the bytes that the request may write.

use crate::arena::Arena;
use testkit::vm::{
    DATA, Desc, FILL, GUEST, HEADER, MEMORY, NEXT, Outcome, SECTOR, SEGMENTS, STATUS, TABLE, USER, Vm,
    header, indirect, linked, readable, writable,
};

const KINDS: [u32; 12] = [0, 1, 2, 4, 8, 11, 13, 14, 15, 99, 1 << 31, u32::MAX];
const OUT: u32 = 1;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
/// The sectors that a request of this test may touch.
const FIRST: u64 = 40;
const COUNT: u64 = 8;
const END: u64 = GUEST + MEMORY as u64;

const HEAD: Desc = readable(HEADER, 16);
const TAIL: Desc = writable(STATUS, 1);

/// Contents of the descriptor table and of an indirect table, and the head that is made available.
struct Shape {
    name: &'static str,
    descs: Vec<Desc>,
    table: Vec<Desc>,
    head: u16,
}

fn direct(name: &'static str, descs: &[Desc]) -> Shape {
    Shape {
        name,
        descs: linked(0, descs),
        table: Vec::new(),
        head: 0,
    }
}

fn raw(name: &'static str, descs: &[Desc]) -> Shape {
    Shape {
        descs: descs.to_vec(),
        ..direct(name, &[])
    }
}

fn in_table(name: &'static str, len: u32, table: &[Desc]) -> Shape {
    Shape {
        table: linked(0, table),
        ..raw(name, &[indirect(TABLE, len)])
    }
}

/// Returns a data descriptor, readable or writable as this type of request needs it.
fn data(kind: u32, addr: u64, len: u32) -> Desc {
    match kind {
        OUT => readable(addr, len),
        DISCARD | WRITE_ZEROES => readable(if addr == DATA { SEGMENTS } else { addr }, len.min(16)),
        _ => writable(addr, len),
    }
}

fn sound_shapes(kind: u32) -> Vec<Shape> {
    let body = data(kind, DATA, 4096);
    let halves = if matches!(kind, DISCARD | WRITE_ZEROES) {
        [readable(SEGMENTS, 7), readable(SEGMENTS + 7, 9)]
    } else {
        [data(kind, DATA, 1000), data(kind, DATA + 1000, 3096)]
    };
    vec![
        direct("ordinary", &[HEAD, body, TAIL]),
        direct("without data", &[HEAD, TAIL]),
        direct(
            "with a header in two parts",
            &[readable(HEADER, 3), readable(HEADER + 3, 13), body, TAIL],
        ),
        direct("with a header byte by byte", &bytewise(body)),
        direct("with data in two parts", &[HEAD, halves[0], halves[1], TAIL]),
        direct("with a status of 100 bytes", &[HEAD, body, writable(STATUS, 100)]),
        direct(
            "with empty descriptors",
            &[readable(0, 0), HEAD, body.len(0), body, TAIL],
        ),
        in_table("in a table", 48, &[HEAD, body, TAIL]),
        Shape {
            table: [linked(0, &[HEAD, body, TAIL]), vec![HEAD]].concat(),
            ..in_table("in a table with an entry to spare", 64, &[])
        },
        Shape {
            table: linked(0, &[body, TAIL]),
            ..direct("with a table for its tail", &[HEAD, indirect(TABLE, 32)])
        },
    ]
}

fn bytewise(body: Desc) -> Vec<Desc> {
    let bytes = (0..12).map(|i| readable(HEADER + i, 1));
    bytes.chain([readable(HEADER + 12, 4), body, TAIL]).collect()
}

fn odd_shapes(kind: u32) -> Vec<Shape> {
    let body = data(kind, DATA, 4096);
    // The header is also a valid segment, which names other sectors.
    let over_header = if matches!(kind, DISCARD | WRITE_ZEROES) {
        DATA
    } else {
        HEADER
    };
    vec![
        direct("with a header of 15 bytes", &[HEAD.len(15), TAIL]),
        direct("with nothing to read", &[TAIL]),
        direct("with a header of no bytes", &[HEAD.len(0), TAIL]),
        direct("with a header to write", &[writable(HEADER, 16), body, TAIL]),
        direct("with data of one byte", &[HEAD, body.len(1), TAIL]),
        direct("with data of 511 bytes", &[HEAD, body.len(511), TAIL]),
        direct("with data of 513 bytes", &[HEAD, body.len(513), TAIL]),
        direct("with more data than memory", &[HEAD, body.len(u32::MAX), TAIL]),
        direct("with data behind memory", &[HEAD, data(kind, END, 4096), TAIL]),
        direct(
            "with data over the end of memory",
            &[HEAD, data(kind, END - 8, 4096), TAIL],
        ),
        direct(
            "with data at the frontend's address",
            &[HEAD, data(kind, USER + 4096, 4096), TAIL],
        ),
        direct(
            "with data that wraps around",
            &[HEAD, data(kind, u64::MAX - 100, 4096), TAIL],
        ),
        direct(
            "with data of both kinds",
            &[HEAD, readable(SEGMENTS, 16), writable(DATA, 4096), TAIL],
        ),
        direct(
            "with data in its own ring",
            &[HEAD, data(kind, GUEST + 0x200, 4096), TAIL],
        ),
        direct(
            "with data over its header",
            &[HEAD, data(kind, over_header, 512), TAIL],
        ),
        direct(
            "with its status in its data",
            &[HEAD, body, writable(DATA + 10, 1)],
        ),
        direct(
            "with its status in its header",
            &[HEAD, body, writable(HEADER, 1)],
        ),
        direct(
            "with its status at the end of memory",
            &[HEAD, body, writable(END - 1, 1)],
        ),
    ]
}

fn broken_shapes(kind: u32) -> Vec<Shape> {
    let body = data(kind, DATA, 4096);
    vec![
        direct("without a status", &[HEAD]),
        direct("with a status of no bytes", &[HEAD, writable(STATUS, 0)]),
        direct("with a status behind memory", &[HEAD, body, writable(END, 1)]),
        raw("that follows itself", &[HEAD.next(0)]),
        raw("with a loop", &[HEAD.next(1), body.next(2), TAIL.next(1)]),
        raw("with an index out of the queue", &[HEAD.next(16)]),
        raw(
            "with the last index there is",
            &[HEAD.next(1), body.next(u16::MAX)],
        ),
        direct(
            "with something to read at the end",
            &[HEAD, writable(DATA, 512), readable(SEGMENTS, 16)],
        ),
        in_table("in a table of no length", 0, &[HEAD, body, TAIL]),
        in_table("in half a table", 47, &[HEAD, body, TAIL]),
        in_table("in a table longer than any queue", 1025 * 16, &[HEAD, body, TAIL]),
        in_table("in the longest table", !15, &[HEAD, body, TAIL]),
        in_table("in a table in a table", 32, &[HEAD, indirect(TABLE, 32)]),
        Shape {
            table: vec![HEAD.next(1), body.next(3), TAIL],
            ..in_table("with an index out of its table", 48, &[])
        },
        Shape {
            table: vec![HEAD.next(1), body.next(0), TAIL],
            ..in_table("with a loop in its table", 48, &[])
        },
        Shape {
            table: linked(0, &[HEAD, body, TAIL]),
            ..raw(
                "with a table and a next one",
                &[indirect(TABLE, 48).flag(NEXT).next(1), TAIL],
            )
        },
        raw("in a table behind memory", &[indirect(END, 48)]),
        raw("in a table over the end of memory", &[indirect(END - 40, 48)]),
        raw(
            "in a table at the end of everything",
            &[indirect(u64::MAX - 15, 48)],
        ),
        Shape {
            head: 16,
            ..direct("with a head out of the queue", &[HEAD, body, TAIL])
        },
        Shape {
            head: u16::MAX,
            ..direct("with the last head there is", &[HEAD, body, TAIL])
        },
    ]
}

/// Prepares memory for a request of `kind`.
fn prepare(vm: &Vm, kind: u32) {
    vm.memory.write(0x8_0000, &[FILL; MEMORY - 0x8_0000]);
    vm.poke(HEADER, &header(kind, FIRST));
    let segment = [&FIRST.to_le_bytes()[..], &[8, 0, 0, 0], &[0; 4]].concat();
    vm.poke(SEGMENTS, &segment);
}

fn outcome(vm: &mut Vm, kind: u32, shape: &Shape) -> Outcome {
    prepare(vm, kind);
    vm.put_table(TABLE, &shape.table);
    vm.put_descs(0, 0, &shape.descs);
    vm.publish(0, shape.head);
    vm.kick(0);
    vm.outcome(0)
}

/// Runs each type in each shape, each on a connection of its own.
fn run(shapes: fn(u32) -> Vec<Shape>, check: fn(u32, &Shape, Outcome, &Vm)) {
    let mut arena = Arena::new();
    let sectors = usize::try_from(FIRST).expect("small")..usize::try_from(FIRST + COUNT).expect("small");
    for kind in KINDS {
        for shape in shapes(kind) {
            let name = format!("a request of type {kind} {}", shape.name);
            arena.case_that_writes(&name, sectors.clone(), |daemon| {
                let mut vm = Vm::start(daemon, 2);
                let outcome = outcome(&mut vm, kind, &shape);
                check(kind, &shape, outcome, &vm);
                assert_eq!(vm.read_sector(1, 3), [3; SECTOR], "the other ring");
                vm.client.stop_ring(0).expect("GET_VRING_BASE");
            });
        }
    }
}

#[test]
fn sound_chains_are_answered() {
    run(sound_shapes, |kind, shape, outcome, vm| {
        assert!(matches!(outcome, Outcome::Used { .. }), "{outcome:?}");
        let status = match shape.name {
            // The last byte of the descriptor is the status.
            "with a status of 100 bytes" => vm.peek(STATUS + 99, 1)[0],
            _ => vm.peek(STATUS, 1)[0],
        };
        let known = matches!(kind, 0 | 1 | 4 | 8 | DISCARD | WRITE_ZEROES);
        assert!(status <= 2 && known != (status == 2), "status {status}");
    });
}

#[test]
fn odd_chains_are_answered_or_break_their_ring() {
    run(odd_shapes, |_, _, outcome, vm| {
        if let Outcome::Used { len, .. } = outcome {
            // The used length must not exceed the memory.
            assert!(len as usize <= MEMORY, "{len} bytes used");
        }
        // The device writes nothing except header, data and status.
        assert_eq!(vm.peek(TABLE, 0x1000), [FILL; 0x1000]);
        assert_eq!(vm.peek(DATA + 0x2000, 0x1000), [FILL; 0x1000]);
    });
}

#[test]
fn broken_chains_break_their_ring_and_write_nothing() {
    run(broken_shapes, |_, shape, outcome, vm| {
        assert!(
            outcome == Outcome::Broken || shape.name == "with something to read at the end",
            "{outcome:?}"
        );
        assert_eq!(vm.peek(DATA, 0x2000), [FILL; 0x2000]);
    });
}

#[test]
fn sectors_and_lengths_at_every_edge() {
    let mut arena = Arena::new();
    for kind in [0, OUT, DISCARD, WRITE_ZEROES] {
        for sector in [
            63,
            64,
            65,
            1 << 32,
            1 << 54,
            1 << 55,
            (1 << 55) - 1,
            1 << 63,
            u64::MAX - 7,
            u64::MAX,
        ] {
            for sectors in [1_u32, 2, 8] {
                let fits = sector == 63 && sectors == 1;
                let name = format!("type {kind}, {sectors} sectors at {sector}");
                arena.case_that_writes(&name, 63..64, |daemon| {
                    let mut vm = Vm::start(daemon, 2);
                    prepare(&vm, kind);
                    vm.poke(HEADER, &header(kind, sector));
                    let segment = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &[0; 4]].concat();
                    vm.poke(SEGMENTS, &segment);
                    let answer = vm.request(0, &[HEAD, data(kind, DATA, sectors * 512), TAIL]);
                    let status = answer.map(|answer| answer.0);
                    assert_eq!(status, Some(u8::from(!fits)));
                });
            }
        }
    }
}
