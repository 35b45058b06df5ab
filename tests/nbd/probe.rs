//! The look for the format of the image, on servers that do not let it happen.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use testkit::daemon::{Daemon, run};
use testkit::process::Process;

use crate::fake::{EIO, Peer, fake};
use crate::server::{DISK, URI, directory, long_form};

const SHORT: [&str; 4] = ["--socket-path", DISK, "--blk-file", URI];

/// The behaviour of a server that does not tell what is on the disk.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Error,
    Close,
    Silence,
}

impl Trouble {
    fn serve(self, mut peer: Peer) {
        while let Some(asked) = peer.next() {
            match self {
                Self::Error => peer.fail(&asked, EIO),
                Self::Close => return,
                Self::Silence => {}
            }
        }
    }
}

fn troubled(dir: &Path, trouble: Trouble) {
    fake(dir, move |_, peer| trouble.serve(peer));
}

#[test]
fn a_disk_that_cannot_be_looked_at_is_refused() {
    for (trouble, why) in [
        (Trouble::Error, "the server cannot read it: Input/output error"),
        (Trouble::Close, "the server has closed it"),
        (Trouble::Silence, "the server does not answer"),
    ] {
        let dir = directory(512);
        troubled(dir.path(), trouble);
        let exit = run(&SHORT, dir.path());
        let told = exit.refusal();
        assert!(told.contains(why), "{told}");
        for part in ["nbd.sock", "'disk'", "try again", "add --format raw"] {
            assert!(told.contains(part), "{told}");
        }
        assert_eq!(exit.status.code(), Some(1), "another start may help");
    }
}

#[test]
fn a_disk_of_a_given_format_needs_no_look() {
    let raw = [&SHORT[..], &["--format=raw"]].concat();
    for args in [raw.iter().map(ToString::to_string).collect(), long_form("")] {
        for trouble in [Trouble::Error, Trouble::Close] {
            let dir = directory(512);
            troubled(dir.path(), trouble);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            drop(Daemon::start_with(dir, &args));
        }
    }
}

#[test]
fn a_signal_ends_the_look_for_a_format() {
    for args in [SHORT.map(str::to_owned).to_vec(), long_form("")] {
        let dir = directory(512);
        let (told, looked) = mpsc::channel();
        fake(dir.path(), move |_, mut peer| {
            while peer.next().is_some() {
                let _ = told.send(());
            }
        });
        let mut command = Command::new(testkit::daemon::binary());
        command.args(args).current_dir(dir.path());
        let (mut daemon, ()) = Process::start("the daemon", &mut command, |_| ());
        looked.recv().expect("the daemon looks for the format");
        let sent = Instant::now();
        daemon.signal(libc::SIGTERM);
        assert_eq!(daemon.wait().code(), Some(1));
        assert!(sent.elapsed() < Duration::from_secs(3), "{:?}", sent.elapsed());
    }
}
