//! A qemu-nbd that serves an image to a backend. Runs on the main thread.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::image::Image;
use crate::process::die_with_parent;

/// Time limit for the server to listen.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) const QEMU_NBD: &str = "qemu-nbd";

/// A running server, killed when dropped.
#[derive(Debug)]
pub(crate) struct NbdServer(Child);

impl NbdServer {
    /// Serves `image` as export `disk` on a Unix socket, and waits until it listens.
    pub(crate) fn start(image: &Image, socket: &Path) -> Result<Self> {
        let Image::File { path, direct } = image else {
            bail!("{QEMU_NBD} needs an image");
        };
        // A predecessor was killed, and has left it.
        let _ = std::fs::remove_file(socket);
        let cache = if *direct { "none" } else { "writeback" };
        let mut command = Command::new(QEMU_NBD);
        command
            .args([
                "-t",
                "-f",
                "raw",
                "-x",
                "disk",
                "--shared=0",
                "--cache",
                cache,
                "-k",
            ])
            .args([socket, path])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        die_with_parent(&mut command);
        let mut server = Self(command.spawn().with_context(|| format!("start {QEMU_NBD}"))?);
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(socket).is_err() {
            if let Some(status) = server.0.try_wait()? {
                bail!("{QEMU_NBD} ended while starting ({status})");
            }
            if Instant::now() > deadline {
                bail!("{QEMU_NBD} did not listen within 5 seconds");
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(server)
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
