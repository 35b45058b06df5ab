//! Memory regions with impossible numbers.

use crate::arena::Arena;
use std::fs::File;
use std::os::fd::AsRawFd;
use testkit::daemon::Daemon;
use testkit::fuse::StalledFile;
use testkit::inflight::Inflight;
use testkit::memory::SharedMemory;
use testkit::raw::{Answer, Region, mem_table, msg};
use testkit::skip::skipped;
use testkit::target::image;
use testkit::vm::{GUEST, MEMORY, REGION, Vm};

const VALUES: [u64; 10] = [
    0,
    1,
    511,
    4095,
    4096,
    1 << 32,
    1 << 47,
    1 << 63,
    u64::MAX - 4095,
    u64::MAX,
];

fn variant(field: usize, value: u64) -> Region {
    let mut region = REGION;
    match field {
        0 => region.guest_addr = value,
        1 => region.size = value,
        2 => region.user_addr = value,
        _ => region.mmap_offset = value,
    }
    region
}

/// Whether a region of a file of [`MEMORY`] bytes is possible.
fn is_sound(region: Region) -> bool {
    let ends = |start: u64| start.checked_add(region.size).is_some();
    let in_file = region.mmap_offset.checked_add(region.size);
    region.size > 0
        && ends(region.guest_addr)
        && ends(region.user_addr)
        && in_file.is_some_and(|end| end <= MEMORY as u64)
        && region.mmap_offset.is_multiple_of(4096)
}

#[test]
fn numbers_of_a_region() {
    let mut arena = Arena::new();
    let memory = SharedMemory::new(MEMORY);
    for (field, name) in [
        (0, "guest address"),
        (1, "size"),
        (2, "user address"),
        (3, "offset"),
    ] {
        for value in VALUES {
            let region = variant(field, value);
            arena.client(&format!("SET_MEM_TABLE, {name} {value:#x}"), |client| {
                let answer = client.ask(msg::SET_MEM_TABLE, &mem_table(&[region]), &[memory.fd()]);
                assert_eq!(!answer.is_refusal(), is_sound(region));
            });
            arena.client(&format!("ADD_MEM_REG, {name} {value:#x}"), |client| {
                let answer = client.mem_region(msg::ADD_MEM_REG, region, &[memory.fd()]);
                assert_eq!(!answer.is_refusal(), is_sound(region));
            });
            arena.case(&format!("REM_MEM_REG, {name} {value:#x}"), |daemon| {
                let mut vm = Vm::start(daemon, 2);
                let other = (region.guest_addr, region.size, region.user_addr)
                    != (REGION.guest_addr, REGION.size, REGION.user_addr);
                let answer = vm.client.mem_region(msg::REM_MEM_REG, region, &[]);
                assert_eq!(answer.is_refusal(), other);
                if answer == testkit::raw::Answer::Nak {
                    vm.read_sector(0, 3);
                    vm.read_sector(1, 4);
                }
            });
        }
    }
}

#[test]
fn regions_that_share_addresses() {
    let mut arena = Arena::new();
    let memory = SharedMemory::new(MEMORY);
    let size = MEMORY as u64;
    for shift in [0, 1, 4096, size - 1] {
        for (name, guest_addr) in [("above", GUEST + shift), ("below", GUEST - shift)] {
            let second = Region { guest_addr, ..REGION };
            arena.client(&format!("a table, {shift:#x} {name}"), |client| {
                let table = mem_table(&[REGION, second]);
                let fds = [memory.fd(), memory.fd()];
                assert!(client.ask(msg::SET_MEM_TABLE, &table, &fds).is_refusal());
            });
            arena.case(&format!("one more, {shift:#x} {name}"), |daemon| {
                let mut vm = Vm::start(daemon, 2);
                let answer = vm.client.mem_region(msg::ADD_MEM_REG, second, &[memory.fd()]);
                assert!(answer.is_refusal());
                vm.read_sector(0, 3);
            });
        }
    }
}

#[test]
fn tables_that_lie_about_their_length() {
    let mut arena = Arena::new();
    let memory = SharedMemory::new(MEMORY);
    for count in [0, 2, 8, 9, 32, 33, 1 << 16, u32::MAX] {
        for fds in [0, 1, 2, 9] {
            arena.client(&format!("{count} regions, one there, {fds} files"), |client| {
                let mut table = mem_table(&[REGION]);
                table[..4].copy_from_slice(&count.to_le_bytes());
                let answer = client.ask(msg::SET_MEM_TABLE, &table, &vec![memory.fd(); fds]);
                assert!(answer.is_refusal());
            });
        }
    }
}

#[test]
fn a_refused_table_keeps_the_old_table() {
    let mut arena = Arena::new();
    let short = SharedMemory::new(4096);
    for (name, region) in [("of no size", variant(1, 0)), ("that is too long", REGION)] {
        arena.case(&format!("a table {name} while rings run"), |daemon| {
            let mut vm = Vm::start(daemon, 2);
            vm.read_sector(0, 1);
            let answer = vm
                .client
                .ask(msg::SET_MEM_TABLE, &mem_table(&[region]), &[short.fd()]);
            assert!(answer.is_refusal());
            if answer == testkit::raw::Answer::Nak {
                vm.read_sector(0, 3);
                vm.read_sector(1, 4);
            }
        });
    }
}

/// An access to such a file waits for its server: this would hold up the IOThread and all of its disks.
#[test]
fn memory_on_a_file_system_with_a_server() {
    let file = match StalledFile::mount(MEMORY as u64) {
        Ok(file) => file,
        Err(error) => return skipped(format_args!("no FUSE file system can be mounted: {error}")),
    };
    let remote = File::options()
        .read(true)
        .write(true)
        .open(file.path())
        .expect("open it");
    let mut daemon = Daemon::start(&image(), &[]);
    let _end = file.let_go_at_the_end();
    let mut vm = Vm::start(&daemon, 1);
    let elsewhere = Region {
        guest_addr: GUEST + (1 << 30),
        user_addr: 1 << 40,
        ..REGION
    };
    let fds = [remote.as_raw_fd()];
    assert_eq!(
        vm.client.ask(msg::SET_MEM_TABLE, &mem_table(&[REGION]), &fds),
        Answer::Nak
    );
    vm.read_sector(0, 3);
    assert_eq!(
        vm.client.mem_region(msg::ADD_MEM_REG, elsewhere, &fds),
        Answer::Nak
    );
    vm.read_sector(0, 4);
    let mut region = Inflight::get(&mut vm.client, 1, 16);
    region.file = remote.try_clone().expect("duplicate it");
    assert_eq!(region.set(&mut vm.client), Answer::Nak, "in-flight region");
    assert_eq!(vm.client.set_log(4096, 0, remote.as_raw_fd()), None, "dirty log");
    daemon.wait_for(
        |daemon| daemon.output().matches("the file is on FUSE").count() > 0,
        "say why",
    );
    Vm::start(&daemon, 1).read_sector(0, 4);
}
