//! The backends that are compared, and the command line that starts each of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::image::Image;

/// One backend with its options.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// As the user wrote it; the row's name in the report.
    pub(crate) name: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Ours { binary: PathBuf, options: Vec<String> },
    Qsd { aio: String },
    Plain { each: bool },
    Command { words: Vec<String> },
}

/// What a command line is made for.
#[derive(Clone, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) socket: &'a Path,
    pub(crate) image: &'a Image,
    pub(crate) queues: u16,
}

impl Candidate {
    /// Parses `ours[:OPTIONS]`, `qsd[:AIO]`, `plain[:each]` or `NAME=COMMAND`.
    ///
    /// # Errors
    /// If it is none of these or a program that it needs is missing.
    pub(crate) fn parse(spec: &str, binary: Option<&Path>) -> Result<Self> {
        let kind = if let Some(options) = suffix(spec, "ours") {
            let options = options.split_whitespace().map(str::to_owned).collect();
            Kind::Ours {
                binary: our_binary(binary)?,
                options,
            }
        } else if let Some(aio) = suffix(spec, "qsd") {
            let aio = if aio.is_empty() { "threads" } else { aio };
            ensure!(
                ["threads", "native", "io_uring"].contains(&aio),
                "{spec}: aio is threads, native or io_uring"
            );
            ensure!(in_path(QSD), "{spec}: {QSD} is not in PATH");
            Kind::Qsd { aio: aio.to_owned() }
        } else if let Some(notify) = suffix(spec, "plain") {
            ensure!(
                ["", "each"].contains(&notify),
                "{spec}: it is plain or plain:each"
            );
            Kind::Plain {
                each: notify == "each",
            }
        } else if let Some((name, command)) = spec.split_once('=') {
            ensure!(
                command.contains("{socket}"),
                "{spec}: the command has no {{socket}} in it"
            );
            ensure!(!name.is_empty(), "{spec}: the name before '=' is empty");
            let words = command.split_whitespace().map(str::to_owned).collect();
            return Ok(Self {
                name: name.to_owned(),
                kind: Kind::Command { words },
            });
        } else {
            bail!(
                "{spec:?} is not a backend: ours[:OPTIONS], qsd[:AIO], plain[:each] or NAME=COMMAND with {{socket}} in it"
            );
        };
        Ok(Self {
            name: spec.to_owned(),
            kind,
        })
    }

    /// Whether it can serve this image. Linux AIO is asynchronous on O_DIRECT files only, and QEMU refuses
    /// it elsewhere; the plain backend knows nothing of aligned buffers.
    pub(crate) fn supports(&self, image: &Image) -> bool {
        match &self.kind {
            Kind::Qsd { aio } => aio != "native" || image.direct,
            Kind::Plain { .. } => !image.direct,
            Kind::Ours { .. } | Kind::Command { .. } => true,
        }
    }

    /// The program and its arguments.
    pub(crate) fn command_line(&self, target: &Target) -> Vec<String> {
        let (socket, image) = (target.socket.display(), target.image.path.display());
        let words = |list: &[String]| list.to_vec();
        match &self.kind {
            Kind::Ours { binary, options } => {
                let mut line = words(&[
                    binary.display().to_string(),
                    format!("--socket-path={socket}"),
                    format!("--blk-file={image}"),
                    format!("--num-queues={}", target.queues),
                ]);
                line.extend(target.image.direct.then(|| "--direct".to_owned()));
                line.extend(options.iter().cloned());
                line
            }
            Kind::Qsd { aio } => {
                let direct = if target.image.direct { "on" } else { "off" };
                words(&[
                    QSD.to_owned(),
                    "--blockdev".to_owned(),
                    format!("driver=file,node-name=f,filename={image},aio={aio},cache.direct={direct}"),
                    "--object".to_owned(),
                    "iothread,id=io".to_owned(),
                    "--export".to_owned(),
                    format!(
                        "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={socket},writable=on,\
                         num-queues={},iothread=io",
                        target.queues
                    ),
                ])
            }
            Kind::Plain { each } => {
                let this = std::env::current_exe().unwrap_or_default().display().to_string();
                let queues = target.queues.to_string();
                let mut line = words(&[
                    this,
                    "--plain".to_owned(),
                    socket.to_string(),
                    image.to_string(),
                    queues,
                ]);
                line.extend(each.then(|| "each".to_owned()));
                line
            }
            Kind::Command { words } => {
                let fill = |word: &String| {
                    word.replace("{socket}", &socket.to_string())
                        .replace("{image}", &image.to_string())
                        .replace("{queues}", &target.queues.to_string())
                };
                words.iter().map(fill).collect()
            }
        }
    }
}

/// Whether this machine has qemu-storage-daemon.
pub(crate) fn qsd_is_installed() -> bool {
    in_path(QSD)
}

const QSD: &str = "qemu-storage-daemon";

/// `""` for `name`, `rest` for `name:rest`.
fn suffix<'a>(spec: &'a str, name: &str) -> Option<&'a str> {
    let rest = spec.strip_prefix(name)?;
    if rest.is_empty() {
        Some("")
    } else {
        rest.strip_prefix(':')
    }
}

fn our_binary(given: Option<&Path>) -> Result<PathBuf> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()
            .context("find this program")?
            .with_file_name("vhost-user-blk"),
    };
    ensure!(
        path.is_file(),
        "{} does not exist; build it, or name it with --binary",
        path.display()
    );
    Ok(path)
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_template_gets_socket_image_and_queues() {
        let candidate = Candidate::parse("mine=serve {socket} -f {image} --n={queues}", None).unwrap();
        let image = Image {
            path: "/i".into(),
            direct: false,
        };
        let line = candidate.command_line(&Target {
            socket: Path::new("/s"),
            image: &image,
            queues: 4,
        });
        assert_eq!(candidate.name, "mine");
        assert_eq!(line, ["serve", "/s", "-f", "/i", "--n=4"]);
    }

    #[test]
    fn a_specification_that_names_nothing_is_refused() {
        for bad in [
            "",
            "theirs",
            "mine=serve {image}",
            "=serve {socket}",
            "oursx",
            "qsd:sync",
        ] {
            assert!(
                Candidate::parse(bad, Some(Path::new("/bin/sh"))).is_err(),
                "{bad} was taken"
            );
        }
    }
}
