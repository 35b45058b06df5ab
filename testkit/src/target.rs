//! A daemon under attack, and the check that it took no harm.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::daemon::{Daemon, IMAGE, SOCKET};
use crate::holdings::Holdings;
use crate::neighbour::Neighbour;
use crate::raw::Client;
use crate::vm::{DATA, HEADER, SECTOR, STATUS, Vm, header, readable, writable};

pub const SECTORS: usize = 64;
const OUT: u32 = 1;

/// The image: each sector holds its own number.
pub fn image() -> Vec<u8> {
    (0..SECTORS * SECTOR)
        .map(|i| (i / SECTOR).to_le_bytes()[0])
        .collect()
}

/// Starts a daemon with two queues and a pool of fixed size. Also returns its holdings without a connection.
pub fn start() -> (Daemon, Holdings) {
    start_with(&options())
}

pub fn options() -> Vec<&'static str> {
    "--num-queues 2 --thread-pool-min 1 --thread-pool-max 1"
        .split(' ')
        .collect()
}

/// Starts a daemon with other options.
pub fn start_with(options: &[&str]) -> (Daemon, Holdings) {
    let mut daemon = serve(&image(), options);
    let baseline = daemon.idle_holdings(assert_serves);
    (daemon, baseline)
}

/// The names of the second disk's files.
const NEIGHBOUR: [&str; 2] = ["neighbour.sock", "neighbour.img"];

/// Starts a daemon on an image with this content, with options of the short form.
///
/// The process also serves a second disk, on the same IOThread, whose user must not notice anything.
pub fn serve(image: &[u8], options: &[&str]) -> Daemon {
    let disks = Disks::new(options);
    fs::write(disks.dir.path().join(IMAGE), image).expect("write the image");
    disks.serve()
}

/// A disk under attack and its neighbour, as options of the long form.
pub struct Disks {
    pub dir: TempDir,
    pub object: Value,
    pub node: Value,
    pub export: Value,
    pub neighbours_node: Value,
    pub neighbours_export: Value,
}

impl Disks {
    /// Describes disks with options of the short form. The image is not made yet.
    ///
    /// # Panics
    /// An option has no translation.
    pub fn new(options: &[&str]) -> Self {
        let export = |id: &str, node: &str, socket: &str| {
            json!({
                "type": "vhost-user-blk", "id": id, "node-name": node, "addr": {"type": "unix", "path": socket},
                "writable": true, "iothread": "iothread0"
            })
        };
        let [socket, image] = NEIGHBOUR;
        let mut disks = Self {
            dir: tempfile::tempdir().expect("make a directory"),
            object: json!({"qom-type": "iothread", "id": "iothread0"}),
            node: json!({"driver": "file", "node-name": "disk", "filename": IMAGE, "discard": "unmap"}),
            export: export(IMAGE, "disk", SOCKET),
            neighbours_node: json!({"driver": "file", "node-name": "neighbour", "filename": image}),
            neighbours_export: export("neighbour", "neighbour", socket),
        };
        disks.translate(options);
        disks
    }

    fn translate(&mut self, options: &[&str]) {
        let mut faults = Vec::new();
        let mut options = options.iter().copied();
        while let Some(option) = options.next() {
            let mut value = || options.next().expect("the option has a value");
            let mut number = || value().parse::<u32>().expect("a number");
            let key = option.trim_start_matches("--");
            match option {
                "--thread-pool-min" | "--thread-pool-max" | "--poll-max-ns" => {
                    self.object[key] = number().into();
                }
                "--num-queues" | "--queue-size" | "--logical-block-size" => {
                    self.export[key] = number().into();
                }
                "--serial" | "--rerror" | "--werror" | "--notify" => self.export[key] = value().into(),
                "--aio" => self.node[key] = value().replace('-', "_").into(),
                "--direct" => self.node["cache"] = json!({"direct": true}),
                "--read-only" => {
                    self.node[key] = true.into();
                    self.export["writable"] = false.into();
                }
                "--inject" => faults.push(value()),
                other => panic!("{other} has no translation yet"),
            }
        }
        self.export["inject"] = faults.into();
    }

    /// Starts a daemon, and the user of the neighbour.
    pub fn serve(self) -> Daemon {
        self.serve_with(&[])
    }

    /// The same with more options of the long form.
    pub fn serve_with(self, more: &[&str]) -> Daemon {
        let [socket, image] = NEIGHBOUR;
        let place = self.dir.path().join(image);
        if !place.exists() {
            Neighbour::make_image(&place);
        }
        let parts = [
            ("--object", self.object),
            ("--blockdev", self.node),
            ("--export", self.export),
            ("--blockdev", self.neighbours_node),
            ("--export", self.neighbours_export),
        ];
        let parts = parts.map(|(option, value)| [option.to_owned(), value.to_string()]);
        let args: Vec<&str> = parts
            .iter()
            .flatten()
            .map(String::as_str)
            .chain(more.iter().copied())
            .collect();
        Daemon::start_with(self.dir, &args).with_neighbour(socket, image)
    }
}

/// Checks that an ordinary frontend is served, and that the second disk is.
pub fn assert_serves(daemon: &Daemon) {
    daemon.check_neighbour();
    let mut vm = Vm::start(daemon, 2);
    for (queue, sector) in [(0, 9_u8), (1, 5)] {
        assert_eq!(vm.read_sector(queue, u64::from(sector)), [sector; SECTOR]);
        // The expected data is on the disk already. This also makes sure that a worker, if any, has started.
        vm.poke(HEADER, &header(OUT, u64::from(sector)));
        let write = [readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)];
        assert_eq!(vm.request(queue, &write), Some((0, 1)));
    }
}

/// Checks that nothing is left of the bad connections, and that good ones work.
pub fn assert_unharmed(mut daemon: Daemon, baseline: &Holdings) {
    assert!(daemon.is_alive());
    assert_serves(&daemon);
    daemon.wait_for_holdings(baseline);
    assert!(daemon.image() == image(), "the image changed");
}

/// A client that has negotiated everything.
pub fn client(daemon: &Daemon) -> Client {
    Vm::connect(daemon, 0).client
}
