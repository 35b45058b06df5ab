//! A daemon on which hostile cases run one after the other, with a check after each that it did no harm.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread;

use testkit::daemon::Daemon;
use testkit::holdings::Holdings;
use testkit::raw::Client;
use testkit::target::{assert_serves, client, image, start};
use testkit::vm::SECTOR;

/// A daemon under attack.
pub(crate) struct Arena {
    daemon: Daemon,
    baseline: Holdings,
    disk: File,
    cases: usize,
}

/// Prints the name of the case when it fails.
struct Named<'a>(&'a str);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- in the case: {}", self.0);
        }
    }
}

impl Arena {
    pub(crate) fn new() -> Self {
        let (daemon, baseline) = start();
        let disk = File::options().write(true).open(daemon.image_path());
        Self {
            disk: disk.expect("open the image"),
            daemon,
            baseline,
            cases: 0,
        }
    }

    /// Runs a case that must not write to the disk.
    pub(crate) fn case(&mut self, name: &str, attack: impl FnOnce(&Daemon)) {
        self.case_that_writes(name, 0..0, attack);
    }

    /// Runs a case with a client that has negotiated everything.
    pub(crate) fn client(&mut self, name: &str, attack: impl FnOnce(&mut Client)) {
        self.case(name, |daemon| attack(&mut client(daemon)));
    }

    /// Runs a case that may write to these sectors. The case's frontend must be gone when `attack` returns.
    pub(crate) fn case_that_writes(
        &mut self,
        name: &str,
        sectors: Range<usize>,
        attack: impl FnOnce(&Daemon),
    ) {
        let _named = Named(name);
        attack(&self.daemon);
        assert!(self.daemon.is_alive(), "the daemon ended");
        assert_serves(&self.daemon);
        self.daemon.wait_for_holdings(&self.baseline);
        let (mut now, sound) = (self.daemon.image(), image());
        assert_eq!(now.len(), sound.len(), "the image has another size");
        let allowed = sectors.start * SECTOR..sectors.end * SECTOR;
        now[allowed.clone()].copy_from_slice(&sound[allowed.clone()]);
        assert!(now == sound, "bytes outside of sectors {sectors:?} changed");
        let restored = self
            .disk
            .write_all_at(&sound[allowed.clone()], allowed.start as u64);
        restored.expect("restore the image");
        self.cases += 1;
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        println!("{} cases", self.cases);
    }
}
