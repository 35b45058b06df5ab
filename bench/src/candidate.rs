//! The candidates: backends to compare, and the limit of the host without one.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Result, bail, ensure};

use crate::daemon::Daemon;
use crate::fio::{self, FIO};
use crate::image::Image;
use crate::limit::Engine;
use crate::store::Store;

/// A backend with its options.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// The name of its rows in the report, as the user wrote it.
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Ours {
        binary: PathBuf,
        options: Vec<String>,
        /// Serves the raw image with the data of a qcow2 image.
        raw: bool,
    },
    Qsd {
        aio: String,
    },
    Plain {
        each: bool,
    },
    Command {
        words: Vec<String>,
    },
    /// A client of a store on a network, which has the image.
    Network {
        store: Store,
        client: Client,
    },
    /// fio with its engine for Ceph clusters.
    FioRbd,
    /// The host without a backend.
    Limit(Engine),
}

/// A backend that is the client of a store.
#[derive(Clone, Debug)]
pub(crate) enum Client {
    Ours { binary: PathBuf, options: Vec<String> },
    Qsd,
}

impl Candidate {
    /// Parses `ours[:OPTIONS]`, `ours-raw[:OPTIONS]`, `qsd[:AIO]`, `plain[:each]`, `ours-nbd[:OPTIONS]`, `qsd-nbd`, the same
    /// with `-nbd-tls` and `-rbd`, `fio-rbd`, or `NAME=COMMAND`.
    ///
    /// # Errors
    /// The specification has another form, or its program is missing.
    pub(crate) fn parse(spec: &str, daemon: &Daemon) -> Result<Self> {
        let (mut name, kind) = (spec, Kind::parse(spec, daemon)?);
        if let Kind::Command { .. } = kind {
            name = spec.split('=').next().unwrap_or_default();
            ensure!(!name.is_empty(), "{spec}: the name before '=' is empty");
        }
        Ok(Self {
            name: name.to_owned(),
            kind,
        })
    }

    /// The host without a backend.
    pub(crate) fn limit(engine: Engine) -> Self {
        Self {
            name: engine.name().to_owned(),
            kind: Kind::Limit(engine),
        }
    }

    /// Returns whether the candidate can serve this image.
    ///
    /// Linux AIO needs O_DIRECT, since it blocks on other files. The plain backend does not align its buffers. A null
    /// disk does not use an engine, so several engines would give the same figures.
    pub(crate) fn supports(&self, image: &Image) -> bool {
        let serves = |aio: &str| match aio {
            "native" => image.is_direct(),
            "io_uring" => !image.is_null(),
            _ => true,
        };
        match &self.kind {
            Kind::Ours { raw: true, .. } => matches!(image, Image::Qcow2 { raw: Some(_), .. }),
            Kind::Ours { options, .. } => our_aio(options).is_none_or(|aio| serves(aio) && !image.is_null()),
            Kind::Qsd { aio } => serves(aio),
            Kind::Plain { .. } => !image.is_direct() && !image.has_format(),
            Kind::Command { words } => {
                let needs_raw_file = words.iter().any(|word| word.contains("{image}"));
                !needs_raw_file || !image.is_null() && !image.has_format()
            }
            Kind::Network { .. } | Kind::FioRbd | Kind::Limit(_) => !image.is_null() && !image.has_format(),
        }
    }

    /// Returns whether one process can serve several disks.
    pub(crate) fn serves_several(&self) -> bool {
        match &self.kind {
            Kind::Ours { .. } | Kind::Qsd { .. } => true,
            Kind::Command { words } => words.iter().any(|word| word == DISKS),
            Kind::Plain { .. } | Kind::Network { .. } | Kind::FioRbd | Kind::Limit(_) => false,
        }
    }

    /// Returns whether the program accepts its options. Only `ours` is asked: it checks them before it prints its
    /// capabilities.
    pub(crate) fn is_available(&self) -> bool {
        let Kind::Ours { binary, options, .. } = &self.kind else {
            return true;
        };
        let direct = (our_aio(options) == Some("native")).then_some("--direct");
        let status = Command::new(binary)
            .arg("--print-capabilities")
            .args(options)
            .args(direct)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    }

    /// Returns the first line that the program prints for `--version`.
    pub(crate) fn version(&self) -> Option<String> {
        let program = match &self.kind {
            Kind::Ours { binary, .. }
            | Kind::Network {
                client: Client::Ours { binary, .. },
                ..
            } => binary.as_os_str(),
            Kind::Qsd { .. }
            | Kind::Network {
                client: Client::Qsd, ..
            } => QSD.as_ref(),
            Kind::FioRbd => FIO.as_ref(),
            Kind::Plain { .. } | Kind::Limit(_) => {
                return Some(format!("built in {}", env!("CARGO_PKG_VERSION")));
            }
            Kind::Command { .. } => return None,
        };
        let output = Command::new(program).arg("--version").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        Some(text.lines().next()?.trim().to_owned())
    }
}

impl Kind {
    fn parse(spec: &str, daemon: &Daemon) -> Result<Self> {
        for (name, raw) in [("ours", false), ("ours-raw", true)] {
            if let Some(options) = suffix(spec, name) {
                return Ok(Self::Ours {
                    binary: daemon.path()?.to_owned(),
                    options: options.split_whitespace().map(str::to_owned).collect(),
                    raw,
                });
            }
        }
        if let Some(aio) = suffix(spec, "qsd") {
            let aio = if aio.is_empty() { "threads" } else { aio };
            ensure!(
                ["threads", "native", "io_uring"].contains(&aio),
                "{spec}: qsd's engine is threads, native or io_uring"
            );
            installed(spec, QSD)?;
            return Ok(Self::Qsd { aio: aio.to_owned() });
        }
        if spec == fio::NAME {
            installed(spec, FIO)?;
            Store::Rbd.check(spec, in_path)?;
            return Ok(Self::FioRbd);
        }
        for store in [Store::Nbd, Store::NbdTls, Store::Rbd] {
            let client = if let Some(options) = suffix(spec, &format!("ours-{}", store.suffix())) {
                Client::Ours {
                    binary: daemon.path()?.to_owned(),
                    options: options.split_whitespace().map(str::to_owned).collect(),
                }
            } else if spec == format!("qsd-{}", store.suffix()) {
                installed(spec, QSD)?;
                Client::Qsd
            } else {
                continue;
            };
            store.check(spec, in_path)?;
            return Ok(Self::Network { store, client });
        }
        if let Some(notify) = suffix(spec, "plain") {
            ensure!(
                ["", "each"].contains(&notify),
                "{spec}: only plain and plain:each exist"
            );
            return Ok(Self::Plain {
                each: notify == "each",
            });
        }
        let Some((_, command)) = spec.split_once('=') else {
            bail!(
                "{spec:?} is not a backend: ours[:OPTIONS], ours-raw[:OPTIONS], qsd[:AIO], plain[:each], ours-nbd[:OPTIONS], qsd-nbd (also -nbd-tls and -rbd), fio-rbd or NAME=COMMAND with {{socket}} in it"
            );
        };
        let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        ensure!(
            command.contains("{socket}") || words.iter().any(|word| word == DISKS),
            "{spec}: the command must contain {{socket}} or {{disks}}"
        );
        Ok(Self::Command { words })
    }
}

/// Stands for all disks in a command, as options of qemu-storage-daemon.
pub(crate) const DISKS: &str = "{disks}";

pub(crate) const QSD: &str = "qemu-storage-daemon";

/// Returns whether this machine has qemu-storage-daemon.
pub(crate) fn qsd_is_installed() -> bool {
    in_path(QSD)
}

/// Returns the value of `--aio` among the daemon's options.
fn our_aio(options: &[String]) -> Option<&str> {
    let at = options.iter().position(|option| option.starts_with("--aio"))?;
    options[at]
        .strip_prefix("--aio=")
        .or_else(|| options.get(at + 1).map(String::as_str))
}

/// Returns `""` for `name`, and `rest` for `name:rest`.
fn suffix<'a>(spec: &'a str, name: &str) -> Option<&'a str> {
    let rest = spec.strip_prefix(name)?;
    if rest.is_empty() {
        Some("")
    } else {
        rest.strip_prefix(':')
    }
}

fn installed(spec: &str, program: &str) -> Result<()> {
    ensure!(
        in_path(program),
        "{spec}: {program} is not in PATH; install it, or leave {spec} out"
    );
    Ok(())
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_specification_is_refused() {
        let shell = Daemon::new(Some("/bin/sh".as_ref()));
        for bad in [
            "",
            "theirs",
            "mine=serve {image}",
            "=serve {socket}",
            "oursx",
            "qsd:sync",
        ] {
            assert!(Candidate::parse(bad, &shell).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn a_command_with_an_image_gets_no_null_disk() {
        let (null, file) = (
            Image::Null { size: 4096 },
            Image::File {
                path: "/i".into(),
                direct: false,
            },
        );
        let of = |spec| Candidate::parse(spec, &Daemon::default()).unwrap();
        assert!(of("a=serve {socket} {image}").supports(&file));
        assert!(!of("a=serve {socket} {image}").supports(&null));
        assert!(of("a=serve {socket}").supports(&null));
    }
}
