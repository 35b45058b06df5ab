//! The stores on a network that backends can be clients of, each started by this program. Runs on the main thread.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use testkit::ceph::{self, Cluster, POOL};
use testkit::certificates::Authority;
use testkit::nbd::qemu_nbd_at;
use testkit::process::Process;

use crate::image::Image;

pub(crate) const QEMU_NBD: &str = "qemu-nbd";

/// The kinds of stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// A qemu-nbd for each backend.
    Nbd,
    /// The same, with encrypted connections.
    NbdTls,
    /// A Ceph cluster that keeps everything in memory, one for all backends.
    Rbd,
}

/// A store that has the image of a backend. It ends when this is dropped, except for the cluster.
pub(crate) enum Server {
    Nbd(#[expect(dead_code, reason = "it only has to live")] Process),
    Rbd,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

/// The cluster, and the images that it has.
static CLUSTER: Mutex<Option<(Arc<Cluster>, BTreeSet<String>)>> = Mutex::new(None);

/// Ends the cluster when it is dropped.
#[derive(Debug)]
pub(crate) struct AtEnd;

impl Drop for AtEnd {
    fn drop(&mut self) {
        CLUSTER.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Store {
    /// Returns the end of the names of backends that use this store.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Nbd => "nbd",
            Self::NbdTls => "nbd-tls",
            Self::Rbd => "rbd",
        }
    }

    /// Returns the programs that the store needs.
    pub(crate) fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Nbd | Self::NbdTls => &[QEMU_NBD],
            Self::Rbd => &["ceph-mon", "ceph-osd", "ceph", "rbd"],
        }
    }

    /// Returns the options of `--object` that a node on this store needs.
    pub(crate) fn object(self, place: &Path) -> Option<String> {
        match self {
            Self::NbdTls => Some(format!(
                "tls-creds-x509,id=tls0,dir={},endpoint=client",
                files_beside(place).display()
            )),
            Self::Nbd | Self::Rbd => None,
        }
    }

    /// Returns the options of `--blockdev` for node `n`.
    pub(crate) fn node(self, place: &Path, image: &Image) -> String {
        let place = place.display();
        let nbd = format!("driver=nbd,node-name=n,server.type=unix,server.path={place},export=disk");
        match self {
            Self::Nbd => nbd,
            Self::NbdTls => format!("{nbd},tls-creds=tls0,tls-hostname=localhost"),
            Self::Rbd => format!(
                "driver=rbd,node-name=n,pool={POOL},image={},conf={place}",
                name(image)
            ),
        }
    }

    /// Serves `image` at `place`: a socket, or for a cluster its configuration.
    ///
    /// # Errors
    /// The image is no file, or cannot be imported.
    pub(crate) fn start(self, image: &Image, place: &Path) -> Result<Server> {
        let Image::File { path, direct } = image else {
            bail!("a server needs an image");
        };
        let cache = if *direct {
            "--cache=none"
        } else {
            "--cache=writeback"
        };
        match self {
            Self::Nbd => Ok(Server::Nbd(qemu_nbd_at(place, path, &[cache]))),
            Self::NbdTls => {
                let files = files_beside(place);
                if !files.exists() {
                    Authority::new().fill(&files, &["localhost"]);
                }
                let object = format!("tls-creds-x509,id=s,dir={},endpoint=server", files.display());
                let options = [cache, "--object", &object, "--tls-creds=s"];
                Ok(Server::Nbd(qemu_nbd_at(place, path, &options)))
            }
            Self::Rbd => {
                let mut present = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
                if present.is_none() {
                    *present = ceph::cluster().map(|cluster| (cluster, BTreeSet::new()));
                }
                let (cluster, images) = present.as_mut().context("start a Ceph cluster")?;
                if images.insert(name(image)) {
                    cluster.import(path, &name(image));
                }
                let _ = std::fs::remove_file(place);
                symlink(cluster.conf(), place).context("link the cluster's configuration")?;
                Ok(Server::Rbd)
            }
        }
    }

    /// Fails if a program is missing.
    pub(crate) fn check(self, spec: &str, in_path: impl Fn(&str) -> bool) -> Result<()> {
        for program in self.programs() {
            ensure!(
                in_path(program),
                "{spec}: {program} is not in PATH; install it, or leave {spec} out"
            );
        }
        Ok(())
    }
}

/// Returns the directory with the credentials of a server and its clients.
fn files_beside(place: &Path) -> PathBuf {
    place.with_extension("tls")
}

/// Returns the name of an image in the cluster.
pub(crate) fn name(image: &Image) -> String {
    let name = match image {
        Image::File { path, .. } => path.file_stem(),
        Image::Qcow2 { path, .. } => path.file_stem(),
        Image::Null { .. } => None,
    };
    name.unwrap_or_default().to_string_lossy().into_owned()
}
