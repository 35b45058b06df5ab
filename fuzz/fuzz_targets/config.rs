//! The command line, and the configuration space that a driver reads and writes.
#![no_main]

use arbitrary::Arbitrary;
use clap::Parser;
use libfuzzer_sys::fuzz_target;
use vhost_user_blk::blk::config::{BlkConfig, features};
use vhost_user_blk::cli::mapping::IoThreadMap;
use vhost_user_blk::cli::{Cli, one_line};
use vhost_user_blk::storage::Limits;

/// An IOThread and its queues: single numbers, or ranges given by the first number and the number of further queues.
type List = (u8, Vec<(u8, Option<u8>)>);

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    Line(Vec<Argument<'a>>),
    Size(&'a str),
    Map(&'a str, u16, u16),
    /// A well-formed map.
    Lists(Vec<List>, u8, u8),
    Space(Space),
}

#[derive(Arbitrary, Debug)]
enum Argument<'a> {
    Option(u8, &'a str),
    Flag(u8),
    Number(u8, i64),
    Any(&'a str),
}

const OPTIONS: [&str; 23] = [
    "--null",
    "--serial",
    "--logical-block-size",
    "--num-queues",
    "--queue-size",
    "--iothreads",
    "--iothread-vq-mapping",
    "--iothread-cpus",
    "--aio",
    "--thread-pool-min",
    "--thread-pool-max",
    "--poll-max-ns",
    "--notify",
    "--log-level",
    "--fd",
    "--blk-file",
    "--socket-path",
    "--null",
    "--iothread-vq-mapping",
    "--format",
    "--request-merging",
    "--socket-mode",
    "--io-timeout",
];
const FLAGS: [&str; 7] = [
    "--read-only",
    "--incoming",
    "--print-capabilities",
    "--direct",
    "--register-memory",
    "--stats",
    "--help",
];

#[derive(Arbitrary, Debug)]
struct Space {
    block: u8,
    physical: u8,
    optimal: u32,
    discard: u32,
    write_zeroes: bool,
    read_only: bool,
    queues: u16,
    queue_size: u8,
    size: u64,
    writeback: bool,
    reads: Vec<(u32, u32)>,
    writes: Vec<(u32, Vec<u8>)>,
}

fuzz_target!(|input: Input<'_>| match input {
    Input::Line(arguments) => line(&arguments),
    Input::Size(text) => size(text),
    Input::Map(text, queues, iothreads) => map(text, queues % 300, iothreads % 300),
    Input::Lists(lists, queues, iothreads) => map(&written(&lists), queues.into(), iothreads.into()),
    Input::Space(space) => space.check(),
});

fn line(arguments: &[Argument<'_>]) {
    let mut line = vec!["vhost-user-blk".to_owned()];
    for argument in arguments.iter().take(12) {
        match argument {
            Argument::Option(i, text) => {
                line.push(format!("{}={text}", OPTIONS[usize::from(*i) % OPTIONS.len()]));
            }
            Argument::Number(i, n) => line.push(format!("{}={n}", OPTIONS[usize::from(*i) % OPTIONS.len()])),
            Argument::Flag(i) => line.push(FLAGS[usize::from(*i) % FLAGS.len()].to_owned()),
            Argument::Any(text) => line.push((*text).to_owned()),
        }
    }
    match Cli::try_parse_from(&line) {
        Err(error) if error.use_stderr() => {
            let told = one_line(&error);
            assert!(!told.contains('\n') && !told.is_empty(), "{told}");
        }
        Err(_) => {}
        Ok(cli) => {
            if let Err(error) = cli.check() {
                assert!(!error.is_empty());
                return;
            }
            // The options that pass the check are consistent.
            let owners = cli.queue_iothreads().expect("checked");
            assert_eq!(owners.len(), usize::from(cli.num_queues));
            assert!(owners.iter().all(|&iothread| iothread < cli.iothreads));
            assert!(
                cli.cpus()
                    .expect("checked")
                    .iter()
                    .all(|(iothread, _)| *iothread < cli.iothreads)
            );
            assert!(cli.queue_size.is_power_of_two() && (4..=1024).contains(&cli.queue_size));
            assert!(cli.thread_pool_min <= cli.thread_pool_max && cli.thread_pool_max > 0);
            assert!(cli.null.is_none_or(|size| size > 0 && size % 512 == 0));
        }
    }
}

/// Checks `--null SIZE` against a parser that computes with 128 bits.
fn size(text: &str) {
    let arguments = ["vhost-user-blk", "--socket-path=s", &format!("--null={text}")];
    let found = Cli::try_parse_from(arguments).ok().and_then(|cli| cli.null);
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => (&text[..at], Some(unit.to_ascii_uppercase())),
        _ => (text, None),
    };
    let factor = match unit {
        None => Some(1u128),
        Some('K') => Some(1 << 10),
        Some('M') => Some(1 << 20),
        Some('G') => Some(1 << 30),
        Some('T') => Some(1 << 40),
        Some(_) => None,
    };
    let plain = digits.strip_prefix('+').unwrap_or(digits);
    let number = plain
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| plain.parse::<u64>().ok())
        .flatten();
    let expected = factor
        .zip(number)
        .map(|(factor, number)| factor * u128::from(number))
        .filter(|&size| size > 0 && size % 512 == 0 && size < 1 << 63)
        .and_then(|size| u64::try_from(size).ok());
    assert_eq!(found, expected, "{text:?}");
}

fn written(lists: &[List]) -> String {
    let range = |&(first, more): &(u8, Option<u8>)| match more {
        Some(more) => format!("{first}-{}", u16::from(first) + u16::from(more)),
        None => first.to_string(),
    };
    let entry = |(iothread, ranges): &List| {
        let ranges: Vec<String> = ranges.iter().map(range).collect();
        format!("{iothread}:{}", ranges.join(","))
    };
    lists.iter().map(entry).collect::<Vec<_>>().join(";")
}

/// Checks that a valid map (`IOTHREAD:LIST;...`) gives each queue the IOThread that names it.
fn map(text: &str, queues: u16, iothreads: u16) {
    let Ok(map) = text.parse::<IoThreadMap>() else {
        return;
    };
    let Ok(owners) = map.queues(queues, iothreads) else {
        return;
    };
    assert_eq!(owners.len(), usize::from(queues));
    for (queue, owner) in owners.iter().enumerate() {
        let names = |entry: &&str| {
            let (iothread, list) = entry.split_once(':').expect("it was taken");
            let number = |text: &str| text.trim().parse::<usize>().expect("it was taken");
            let covers = |range: &str| match range.split_once('-') {
                Some((first, last)) => (number(first)..=number(last)).contains(&queue),
                None => number(range) == queue,
            };
            list.split(',').any(covers) && number(iothread) == usize::from(*owner)
        };
        assert_eq!(text.split(';').filter(names).count(), 1, "{text:?} {queue}");
    }
}

impl Space {
    fn config(&self) -> BlkConfig {
        let block = 512 << (self.block % 7);
        let limits = Limits {
            logical_block_size: block,
            physical_block_size: block << (self.physical % 8),
            optimal_io_size: self.optimal,
            request_alignment: 1,
            memory_alignment: 1,
            discard_granularity: self.discard,
            write_zeroes: self.write_zeroes,
            read_only: self.read_only,
        };
        BlkConfig {
            write_through: false,
            limits,
            num_queues: self.queues,
            queue_size: 4 << (self.queue_size % 9),
        }
    }

    /// Returns the configuration space with each field at its offset in 5.2.4.
    fn expected(&self) -> Vec<u8> {
        let config = self.config();
        let block = u64::from(config.limits.logical_block_size);
        let mut space = vec![0; 256];
        let mut put = |at: usize, len: usize, value: u64| {
            space[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        };
        put(0, 8, self.size / 512);
        put(12, 4, config.seg_max().into());
        put(20, 4, block);
        put(24, 1, u64::from(self.physical % 8));
        put(26, 2, 1 << (self.physical % 8));
        put(28, 4, u64::from(self.optimal) / block);
        put(32, 1, self.writeback.into());
        put(34, 2, self.queues.into());
        if self.discard > 0 && !self.read_only {
            put(36, 4, (1 << 22) - 1);
            put(40, 4, 32);
            put(44, 4, u64::from(self.discard).max(block) / 512);
        }
        if self.write_zeroes && !self.read_only {
            put(48, 4, 1 << 18);
            put(52, 4, 32);
            put(56, 1, 1);
        }
        space
    }

    fn check(&self) {
        let (config, expected) = (self.config(), self.expected());
        let offered = config.features();
        assert_eq!(
            offered & features::DISCARD != 0,
            self.discard > 0 && !self.read_only
        );
        assert_eq!(
            offered & features::WRITE_ZEROES != 0,
            self.write_zeroes && !self.read_only
        );
        assert_eq!(offered & features::RO != 0, self.read_only);
        assert!(config.seg_max() >= 1 && config.seg_max() <= config.queue_size);
        // An offset of 0x100 or more is an offset in the MMIO window, where the space starts at 0x100.
        let start = |offset: u32| u64::from(if offset >= 0x100 { offset - 0x100 } else { offset });
        for &(offset, len) in self.reads.iter().take(32) {
            let end = start(offset) + u64::from(len);
            let found = config.read(self.size, self.writeback, offset, len as usize);
            match found {
                Ok(bytes) => assert_eq!(bytes, expected[start(offset) as usize..end as usize]),
                Err(_) => assert!(end > 256, "{offset:#x} {len}"),
            }
        }
        for (offset, data) in self.writes.iter().take(32) {
            let end = start(*offset) + data.len() as u64;
            let written = match **data {
                [value] if start(*offset) == 32 => Some(value),
                _ => None,
            };
            let found = BlkConfig::written_writeback(*offset, data);
            match (found, written) {
                (Err(_), _) if end > 256 => {}
                (Ok(on), Some(value @ 0..=1)) => assert_eq!(on, value == 1),
                (Err(_), None | Some(2..)) => {}
                (found, written) => panic!("{found:?} {written:?}"),
            }
        }
    }
}
