//! A disk, the daemon that serves it, and the guest that uses it: a variant of `qemu-configs/guest.cfg`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::daemon::{Daemon, IMAGE};
use crate::guest::{Boot, Guest};

/// One MiB in bytes.
pub const MIB: u64 = 1 << 20;

/// A disk and its daemon. Dropping it removes both and the whole directory.
pub struct Machine {
    pub daemon: Daemon,
    config: String,
}

impl Machine {
    /// Serves `size` bytes of random data as `config` says, with more options for the daemon.
    pub fn new(config: &str, size: u64, options: &[&str]) -> Self {
        let image = |path: &Path| {
            let mut random = File::open("/dev/urandom")?.take(size);
            io::copy(&mut random, &mut File::create(path)?)
        };
        Self::with_image(config, options, |path| image(path).map(drop))
    }

    /// Serves the image that `make_image` creates at the given path.
    pub fn with_image(
        config: &str,
        options: &[&str],
        make_image: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Self {
        let dir = TempDir::new().expect("there is a directory for temporary files");
        make_image(&dir.path().join(IMAGE)).expect("the image can be made");
        let configured = configured_options(config);
        let mut args: Vec<&str> = configured.split_whitespace().collect();
        args.extend(options);
        Self::with_args(config, dir, &args)
    }

    /// Serves a disk with these options of the daemon alone, for guests as `config` says.
    pub fn with_args(config: &str, dir: TempDir, args: &[&str]) -> Self {
        let daemon = Daemon::start_with(dir, args);
        let config = config.to_owned();
        Self { daemon, config }
    }

    /// Boots a guest on the disk.
    pub fn boot(&self, boot: Boot) -> Guest {
        self.boot_with(boot, &[])
    }

    /// Boots a guest with more options for QEMU.
    pub fn boot_with(&self, boot: Boot, qemu_options: &[&str]) -> Guest {
        Guest::boot(self.daemon.dir(), &self.config, boot, qemu_options)
    }

    /// Starts a QEMU on the disk that waits for an incoming guest.
    pub fn incoming(&self, boot: Boot) -> Guest {
        Guest::incoming(self.daemon.dir(), &self.config, boot, &[])
    }

    /// Starts a QEMU on the disk that restores the saved guest.
    pub fn restore(&self, boot: Boot) -> Guest {
        Guest::restore(self.daemon.dir(), &self.config, boot)
    }

    /// Returns the digest of the image's content, in the form of the guest's `md5sum`.
    pub fn image_digest(&self) -> String {
        host("md5sum", &[], &self.daemon.image_path())
            .chars()
            .take(32)
            .collect()
    }

    /// Returns the space that the image takes on the host's disk, in bytes.
    pub fn image_usage(&self) -> u64 {
        let metadata = fs::metadata(self.daemon.image_path()).expect("the image is there");
        metadata.blocks() * 512
    }
}

/// Returns the daemon's options: those of all variants, then those that this variant adds.
///
/// The options come from the comments of the configuration, so that the tests run the same commands that users read.
fn configured_options(variant: &str) -> String {
    let path = Path::new(crate::REPOSITORY).join("qemu-configs/guest.cfg");
    let text = fs::read_to_string(path).expect("the file is there");
    let name = format!("# {variant}: ");
    let (all, rest) = text.split_once(&name).expect("the file has the variant");
    let (own, _) = rest.split_once("\n#\n").unwrap_or((rest, ""));
    let options = |text: &str| {
        let command = text
            .lines()
            .find_map(|line| line.strip_prefix("#   vhost-user-blk "));
        command.unwrap_or_default().to_owned()
    };
    format!("{} {}", options(all), options(own))
}

/// Runs a program on the host. Returns its output.
///
/// # Panics
///
/// The program fails. The panic message contains its output.
pub fn host(program: &str, args: &[&str], file: &Path) -> String {
    // Debian installs file system tools in directories that only the PATH of root has.
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
