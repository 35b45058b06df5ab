//! The look for the format of the image, on servers that do not let it happen.

use std::path::Path;

use testkit::daemon::{Daemon, run};

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
