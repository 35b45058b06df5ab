//! A disk, the daemon that serves it, and the guest that uses it, on one of `qemu-configs/`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::daemon::{Daemon, IMAGE};
use super::guest::{Boot, Guest};

/// One MiB in bytes.
pub(crate) const MIB: u64 = 1 << 20;

/// A disk and its daemon. Both go with it, and so does everything in its directory.
pub(crate) struct Machine {
    pub(crate) daemon: Daemon,
    config: PathBuf,
}

impl Machine {
    /// Serves random data of `size` bytes as `config` says, with more options for the daemon.
    pub(crate) fn new(config: &str, size: u64, options: &[&str]) -> Self {
        let image = |path: &Path| {
            let mut random = File::open("/dev/urandom")?.take(size);
            io::copy(&mut random, &mut File::create(path)?)
        };
        Self::with_image(config, options, |path| image(path).map(drop))
    }

    /// Serves what `make_image` puts at the path it is given.
    pub(crate) fn with_image(
        config: &str,
        options: &[&str],
        make_image: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Self {
        let dir = TempDir::new().expect("there is a directory for temporary files");
        make_image(&dir.path().join(IMAGE)).expect("the image can be made");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let config = root.join("qemu-configs").join(config).with_extension("cfg");
        let configured = configured_options(&config);
        let mut args: Vec<&str> = configured.split_whitespace().collect();
        args.extend(options);
        let daemon = Daemon::start_with(dir, &args);
        Self { daemon, config }
    }

    /// Boots a guest on it.
    pub(crate) fn boot(&self, boot: Boot) -> Guest {
        self.boot_with(boot, &[])
    }

    /// Boots a guest with more options for QEMU.
    pub(crate) fn boot_with(&self, boot: Boot, qemu_options: &[&str]) -> Guest {
        Guest::boot(self.daemon.dir(), &self.config, boot, qemu_options)
    }

    /// A QEMU on it that waits for a guest.
    pub(crate) fn incoming(&self, boot: Boot) -> Guest {
        Guest::incoming(self.daemon.dir(), &self.config, boot)
    }

    /// A QEMU on it that goes on with the guest that was saved here.
    pub(crate) fn restore(&self, boot: Boot) -> Guest {
        Guest::restore(self.daemon.dir(), &self.config, boot)
    }

    /// Digest of the image's content, as the guest's `md5sum` puts it.
    pub(crate) fn image_digest(&self) -> String {
        host("md5sum", &[], &self.daemon.image_path())
            .chars()
            .take(32)
            .collect()
    }

    /// What the image takes on the host's disk, in bytes.
    pub(crate) fn image_usage(&self) -> u64 {
        let metadata = fs::metadata(self.daemon.image_path()).expect("the image is there");
        metadata.blocks() * 512
    }
}

/// The daemon's options, from the comment of a configuration: what its user reads is what is tested.
fn configured_options(config: &Path) -> String {
    let text = fs::read_to_string(config).expect("qemu-configs has the file");
    let command = text
        .lines()
        .find_map(|line| line.strip_prefix("#   vhost-user-blk "));
    let command = command.expect("each configuration names the daemon's options");
    command.to_owned()
}

/// Runs a program on the host that has to succeed; returns what it printed.
///
/// # Panics
///
/// When it does not; all that it printed is shown.
pub(crate) fn host(program: &str, args: &[&str], file: &Path) -> String {
    // Debian keeps file system tools where only root looks.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program)
        .args(args)
        .arg(file)
        .env("PATH", path)
        .output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{program}: {stdout}{stderr}");
    stdout
}
