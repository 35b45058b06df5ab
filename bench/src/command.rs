//! Builds the command line that starts each backend.

use std::path::{Path, PathBuf};

use testkit::ceph::POOL;

use crate::candidate::{Candidate, Client, DISKS, Kind, QSD};
use crate::image::Image;
use crate::store::{Store, name};

/// A disk of a backend: its socket and its image.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) socket: PathBuf,
    pub(crate) image: Image,
}

impl Disk {
    /// Returns the socket of the server that has the image, if the backend is the client of one.
    pub(crate) fn server(&self) -> PathBuf {
        self.socket.with_extension("nbd")
    }
}

/// The disks that a command line is built for, and the number of queues of each. Only `ours` and `qsd` can serve several
/// disks.
#[derive(Clone, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) disks: &'a [Disk],
    pub(crate) queues: u16,
}

impl Target<'_> {
    /// Returns the program that starts `candidate`, and its arguments. A limit has none.
    pub(crate) fn command_line(&self, candidate: &Candidate) -> Vec<String> {
        match &candidate.kind {
            Kind::Ours { binary, options, raw } => self.ours(binary, options, *raw),
            Kind::Qsd { aio } => [vec![QSD.to_owned()], self.exports(Some(aio))].concat(),
            Kind::Plain { each } => self.plain(*each),
            Kind::Command { words } => self.filled_in(words),
            Kind::Network { store, client } => self.network(*store, client),
            Kind::FioRbd | Kind::Limit(_) => Vec::new(),
        }
    }

    /// Uses the short form for `ours` unless the store needs an object. The options must suit the form.
    fn network(&self, store: Store, client: &Client) -> Vec<String> {
        let (disk, queues) = (&self.disks[0], self.queues);
        let (socket, place) = (disk.socket.display(), disk.server());
        let file = match store {
            Store::Nbd => Some(format!("nbd+unix:///disk?socket={}", place.display())),
            Store::Rbd => Some(format!(
                "rbd:{POOL}/{}:conf={}",
                name(&disk.image),
                place.display()
            )),
            Store::NbdTls => None,
        };
        let (program, export, options) = match (client, file) {
            (Client::Ours { binary, options }, Some(file)) => {
                let own = [
                    binary.display().to_string(),
                    format!("--socket-path={socket}"),
                    format!("--num-queues={queues}"),
                    format!("--blk-file={file}"),
                ];
                return [&own, &options[..]].concat();
            }
            (Client::Ours { binary, options }, None) => {
                (binary.display().to_string(), "vhost-user-blk", options.clone())
            }
            (Client::Qsd, _) => (QSD.to_owned(), "type=vhost-user-blk", Vec::new()),
        };
        let mut words = vec![program, "--object".to_owned(), "iothread,id=io".to_owned()];
        words.extend(
            store
                .object(&place)
                .into_iter()
                .flat_map(|object| ["--object".to_owned(), object]),
        );
        words.extend([
            "--blockdev".to_owned(),
            store.node(&place, &disk.image),
            "--export".to_owned(),
            format!(
                "{export},id=e,node-name=n,addr.type=unix,addr.path={socket},writable=on,num-queues={queues},iothread=io"
            ),
        ]);
        words.extend(options);
        words
    }

    /// Returns the path of the first disk's image, or `null:SIZE`, which the plain backend understands.
    fn image(&self) -> String {
        match &self.disks[0].image {
            Image::File { path, .. } | Image::Qcow2 { path, .. } => path.display().to_string(),
            Image::Null { size } => format!("null:{size}"),
        }
    }

    /// Uses the short form for one disk, and the long form for several. `options` must suit the form. `raw`: serves the raw
    /// image with the data of a qcow2 image.
    fn ours(&self, binary: &Path, options: &[String], raw: bool) -> Vec<String> {
        let mut line = vec![binary.display().to_string()];
        let [Disk { socket, image }] = self.disks else {
            line.extend(self.exports(None));
            line.extend_from_slice(options);
            return line;
        };
        line.push(format!("--socket-path={}", socket.display()));
        line.push(format!("--num-queues={}", self.queues));
        match image {
            Image::File { path, direct } => {
                line.push(format!("--blk-file={}", path.display()));
                line.extend(direct.then(|| "--direct".to_owned()));
            }
            Image::Qcow2 { raw: Some(path), .. } if raw => {
                line.push(format!("--blk-file={}", path.display()))
            }
            Image::Qcow2 { path, .. } => {
                line.extend([
                    format!("--blk-file={}", path.display()),
                    "--format=qcow2".to_owned(),
                ]);
            }
            Image::Null { size } => line.push(format!("--null={size}")),
        }
        line.extend_from_slice(options);
        line
    }

    /// Returns the options for all disks on one IOThread, in the words of qemu-storage-daemon.
    fn exports(&self, aio: Option<&str>) -> Vec<String> {
        let mut words = ["--object", "iothread,id=io"].map(str::to_owned).to_vec();
        for (i, Disk { socket, image }) in self.disks.iter().enumerate() {
            let node = match image {
                Image::Qcow2 { path, .. } => {
                    let aio = aio.map(|aio| format!(",file.aio={aio}")).unwrap_or_default();
                    format!(
                        "driver=qcow2,node-name=f{i},file.driver=file,file.filename={}{aio}",
                        path.display()
                    )
                }
                Image::File { path, direct } => {
                    let direct = if *direct { "on" } else { "off" };
                    let aio = aio.map(|aio| format!(",aio={aio}")).unwrap_or_default();
                    format!(
                        "driver=file,node-name=f{i},filename={},cache.direct={direct}{aio}",
                        path.display()
                    )
                }
                Image::Null { size } => format!("driver=null-co,node-name=f{i},size={size},read-zeroes=off"),
            };
            let export = format!(
                "type=vhost-user-blk,id=e{i},node-name=f{i},addr.type=unix,addr.path={},writable=on,num-queues={},\
                 iothread=io",
                socket.display(),
                self.queues
            );
            words.extend(["--blockdev".to_owned(), node, "--export".to_owned(), export]);
        }
        words
    }

    fn plain(&self, each: bool) -> Vec<String> {
        let mut line = vec![
            std::env::current_exe().unwrap_or_default().display().to_string(),
            "--plain".to_owned(),
            self.disks[0].socket.display().to_string(),
            self.image(),
            self.queues.to_string(),
        ];
        line.extend(each.then(|| "each".to_owned()));
        line
    }

    fn filled_in(&self, words: &[String]) -> Vec<String> {
        let fill = |word: &String| {
            if word == DISKS {
                return self.exports(None);
            }
            let word = word
                .replace("{socket}", &self.disks[0].socket.display().to_string())
                .replace("{image}", &self.image())
                .replace("{queues}", &self.queues.to_string());
            vec![word]
        };
        words.iter().flat_map(fill).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::Daemon;

    fn disk(socket: &str, image: Image) -> Disk {
        Disk {
            socket: socket.into(),
            image,
        }
    }

    fn file() -> Image {
        Image::File {
            path: "/i".into(),
            direct: false,
        }
    }

    #[test]
    fn a_template_gets_socket_image_and_queues() {
        let candidate =
            Candidate::parse("mine=serve {socket} -f {image} --n={queues}", &Daemon::default()).unwrap();
        let target = Target {
            disks: &[disk("/s", file())],
            queues: 4,
        };
        assert_eq!(candidate.name, "mine");
        assert_eq!(
            target.command_line(&candidate),
            ["serve", "/s", "-f", "/i", "--n=4"]
        );
    }

    #[test]
    fn clients_of_a_server_share_its_socket_and_export() {
        let target = Target {
            disks: &[disk("/d/0.sock", file())],
            queues: 8,
        };
        let client = Client::Ours {
            binary: "/bin/sh".into(),
            options: vec!["--stats".to_owned()],
        };
        let ours = target.network(Store::Nbd, &client);
        let expected = [
            "/bin/sh",
            "--socket-path=/d/0.sock",
            "--num-queues=8",
            "--blk-file=nbd+unix:///disk?socket=/d/0.nbd",
            "--stats",
        ];
        assert_eq!(ours, expected);
        let qsd = target.network(Store::Nbd, &Client::Qsd).join(" ");
        assert!(qsd.contains("server.path=/d/0.nbd,export=disk") && qsd.contains("addr.path=/d/0.sock"));
        for client in [&client, &Client::Qsd] {
            let line = target.network(Store::NbdTls, client).join(" ");
            assert!(
                line.contains("dir=/d/0.tls,endpoint=client") && line.contains("tls-creds=tls0"),
                "{line}"
            );
        }
        let ours = target.network(Store::Rbd, &client).join(" ");
        assert!(ours.contains("--blk-file=rbd:p/i:conf=/d/0.nbd"), "{ours}");
        let qsd = target.network(Store::Rbd, &Client::Qsd).join(" ");
        assert!(
            qsd.contains("driver=rbd,node-name=n,pool=p,image=i,conf=/d/0.nbd"),
            "{qsd}"
        );
    }

    #[test]
    fn a_null_disk_has_a_size_and_no_path() {
        let target = Target {
            disks: &[disk("/s", Image::Null { size: 4096 })],
            queues: 1,
        };
        let ours = target.ours(Path::new("/bin/sh"), &[], false);
        assert!(
            ours.contains(&"--null=4096".to_owned()) && !ours.iter().any(|word| word.contains("blk-file"))
        );
        assert!(
            target
                .exports(Some("threads"))
                .join(" ")
                .contains("driver=null-co")
        );
    }

    #[test]
    fn a_qcow2_image_is_served_in_its_format() {
        let image = Image::Qcow2 {
            path: "/i.qcow2".into(),
            raw: Some("/i.img".into()),
        };
        let target = Target {
            disks: &[disk("/s", image)],
            queues: 1,
        };
        let ours = |raw| target.ours(Path::new("/bin/sh"), &[], raw).join(" ");
        assert!(ours(false).ends_with("--blk-file=/i.qcow2 --format=qcow2"));
        assert!(ours(true).ends_with("--blk-file=/i.img"));
        let qsd = target.exports(Some("threads")).join(" ");
        assert!(
            qsd.contains(
                "driver=qcow2,node-name=f0,file.driver=file,file.filename=/i.qcow2,file.aio=threads"
            ),
            "{qsd}"
        );
    }

    #[test]
    fn several_disks_share_an_iothread() {
        let target = Target {
            disks: &[disk("/s0", file()), disk("/s1", file())],
            queues: 1,
        };
        let line = target
            .ours(Path::new("/bin/sh"), &["--stats".to_owned()], false)
            .join(" ");
        let template = Candidate::parse("old=serve {disks} -v", &Daemon::default()).unwrap();
        let filled = target.command_line(&template).join(" ");
        assert!(
            filled.starts_with("serve --object") && filled.contains("/s1"),
            "{filled}"
        );
        assert!(filled.ends_with("-v"), "{filled}");
        assert_eq!(line.matches("--object").count(), 1);
        assert_eq!(line.matches("iothread=io").count(), 2);
        assert!(
            line.contains("addr.path=/s1") && line.ends_with("--stats"),
            "{line}"
        );
    }
}
